"""Explained failures of a run: a loss that is not finite, memory that ran out, a process that was killed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

import geoseg.errors
from geoseg.config.settings import RunConfig
from geoseg.errors import ConfigError, DeviceError, GeosegError, reason

GO_ON = "continue from the last checkpoint with --resume"
NOT_BEGUN = "stopped by a signal before the first iteration"


class RunStopped(KeyboardInterrupt):
    """A signal ended the run after a checkpoint."""

    exit_code = 143


class _Pending(NamedTuple):
    loss: Tensor
    arrived: Any
    batch: dict[str, Tensor]
    step: int
    rate: float


class LossWatch:
    """Detects a loss that is not finite; ``place`` describes the window of an index.

    Reading a number from a GPU waits for all its work. So the loss is copied asynchronously, and checked when the next
    step has begun.
    """

    def __init__(self, recipe: RunConfig, place: Callable[[int], str] | None) -> None:
        self._recipe, self._place = recipe, place
        self._pending: list[_Pending] = []

    def note(self, loss: Tensor, batch: dict[str, Tensor], step: int, rate: float) -> None:
        """Record the loss of a batch."""
        loss, arrived = loss.detach(), None
        if loss.is_cuda:
            loss, arrived = loss.to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._pending.append(_Pending(loss, arrived, batch, step, rate))

    def failure(self, *, all_of_them: bool) -> ConfigError | None:
        """The error of the first loss that is not finite; a GPU's last one is checked only if all are."""
        left = 1 if not all_of_them and self._pending and self._pending[-1].arrived is not None else 0
        while len(self._pending) > left:
            pending = self._pending.pop(0)
            if pending.arrived is not None:
                pending.arrived.synchronize()
            if not torch.isfinite(pending.loss):
                return self._explain(pending)
        return None

    def _explain(self, pending: _Pending) -> ConfigError:
        batch = pending.batch
        valid = batch["valid"][:, None].expand_as(batch["pixels"])
        broken = ~torch.isfinite(batch["pixels"][valid])
        inputs = f"{int(broken.sum())} of its values are not finite" if broken.any() else "all its pixels are finite"
        windows = ""
        if self._place is not None and "index" in batch:
            places = [self._place(int(index)) for index in batch["index"][:4]]
            more = len(batch["index"]) - len(places)
            windows = " on " + "; ".join(places) + (f" and {more} more" if more else "")
        hint = f"lower train.learning_rate (now {self._recipe.learning_rate:g}), or lengthen train.warmup_iterations"
        if broken.any():
            hint = "find them with geoseg stats, and declare them as nodata: imagery.nodata=…"
        return ConfigError(
            f"the loss became {pending.loss.item()} at iteration {pending.step} with learning rate {pending.rate:.3g}"
            f"{windows}; {inputs}",
            hint=hint,
        )


@contextmanager
def explained(recipe: RunConfig) -> Iterator[None]:
    """Explain what ran out or was killed, and what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(recipe, "the GPU") from error
    except GeosegError as error:
        # The loader wraps an error of a reading process in its traceback.
        found = re.search(r"^geoseg\.errors\.(\w+): (.+)\Z", error.message, re.MULTILINE | re.DOTALL)
        if found is None or "in DataLoader worker process" not in error.message:
            raise
        raise getattr(geoseg.errors, found[1], type(error))(found[2].strip()) from error
    except (RuntimeError, OSError, EOFError, MemoryError) as error:
        if (explained_as := _explain_error(str(error), error, recipe)) is None:
            raise
        raise explained_as from error
    except SystemExit as error:
        # Lightning turns Ctrl-C into an exit; the command line decides how the program ends.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise


def _explain_error(words: str, error: BaseException, recipe: RunConfig) -> GeosegError | None:
    # A process that is killed while it hands a window over leaves a broken connection.
    is_gone = isinstance(error, ConnectionResetError | ConnectionRefusedError | EOFError)
    if is_gone or ("DataLoader worker" in words and ("killed by signal" in words or "exited unexpectedly" in words)):
        if "Bus error" in words:
            return DeviceError(
                "a process that reads windows found shared memory (/dev/shm) full",
                hint=f"give it more (docker run --shm-size=8g), or lower train.workers (now {recipe.workers}); {GO_ON}",
            )
        return DeviceError(
            f"a process that reads windows was killed: {reason(error) or type(error).__name__}",
            hint=f"{GO_ON}; if memory ran out, lower train.workers (now {recipe.workers}) or "
            f"train.cache_mb (now {recipe.cache_mb})",
        )
    if "out of memory" in words.lower() or "can't allocate memory" in words or isinstance(error, MemoryError):
        return _out_of_memory(recipe, "this machine")
    return None


def _out_of_memory(recipe: RunConfig, where: str) -> DeviceError:
    found = f"{where} is out of memory with {recipe.batch_size} windows of {recipe.size} px at a time"
    if recipe.batch_size == 1:
        return DeviceError(found, hint="train.size=256, train.precision=bf16-mixed, or a smaller model.encoder")
    # The largest divisor that keeps the windows of a step
    parts = next(n for n in range(2, recipe.batch_size + 1) if recipe.batch_size % n == 0)
    return DeviceError(
        found,
        hint=f"train.batch_size={recipe.batch_size // parts} train.accumulate={recipe.accumulate * parts} keeps the "
        f"windows of each step; with a checkpoint, {GO_ON}",
    )
