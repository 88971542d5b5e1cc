"""The command line: one thin file per verb, which parses, calls one library function and prints its result.

Results go to stdout, all else to stderr. Errors that the user can fix end as one message and exit code 2, our own bugs
with a traceback and 1. Heavy imports are inside the verbs, so ``--help`` answers at once.
"""

import errno
import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from geoseg.cli import (
    compare,
    demo,
    evaluate,
    export,
    info,
    models,
    predict,
    prepare,
    qgis_plugin,
    stats,
    train,
    vectorize,
    view,
    weights,
)
from geoseg.cli.options import GROUP, Command
from geoseg.errors import GeosegError
from geoseg.version import __version__


@dataclass(frozen=True, slots=True)
class Talk:
    """How much is printed: -1 errors and paths of outputs, 0 warnings, progress and reports, 1 also steps, 2 all."""

    level: int

    @property
    def progress(self) -> bool:
        """Whether to draw a progress bar."""
        return self.level >= 0

    def report(self, lines: Iterable[str], output: Path) -> None:
        """Print the report of an output, or its path alone."""
        typer.echo("\n".join(lines) if self.level >= 0 else str(output))


class _Verbs(TyperGroup):
    """Prints expected errors as messages; here and not in `main`, so that tests see it too."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GeosegError as error:
            typer.echo(f"error: {error.message}", err=True)
            if error.hint:
                typer.echo(f"hint:  {error.hint}", err=True)
            raise typer.Exit(error.exit_code) from error
        except OSError as error:  # any access to a path may raise it
            if error.errno != errno.ENAMETOOLONG:
                raise
            name = os.fsdecode(error.filename or "")
            typer.echo(f"error: a name of {len(os.fsencode(name))} bytes is too long: {name:.60}…", err=True)
            typer.echo("hint:  use a shorter one; most disks take 255 bytes in a name", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo(str(error) or "interrupted", err=True)
            raise typer.Exit(130) from error


app = typer.Typer(
    name="geoseg",
    cls=_Verbs,
    help="From aerial and satellite GeoTIFFs to clean polygons.",
    epilog="geoseg VERB --help explains a verb; geoseg demo shows the whole path.",
    pretty_exceptions_enable=False,
    **GROUP,
)
app.command("predict", cls=Command)(predict.predict)
app.command("vectorize", cls=Command)(vectorize.vectorize)
app.command("compare", cls=Command)(compare.compare)
app.command("train", cls=Command)(train.train)
app.command("evaluate", cls=Command)(evaluate.evaluate)
app.command("stats", cls=Command)(stats.stats)
app.add_typer(prepare.app, name="prepare")
app.command("view", cls=Command)(view.view)
app.command("info", cls=Command)(info.info)
app.command("models", cls=Command)(models.models)
app.add_typer(weights.app, name="weights")
app.command("export", cls=Command)(export.export)
app.command("qgis-plugin", cls=Command)(qgis_plugin.qgis_plugin)
app.command("demo", cls=Command)(demo.demo)


def main() -> None:
    """Run the command line on ``sys.argv``; the console script ``geoseg``."""
    # Imports create several hundred thousand objects that live until the end. Collecting garbage among them took a
    # third of the time of a short command.
    gc.set_threshold(100_000)
    try:
        app(prog_name="geoseg")
    finally:
        gc.freeze()


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"geoseg {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    ctx: typer.Context,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Print each step; -vv everything.")
    ] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and the paths of outputs only.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version."),
    ] = False,
) -> None:
    talk = Talk(-1 if quiet else verbose)
    ctx.obj = talk
    _set_up_logging(talk)


def _set_up_logging(talk: Talk) -> None:
    """Our own log at the level asked for; other libraries' logs and warnings only with -vv."""
    ours = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}.get(talk.level, logging.DEBUG)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LowerCaseLevel("%(levelname)s: %(message)s"))
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h.formatter, _LowerCaseLevel)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO if talk.level > 1 else logging.CRITICAL)
    logging.getLogger("geoseg").setLevel(ours)
    # A first run takes longer, which is reported unless --quiet.
    for name in ("geoseg.runtime.jit", "geoseg.network.converted"):
        logging.getLogger(name).setLevel(min(ours, logging.INFO) if talk.level >= 0 else ours)
    logging.captureWarnings(True)
    if talk.level < 2:
        warnings.simplefilter("ignore")


class _LowerCaseLevel(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.levelname = record.levelname.lower()
        return super().format(record)
