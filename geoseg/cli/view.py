"""``geoseg view``: look at scenes, maps and polygons in the browser, and correct them."""

from pathlib import Path
from typing import Annotated

import typer

from geoseg.cli.options import Overwrite, with_options
from geoseg.options import ViewOptions


@with_options
def view(
    ctx: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH…", help="Scenes, class maps, vector files, or a folder of geoseg evaluate."),
    ],
    options: ViewOptions,
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

    if save is None:
        serve(paths, options, progress=ctx.obj.progress, on_start=typer.echo)
        return
    lines = save_page(paths, save, options, overwrite=overwrite, on_start=lambda line: typer.echo(line, err=True))
    ctx.obj.report(lines, save)
