"""A model on a device: windows in, logits out, each window's logits the same whatever is computed beside it.

The network runs in a form and a backend made for it (`geoseg.inference`).

On a CPU every window is a forward of its own, in a thread of its own that torch may not split further: several windows
run side by side. torch's own splitting changes the order of sums in matrix products, and so the last bits, with the
number of threads and, for some networks, with the size of the batch; measured on two cores it is no faster either.

On a GPU windows go in batches of one fixed size, the last one filled up, since kernels are chosen by the shape.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from geoseg.errors import DeviceError
from geoseg.inference.backends import Forward, choose_backends, choose_precision, load_backend
from geoseg.inference.logits import logits_stride
from geoseg.model_folder import Normalize, TrainedModel
from geoseg.plan import (
    GDAL_CACHE_BYTES,
    IN_PROCESS,
    MAX_GDAL_CACHE_BYTES,
    WINDOWS_AHEAD,
    Plan,
    Taper,
    default_overlap,
    plan_prediction,
)
from geoseg.prediction.stages import Stages
from geoseg.processors import processors
from geoseg.scene import Pixels, Raster, Scene, Valid
from geoseg.tta import augmented, find_tta
from geoseg.windows import Window

log = logging.getLogger(__name__)

MAX_CPU_WINDOWS = 16
"""More windows side by side cost memory, and share one path to it."""

GPU_BATCH = 16

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class WindowPixels:
    """A window on its way to the network: pixels (B, h, w) as read, and valid (h, w)."""

    window: Window
    pixels: Pixels
    valid: Valid


class Predictor:
    """A model on a device.

    Args:
        trained: The model.
        device: Where it runs.
        tta: Name of a test-time augmentation; see `geoseg.tta.TTA`.
        batched: Whether windows go in batches; None does so on a GPU.
        backend: What runs the network; see `geoseg.inference.backends.load_backend`.
        precision: In which data type; likewise.

    Raises:
        ConfigError: No such augmentation, backend or precision.
    """

    def __init__(
        self,
        trained: TrainedModel,
        device: torch.device,
        *,
        tta: str = "none",
        batched: bool | None = None,
        backend: str = "auto",
        precision: str = "auto",
    ) -> None:
        self.contract = trained.contract
        self.digest = trained.digest
        self.device = device
        self.classes = trained.contract.class_table
        self.batched = device.type != "cpu" if batched is None else batched
        self._network, self._precision = trained.network, precision
        self._backend = backend
        choose_backends(trained.network, backend, device)  # what cannot be is refused before anything is done
        choose_precision(precision, device)
        self._loading = threading.Lock()
        self._loaded: Forward | None = None
        self._window: tuple[int, int] | None = None
        self._at_once = self._default_batch()
        self.stride = logits_stride(trained.network)
        self._normalize = Normalize(self.contract).to(device)
        self._tta = find_tta(tta)

    @property
    def hardware(self) -> dict[str, str]:
        """What the last bits of a forward depend on, beside its input."""
        network = {"network": self.forward.identity}
        if self.device.type == "cuda":
            return {"type": "cuda", "name": torch.cuda.get_device_name(self.device), **network}
        return {"type": self.device.type, "instructions": torch.backends.cpu.get_cpu_capability(), **network}

    @property
    def forward(self) -> Forward:
        """The network in the backend that runs it, made when it is first asked for.

        Raises:
            ConfigError: The backend is not installed, or does not run here.
            ModelError: The network cannot be written in the backend's format.
        """
        with self._loading:
            if self._loaded is None:
                self._loaded = load_backend(
                    self._network,
                    backend=self._backend,
                    precision=self._precision,
                    device=self.device,
                    bands=len(self.contract.bands),
                    at_once=self._at_once,
                    size=self._window,
                )
            return self._loaded

    def plan(
        self,
        scene: Raster,
        *,
        size: int | None = None,
        overlap: int | None = None,
        batch_size: int | None = None,
        blend: str | Taper = "sine",
        layer_bytes: int = 0,
        band_rows: int | None = None,
        strip_cols: int | None = None,
        executor: str = IN_PROCESS,
    ) -> Plan:
        """Windows, bands and memory for a scene; what is not given comes from the model's contract and the device.

        Raises:
            ConfigError: See `geoseg.plan.plan_prediction`.
        """
        window = self.contract.window
        if overlap is None:
            overlap = window.overlap if size is None else default_overlap(size)
        plan = plan_prediction(
            scene.grid.height,
            scene.grid.width,
            size=window.size if size is None else size,
            overlap=overlap,
            stride=self.stride,
            classes=len(self.classes),
            pixel_bytes=len(scene.bands) * scene.dtype.itemsize,
            batch_size=self._default_batch() if batch_size is None else batch_size,
            blend=blend,
            layer_bytes=layer_bytes,
            chunk_rows=scene.block_shape[0],
            cache_bytes=_cache_bytes(scene),
            band_rows=band_rows,
            strip_cols=strip_cols,
            executor=executor,
        )
        self._window, self._at_once = (plan.window_height, plan.window_width), plan.batch_size
        return plan

    def _default_batch(self) -> int:
        return GPU_BATCH if self.batched else min(processors(), MAX_CPU_WINDOWS)

    @torch.inference_mode()
    def logits(self, pixels: Tensor, valid: Tensor | None) -> Tensor:
        """Logits (N, K, H / stride, W / stride) of pixels (N, B, H, W) as read and valid (N, H, W), None for all."""
        on_device = None if valid is None else valid.to(self.device, non_blocking=True)
        x = self._normalize(pixels.to(self.device, non_blocking=True), on_device)
        if self.device.type != "cuda":
            return augmented(self.forward, x, self._tta)
        # The same kernels for the same shape, every time: neither timed on the spot nor adding in a race.
        exact = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=torch.backends.cudnn.allow_tf32
        )
        with exact:
            return augmented(self.forward, x, self._tta)

    def run(
        self, items: Iterable[WindowPixels | T], *, batch_size: int, stages: Stages | None = None
    ) -> Iterator[tuple[Window, Tensor] | T]:
        """Windows to their logits (K, h, w) on the device, in order; anything else between them passes in its place.

        Items are taken ahead of what is given, so that the device has work while the caller has some of its own.

        Raises:
            DeviceError: One window alone is more than the device's memory.
        """
        work = self._in_batches if self.batched else self._side_by_side
        return work(items, batch_size, stages or Stages())

    def _side_by_side(
        self, items: Iterable[WindowPixels | T], at_once: int, stages: Stages
    ) -> Iterator[tuple[Window, Tensor] | T]:
        threads = torch.get_num_threads()
        pool = _single_threaded(at_once)
        waiting: deque[tuple[Any, Future[Tensor] | None]] = deque()

        def one(item: WindowPixels) -> Tensor:
            with stages.time("network", workers=at_once):
                valid = None if item.valid.all() else torch.from_numpy(item.valid[None])
                return self.logits(torch.from_numpy(item.pixels[None]), valid)[0].float().contiguous()

        def first() -> tuple[Window, Tensor] | T:
            nonlocal pool, at_once
            while True:
                item, future = waiting[0]
                if future is None:
                    waiting.popleft()
                    passed: T = item
                    return passed
                error = future.exception()
                if error is None:
                    waiting.popleft()
                    return item.window, future.result()
                if not _is_out_of_memory(error):
                    raise error
                wait([f for _, f in waiting if f is not None])
                at_once = self._halve(at_once, item.window, error)
                pool.shutdown()
                pool = _single_threaded(at_once)
                for i, (other, failed) in enumerate(waiting):
                    if failed is not None and failed.exception() is not None:
                        waiting[i] = other, pool.submit(one, other)

        try:
            for item in items:
                waiting.append((item, pool.submit(one, item) if isinstance(item, WindowPixels) else None))
                while len(waiting) > WINDOWS_AHEAD * at_once:
                    yield first()
            while waiting:
                yield first()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # the workers' choice would be that of threads to come, too

    def _in_batches(
        self, items: Iterable[WindowPixels | T], size: int, stages: Stages
    ) -> Iterator[tuple[Window, Tensor] | T]:
        ready: deque[Any] = deque()
        group: list[Any] = []
        clock = _DeviceClock(self.device, stages)

        def launch() -> None:
            nonlocal size, group
            windows = [item for item in group if isinstance(item, WindowPixels)]
            logits: list[Tensor] = []
            while len(logits) < len(windows):
                part = windows[len(logits) : len(logits) + size]
                try:
                    with clock.time():
                        logits += self._batch(part, size)
                except torch.OutOfMemoryError as error:
                    size = self._halve(size, part[0].window, error)
            results = iter(logits)
            ready.extend((i.window, next(results)) if isinstance(i, WindowPixels) else i for i in group)
            group = []

        for item in items:
            group.append(item)
            if sum(isinstance(i, WindowPixels) for i in group) == size:
                before = len(ready)
                launch()
                for _ in range(before):  # what was launched earlier, while the device works on this
                    yield ready.popleft()
        launch()
        yield from ready
        clock.finish()

    def _batch(self, items: list[WindowPixels], size: int) -> list[Tensor]:
        """Logits of up to ``size`` windows as one batch of exactly so many, the rest of it empty."""
        first, pin = items[0], self.device.type == "cuda"
        pixels = torch.zeros(
            (size, *first.pixels.shape), dtype=torch.from_numpy(first.pixels[:0]).dtype, pin_memory=pin
        )
        valid = torch.zeros((size, *first.valid.shape), dtype=torch.bool, pin_memory=pin)
        for i, item in enumerate(items):
            pixels[i] = torch.from_numpy(item.pixels)
            valid[i] = torch.from_numpy(item.valid)
        logits = self.logits(pixels, valid)
        return list(logits[: len(items)])

    def _halve(self, batch_size: int, window: Window, error: BaseException) -> int:
        if batch_size == 1:
            raise DeviceError(
                f"device {self.device} is out of memory with one window of {window.height} × {window.width} px",
                hint="--size with a smaller window, or --device cpu",
            ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning(
            "device %s is out of memory with %d windows at once: going on with %d",
            self.device,
            batch_size,
            batch_size // 2,
        )
        return batch_size // 2


class _DeviceClock:
    """Time that a device works on batches, which a GPU does after the call that launches it has returned."""

    def __init__(self, device: torch.device, stages: Stages) -> None:
        self._stages, self._is_gpu = stages, device.type == "cuda"
        self._events: list[tuple[Any, Any]] = []

    @contextmanager
    def time(self) -> Iterator[None]:
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
        if self._events:
            self._events[-1][1].synchronize()
            self._stages.add("network", sum(first.elapsed_time(last) for first, last in self._events) / 1000)


def _single_threaded(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, "geoseg-network", initializer=torch.set_num_threads, initargs=(1,))


def _cache_bytes(scene: Raster) -> int:
    """Of GDAL: little where whole blocks of one file are read, else a row of blocks, within bounds."""
    if isinstance(scene, Scene):
        return GDAL_CACHE_BYTES
    return min(max(scene.row_of_blocks_bytes, GDAL_CACHE_BYTES), MAX_GDAL_CACHE_BYTES)


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's allocator for the CPU raises a plain RuntimeError
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
