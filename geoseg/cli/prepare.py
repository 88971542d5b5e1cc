"""``geoseg prepare``: data sets and files in the form that training reads fast."""

from pathlib import Path
from typing import Annotated

import typer

from geoseg.cli.options import GROUP, Command, Overwrite

app = typer.Typer(help="Bring data sets and scenes into the form that training reads.", **GROUP)


@app.command("isaid", cls=Command)
def isaid(
    ctx: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Folder of the official release, its archives unpacked or not.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DST", help="Folder to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Turn iSAID into tiled GeoTIFF scenes, label rasters and the official split.

    iSAID and DOTA may be used for academic purposes only; any commercial use is prohibited by their authors.
    """
    from geoseg.paper.isaid import prepare_isaid

    report = prepare_isaid(source, output, overwrite=overwrite, progress=ctx.obj.progress)
    ctx.obj.report(report.lines(), output)


@app.command("scenes", cls=Command)
def scenes(
    ctx: typer.Context,
    sources: Annotated[list[str], typer.Argument(metavar="FILE…", help="Rasters: striped TIFF, JPEG, PNG, JP2, VRT.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Copy rasters into tiled, zstd-compressed GeoTIFFs, pixel for pixel, which training reads many times faster."""
    from geoseg.programs.prepare_scenes import prepare_scenes

    report = prepare_scenes(sources, output, overwrite=overwrite, progress=ctx.obj.progress)
    ctx.obj.report(report.lines(), output)
