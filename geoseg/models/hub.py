"""Weights of SMP's and timm's encoders: from this disk, else from the hub, if that answers."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

ANSWER_S = 5.0

T = TypeVar("T")


def from_disk_or_hub(load: Callable[[], T]) -> T:
    """What ``load`` gives, which asks the hub for files only where they are not on this disk and the hub answers.

    By itself huggingface_hub asks a hub that cannot be reached again and again, for half a minute a file, and for files
    that are on this disk, too.

    Raises:
        ConnectionError: A file is not on this disk and the hub does not answer.
        OSError: It cannot be downloaded for another reason.
    """
    state = torch.get_rng_state()
    try:
        with _disk_only():
            return load()
    except LocalEntryNotFoundError:
        torch.set_rng_state(state)  # the layers without pretrained weights, as if this had not been tried
    if not answers(constants.ENDPOINT):
        raise ConnectionError(f"{constants.ENDPOINT} does not answer")
    return load()


@contextmanager
def _disk_only() -> Iterator[None]:
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def answers(url: str) -> bool:
    """Whether a server, or a proxy before it, answers within `ANSWER_S`; what it says does not matter."""
    try:
        urlopen(Request(url, method="HEAD"), timeout=ANSWER_S).close()
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # certificates are the download's concern
    except OSError:
        return False
    return True
