"""``geoseg view``: look at scenes, maps and polygons in the browser, and correct them."""

from __future__ import annotations

from typing import Annotated

import typer

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
) -> None:
    """Show results in the browser, on this machine alone.

    Confidence and other layers of a map are found beside it. Polygons drawn on the page are saved as corrections in
    MAP.corrections.gpkg, which geoseg train takes as labels. Ctrl-C ends the viewer.
    """
    from geoseg.view.program import serve

    serve(
        paths,
        port=port,
        browser=browser,
        bands=parse_bands(bands),
        basemap=basemap,
        progress=ctx.obj.progress,
        on_start=typer.echo,
    )
