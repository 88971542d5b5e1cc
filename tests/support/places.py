"""Where written scenes lie."""

from __future__ import annotations

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from geoseg.grid import Grid
from geoseg.scene import open_scene
from support.scenes import MadeScene


def grid_of(made: MadeScene) -> Grid:
    with open_scene(made.path) as scene:
        return scene.grid


def on_ground(made: MadeScene, geometry: BaseGeometry) -> BaseGeometry:
    """A geometry in pixels of a scene, in its CRS."""
    t = made.transform
    return shapely.transform(geometry, lambda p: p @ np.array([[t.a, t.d], [t.b, t.e]]) + [t.c, t.f])
