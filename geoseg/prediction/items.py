"""What goes into a network, and what comes out."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from geoseg.scene import Pixels, Valid
from geoseg.tiling.arrays import Array
from geoseg.windows import Window

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class WindowPixels:
    """Pixels (B, h, w) of a window as read, and valid (h, w)."""

    window: Window
    pixels: Pixels
    valid: Valid


@dataclass(frozen=True, slots=True, eq=False)
class Predicted(Generic[T]):
    """The window and the logits (K, h, w) of an `Item`, None if it had no window, and its note."""

    window: Window | None
    logits: Array | None
    note: T


@dataclass(frozen=True, slots=True, eq=False)
class Item(Generic[T]):
    """A window on its way to the network, if any, and a note that comes back with its logits."""

    pixels: WindowPixels | None
    note: T

    def with_logits(self, logits: Array | None) -> Predicted[T]:
        """What comes out."""
        return Predicted(None if self.pixels is None else self.pixels.window, logits, self.note)
