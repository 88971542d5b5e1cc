"""What the Triton kernels of SegNeXt become on a GPU, and what networks move through memory: both without a GPU.

    python tests/benchmarks/gpu_kernels.py --models T B --capability 90

Launches are intercepted: the network runs through and computes nothing. Each kernel is compiled, by Triton and ptxas,
as at its first launch on such a GPU. The table has its registers for each thread, the bytes of stack that spilled ones
take, its shared memory, its instructions, how often it is launched and what it moves.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from official_form import VARIANTS, OfficialForm
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

BANDS, CLASSES = 3, 16
FREE = {
    *(
        "view",
        "_unsafe_view",
        "permute",
        "transpose",
        "t",
        "unsqueeze",
        "squeeze",
        "expand",
        "slice",
        "select",
        "alias",
    ),
    *("split", "split_with_sizes", "detach", "empty", "empty_like", "new_empty", "empty_strided", "device"),
}
"""Operations that launch nothing and move nothing."""


# --- networks without numbers: enough to count, and to compile for


def folded(size: str, device: str = "meta") -> nn.Module:
    """The folded T, S, B or L."""
    from geoseg.inference.folding import FoldedBlock, FoldedDecoder, FoldedSegNeXt, FoldedStage

    variant = VARIANTS[size]
    with torch.device(device):
        stages, width = [], BANDS
        for i, (channels, depth) in enumerate(zip(variant.dims, variant.depths, strict=True)):
            half = nn.Conv2d(width, channels // 2, 3, stride=2, padding=1)
            embed = nn.Sequential(half, nn.GELU(), nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1))
            if i > 0:
                embed = nn.Sequential(nn.Conv2d(width, channels, 3, stride=2, padding=1))
            blocks = [FoldedBlock(channels, channels * (8, 8, 4, 4)[i]) for _ in range(depth)]
            stages.append(FoldedStage(embed, blocks, channels, 1e-5))
            width = channels
        decoder = FoldedDecoder(variant.dims[1:], variant.channels, CLASSES, variant.rank, 32)
        return FoldedSegNeXt(stages, decoder, nn.Identity(), None).eval().requires_grad_(False)


def official(size: str) -> nn.Module:
    """The official form."""
    return OfficialForm(VARIANTS[size], classes=CLASSES).eval().requires_grad_(False)


# --- what is moved


@dataclass
class Traffic:
    """Bytes that kernels read and write: each tensor once for each kernel, as if nothing stayed in a cache.

    Attributes:
        features: Bytes of what depends on the image.
        weights: Bytes of the network's parameters and buffers.
        kernels: Launches.
        of: Bytes of features by kernel or operation.
    """

    features: int = 0
    weights: int = 0
    kernels: int = 0
    of: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, tensors: list[Tensor], fixed: set[int]) -> None:
        """A kernel that uses these tensors, some of them among the fixed ones by ``id``."""
        self.kernels += 1
        moved = 0
        for tensor in {id(tensor): tensor for tensor in tensors}.values():
            if id(tensor) in fixed:
                self.weights += tensor.numel() * tensor.element_size()
            else:
                moved += tensor.numel() * tensor.element_size()
        self.features += moved
        self.of[name] = self.of.get(name, 0) + moved


def fixed_tensors(network: nn.Module) -> set[int]:
    """Ids of a network's parameters and buffers."""
    return {id(tensor) for tensor in (*network.parameters(), *network.buffers())}


class Operations(TorchDispatchMode):
    """Counts what torch's own operations move."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.traffic = Traffic()
        self._fixed = fixed_tensors(network)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func).split(".")[1]
        if name not in FREE:
            self.traffic.add(name, [*tensors_in((args, kwargs)), *tensors_in(out)], self._fixed)
        return out


def tensors_in(value: Any) -> list[Tensor]:
    """Tensors of nested arguments."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [tensor for item in value for tensor in tensors_in(item)] if isinstance(value, list | tuple) else []


def torch_traffic(build: Callable[[], nn.Module], height: int, width: int) -> Traffic:
    """What a network moves for one image in torch's operations, if all of it is stored in 16 bits."""
    with FakeTensorMode(), torch.no_grad():
        network = build()
        with Operations(network) as operations:
            network.forward_logits(torch.empty(1, BANDS, height, width))  # type: ignore[operator]
    traffic = operations.traffic
    # Traced in float32: parts of the networks are float32 by name, and half of it is what bfloat16 would move.
    return Traffic(
        traffic.features // 2,
        traffic.weights // 2,
        traffic.kernels,
        {name: moved // 2 for name, moved in traffic.of.items()},
    )


def triton_traffic(size: str, height: int, width: int, dtype: torch.dtype = torch.bfloat16) -> Traffic:
    """What the Triton kernels of T, S, B or L move for one image."""
    from geoseg.inference.triton.network import TritonSegNeXt

    network = TritonSegNeXt(folded(size), dtype)  # type: ignore[arg-type]
    fixed, traffic = fixed_tensors(network), Traffic()

    def count(kernel: Any, args: tuple[Any, ...], grid: tuple[int, ...], options: dict[str, Any]) -> None:
        traffic.add(kernel.__name__, tensors_in(args), fixed)

    with intercepted(count):
        network.forward_logits(torch.empty(1, BANDS, height, width, device="meta"))
    return traffic


Launched = Callable[[Any, tuple[Any, ...], tuple[int, ...], dict[str, Any]], None]


@contextmanager
def intercepted(launched: Launched) -> Iterator[None]:
    """Launches call ``launched(kernel, arguments, grid, options)`` and nothing else."""
    from triton.runtime.jit import JITFunction

    def run(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        launched(self, args, grid, options)

    original = JITFunction.run
    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = original


# --- what kernels become


class Target:
    """What Triton asks of a driver in order to compile; it runs nothing."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self._target


@dataclass
class Compiled:
    """A kernel as machine code.

    Attributes:
        name: Of the kernel.
        constants: Its compile-time arguments.
        warps: Warps of a program.
        registers: For each thread.
        stack: Bytes for each thread, where registers do not suffice.
        shared: Bytes of shared memory of a program.
        instructions: In its code.
        launches: How often a forward launches it.
        moved: Bytes of features that it moves in a forward.
    """

    name: str
    constants: dict[str, Any]
    warps: int
    registers: int
    stack: int
    shared: int
    instructions: int
    launches: int = 0
    moved: int = 0


def compiled(run: Callable[[], object], capability: int, fixed: set[int] | None = None) -> list[Compiled]:
    """The kernels that ``run`` launches, compiled for a compute capability (90 for 9.0) and not run.

    Triton compiles for that capability from then on: for a process that does nothing else.
    """
    import triton
    from triton.runtime.jit import JITFunction

    original = JITFunction.run
    found: dict[str, Compiled] = {}

    def launched(kernel: Any, args: tuple[Any, ...], grid: tuple[int, ...], options: dict[str, Any]) -> None:
        built = original(kernel, *args, grid=grid, warmup=True, **options)
        entry = found.get(built.hash)
        if entry is None:
            constants = {k: v for k, v in options.items() if k.isupper()}
            registers, stack, instructions = machine_code(built.asm["cubin"])
            entry = found[built.hash] = Compiled(
                kernel.__name__,
                constants,
                built.metadata.num_warps,
                registers,
                stack,
                built.metadata.shared,
                instructions,
            )
        traffic = Traffic()
        traffic.add(kernel.__name__, tensors_in(args), fixed or set())
        entry.launches += 1
        entry.moved += traffic.features

    triton.runtime.driver.set_active(Target(capability))
    with intercepted(launched):
        run()
    return list(found.values())


def machine_code(cubin: bytes) -> tuple[int, int, int]:
    """Registers, bytes of stack, instructions of a kernel; the tools come with Triton."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _output(tools / "cuobjdump", "-res-usage", path)
        code = _output(tools / "nvdisasm", "-c", path)
    match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert match is not None, usage
    return int(match[1]), int(match[2]), len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.MULTILINE))


def _output(tool: Path, *arguments: object) -> str:
    command = [str(tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(VARIANTS), default=["T"])
    parser.add_argument("--capability", type=int, default=90, help="compute capability, 80, 86, 89, 90 ...")
    parser.add_argument("--side", type=int, default=1024, help="side of the image, px")
    options = parser.parse_args()
    from geoseg.inference.triton.network import TritonSegNeXt

    for size in options.models:
        network = TritonSegNeXt(folded(size))  # type: ignore[arg-type]
        x = torch.empty(1, BANDS, options.side, options.side, device="meta")

        def run(network: TritonSegNeXt = network, x: Tensor = x) -> object:
            return network.forward_logits(x)

        kernels = compiled(run, options.capability, fixed_tensors(network))
        print(f"SegNeXt-{size}, capability {options.capability}, {sum(k.launches for k in kernels)} launches")
        print(f"{'':26}{'launches':>9}{'MB/Mpx':>8}{'warps':>6}{'regs':>6}{'stack':>6}{'shared':>8}{'code':>7}")
        for kernel in sorted(kernels, key=lambda kernel: -kernel.moved):
            constants = " ".join(f"{k}={v}" for k, v in kernel.constants.items() if k in ("C", "K", "N", "D", "HIDDEN"))
            print(
                f"{kernel.name.removesuffix('_kernel'):26}{kernel.launches:9}{kernel.moved / options.side**2:8.1f}"
                f"{kernel.warps:6}{kernel.registers:6}{kernel.stack:6}{kernel.shared:8}{kernel.instructions:7}  "
                f"{constants}",
                flush=True,
            )


if __name__ == "__main__":
    main()
