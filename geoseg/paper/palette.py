"""Pictures with a colour for each class to class ids: every pixel's colour is looked up, none is rounded."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from geoseg.arrays import ByteArray
from geoseg.classes import NODATA, ClassTable, Color


@dataclass(slots=True)
class Strange:
    """Pixels of a colour that no class has: place of the first, and number of all."""

    row: int
    col: int
    count: int


@dataclass(slots=True)
class PaletteReader:
    """Colours to class ids, in strips of a picture; colours that no class has become 255.

    Attributes:
        classes: The classes and their colours, which must differ.
        strange: Colours that no class has, in the order in which they were met.
    """

    classes: ClassTable
    strange: dict[Color, Strange] = field(default_factory=dict)
    _ids: ByteArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        keys = [(c.color[0] << 16) | (c.color[1] << 8) | c.color[2] for c in self.classes]
        assert len(set(keys)) == len(keys), "two classes have one colour"
        # One byte for every possible colour: 16 MB, of which a picture touches a small part.
        self._ids = np.full(1 << 24, NODATA, dtype=np.uint8)
        self._ids[keys] = np.arange(len(keys))

    def read(self, rgb: ByteArray, *, row: int) -> ByteArray:
        """Class ids (H, W) of colours (3, H, W) that start at ``row`` of the picture."""
        red, green, blue = rgb.astype(np.int32)
        keys = (red << 16) | (green << 8) | blue
        labels: ByteArray = self._ids[keys]
        unknown = np.flatnonzero(labels == NODATA)
        if unknown.size:
            found, first, counts = np.unique(keys.ravel()[unknown], return_index=True, return_counts=True)
            for i in np.argsort(first):
                at, key = int(unknown[first[i]]), int(found[i])
                color = key >> 16, key >> 8 & 255, key & 255
                known = self.strange.setdefault(color, Strange(row + at // keys.shape[1], at % keys.shape[1], 0))
                known.count += int(counts[i])
        return labels
