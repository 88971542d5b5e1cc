"""What a prediction will do, decided before any pixel is read: windows, bands of rows, memory."""

from __future__ import annotations

from dataclasses import dataclass

from geoseg.errors import ConfigError
from geoseg.windows import round_up, window_starts

ALIGN = 32
"""Windows start and end on multiples of this, px: the coarsest stride of the networks."""

MAP_BLOCK_ROWS = 512
FINISHING_BYTES = 3 * (128 << 20)
"""Upsampled logits of one chunk of finished rows, and what argmax and interpolation hold beside them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Windows of one scene-wide grid and the memory they take beside the network's own.

    Attributes:
        height: Scene height, px.
        width: Scene width, px.
        rows: First rows of the windows, px.
        cols: First columns of the windows, px.
        window_height: Height of every window, px.
        window_width: Width of every window, px.
        overlap: Strip shared by neighbours, px.
        stride: Pixels per logit.
        batch_size: Windows per forward.
        memory_bytes: Strips of pixels, logits being blended, rows being finished and written; bounded by the scene's
            width, not its height.
    """

    height: int
    width: int
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    window_height: int
    window_width: int
    overlap: int
    stride: int
    batch_size: int
    memory_bytes: int

    @property
    def windows(self) -> int:
        """Number of windows."""
        return len(self.rows) * len(self.cols)

    @property
    def padded_width(self) -> int:
        """Width that the windows cover, px."""
        return self.cols[-1] + self.window_width

    def __str__(self) -> str:
        shape = f"{self.window_height} × {self.window_width}"
        return (
            f"{count(self.windows, 'window')} of {shape} px that overlap by {self.overlap} px, "
            f"{self.memory_bytes / 2**20:.0f} MiB beside the network"
        )


def count(number: int, noun: str) -> str:
    """``1 window``, ``2 windows``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def plan_prediction(
    height: int,
    width: int,
    *,
    size: int,
    overlap: int,
    stride: int,
    classes: int,
    pixel_bytes: int,
    batch_size: int,
) -> Plan:
    """The plan for a scene.

    Args:
        height: Scene height, px.
        width: Scene width, px.
        size: Window side, px; a multiple of 32.
        overlap: Strip shared by neighbours, px; a multiple of 32 below ``size``.
        stride: Pixels per logit.
        classes: Number of classes.
        pixel_bytes: Bytes of one pixel over all bands.
        batch_size: Windows per forward, at least 1.

    Raises:
        ConfigError: A size or overlap off the grid, or a batch size below 1.
    """
    if size < ALIGN or size % ALIGN:
        raise ConfigError(
            f"window size {size} is no multiple of {ALIGN} px", hint=f"--size {max(round_up(size, ALIGN), ALIGN)}"
        )
    if not 0 <= overlap < size or overlap % ALIGN:
        raise ConfigError(
            f"overlap {overlap} is no multiple of {ALIGN} px in 0 … {size - ALIGN}",
            hint=f"--overlap {size // 4 // ALIGN * ALIGN}",
        )
    if batch_size < 1:
        raise ConfigError(f"batch size {batch_size} is below 1", hint="--batch-size 1")
    rows = window_starts(height, size=size, overlap=overlap, align=ALIGN)
    cols = window_starts(width, size=size, overlap=overlap, align=ALIGN)
    window_height, window_width = min(size, round_up(height, ALIGN)), min(size, round_up(width, ALIGN))
    padded_width = cols[-1] + window_width
    # This strip and the next one that is read meanwhile; validity is one byte more.
    strips = 3 * window_height * padded_width * (pixel_bytes + 1)
    logits = 3 * (window_height // stride) * (padded_width // stride) * (classes + 1) * 4
    finished = 2 * (window_height + MAP_BLOCK_ROWS) * padded_width
    return Plan(
        height=height,
        width=width,
        rows=tuple(rows),
        cols=tuple(cols),
        window_height=window_height,
        window_width=window_width,
        overlap=overlap,
        stride=stride,
        batch_size=batch_size,
        memory_bytes=strips + logits + finished + FINISHING_BYTES,
    )
