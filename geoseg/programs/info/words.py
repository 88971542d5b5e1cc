"""Texts that describe rasters, vectors and models alike."""

from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyproj

from geoseg.georeference import AnyCRS, Georeference, pyproj_crs, transformer

Fact: TypeAlias = tuple[str, str]  # A line of the description: name and text
FEW_VALUES = 32  # no more values than this may be classes


def crs_text(crs: pyproj.CRS) -> str:
    """Code and name of a CRS."""
    authority = crs.to_authority()
    return f"{':'.join(authority)}, {crs.name}" if authority else crs.name


def extent(kind: Georeference, crs: AnyCRS | None, bounds: tuple[float, float, float, float]) -> str:
    """Bounds in degrees of WGS 84; in the units of the coordinates where they have no place on Earth."""
    way = transformer(crs, "EPSG:4326") if kind is Georeference.EARTH and crs is not None else None
    if way is not None:
        left, bottom, right, top = way.transform_bounds(*bounds)
        if np.isfinite([left, bottom, right, top]).all():
            return f"longitude {left:.6g} … {right:.6g}, latitude {bottom:.6g} … {top:.6g}"
    left, bottom, right, top = bounds
    symbol = "" if crs is None else f" {unit_name(pyproj_crs(crs))}"
    return f"x {left:.9g} … {right:.9g}{symbol}, y {bottom:.9g} … {top:.9g}{symbol}"


def unit_name(crs: pyproj.CRS) -> str:
    """Symbol or name of the unit of the axes."""
    name = crs.axis_info[0].unit_name
    return {"metre": "m", "degree": "°"}.get(name, name)


def file_size(path: str) -> str:
    """Size of a file, after a comma; empty if there is none."""
    file = Path(path)
    if not file.is_file():
        return ""
    size = float(file.stat().st_size)
    for symbol in ("B", "kB", "MB", "GB"):
        if size < 1000 or symbol == "GB":
            break
        size /= 1000
    return f", {size:.3g} {symbol}"
