"""SegNeXt on a GPU: eager torch, torch.compile and `predict` end to end, in Mpx/s and as ratios to eager.

    python tests/benchmarks/bench_gpu.py --models T B --size 1024 --batch 8

eager            the folded network in plain torch, as `geoseg predict --backend torch` runs it
compile          torch.compile, as `geoseg predict` runs it
compile, graphs  torch.compile with CUDA graphs (mode="reduce-overhead")
predict          `geoseg predict` of a generated scene from GeoTIFF to class map, in windows without overlap

The network is in bfloat16 with seeded random weights and 16 classes, its logits at stride 8. The three forms run in
turn in every round, timed by CUDA events; tables give medians. `predict` runs twice, and the second run counts: the
first one compiles.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from bench_network import CLASSES
from network_worker import BANDS, image, segnext, visible_weights
from official_form import VARIANTS
from torch import Tensor, nn

from geoseg.contract import Band, ClassEntry, Contract
from geoseg.landscape import Landscape, write_landscape
from geoseg.network.backends import Request, load_backend
from geoseg.network.folding import Logits, deployed
from geoseg.network.model_folder import save_model
from geoseg.network.stored_model import logits_stride
from geoseg.programs.predict import predict

Run = Callable[[Tensor], Tensor]


def with_graphs(network: nn.Module, device: torch.device) -> Run:
    """The folded network as torch.compile runs it with CUDA graphs."""
    logits = Logits(deployed(network)).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    compiled = torch.compile(logits, dynamic=False, mode="reduce-overhead")

    def run(x: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            out: Tensor = compiled(x)
        return out.to(torch.float32, copy=True)  # the graph's next run overwrites its output

    return run


def seconds_of(run: Run, x: Tensor, forwards: int) -> float:
    """Seconds of a forward, over several in a row."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(forwards):
        run(x)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / forwards


def forms(network: nn.Module, x: Tensor, *, rounds: int, forwards: int) -> dict[str, float]:
    """Seconds of a batch in each form, medians of the rounds."""
    how = Request("bfloat16", str(x.device), BANDS, at_once=len(x), size=(x.shape[2], x.shape[3]))
    model: Any = SimpleNamespace(network=network, stride=logits_stride(network), key=None)
    runs: dict[str, Run] = {
        name: load_backend(model, backend, how) for name, backend in (("eager", "torch"), ("compile", "compile"))
    }
    runs["compile, graphs"] = with_graphs(network, x.device)
    for run in runs.values():
        seconds_of(run, x, 3)  # compiles, and records graphs
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(seconds_of(run, x, forwards))
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def end_to_end(network: nn.Module, *, side: int, size: int, batch: int, device: str = "cuda") -> float:
    """Seconds of `predict` on a scene of side² px."""
    contract = Contract(
        name="bench",
        dtype="uint8",
        scale=1 / 255,
        bands=[Band(name=name, mean=0.4, std=0.2) for name in ("red", "green", "blue")],
        classes=[ClassEntry(name=f"class {i}", color=f"#{i * 16:02x}8040") for i in range(CLASSES)],
    )
    with tempfile.TemporaryDirectory() as folder:
        scene, model = Path(folder, "scene.tif"), Path(folder, "model")
        write_landscape(Landscape(side, side), scene)
        save_model(model, network, contract)
        options = {"device": device, "size": size, "overlap": 0, "batch_size": batch, "overwrite": True}
        for _ in range(2):
            report = predict(scene, model, Path(folder, "map.tif"), **options)
    return report.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(VARIANTS), default=["T", "B"])
    parser.add_argument("--size", type=int, default=1024, help="side of a window, px")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=8192, help="side of the scene of predict, px")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--forwards", type=int, default=10, help="in a row for a sample")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: bench_gpu.py needs a CUDA device, and torch finds none\nhint:  bench_network.py times a CPU")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.size} px, batch {options.batch}")
    for model in options.models:
        network = segnext(model, CLASSES, visible_weights(VARIANTS[model], CLASSES))
        x = image(options.size, options.size, options.batch).cuda()
        found = forms(network, x, rounds=options.rounds, forwards=options.forwards)
        speeds = {name: options.batch * options.size**2 / 1e6 / seconds for name, seconds in found.items()}
        seconds = end_to_end(network, side=options.side, size=options.size, batch=options.batch)
        speeds["predict"] = options.side**2 / 1e6 / seconds
        for name, speed in speeds.items():
            print(f"SegNeXt-{model}  {name:16}{speed:9.1f} Mpx/s{speed / speeds['eager']:7.2f} × eager", flush=True)


if __name__ == "__main__":
    main()
