"""Windows in batches of one fixed size, since a GPU's kernels are chosen by the shape."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from geoseg.network.model_folder import Normalize
from geoseg.network.tta import augmented
from geoseg.prediction.predictor import Item, Predicted, Predictor, WindowPixels
from geoseg.prediction.report import Stages

T = TypeVar("T")


def in_batches(predictor: Predictor, items: Iterable[Item[T]], size: int, stages: Stages) -> Iterator[Predicted[T]]:
    """Items to their logits, in order, as tensors on the network's device; see `Predictor.run`."""
    device = torch.device(predictor.device)
    normalize = Normalize(predictor.contract).to(device)
    ready: deque[Predicted[T]] = deque()
    group: list[Item[T]] = []
    clock = _DeviceClock(device, stages)

    def launch() -> None:
        nonlocal size, group
        windows = [item.pixels for item in group if item.pixels is not None]
        logits: list[Tensor] = []
        while len(logits) < len(windows):
            part = windows[len(logits) : len(logits) + size]
            try:
                with clock.time():
                    logits += _logits(predictor, normalize, device, part, size)
            except torch.OutOfMemoryError as error:
                size = predictor.halve(size, part[0].window, error)
                if device.type == "cuda":
                    torch.cuda.empty_cache()
        results = iter(logits)
        ready.extend(item.with_logits(None if item.pixels is None else next(results)) for item in group)
        group = []

    for item in items:
        group.append(item)
        if sum(i.pixels is not None for i in group) == size:
            before = len(ready)
            launch()
            for _ in range(before):  # what was launched earlier, while the device works on this
                yield ready.popleft()
    launch()
    yield from ready
    clock.finish()


@torch.inference_mode()
def _logits(
    predictor: Predictor, normalize: Normalize, device: torch.device, items: list[WindowPixels], size: int
) -> list[Tensor]:
    """Logits of up to ``size`` windows in a batch of exactly this size, filled up with zeros."""
    first, pin = items[0], device.type == "cuda"
    pixels = torch.zeros((size, *first.pixels.shape), dtype=torch.from_numpy(first.pixels[:0]).dtype, pin_memory=pin)
    valid = torch.zeros((size, *first.valid.shape), dtype=torch.bool, pin_memory=pin)
    for i, item in enumerate(items):
        pixels[i] = torch.from_numpy(item.pixels)
        valid[i] = torch.from_numpy(item.valid)
    x = normalize(pixels.to(device, non_blocking=True), valid.to(device, non_blocking=True))
    with same_kernels():
        return list(augmented(predictor.forward, x, predictor.tta)[: len(items)])


def same_kernels() -> AbstractContextManager[None]:
    """The same kernels for the same shape, every time: neither timed on the spot nor adding in a race."""
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=torch.backends.cudnn.allow_tf32
    )


class _DeviceClock:
    """Time that a device works on batches; a GPU does so after the call that launches it has returned."""

    def __init__(self, device: torch.device, stages: Stages) -> None:
        self._stages, self._is_gpu = stages, device.type == "cuda"
        self._events: list[tuple[Any, Any]] = []

    @contextmanager
    def time(self) -> Iterator[None]:
        """Count the time of one batch."""
        if not self._is_gpu:
            with self._stages.time("network"):
                yield
            return
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        first.record()
        yield
        last.record()
        self._events.append((first, last))

    def finish(self) -> None:
        """Wait for the last batch, and report the time of all."""
        if self._events:
            self._events[-1][1].synchronize()
            self._stages.add("network", sum(first.elapsed_time(last) for first, last in self._events) / 1000)
