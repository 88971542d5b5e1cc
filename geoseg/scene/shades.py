"""Values of a band as shades of a picture, stretched as GIS programs do."""

import numpy as np

from geoseg.arrays import AnyArray, ByteArray


def stretch(values: AnyArray) -> tuple[float, float]:
    """The values that come out black and white: the 2nd and the 98th percentile of finite ones; 0 and 255 of none."""
    finite = values[np.isfinite(values)]  # decibels of nothing are infinite
    if not finite.size:
        return 0.0, 255.0
    low, high = np.percentile(finite.astype(np.float64), (2, 98)).tolist()
    return low, high


def shades(values: AnyArray, low: float, high: float) -> ByteArray:
    """Values of any shape as bytes, 0 from ``low`` down and 255 from ``high`` up; NaN is 0."""
    scaled = (values.astype(np.float64) - low) / max(high - low, 1e-12) * 255
    return np.nan_to_num(np.clip(scaled, 0, 255)).astype(np.uint8)
