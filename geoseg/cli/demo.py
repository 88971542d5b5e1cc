"""``geoseg demo``: the whole path on a generated landscape."""

from pathlib import Path
from typing import Annotated

import typer

from geoseg.cli.options import Device, Overwrite


def demo(
    ctx: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the scene, the map and the polygons.")
    ] = Path("geoseg-demo"),
    train: Annotated[bool, typer.Option("--train", help="First train a model, for some minutes.")] = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Run the whole path on a generated scene.

    Generates a landscape, maps it, turns the map into polygons, draws both and compares them with the truth.
    """
    from geoseg.programs.early import check_demo

    check_demo(output, overwrite=overwrite)
    from geoseg.programs.demo import run_demo

    report = run_demo(output, train=train, device=device, overwrite=overwrite, progress=ctx.obj.progress)
    ctx.obj.report(report.lines(), output)
