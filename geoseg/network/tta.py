"""Test-time augmentation: windows flipped, turned and scaled, their predictions averaged at the network's stride.

Probabilities are averaged, as in mmsegmentation's SegTTAModel, behind the paper's "MS + flip" numbers: logits of a
single scale that is confident and wrong could outweigh all others.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from geoseg.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

ALIGN_PX = 32  # scaled windows are rounded to multiples of this, the deepest stride of the networks


class Symmetry(NamedTuple):
    """One of the eight symmetries of a square: flip rows, flip columns, then swap both axes."""

    flip_rows: bool = False
    flip_cols: bool = False
    transpose: bool = False

    def apply(self, x: Tensor) -> Tensor:
        """Images (…, H, W) to (…, H, W), or to (…, W, H) if it transposes."""
        x = x.flip(self._dims) if self._dims else x
        return x.transpose(-2, -1) if self.transpose else x

    def undo(self, x: Tensor) -> Tensor:
        """The images that `apply` turned into ``x``."""
        x = x.transpose(-2, -1) if self.transpose else x
        return x.flip(self._dims) if self._dims else x

    @property
    def _dims(self) -> list[int]:
        return [dim for dim, flip in ((-2, self.flip_rows), (-1, self.flip_cols)) if flip]


IDENTITY = Symmetry()
FLIPS = (IDENTITY, Symmetry(flip_cols=True), Symmetry(flip_rows=True), Symmetry(flip_rows=True, flip_cols=True))
D4 = (*FLIPS, *(s._replace(transpose=True) for s in FLIPS))


@dataclass(frozen=True, slots=True)
class Tta:
    """How a window is varied: each symmetry at each scale, in this order."""

    symmetries: tuple[Symmetry, ...] = (IDENTITY,)
    scales: tuple[float, ...] = (1.0,)  # factors for a window's sides, then rounded to multiples of 32 px

    @property
    def is_plain(self) -> bool:
        """Whether windows are predicted as they are."""
        return self == Tta()


PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of the paper's multi-scale testing

TTA: dict[str, Tta] = {
    "none": Tta(),
    "flips": Tta(FLIPS),
    "d4": Tta(D4),
    "scales": Tta(scales=PAPER_SCALES),
    "scales+flips": Tta(FLIPS[:2], PAPER_SCALES),
}
"""By name; "scales+flips" is the paper's multi-scale testing, which flips left to right."""


def find_tta(name: str) -> Tta:
    """The augmentation of that name; a `ConfigError` lists the known ones."""
    if name not in TTA:
        raise ConfigError(f"no test-time augmentation is called {name!r}", hint=f"--tta {', '.join(TTA)}")
    return TTA[name]


def augmented(logits_fn: Callable[[Tensor], Tensor], x: Tensor, tta: Tta) -> Tensor:
    """Log of the mean probability over augmentations, (N, K, H/s, W/s) float32; without any, the network's logits.

    It can be blended like logits. The order of the sum does not depend on the batch, so a window always gives the same
    values. Windows (N, B, H, W) are normalised, their sides multiples of the stride s; ``logits_fn`` gets sides that
    are multiples of 32.
    """
    if tta.is_plain:
        return logits_fn(x)
    import torch  # not at the top: choosing an augmentation must not load torch
    import torch.nn.functional as F

    def resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
        return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def predictions() -> Iterator[Tensor]:
        for scale in tta.scales:
            aligned = [max(round(side * scale / ALIGN_PX), 1) * ALIGN_PX for side in x.shape[-2:]]
            scaled = x if scale == 1 else resized(x, tuple(aligned))
            for symmetry in tta.symmetries:
                logits = symmetry.undo(logits_fn(symmetry.apply(scaled).contiguous())).float()
                stride = scaled.shape[-2] // logits.shape[-2]
                yield F.log_softmax(resized(logits, tuple(side // stride for side in x.shape[-2:])), dim=1)

    total = functools.reduce(torch.logaddexp, predictions())
    return total - math.log(len(tta.scales) * len(tta.symmetries))
