"""SegNeXt on a GPU: Triton kernels in a CUDA graph where they run, torch.compile or plain torch where they do not.

Which of them runs is decided when the first window comes: a way that raises, or whose logits on a test image are not
the network's, is left for the next, and the log says so. Once a window has gone through, the way stays: another would
give other bytes within one scene.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geoseg.inference.folding import FoldedSegNeXt

log = logging.getLogger(__name__)

Path = Literal["triton", "compile", "eager"]

WAYS: dict[Path, str] = {
    "triton": "Triton kernels",
    "compile": "torch.compile",
    "eager": "plain torch",
}

TRITON_CAPABILITY = (8, 0)
"""Compute capability that the kernels want: bfloat16 in tensor cores, asynchronous copies."""

PROBE_SIZE = (64, 96)
"""Height and width of the image that kernels are tried on, px."""

PROBE_ERROR = 0.1
"""Largest error of its logits, root mean square over that of the logits themselves. bfloat16 makes 0.005 to 0.01 on the
shipped models, a wrong kernel about 1."""

MAX_GRAPHS = 8
"""Graphs are kept for so many shapes of input; further shapes run without."""


def gpu_form(
    folded: FoldedSegNeXt,
    *,
    dtype: torch.dtype | None = None,
    residual: torch.dtype | None = None,
    graphs: bool = True,
) -> GpuSegNeXt:
    """The fastest form of a folded SegNeXt that its device can run, chosen when the first window comes.

    Args:
        folded: The network, kept for the ways without Triton.
        dtype: What features are stored and multiplied in; None takes bfloat16, float16 on GPUs before Ampere.
        residual: See `geoseg.inference.triton.network.TritonSegNeXt`.
        graphs: Whether Triton kernels are launched as one CUDA graph for each shape of input.
    """
    return GpuSegNeXt(folded, dtype=dtype, residual=residual, graphs=graphs)


def candidate_paths(device: torch.device, *, triton: bool, capability: tuple[int, int] | None) -> tuple[Path, ...]:
    """Ways to run on a device, best first.

    Args:
        device: Where the input is.
        triton: Whether Triton is installed.
        capability: Compute capability of a CUDA device, else None.
    """
    if device.type != "cuda" or capability is None:
        return ("triton", "eager") if triton and _interpreted() else ("eager",)
    if triton and capability >= TRITON_CAPABILITY:
        return "triton", "compile", "eager"
    return "compile", "eager"


class GpuSegNeXt(nn.Module):
    """A folded SegNeXt that runs in the first of several ways that works: image (N, B, H, W) to logits at stride 8.

    Args:
        folded: The network.
        dtype: What features are stored and multiplied in, or None; see `gpu_form`.
        residual: See `geoseg.inference.triton.network.TritonSegNeXt`.
        graphs: Whether to launch Triton kernels as CUDA graphs.

    Attributes:
        path: The way that is in use, or None before the first window.
        description: The same in words, with the data type.
    """

    logits_stride = FoldedSegNeXt.logits_stride

    def __init__(
        self,
        folded: FoldedSegNeXt,
        *,
        dtype: torch.dtype | None = None,
        residual: torch.dtype | None = None,
        graphs: bool = True,
    ) -> None:
        super().__init__()
        self.folded = folded
        self.dtype, self.residual, self.graphs = dtype, residual, graphs
        self.path: Path | None = None
        self.description = "undecided"
        self._run: Callable[[Tensor], Tensor] | None = None

    @torch.inference_mode()
    def forward_logits(self, x: Tensor) -> Tensor:
        """Logits (N, K, ceil(H/8), ceil(W/8)) float32 of an image (N, B, H, W) float32."""
        if self._run is None:
            return self._first(x)
        return self._run(x)

    def prepare(self, device: torch.device, *, bands: int, size: tuple[int, int]) -> str:
        """Choose the way now, on an empty window, and give its description: a result's bytes depend on it.

        Args:
            device: Where windows will be.
            bands: B of the windows.
            size: Height and width of most windows, px.
        """
        if self._run is None:
            self.forward_logits(torch.zeros(1, bands, *size, device=device))
        return self.description

    def _first(self, x: Tensor) -> Tensor:
        self.folded.to(x.device)
        capability = torch.cuda.get_device_capability(x.device) if x.device.type == "cuda" else None
        dtype = self.dtype or (torch.float16 if capability and capability < TRITON_CAPABILITY else torch.bfloat16)
        paths = candidate_paths(x.device, triton=_has_triton(), capability=capability)
        for path, after in zip(paths, (*paths[1:], None), strict=True):
            try:
                run = self._way(path, x, dtype)
                logits = run(x)
            except torch.cuda.OutOfMemoryError:
                raise  # no other way needs less, and the caller makes its batches smaller
            except Exception as error:
                if after is None:
                    raise
                log.warning("%s is not used, %s is tried instead: %s", path, after, _reason(error))
                continue
            self.path, self._run = path, run
            self.description = f"{WAYS[path]}, {str(dtype).removeprefix('torch.')}"
            log.info("SegNeXt runs on %s as %s", x.device, self.description)
            if isinstance(run, Graphs) and run.recording:
                log.info("its kernels are launched as one CUDA graph")
            return logits
        raise AssertionError("no way to run")

    def _way(self, path: Path, x: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        if path == "triton":
            # Not at the top: on Windows and macOS there is no Triton.
            from geoseg.inference.triton.network import TritonSegNeXt

            network = TritonSegNeXt(self.folded, dtype, self.residual).to(x.device)
            probe(self.folded, network.forward_logits, x.device)
            return Graphs(network.forward_logits) if self.graphs else network.forward_logits
        return Autocast(self.folded, x.device, dtype, compiled=path == "compile")


class Autocast:
    """A folded SegNeXt in torch's own operations, channels-last under autocast; float32 without.

    Args:
        folded: The network.
        device: Where it runs.
        dtype: What autocast multiplies in.
        compiled: Whether torch.compile makes kernels of it.
    """

    def __init__(self, folded: FoldedSegNeXt, device: torch.device, dtype: torch.dtype, *, compiled: bool) -> None:
        network = folded.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.compiled = compiled
        self._device, self._dtype = device, dtype
        self._forward: Callable[[Tensor], Tensor] = (
            torch.compile(network.forward_logits) if compiled else network.forward_logits
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (N, K, h, w) float32."""
        cast = torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)
        with cast:
            return self._forward(x.contiguous(memory_format=torch.channels_last)).float()


class Graphs:
    """A function of one tensor on a GPU, recorded once for each shape of input and replayed as one launch.

    The result is a copy: what the graph writes is overwritten by the next call. Where recording fails, the function is
    called as it is, from then on.

    Args:
        function: What is recorded: the same kernels for the same shape, with no transfer to the host.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.recording = True
        self._function = function
        self._graphs: dict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._pool: Any = None

    def __call__(self, x: Tensor) -> Tensor:
        """What the function gives."""
        key = (x.shape, x.stride(), x.dtype, x.device)
        if key not in self._graphs:
            if not self.recording or len(self._graphs) >= MAX_GRAPHS:
                return self._function(x)
            try:
                self._graphs[key] = self._record(x)
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:
                self.recording = False
                log.warning("kernels are launched one by one, no CUDA graph could be recorded: %s", _reason(error))
                return self._function(x)
        graph, source, result = self._graphs[key]
        source.copy_(x)
        graph.replay()
        return result.clone()

    def _record(self, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        if x.device.type != "cuda":
            raise RuntimeError(f"the input is on {x.device}, CUDA graphs need a CUDA device")
        source = x.clone()
        with torch.cuda.device(x.device):
            # Once outside the graph, on the stream that records: kernels are compiled and loaded here.
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._function(source)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Graphs run one after another and their results are copied, so they can share their memory.
            with torch.cuda.graph(graph, pool=self._pool):
                result = self._function(source)
            self._pool = graph.pool()
        return graph, source, result


@torch.no_grad()
def probe(folded: FoldedSegNeXt, forward: Callable[[Tensor], Tensor], device: torch.device) -> None:
    """Compare a way to run with the folded network in float32, on an image of smooth noise.

    Raises:
        ArithmeticError: The logits differ by more than rounding explains.
    """
    first = next(module for module in folded.modules() if isinstance(module, nn.Conv2d))
    generator = torch.Generator(device="cpu").manual_seed(0)
    coarse = torch.randn(
        1, first.in_channels, PROBE_SIZE[0] // 8, PROBE_SIZE[1] // 8, generator=generator, device="cpu"
    )
    x = nn.functional.interpolate(coarse, size=PROBE_SIZE, mode="bicubic").to(device)
    with torch.autocast(device.type, enabled=False):
        wanted = folded.forward_logits(x).double()
    found = forward(x).double()
    spread = (wanted - wanted.mean(dim=(2, 3), keepdim=True)).square().mean().sqrt()
    error = float((found - wanted).square().mean().sqrt() / spread)
    if not error <= PROBE_ERROR:  # NaN too
        raise ArithmeticError(f"logits of a test image are {error:.2g} of their own size off, more than {PROBE_ERROR}")
    log.debug("logits of a test image are %.2g of their own size off", error)


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _interpreted() -> bool:
    """Whether kernels run on the CPU, in Triton's interpreter: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _reason(error: Exception) -> str:
    """One line of an exception: compilers say the whole program."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines[-1] if lines else "").strip()
    return f"{type(error).__name__}: {text[:300]}"
