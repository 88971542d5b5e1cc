"""A model folder, read as far as that goes without torch: its contract, its weights' digest, whether its files agree.

The network is built when it is first asked for. A prediction whose network is in the cache never asks.
"""

from __future__ import annotations

import hashlib
import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.contract import CONTRACT_FILE, Contract, find_model, load_contract
from geoseg.errors import ModelError, in_one_line

if TYPE_CHECKING:
    from torch import nn

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
WHOLE_FOLDER = "copy the whole model folder that geoseg train wrote"


@dataclass(frozen=True)
class StoredModel:
    """A model folder whose files are there and agree with each other.

    Attributes:
        folder: Where it lies.
        contract: What the model takes and gives.
        digest: First 16 hexadecimal digits of the SHA-256 of the weights file.
        key: SHA-256 of weights and network configuration: equal keys mean equal networks.
    """

    folder: Path
    contract: Contract
    digest: str
    key: str

    @cached_property
    def network(self) -> nn.Module:
        """The network in evaluation mode, float32, on the CPU.

        Raises:
            ModelError: The weights do not fit the network, or the configuration describes none.
        """
        return _load_network(self.folder)

    @property
    def stride(self) -> int:
        """Pixels per logit, from the contract or, in folders of older versions, from the network."""
        if self.contract.stride is not None:
            return self.contract.stride
        return logits_stride(self.network)


def logits_stride(network: nn.Module) -> int:
    """Pixels per logit: what the network says, or 1 where it knows of none."""
    return int(getattr(network, "logits_stride", 1))


def open_model(name: str | PathLike[str]) -> StoredModel:
    """The model in a folder, or the shipped one of that name.

    Raises:
        ModelError: No such folder, a file missing, or a network other than the contract describes.
    """
    folder = find_model(name)
    contract = load_contract(folder)
    for name_of_file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name_of_file).is_file():
            raise ModelError(f"{folder} has no {name_of_file}", hint=WHOLE_FOLDER)
    try:
        text = (folder / CONFIG_FILE).read_bytes()
        with (folder / WEIGHTS_FILE).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        config: Any = json.loads(text)
        stated = {key: config.get(key) for key in ("in_channels", "classes")}
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read: {error.strerror}") from error
    except (AttributeError, ValueError) as error:
        raise ModelError(
            f"{folder / CONFIG_FILE} describes no SMP model: {in_one_line(error)}", hint=WHOLE_FOLDER
        ) from error
    for key, count in (("in_channels", len(contract.bands)), ("classes", len(contract.classes))):
        if stated[key] != count:
            raise ModelError(
                f"{folder}: {CONFIG_FILE} has {key} {stated[key]}, but {CONTRACT_FILE} has {count}",
                hint=WHOLE_FOLDER,
            )
    key = hashlib.sha256(digest.encode() + text).hexdigest()
    return StoredModel(folder, contract, digest[:16], key)


def _load_network(folder: Path) -> nn.Module:
    """The network of a model folder in evaluation mode, float32, on the CPU.

    Raises:
        ModelError: The weights do not fit the network, or the configuration describes none.
    """
    import segmentation_models_pytorch as smp
    from safetensors import SafetensorError

    import geoseg.models  # noqa: F401  registers SegNeXt, which smp.from_pretrained looks up by name

    try:
        with redirect_stdout(io.StringIO()):  # huggingface_hub prints "Loading weights from local directory"
            network: nn.Module = smp.from_pretrained(str(folder), strict=True)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{folder / CONFIG_FILE} describes no SMP model: {in_one_line(error)}", hint=WHOLE_FOLDER
        ) from error
    except (RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE}: {in_one_line(error)}", hint=WHOLE_FOLDER
        ) from error
    return network.float().eval()
