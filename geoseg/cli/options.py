"""Options that several verbs share, and the words for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from geoseg.errors import ConfigError

if TYPE_CHECKING:
    from geoseg.polygons import PolygonRules

W = TypeVar("W", bound=str)

# What geoseg.polygons.rules takes; spelled out here so that --help loads no numpy (a test compares them).
METHODS: tuple[Literal["vw", "dp"], ...] = ("vw", "dp")
SMALL: tuple[Literal["merge", "drop"], ...] = ("merge", "drop")


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
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="auto|torch|compile|onnx|openvino",
        help="What runs the network; auto is the fastest that is installed.",
    ),
]
Precision = Annotated[
    str,
    typer.Option("--precision", metavar="auto|float32|bfloat16", help="auto is float32 on a CPU, bfloat16 on a GPU."),
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
SimplifyMethod = Annotated[
    str,
    typer.Option(
        "--simplify-method",
        metavar="|".join(METHODS),
        help="vw removes details by area (Visvalingam), dp by distance (Douglas-Peucker).",
    ),
]
Smooth = Annotated[bool, typer.Option("--smooth", help="Cut the corners of the pixels, so that slopes have no stairs.")]
Regularize = Annotated[
    list[str] | None,
    typer.Option("--regularize", metavar="CLASS", help="Straight walls and right angles for a class; repeatable."),
]
MinArea = Annotated[
    float,
    typer.Option("--min-area", metavar="M2", min=0, help="Smallest polygon kept, m²; see --small for smaller ones."),
]
Small = Annotated[
    str,
    typer.Option(
        "--small", metavar="|".join(SMALL), help="Smaller ones go to the neighbour with the longest border, or away."
    ),
]
FillHoles = Annotated[
    float,
    typer.Option("--fill-holes", metavar="M2", min=0, help="Holes below this area, m², join the polygon around them."),
]
Keep = Annotated[
    list[str] | None, typer.Option("--keep", metavar="CLASS", help="Classes that become polygons; repeatable.")
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
        ConfigError: A word that is none of an option's, or a --dissolve that is not NAME=CLASS,…
    """
    from geoseg.polygons import PolygonRules, parse_tolerance

    return PolygonRules(
        simplify=parse_tolerance(simplify),
        method=_one_of(method, METHODS, "--simplify-method"),
        smooth=smooth,
        regularize=tuple(regularize or ()),
        min_area_m2=min_area,
        small=_one_of(small, SMALL, "--small"),
        fill_holes_m2=fill_holes,
        keep=tuple(keep or ()),
        dissolve=parse_groups(dissolve or []),
    )


def _one_of(word: str, words: tuple[W, ...], option: str) -> W:
    for known in words:
        if word == known:
            return known
    raise ConfigError(f"{option} {word} is none of {', '.join(words)}", hint=f"{option} {words[0]}")


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
