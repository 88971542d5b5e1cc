"""Key names of the official SegNeXt checkpoints, and of mmsegmentation's, to ours and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")

ENCODER_PREFIX = "encoder.model.model."
HEAD_PREFIX = "segmentation_head."
DECODER_PREFIX = "decoder."

_WRAPPERS = ("module.", "model.")
_MLP = "mlp.dwconv."
_OFFICIAL_MLP = "mlp.dwconv.dwconv."


def convert_official_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of `geoseg.models.SegNeXt` from that of an official segmentation model.

    The official one (mmsegmentation 0.x) and mmsegmentation 1.x differ in the name of the MLP's depthwise
    convolution only. Neither stores bases of the factorization: a strict load needs ``decoder.hamburger.ham.bases``
    added, from the fresh model or from elsewhere.

    Args:
        state_dict: Tensors under ``backbone.`` and ``decode_head.``, of any variant.

    Raises:
        KeyError: A key under neither prefix.
    """
    converted = {}
    for key, value in state_dict.items():
        if key.startswith("backbone."):
            converted[ENCODER_PREFIX + encoder_key(key.removeprefix("backbone."))] = value
        elif key.startswith("decode_head.conv_seg."):
            converted[HEAD_PREFIX + key.removeprefix("decode_head.conv_seg.")] = value
        elif key.startswith("decode_head."):
            converted[DECODER_PREFIX + key.removeprefix("decode_head.")] = value
        else:
            raise KeyError(f"{key!r} is not a key of an official SegNeXt segmentation checkpoint")
    return converted


def without_wrappers(state_dict: Mapping[str, T]) -> dict[str, T]:
    """The same with ``module.`` and ``model.`` taken off, as often as every name begins with one of them."""
    state = dict(state_dict)
    while state and any(all(key.startswith(wrapper) for key in state) for wrapper in _WRAPPERS):
        state = {key.partition(".")[2]: value for key, value in state.items()}
    return state


def encoder_key(key: str) -> str:
    """Name of an encoder's tensor in `geoseg.models.MSCAN` from either spelling of it."""
    return key.replace(_OFFICIAL_MLP, _MLP)


def is_official_spelling(keys: Iterable[str]) -> bool:
    """Whether names are those of the official repository, not of mmsegmentation 1.x."""
    return any(_OFFICIAL_MLP in key for key in keys)


def official_key(key: str, *, official: bool) -> str:
    """Name in a checkpoint of one of ours, the reverse of `convert_official_state_dict` and `encoder_key`.

    Args:
        key: Name in the state dict of SegNeXt or MSCAN.
        official: Spell it as the official repository does; else as mmsegmentation 1.x.
    """
    if official:
        key = key.replace(_MLP, _OFFICIAL_MLP)
    for ours, theirs in (
        (ENCODER_PREFIX, "backbone."),
        (HEAD_PREFIX, "decode_head.conv_seg."),
        (DECODER_PREFIX, "decode_head."),
    ):
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    return key


def mismatch(found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]]) -> str | None:
    """What keeps a checkpoint from fitting a network, in words that name the first tensor, or None where it fits.

    Args:
        found: Shapes in the checkpoint, by name.
        wanted: Shapes in the network, by the same names.
    """
    problems = []
    missing = [key for key in wanted if key not in found]
    surplus = [key for key in found if key not in wanted]
    if missing:
        problems.append(f"lacks {_first(missing)}")
    if surplus:
        problems.append(f"has {_first(surplus)}, which the network has not")
    wrong = [key for key in wanted if key in found and tuple(found[key]) != tuple(wanted[key])]
    if wrong and not problems:
        shapes = f"{tuple(found[wrong[0]])} instead of {tuple(wanted[wrong[0]])}"
        others = f", and {len(wrong) - 1} more of another shape" if len(wrong) > 1 else ""
        problems.append(f"has {wrong[0]} of shape {shapes}{others}")
    return " and ".join(problems) or None


def _first(keys: list[str]) -> str:
    return keys[0] + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
