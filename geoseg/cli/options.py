"""Options that several verbs share, and the words for them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from geoseg.errors import ConfigError
from geoseg.runtime.devices import check_device

if TYPE_CHECKING:
    from geoseg.polygons import PolygonRules

# The words that options take, spelled out here so that neither --help nor a typo loads what they stand for (a test
# compares them with it).
BLENDS = ("sine", "linear", "flat", "crop")
TTA = ("none", "flips", "d4", "scales", "scales+flips")
BACKENDS = ("auto", "openvino", "torch", "compile")
PRECISIONS = ("auto", "float32", "bfloat16")
EXECUTORS = ("in-process", "ray")
PROTOCOLS = ("scene", "jseg", "mmseg", "whole")
METHODS = ("vw", "dp")
SMALL = ("merge", "drop")


def one_of(name: str, words: tuple[str, ...]) -> Callable[[str], str]:
    """A callback for the option ``--name`` that refuses words it does not take.

    Raises:
        ConfigError: Such a word; the hint is the nearest one, or all of them.
    """

    def check(word: str) -> str:
        if word not in words:
            near = difflib.get_close_matches(word, words, n=1)
            raise ConfigError(f"unknown {name} {word!r}", hint=f"--{name} {', '.join(near or words)}")
        return word

    return check


def check_batch_size(number: int | None) -> int | None:
    """A callback that refuses an empty batch.

    Raises:
        ConfigError: A number below 1.
    """
    if number is not None and number < 1:
        raise ConfigError(f"batch size {number} is below 1", hint="--batch-size 1")
    return number


def check_bands(text: str | None) -> str | None:
    """A callback that refuses what `parse_bands` cannot parse."""
    parse_bands(text)
    return text


def check_metres(text: str | None) -> str | None:
    """A callback for a ground sample distance: metres, or "model".

    Raises:
        ConfigError: Anything else.
    """
    if text not in (None, "model"):
        try:
            float(text)
        except ValueError:
            raise ConfigError(f"gsd {text!r} is not a number of metres", hint="--gsd 0.5, or --gsd model") from None
    return text


@dataclass(frozen=True, slots=True)
class Talk:
    """How much is said: -1 errors and paths of outputs, 0 warnings, a progress bar and reports, 1 steps too, 2 all."""

    level: int

    @property
    def progress(self) -> bool:
        """Whether to draw a progress bar."""
        return self.level >= 0

    def report(self, lines: Iterable[str], output: Path) -> None:
        """Print what came of writing an output: all of it, or its path alone."""
        for line in lines if self.level >= 0 else [str(output)]:
            typer.echo(line)


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
    typer.Option(
        "--device",
        metavar="DEVICE",
        callback=check_device,
        help="auto, cpu, cuda or cuda:N; auto takes a GPU where there is one.",
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="|".join(BACKENDS),
        callback=one_of("backend", BACKENDS),
        help="What runs the network; auto is OpenVINO on a CPU, torch.compile on a GPU.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="|".join(PRECISIONS),
        callback=one_of("precision", PRECISIONS),
        help="auto is bfloat16 on a GPU, and on a CPU where the model is known to lose nothing by it.",
    ),
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
    int | None,
    typer.Option(
        "--batch-size", metavar="N", callback=check_batch_size, help="Windows per step.", show_default="what fits"
    ),
]
Bands = Annotated[
    str | None,
    typer.Option(
        "--bands",
        metavar="4,3,2",
        callback=check_bands,
        help="Bands in the model's order, from 1.",
        show_default="all, in order",
    ),
]
Nodata = Annotated[
    float | None,
    typer.Option("--nodata", metavar="VALUE", help="Pixel value that means nothing.", show_default="the file's"),
]
Alpha = Annotated[bool, typer.Option("--alpha", help="Take the alpha band as validity.")]
Crs = Annotated[
    str | None,
    typer.Option("--crs", metavar="EPSG:N", help="CRS of a raster without one.", show_default="the file's"),
]
Simplify = Annotated[
    str, typer.Option("--simplify", metavar="1.5px|0.5m|none", help="How far outlines may move from the pixels' edges.")
]
SimplifyMethod = Annotated[
    str,
    typer.Option(
        "--simplify-method",
        metavar="|".join(METHODS),
        callback=one_of("simplify-method", METHODS),
        help="vw removes details by area (Visvalingam), dp by distance (Douglas-Peucker).",
    ),
]
Smooth = Annotated[bool, typer.Option("--smooth", help="Cut the corners of the pixels, so that slopes have no stairs.")]
Regularize = Annotated[
    list[str] | None,
    typer.Option(
        "--regularize",
        metavar="CLASS",
        help="Straight, square walls for a class where outlines lie within 1.5 px of them; repeatable.",
    ),
]
MinArea = Annotated[
    float,
    typer.Option("--min-area", metavar="M2", min=0, help="Smallest polygon kept, m²; see --small for smaller ones."),
]
Small = Annotated[
    str,
    typer.Option(
        "--small",
        metavar="|".join(SMALL),
        callback=one_of("small", SMALL),
        help="Smaller ones go to the neighbour with the longest border, or away.",
    ),
]
FillHoles = Annotated[
    float,
    typer.Option("--fill-holes", metavar="M2", min=0, help="Holes below this area, m², join the polygon around them."),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        metavar="CLASS",
        help="Class that becomes polygons; repeatable.",
        show_default="all but the background",
    ),
]
Dissolve = Annotated[
    list[str] | None,
    typer.Option("--dissolve", metavar="NAME=CLASS,…", help="Make one class of several; repeatable."),
]


def polygon_rules(
    *,
    simplify: str,
    method: str,
    smooth: bool,
    regularize: list[str] | None,
    min_area: float,
    small: str,
    fill_holes: float,
    keep: list[str] | None,
    dissolve: list[str] | None,
) -> PolygonRules:
    """The rules of the options above.

    Raises:
        ConfigError: A tolerance that is neither pixels nor metres, or a --dissolve that is not NAME=CLASS,…
    """
    from geoseg.polygons import PolygonRules, parse_tolerance

    return PolygonRules(
        simplify=parse_tolerance(simplify),
        method=cast(Literal["vw", "dp"], method),
        smooth=smooth,
        regularize=tuple(regularize or ()),
        min_area_m2=min_area,
        small=cast(Literal["merge", "drop"], small),
        fill_holes_m2=fill_holes,
        keep=tuple(keep or ()),
        dissolve=parse_groups(dissolve or []),
    )


def parse_groups(texts: list[str]) -> dict[str, tuple[str, ...]]:
    """Groups of classes, each written as ``NAME=CLASS,CLASS,…``.

    Raises:
        ConfigError: Anything else, or a name twice.
    """
    groups: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, members = (part.strip() for part in text.partition("="))
        classes = tuple(member.strip() for member in members.split(",") if member.strip())
        if not (name and equals and classes):
            raise ConfigError(f"--dissolve {text!r} is not NAME=CLASS,…", hint="--dissolve green=tree,grass")
        if name in groups:
            raise ConfigError(f"--dissolve names the group {name} twice", hint="list all its classes once")
        groups[name] = classes
    return groups


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
