"""``geoseg compare``: what changed between two class maps."""

from pathlib import Path
from typing import Annotated

import typer

from geoseg.cli.expand import with_options
from geoseg.cli.options import Classes, Crs, Overwrite
from geoseg.options import PolygonRules


@with_options
def compare(
    ctx: typer.Context,
    old: Annotated[str, typer.Argument(metavar="OLD", help="Class raster of the earlier date.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Class raster of the later date, on the same grid.")],
    rules: PolygonRules,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Polygons of change, or a raster of changes (.tif)."),
    ] = None,
    evaluation: Annotated[
        list[str] | None,
        typer.Option(
            "--evaluation",
            metavar="DIR",
            help="What geoseg evaluate wrote, for estimates with intervals; once if one model made both maps, "
            "else for OLD and for NEW.",
        ),
    ] = None,
    crs: Crs = None,
    classes: Classes = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare two class maps of one place.

    Prints what became of each class. Changes are classes named as forest:built, which --keep and the other options
    for polygons take.
    """
    from geoseg.programs.early import check_comparing

    check_comparing(old, new, output, classes=classes, overwrite=overwrite)
    from geoseg.programs.compare import compare as run

    report = run(
        old, new, output, rules=rules, evaluations=evaluation or [], crs=crs, classes=classes, overwrite=overwrite
    )
    if report.path is not None:
        ctx.obj.report(report.lines(), report.path)
        return
    for line in report.lines():
        typer.echo(line)
