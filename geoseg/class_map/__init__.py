"""Class maps as rasters: one uint8 band, 255 = nodata, with names and colours; read here, written by `writing`."""

from geoseg.class_map.reading import ClassMap, ClassMapReader, layer_path, read_class_map

__all__ = ["ClassMap", "ClassMapReader", "layer_path", "read_class_map"]
