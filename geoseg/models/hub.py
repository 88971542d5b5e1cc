"""Weights of SMP's and timm's encoders: from this disk, else from the hub if it responds."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

ANSWER_S = 5.0

T = TypeVar("T")


def from_disk_or_hub(load: Callable[[], T]) -> T:
    """The result of ``load``, which queries the hub only for files that are not on this disk, and only if it responds.

    huggingface_hub queries it for files on this disk, too, and retries for half a minute if it cannot be reached.

    Raises:
        ConnectionError: A file is not on this disk and the hub does not respond.
        OSError: It cannot be downloaded for another reason.
    """
    state = torch.get_rng_state()
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        return load()
    except LocalEntryNotFoundError:
        torch.set_rng_state(state)  # so that layers without pretrained weights do not depend on this attempt
    finally:
        constants.HF_HUB_OFFLINE = before
    if not answers(constants.ENDPOINT):
        raise ConnectionError(f"{constants.ENDPOINT} does not respond")
    return load()


def answers(url: str) -> bool:
    """Whether a server or its proxy responds within `ANSWER_S`, be it with an error."""
    try:
        urlopen(Request(url, method="HEAD"), timeout=ANSWER_S).close()
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the download checks certificates
    except OSError:
        return False
    return True
