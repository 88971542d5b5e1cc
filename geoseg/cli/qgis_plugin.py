"""``geoseg qgis-plugin``: the plugin for QGIS as a zip file."""

from pathlib import Path
from typing import Annotated

import typer

from geoseg.cli.options import Overwrite


def qgis_plugin(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="ZIP", help="File to write.")] = Path("geoseg.zip"),
    overwrite: Overwrite = False,
) -> None:
    """Write the plugin for QGIS.

    Install it in QGIS under Plugins, Manage and Install Plugins, Install from ZIP. It runs this command in its own
    environment, and installs nothing into QGIS's Python.
    """
    from geoseg.programs.qgis_plugin import write_plugin

    typer.echo(str(write_plugin(output, overwrite=overwrite)))
