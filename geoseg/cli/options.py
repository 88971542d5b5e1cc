"""Options that several verbs share, and the words for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from geoseg.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Talk:
    """How much is said on stderr: -1 errors only, 0 warnings and a progress bar, 1 steps too, 2 everything."""

    level: int

    @property
    def progress(self) -> bool:
        """Whether to draw a progress bar."""
        return self.level >= 0


Model = Annotated[
    str, typer.Option("--model", "-m", metavar="MODEL", help="Model folder, or the name of a model that is shipped.")
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="File to write; its suffix is its format.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]…", help="Settings in place of the file's, as train.iterations=500."),
]
Config = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file of the experiment.")]
Device = Annotated[
    str,
    typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N; auto takes a GPU where there is one."),
]
Size = Annotated[
    int | None, typer.Option("--size", metavar="PX", help="Side of a window.", show_default="the model's own")
]
Overlap = Annotated[
    int | None,
    typer.Option(
        "--overlap", metavar="PX", help="Strip that neighbouring windows share.", show_default="the model's own"
    ),
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", metavar="N", help="Windows per step.", show_default="what fits")
]
Bands = Annotated[
    str | None,
    typer.Option("--bands", metavar="4,3,2", help="Bands in the model's order, from 1.", show_default="all, in order"),
]
Nodata = Annotated[
    float | None,
    typer.Option("--nodata", metavar="VALUE", help="Pixel value that means nothing.", show_default="the file's"),
]
Alpha = Annotated[bool, typer.Option("--alpha", help="Take the alpha band as validity.")]
Simplify = Annotated[
    str, typer.Option("--simplify", metavar="1.5px|0.5m|none", help="How far outlines may move from the pixels' edges.")
]
MinArea = Annotated[
    float,
    typer.Option("--min-area", metavar="M2", min=0, help="Smallest polygon kept, m²; smaller ones are dissolved."),
]


def parse_bands(text: str | None) -> tuple[int, ...] | None:
    """1-based band numbers of ``4,3,2``; None stays None.

    Raises:
        ConfigError: Anything but whole numbers from 1 with commas between.
    """
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) >= 1 for word in words):
        raise ConfigError(f"--bands {text!r} is not a list of band numbers from 1", hint="write it as --bands 4,3,2")
    return tuple(int(word) for word in words)
