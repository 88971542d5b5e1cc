"""Training windows per second, by layout of the file, against rasterio alone and against opening for every read.

    python tests/benchmarks/bench_input.py --side 4096 --windows 80

A generated landscape is written four ways (tiles of 256 px zstd and deflate, strips, tiles of JPEG), with its labels
as tiles of zstd. Windows of 512 px are read from random places of each:

plain       rasterio alone: both files stay open, pixels and labels of a window, nothing else
reopened    the same with both files opened for every window, as torchgeo's data sets do without their cache
ours        `RandomWindows` as `geoseg train` has them, zoom and changes left out: labels, pixels, validity, tensors,
            and batches of 8 from a DataLoader of 0, 1 and 2 workers; from any place ("random") and from the file's
            blocks ("aligned")

All ways run in each round, in turn, with the same limit of GDAL's cache, small against the scene, as scenes are large
against any cache. Ratios are to "plain" from the same file in the same round: once of the windows per second, with the
start of the workers, and once of the work of all processes together, which compares better on a machine that has other
things to do.

Then a table of the stages of one window with the default changes and zooms from 0.5 to 2, and, where there is a GPU,
the share of a training step of SegNeXt-T (bf16, batch of 16) that waits for data.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.windows import Window as RasterWindow
from torch.utils.data import DataLoader, default_collate

from geoseg.classes import format_color
from geoseg.config import TrainConfig, parse_config
from geoseg.contract import Band, ClassEntry, Contract
from geoseg.data.labelled import LabelledScene
from geoseg.data.windows import RandomWindows
from geoseg.landscape import LANDSCAPE_CLASSES, Landscape
from geoseg.network.losses import cross_entropy
from geoseg.network.model_folder import Normalize, build_network
from geoseg.windows import Window

SIZE, BATCH, GPU_BATCH = 512, 8, 16
Times = tuple[float, float]
"""Seconds on the clock and of work, for a window."""

CACHE_MB = 4

TILES = {"tiled": True, "blockxsize": 256, "blockysize": 256}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tiled zstd": {**TILES, "compress": "zstd", "predictor": 2},
    "tiled deflate": {**TILES, "compress": "deflate", "predictor": 2},
    "striped deflate": {"compress": "deflate", "predictor": 2},
    "tiled JPEG": {**TILES, "compress": "jpeg", "photometric": "ycbcr"},
}
STILL = {"scale": [1, 1], "dihedral": False, "brightness": 0, "contrast": 0, "hue": 0, "saturation": 0}


def write_scenes(folder: Path, side: int) -> dict[str, tuple[Path, Path]]:
    """The same ground in every layout, and the labels of each."""
    landscape = Landscape(side, side, seed=1)
    rows = [landscape.read(Window(r, 0, min(SIZE, side - r), side)) for r in range(0, side, SIZE)]
    pixels, ids = (np.concatenate(parts, axis=-2) for parts in zip(*rows, strict=True))
    grid = landscape.grid
    common = {"driver": "GTiff", "height": side, "width": side, "crs": grid.crs, "transform": grid.transform}
    files = {}
    for name, layout in LAYOUTS.items():
        scene, labels = (folder / f"{name.replace(' ', '_')}{end}.tif" for end in ("", "_labels"))
        kind = {"interleave": "pixel", **common, **layout}
        with rasterio.open(scene, "w", count=len(pixels), dtype=pixels.dtype, **kind) as file:
            file.write(pixels)
        with rasterio.open(labels, "w", count=1, dtype="uint8", compress="zstd", **TILES, **common) as file:
            file.write(ids, 1)
        files[name] = scene, labels
    return files


def experiment(scene: Path, labels: Path, *, augment: dict[str, Any] | None = None, **train: Any) -> TrainConfig:
    entry = [{"scene": str(scene), "labels": str(labels)}]
    return parse_config(
        {
            "name": "input",
            "output": "run",
            "classes": [{"name": c.name, "color": format_color(c.color)} for c in LANDSCAPE_CLASSES],
            "data": {"train": entry, "val": entry},
            "augment": augment or {},
            "train": {"size": SIZE, "cache_mb": CACHE_MB, **train},
        },
        source="bench_input",
    )


def random_windows(side: int, count: int, seed: int) -> Iterator[RasterWindow]:
    rng = np.random.default_rng(seed)
    for row, col in rng.integers(0, side - SIZE + 1, (count, 2)).tolist():
        yield RasterWindow(col, row, SIZE, SIZE)


class Clock:
    """Time since it was made, and work of this process and of those it has waited for."""

    def __init__(self) -> None:
        self._start, self._work = time.perf_counter(), self._seconds()

    @staticmethod
    def _seconds() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in used)

    def per_window(self, count: int) -> Times:
        return (time.perf_counter() - self._start) / count, (self._seconds() - self._work) / count


def plain(scene: Path, labels: Path, side: int, count: int, seed: int) -> Times:
    with rasterio.open(scene) as pixels, rasterio.open(labels) as ids:
        clock = Clock()
        for window in random_windows(side, count, seed):
            pixels.read(window=window), ids.read(1, window=window)
        return clock.per_window(count)


def reopened(scene: Path, labels: Path, side: int, count: int, seed: int) -> Times:
    clock = Clock()
    for window in random_windows(side, count, seed):
        for path in scene, labels:
            with rasterio.open(path) as file:
                file.read(window=window)
    return clock.per_window(count)


def ours(scene: Path, labels: Path, count: int, seed: int, *, workers: int, aligned: bool) -> Times:
    config = experiment(scene, labels, augment=STILL, max_class_share=1.0, align_blocks=aligned)
    config = config.model_copy(update={"seed": seed})
    windows = RandomWindows([LabelledScene(config.data.train[0], config)], config, length=count, as_bytes=True)
    clock, batches = Clock(), iter(DataLoader(windows, batch_size=BATCH, num_workers=workers))
    seen = sum(len(batch["index"]) for batch in batches)
    del batches  # which ends the workers, and their work is known
    return clock.per_window(seen)


def compare(files: dict[str, tuple[Path, Path]], side: int, count: int, rounds: int, workers: list[int]) -> None:
    for name, (scene, labels) in files.items():
        ways: dict[str, Callable[[int], Times]] = {
            "plain": lambda seed, s=scene, t=labels: plain(s, t, side, count, seed),
            "reopened": lambda seed, s=scene, t=labels: reopened(s, t, side, count, seed),
        }
        for aligned in (False, True):
            for n in workers:
                ways[f"ours, {'aligned' if aligned else 'random'}, {n} workers"] = (
                    lambda seed, s=scene, t=labels, n=n, a=aligned: ours(s, t, count, seed, workers=n, aligned=a)
                )
        times: dict[str, list[Times]] = {way: [] for way in ways}
        for seed in range(rounds):
            for way, run in ways.items():
                times[way].append(run(seed))
        print(f"{name}, {scene.stat().st_size / 1e6:.1f} MB")
        for way, found in times.items():
            on_clock, work = (statistics.median(t) for t in zip(*found, strict=True))
            ratios = [
                statistics.median(p[i] / f[i] for f, p in zip(found, times["plain"], strict=True)) for i in (0, 1)
            ]
            print(
                f"  {way:28} {1 / on_clock:7.1f} windows/s  {ratios[0]:5.2f} × plain;"
                f"  {1e3 * work:6.2f} ms of work  {ratios[1]:5.2f} × plain",
                flush=True,
            )


def stages(scene: Path, labels: Path, count: int) -> None:
    """Where the time of one window goes, in one process: medians of its work, ms."""
    config = experiment(scene, labels)
    dataset = RandomWindows([LabelledScene(config.data.train[0], config)], config, length=count, as_bytes=True)
    times: dict[str, list[float]] = {s: [] for s in ("place and labels", "pixels", "changes", "tensors", "batch")}
    samples = []
    with dataset._reading():
        for i in range(count):
            rng, clock = dataset._rng(i), [time.process_time()]
            drawn, window, ids = dataset._sampler.draw(rng)
            clock.append(time.process_time())
            read = dataset.scenes[drawn].read(window, ids)
            clock.append(time.process_time())
            changed = dataset._augment(*read, seed=int(rng.integers(2**31)))
            clock.append(time.process_time())
            samples.append(dataset._sample(*changed, i))
            clock.append(time.process_time())
            for stage, seconds in zip(times, np.diff(clock), strict=False):
                times[stage].append(float(seconds))
            if len(samples) == BATCH:
                start = time.process_time()
                default_collate(samples)
                times["batch"].append((time.process_time() - start) / BATCH)
                samples = []
    total = sum(statistics.median(t) for t in times.values())
    print(f"stages of a window, {scene.stem}, default changes, zoom 0.5 … 2")
    for stage, seconds in times.items():
        median = statistics.median(seconds)
        print(f"  {stage:20} {1e3 * median:7.2f} ms  {median / total:4.0%}")


def waiting(scene: Path, labels: Path, steps: int, device: str) -> None:
    """Share of a training step that waits for windows; the first tenth of the steps starts workers and kernels."""
    workers = min(os.cpu_count() or 1, 16)
    config = experiment(scene, labels, batch_size=GPU_BATCH, workers=workers)
    scenes, length = [LabelledScene(config.data.train[0], config)], steps * GPU_BATCH
    dataset = RandomWindows(scenes, config, length=length, as_bytes=True)
    loader = DataLoader(dataset, batch_size=GPU_BATCH, num_workers=workers, pin_memory=device == "cuda")
    contract = Contract(
        name="input",
        bands=tuple(Band(name=n, mean=0.4, std=0.2) for n in config.imagery.bands),
        dtype="uint8",
        scale=1.0,
        classes=tuple(ClassEntry(name=c.name, color=format_color(c.color)) for c in LANDSCAPE_CLASSES),
    )
    network = build_network(
        "segnext", "tu-mscan_tiny", encoder_weights=None, in_channels=3, classes=len(LANDSCAPE_CLASSES)
    )
    network, normalize = network.to(device).train(), Normalize(contract).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=6e-5)
    waited, worked = [], []
    clock = time.perf_counter()
    for batch in loader:
        arrived = time.perf_counter()
        pixels, valid, ids = (batch[k].to(device, non_blocking=True) for k in ("pixels", "valid", "labels"))
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = cross_entropy(network(normalize(pixels / 255, valid)), ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        done = time.perf_counter()
        waited.append(arrived - clock)
        worked.append(done - arrived)
        clock = done
    waited, worked = waited[steps // 10 :], worked[steps // 10 :]
    share = sum(waited) / (sum(waited) + sum(worked))
    name = torch.cuda.get_device_name() if device == "cuda" else device
    print(f"{name}, {workers} workers, {GPU_BATCH} windows of {SIZE} px a step")
    print(f"  step {1e3 * statistics.median(worked):.1f} ms, waiting {share:.1%} of the time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4096, help="side of the scene, px")
    parser.add_argument("--windows", type=int, default=80, help="windows for each rate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100, help="training steps of the last part")
    parser.add_argument("--device", help="of the last part; without a GPU it is left out unless cpu is asked for")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, rasterio.Env(GDAL_CACHEMAX=CACHE_MB << 20):
        files = write_scenes(Path(folder), options.side)
        if options.rounds:
            compare(files, options.side, options.windows, options.rounds, options.workers)
        for name in "tiled zstd", "tiled JPEG":
            stages(*files[name], options.windows)
        if options.device or torch.cuda.is_available():
            waiting(*files["tiled zstd"], options.steps, options.device or "cuda")
        else:
            print("no GPU: the share of a step that waits for data is not measured")


if __name__ == "__main__":
    main()
