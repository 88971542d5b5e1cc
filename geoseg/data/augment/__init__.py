"""Random changes of training windows: size, flips and turns, brightness and colour.

albumentations is used in this package only: it is MIT-licensed but no longer developed (its successor is AGPL).
"""

import os

import cv2

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask PyPI for a newer version


def one_thread_each() -> None:
    """Limit OpenCV to one thread, here and in processes forked later, of which there is one per core.

    To be called before a fork: a fork lacks OpenCV's other threads and would wait for them forever.
    """
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)
