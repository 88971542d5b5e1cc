"""`predict` against the bare forward of the network over the same windows, and against two usual ways to map a scene.

    python tests/benchmarks/bench_predict.py --side 2048 --model landscape-tiny

Every way runs in a process of its own, all of them in each round; times are without imports and without loading the
model, peaks are of the whole process. All see the same windows, weights and scene. Seconds of all processors together
("CPU") compare better than seconds on the clock where a machine has other things to do; those of predict contain the
loading of the model.

bare, threads    the forward alone, one window after the other in batches, torch splitting each among all processors
bare, windows    the forward alone, as many windows at once as there are processors, each in a thread of its own
predict          GeoTIFF to class map: reading, normalising, forward, blending, upsampling, COG with overviews
in memory        as mmsegmentation's slide inference: full-resolution logits of the whole scene are summed, and counted
softmax          as geoai and pytorch-toolbelt: full-resolution softmax, tapered, is summed in numpy, with its weights

The bare forward ends with logits at full resolution (the network's own upsampling), as a plain loop over windows has
them; its input lies normalised in memory. The two rivals read the scene whole and write a plain compressed GeoTIFF.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.contract import find_model, load_contract
from geoseg.landscape import Landscape, write_landscape
from geoseg.network.model_folder import Normalize, load_model
from geoseg.prediction.predictor import Predictor
from geoseg.programs.predict import predict
from geoseg.runtime.machine import resolve_device
from geoseg.scene import Scene
from geoseg.tiling.plan import Plan
from geoseg.windows import Window

BATCH = {"cpu": 1, "cuda": 16}  # of the bare loop in torch's threads: on a CPU the fastest of 1, 2 and 4


Times = tuple[float, float]
"""Seconds on the clock, and seconds of all processors together."""


class Clock:
    """Time since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> Times:
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


class Setting:
    """What all ways share: network, windows, normalised input."""

    def __init__(self, scene: Path, model: str, device: torch.device) -> None:
        self.path, self.device = scene, device
        trained = load_model(model)
        self.network, self.normalize = trained.network, Normalize(trained.contract).to(device)
        self.network.to(device=device, memory_format=torch.channels_last)
        predictor = Predictor(trained, device)
        self.classes, self.stride = len(predictor.classes), predictor.stride
        with Scene(scene) as opened:
            self.plan: Plan = predictor.plan(opened)
        self.windows = [
            Window(r, c, self.plan.window_height, self.plan.window_width)
            for r in self.plan.rows
            for c in self.plan.cols
        ]

    def forward(self, x: Tensor) -> Tensor:
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"),
        ):
            out: Tensor = self.network(x)
        return out

    def inputs(self) -> list[Tensor]:
        """Normalised windows, each (1, B, h, w)."""
        with Scene(self.path) as scene:
            read = (scene.read(window, reflect_valid=True) for window in self.windows)
            return [
                self.normalize(torch.from_numpy(p[None]).to(self.device), torch.from_numpy(v[None]).to(self.device))
                for p, v in read
            ]

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def bare_threads(setting: Setting, output: Path) -> Times:
    inputs, size = setting.inputs(), BATCH[setting.device.type]
    batches = [torch.cat(inputs[i : i + size]) for i in range(0, len(inputs), size)]
    batches = [b.contiguous(memory_format=torch.channels_last) for b in batches]
    setting.forward(batches[0])
    setting.synchronize()
    clock = Clock()
    for batch in batches:
        setting.forward(batch)
    setting.synchronize()
    return clock.read()


def bare_windows(setting: Setting, output: Path) -> Times:
    inputs = setting.inputs()
    workers = setting.plan.batch_size
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:

        def forward(x: Tensor) -> None:
            setting.forward(x)

        list(pool.map(forward, inputs[:workers]))
        clock = Clock()
        list(pool.map(forward, inputs))
        return clock.read()


def whole(setting: Setting, output: Path, model: str) -> Times:
    # Compiled code comes from its cache at first use, like torch's own: on a scene of one window.
    with rasterio.open(setting.path) as scene:
        first = output.with_name("first.tif")
        profile = {**scene.profile, "height": 64, "width": 64, "blockxsize": 64, "blockysize": 64}
        with rasterio.open(first, "w", **profile) as small:
            small.write(scene.read(window=((0, 64), (0, 64))))
    options = {"device": str(setting.device), "ignore_gsd": True, "overwrite": True, "restart": True}
    predict(first, model, output, **options)
    clock = Clock()
    report = predict(setting.path, model, output, **options)
    print(" · ".join(f"{stage} {100 * share:.0f} %" for stage, share in report.shares.items()), file=sys.stderr)
    return report.seconds, clock.read()[1]


def in_memory(setting: Setting, output: Path) -> Times:
    """Slide inference in memory, after mmsegmentation's encoder_decoder.py (written anew); sums in place."""
    clock = Clock()
    x = read_whole(setting)
    logits = torch.zeros(1, setting.classes, *x.shape[2:], device=setting.device)
    counts = torch.zeros(1, 1, *x.shape[2:], device=setting.device)
    for w in setting.windows:
        rows, cols = slice(w.row, w.row_stop), slice(w.col, w.col_stop)
        logits[:, :, rows, cols] += setting.forward(x[:, :, rows, cols])
        counts[:, :, rows, cols] += 1
    logits /= counts
    ids = logits.argmax(1)[0, : setting.plan.height, : setting.plan.width]
    write_plain(setting, output, ids.to(torch.uint8).cpu().numpy())
    return clock.read()


def softmax_sum(setting: Setting, output: Path) -> Times:
    """Tapered probabilities at full resolution in numpy, after geoai and pytorch-toolbelt (written anew)."""
    clock = Clock()
    x = read_whole(setting)
    total = np.zeros((setting.classes, *x.shape[2:]), dtype=np.float32)
    weights = np.zeros(x.shape[2:], dtype=np.float32)
    height, width = setting.windows[0].height, setting.windows[0].width
    taper = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1]).astype(np.float32)
    for w in setting.windows:
        rows, cols = slice(w.row, w.row_stop), slice(w.col, w.col_stop)
        shares = F.softmax(setting.forward(x[:, :, rows, cols]).float(), dim=1)[0].cpu().numpy()
        total[:, rows, cols] += shares * taper
        weights[rows, cols] += taper
    total /= weights
    ids = total.argmax(0)[: setting.plan.height, : setting.plan.width]
    write_plain(setting, output, ids.astype(np.uint8))
    return clock.read()


def read_whole(setting: Setting) -> Tensor:
    """The padded scene, normalised (1, B, H, W)."""
    with Scene(setting.path) as scene:
        window = Window(0, 0, setting.plan.padded_height, setting.plan.padded_width)
        pixels, valid = scene.read(window, reflect_valid=True)
    x: Tensor = setting.normalize(
        torch.from_numpy(pixels[None]).to(setting.device), torch.from_numpy(valid[None]).to(setting.device)
    )
    return x


def write_plain(setting: Setting, output: Path, ids: np.ndarray) -> None:
    with rasterio.open(setting.path) as scene:
        profile = {**scene.profile, "count": 1, "dtype": "uint8", "nodata": 255, "compress": "deflate"}
        profile.pop("photometric", None)
    with rasterio.open(output, "w", **profile) as file:
        file.write(ids, 1)


WAYS = ("bare, threads", "bare, windows", "predict", "in memory", "softmax")


def run_one(way: str, scene: Path, model: str, device: torch.device) -> None:
    """One way once, its seconds and peak as JSON on standard output."""
    setting = Setting(scene, model, device)
    output = scene.with_name("map.tif")
    functions: dict[str, Callable[[Setting, Path], Times]] = {
        "bare, threads": bare_threads,
        "bare, windows": bare_windows if device.type == "cpu" else bare_threads,
        "predict": lambda s, o: whole(s, o, model),
        "in memory": in_memory,
        "softmax": softmax_sum,
    }
    # One forward, so that no way pays for what torch does only once.
    first = setting.windows[0]
    setting.forward(torch.zeros(1, len(setting.normalize.mean.flatten()), first.height, first.width, device=device))
    seconds, cpu = functions[way](setting, output)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak, "plan": str(setting.plan)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=2048, help="side of the generated scene, px")
    parser.add_argument("--model", default="landscape-tiny", help="model folder, or the name of a shipped model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "SCENE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = resolve_device(options.device)
    if options.one:
        run_one(options.one[0], Path(options.one[1]), options.model, device)
        return

    contract = load_contract(find_model(options.model))
    found: dict[str, list[dict[str, float]]] = {way: [] for way in options.only}
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder, "scene.tif")
        bands = tuple(band.name for band in contract.bands)
        gsd_m = contract.gsd_m or 0.5
        write_landscape(Landscape(options.side, options.side, bands=bands, dtype=contract.dtype, gsd_m=gsd_m), scene)
        for _ in range(options.rounds):
            for way in options.only:
                command = [sys.executable, __file__, "--model", options.model, "--device", options.device]
                run = subprocess.run([*command, "--one", way, str(scene)], stdout=subprocess.PIPE, check=True)
                result = json.loads(run.stdout.splitlines()[-1])
                found[way].append(result)
    megapixels = options.side**2 / 1e6
    print(
        f"{options.side} × {options.side} px, {result['plan']}; {options.model} on {device}, torch {torch.__version__}"
    )
    for way, runs in found.items():
        wall, cpu, peak = (statistics.median(run[key] for run in runs) for key in ("seconds", "cpu", "peak"))
        print(
            f"{way:14} {megapixels / wall:7.2f} Mpx/s  {wall:7.2f} s  {cpu:7.2f} s CPU   peak {peak / 2**20:6.0f} MiB"
        )
    for way in [way for way in found if "predict" in found and way != "predict"]:
        for key, name in (("seconds", "clock"), ("cpu", "CPU")):
            ratios = [w[key] / p[key] for w, p in zip(found[way], found["predict"], strict=True)]
            print(
                f"{way} / predict, {name:5}: median {statistics.median(ratios):.3f}, "
                + " ".join(f"{r:.3f}" for r in ratios)
            )


if __name__ == "__main__":
    main()
