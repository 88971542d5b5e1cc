"""Names of tensors in the official SegNeXt checkpoints and in mmsegmentation's, and ours for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")

_PREFIXES = (
    ("encoder.model.model.", "backbone."),
    ("segmentation_head.", "decode_head.conv_seg."),
    ("decoder.", "decode_head."),
)
"""Ours and theirs of the segmentation networks; the first that fits counts."""

_WRAPPERS = ("module.", "model.")
_MLP, _OFFICIAL_MLP = "mlp.dwconv.", "mlp.dwconv.dwconv."


def convert_official_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of `geoseg.models.SegNeXt` from that of an official segmentation model.

    The official repository (mmsegmentation 0.x) and mmsegmentation 1.x differ only in the name of the MLP's depthwise
    convolution. Neither stores the bases of the factorization: a strict load needs ``decoder.hamburger.ham.bases``
    added, for example from a fresh model.

    Raises:
        KeyError: A key begins with neither ``backbone.`` nor ``decode_head.``.
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
    while state and any(all(key.startswith(wrapper) for key in state) for wrapper in _WRAPPERS):
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
