"""How far labels lie beside the imagery: the shift at which their borders meet its edges best.

Labels drawn on another image, or moved by a wrong datum, lie a few pixels beside what they name, everywhere in the same
direction. Borders of labels are then correlated with the gradient of the imagery for every whole shift within reach,
and the shifts of many windows are compared: one that is clearly better than none, in most windows the same, is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geoseg.classes import NODATA
from geoseg.data.labelled import LabelledScene
from geoseg.data.labels import LabelArray
from geoseg.scene import Pixels, Valid
from geoseg.windows import Window

Surface = npt.NDArray[np.float64]

REACH = 24
"""Largest shift that is tried along each axis, px."""

SIDES = (512, 256, 128)
"""Sides of the windows, px: the largest of which nine have borders, else the one of which most have."""

ENOUGH = 9

CANDIDATES = 64
WINDOWS = 16
"""Windows whose labels are looked at, spread evenly, and those with the most borders that are measured."""

MIN_BORDER_PX = 120
"""Borders a window must have to say anything, px."""

MIN_WINDOWS = 4
"""Fewer say nothing."""

MIN_OFFSET_PX = 2.0
MIN_GAIN = 1.3
MIN_PEAK = 6.0
MIN_AGREEING = 0.5
"""When an offset is clear: at least this far, this many times better than no shift, this many deviations above the
other shifts, and more than this share of the windows with their own best shift within 2 px of it. How often that is
right stands in docs/explanation/measurements.md."""

_CLIP = 95  # Percentile: a car's glare or a roof's rim weighs no more than another clear edge.


@dataclass(frozen=True, slots=True)
class Offset:
    """Where labels lie against the imagery.

    Attributes:
        rows: How far they lie too low (towards larger rows), px.
        cols: How far they lie too far right (towards larger columns), px.
        gain: How many times better edges are met there than without a shift.
        peak: How many deviations the best shift stands above the others.
        agreeing: Windows whose own best shift lies within 2 px.
        windows: Windows that were measured.
    """

    rows: int
    cols: int
    gain: float
    peak: float
    agreeing: int
    windows: int

    @property
    def distance_px(self) -> float:
        """Length of the shift, px."""
        return float(np.hypot(self.rows, self.cols))

    @property
    def is_clear(self) -> bool:
        """Whether it is worth telling."""
        return (
            self.windows >= MIN_WINDOWS
            and self.distance_px >= MIN_OFFSET_PX
            and max(abs(self.rows), abs(self.cols)) < REACH
            and self.gain >= MIN_GAIN
            and self.peak >= MIN_PEAK
            and self.agreeing > MIN_AGREEING * self.windows
        )


def label_offset(labelled: LabelledScene, *, windows: int = WINDOWS) -> Offset | None:
    """The offset of a scene's labels, clear or not.

    Args:
        labelled: Scene and labels.
        windows: How many windows are measured at most.

    Returns:
        The offset, or None where fewer than four windows have enough borders.

    Raises:
        SceneError: The imagery cannot be read.
        LabelError: The labels cannot be read.
    """
    sums, weights = [], []
    for window in _bordered(labelled, windows):
        # What lies around it, so that all of its borders can be moved.
        side = window.height + 2 * REACH
        pixels, valid, labels = labelled.read(Window(window.row - REACH, window.col - REACH, side, side))
        surface, borders = edge_correlation(pixels, valid, labels)
        if borders >= MIN_BORDER_PX:
            sums.append(surface)
            weights.append(borders)
    return offset_of(sums, weights) if len(sums) >= MIN_WINDOWS else None


def edge_correlation(pixels: Pixels, valid: Valid, labels: LabelArray, *, reach: int = REACH) -> tuple[Surface, int]:
    """How well borders of labels meet edges of the imagery under every shift.

    Edges are absolute differences of neighbouring pixels, summed over the bands, clipped, with mean 0 and standard
    deviation 1. Borders between rows are compared with edges between rows, and columns with columns, so that a shift
    along a border gains nothing. Borders within ``reach`` of the window's rim are left out: all shifts see the same.

    Args:
        pixels: (B, H, W).
        valid: (H, W).
        labels: (H, W), 255 where there are none.
        reach: Largest shift along each axis, px.

    Returns:
        Sum of edges at the borders moved by (row − reach, column − reach), shape (2 reach + 1, 2 reach + 1), and the
        number of pixels of border. Their quotient is the mean edge in standard deviations.
    """
    total, borders = np.zeros((2 * reach + 1, 2 * reach + 1)), 0
    if not valid.any():
        return total, borders
    spread = pixels[:, valid].astype(np.float32).std(axis=1)
    smooth = _smooth(pixels.astype(np.float32)) / np.maximum(spread, 1e-6)[:, None, None]
    shifts = np.arange(-reach, reach + 1)
    for axis in (0, 1):
        everything, before, after = slice(None), slice(None, -1), slice(1, None)
        first = (before, everything) if axis == 0 else (everything, before)
        second = (after, everything) if axis == 0 else (everything, after)
        both = valid[first] & valid[second]
        a, b = labels[first], labels[second]
        border = ((a != b) & (a != NODATA) & (b != NODATA)).astype(np.float32)
        border[:reach], border[-reach:], border[:, :reach], border[:, -reach:] = 0, 0, 0, 0
        count = int(border.sum())
        if not count or not both.any():
            continue
        edges = np.abs(np.diff(smooth, axis=1 + axis)).sum(axis=0)
        edges = np.minimum(edges, np.percentile(edges[both], _CLIP))
        edges = np.where(both, (edges - edges[both].mean()) / max(float(edges[both].std()), 1e-6), 0)
        # No room to pad: no border within reach of the rim, so none meets what wraps around.
        correlation = np.fft.irfft2(np.fft.rfft2(edges) * np.conj(np.fft.rfft2(border)), edges.shape)
        total += correlation[np.ix_(shifts % edges.shape[0], shifts % edges.shape[1])]
        borders += count
    return total, borders


def offset_of(surfaces: Sequence[Surface], borders: Sequence[int]) -> Offset:
    """The common offset of several windows.

    Args:
        surfaces: Sums of `edge_correlation`, one a window.
        borders: Their pixels of border.
    """
    common = np.sum(surfaces, axis=0) / max(sum(borders), 1)
    reach = common.shape[0] // 2
    best = _best(common)
    usual = float(np.median(common))
    deviation = 1.4826 * float(np.median(np.abs(common - usual)))
    here, there = common[reach, reach] - usual, common.max() - usual
    agreeing = sum(bool(np.abs(_best(surface) - best).max() <= 2) for surface in surfaces)
    return Offset(
        # Where borders must go is the opposite of where they went.
        rows=-int(best[0]),
        cols=-int(best[1]),
        gain=float(there / max(here, 1e-3 * there, 1e-9)),
        peak=float(there / max(deviation, 1e-9)),
        agreeing=agreeing,
        windows=len(surfaces),
    )


def direction(rows: float, cols: float) -> str:
    """Where (rows, cols) points to in the picture: "down", "up and right", …"""
    words = [("down" if rows > 0 else "up") if abs(rows) * 2.414 >= abs(cols) and rows else ""]
    words.append(("right" if cols > 0 else "left") if abs(cols) * 2.414 >= abs(rows) and cols else "")
    return " and ".join(word for word in words if word)


def _best(surface: Surface) -> npt.NDArray[np.int64]:
    """Shift (rows, columns) of the largest value."""
    row, col = divmod(int(surface.argmax()), surface.shape[1])
    reach = surface.shape[0] // 2
    return np.array([row - reach, col - reach])


def _bordered(labelled: LabelledScene, most: int) -> list[Window]:
    """Windows with the most borders, of up to `CANDIDATES` of one side spread over the scene."""
    best: list[Window] = []
    for side in SIDES:
        found = _bordered_of(labelled, side)[:most]
        if len(found) > len(best):
            best = found
        if len(best) >= ENOUGH:
            break
    return best


def _bordered_of(labelled: LabelledScene, side: int) -> list[Window]:
    height, width = labelled.grid.shape
    places = [(row, col) for row in range(height // side) for col in range(width // side)]
    if len(places) < MIN_WINDOWS:
        return []
    if len(places) > CANDIDATES:
        places = [places[i] for i in np.linspace(0, len(places) - 1, CANDIDATES).astype(int)]
    found = []
    for row, col in places:
        window = Window(row * side, col * side, side, side)
        borders = _borders(labelled.labels.read(window))
        if borders >= MIN_BORDER_PX:
            found.append((borders, window))
    return [window for _, window in sorted(found, key=lambda item: (-item[0], item[1]))]


def _borders(labels: LabelArray) -> int:
    known = labels != NODATA
    down = (labels[1:] != labels[:-1]) & known[1:] & known[:-1]
    right = (labels[:, 1:] != labels[:, :-1]) & known[:, 1:] & known[:, :-1]
    return int(down.sum() + right.sum())


def _smooth(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Pixels (B, H, W) under a binomial filter of 3 × 3, edge pixels repeated."""
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    smooth: npt.NDArray[np.float32] = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16
    return smooth
