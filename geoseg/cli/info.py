"""``geoseg info``: what a scene, a label file or a model is."""

from __future__ import annotations

from typing import Annotated

import typer

from geoseg.cli import options


def info(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Raster, vector file, model folder or shipped model.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="Of a scene: plan the prediction with this model."),
    ] = None,
    crs: options.Crs = None,
) -> None:
    """Say what a scene, labels or a model are.

    Size, CRS, pixel on the ground, bands, nodata, tiling, classes; of a scene, what a prediction would take.
    """
    from geoseg.programs.info import describe

    for line in describe(path, model=model, crs=crs):
        typer.echo(line)
