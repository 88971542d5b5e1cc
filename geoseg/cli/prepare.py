"""``geoseg prepare``: data sets and files in the form that training reads fast."""

from __future__ import annotations

import typer

from geoseg.cli import prepare_isaid, prepare_scenes
from geoseg.cli.expand import Command

app = typer.Typer(
    help="Bring data sets and scenes into the form that training reads.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("isaid", cls=Command)(prepare_isaid.isaid)
app.command("scenes", cls=Command)(prepare_scenes.scenes)
