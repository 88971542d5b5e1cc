"""A trained model on disk: SMP's ``config.json`` and ``model.safetensors``, and the imagery contract beside them."""

from __future__ import annotations

import inspect
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from huggingface_hub import constants
from torch import Tensor, nn

import geoseg.models  # noqa: F401  registers SegNeXt, which smp.create_model looks up by name
from geoseg.contract import Contract
from geoseg.contract import shipped_models as shipped_models
from geoseg.errors import ConfigError, GeosegError, in_one_line
from geoseg.models.hub import from_disk_or_hub
from geoseg.network.stored_model import CONFIG_FILE as CONFIG_FILE
from geoseg.network.stored_model import WEIGHTS_FILE as WEIGHTS_FILE
from geoseg.network.stored_model import logits_stride, open_model


@dataclass(frozen=True)
class TrainedModel:
    """A network in evaluation mode and the imagery contract it was trained under.

    Attributes:
        network: SMP model, float32, on the CPU.
        contract: What it takes and gives.
        folder: Where it came from.
        digest: First 16 hexadecimal digits of the SHA-256 of its weights file.
    """

    network: nn.Module
    contract: Contract
    folder: Path
    digest: str

    @property
    def stride(self) -> int:
        """Pixels per logit."""
        return logits_stride(self.network)


def build_network(
    architecture: str, encoder: str, *, encoder_weights: str | None, in_channels: int, classes: int, **options: Any
) -> nn.Module:
    """A fresh SMP model by name.

    Raises:
        ConfigError: An unknown architecture or encoder, an option the architecture does not take, or pretrained weights
            that are not here and cannot be downloaded.
        ModelError: The same of MSCAN's weights, or a file of them that is spoilt.
    """
    _check_options(architecture, encoder, options)
    # SMP warns of any name where it leaves the choice to timm.
    pretrained = bool(encoder_weights) or None if encoder.startswith("tu-") else encoder_weights

    def create() -> nn.Module:
        network: nn.Module = smp.create_model(
            architecture,
            encoder_name=encoder,
            encoder_weights=pretrained,
            in_channels=in_channels,
            classes=classes,
            **options,
        )
        return network

    try:
        # MSCAN's weights are no hub's.
        network = from_disk_or_hub(create) if pretrained and not encoder.startswith("tu-mscan") else create()
    except GeosegError:
        raise
    except KeyError as error:
        if architecture.lower() in smp.MODEL_ARCHITECTURES_MAPPING:
            raise ConfigError(f"model.encoder {encoder!r}: {error.args[0]}") from error
        known = ", ".join(sorted(smp.MODEL_ARCHITECTURES_MAPPING))
        raise ConfigError(f"model.architecture {architecture!r} is unknown", hint=f"known: {known}") from error
    except OSError as error:
        raise ConfigError(
            f"weights {encoder_weights} of encoder {encoder} are not on this disk and cannot be downloaded: "
            f"{in_one_line(error, 120)}",
            hint="start from random ones with model.encoder_weights=null, or train once where there is a network and "
            f"copy {constants.HF_HUB_CACHE} from there",
        ) from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"model {architecture} with encoder {encoder} cannot be built: {error}",
            hint="SegNeXt's encoders: tu-mscan_tiny, …small, …base, …large" if "Unknown model" in str(error) else None,
        ) from error
    return network


def _check_options(architecture: str, encoder: str, options: Mapping[str, Any]) -> None:
    """Refuse what SMP would swallow: its own encoders ignore keywords they do not know; timm's (tu-…) complain."""
    model = smp.MODEL_ARCHITECTURES_MAPPING.get(architecture.lower())
    if model is None or encoder.startswith("tu-"):
        return
    known = [name for name in inspect.signature(model).parameters if not name.endswith("kwargs")]
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise ConfigError(
            f"model {architecture} with encoder {encoder} takes no option {unknown[0]}",
            hint=f"its options: {', '.join(known)}",
        )


def save_model(folder: Path, network: nn.Module, contract: Contract, *, half: bool = False) -> None:
    """Write a model folder beside its final name and move it there; an existing one is replaced.

    Args:
        folder: Model folder to write.
        network: SMP model.
        contract: Its imagery contract.
        half: Store floating-point weights as float16, for half the size.
    """
    with new_folder(folder) as scratch:
        # What a fresh network fetched is in the folder: loading must not ask for it again.
        config: dict[str, Any] = network.config  # type: ignore[assignment]
        config["encoder_weights"] = None
        config.pop("pretrained_cfg_overlay", None)
        network.save_pretrained(scratch)  # type: ignore[operator]
        # SMP writes a card full of its own links; ours is a file of its own where there is one
        (scratch / "README.md").unlink(missing_ok=True)
        if half:
            _store_half(scratch / WEIGHTS_FILE)
        contract.model_copy(update={"stride": logits_stride(network)}).save(scratch)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill beside a final name, moved there when all went well; an existing one is replaced."""
    scratch = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.partial"
    try:
        scratch.mkdir(parents=True)
        yield scratch
        for file in scratch.iterdir():
            file.chmod(0o644)  # safetensors writes for its owner alone
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load_model(name: str | PathLike[str]) -> TrainedModel:
    """The model in a folder, or the shipped one of that name, with its network in memory.

    Raises:
        ModelError: No such folder, a file missing, weights that do not fit the network, or a contract that does not.
    """
    stored = open_model(name)
    return TrainedModel(stored.network, stored.contract, stored.folder, stored.digest)


class Normalize(nn.Module):
    """Scaled pixels to what the network sees: ``(pixel - mean) / std`` per band, 0 where invalid."""

    mean: Tensor
    std: Tensor

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        self.scale = contract.scale
        self.register_buffer("mean", torch.tensor([b.mean for b in contract.bands]).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([b.std for b in contract.bands]).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor, valid: Tensor | None = None) -> Tensor:
        """Network input (N, B, H, W) float32, channels last.

        Args:
            pixels: (N, B, H, W) as read from the file; NaN only where invalid.
            valid: (N, H, W) bool, or None where all are.
        """
        x = (pixels.float() * self.scale - self.mean) / self.std
        if valid is not None:
            x = x.masked_fill(~valid[:, None], 0.0)
        return x.contiguous(memory_format=torch.channels_last)


def _store_half(path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, framework="pt") as source:
        metadata = source.metadata()
        tensors = {key: source.get_tensor(key) for key in source.keys()}  # noqa: SIM118  not a dict
    half = {key: t.half() if t.is_floating_point() else t for key, t in tensors.items()}
    save_file(half, path, metadata=metadata)
