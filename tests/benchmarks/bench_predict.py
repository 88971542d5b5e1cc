"""End-to-end `predict` against the bare forward of the network over the same windows, interleaved in one process.

    python tests/benchmarks/bench_predict.py --side 2048 --model landscape-tiny

Bare: only the forward is timed, on normalised batches that lie ready on the device. End to end: reading the GeoTIFF,
normalising, the forward, blending, upsampling, writing the class map with its overviews; without loading the model.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from geoseg.devices import resolve_device
from geoseg.landscape import Landscape, write_landscape
from geoseg.model_folder import Normalize, load_model
from geoseg.plan import Plan
from geoseg.predict import Predictor, predict
from geoseg.scene import Scene
from geoseg.windows import Window


def bare_seconds(
    network: torch.nn.Module, normalize: Normalize, scene: Scene, plan: Plan, device: torch.device
) -> float:
    """Time of the forwards alone over all windows of the plan, in the plan's batches."""
    forward = network.forward_logits if plan.stride > 1 else network
    seconds = 0.0
    for row in plan.rows:
        strip, valid = scene.read(Window(row, 0, plan.window_height, plan.padded_width))
        for first in range(0, len(plan.cols), plan.batch_size):
            cols = plan.cols[first : first + plan.batch_size]
            pixels = torch.from_numpy(np.stack([strip[:, :, c : c + plan.window_width] for c in cols]))
            use = torch.from_numpy(np.stack([valid[:, c : c + plan.window_width] for c in cols]))
            batch = normalize(pixels.to(device), use.to(device))
            synchronize(device)
            start = time.perf_counter()
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                forward(batch)
            synchronize(device)
            seconds += time.perf_counter() - start
    return seconds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=2048, help="side of the generated scene, px")
    parser.add_argument("--model", default="landscape-tiny", help="model folder, or the name of a shipped model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    device = resolve_device(options.device)
    trained = load_model(options.model)
    contract = trained.contract
    predictor = Predictor(trained, device)  # moves the network to the device
    normalize = Normalize(contract).to(device)
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder, "scene.tif"), Path(folder, "map.tif")
        bands = tuple(band.name for band in contract.bands)
        gsd_m = contract.gsd_m or 0.5
        write_landscape(Landscape(options.side, options.side, bands=bands, dtype=contract.dtype, gsd_m=gsd_m), path)
        rounds: list[tuple[float, float]] = []
        with Scene(path) as scene:
            plan = predictor.plan(scene, batch_size=options.batch_size)
            for _ in range(options.rounds + 1):
                bare = bare_seconds(trained.network, normalize, scene, plan, device)
                whole = predict(
                    [str(path)],
                    options.model,
                    output,
                    batch_size=options.batch_size,
                    device=options.device,
                    ignore_gsd=True,
                    overwrite=True,
                ).seconds
                rounds.append((bare, whole))
    megapixels = options.side**2 / 1e6
    print(f"{options.side} × {options.side} px, {plan}, batches of {plan.batch_size}")
    print(f"{contract.name} on {device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    # The first round warms caches and allocators.
    for bare, whole in rounds[1:]:
        print(
            f"bare {megapixels / bare:8.2f} Mpx/s   predict {megapixels / whole:8.2f} Mpx/s   ratio {bare / whole:.3f}"
        )
    print(f"predict / bare forward, median of throughput ratios: {statistics.median(b / w for b, w in rounds[1:]):.3f}")


if __name__ == "__main__":
    main()
