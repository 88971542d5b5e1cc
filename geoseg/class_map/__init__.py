"""Class maps as rasters: one uint8 band, 255 = nodata, with names and colours; read here, written by `writing`."""

from geoseg.class_map.names import CLASSES_TAG
from geoseg.class_map.reading import (
    DIGEST_TAG,
    SCENE_TAG,
    ClassMap,
    ClassMapReader,
    layer_path,
    open_class_map,
    read_class_map,
)

__all__ = [
    "CLASSES_TAG",
    "DIGEST_TAG",
    "SCENE_TAG",
    "ClassMap",
    "ClassMapReader",
    "layer_path",
    "open_class_map",
    "read_class_map",
]
