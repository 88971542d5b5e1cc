"""Labelled scenes to windows."""

from __future__ import annotations

from geoseg.datasets.labelled import LabelledScene, labels_of, open_configured, open_scenes
from geoseg.datasets.labels import Labels, PolygonLabels, RasterLabels, open_labels
from geoseg.datasets.leakage import check_leakage
from geoseg.datasets.split import SceneSplit, scene_split, write_split
from geoseg.datasets.statistics import band_statistics
from geoseg.datasets.windows import CoveringWindows, RandomWindows

__all__ = [
    "CoveringWindows",
    "LabelledScene",
    "Labels",
    "PolygonLabels",
    "RandomWindows",
    "RasterLabels",
    "SceneSplit",
    "band_statistics",
    "check_leakage",
    "labels_of",
    "open_configured",
    "open_labels",
    "open_scenes",
    "scene_split",
    "write_split",
]
