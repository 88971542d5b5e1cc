"""A trained model on disk: SMP's ``config.json`` and ``model.safetensors``, and the imagery contract beside them."""

import inspect
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import segmentation_models_pytorch as smp
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import geoseg.models  # noqa: F401  registers SegNeXt, which smp.create_model looks up by name
from geoseg.contract import Contract
from geoseg.errors import ConfigError, GeosegError, in_one_line
from geoseg.files import new_folder
from geoseg.network.stored_model import WEIGHTS_FILE, StoredModel, logits_stride, open_model
from geoseg.options import AnyPath

T = TypeVar("T")


def build_network(
    architecture: str, encoder: str, *, encoder_weights: str | None, in_channels: int, classes: int, **options: Any
) -> nn.Module:
    """A fresh SMP model by name.

    Raises:
        ConfigError: An unknown architecture or encoder, an option the architecture does not take, or pretrained weights
            that are not on this disk and cannot be downloaded.
        ModelError: A file of MSCAN's pretrained weights is missing or damaged.
    """
    _check_options(architecture, encoder, options)
    # Where timm makes the choice, SMP warns about any name.
    pretrained = bool(encoder_weights) or None if encoder.startswith("tu-") else encoder_weights
    create = partial(
        smp.create_model,
        architecture,
        encoder_name=encoder,
        encoder_weights=pretrained,
        in_channels=in_channels,
        classes=classes,
        **options,
    )
    try:
        # MSCAN's weights do not come from a hub.
        network: nn.Module = from_disk_or_hub(create) if pretrained and not encoder.startswith("tu-mscan") else create()
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
            hint="start from random weights with model.encoder_weights=null, or train once with network access and "
            f"copy {constants.HF_HUB_CACHE} from there",
        ) from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"model {architecture} with encoder {encoder} cannot be built: {error}",
            hint="SegNeXt's encoders: tu-mscan_tiny, …small, …base, …large" if "Unknown model" in str(error) else None,
        ) from error
    return network


def _check_options(architecture: str, encoder: str, options: Mapping[str, Any]) -> None:
    """Refuse options that SMP's own encoders would silently ignore; timm's (tu-…) raise."""
    model = smp.MODEL_ARCHITECTURES_MAPPING.get(architecture.lower())
    if model is None or encoder.startswith("tu-"):
        return
    known = [name for name in inspect.signature(model).parameters if not name.endswith("kwargs")]
    if unknown := sorted(options.keys() - set(known)):
        raise ConfigError(
            f"model {architecture} with encoder {encoder} takes no option {unknown[0]}",
            hint=f"its options: {', '.join(known)}",
        )


def save_model(folder: Path, network: nn.Module, contract: Contract, *, half: bool = False) -> None:
    """Write a model folder; an existing one is replaced at the end. ``half`` stores weights as float16."""
    with new_folder(folder) as scratch:
        # The folder holds all weights: loading must not fetch the encoder's again.
        config: dict[str, Any] = network.config  # type: ignore[assignment]
        config["encoder_weights"] = None
        config.pop("pretrained_cfg_overlay", None)
        network.save_pretrained(scratch)  # type: ignore[operator]
        # SMP's model card links to its own pages
        (scratch / "README.md").unlink(missing_ok=True)
        if half:
            with safe_open(scratch / WEIGHTS_FILE, framework="pt") as file:
                metadata, state = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            state = {key: t.half() if t.is_floating_point() else t for key, t in state.items()}
            save_file(state, scratch / WEIGHTS_FILE, metadata=metadata)
        contract.model_copy(update={"stride": logits_stride(network)}).save(scratch)


def load_model(name: AnyPath) -> StoredModel:
    """The model in a folder, or the shipped model of that name, with its network in memory.

    A `ModelError` for no such folder, a missing or invalid file, or files that do not fit each other.
    """
    model = open_model(name)
    _ = model.network
    return model


class Normalize(nn.Module):
    """Pixels to network input: ``(pixel * scale - mean) / std`` per band, 0 where invalid."""

    mean: Tensor
    std: Tensor

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        self.scale = contract.scale
        mean, std = torch.tensor(contract.statistics, dtype=torch.float32).view(2, 1, -1, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, pixels: Tensor, valid: Tensor | None = None) -> Tensor:
        """Network input (N, B, H, W) float32, channels last, of pixels as in a file; ``valid`` is (N, H, W)."""
        x = (pixels.float() * self.scale - self.mean) / self.std
        if valid is not None:
            x = x.masked_fill(~valid[:, None], 0.0)
        return x.contiguous(memory_format=torch.channels_last)


# --- weights of encoders


def from_disk_or_hub(load: Callable[[], T]) -> T:
    """The result of ``load``, which queries the hub only for files that are not on this disk, and only if it responds.

    huggingface_hub queries it for files on this disk, too, and retries for half a minute if it cannot be reached. An
    OSError if a file cannot be had.
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
    """Whether a server or its proxy responds within 5 s, be it with an error."""
    try:
        urlopen(Request(url, method="HEAD"), timeout=5).close()
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the download checks certificates
    except OSError:
        return False
    return True
