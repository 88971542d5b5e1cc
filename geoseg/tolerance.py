"""How much detail simplification may take from outlines, or how far walls may move: a size in pixels or in metres.

After Visvalingam and Whyatt a tolerance of t px is a square's side, not a distance: what is smaller than t² px² goes,
so the steps of a 45° stair (0.5 px² each) go from 0.71 px on. After Douglas and Peucker it is a distance.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from geoseg.errors import ConfigError

if TYPE_CHECKING:
    from geoseg.grid import Grid

LARGEST_PX = 10_000  # largest tolerance, px

_TOLERANCE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(px|m)")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Simplification tolerance: a positive value in pixels of the map or in metres on the ground."""

    value: float
    unit: Literal["px", "m"]

    def __post_init__(self) -> None:
        if not (self.value > 0 and math.isfinite(self.value)):
            raise ValueError(f"a tolerance is a positive number, found {self.value}")

    def __str__(self) -> str:
        return f"{self.value:g}{self.unit}"

    def in_pixels(
        self,
        grid: Grid,
        path: object = "the map",
        *,
        option: str = "--simplify 1.5px",
        least_px: float = 0,
        most_px: float = LARGEST_PX,
    ) -> float:
        """The tolerance in pixels of a map; a `ConfigError` for metres without a CRS, or outside the limits.

        ``option`` is the one that gives it, with a good value; ``path`` is named in the message.
        """
        value = self.value
        if self.unit == "m":
            gsd = grid.gsd_m()
            if gsd is None:
                raise ConfigError(f"{path} has no CRS, so {option.split()[0]} {self} has no meaning", hint=option)
            value /= gsd
        if value > most_px:
            raise ConfigError(
                f"a tolerance of {self} is {value:,.0f} pixels, more than the {most_px:,} allowed", hint=option
            )
        if value < least_px:
            raise ConfigError(
                f"a tolerance of {self} is {value:.2g} pixels, but walls need at least {least_px:g} px", hint=option
            )
        return value

    def walls_px(self, grid: Grid, path: object = "the map") -> float:
        """The tolerance of walls, 1 … 32 pixels of a map; else, or for metres without a CRS, a `ConfigError`."""
        return self.in_pixels(grid, path, option="--regularize-tolerance 4px", least_px=1, most_px=32)


def parse_tolerance(text: str) -> Tolerance | None:
    """The tolerance written as ``2px`` or ``0.5m``, None for ``none`` and zero; else a `ConfigError`."""
    text = text.strip().lower()
    if text == "none":
        return None
    match = _TOLERANCE.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"invalid tolerance {text!r}: expected pixels, metres or none",
            hint="--simplify 1.5px, --simplify 0.5m or --simplify none",
        )
    value = float(match[1])
    return Tolerance(value, "px" if match[2] == "px" else "m") if value else None


def parse_wall_tolerance(text: str) -> Tolerance:
    """The tolerance written as ``4px`` or ``0.6m``; else a `ConfigError`."""
    try:
        found = parse_tolerance(text)
    except ConfigError:
        found = None
    if found is None:
        raise ConfigError(
            f"invalid tolerance {text!r} of walls: expected pixels or metres",
            hint="--regularize-tolerance 4px or --regularize-tolerance 0.6m",
        )
    return found
