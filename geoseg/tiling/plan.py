"""The plan of a prediction, made before any pixel is read: windows, bands and strips of output, memory, disk."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from geoseg.arrays import FloatArray
from geoseg.errors import ConfigError
from geoseg.options import ExecutorName, Taper, Tiling, Windows
from geoseg.windows import Window, round_up, window_starts
from geoseg.words import count

if TYPE_CHECKING:
    from geoseg.contract import WindowSettings

ALIGN = 32  # windows start and end on multiples of this, px: the coarsest stride of the networks
BLOCK = 512  # bands and strips of output start on multiples of this, px, as the blocks of the map do
TASK_PX = 1 << 25  # pixels of a band of one strip: what an interrupted run loses
GDAL_CACHE_BYTES = 64 << 20  # GDAL's block cache during a prediction that reads every block once
MAX_GDAL_CACHE_BYTES = 512 << 20  # the most of it if blocks are read in parts: a row of blocks should fit
PIECE_BYTES = 32 << 20  # finished logits are upsampled in pieces of about this size
STRIP_MEMORY_BYTES = 1_500_000_000  # above this the scene is cut into strips of columns
MAX_CPU_WINDOWS = 16  # the most windows side by side on a CPU: more cost memory and share its bandwidth
WINDOWS_AHEAD = 3  # windows on their way to the network and from it, for each that it works on

IN_PROCESS: ExecutorName = "in-process"


def sine(length: int, overlap: int) -> FloatArray:
    """sin²(π(i + ½) / n): halves overlap to a constant sum, and the half sample keeps every weight above 0."""
    return np.asarray(np.sin(np.pi * (np.arange(length) + 0.5) / length)) ** 2


def linear(length: int, overlap: int) -> FloatArray:
    """A triangle over the window."""
    place = np.arange(length, dtype=np.float64) + 0.5
    return np.asarray(np.minimum(place, length - place) / (length / 2))


def flat(length: int, overlap: int) -> FloatArray:
    """The plain mean of all windows that see a pixel."""
    return np.ones(length)


def crop(length: int, overlap: int) -> FloatArray:
    """Only the centre of each window: neighbours meet in the middle of their overlap."""
    weights, margin = np.zeros(length), overlap // 2
    weights[margin : length - margin] = 1
    return weights


BLENDS: dict[str, Taper] = {"sine": sine, "linear": linear, "flat": flat, "crop": crop}


@dataclass(frozen=True, slots=True)
class Span:
    """Rows, or columns, ``first … stop`` of output, px, and what they need."""

    first: int
    stop: int
    cell_first: int  # rows of logits that they are interpolated from
    cell_stop: int
    starts: tuple[int, ...]  # starts of all windows that touch these logits, px


@dataclass(frozen=True, slots=True)
class Task:
    """A rectangle of the output that can be made independently: one band of one strip, counted from the top left."""

    band: int
    strip: int
    window: Window


@dataclass(frozen=True, kw_only=True)
class SceneShape:
    """What a plan has to know of a scene."""

    height: int  # size of the scene, px
    width: int
    pixel_bytes: int  # bytes of one pixel over all bands
    chunk_rows: int = BLOCK  # rows of the file that are decoded together, px: its blocks' height
    cache_bytes: int = GDAL_CACHE_BYTES  # what GDAL may keep of decoded blocks


@dataclass(frozen=True, kw_only=True)
class LogitsShape:
    """What a plan has to know of the network and of what is written."""

    stride: int  # pixels per logit: 1, or an even divisor of 32
    classes: int  # number of logit channels
    layer_bytes: int = 0  # bytes per pixel of what is wanted beside the classes


@dataclass(frozen=True, kw_only=True)
class Plan(SceneShape, LogitsShape):
    """Windows of one scene-wide grid, the output in bands and strips, and what it takes."""

    rows: tuple[int, ...]  # first rows and columns of the windows, px
    cols: tuple[int, ...]
    window_height: int  # size of every window, px
    window_width: int
    overlap: int  # strip shared by neighbours, px
    blend: str | Taper  # name of the taper, or the taper
    batch_size: int  # windows at once: forwards side by side on a CPU, windows of a batch on a GPU
    band_rows: int = 0  # height of the bands but the last, px; a multiple of 512
    strip_cols: int  # width of the strips but the last, px; a multiple of 512
    executor: str  # where the tasks run

    @property
    def memory_bytes(self) -> int:
        """Memory beside the network and its activations; it depends on the strips' width, not on the height."""
        row_bytes = self.pixel_bytes + 1  # and validity
        end = self.padded_width
        span = end if self.strip_cols >= self.width else min(self.strip_cols + 2 * self.window_width, end)
        # Strips of windows whose last window is in the network, whose first is, and the one being read with its chunk.
        pixels = (3 * self.window_height + 2 * (self.window_height + self.chunk_rows)) * span * row_bytes
        # Where strips are short the windows that wait for the network reach over more of them.
        window_cells = (self.window_height // self.stride) * (self.window_width // self.stride)
        waiting = self.window_height * self.window_width * row_bytes + 4 * self.classes * window_cells
        pixels += WINDOWS_AHEAD * self.batch_size * waiting
        cells = span // self.stride
        sums = (self.window_height // self.stride) * cells * (4 * self.classes + 4 + 3)
        piece = 2 * max(PIECE_BYTES, 4 * cells * self.classes * 3)
        pixel = 1 + self.layer_bytes
        finished = 5 * min(self.window_height, self.height) * min(self.strip_cols, self.width) * pixel
        return pixels + sums + piece + finished + 2 * BLOCK * self.width * pixel + self.cache_bytes

    @property
    def disk_bytes(self) -> int:
        """Disk for parts and map if nothing can be compressed, and for the overviews of both, a third of them."""
        return math.ceil(8 / 3 * self.height * self.width * (1 + self.layer_bytes))

    @property
    def windows(self) -> int:
        """Number of windows of the grid."""
        return len(self.rows) * len(self.cols)

    @property
    def padded_height(self) -> int:
        """Height that the windows cover, px."""
        return self.rows[-1] + self.window_height

    @property
    def padded_width(self) -> int:
        """Width that the windows cover, px."""
        return self.cols[-1] + self.window_width

    @property
    def bands(self) -> int:
        """Number of bands."""
        return -(-self.height // self.band_rows)

    @property
    def strips(self) -> int:
        """Number of strips."""
        return -(-self.width // self.strip_cols)

    @property
    def tasks(self) -> list[Task]:
        """All tasks, band by band, each from left to right."""
        return [self.task(band, strip) for band in range(self.bands) for strip in range(self.strips)]

    @property
    def forwards(self) -> int:
        """Windows that reach the network if the scene is valid everywhere; strips share some, which are repeated."""
        return len(self.rows) * sum(len(self.strip_span(i).starts) for i in range(self.strips))

    @cached_property
    def tapers(self) -> tuple[FloatArray, FloatArray]:
        """Weights of a window's rows and columns of logits, at most 1; the scene's edges are not considered."""
        function = BLENDS[self.blend] if isinstance(self.blend, str) else self.blend
        both = []
        for size, starts in ((self.window_height, self.rows), (self.window_width, self.cols)):
            length = size // self.stride
            overlap = self.overlap // self.stride if len(starts) > 1 else 0
            weights = np.asarray(function(length, overlap), dtype=np.float64)
            if weights.shape != (length,) or not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
                raise ConfigError(
                    f"the blend must give {length} weights from 0 on, not all 0, found {weights!r:.100}",
                    hint=f"choose one of {', '.join(BLENDS)}",
                )
            both.append(weights / weights.max())
        return both[0], both[1]

    def task(self, band: int, strip: int) -> Task:
        """The task of a band and a strip."""
        rows, cols = self.band_span(band), self.strip_span(strip)
        return Task(band, strip, Window(rows.first, cols.first, rows.stop - rows.first, cols.stop - cols.first))

    def band_span(self, first: int, last: int | None = None) -> Span:
        """Rows of a band, or of the bands ``first … last``, and what they need."""
        stop = min(((first if last is None else last) + 1) * self.band_rows, self.height)
        return _span(first * self.band_rows, stop, self.stride, self.rows, self.window_height)

    def strip_span(self, strip: int) -> Span:
        """Columns of a strip and what they need."""
        stop = min((strip + 1) * self.strip_cols, self.width)
        return _span(strip * self.strip_cols, stop, self.stride, self.cols, self.window_width)

    def __str__(self) -> str:
        shape = f"{self.window_height} × {self.window_width}"
        strips = f" in {self.strips} strips" if self.strips > 1 else ""
        return (
            f"{count(self.windows, 'window')} of {shape} px that overlap by {self.overlap} px{strips}, "
            f"{self.memory_bytes / 2**20:.0f} MiB beside the network"
        )

    def lines(self) -> list[str]:
        """The plan for people, one fact a line."""
        blend = self.blend if isinstance(self.blend, str) else getattr(self.blend, "__name__", "own")
        again = self.forwards - self.windows
        return [
            f"scene      {self.height} × {self.width} px",
            f"windows    {self.windows} of {self.window_height} × {self.window_width} px, "
            f"overlap {self.overlap} px, blend {blend}, logits at 1/{self.stride}",
            f"forwards   {self.forwards}" + (f", {again} of them where strips meet" if again else ""),
            f"output     {count(self.bands, 'band')} of {self.band_rows} rows × "
            f"{count(self.strips, 'strip')} of {min(self.strip_cols, self.width)} columns",
            f"executor   {self.executor}, {count(self.batch_size, 'window')} at once",
            f"memory     {self.memory_bytes / 2**20:.0f} MiB beside the network",
            f"disk       at most {self.disk_bytes / 2**20:.0f} MiB while it runs",
        ]


def plan_prediction(
    scene: SceneShape,
    logits: LogitsShape,
    tiling: Tiling,
    *,
    batch_size: int,
    executor: str = IN_PROCESS,
    memory_limit_bytes: int = STRIP_MEMORY_BYTES,
) -> Plan:
    """The plan for a scene with windows of the tiling's size and overlap, ``batch_size`` of them at once.

    If the tiling says nothing else, bands have about 2²⁵ px, and there is one strip, or several where one would take
    more memory than the limit.

    Raises:
        ConfigError: A size or overlap off the grid, a batch size below 1, bands or strips that are not multiples
            of 512 px.
    """
    size, overlap = tiling.size or 0, tiling.overlap or 0
    check_window(size, overlap)
    if batch_size < 1:
        raise ConfigError(f"batch size {batch_size} is below 1", hint="--batch-size 1")
    for name, value in (("band_rows", tiling.band_rows), ("strip_cols", tiling.strip_cols)):
        if value is not None and (value < BLOCK or value % BLOCK):
            raise ConfigError(
                f"{name} {value} must be a multiple of {BLOCK} px", hint=f"{name}={max(round_up(value, BLOCK), BLOCK)}"
            )
    height, width = scene.height, scene.width
    # A file that is one block, as a JPEG, is decoded by GDAL line by line: nothing is won by reading it all at once.
    chunk_rows = scene.chunk_rows if scene.chunk_rows <= 2 * size else 1
    whole_width = round_up(width, BLOCK)
    plan = Plan(
        **vars(scene) | vars(logits) | {"chunk_rows": chunk_rows},
        rows=tuple(window_starts(height, size=size, overlap=overlap, align=ALIGN)),
        cols=tuple(window_starts(width, size=size, overlap=overlap, align=ALIGN)),
        window_height=min(size, round_up(height, ALIGN)),
        window_width=min(size, round_up(width, ALIGN)),
        overlap=overlap,
        blend=tiling.blend,
        batch_size=batch_size,
        strip_cols=whole_width if tiling.strip_cols is None else min(tiling.strip_cols, whole_width),
        executor=executor,
    )
    if tiling.strip_cols is None:
        number = 1
        while plan.memory_bytes > memory_limit_bytes and plan.strip_cols > max(BLOCK, 2 * size):
            number += 1
            plan = replace(plan, strip_cols=round_up(-(-width // number), BLOCK))
    band_rows = tiling.band_rows or max(round_up(TASK_PX // min(plan.strip_cols, width), BLOCK), BLOCK)
    return replace(plan, band_rows=min(band_rows, round_up(height, BLOCK)))


def default_overlap(size: int) -> int:
    """Overlap, px, of windows whose size alone was given: a quarter."""
    return size // 4 // ALIGN * ALIGN


def window_of(windows: Windows, own: WindowSettings) -> tuple[int, int]:
    """Size and overlap of the windows, px: those asked for, else the model's ``own``; see `check_window`."""
    size = own.size if windows.size is None else windows.size
    overlap = windows.overlap
    if overlap is None:
        overlap = own.overlap if windows.size is None else default_overlap(size)
    check_window(size, overlap)
    return size, overlap


def check_window(size: int, overlap: int) -> None:
    """Refuse, with a `ConfigError`, a size or overlap off the grid of logits, or an overlap as large as the window."""
    if size < ALIGN or size % ALIGN:
        raise ConfigError(
            f"window size {size} must be a multiple of {ALIGN} px", hint=f"--size {max(round_up(size, ALIGN), ALIGN)}"
        )
    if not 0 <= overlap < size or overlap % ALIGN:
        raise ConfigError(
            f"overlap {overlap} must be a multiple of {ALIGN} px from 0 to {size - ALIGN}",
            hint=f"--overlap {default_overlap(size)}",
        )


def _span(first: int, stop: int, stride: int, starts: tuple[int, ...], size: int) -> Span:
    cells = (starts[-1] + size) // stride
    half = stride // 2
    if stride == 1:
        low, high = first, stop
    else:  # a row lies between the centres of two rows of logits
        low, high = max((first - half) // stride, 0), min((stop - 1 - half) // stride + 2, cells)
    left = bisect_left(starts, low * stride - size + 1)
    right = bisect_left(starts, high * stride)
    return Span(first, stop, low, high, starts[left:right])
