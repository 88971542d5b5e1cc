"""``geoseg info``: a scene, label file or model described."""

from typing import Annotated

import typer

from geoseg.cli.options import Crs


def info(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Raster, vector file, model folder or shipped model.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="Plan the prediction of a scene with this model."),
    ] = None,
    crs: Crs = None,
) -> None:
    """Describe a scene, labels or a model.

    Size, CRS, pixel size on the ground, bands, nodata, tiling, classes; for a scene, also the plan of a prediction.
    """
    from geoseg.programs.info import describe

    typer.echo("\n".join(describe(path, model=model, crs=crs)))
