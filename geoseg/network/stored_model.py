"""A model folder, read as far as possible without torch: contract, digest of the weights, consistency of its files.

The network is built when it is first used. A prediction whose network is in the cache never builds it.
"""

from __future__ import annotations

import hashlib
import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.contract import CONTRACT_FILE, Contract, find_model, load_contract
from geoseg.errors import ModelError, in_one_line
from geoseg.options import AnyPath

if TYPE_CHECKING:
    from torch import nn

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
WHOLE_FOLDER = "copy the whole model folder that geoseg train wrote"


@dataclass(frozen=True)
class StoredModel:
    """A trained model: a folder that is complete and consistent."""

    folder: Path  # where it is
    contract: Contract  # what the model takes and gives
    digest: str  # first 16 hexadecimal digits of the SHA-256 of the weights file
    key: str | None  # SHA-256 of weights and network configuration, under which the converted network is cached

    @cached_property
    def network(self) -> nn.Module:
        """The SMP network in evaluation mode, float32, on the CPU; a `ModelError` if the files do not fit together."""
        import segmentation_models_pytorch as smp
        from safetensors import SafetensorError

        import geoseg.models  # noqa: F401  registers SegNeXt, which smp.from_pretrained looks up by name

        try:
            with redirect_stdout(io.StringIO()):  # huggingface_hub prints "Loading weights from local directory"
                network: nn.Module = smp.from_pretrained(str(self.folder), strict=True)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _not_a_config(self.folder, error) from error
        except (RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{self.folder / WEIGHTS_FILE} does not fit {CONFIG_FILE}: {in_one_line(error)}", hint=WHOLE_FOLDER
            ) from error
        return network.float().eval()

    @property
    def stride(self) -> int:
        """Pixels per logit, from the contract or, if an older version wrote it, from the network."""
        return self.contract.stride or logits_stride(self.network)


def logits_stride(network: nn.Module) -> int:
    """Pixels per logit of a network; 1 unless it states another."""
    return int(getattr(network, "logits_stride", 1))


def open_model(name: AnyPath) -> StoredModel:
    """The model in a folder, or the shipped model of that name; a `ModelError` if files are missing or do not match."""
    folder = find_model(name)
    contract = load_contract(folder)
    for required in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / required).is_file():
            raise ModelError(f"{folder} has no {required}", hint=WHOLE_FOLDER)
    try:
        text = (folder / CONFIG_FILE).read_bytes()
        with (folder / WEIGHTS_FILE).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        config: Any = json.loads(text)
        stated = {key: config.get(key) for key in ("in_channels", "classes")}
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read: {error.strerror}") from error
    except (AttributeError, ValueError) as error:
        raise _not_a_config(folder, error) from error
    for key, count in (("in_channels", len(contract.bands)), ("classes", len(contract.class_table.channels))):
        if stated[key] != count:
            raise ModelError(
                f"{folder}: {CONFIG_FILE} has {key} {stated[key]}, but {CONTRACT_FILE} has {count}", hint=WHOLE_FOLDER
            )
    return StoredModel(folder, contract, digest[:16], hashlib.sha256(digest.encode() + text).hexdigest())


def _not_a_config(folder: Path, error: Exception) -> ModelError:
    return ModelError(f"{folder / CONFIG_FILE} describes no SMP model: {in_one_line(error)}", hint=WHOLE_FOLDER)
