"""Open one raster, or several as one, and read windows: pixels (B, H, W) and valid (H, W)."""

from geoseg.scene.mosaic import Mosaic
from geoseg.scene.raster import Pixels, Raster, Valid
from geoseg.scene.scene import Scene, open_scene

__all__ = ["Mosaic", "Pixels", "Raster", "Scene", "Valid", "open_scene"]
