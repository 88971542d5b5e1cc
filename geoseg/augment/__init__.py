"""Random changes of training windows: size, flips and turns, brightness and colour.

All of albumentations stays behind this package. It is MIT-licensed but no longer developed (its successor is AGPL).
"""

from __future__ import annotations

import cv2

from geoseg.augment.augmenter import Augmenter
from geoseg.augment.distortion import distort
from geoseg.augment.photometric import Photometric
from geoseg.augment.resizing import resize_window

__all__ = ["Augmenter", "Photometric", "distort", "one_thread_each", "resize_window"]


def one_thread_each(worker: int) -> None:
    """Keep OpenCV to one thread in a process that reads windows (``worker_init_fn`` of a DataLoader).

    As torch does there by itself: the workers are as many as there are cores to read with.
    """
    cv2.setNumThreads(1)
