"""``geoseg compare``: what changed between two class maps."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from geoseg.cli.options import Overwrite, with_options
from geoseg.options import MapReading, PolygonRules


@with_options
def compare(
    ctx: typer.Context,
    old: Annotated[str, typer.Argument(metavar="OLD", help="Class raster of the earlier date.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Class raster of the later date, on the same grid.")],
    rules: PolygonRules,
    reading: MapReading,
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
    overwrite: Overwrite = False,
) -> None:
    """Compare two class maps of one place.

    Prints what became of each class. Changes are classes named as forest:built, which --keep and the other options
    for polygons take.
    """
    from geoseg.programs.early import check_comparing

    evaluations = evaluation or []
    check_comparing(
        [old, new], output, rules=rules, evaluations=evaluations, classes=reading.classes, overwrite=overwrite
    )
    from geoseg.programs.compare import compare as run

    report = run(old, new, output, rules=rules, evaluations=evaluations, overwrite=overwrite, **asdict(reading))
    if report.path is not None:
        ctx.obj.report(report.lines(), report.path)
    else:
        typer.echo("\n".join(report.lines()))
