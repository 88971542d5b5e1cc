"""Weights out of other programs' checkpoints, without running what is in the files."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from geoseg.errors import ModelError, quoted
from geoseg.models.official import encoder_key, mismatch, without_wrappers
from geoseg.pretrained import check_digest, check_source, sha256_of
from geoseg.words import count

_WRAPPERS = ("state_dict", "model")
_STEM = "patch_embed1.proj.0.weight"
_HEAD = ("head.weight", "head.bias")
_IMAGENET_CLASSES = 1000

N = TypeVar("N", bound=nn.Module)
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        path: The file.
        sha256: Its SHA-256.
        tensors: Its state dict, on the CPU.
        class_names: Names of the classes, where the file's own notes list them.
        palette: Their colours, red, green and blue in [0, 255], where its notes list as many.
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    class_names: tuple[str, ...] | None = None
    palette: tuple[Color, ...] | None = None


class _Inert:
    """Stands in for an object that a checkpoint holds beside its weights; takes anything, keeps and does nothing."""

    def __new__(cls, *_: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _stand_in(name: str) -> type[_Inert]:
    module, _, last = name.rpartition(".")
    return type(last, (_Inert,), {"__module__": module})


# mmengine saves the history of its log, with a table of methods that pickle writes as calls of getattr; mmcv saves
# scores as numpy scalars, timm its arguments. None of it is of use here, so none of it is made.
_STAND_INS = [
    _stand_in(name)
    for name in (
        "mmengine.logging.history_buffer.HistoryBuffer",
        "builtins.getattr",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.ndarray",
        "numpy.dtype",
        "argparse.Namespace",
    )
]


def read_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """The state dict in a checkpoint, without running anything the file asks for.

    Pickles are read by torch's restricted unpickler. Beyond tensors and containers it meets only names that are known
    to lie in such files beside the weights, and makes inert objects of them.

    Args:
        path: ``.pth``, ``.pt``, ``.ckpt`` or ``.bin`` as torch writes them, or ``.safetensors``; a bare state dict,
            or one under ``state_dict`` or ``model``.

    Raises:
        ModelError: No such file, another suffix, a file that is truncated, altered or no checkpoint, or one that
            names code.
    """
    path = Path(path)
    check_source(path)
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", hint=f"ls -l {quoted(path)}") from error
    check_digest(path, digest)
    content = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pickle(path)
    names, palette = _class_notes(content)
    return Checkpoint(path, digest, _tensors(content, path), names, palette)


def load_encoder(network: N, path: str | PathLike[str], *, features_only: bool = False) -> N:
    """An MSCAN with the weights of an ImageNet checkpoint in place; the same network.

    As timm has it, the stem is adapted to other bands (one takes the sum over the three, others repeat them, scaled by
    3 / bands), and another number of classes keeps its fresh head. Unlike timm, every other tensor must be there and
    of the network's shape for features too.

    Args:
        network: MSCAN of any bands and classes.
        path: See `read_checkpoint`.
        features_only: The head is of no interest.

    Raises:
        ModelError: A file that cannot be read, or does not fit.
    """
    state = encoder_state(read_checkpoint(path).tensors, network, path)
    own = network.state_dict()
    bands, found = own[_STEM].shape[1], state[_STEM].shape[1]
    if found not in (3, bands):
        raise ModelError(
            f"{path} takes {count(found, 'band')}, the network {bands}", hint=f"a file for 3 or {bands} bands"
        )
    if found != bands:
        state[_STEM] = adapt_input_conv(bands, state[_STEM])
    head = {key: value for key, value in state.items() if key in _HEAD}
    body = {key: value for key, value in state.items() if key not in _HEAD}
    if not head and _HEAD[0] in own and own[_HEAD[0]].shape[0] == _IMAGENET_CLASSES and not features_only:
        raise ModelError(f"{path} lacks {_HEAD[0]}", hint="for the encoder alone: num_classes=0 or features_only=True")
    if any(key not in own or own[key].shape != value.shape for key, value in head.items()):
        head = {}
    network.load_state_dict({**{key: own[key] for key in _HEAD if key in own}, **body, **head})
    return network


def encoder_state(tensors: Mapping[str, Tensor], network: nn.Module, source: object) -> dict[str, Tensor]:
    """An ImageNet checkpoint's state dict in the names of an MSCAN, compared with it but for bands and classes.

    Args:
        tensors: Names of the official repository or of mmsegmentation 1.x.
        network: MSCAN that it is for.
        source: Named in errors.

    Raises:
        ModelError: A tensor of the encoder that is missing, of another shape, or one too many; the first is named.
    """
    state = {encoder_key(key): value for key, value in without_wrappers(tensors).items()}
    found, wanted = (
        {key: tuple(value.shape) for key, value in part.items() if key not in _HEAD}
        for part in (state, network.state_dict())
    )
    if _STEM in found:
        wanted[_STEM] = (*wanted[_STEM][:1], *found[_STEM][1:2], *wanted[_STEM][2:])
    problem = mismatch(found, wanted)
    if problem is not None:
        raise ModelError(
            f"{source} does not fit this MSCAN: it {problem}",
            hint="see which network a file is of: geoseg weights import FILE -o FOLDER",
        )
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return tensors


def _read_pickle(path: Path) -> object:
    _check_archive(path)
    try:
        with _known_names(), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes provoke: index, key, struct, unicode errors among others
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise ModelError(
                f"{path} asks for {refused[1]}, which is code and no weights, so nothing of it was loaded",
                hint="get the file from its source again, or save the weights alone: torch.save(net.state_dict(), …)",
            ) from error
        raise _unreadable(path, error) from error


@contextmanager
def _known_names() -> Iterator[None]:
    """Allow the stand-ins and nothing that another part of the program allowed, while a file is read."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(_STAND_INS))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _unreadable(path: Path, error: Exception) -> ModelError:
    reason = "its bytes are no whole file of torch's"
    if isinstance(error, RuntimeError | pickle.UnpicklingError | SafetensorError):
        told = re.search(r"WeightsUnpickler error:\s*([^\n]+)", str(error))  # torch puts a lecture before it
        reason = " ".join((told[1] if told else str(error)).split())
    return ModelError(
        f"{path} cannot be read as a checkpoint: {reason:.120}",
        hint="copy or download it again; see where from: geoseg weights list",
    )


def _check_archive(path: Path) -> None:
    """Refuse a damaged zip archive, which torch.save writes; torch itself compares no checksums while it reads."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile:
        damaged = "its end is missing"
    except (NotImplementedError, OSError, ValueError, zlib.error) as error:
        damaged = str(error)
    if damaged is not None:
        raise ModelError(
            f"{path} is truncated or damaged: {damaged}", hint=f"rm {quoted(path)}, and copy or download it again"
        )


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    inner = content
    if isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(inner, Mapping) or not inner:
        raise ModelError(
            f"{path} holds no state dict, found {type(inner).__name__}",
            hint="save one: torch.save(net.state_dict(), 'weights.pth')",
        )
    for key, value in inner.items():
        usable = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
        if not isinstance(key, str) or not usable or value.is_quantized or value.is_complex():
            raise ModelError(
                f"{path} holds no state dict: {str(key)!r:.80} is no plain tensor",
                hint="save one: torch.save(net.state_dict(), 'weights.pth')",
            )
    return {key: value.detach() for key, value in inner.items()}


def _class_notes(content: object) -> tuple[tuple[str, ...] | None, tuple[Color, ...] | None]:
    """Class names and colours in the notes of mmsegmentation 0.x (CLASSES, PALETTE) or 1.x (dataset_meta)."""
    notes = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(notes, Mapping):
        return None, None
    inner = notes.get("dataset_meta")
    sources = [notes, *([inner] if isinstance(inner, Mapping) else [])]
    names, palette = (
        next((value for s in sources for key in keys if isinstance(value := s.get(key), list | tuple)), None)
        for keys in (("CLASSES", "classes"), ("PALETTE", "palette"))
    )
    if not names or not all(isinstance(name, str) and name.strip() for name in names) or len(set(names)) < len(names):
        return None, None
    if palette is None or len(palette) != len(names) or not all(_is_color(color) for color in palette):
        return tuple(names), None
    return tuple(names), tuple((red, green, blue) for red, green, blue in palette)


def _is_color(color: object) -> bool:
    return (
        isinstance(color, list | tuple)
        and len(color) == 3
        and all(isinstance(channel, int) and 0 <= channel <= 255 for channel in color)
    )
