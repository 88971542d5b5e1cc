"""A model on a device: windows in, logits out. A window's logits do not depend on what is computed beside it."""

import logging
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, TypeAlias, TypeVar

import numpy as np
from llvmlite.binding import get_host_cpu_name

from geoseg.arrays import Float32Array
from geoseg.contract import Contract
from geoseg.errors import DeviceError
from geoseg.network.backends import Forward, Request, choose_backends, choose_precision, load_backend
from geoseg.network.stored_model import StoredModel
from geoseg.network.tta import augmented, find_tta
from geoseg.options import ExecutorName, Layers, Network, Tiling
from geoseg.prediction.report import Stages
from geoseg.runtime.machine import processors
from geoseg.scene import Pixels, Raster, Scene, Valid
from geoseg.tiling.arrays import Array
from geoseg.tiling.plan import (
    GDAL_CACHE_BYTES,
    IN_PROCESS,
    MAX_CPU_WINDOWS,
    MAX_GDAL_CACHE_BYTES,
    WINDOWS_AHEAD,
    LogitsShape,
    Plan,
    SceneShape,
    plan_prediction,
    window_of,
)
from geoseg.windows import Window

log = logging.getLogger(__name__)

GPU_BATCH = 16

T = TypeVar("T")

Predicted: TypeAlias = tuple[T, tuple[Window, Array] | None]
"""The note of an `Item`, and its window with logits (K, h, w) if it has one."""


@dataclass(frozen=True, slots=True, eq=False)
class WindowPixels:
    """Pixels (B, h, w) of a window as read, and valid (h, w)."""

    window: Window
    pixels: Pixels
    valid: Valid


@dataclass(frozen=True, slots=True, eq=False)
class Item(Generic[T]):
    """A window on its way to the network, if any, and a note that comes back with its logits."""

    pixels: WindowPixels | None
    note: T

    def with_logits(self, logits: Array | None) -> Predicted[T]:
        """What comes out."""
        return self.note, None if self.pixels is None else (self.pixels.window, logits)


class Predictor:
    """A model on a device, by torch's name, in the backend and precision that ``network`` asks for.

    ``batched`` says whether windows go in batches; None does so on a GPU. A `ConfigError` for what cannot run here.
    """

    def __init__(
        self,
        model: StoredModel,
        device: object = "cpu",
        network: Network = Network(),
        *,
        tta: str = "none",
        batched: bool | None = None,
    ) -> None:
        self.contract = model.contract
        self.digest = model.digest
        self.device = str(device)
        self.classes = model.contract.class_table
        self.batched = self.device != "cpu" if batched is None else batched
        self._model, self._backend = model, network.backend
        choose_backends(network.backend, self.device)  # refuses what cannot run here before any work
        record = model.contract.precision
        loss = None if record is None else record.loss_points
        self.precision = choose_precision(network.precision, self.device, loss_points=loss)
        self._window: tuple[int, int] | None = None
        self._batch = GPU_BATCH if self.batched else min(processors(), MAX_CPU_WINDOWS)
        self._at_once = self._batch
        self.stride = model.stride
        self.tta = find_tta(tta)

    @property
    def hardware(self) -> dict[str, str]:
        """Everything but its input that the last bits of a forward depend on."""
        network = {"network": self.forward.identity}
        if self.device != "cpu":
            import torch

            return {"type": "cuda", "name": torch.cuda.get_device_name(self.device), **network}
        return {"type": "cpu", "processor": get_host_cpu_name(), **network}

    @cached_property
    def forward(self) -> Forward:
        """The network in its backend, loaded at first use; see `load_backend`."""
        request = Request(
            precision=self.precision,
            device=self.device,
            bands=len(self.contract.bands),
            at_once=self._at_once,
            size=self._window,
        )
        return load_backend(self._model, self._backend, request)

    def plan(
        self,
        scene: Raster,
        tiling: Tiling = Tiling(),
        *,
        batch_size: int | None = None,
        layers: Layers = Layers(),
        executor: ExecutorName = IN_PROCESS,
    ) -> Plan:
        """Windows, bands and memory for a scene, with the model's and the device's defaults; see `plan_prediction`."""
        size, overlap = window_of(tiling, self.contract.window)
        # Of one file whole blocks are read; of others a row of blocks should fit into GDAL's cache.
        cache = GDAL_CACHE_BYTES if isinstance(scene, Scene) else max(scene.row_of_blocks_bytes, GDAL_CACHE_BYTES)
        shape = SceneShape(
            height=scene.grid.height,
            width=scene.grid.width,
            pixel_bytes=len(scene.bands) * scene.dtype.itemsize,
            chunk_rows=scene.block_shape[0],
            cache_bytes=min(cache, MAX_GDAL_CACHE_BYTES),
        )
        classes = len(self.classes)
        plan = plan_prediction(
            shape,
            LogitsShape(stride=self.stride, classes=len(self.classes.channels), layer_bytes=layers.bytes(classes)),
            replace(tiling, size=size, overlap=overlap),
            batch_size=self._batch if batch_size is None else batch_size,
            executor=executor,
        )
        self._window, self._at_once = (plan.window_height, plan.window_width), plan.batch_size
        return plan

    def logits(self, pixels: Pixels, valid: Valid | None) -> Float32Array:
        """Logits (N, K, H / stride, W / stride), on a CPU, of pixels (N, B, H, W) as read and valid (N, H, W)."""
        x = normalized(self.contract, pixels, valid)
        if self.tta.is_plain:
            return np.asarray(self.forward(x))
        import torch

        with torch.inference_mode():
            return np.asarray(augmented(self.forward, torch.from_numpy(x), self.tta))

    def run(self, items: Iterable[Item[T]], *, batch_size: int, stages: Stages | None = None) -> Iterator[Predicted[T]]:
        """Items to their logits, in order; they are taken ahead, so that the device works while the caller does.

        A `DeviceError` if one window alone exceeds the device's memory.
        """
        if not self.batched:
            return self._side_by_side(items, batch_size, stages or Stages())
        from geoseg.prediction.batches import in_batches  # loads torch

        return in_batches(self, items, batch_size, stages or Stages())

    def run_windows(self, windows: Iterable[WindowPixels], *, batch_size: int) -> Iterator[tuple[Window, Array]]:
        """Windows and their logits, in order; see `run`."""
        for _, found in self.run((Item(window, None) for window in windows), batch_size=batch_size):
            if found is not None:
                yield found

    def _side_by_side(self, items: Iterable[Item[T]], at_once: int, stages: Stages) -> Iterator[Predicted[T]]:
        _ = self.forward
        if not self.tta.is_plain:
            import torch  # noqa: F401  before the threads start: they must not meet it half loaded
        pool = _single_threaded(at_once)
        waiting: deque[tuple[Item[T], Future[Float32Array] | None]] = deque()

        def predict(window: WindowPixels) -> Float32Array:
            with stages.time("network", workers=at_once):
                valid = None if window.valid.all() else window.valid[None]
                return np.asarray(self.logits(window.pixels[None], valid)[0])

        def submit(item: Item[T]) -> tuple[Item[T], Future[Float32Array] | None]:
            return item, None if item.pixels is None else pool.submit(predict, item.pixels)

        def first() -> Predicted[T]:
            nonlocal pool, at_once
            while True:
                item, future = waiting[0]
                error = None if future is None else future.exception()
                if item.pixels is None or future is None or error is None:
                    waiting.popleft()
                    return item.with_logits(None if future is None else future.result())
                if not _is_out_of_memory(error):
                    raise error
                wait([f for _, f in waiting if f is not None])
                at_once = self.halve(at_once, item.pixels.window, error)
                pool.shutdown()
                pool = _single_threaded(at_once)
                for i, (other, failed) in enumerate(waiting):
                    if failed is not None and failed.exception() is not None:
                        waiting[i] = submit(other)

        try:
            for item in items:
                waiting.append(submit(item))
                while len(waiting) > WINDOWS_AHEAD * at_once:
                    yield first()
            while waiting:
                yield first()
        finally:
            pool.shutdown(cancel_futures=True)

    def halve(self, batch_size: int, window: Window, error: BaseException) -> int:
        """Half as many windows at once, after memory ran out; a `DeviceError` if it was only one."""
        if batch_size == 1:
            raise DeviceError(
                f"device {self.device} is out of memory with one window of {window.height} × {window.width} px",
                hint="--size with a smaller window, or --device cpu",
            ) from error
        half = batch_size // 2
        log.warning(
            "device %s is out of memory with %d windows at once: continuing with %d", self.device, batch_size, half
        )
        return half


def normalized(contract: Contract, pixels: Pixels, valid: Valid | None) -> Float32Array:
    """Input of a network from pixels (N, B, H, W) as read: ``(pixel · scale − mean) / std``, 0 where invalid.

    Equal to `geoseg.network.model_folder.Normalize` in every bit.
    """
    mean, std = contract.statistics.astype(np.float32)[..., None, None]
    x: Float32Array = pixels.astype(np.float32)
    x *= np.float32(contract.scale)
    x -= mean
    x /= std
    if valid is not None:
        np.copyto(x, np.float32(0), where=~valid[:, None])
    return x


def _single_threaded(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, "geoseg-network", initializer=_one_thread)


def _one_thread() -> None:
    """Keep torch, if loaded, from splitting the work of this thread."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's and OpenVINO's allocators for the CPU raise a plain RuntimeError
    texts = "out of memory", "allocate memory", "bad_alloc"
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)
