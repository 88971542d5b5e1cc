"""Random changes of training windows: size, flips and turns, brightness and colour.

All of albumentations stays behind this package. It is MIT-licensed but no longer developed (its successor is AGPL).
"""

from __future__ import annotations

from geoseg.augment.augmenter import Augmenter
from geoseg.augment.distortion import distort
from geoseg.augment.photometric import Photometric
from geoseg.augment.resizing import resize_window

__all__ = ["Augmenter", "Photometric", "distort", "resize_window"]
