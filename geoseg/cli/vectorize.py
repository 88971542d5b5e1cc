"""``geoseg vectorize``: a class map to polygons."""

from __future__ import annotations

from typing import Annotated

import typer

from geoseg.cli import options


def vectorize(
    class_map: Annotated[str, typer.Argument(metavar="MAP", help="Class raster, as geoseg predict writes it.")],
    output: options.Output,
    simplify: options.Simplify = "1.5px",
    min_area: options.MinArea = 0,
    overwrite: options.Overwrite = False,
) -> None:
    """Turn a class map into polygons.

    Neighbours share their borders exactly. OUT is a .gpkg, .geojson, .shp, .fgb or .parquet.
    """
    from geoseg.polygons import parse_tolerance
    from geoseg.vectorize import vectorize as run

    report = run(class_map, output, simplify=parse_tolerance(simplify), min_area_m2=min_area, overwrite=overwrite)
    for line in report.lines():
        typer.echo(line)
