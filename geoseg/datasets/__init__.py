"""Labelled scenes to windows. The windows themselves, which need torch and albumentations, load when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from geoseg.datasets.histogram import Histogram, class_histogram, class_histograms, suggested_weights
from geoseg.datasets.labelled import LabelledScene, labels_of, open_both, open_configured, open_scenes
from geoseg.datasets.labels import Labels, PolygonLabels, RasterLabels, open_labels
from geoseg.datasets.leakage import check_leakage, leakage_hint
from geoseg.datasets.split import SceneSplit, scene_split, write_split
from geoseg.datasets.statistics import band_statistics

if TYPE_CHECKING:
    from geoseg.datasets.covering_windows import CoveringWindows
    from geoseg.datasets.random_windows import RandomWindows

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
        raise AttributeError(f"module 'geoseg.datasets' has no attribute {name!r}")
    return getattr(import_module(f"geoseg.datasets.{module}"), name)
