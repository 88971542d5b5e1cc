"""SegNeXt on a GPU, step by step: what each step gains, and what the bytes it moves let one expect.

    python tests/benchmarks/bench_gpu.py --models T S B L --size 1024 --batch 8

official        the official code's form, eager, under bfloat16 autocast: the rival
channels-last   geoseg's network as it was trained, channels-last under autocast
folded          its inference form in torch's operations, likewise
compiled        that through torch.compile
kernels         the Triton kernels, launched one by one
graph           the same kernels as one CUDA graph: what `geoseg predict` runs

All have the same seeded random weights, take the same image and end with logits at stride 8; "differ" is the share of
these whose class is not the official form's in float32. Steps run in turn in every round, timed by CUDA events; tables
give medians. The prediction of a step is the longest of three times: of its bytes at the speed of a copy measured here,
each tensor moved once for each kernel; of its multiplications at the speed of a large matrix product; of its launches.
"x before" is what a step gained over the one before, "expected" what their predictions let one expect of it, "/ pred."
measured over predicted time. The last two columns are shares of two bounds: five kernels for each block, and blocks
that do nothing but read and write their features once. At the end, frames per second of T on 768 × 1536 px, batch 1.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import gpu_kernels
import torch
from bench_network import CLASSES, GMAC, parse_size, roof_seconds
from gpu_kernels import Traffic
from network_worker import image, official, roofline, segnext, visible_weights
from official_form import VARIANTS
from torch import Tensor, nn

from geoseg.inference.folding import FoldedSegNeXt, fold
from geoseg.inference.gpu import Autocast, Graphs

STEPS = ("official", "channels-last", "folded", "compiled", "kernels", "graph")
FIVE_KERNELS_MB = {"T": 931, "S": 1225, "B": 2222, "L": 3646}
"""What five kernels for each block would move, in bfloat16, MB per 10⁶ px."""
LAUNCH_SECONDS = 5e-6
"""From one launch to the next, where the host does nothing else."""
FRAME = (768, 1536)
NOT_FUSED = ("convolution", "bmm", "native_group_norm", "native_layer_norm", "upsample_bilinear2d", "native_batch_norm")
"""What is left where every elementwise operation disappears into the kernel before or after it."""

Step = Callable[[Tensor], Tensor]


# --- predictions


def traffics(size: str, height: int, width: int) -> dict[str, Traffic]:
    """What each step of T, S, B or L moves for one image, traced."""
    found = {
        "official": gpu_kernels.torch_traffic(lambda: gpu_kernels.official(size), height, width),
        "folded": gpu_kernels.torch_traffic(lambda: gpu_kernels.folded(size, "cpu"), height, width),
        "kernels": gpu_kernels.triton_traffic(size, height, width),
    }
    # The same operations but the copies of shortcuts and layouts.
    found["channels-last"] = only(found["official"], lambda name: name != "clone")
    found["compiled"] = only(found["folded"], lambda name: name in NOT_FUSED)
    graph = found["kernels"]
    found["graph"] = Traffic(graph.features, graph.weights, 1, dict(graph.of))
    return found


def only(traffic: Traffic, wanted: Callable[[str], bool]) -> Traffic:
    """What operations of the wanted names move; launches are kept."""
    of = {name: moved for name, moved in traffic.of.items() if wanted(name)}
    return Traffic(sum(of.values()), traffic.weights, traffic.kernels, of)


def predicted_seconds(traffic: Traffic, *, batch: int, gmac: float, copy: float, matmul: float) -> float:
    """Least seconds of a forward.

    Args:
        traffic: Of one image.
        batch: Images.
        gmac: Multiplications of one image, 10⁹.
        copy: GB/s of a copy.
        matmul: GFLOP/s of a matrix product.
    """
    memory = (traffic.features * batch + traffic.weights) / (copy * 1e9)
    return max(memory, 2 * gmac * batch / matmul, traffic.kernels * LAUNCH_SECONDS)


# --- measurements


@dataclass
class Measured:
    """Seconds of every round, or why there are none; share of logits of another class than the reference's."""

    seconds: list[float] = field(default_factory=list)
    differing: float | None = None
    left_out: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def autocast(network: nn.Module, device: torch.device) -> Step:
    """A network's logits under bfloat16 autocast."""

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            logits: Tensor = network.forward_logits(x)  # type: ignore[operator]
        return logits

    return forward


def build(name: str, rival: nn.Module, trained: nn.Module, folded: FoldedSegNeXt, device: torch.device) -> Step:
    """A step by its name; the networks are on the device."""
    if name == "official":
        return autocast(rival, device)
    if name == "channels-last":
        forward = autocast(trained.to(memory_format=torch.channels_last), device)  # type: ignore[call-overload]
        return lambda x: forward(x.contiguous(memory_format=torch.channels_last))
    if name in ("folded", "compiled"):
        return Autocast(folded, device, torch.bfloat16, compiled=name == "compiled")
    from geoseg.inference.triton.network import TritonSegNeXt

    network = TritonSegNeXt(folded).to(device)
    return network.forward_logits if name == "kernels" else Graphs(network.forward_logits)


def seconds_of(step: Step, x: Tensor, forwards: int) -> float:
    """Seconds of a forward, over several in a row."""
    if x.device.type != "cuda":
        clock = time.perf_counter()
        for _ in range(forwards):
            step(x)
        return (time.perf_counter() - clock) / forwards
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(x.device)
    start.record()
    for _ in range(forwards):
        step(x)
    end.record()
    torch.cuda.synchronize(x.device)
    return start.elapsed_time(end) / 1000 / forwards


@torch.inference_mode()
def measure(
    steps: Mapping[str, Callable[[], Step]], x: Tensor, *, reference: Tensor, rounds: int, forwards: int
) -> dict[str, Measured]:
    """Every step in every round. One that cannot be built or run is left out with its reason.

    Args:
        steps: Makers of the steps, by name.
        x: Image (N, B, H, W).
        reference: Classes (1, h, w) of its first image.
        rounds: Samples of each step.
        forwards: Forwards of a sample.
    """
    found = {name: Measured() for name in steps}
    ready: dict[str, Step] = {}
    for name, make in steps.items():
        try:
            step = make()
            logits = step(x)
            step(x)
        except Exception as error:
            found[name].left_out = f"{type(error).__name__}: {str(error).strip().splitlines()[-1:]}"
            continue
        found[name].differing = (logits[:1].argmax(1) != reference).double().mean().item()
        ready[name] = step
    for _ in range(rounds):
        for name, step in ready.items():
            found[name].seconds.append(seconds_of(step, x, forwards))
    return found


def table(
    found: Mapping[str, Measured], predicted: Mapping[str, float], *, megapixels: float, bounds: Sequence[float]
) -> list[str]:
    """Lines of the table.

    Args:
        found: Steps in order, the rival first.
        predicted: Seconds of each.
        megapixels: Of a forward, 10⁶ px.
        bounds: Seconds of a forward by each bound.
    """
    lines = [
        f"{'':14}{'ms':>9}{'Mpx/s':>9}{'x rival':>9}{'x before':>9}{'expected':>9}{'pred., ms':>10}{'/ pred.':>9}"
        f"{'differ, %':>10}{'five, %':>8}{'roof, %':>8}"
    ]
    rival = next(iter(found))
    before: str | None = None
    for name, result in found.items():
        if result.left_out:
            lines.append(f"{name:14}left out: {result.left_out}")
            continue
        cells = [f"{name:14}{1000 * result.median:9.2f}{megapixels / result.median:9.1f}"]
        cells.append(f"{found[rival].median / result.median:9.2f}" if found[rival].seconds else f"{'':9}")
        if before is None:
            cells.append(f"{'':18}")
        else:
            cells.append(f"{found[before].median / result.median:9.2f}{predicted[before] / predicted[name]:9.2f}")
        cells.append(f"{1000 * predicted[name]:10.2f}{result.median / predicted[name]:9.2f}")
        cells.append(f"{100 * (result.differing or 0):10.3f}")
        cells.extend(f"{100 * bound / result.median:8.1f}" for bound in bounds)
        lines.append("".join(cells))
        before = name
    return lines


def bound_seconds(size: str, pixels: int, best: Mapping[str, float]) -> tuple[float, float]:
    """Seconds of five kernels for each block, and of the roof."""
    megapixels = pixels / 1e6
    five = max(FIVE_KERNELS_MB[size] / 1000 / best["copy"], 2 * GMAC[size] / best["bf16"])
    return five * megapixels, roof_seconds(size, "bf16", best) * megapixels


@torch.no_grad()
def run(
    size: str,
    height: int,
    width: int,
    batch: int,
    *,
    rounds: int,
    forwards: int,
    best: Mapping[str, float],
    device: torch.device,
    names: Sequence[str] = STEPS,
) -> None:
    """Measure one variant and print its table, and frames per second of its last step."""
    weights = visible_weights(VARIANTS[size], CLASSES)
    rival, trained = official(size, CLASSES, weights).to(device), segnext(size, CLASSES, weights)
    folded = fold(trained)
    assert folded is not None
    folded, trained = folded.to(device), trained.to(device)
    x = image(height, width, batch).to(device)
    reference = rival.forward_logits(x[:1]).argmax(1)
    makers = {name: functools.partial(build, name, rival, trained, folded, device) for name in names}
    found = measure(makers, x, reference=reference, rounds=rounds, forwards=forwards)
    pixels = height * width
    known = {"batch": batch, "gmac": GMAC[size] * pixels / 1e6, "copy": best["copy"], "matmul": best["bf16"]}
    traced = traffics(size, height, width)
    predicted = {name: predicted_seconds(traced[name], **known) for name in names}
    print(f"\nSegNeXt-{size}, {height} × {width} px, batch {batch}, {CLASSES} classes")
    bounds = bound_seconds(size, pixels * batch, best)
    print("\n".join(table(found, predicted, megapixels=pixels * batch / 1e6, bounds=bounds)))
    if found[names[-1]].seconds:
        print(f"{names[-1]}: {batch / found[names[-1]].median:.1f} frames/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--size", type=parse_size, default=(1024, 1024), help='px: "1024" or "768x1536"')
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--forwards", type=int, default=10, help="in a row for a sample")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "error: bench_gpu.py times a CUDA device, and torch finds none\n"
            "hint:  gpu_kernels.py tells without one what kernels become and move; bench_network.py times a CPU",
            file=sys.stderr,
        )
        sys.exit(2)
    best = roofline({"device": "cuda", "threads": 2})
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; best of this machine: "
        f"bf16 {best['bf16'] / 1000:.0f} TFLOP/s, copy {best['copy']:.0f} GB/s"
    )
    run_one = functools.partial(
        run, rounds=options.rounds, forwards=options.forwards, best=best, device=torch.device("cuda")
    )
    for size in options.models:
        run_one(size, *options.size, options.batch)
    run_one("T", *FRAME, 1)


if __name__ == "__main__":
    main()
