"""The stitcher's arrays: numpy's, changed by compiled kernels, or a GPU's in a subclass (`geoseg.tiling.tensors`)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from geoseg.arrays import AnyArray, Float32Array
from geoseg.map_rows import MapRows
from geoseg.options import Layers
from geoseg.tiling import kernels
from geoseg.tiling.kernels import Placement, Sums

Array: TypeAlias = Any  # A numpy array or a torch tensor; both are sliced and compared alike

Pending: TypeAlias = Callable[[], MapRows]
"""Waits for finished rows on their way from the device, which may do other work meanwhile; nodata is not marked yet."""

LOGIT_LIMIT = 64.0  # logits further below a window's best one count as this: e^-64 is as good as 0

EXPONENTIALS: Float32Array = np.append(np.exp(-np.arange(16 * 256) / 256), 0).astype(np.float32)
"""exp(-i / 256); a table, since libraries' exponentials differ in their last bit."""


class Block(NamedTuple):
    """Some rows of mean logits (K, n, C); whether any window covers them, and whether windows differ, (n, C)."""

    logits: Array
    covered: Array
    differs: Array


class HostArrays:
    """Makes and changes the stitcher's arrays: numpy here, tensors of a GPU in a subclass that gives the same bits.

    ``channels`` has the class of each logit channel.
    """

    library: Any = np  # or torch, which calls the same functions by the same names

    def __init__(self, channels: tuple[int, ...]) -> None:
        self.channels = channels
        self.mapped = self.constant(np.array(channels, dtype=np.int32))

    def constant(self, values: AnyArray) -> Array:
        """The values on the device."""
        return values

    def copy(self, array: Array) -> Array:
        """A copy."""
        return array.copy()

    def join(self, above: Array, below: Array) -> Array:
        """Rows below other rows, along the last axis but one."""
        return self.library.concatenate([above, below], axis=-2)

    def add_logits(self, logits: Array, taper: Array, sums: Sums, own: slice, here: slice, step: int) -> None:
        """Add columns ``own`` of logits (K, h, w), any float type, to columns ``here`` of the sums."""
        values = np.ascontiguousarray(logits, dtype=np.float32)
        width, limit = own.stop - own.start, np.float32(LOGIT_LIMIT)
        kernels.add_logits(values, taper, own.start, sums, self.mapped, here.start, width, limit, np.float32(step))

    def mean_logits(self, sums: Sums, rows: slice) -> tuple[Array, Array]:
        """Weighted means (K, n, C) of some rows, and where there are any (n, C)."""
        return kernels.mean_logits(sums, rows.start, rows.stop)

    def finish(self, block: Block, place: Placement, layers: Layers) -> Pending:
        """Rows of the output from a block."""
        mapped = mapped_logits(block.logits, self.channels, self.library)
        classes, confidence, every = self.upsample(
            mapped, block, place, confidence=layers.confidence, probabilities=layers.probabilities
        )
        differs = contact = None
        if layers.disagreement:
            # The cells that the output's pixels belong to
            rows = self.constant(np.arange(place.first_row, place.first_row + place.height) // place.stride - place.top)
            cols = self.constant(np.arange(place.first_col, place.first_col + place.width) // place.stride - place.left)
            differs = self.library.zeros_like(classes) | block.differs[rows[:, None], cols]
        if layers.contact:
            contact = self.library.zeros_like(classes)
            for channel, own in enumerate(self.channels[len(mapped) :], start=len(mapped)):
                _, _, shares = self.upsample(block.logits[[own, channel]], block, place, probabilities=True)
                assert shares is not None
                contact = self.library.where(classes == own, shares[1], contact)
        return self.pending(classes, confidence, every, differs, contact)

    def upsample(
        self, logits: Array, block: Block, place: Placement, *, confidence: bool = False, probabilities: bool = False
    ) -> tuple[Array, Array | None, Array | None]:
        """Classes, and their probability and that of every class where wanted, of mean logits on a block's cells."""
        classes = np.empty((place.height, place.width), dtype=np.uint8)
        sure = np.empty_like(classes) if confidence else None
        every = np.empty((len(logits), *classes.shape), dtype=np.uint8) if probabilities else None
        table = EXPONENTIALS if confidence or probabilities else None
        kernels.upsample(logits, block.covered, place, fractions(place.stride), classes, sure, every, table)
        return classes, sure, every

    def pending(self, *layers: Array | None) -> Pending:
        """Layers of rows on their way to the host."""
        return lambda: MapRows(*layers)  # type: ignore[arg-type]


def fractions(stride: int) -> Float32Array:
    """Place of a pixel between two logits, (stride,)."""
    return ((np.arange(stride) + 0.5) / stride).astype(np.float32)


def arrays_on(device: str, channels: tuple[int, ...]) -> HostArrays:
    """The arrays of a device, by torch's name."""
    if device == "cpu":
        return HostArrays(channels)
    from geoseg.tiling.tensors import TensorArrays  # loads torch, which a CPU can do without

    return TensorArrays(channels, device)


def mapped_logits(logits: Array, channels: Sequence[int], library: Any) -> Array:
    """Logits (…, K, h, w) of the classes of a map from those of all channels, whose classes ``channels`` are.

    A class to separate takes the larger of its own logit and that of its contact: what touches belongs to it.
    ``library`` is numpy or torch.
    """
    contact = {own: channel for channel, own in enumerate(channels) if own != channel}
    if not contact:
        return logits
    mapped = [logits[..., i, :, :] for i in range(len(channels) - len(contact))]
    for own, channel in contact.items():
        mapped[own] = library.maximum(mapped[own], logits[..., channel, :, :])
    return library.stack(mapped, -3)
