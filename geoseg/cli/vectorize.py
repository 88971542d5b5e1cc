"""``geoseg vectorize``: a class map to polygons."""

from __future__ import annotations

from typing import Annotated

import typer

from geoseg.cli import options


def vectorize(
    ctx: typer.Context,
    class_map: Annotated[str, typer.Argument(metavar="MAP", help="Class raster, as geoseg predict writes it.")],
    output: options.Output,
    crs: options.Crs = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            metavar="FILE",
            help="YAML or JSON with the names of the classes.",
            show_default="the map's own",
        ),
    ] = None,
    simplify: options.Simplify = "1.5px",
    simplify_method: options.SimplifyMethod = "vw",
    smooth: options.Smooth = False,
    regularize: options.Regularize = None,
    min_area: options.MinArea = 0,
    small: options.Small = "merge",
    fill_holes: options.FillHoles = 0,
    keep: options.Keep = None,
    dissolve: options.Dissolve = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Turn a class map into polygons.

    Neighbours share their borders exactly. OUT is a .gpkg, .geojson, .geojsonl, .shp, .fgb, .parquet or .pmtiles.
    """
    from geoseg.programs.early import check_vectorizing

    rules = options.polygon_rules(
        simplify=simplify,
        method=simplify_method,
        smooth=smooth,
        regularize=regularize,
        min_area=min_area,
        small=small,
        fill_holes=fill_holes,
        keep=keep,
        dissolve=dissolve,
    )
    check_vectorizing(class_map, output, rules=rules, classes=classes, overwrite=overwrite)
    from geoseg.programs.vectorize import vectorize as run

    report = run(class_map, output, rules=rules, crs=crs, classes=classes, overwrite=overwrite)
    ctx.obj.report(report.lines(), report.path)
