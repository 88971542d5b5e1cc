"""Open one raster, or several as one, and read windows: pixels (B, H, W) and valid (H, W)."""

from geoseg.arrays import Pixels, Valid
from geoseg.scene.mosaic import Mosaic
from geoseg.scene.raster import Raster
from geoseg.scene.scene import Scene, open_scene

__all__ = ["Mosaic", "Pixels", "Raster", "Scene", "Valid", "open_scene"]
