"""Generated aerial landscapes with exact truth: fields, roads, buildings, trees, water; for demo, tests and training.

`Landscape` is a value; any window of it is rendered alone and equals the crop of the whole bit for bit, so scenes of
any size stream to a file with `write_landscape`.
"""

from geoseg.landscape.features import LANDSCAPE_CLASSES
from geoseg.landscape.render import BANDS
from geoseg.landscape.scenery import Landscape, write_landscape

__all__ = ["BANDS", "LANDSCAPE_CLASSES", "Landscape", "write_landscape"]
