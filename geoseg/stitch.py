"""Overlapping logits to finished rows of one class map, in memory that does not grow with the scene's height.

Logits are accumulated on the network's own stride (1/8 for SegNeXt: 64 times less memory than at full resolution).
Windows start on multiples of that stride, so their logits fall on one scene-wide grid; each is weighted by a taper
that fades towards the window's border, where a network knows least. When no later window can touch a row any more, it
is divided by the sum of its weights, upsampled bilinearly as the network itself does on a whole image, and reduced to
class ids.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.windows import Window

CHUNK_VALUES = 1 << 25
"""Upsampled logits held at once, values: rows are finished in chunks of at most so many (128 MiB in float32)."""


def sine_squared(length: int) -> Tensor:
    """Taper sin²(π(i + ½) / n) of n samples, (n,) float32, never 0.

    The half sample keeps the outermost weights above 0, so the scene's own border, which one window alone covers, is
    as good as its middle; a Hann window that starts at 0 would divide by 0 there. Halves overlap to a constant sum.
    """
    position = (torch.arange(length, dtype=torch.float64) + 0.5) / length
    return torch.sin(math.pi * position).square().float()


class Stitcher:
    """Running state of one scene: give it windows row by row, get class ids in finished rows.

    Args:
        height: Scene height, px.
        width: Scene width, px.
        classes: Logit channels K.
        stride: Pixels per logit, along rows and columns.
        window_height: Height of every window, px; a multiple of ``stride``.
        window_width: Width of every window, px; a multiple of ``stride``.
        padded_width: Width that the windows cover together, px; a multiple of ``stride``.
        device: Where the logits are.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        classes: int,
        stride: int,
        window_height: int,
        window_width: int,
        padded_width: int,
        device: torch.device,
    ) -> None:
        self.height, self.width, self.stride = height, width, stride
        rows, cols = window_height // stride, window_width // stride
        self._taper = (sine_squared(rows)[:, None] * sine_squared(cols)).to(device)
        # Rows self._first … of the scene-wide grid of logits; above lies one finished row to interpolate from.
        self._sums = torch.zeros(classes, rows, padded_width // stride, device=device)
        self._weights = torch.zeros(rows, padded_width // stride, device=device)
        self._first = 0
        self._above: Tensor | None = None
        self._rows_out = 0

    def add(self, window: Window, logits: Tensor) -> None:
        """Add the logits of a window.

        Args:
            window: A window of the row of windows being worked on; see `finish`.
            logits: (K, window height / stride, window width / stride), any float type.
        """
        assert window.row // self.stride == self._first, "windows come row by row, each row after finish()"
        cols = slice(window.col // self.stride, window.col_stop // self.stride)
        self._sums[:, :, cols] += logits.float() * self._taper
        self._weights[:, cols] += self._taper

    def finish(self, next_row: int | None) -> list[Tensor]:
        """Class ids of the rows that no further window touches.

        Args:
            next_row: First row of the next row of windows, px; None after the last one.

        Returns:
            Tensors (h, W) uint8 from top to bottom, which continue those returned before.
        """
        total = self._sums.shape[1]
        done = total if next_row is None else next_row // self.stride - self._first
        # Where no window was (nothing but invalid pixels) the weight is 0, and any class will do.
        finished = self._sums[:, :done] / self._weights[:done].clamp(min=torch.finfo(torch.float32).tiny)
        block = finished if self._above is None else torch.cat([self._above, finished], dim=1)
        # The last finished row waits: the rows below it are interpolated with the row after it.
        rows = self._upsample(block, is_last=next_row is None)
        self._above = finished[:, -1:].clone()
        self._first += done
        kept = total - done
        self._sums[:, :kept] = self._sums[:, done:].clone()
        self._sums[:, kept:] = 0
        self._weights[:kept] = self._weights[done:].clone()
        self._weights[kept:] = 0
        return rows

    def _upsample(self, block: Tensor, *, is_last: bool) -> list[Tensor]:
        """Class ids between the middle of the first and of the last row of logits; to the scene's ends at its ends."""
        s = self.stride
        top = self._first - (self._above is not None)  # scene-wide index of the block's first row
        stop = self.height if is_last else min((top + block.shape[1]) * s - s // 2, self.height)
        chunk = max(CHUNK_VALUES // (block.shape[0] * block.shape[2] * s * s), 1) * s
        out = []
        while self._rows_out < stop:
            first, last = self._rows_out, min(self._rows_out + chunk, stop)
            # One row of logits more on either side makes the interpolation of the rows between them exact.
            low = max(first // s - 1, top)
            high = min((last - 1) // s + 2, top + block.shape[1])
            part = block[None, :, low - top : high - top]
            if s > 1:
                size = part.shape[2] * s, part.shape[3] * s
                part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
            ids = part[0, :, first - low * s : last - low * s, : self.width].argmax(0)
            out.append(ids.to(torch.uint8))
            self._rows_out = last
        return out
