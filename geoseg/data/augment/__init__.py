"""Random changes of training windows: size, flips and turns, brightness and colour.

All of albumentations stays behind this package. It is MIT-licensed but no longer developed (its successor is AGPL).
"""

from __future__ import annotations

import os

import cv2

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # at its import it would ask PyPI for a newer version

from geoseg.data.augment.augmenter import Augmenter
from geoseg.data.augment.distortion import distort
from geoseg.data.augment.photometric import Photometric
from geoseg.data.augment.resizing import resize_window

__all__ = ["Augmenter", "Photometric", "distort", "one_thread_each", "resize_window"]


def one_thread_each() -> None:
    """Keep OpenCV to one thread, here and in processes forked from this one: these are as many as there are cores.

    Before a fork, not after it: OpenCV's other threads are not there in the fork, which would wait for them for ever.
    """
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)
