"""The whole path on a generated landscape: the program behind ``geoseg demo``."""

import dataclasses
import logging
import shlex
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import geopandas
from affine import Affine

from geoseg.class_map import read_class_map
from geoseg.classes import format_color
from geoseg.config import TrainConfig, parse_config
from geoseg.export.overlay import write_overlay
from geoseg.files import make_folder
from geoseg.landscape import LANDSCAPE_CLASSES, Landscape, write_landscape
from geoseg.network.metrics import Scores, count_pixels
from geoseg.options import DEFAULT_RULES
from geoseg.prediction.report import PredictReport, Stages
from geoseg.programs.early import DEMO_FILES, check_demo
from geoseg.programs.predict import predict
from geoseg.programs.rehearsal import rehearsing, stitching, vectorizing
from geoseg.programs.vectorize import vectorize
from geoseg.scene import Scene
from geoseg.windows import Window

log = logging.getLogger(__name__)

MODEL = "landscape-tiny"
SIDE, SEED, GSD_M = 1536, 2026, 0.5
_INSTALL = "" if find_spec("maplibre") else 'pip install "geoseg[view]" && '
VIEWED = ("imagery", "class map", "polygons")  # files that the last line shows in the viewer

RULES = dataclasses.replace(DEFAULT_RULES, min_area_m2=4.0)

TRAIN_SEEDS, VAL_SEED = (1, 2, 3, 4), 100  # landscapes to train and to validate on, all different from the demo's
FEW_MINUTES = 300  # iterations of ``geoseg demo --train``


@dataclass(frozen=True, slots=True)
class DemoReport:
    """Outputs of the demo, the time of each step, and the scores of the map."""

    files: dict[str, Path]  # by what they are
    seconds: dict[str, float]  # of each step
    prediction: PredictReport
    scores: Scores  # against the landscape's truth

    def lines(self) -> list[str]:
        """The report for people."""
        wide = max(len(name) for name in self.files)
        lines = ["", "files"]
        lines += [f"  {what:{wide}}  {path}" for what, path in self.files.items()]
        lines += ["", f"{'class':12}  {'area':>10}   IoU against the truth"]
        for c in LANDSCAPE_CLASSES:
            area = self.prediction.areas_m2[c.id] * 1e-4
            lines.append(f"{c.name:12}  {area:7.2f} ha   {self.scores.iou[c.id]:.3f}")
        lines.append(f"mIoU {self.scores.miou:.3f}, accuracy {self.scores.accuracy:.3f}")
        steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        return [
            *lines,
            "",
            f"{steps}; in all {sum(self.seconds.values()):.1f} s",
            "look at it: " + _INSTALL + shlex.join(["geoseg", "view", *(str(self.files[what]) for what in VIEWED)]),
        ]


class _Clock(Stages):
    """Time of the steps, which are logged."""

    def step(self, name: str) -> AbstractContextManager[None]:
        log.info("%s …", name)
        return self.time(name)


def run_demo(
    output: Path, *, train: bool = False, device: str = "auto", overwrite: bool = False, progress: bool = False
) -> DemoReport:
    """Make a landscape, map it, turn the map into polygons, draw both, and compare with the truth.

    With ``train``, a model trained from scratch for some minutes takes the place of the shipped one.
    """
    check_demo(output, overwrite=overwrite)
    make_folder(output)
    files = {what: output / name for what, name in DEMO_FILES.items()}
    scene, truth, truth_gpkg, landcover, gpkg, geojson, overlay = files.values()
    clock = _Clock()
    with rehearsing(*stitching(), *vectorizing(RULES, gpkg.suffix, geojson.suffix)):
        with clock.step("landscape"):
            landscape = Landscape(SIDE, SIDE, seed=SEED, gsd_m=GSD_M)
            write_landscape(landscape, scene, labels_path=truth, truth_path=truth_gpkg, overwrite=True)
        model = MODEL
        if train:
            # The rest runs without torch and Lightning.
            from geoseg.programs.train import train as run_training

            with clock.step("training"):
                config = training_config(output / "training", iterations=FEW_MINUTES)
                model = str(run_training(config, overwrite=overwrite, device=device, progress=progress))
        with clock.step("predict"):
            prediction = predict([str(scene)], model, landcover, device=device, overwrite=True, progress=progress)
    with clock.step("polygons"):
        for file in gpkg, geojson:
            vectorize(landcover, file, rules=RULES, overwrite=True)
    with clock.step("overlay"):
        class_map = read_class_map(landcover)
        with Scene(scene) as opened:
            pixels, _ = opened.read(Window(0, 0, *opened.grid.shape))
        write_overlay(
            overlay,
            pixels,
            class_map.values,
            class_map.classes,
            geopandas.read_file(gpkg, layer=gpkg.stem),
            transform=class_map.grid.transform,
            title="geoseg demo: generated landscape, class map, polygons",
        )
    with clock.step("scores"):
        labels = read_class_map(truth).values
        scores = Scores(count_pixels(labels, class_map.values, len(LANDSCAPE_CLASSES)))
    return DemoReport(files, clock.seconds, prediction, scores)


def training_config(folder: Path, *, iterations: int) -> TrainConfig:
    """Write landscapes into ``folder/scenes``, and return the experiment that trains on them.

    The shipped model ``landscape-tiny`` was trained so, with more iterations.
    """
    scenes = folder / "scenes"
    scenes.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, str]] = []
    for place, seed in enumerate((*TRAIN_SEEDS, VAL_SEED)):
        entry = {"scene": str(scenes / f"{seed}.tif"), "labels": str(scenes / f"{seed}_labels.tif")}
        landscape = Landscape(SIDE, SIDE, seed=seed, gsd_m=GSD_M)
        # Each in its own place: training and validation scenes must not touch.
        apart = landscape.grid.transform @ Affine.translation(2 * SIDE * place, 0)
        landscape = dataclasses.replace(landscape, transform=apart)
        write_landscape(landscape, entry["scene"], labels_path=entry["labels"], overwrite=True)
        entries.append(entry)
    values: dict[str, Any] = {
        "name": MODEL,
        "output": str(folder / "run"),
        "classes": [{"name": c.name, "color": format_color(c.color)} for c in LANDSCAPE_CLASSES],
        "data": {"train": entries[:-1], "val": entries[-1:]},
        "augment": {"scale": [0.8, 1.25]},
        "train": {
            "iterations": iterations,
            "batch_size": 8,
            "size": 256,
            "max_class_share": 0.9,
            "learning_rate": 1e-3,
            "decoder_lr_factor": 1,
            "weight_decay": 0.05,
            "warmup_iterations": min(50, iterations // 4),
            "workers": 1,
            "val_every": min(100, iterations),
        },
        "card": {"data": "landscapes generated by geoseg.landscape", "licence": "Apache-2.0"},
    }
    return parse_config(values, source="the demo's configuration")
