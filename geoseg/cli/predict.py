"""``geoseg predict``: scenes and a model to a class map, or straight on to polygons."""

import shlex
from dataclasses import replace
from typing import Annotated

import typer

from geoseg.cli.options import Model, with_options
from geoseg.options import PredictOptions

_MOST_NAMED = 3  # scenes up to which the command that shows the map names them too


@with_options
def predict(
    ctx: typer.Context,
    scenes: Annotated[
        list[str],
        typer.Argument(metavar="SCENE", help="Rasters, or a folder of them; several are read as one mosaic."),
    ],
    model: Model,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="File to write, in the format of its suffix; FOLDER/ or 'FOLDER/{stem}.gpkg' maps each on its own.",
        ),
    ],
    options: PredictOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and how long it would take, and write nothing.")
    ] = False,
) -> None:
    """Map a scene with a model.

    The suffix of OUT selects a class map (.tif) or polygons (.gpkg, .geojson, .shp, .fgb, .parquet, .pmtiles); the
    options under Polygons need the latter. An interrupted prediction continues when the same command is run again. With
    -o FOLDER/ each scene is mapped on its own; those that fail are listed at the end (exit code 1).
    """
    from geoseg.programs.early import check_prediction

    options = replace(options, running=replace(options.running, progress=ctx.obj.progress))
    if check_prediction(scenes, model, output, options):
        from geoseg.programs.predict_each import dry_run_each, predict_each

        if dry_run:
            typer.echo("\n".join(dry_run_each(scenes, model, output, options)))
            return
        each = predict_each(scenes, model, output, options)
        maps = [report.path for report in each.written if report.path.suffix == ".tif"]
        look = [f"look at them: {_view(str(each.folder))}"] if maps else []
        ctx.obj.report([*each.lines(), *look], each.folder)
        for scene, error in each.failed:
            message = error.message if scene in error.message else f"{scene}: {error.message}"
            typer.echo(f"error: {message}" + (f"\nhint:  {error.hint}" if error.hint else ""), err=True)
        if each.failed:
            raise typer.Exit(1)
    elif dry_run:
        from geoseg.programs.dry_run import dry_run as run_dry

        typer.echo("\n".join(run_dry(scenes, model, output, options).lines()))
    else:
        from geoseg.programs.predict import predict as run

        report = run(scenes, model, output, options)
        shown = scenes if len(scenes) <= _MOST_NAMED else []
        ctx.obj.report([*report.lines(), f"look at it: {_view(*shown, str(report.path))}"], report.path)


def _view(*paths: str) -> str:
    return shlex.join(["geoseg", "view", *paths])
