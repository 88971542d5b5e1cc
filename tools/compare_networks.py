"""Train several networks with the same budget on the two small real data sets; print IoU per class as Markdown.

python tools/compare_networks.py runs/compare --iterations 400 --batch 4 --size 256

Every network starts from random weights and sees the same windows in the same order. Each training and evaluation is a
geoseg command, which is printed so that it can be repeated. Finished ones are not repeated, and an interrupted training
resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geoseg.network.model_folder import load_model

ROOT = Path(__file__).resolve().parents[1]

NETWORKS: dict[str, dict[str, str]] = {
    "SegNeXt-T": {"architecture": "segnext", "encoder": "tu-mscan_tiny"},
    "SegNeXt-S": {"architecture": "segnext", "encoder": "tu-mscan_small"},
    "Unet, ResNet-34": {"architecture": "unet", "encoder": "resnet34"},
    "Segformer, MiT-B0": {"architecture": "segformer", "encoder": "mit_b0"},
}

SETS = {"buildings": "hot_buildings", "dubai": "mbrsc_dubai"}
"""Names of configurations ``configs/NAME-small.yaml``, and the folders of their data."""


@dataclass(frozen=True, slots=True)
class Result:
    """One network on one set.

    Attributes:
        parameters: Number of parameters.
        seconds: Time of the training including validations; NaN if it was resumed.
        scores: What ``geoseg evaluate`` wrote for all scenes together.
    """

    parameters: int
    seconds: float
    scores: dict[str, Any]


def compare(options: argparse.Namespace) -> str:
    """Train and evaluate what is not finished; return the tables as Markdown."""
    tables = []
    for name in options.sets:
        results = {network: measure(name, network, options) for network in options.networks}
        tables.append(table(name, results))
        (options.folder / f"{name}.md").write_text(tables[-1] + "\n", encoding="utf-8")
    return "\n\n".join(tables)


def measure(name: str, network: str, options: argparse.Namespace) -> Result:
    """The result of one network on one data set; trained and evaluated if it is not yet."""
    slug = network.lower().replace(", ", "-").replace(" ", "-")
    run = options.folder / f"{name}-{slug}-{options.iterations}x{options.batch}x{options.size}-seed{options.seed}"
    evaluation, took = run.with_name(f"{run.name}-evaluation"), run.with_name(f"{run.name}-seconds.txt")
    config = [f"configs/{name}-small.yaml"]
    if options.data is not None:
        config.append(f"data.root={options.data / SETS[name]}")
    if not (run / "model").exists():
        begun = any((run / "checkpoints").glob("*.ckpt")) if run.exists() else False
        start = time.monotonic()
        geoseg(
            "train",
            *config,
            f"output={run}",
            *(f"model.{key}={value}" for key, value in NETWORKS[network].items()),
            f"train.iterations={options.iterations}",
            f"train.batch_size={options.batch}",
            f"train.size={options.size}",
            f"train.val_every={options.val_every or options.iterations}",
            f"seed={options.seed}",
            *options.overrides,
            *(["--resume"] if begun else ["--overwrite"] if run.exists() else []),
            f"--device={options.device}",
        )
        took.write_text("nan" if begun else f"{time.monotonic() - start:.0f}", encoding="utf-8")
    if not (evaluation / "scores.json").exists():
        command = ["evaluate", str(run / "model"), *config, "-o", str(evaluation), "--overwrite"]
        geoseg(*command, f"--device={options.device}")
    scores = json.loads((evaluation / "scores.json").read_text(encoding="utf-8"))["all"]
    parameters = sum(p.numel() for p in load_model(run / "model").network.parameters())
    return Result(parameters, float(took.read_text(encoding="utf-8")), scores)


def geoseg(*arguments: str) -> None:
    """Print a geoseg command and run it from the repository's folder."""
    print(shlex.join(["geoseg", *arguments]), file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "geoseg", "-q", *arguments], cwd=ROOT, stdout=sys.stderr, check=True)


def table(name: str, results: dict[str, Result]) -> str:
    """IoU per class in percent, the best of each column in bold."""
    classes = list(next(iter(results.values())).scores["classes"])
    rows = {}
    for network, result in results.items():
        ious = [result.scores["classes"][c]["iou"] for c in classes]
        rows[network] = [100 * (value or 0.0) for value in (*ious, result.scores["miou"])]
    best = [max(column) for column in zip(*rows.values(), strict=True)]
    lines = [
        f"| {name} | parameters, M | {' | '.join(classes)} | mIoU | training, min |",
        "|---|" + "---|" * (len(classes) + 3),
    ]
    for network, values in rows.items():
        result = results[network]
        cells = [f"**{v:.1f}**" if v == top else f"{v:.1f}" for v, top in zip(values, best, strict=True)]
        minutes = "–" if result.seconds != result.seconds else f"{result.seconds / 60:.1f}"
        lines.append(f"| {network} | {result.parameters / 1e6:.1f} | {' | '.join(cells)} | {minutes} |")
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=lambda text: Path(text).resolve(), help="where runs and tables go")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every training")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--batch", type=int, default=4, help="windows per iteration")
    parser.add_argument("--size", type=int, default=256, help="side of a window, px")
    parser.add_argument("--val-every", type=int, help="iterations between validations; the last one alone by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), help="folder that holds both sets")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK")
    options = parser.parse_intermixed_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    print(compare(parse()))
