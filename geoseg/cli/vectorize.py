"""``geoseg vectorize``: a class map to polygons."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from geoseg.cli.options import Overwrite, with_options
from geoseg.options import MapReading, PolygonRules


@with_options
def vectorize(
    ctx: typer.Context,
    class_map: Annotated[str, typer.Argument(metavar="MAP", help="Class raster, as geoseg predict writes it.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="File to write, in the format of its suffix.")
    ],
    rules: PolygonRules,
    reading: MapReading,
    overwrite: Overwrite = False,
) -> None:
    """Turn a class map into polygons.

    Neighbours share their borders exactly. OUT is a .gpkg, .geojson, .geojsonl, .shp, .fgb, .parquet or .pmtiles.
    """
    from geoseg.programs.early import check_vectorizing

    check_vectorizing(class_map, output, rules=rules, classes=reading.classes, overwrite=overwrite)
    from geoseg.programs.vectorize import vectorize as run

    report = run(class_map, output, rules=rules, overwrite=overwrite, **asdict(reading))
    ctx.obj.report(report.lines(), report.path)
