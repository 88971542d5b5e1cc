"""Finished rows of a map, on their way from the network or a raster to a raster or polygons."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from geoseg.arrays import AnyArray, ByteArray

CONFIDENCE_SCALE = 254  # confidence and probabilities are stored as ``round(254 · p)``; 255 is nodata

CUT_EAST, CUT_SOUTH = 1, 2
NO_CUTS: ByteArray = np.empty((0, 0), np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class MapRows:
    """Some rows of a map.

    Attributes:
        classes: Class ids, (h, W) uint8; 255 where the scene is invalid, here and below.
        confidence: Probability of that class times 254, (h, W) uint8; None if not wanted.
        probabilities: The same for every class, (K, h, W) uint8; None if not wanted.
        disagreement: 1 where overlapping windows saw different classes, else 0, (h, W) uint8; None if not wanted.
        contact: Share of the contact in the probability of a class whose objects are told apart, times 254, (h, W)
            uint8; 0 in other classes. None if not wanted.
        cuts: Where neighbouring pixels of a class belong to different objects, (h, W) uint8: `CUT_EAST` beside the next
            pixel of the row, `CUT_SOUTH` above that of the next row. None where objects are not told apart.
    """

    classes: ByteArray
    confidence: ByteArray | None = None
    probabilities: ByteArray | None = None
    disagreement: ByteArray | None = None
    contact: ByteArray | None = None
    cuts: ByteArray | None = None

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, rows: slice) -> MapRows:
        """Some of the rows; views."""
        classes, *others = (None if layer is None else layer[..., rows, :] for layer in self.layers.values())
        assert classes is not None
        return MapRows(classes, *others)

    @property
    def layers(self) -> dict[str, ByteArray | None]:
        """The arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def cuts_between(classes: ByteArray, objects: AnyArray) -> ByteArray:
    """Where neighbours of a class belong to different objects, see `MapRows.cuts`; none below the last row."""
    cuts = np.zeros(classes.shape, dtype=np.uint8)
    cuts[:, :-1] = np.uint8(CUT_EAST) * ((objects[:, :-1] != objects[:, 1:]) & (classes[:, :-1] == classes[:, 1:]))
    cuts[:-1] |= np.uint8(CUT_SOUTH) * ((objects[:-1] != objects[1:]) & (classes[:-1] == classes[1:]))
    return cuts


def join_rows(pieces: list[MapRows], *, axis: int) -> MapRows:
    """Pieces with the same layers one below the other (axis -2) or side by side (axis -1)."""
    if len(pieces) == 1:
        return pieces[0]
    columns = zip(*(piece.layers.values() for piece in pieces), strict=True)
    present = ([layer for layer in column if layer is not None] for column in columns)
    classes, *others = (np.concatenate(column, axis) if column else None for column in present)
    assert classes is not None
    return MapRows(classes, *others)
