"""Overlapping logits → finished rows of one map."""

from geoseg.stitch.arrays import Pending
from geoseg.stitch.stitcher import FINEST_STEP, SeamCounts, Stitcher

__all__ = ["FINEST_STEP", "Pending", "SeamCounts", "Stitcher"]
