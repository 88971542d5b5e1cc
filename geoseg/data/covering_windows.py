"""Validation windows that cover scenes, or the blocks of them that validate; no chips on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from geoseg.classes import NODATA
from geoseg.config import TrainConfig
from geoseg.data.labelled import LabelledScene
from geoseg.data.samples import Sample, WindowDataset
from geoseg.windows import Window, round_up, window_grid


class CoveringWindows(WindowDataset):
    """Windows of one size side by side that cover every scene once, or every block of it that validates.

    Labels outside the block, and those that a window shares with the one before, are ignored: each pixel counts once.

    Args:
        scenes: Validation scenes.
        settings: The experiment.
        as_bytes: See `WindowDataset`.
    """

    def __init__(self, scenes: Sequence[LabelledScene], settings: TrainConfig, *, as_bytes: bool = False) -> None:
        super().__init__(scenes, settings, as_bytes=as_bytes)
        size = settings.window.size
        self._items = [
            (i, window, counted)
            for i, scene in enumerate(self.scenes)
            for block in _blocks(scene)
            for window, counted in _cover(block, size)
        ]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        scene, window, counted = self._items[index]
        with self._reading():
            pixels, valid, labels = self.scenes[scene].read(window)
        row, col = counted.row - window.row, counted.col - window.col
        labels[:row] = labels[row + counted.height :] = NODATA
        labels[:, :col] = labels[:, col + counted.width :] = NODATA
        return self._sample(pixels, valid, labels, index)

    def place(self, index: int) -> tuple[str, Window]:
        """Scene and window of an item, by the item's ``index``."""
        scene, window, _ = self._items[index]
        return str(self.scenes[scene].config.scene), window


def _blocks(scene: LabelledScene) -> Sequence[Window]:
    return [Window(0, 0, *scene.grid.shape)] if scene.split is None else scene.split.validation


def _cover(block: Window, size: int) -> Iterator[tuple[Window, Window]]:
    """Windows that cover a block, and the part of each that counts."""
    for w in window_grid(block.height, block.width, size=size, overlap=0):
        # The last window of a row is moved back over the one before.
        row, col = round_up(w.row, size), round_up(w.col, size)
        height, width = min(w.row + size, block.height) - row, min(w.col + size, block.width) - col
        yield (
            Window(block.row + w.row, block.col + w.col, size, size),
            Window(block.row + row, block.col + col, height, width),
        )
