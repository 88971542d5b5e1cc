"""``geoseg view``: look at scenes, maps and polygons in the browser, and correct them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geoseg.cli.options import Overwrite
from geoseg.cli.parsing import parse_bands


def view(
    ctx: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH…", help="Scenes, class maps, vector files, or a folder of geoseg evaluate."),
    ],
    port: Annotated[int, typer.Option("--port", metavar="N", help="Port to listen on.", show_default="a free one")] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the browser, or print the address alone.")
    ] = True,
    bands: Annotated[
        str | None,
        typer.Option(
            "--bands",
            metavar="4,3,2",
            help="Bands shown as red, green and blue, from 1.",
            show_default="the first three",
        ),
    ] = None,
    basemap: Annotated[
        str | None, typer.Option("--basemap", metavar="URL", help="Background map, with {z}, {x} and {y}.")
    ] = None,
    doubt: Annotated[
        bool, typer.Option("--doubt", help="List the windows of a map that the model was least sure of.")
    ] = False,
    windows: Annotated[int, typer.Option("--windows", metavar="N", min=1, help="How many --doubt lists.")] = 20,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="PAGE.html", help="Write a page that needs no server, for small results."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Show results in the browser, on this machine alone.

    Confidence and other layers of a map are found beside it. Polygons drawn on the page are saved as corrections in
    MAP.corrections.gpkg, which geoseg train takes as labels. Ctrl-C ends the viewer.
    """
    from geoseg.view.program import save_page, serve

    asked = parse_bands(bands)
    if save is not None:
        lines = save_page(
            paths,
            save,
            bands=asked,
            doubt=windows if doubt else None,
            overwrite=overwrite,
            on_start=lambda line: typer.echo(line, err=True),
        )
        ctx.obj.report(lines, save)
        return
    serve(
        paths,
        port=port,
        browser=browser,
        bands=asked,
        basemap=basemap,
        doubt=windows if doubt else None,
        progress=ctx.obj.progress,
        on_start=typer.echo,
    )
