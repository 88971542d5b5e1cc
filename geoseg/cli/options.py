"""Arguments and options that several verbs share, and how much a verb prints."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from geoseg.cli.expand import sentences
from geoseg.options import Imagery, Network, Running
from geoseg.runtime.machine import check_device


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


MODEL_HELP = "Model folder, or the name of a shipped model."

Model = Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help=MODEL_HELP)]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]…", help="Settings that replace the file's, as train.iterations=500."),
]
Config = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file of the experiment.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help=sentences(Running)["overwrite"])]
Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", callback=check_device, help=sentences(Network)["device"])
]
Crs = Annotated[str | None, typer.Option("--crs", metavar="EPSG:N", help=sentences(Imagery)["crs"])]
