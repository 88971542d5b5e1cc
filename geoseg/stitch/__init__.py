"""Overlapping logits → finished rows of one map."""

from geoseg.stitch.stitcher import FINEST_STEP, Pending, SeamCounts, Stitcher

__all__ = ["FINEST_STEP", "Pending", "SeamCounts", "Stitcher"]
