"""How many rounds of the decoder's factorization matter, and how much its fixed bases do.

The tables are in docs/explanation/nmf.md.

    python tests/benchmarks/bench_nmf.py

Both shipped models map windows without overlap, `buildings-tiny` of real imagery and `landscape-tiny` of a generated
landscape. Encoder features are computed once, everything after them for each number of rounds. Printed for each: the
share of pixels whose class is not that of 7 rounds with the shipped bases, mIoU, the relative error of the low-rank
reconstruction, and the processor time of a whole forward on one thread over that with 7 rounds. Below, other bases in
place of the shipped ones. Without the real imagery its tables are left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from rasterio.windows import Window as Crop
from torch import Tensor

from geoseg.landscape import Landscape
from geoseg.models.hamburger import EVAL_STEPS
from geoseg.network.folding import FoldedSegNeXt, deployed
from geoseg.network.metrics import Scores, confusion_matrix
from geoseg.network.model_folder import Normalize, load_model
from geoseg.network.stored_model import StoredModel
from geoseg.windows import Window

STEPS = (0, 1, 2, 3, 4, 5, 6, 7, 10, 20)
LANDSCAPE_SEED = 2026
"""The demo's scene, which the model was not trained on."""

Sample = tuple[Tensor, Tensor]
"""Pixels (B, H, W) and class ids (H, W) of a window."""


@dataclass(frozen=True)
class Coded:
    """A window after everything that does not depend on the factorization.

    Attributes:
        squeezed: (1, D, H/8, W/8) what the Hamburger reads.
        labels: (H, W) class ids.
    """

    squeezed: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Mapped:
    """All windows mapped with one factorization.

    Attributes:
        classes: A class map (H, W) for each window.
        miou: Of all windows together.
        error: |X - C Wᵀ| / |X| over all windows.
    """

    classes: list[Tensor]
    miou: float
    error: float


def imagery(count: int, size: int) -> list[Sample]:
    """Windows spread over each validation orthophoto; none where the imagery is missing."""
    data = Path(os.environ.get("GEOSEG_DATA") or Path(__file__).parents[3] / "shared" / "data")
    samples = []
    for image in sorted((data / "hot_buildings" / "val" / "images").glob("*.tif")):
        with rasterio.open(image) as scene, rasterio.open(image.parents[1] / "masks" / image.name) as mask:
            places = [
                (row, col)
                for row in range(0, scene.height - size + 1, size)
                for col in range(0, scene.width - size + 1, size)
            ]
            for i in np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int):
                crop = Crop(places[i][1], places[i][0], size, size)
                samples.append((torch.from_numpy(scene.read(window=crop)), torch.from_numpy(mask.read(1, window=crop))))
    return samples


def generated(model: StoredModel, count: int, size: int) -> list[Sample]:
    """Windows of a landscape, row by row."""
    columns = -(-count // 2)
    landscape = Landscape(2 * size, columns * size, seed=LANDSCAPE_SEED, gsd_m=model.contract.gsd_m or 0.5)
    windows = [Window(size * (i % 2), size * (i // 2), size, size) for i in range(count)]
    return [(torch.from_numpy(pixels), torch.from_numpy(labels)) for pixels, labels in map(landscape.read, windows)]


def folded(model: StoredModel) -> FoldedSegNeXt:
    network = deployed(model.network)
    assert isinstance(network, FoldedSegNeXt)
    return network


@torch.inference_mode()
def coded(network: FoldedSegNeXt, normalize: Normalize, samples: Sequence[Sample]) -> list[Coded]:
    seen: list[Tensor] = []
    hook = network.decoder.ham_in.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    for pixels, _ in samples:
        network.forward_logits(normalize(pixels[None]))
    hook.remove()
    return [Coded(squeezed, labels) for squeezed, (_, labels) in zip(seen, samples, strict=True)]


@torch.inference_mode()
def mapped(network: FoldedSegNeXt, windows: Sequence[Coded], classes: int) -> Mapped:
    """Class maps with the steps and bases that the decoder has."""
    decoder = network.decoder
    maps, confusion, missed, total = [], torch.zeros(classes, classes, dtype=torch.int64), 0.0, 0.0
    for window in windows:
        x = window.squeezed
        inner = F.relu(decoder.ham_in(x)).permute(0, 2, 3, 1).flatten(1, 2)
        codes, bases = decoder.factorize(inner)
        missed += float((inner - codes @ bases.mT).square().sum(dtype=torch.float64))
        total += float(inner.square().sum(dtype=torch.float64))
        logits = decoder.classifier(F.relu(decoder.align_norm(decoder.align(decoder.hamburger(x)))))
        size = window.labels.shape
        ids = F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)[0]
        confusion += confusion_matrix(window.labels, ids, classes)
        maps.append(ids)
    return Mapped(maps, Scores(confusion.numpy()).miou, (missed / total) ** 0.5)


def share(found: Mapped, wanted: Mapped) -> float:
    """Pixels of another class."""
    different = [(a != b).float().mean().item() for a, b in zip(found.classes, wanted.classes, strict=True)]
    return statistics.mean(different)


@torch.inference_mode()
def times(network: FoldedSegNeXt, x: Tensor, rounds: int) -> dict[int, float]:
    """Processor time of a forward on one thread for each number of steps, s: medians over interleaved rounds."""
    forward = network.forward_logits
    seconds: dict[int, list[float]] = {steps: [] for steps in STEPS}
    forward(x)
    for _ in range(rounds):
        for steps in STEPS:
            network.decoder.steps = steps
            begin = time.thread_time()
            forward(x)
            seconds[steps].append(time.thread_time() - begin)
    network.decoder.steps = EVAL_STEPS
    return {steps: statistics.median(values) for steps, values in seconds.items()}


def drawn(network: FoldedSegNeXt, seed: int) -> Tensor:
    """Other bases, drawn as the shipped ones are."""
    shipped = network.decoder.bases
    values = torch.rand(shipped.shape, generator=torch.Generator().manual_seed(seed))
    return F.normalize(values, dim=1)


def report(name: str, samples: Sequence[Sample], seeds: Sequence[int], rounds: int) -> None:
    """Both tables of one model."""
    model = load_model(name)
    network, normalize, classes = folded(model), Normalize(model.contract), len(model.contract.classes)
    decoder = network.decoder
    shipped = decoder.bases.clone()
    windows = coded(network, normalize, samples)
    seconds = times(network, normalize(samples[0][0][None]), rounds)
    slope, start = np.polyfit(STEPS, list(seconds.values()), 1)
    seven = start + EVAL_STEPS * slope
    size = samples[0][1].shape[0]
    print(f"\n{name}, {len(samples)} windows of {size} × {size} px\n")

    wanted = mapped(network, windows, classes)
    print("| steps | pixels that differ | mIoU | error of the reconstruction | time |")
    print("|---|---|---|---|---|")
    for steps in STEPS:
        decoder.steps = steps
        found = mapped(network, windows, classes)
        print(
            f"| {steps} | {100 * share(found, wanted):.3f} % | {found.miou:.4f} | {found.error:.4f} "
            f"| {seconds[steps] / seven:.3f} |",
            flush=True,
        )
    print(f"\nOne step takes {100 * slope / seven:.2f} % of a forward with {EVAL_STEPS} (least squares on all).")
    print("\n| bases | steps | pixels that differ | mIoU | error of the reconstruction |")
    print("|---|---|---|---|---|")
    for steps in (3, EVAL_STEPS, 20):
        decoder.steps = steps
        others = []
        for seed in seeds:
            decoder.bases.copy_(drawn(network, seed))
            others.append(mapped(network, windows, classes))
        decoder.bases.copy_(shipped)
        # Of the shipped bases with as many steps, so that it is the bases alone that differ.
        own = mapped(network, windows, classes)
        columns = ([100 * share(o, own) for o in others], [o.miou for o in others], [o.error for o in others])
        different, miou, error = (f"{min(c):.3f} – {max(c):.3f}" for c in columns)
        print(f"| {len(seeds)} other seeds | {steps} | {different} % | {miou} | {error} |", flush=True)
    decoder.steps = EVAL_STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=6, help="windows of each scene")
    parser.add_argument("--size", type=int, default=512, help="side of a window, px")
    parser.add_argument("--seeds", type=int, default=5, help="other bases")
    parser.add_argument("--rounds", type=int, default=15, help="repetitions of each timed forward")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(1, options.seeds + 1)
    real = imagery(options.windows, options.size)
    if real:
        report("buildings-tiny", real, seeds, options.rounds)
    else:
        print("no real imagery: set GEOSEG_DATA to its folder")
    landscape = generated(load_model("landscape-tiny"), 2 * options.windows, options.size)
    report("landscape-tiny", landscape, seeds, options.rounds)


if __name__ == "__main__":
    main()
