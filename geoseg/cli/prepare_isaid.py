"""``geoseg prepare isaid``: the official release of iSAID to scenes, labels and the split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geoseg.cli import options


def isaid(
    ctx: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Folder of the official release, its archives unpacked or not.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DST", help="Folder to write.")],
    overwrite: options.Overwrite = False,
) -> None:
    """Turn iSAID into tiled GeoTIFF scenes, label rasters and the official split.

    iSAID and DOTA may be used for academic purposes only; any commercial use is prohibited by their authors.
    """
    from geoseg.paper.isaid import prepare_isaid

    report = prepare_isaid(source, output, overwrite=overwrite, progress=ctx.obj.progress)
    ctx.obj.report(report.lines(), output)
