"""From aerial and satellite GeoTIFFs to clean polygons in a GIS.

``import geoseg`` makes ``smp.create_model("segnext", …)`` and ``timm.create_model("mscan_tiny", …)`` work, without
importing torch itself: the models register when SMP or timm is imported, or at once where one already is. So the
command line answers quickly, and a GIS user never waits for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from geoseg import _register

if TYPE_CHECKING:
    from geoseg.landscape import Landscape as Landscape
    from geoseg.model_folder import load_model as load_model
    from geoseg.polygons import polygonize as polygonize
    from geoseg.predict import predict as predict
    from geoseg.scene import Scene as Scene

__version__ = "0.1.0"

# Not train and the like: importing geoseg.train binds that name to the module. That of predict can be called.
_PUBLIC = {
    "Landscape": "geoseg.landscape",
    "Scene": "geoseg.scene",
    "load_model": "geoseg.model_folder",
    "polygonize": "geoseg.polygons",
    "predict": "geoseg.predict",
}

__all__ = [*sorted(_PUBLIC), "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'geoseg' has no attribute {name!r}")


_register.register_models()
