"""Programs that tests start."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any

import torch

from geoseg.prediction.predictor import Predictor
from geoseg.tiling import plan
from geoseg.training.callbacks import Checkpoints

PRELOADED = ["geoseg.programs.train", "geoseg.programs.predict"]


def from_shell(*words: object, before: str = "") -> subprocess.Popen[str]:
    """``geoseg WORDS`` as a shell starts it; ``before`` are Python statements that its process runs first."""
    return subprocess.Popen(
        [sys.executable, "-c", f"{before}\nfrom geoseg.cli import main\nmain()\n", *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_ctrl_c,
    )


def _heed_ctrl_c() -> None:
    """Tests started in the background of a shell ignore Ctrl-C, and a child would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def fresh_processes() -> ForkServerContext:
    """Processes that start with torch and Lightning loaded, and without the threads that torch has had in this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Started:
    """``geoseg WORDS`` in a process of its own, with the methods of `subprocess.Popen` that tests need.

    The process is one of `fresh_processes`: what a shell starts spends its first seconds on imports. It ends without
    Python's own clean-up, so each kind of end is also tested from a shell. What still runs at the end of the ``with``
    block is killed.
    """

    def __init__(self, *words: object, before: Callable[[], None] | None = None) -> None:
        """Start the command; ``before``, a function of a module, is called in its process first."""
        context = fresh_processes()
        (self._out, out), (self._err, err) = context.Pipe(duplex=False), context.Pipe(duplex=False)
        arguments = ([str(word) for word in words], before, torch.get_num_threads(), out, err)
        self._process = context.Process(target=_command, args=arguments)
        self._process.start()
        out.close()
        err.close()
        self.pid: int = self._process.pid or 0

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.join()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(self.pid, number)

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """Its stdout and stderr, once it and all processes that it started have closed them."""
        end, texts = time.monotonic() + timeout, {self._out: b"", self._err: b""}
        with selectors.DefaultSelector() as selector:
            for pipe in texts:
                selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(end - time.monotonic())
                if not ready:
                    raise TimeoutError(f"process {self.pid} has not ended after {timeout} s")
                for key, _ in ready:
                    content = os.read(key.fd, 1 << 16)
                    texts[key.fileobj] += content  # type: ignore[index]
                    if not content:
                        selector.unregister(key.fileobj)
        self._process.join()
        said, complaints = (text.decode() for text in texts.values())
        return said, complaints


def low_bands() -> None:
    """Bands of 512 rows, where ``geoseg predict`` would take small scenes as one band."""
    plan.TASK_PX = 1


def slow_bands(seconds: float) -> None:
    """Bands of 512 rows, and forward passes that take so long: a prediction that a test interrupts."""
    low_bands()
    forward = Predictor.logits

    def slowly(self: Predictor, *arguments: Any) -> Any:
        time.sleep(seconds)
        return forward(self, *arguments)

    Predictor.logits = slowly  # type: ignore[method-assign]


def pause_training(step: int) -> None:
    """Wait for a signal after an iteration: a training that a test stops, and that cannot end before."""
    go_on = Checkpoints.on_train_batch_end

    def wait(self: Checkpoints, trainer: Any, *arguments: Any) -> None:
        go_on(self, trainer, *arguments)
        if trainer.global_step == step:
            time.sleep(600)

    Checkpoints.on_train_batch_end = wait  # type: ignore[method-assign]


def _command(
    words: list[str], before: Callable[[], None] | None, threads: int, out: Connection, err: Connection
) -> None:
    from geoseg.cli import main

    for number, pipe in enumerate((out, err), start=1):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    _heed_ctrl_c()
    multiprocessing.set_start_method(None, force=True)  # the usual one: here it is the one that started this process
    torch.set_num_threads(threads)  # as many as here: another number would round otherwise
    sys.argv = ["geoseg", *words]
    if before is not None:
        before()
    main()
