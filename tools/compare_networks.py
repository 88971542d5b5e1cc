"""Train several networks with the same budget on small real data sets; print IoU per class as Markdown.

python tools/compare_networks.py runs/compare --data FOLDER --sets buildings --iterations 2500 --seeds 0 1

Every network starts from random weights, except the one that ``--lite0`` adds (see tools/imagenet_lite0.py). In the
table at equal pixels all see the same windows in the same order. In the table at equal time each trains for the
iterations that fit in the CPU time of the first network. The learning rate of each network is chosen from three by
short runs on a part of the training ground; the validation scenes are mapped once, after the last iteration.

Each training and evaluation is a geoseg command, which is printed so that it can be repeated. Finished ones are not
repeated, and an interrupted training resumes from its last checkpoint: stop and start this program at will.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from geoseg.config import TrainConfig, load_config, save_config
from geoseg.config.settings import DataConfig, SplitConfig
from geoseg.network.model_folder import load_model

ROOT = Path(__file__).resolve().parents[1]

NETWORKS: dict[str, tuple[str, str]] = {
    "SegNeXt-T": ("segnext", "tu-mscan_tiny"),
    "SegNeXt-S": ("segnext", "tu-mscan_small"),
    "Unet, ResNet-34": ("unet", "resnet34"),
    "Segformer, MiT-B0": ("segformer", "mit_b0"),
}
LITE0 = "Unet, Lite0 (ImageNet)"

SETS = {
    "buildings": ("buildings-small", "hot_buildings"),
    "trees": ("trees-naip-tiny", "naip_trees"),
    "dubai": ("dubai-small", "mbrsc_dubai"),
}
"""Configuration and data folder of each set."""

RATES = (3e-4, 1e-3, 3e-3)
"""Learning rates to choose from."""

MANY_SCENES = 10
"""With so many training scenes, every fifth one chooses the learning rate; otherwise blocks of the scenes do."""


@dataclass(frozen=True, slots=True)
class Row:
    """One network in one table: IoU of each class and their mean in percent, a list with a value per seed."""

    network: str
    parameters: int
    rate: float
    iterations: int
    cpu_minutes: float | None
    ious: dict[str, list[float]]


class Comparison:
    """The runs of one data set."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        config, folder = SETS[name]
        self.name, self.options = name, options
        self.folder: Path = options.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        root = [f"data.root={options.data / folder}"] if options.data is not None else []
        self.config = load_config(ROOT / "configs" / f"{config}.yaml", root)
        self.final = self._saved("final.yaml", self.config.data)
        self.choice = self._saved("choice.yaml", training_ground(self.config))

    def table(self, budget: str) -> str:
        """The Markdown table at equal "pixels" or equal "time"."""
        rows = [self.row(network, budget) for network in self.options.networks]
        best = {key: max(statistics.mean(row.ious[key]) for row in rows) for key in rows[0].ious}
        lines = [
            f"| {self.name}, equal {budget} | parameters, M | learning rate | iterations | CPU, min | "
            + " | ".join(best)
            + " |",
            "|---|" + "---|" * (len(best) + 4),
        ]
        for row in rows:
            minutes = "–" if row.cpu_minutes is None else f"{row.cpu_minutes:.0f}"
            cells = [cell(values, best[key]) for key, values in row.ious.items()]
            start = f"| {row.network} | {row.parameters / 1e6:.1f} | {row.rate:g} | {row.iterations:,} | {minutes} | "
            lines.append(start + " | ".join(cells) + " |")
        return "\n".join(lines)

    def row(self, network: str, budget: str) -> Row:
        """Train and evaluate what is not finished."""
        rate = self.rate(network)
        iterations = self.options.iterations
        if budget == "time":
            first = self.options.networks[0]
            iterations = round(iterations * self.seconds(first) / self.seconds(network))
        runs = [self.train(network, rate, iterations, seed, choose=False) for seed in self.options.seeds]
        scores = [self.scores(run) for run in runs]
        ious = {name: [100 * (s["classes"][name]["iou"] or 0) for s in scores] for name in scores[0]["classes"]}
        ious["mIoU"] = [100 * s["miou"] for s in scores]
        parameters = sum(p.numel() for p in load_model(runs[0] / "model").network.parameters())
        spent = [cpu_seconds(run) for run in runs]
        known = [s for s in spent if s is not None]
        return Row(network, parameters, rate, iterations, statistics.mean(known) / 60 if known else None, ious)

    def rate(self, network: str) -> float:
        """The learning rate with the best mIoU on the part of the training ground that was held back."""
        runs = {rate: self.train(network, rate, self.options.choose, 0, choose=True) for rate in RATES}
        return max(runs, key=lambda rate: load_model(runs[rate] / "model").contract.training["val_miou"])

    def seconds(self, network: str) -> float:
        """CPU time of an iteration, s: of the fastest of the short runs, which share the machine with others."""
        runs = [self.train(network, rate, self.options.choose, 0, choose=True) for rate in RATES]
        known = [seconds for run in runs if (seconds := cpu_seconds(run)) is not None]
        if not known:
            raise SystemExit(f"every short run of {network} was interrupted: remove one from {self.folder} and repeat")
        return min(known) / self.options.choose

    def train(self, network: str, rate: float, iterations: int, seed: int, *, choose: bool) -> Path:
        """The run folder of a finished training."""
        slug = network.lower().replace(", ", "-").replace(" ", "-").strip("()").replace("(", "")
        run = self.folder / f"{'choice' if choose else 'final'}-{slug}-{rate:g}-{iterations}-seed{seed}"
        if (done := run.with_name(f"{run.name}.cpu.json")).exists():
            return run
        architecture, encoder = NETWORKS.get(network, ("unet", "tu-tf_efficientnet_lite0"))
        begun = run.exists() and any((run / "checkpoints").glob("last*"))
        before = children_seconds()
        geoseg(
            "train",
            str(self.choice if choose else self.final),
            f"output={run}",
            f"model.architecture={architecture}",
            f"model.encoder={encoder}",
            *([f"model.start_from={self.options.lite0}"] if network == LITE0 else []),
            f"train.learning_rate={rate}",
            f"train.iterations={iterations}",
            f"train.val_every={iterations}",
            f"train.warmup_iterations={max(1, iterations // 20)}",
            f"seed={seed}",
            *self.options.overrides,
            *(["--resume"] if begun else ["--overwrite"] if run.exists() else []),
            f"--device={self.options.device}",
        )
        done.write_text(json.dumps(None if begun else children_seconds() - before))
        return run

    def scores(self, run: Path) -> dict:
        """What ``geoseg evaluate`` says of all validation scenes together."""
        folder = run.with_name(f"{run.name}-evaluation")
        if not (folder / "scores.json").exists():
            command = ["evaluate", str(run / "model"), str(self.final), "-o", str(folder), "--overwrite"]
            geoseg(*command, f"--device={self.options.device}")
        found: dict = json.loads((folder / "scores.json").read_text("utf-8"))["all"]
        return found

    def _saved(self, name: str, data: DataConfig) -> Path:
        train = self.config.train.model_copy(
            update={"batch_size": self.options.batch, "size": self.options.size, "precision": self.options.precision}
        )
        path = self.folder / name
        save_config(self.config.model_copy(update={"data": data, "train": train}), path)
        return path


def training_ground(config: TrainConfig) -> DataConfig:
    """The training scenes alone, cut into a part to train on and a part to choose the learning rate on."""
    scenes = config.data.train
    if len(scenes) < MANY_SCENES:
        cut = {"train": (), "val": (), "scenes": scenes, "split": SplitConfig()}
    else:
        cut = {"train": tuple(s for i, s in enumerate(scenes) if i % 5), "val": scenes[::5], "leakage": "warn"}
    return config.data.model_copy(update=cut)


def cpu_seconds(run: Path) -> float | None:
    """CPU time of a training, s; None if it was interrupted."""
    seconds: float | None = json.loads(run.with_name(f"{run.name}.cpu.json").read_text())
    return seconds


def children_seconds() -> float:
    """CPU time of all ended child processes, s."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cell(values: list[float], best: float) -> str:
    """Mean and half the range of several seeds; the best mean of a column in bold."""
    mean = statistics.mean(values)
    text = f"**{mean:.1f}**" if mean == best else f"{mean:.1f}"
    return text if len(values) == 1 else f"{text} ± {(max(values) - min(values)) / 2:.1f}"


def geoseg(*arguments: str) -> None:
    """Print a geoseg command and run it from the repository's folder."""
    print(shlex.join(["geoseg", *arguments]), file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "geoseg", "-q", *arguments], cwd=ROOT, stdout=sys.stderr, check=True)


def main(options: argparse.Namespace) -> None:
    """Print the tables, and write each to ``FOLDER/SET-BUDGET.md``."""
    for name in options.sets:
        comparison = Comparison(name, options)
        for budget in options.budgets:
            table = comparison.table(budget)
            (options.folder / f"{name}-{budget}.md").write_text(table + "\n", encoding="utf-8")
            print(table, end="\n\n", flush=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=lambda text: Path(text).resolve(), help="where runs and tables go")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every training")
    parser.add_argument("--iterations", type=int, default=2500, help="of each network at equal pixels")
    parser.add_argument("--choose", type=int, default=400, help="iterations of the runs that choose a learning rate")
    parser.add_argument("--batch", type=int, default=4, help="windows per iteration")
    parser.add_argument("--size", type=int, default=256, help="side of a window, px")
    parser.add_argument("--precision", default="bf16-mixed", help="as train.precision")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), help="folder that holds the sets")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["buildings", "trees"], metavar="SET")
    parser.add_argument("--budgets", nargs="+", choices=["pixels", "time"], default=["pixels", "time"])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--lite0", type=lambda text: Path(text).resolve(), help="model folder of imagenet_lite0.py")
    options = parser.parse_intermixed_args(arguments)
    if options.lite0 is not None:
        options.networks.append(LITE0)
    return options


if __name__ == "__main__":
    main(parse())
