"""From aerial and satellite GeoTIFFs to clean polygons in a GIS.

What is named here is loaded when it is first used, so that ``import geoseg`` costs milliseconds and making polygons
never loads torch. ``import geoseg.models`` registers SegNeXt in SMP and MSCAN in timm.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from geoseg.version import __version__

if TYPE_CHECKING:
    from geoseg.landscape import Landscape as Landscape
    from geoseg.models import create_model as create_model
    from geoseg.network.model_folder import load_model as load_model
    from geoseg.polygons import polygonize as polygonize
    from geoseg.programs.compare import compare as compare
    from geoseg.programs.evaluate import evaluate as evaluate
    from geoseg.programs.predict import predict as predict
    from geoseg.programs.train import train as train
    from geoseg.programs.vectorize import vectorize as vectorize
    from geoseg.scene import Scene as Scene
    from geoseg.view.notebook import show as show

_PUBLIC = {
    "Landscape": "geoseg.landscape",
    "Scene": "geoseg.scene",
    "compare": "geoseg.programs.compare",
    "create_model": "geoseg.models",
    "evaluate": "geoseg.programs.evaluate",
    "load_model": "geoseg.network.model_folder",
    "polygonize": "geoseg.polygons",
    "predict": "geoseg.programs.predict",
    "show": "geoseg.view.notebook",
    "train": "geoseg.programs.train",
    "vectorize": "geoseg.programs.vectorize",
}

__all__ = [*sorted(_PUBLIC), "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'geoseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
