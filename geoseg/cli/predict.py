"""``geoseg predict``: scenes and a model to a class map, or straight on to polygons."""

from __future__ import annotations

from typing import Annotated

import typer

from geoseg.cli import options


def predict(
    ctx: typer.Context,
    scenes: Annotated[list[str], typer.Argument(metavar="SCENE", help="Rasters; several are read as one mosaic.")],
    model: options.Model,
    output: options.Output,
    size: options.Size = None,
    overlap: options.Overlap = None,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    bands: options.Bands = None,
    nodata: options.Nodata = None,
    alpha: options.Alpha = False,
    ignore_gsd: Annotated[
        bool, typer.Option("--ignore-gsd", help="Predict though the pixels are not of the size the model knows.")
    ] = False,
    simplify: options.Simplify = "1.5px",
    min_area: options.MinArea = 0,
    overwrite: options.Overwrite = False,
) -> None:
    """Map a scene with a model.

    To a class GeoTIFF (-o map.tif), or straight on to polygons (-o map.gpkg, .geojson, .shp, .fgb, .parquet);
    --simplify and --min-area are for those.
    """
    from geoseg.predict import predict as run

    report = run(
        scenes,
        model,
        output,
        size=size,
        overlap=overlap,
        batch_size=batch_size,
        device=device,
        bands=options.parse_bands(bands),
        nodata=nodata,
        alpha=alpha,
        ignore_gsd=ignore_gsd,
        simplify=simplify,
        min_area_m2=min_area,
        overwrite=overwrite,
        progress=ctx.obj.progress,
    )
    for line in report.lines():
        typer.echo(line)
