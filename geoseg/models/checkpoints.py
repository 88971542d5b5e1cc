"""Weights from other programs' checkpoints, read without running code from the files, and our names for them."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

from geoseg.errors import ModelError, in_one_line, quoted
from geoseg.pretrained import check_digest, check_source, sha256_of
from geoseg.words import count

_STEM = "patch_embed1.proj.0.weight"
_HEAD = ("head.weight", "head.bias")

_PREFIXES = (
    ("encoder.model.model.", "backbone."),
    ("segmentation_head.", "decode_head.conv_seg."),
    ("decoder.", "decode_head."),
)
"""Ours and theirs of the segmentation networks; the first that fits counts."""

_MLP, _OFFICIAL_MLP = "mlp.dwconv.", "mlp.dwconv.dwconv."

N = TypeVar("N", bound=nn.Module)
T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds."""

    path: Path
    sha256: str
    tensors: dict[str, Tensor]  # its state dict, on the CPU
    notes: object = None  # what it has under ``meta``, where mmsegmentation notes its classes


class _Inert:
    """Replaces an object that a checkpoint holds beside its weights; takes any arguments and does nothing."""

    def __new__(cls, *_: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


# mmengine saves the history of its log, with a table of methods that pickle writes as calls of getattr; mmcv saves
# scores as numpy scalars, timm its arguments. None of it is needed here.
_STAND_INS = [
    type(name, (_Inert,), {"__module__": module})
    for module, name in (
        ("mmengine.logging.history_buffer", "HistoryBuffer"),
        ("builtins", "getattr"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("argparse", "Namespace"),
    )
]


def read_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """The state dict in a checkpoint: a bare one, or one under ``state_dict`` or ``model``.

    The file is a ``.pth``, ``.pt``, ``.ckpt`` or ``.bin`` as torch writes them, or a ``.safetensors``. Pickles are read
    by torch's restricted unpickler. Beside tensors and containers it accepts only names that are known to occur in such
    files, and makes inert objects of them.

    Raises:
        ModelError: No such file, an unknown suffix, a file that is truncated, altered or not a checkpoint, or one that
            names code.
    """
    path = Path(path)
    check_source(path)
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", hint=f"ls -l {quoted(path)}") from error
    check_digest(path, digest)
    content: object
    if path.suffix.lower() == ".safetensors":
        try:
            content = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise _unreadable(path, error) from error
    else:
        content = _read_pickle(path)
    notes = content.get("meta") if isinstance(content, Mapping) else None
    return Checkpoint(path, digest, _tensors(content, path), notes)


def load_encoder(network: N, path: str | PathLike[str], *, features_only: bool = False) -> N:
    """The same MSCAN with the weights of an ImageNet checkpoint; with ``features_only`` the file needs no head.

    As in timm, the stem is adapted to the number of bands (a single band gets the sum of the three, others repeat them,
    scaled by 3 / bands), and a head for another number of classes stays as it is. Every other tensor must be there and
    have the network's shape, unlike in timm.
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
    head = {key: state.pop(key) for key in _HEAD if key in state}
    own_head = {key: own[key] for key in _HEAD if key in own}
    has_own_head = bool(own_head) and len(own_head[_HEAD[0]]) == 1000  # one for ImageNet's classes
    if not head and has_own_head and not features_only:
        raise ModelError(f"{path} lacks {_HEAD[0]}", hint="for the encoder alone: num_classes=0 or features_only=True")
    fits = all(key in own and own[key].shape == value.shape for key, value in head.items())
    network.load_state_dict({**state, **own_head, **(head if fits else {})})
    return network


def encoder_state(tensors: Mapping[str, Tensor], network: nn.Module, source: object) -> dict[str, Tensor]:
    """An ImageNet checkpoint's state dict under MSCAN's names; its shapes are checked, bands and classes excepted.

    A `ModelError` names the ``source`` and the first tensor that is missing, unexpected, or of another shape.
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
            hint="to find out what network a file is for: geoseg weights import FILE -o FOLDER",
        )
    return state


def _read_pickle(path: Path) -> object:
    _check_archive(path)
    try:
        with _known_names(), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise index, key, struct, unicode and other errors
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise ModelError(
                f"{path} asks for {refused[1]}, which is code, so nothing was loaded",
                hint="get the file from its source again, or save only the weights: torch.save(net.state_dict(), …)",
            ) from error
        raise _unreadable(path, error) from error


@contextmanager
def _known_names() -> Iterator[None]:
    """Allow only the stand-ins while a file is read, and nothing that another part of the program allowed."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(_STAND_INS))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _unreadable(path: Path, error: Exception) -> ModelError:
    reason = "it is not a complete file of torch's"
    if isinstance(error, RuntimeError | pickle.UnpicklingError | SafetensorError):
        short = re.search(r"WeightsUnpickler error:\s*([^\n]+)", str(error))  # a long explanation stands before it
        reason = short[1] if short else str(error)
    return ModelError(
        f"{path} cannot be read as a checkpoint: {in_one_line(reason, 120)}",
        hint="copy or download it again; for addresses: geoseg weights list",
    )


def _check_archive(path: Path) -> None:
    """Refuse a damaged zip archive, which torch.save writes; torch does not compare its checksums."""
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
    inner, problem = content, None
    if isinstance(content, Mapping):
        parts = (content.get(wrapper) for wrapper in ("state_dict", "model"))
        inner = next((part for part in parts if isinstance(part, Mapping)), content)
    if isinstance(inner, Mapping) and inner:
        for key, value in inner.items():
            usable = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
            if not isinstance(key, str) or not usable or value.is_quantized or value.is_complex():
                problem = f": {str(key)!r:.80} is not a plain tensor"
                break
        else:
            return {key: value.detach() for key, value in inner.items()}
    raise ModelError(
        f"{path} holds no state dict{problem or f', found {type(inner).__name__}'}",
        hint="save one: torch.save(net.state_dict(), 'weights.pth')",
    )


# --- names


def convert_official_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of `geoseg.models.SegNeXt` from that of an official segmentation model; a KeyError for any other.

    The official repository (mmsegmentation 0.x) and mmsegmentation 1.x differ only in the name of the MLP's depthwise
    convolution. Neither stores the bases of the factorization: a strict load needs ``decoder.hamburger.ham.bases``
    added, for example from a fresh model.
    """
    converted = {}
    for key, value in state_dict.items():
        known = [ours + key.removeprefix(theirs) for ours, theirs in _PREFIXES if key.startswith(theirs)]
        if not known:
            raise KeyError(f"{key!r} is not a key of an official SegNeXt segmentation checkpoint")
        converted[encoder_key(known[0])] = value
    return converted


def without_wrappers(state_dict: Mapping[str, T]) -> dict[str, T]:
    """The state dict with ``module.`` and ``model.`` removed as long as all names begin with one of them."""
    state = dict(state_dict)
    while state and any(all(key.startswith(wrapper) for key in state) for wrapper in ("module.", "model.")):
        state = {key.partition(".")[2]: value for key, value in state.items()}
    return state


def encoder_key(key: str) -> str:
    """Name of an encoder's tensor in `geoseg.models.MSCAN` from either spelling."""
    return key.replace(_OFFICIAL_MLP, _MLP)


def is_official_spelling(keys: Iterable[str]) -> bool:
    """Whether names are those of the official repository rather than of mmsegmentation 1.x."""
    return any(_OFFICIAL_MLP in key for key in keys)


def official_key(key: str, *, official: bool) -> str:
    """Name in a checkpoint of the official repository, or else of mmsegmentation 1.x, for one of ours."""
    if official:
        key = key.replace(_MLP, _OFFICIAL_MLP)
    return next((theirs + key.removeprefix(ours) for ours, theirs in _PREFIXES if key.startswith(ours)), key)


def mismatch(found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]]) -> str | None:
    """Why a checkpoint's shapes do not fit a network's, naming the first tensor, or None."""

    def first(keys: list[str]) -> str:
        return keys[0] + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")

    problems = []
    if missing := [key for key in wanted if key not in found]:
        problems.append(f"lacks {first(missing)}")
    if surplus := [key for key in found if key not in wanted]:
        problems.append(f"has {first(surplus)}, which the network does not have")
    wrong = [key for key in wanted if key in found and tuple(found[key]) != tuple(wanted[key])]
    if wrong and not problems:
        shapes = f"{tuple(found[wrong[0]])} instead of {tuple(wanted[wrong[0]])}"
        others = f", and {len(wrong) - 1} more of another shape" if len(wrong) > 1 else ""
        problems.append(f"has {wrong[0]} of shape {shapes}{others}")
    return " and ".join(problems) or None
