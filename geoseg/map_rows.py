"""Finished rows of a prediction, on their way from the network to a raster or to polygons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ByteArray = npt.NDArray[np.uint8]

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
