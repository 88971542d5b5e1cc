"""``geoseg vectorize``: a class map to polygons."""

from pathlib import Path
from typing import Annotated

import typer

from geoseg.cli.expand import with_options
from geoseg.cli.options import Classes, Crs, Overwrite
from geoseg.options import PolygonRules


@with_options
def vectorize(
    ctx: typer.Context,
    class_map: Annotated[str, typer.Argument(metavar="MAP", help="Class raster, as geoseg predict writes it.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="File to write, in the format of its suffix.")
    ],
    rules: PolygonRules,
    crs: Crs = None,
    classes: Classes = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a class map into polygons.

    Neighbours share their borders exactly. OUT is a .gpkg, .geojson, .geojsonl, .shp, .fgb, .parquet or .pmtiles.
    """
    from geoseg.programs.early import check_vectorizing

    check_vectorizing(class_map, output, rules=rules, classes=classes, overwrite=overwrite)
    from geoseg.programs.vectorize import vectorize as run

    report = run(class_map, output, rules=rules, crs=crs, classes=classes, overwrite=overwrite)
    ctx.obj.report(report.lines(), report.path)
