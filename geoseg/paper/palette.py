"""Pictures of classes, a colour for each, to class ids: every pixel's colour is looked up, none is rounded."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from geoseg.classes import NODATA, ClassTable, Color

LabelArray = npt.NDArray[np.uint8]


@dataclass(slots=True)
class Strange:
    """Pixels of a colour that no class has.

    Attributes:
        row: Row of the first one.
        col: Its column.
        count: How many there are.
    """

    row: int
    col: int
    count: int


@dataclass(slots=True)
class PaletteReader:
    """Colours to class ids, rows of a picture at a time; what no class has is noted and becomes 255.

    Attributes:
        classes: The classes and their colours, which must differ.
        strange: Colours that no class has, in the order they were met.
    """

    classes: ClassTable
    strange: dict[Color, Strange] = field(default_factory=dict)
    _ids: LabelArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        keys = [(c.color[0] << 16) | (c.color[1] << 8) | c.color[2] for c in self.classes]
        assert len(set(keys)) == len(keys), "two classes have one colour"
        # One byte for every colour there is: 16 MB, of which a picture touches a few.
        self._ids = np.full(1 << 24, NODATA, dtype=np.uint8)
        self._ids[keys] = np.arange(len(keys))

    def read(self, rgb: npt.NDArray[np.uint8], *, row: int) -> LabelArray:
        """Class ids (H, W) of colours (3, H, W), whose first row is ``row`` of the picture."""
        red, green, blue = rgb.astype(np.int32)
        keys = (red << 16) | (green << 8) | blue
        labels: LabelArray = self._ids[keys]
        unknown = np.flatnonzero(labels == NODATA)
        if unknown.size:
            found, first, counts = np.unique(keys.ravel()[unknown], return_index=True, return_counts=True)
            for i in np.argsort(first):
                at, key = int(unknown[first[i]]), int(found[i])
                color = key >> 16, key >> 8 & 255, key & 255
                known = self.strange.setdefault(color, Strange(row + at // keys.shape[1], at % keys.shape[1], 0))
                known.count += int(counts[i])
        return labels
