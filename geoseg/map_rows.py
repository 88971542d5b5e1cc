"""Finished rows of a prediction, on their way from the network to a raster or to polygons."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from geoseg.arrays import ByteArray

CONFIDENCE_SCALE = 254
"""Confidence and probabilities are stored as ``round(254 · p)``; 255 is nodata."""


@dataclass(frozen=True, slots=True, eq=False)
class MapRows:
    """Some rows of a map over the scene's whole width, from top to bottom.

    Attributes:
        classes: Class ids, (h, W) uint8; 255 where the scene is invalid.
        confidence: Probability of that class times 254, (h, W) uint8, 255 where invalid; None where not asked for.
        probabilities: The same for every class, (K, h, W) uint8, 255 where invalid; None where not asked for.
        disagreement: 1 where overlapping windows saw different classes, 0 where they agree or only one looked, 255
            where invalid, (h, W) uint8; None where not asked for.
    """

    classes: ByteArray
    confidence: ByteArray | None = None
    probabilities: ByteArray | None = None
    disagreement: ByteArray | None = None

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


def join_rows(pieces: list[MapRows], *, axis: int) -> MapRows:
    """Pieces with the same layers one below the other (axis -2) or side by side (axis -1)."""
    if len(pieces) == 1:
        return pieces[0]
    columns = zip(*(piece.layers.values() for piece in pieces), strict=True)
    present = ([layer for layer in column if layer is not None] for column in columns)
    classes, *others = (np.concatenate(column, axis) if column else None for column in present)
    assert classes is not None
    return MapRows(classes, *others)
