"""Labelled scenes to windows. The windows themselves, which need torch and albumentations, load when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from geoseg.data.histogram import Histogram, class_histogram, class_histograms, suggested_weights
from geoseg.data.labelled import LabelledScene, labels_of, open_both, open_configured, open_scenes
from geoseg.data.labels import Labels, PolygonLabels, RasterLabels, open_labels
from geoseg.data.leakage import check_leakage, leakage_hint
from geoseg.data.split import SceneSplit, scene_split, write_split
from geoseg.data.statistics import band_statistics

if TYPE_CHECKING:
    from geoseg.data.covering_windows import CoveringWindows
    from geoseg.data.random_windows import RandomWindows

__all__ = [
    "CoveringWindows",
    "Histogram",
    "LabelledScene",
    "Labels",
    "PolygonLabels",
    "RandomWindows",
    "RasterLabels",
    "SceneSplit",
    "band_statistics",
    "check_leakage",
    "class_histogram",
    "class_histograms",
    "labels_of",
    "leakage_hint",
    "open_both",
    "open_configured",
    "open_labels",
    "open_scenes",
    "scene_split",
    "suggested_weights",
    "write_split",
]


def __getattr__(name: str) -> Any:
    module = {"CoveringWindows": "covering_windows", "RandomWindows": "random_windows"}.get(name)
    if module is None:
        raise AttributeError(f"module 'geoseg.data' has no attribute {name!r}")
    return getattr(import_module(f"geoseg.data.{module}"), name)
