"""The offset between labels and imagery: the shift at which borders of labels match edges of the imagery best.

Labels drawn on another image, or moved by a wrong datum, lie a few pixels off everywhere in the same direction: one
shift is clearly better than none, and the same in most windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from geoseg.arrays import AnyArray, BoolArray, ByteArray, FloatArray, IntArray, Pixels, Valid
from geoseg.classes import NODATA
from geoseg.data.labelled import LabelledScene
from geoseg.data.statistics import evenly
from geoseg.windows import Window

REACH = 24  # largest shift along each axis, px
SIDES = (512, 256, 128)  # of the windows, px: the largest with nine that have borders, otherwise the one with most
ENOUGH = 9
CANDIDATES, WINDOWS = 64, 16  # windows whose labels are read, spread evenly; those with most borders are measured
MIN_BORDER_PX = 120  # borders that a window must have to be measured, px
MIN_WINDOWS = 4  # windows needed for a result

MIN_OFFSET_PX = 2.0
MIN_GAIN = 1.3
MIN_PEAK = 6.0
MIN_AGREEING = 0.5
"""An offset is clear if it is at least this long, this many times better than no shift, this many deviations above the
other shifts, and within 2 px of the best shift of more than this share of the windows. How often that is
right: docs/explanation/measurements.md."""

_CLIP = 95  # Percentile: the glare of a car weighs no more than another clear edge.


@dataclass(frozen=True, slots=True)
class Offset:
    """Where labels lie relative to the imagery."""

    rows: int  # shift towards larger rows, px
    cols: int  # shift towards larger columns, px
    gain: float  # how many times better edges match there than without a shift
    peak: float  # deviations of the best shift above the others
    agreeing: int  # windows whose own best shift is within 2 px
    windows: int  # windows measured

    @property
    def distance_px(self) -> float:
        """Length of the shift, px."""
        return float(np.hypot(self.rows, self.cols))

    @property
    def is_clear(self) -> bool:
        """Whether it is worth reporting."""
        return (
            self.windows >= MIN_WINDOWS
            and self.distance_px >= MIN_OFFSET_PX
            and max(abs(self.rows), abs(self.cols)) < REACH
            and self.gain >= MIN_GAIN
            and self.peak >= MIN_PEAK
            and self.agreeing > MIN_AGREEING * self.windows
        )


def label_offset(labelled: LabelledScene, *, windows: int = WINDOWS) -> Offset | None:
    """The offset of a scene's labels, clear or not; None if fewer than four windows have enough borders."""
    sums, weights = [], []
    for window in _bordered(labelled, windows):
        # With a margin, so that all of its borders can be moved.
        side = window.height + 2 * REACH
        pixels, valid, labels = labelled.read(Window(window.row - REACH, window.col - REACH, side, side))
        surface, borders = edge_correlation(pixels, valid, labels)
        if borders >= MIN_BORDER_PX:
            sums.append(surface)
            weights.append(borders)
    return offset_of(sums, weights) if len(sums) >= MIN_WINDOWS else None


def edge_correlation(pixels: Pixels, valid: Valid, labels: ByteArray, *, reach: int = REACH) -> tuple[FloatArray, int]:
    """How well borders of labels match edges of the imagery for every shift.

    Edges are absolute differences of neighbouring pixels, summed over bands, clipped, with mean 0 and standard
    deviation 1. Borders between rows are compared with edges between rows, and columns with columns, so that a shift
    along a border gains nothing. Borders within ``reach`` of the window's rim are left out, so that all shifts see the
    same.

    Pixels are (B, H, W), valid and labels (H, W), 255 if unknown.

    Returns:
        Sum of edges at the borders moved by (row − reach, column − reach), shape (2 reach + 1, 2 reach + 1), and the
        number of border pixels. Their quotient is the mean edge in standard deviations.
    """
    total, borders = np.zeros((2 * reach + 1, 2 * reach + 1)), 0
    if not valid.any():
        return total, borders
    spread = pixels[:, valid].astype(np.float32).std(axis=1)
    # After a 3 × 3 binomial filter
    blurred = [cv2.GaussianBlur(band, (3, 3), 0, borderType=cv2.BORDER_REPLICATE) for band in pixels.astype(np.float32)]
    smooth = np.stack(blurred) / np.maximum(spread, 1e-6)[:, None, None]
    shifts = np.arange(-reach, reach + 1)
    for axis in (0, 1):
        both = np.logical_and(*_neighbours(valid, axis))
        border = _border(labels, axis).astype(np.float32)
        border[:reach], border[-reach:], border[:, :reach], border[:, -reach:] = 0, 0, 0, 0
        count = int(border.sum())
        if not count or not both.any():
            continue
        edges = np.abs(np.diff(smooth, axis=1 + axis)).sum(axis=0)
        edges = np.minimum(edges, np.percentile(edges[both], _CLIP))
        edges = np.where(both, (edges - edges[both].mean()) / max(float(edges[both].std()), 1e-6), 0)
        # Without padding: no border is within reach of the rim, so none meets what wraps around.
        correlation = np.fft.irfft2(np.fft.rfft2(edges) * np.conj(np.fft.rfft2(border)), edges.shape)
        total += correlation[np.ix_(shifts % edges.shape[0], shifts % edges.shape[1])]
        borders += count
    return total, borders


def offset_of(surfaces: Sequence[FloatArray], borders: Sequence[int]) -> Offset:
    """The common offset of several windows, from sums of `edge_correlation` and numbers of border pixels."""
    common = np.sum(surfaces, axis=0) / max(sum(borders), 1)
    best = _best(common)
    usual = float(np.median(common))
    deviation = 1.4826 * float(np.median(np.abs(common - usual)))
    reach = common.shape[0] // 2
    here, there = common[reach, reach] - usual, common.max() - usual
    return Offset(
        # Labels lie opposite to where their borders must move.
        rows=-int(best[0]),
        cols=-int(best[1]),
        gain=float(there / max(here, 1e-3 * there, 1e-9)),
        peak=float(there / max(deviation, 1e-9)),
        agreeing=sum(bool(np.abs(_best(surface) - best).max() <= 2) for surface in surfaces),
        windows=len(surfaces),
    )


def direction(rows: float, cols: float) -> str:
    """Direction of (rows, cols) in the picture: "down", "up and right", …"""
    words = [("down" if rows > 0 else "up") if abs(rows) * 2.414 >= abs(cols) and rows else ""]
    words.append(("right" if cols > 0 else "left") if abs(cols) * 2.414 >= abs(rows) and cols else "")
    return " and ".join(word for word in words if word)


def _best(surface: FloatArray) -> IntArray:
    """Shift (rows, columns) of the largest value."""
    return np.asarray(np.unravel_index(surface.argmax(), surface.shape)) - np.int64(surface.shape[0] // 2)


def _bordered(labelled: LabelledScene, most: int) -> list[Window]:
    """Windows with the most borders, of up to `CANDIDATES` of one size spread over the scene."""
    best: list[Window] = []
    for side in SIDES:
        rows, cols = (n // side for n in labelled.grid.shape)
        places = [Window(row * side, col * side, side, side) for row in range(rows) for col in range(cols)]
        if len(places) < MIN_WINDOWS:
            continue
        found = []
        for window in evenly(places, CANDIDATES):
            labels = labelled.labels.read(window)
            borders = sum(int(_border(labels, axis).sum()) for axis in (0, 1))
            if borders >= MIN_BORDER_PX:
                found.append((-borders, window))
        if len(found[:most]) > len(best):
            best = [window for _, window in sorted(found)[:most]]
        if len(best) >= ENOUGH:
            break
    return best


def _neighbours(values: AnyArray, axis: int) -> AnyArray:
    """All values but the last, and all but the first, along an axis."""
    return np.moveaxis(np.lib.stride_tricks.sliding_window_view(values, 2, axis), -1, 0)


def _border(labels: ByteArray, axis: int) -> BoolArray:
    """Where neighbours along an axis are known and of different classes."""
    a, b = _neighbours(labels, axis)
    return np.asarray((a != b) & (a != NODATA) & (b != NODATA))
