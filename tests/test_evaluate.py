"""The verb: what it counts equals a plain computation on whole arrays, and what it leaves is whole or nothing."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import torch
import yaml
from PIL import Image
from scipy import ndimage
from torch import nn

from geoseg.config import TrainConfig, parse_config
from geoseg.contract import Band, ClassEntry, Contract, WindowSettings
from geoseg.data.labelled import open_scenes
from geoseg.errors import ConfigError, OutputError, SceneError
from geoseg.evaluation import FILES
from geoseg.evaluation.blocks import CaseFinder
from geoseg.evaluation.result import Evaluation, SceneResult
from geoseg.evaluation.scenes import measure_scene, picture
from geoseg.evaluation.tables import summary_lines
from geoseg.network.model_folder import Normalize, build_network, load_model, save_model
from geoseg.options import Layers, Measures, Tiling
from geoseg.paper.patches import evaluate_patches
from geoseg.prediction.predictor import Predictor
from geoseg.programs.evaluate import evaluate
from geoseg.programs.predict import predict
from support import commands
from support.networks import TINY
from support.scenes import MadeScene, write_scene

Ids = npt.NDArray[np.uint8]
CLASSES = ("grass", "roof", "road")
SIZES = ((97, 61), (64, 200), (33, 40))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


def make_model(folder: Path, *, factor: float = 1.0, crs_bound: bool = True) -> Path:
    """A small network with random weights whose classes all occur; its logits times ``factor``."""
    torch.manual_seed(1)
    network = build_network(
        "segnext", "tu-mscan_tiny", encoder_weights=None, in_channels=3, classes=3, drop_path_rate=0.0, **TINY
    )
    head: Any = network.segmentation_head
    nn.init.normal_(head.weight)
    for module in network.modules():  # layers that scale by 0.01 would leave nothing but the stem
        for name, parameter in module.named_parameters(recurse=False):
            if name.startswith("layer_scale"):
                nn.init.constant_(parameter, 0.5)
    contract = Contract(
        name="tiny",
        bands=tuple(Band(name=name, mean=0.5, std=0.2) for name in ("red", "green", "blue")),
        dtype="uint8",
        scale=1 / 255,
        gsd_m=0.5 if crs_bound else None,
        classes=tuple(ClassEntry(name=name, color=f"#{60 * i:02x}8000") for i, name in enumerate(CLASSES)),
        window=WindowSettings(size=64, overlap=32),
    )
    with torch.inference_mode():  # each class about as likely as the others
        shades = torch.nn.functional.interpolate(torch.rand(8, 3, 12, 12), size=(96, 96)) * 255
        logits = network.eval().forward_logits(Normalize(contract)(shades))
        head.bias -= logits.mean((0, 2, 3))
        for parameter in head.weight, head.bias:
            parameter *= factor / logits.std()
    save_model(folder, network, contract)
    return folder


@dataclasses.dataclass(frozen=True)
class Case:
    """A scene, its truth as an array, and its map as `geoseg predict` makes it."""

    made: MadeScene
    truth: Ids
    mapped: Ids


def write_case(
    folder: Path, model: Path, size: tuple[int, int], *, seed: int = 0, window: int = 64, **options: Any
) -> Case:
    """A scene with nodata, and labels that are the map itself with patches wrong, and others ignored."""
    folder.mkdir(parents=True)
    made = write_scene(folder / "scene.tif", size=size, nodata="value", seed=seed, **options)
    predict([str(made.path)], str(model), folder / "map.tif", device="cpu", size=window, overlap=32)
    with rasterio.open(folder / "map.tif") as file:
        mapped = file.read(1)
    rng = np.random.default_rng(seed)
    patches = rng.choice([0, 0, 0, 1, 2], size=(-(-size[0] // 8), -(-size[1] // 8)))
    patches = np.kron(patches, np.ones((8, 8), dtype=int))[: size[0], : size[1]]
    truth = np.where(mapped == 255, 0, mapped)  # labelled where the scene is invalid
    truth = np.where(patches == 1, (truth + 1) % 3, np.where(patches == 2, 255, truth)).astype(np.uint8)
    with rasterio.open(
        folder / "labels.tif",
        "w",
        driver="GTiff",
        height=size[0],
        width=size[1],
        count=1,
        dtype="uint8",
        crs=made.crs,
        transform=made.transform,
    ) as file:
        file.write(truth, 1)
    return Case(made, truth, mapped)


def configuration(folder: Path, *names: str, **changes: Any) -> TrainConfig:
    entries = [{key: str(folder / name / f"{key}.tif") for key in ("scene", "labels")} for name in names]
    values: dict[str, Any] = {
        "name": "test",
        "output": str(folder / "run"),
        "classes": [{"name": name, "color": "#000000"} for name in CLASSES],
        "data": {"train": entries, "val": entries},
        "train": {"size": 32},
        "augment": {"scale": [1, 1]},
        "window": {"size": 64, "overlap": 32},
    }
    return parse_config(values | changes, source="test")


@pytest.fixture(scope="module")
def cases(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Case]]:
    """Scenes of awkward sizes, all of the same file name."""
    folder = tmp_path_factory.mktemp("cases")
    return folder, {
        f"{i}": write_case(folder / f"{i}", model, size, seed=i, shift=(1000 * i, 0)) for i, size in enumerate(SIZES)
    }


@pytest.fixture(scope="module")
def done(model: Path, cases: tuple[Path, dict[str, Case]], tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    folder, scenes = cases
    output = tmp_path_factory.mktemp("done") / "new" / "evaluation"
    return evaluate(str(model), configuration(folder, *scenes), output=output, device="cpu", windows=2)


def plain_iou(pairs: list[tuple[Ids, Ids]]) -> list[float]:
    """IoU of each class over whole arrays: no matrix, no windows."""
    truth, mapped = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    use = (truth != 255) & (mapped != 255)
    return [
        float(((truth == k) & (mapped == k) & use).sum() / (((truth == k) | (mapped == k)) & use).sum())
        for k in range(len(CLASSES))
    ]


def of_known(case: Case) -> tuple[Ids, Ids]:
    use = (case.truth != 255) & (case.mapped != 255)
    return tuple(np.where(use, a, 255).astype(np.uint8) for a in (case.truth, case.mapped))  # type: ignore[return-value]


# --- what is counted


def test_scores_are_those_of_whole_arrays(done: Evaluation, cases: tuple[Path, dict[str, Case]]) -> None:
    scenes = cases[1]
    wanted = plain_iou([(c.truth, c.mapped) for c in scenes.values()])
    np.testing.assert_allclose(done.total.scores.iou, wanted)
    assert done.total.scores.miou == pytest.approx(np.mean(wanted))
    assert list(done.scenes) == [f"{name}/scene" for name in scenes]  # of files of the same name
    for name, case in scenes.items():
        found = done.scenes[f"{name}/scene"].scores
        np.testing.assert_allclose(found.iou, plain_iou([(case.truth, case.mapped)]))
        truth, mapped = of_known(case)
        shares = np.bincount(truth[truth != 255], minlength=3) / (truth != 255).sum()
        assert found.frequency_weighted_iou == pytest.approx((shares * plain_iou([(truth, mapped)])).sum())
        assert found.accuracy == pytest.approx((truth == mapped)[truth != 255].mean())


def test_borders_and_objects_are_those_of_whole_arrays(done: Evaluation, cases: tuple[Path, dict[str, Case]]) -> None:
    square = np.ones((7, 7), dtype=bool)
    for name, case in cases[1].items():
        found = done.scenes[f"{name}/scene"]
        sides = of_known(case)
        for k in range(3):
            strips = [(s == k) & ndimage.binary_dilation((s != k) & (s != 255), square) for s in sides]
            assert found.boundary is not None and found.objects is not None
            assert found.boundary.iou[k] == (strips[0] & strips[1]).sum() / (strips[0] | strips[1]).sum()
            labels = [ndimage.label(s == k) for s in sides]
            assert (found.objects.true[k], found.objects.mapped[k]) == (labels[0][1], labels[1][1])
    total = done.total.objects
    assert total is not None
    np.testing.assert_array_equal(total.matched, sum(r.objects.matched for r in done.scenes.values() if r.objects))


def test_areas_are_those_of_the_pixels_and_of_the_truth(done: Evaluation, cases: tuple[Path, dict[str, Case]]) -> None:
    found = done.total.areas
    assert found is not None
    mapped = np.concatenate([c.mapped.ravel() for c in cases[1].values()])
    np.testing.assert_allclose(found.mapped_ha, np.bincount(mapped, minlength=256)[:3] * 0.25e-4, rtol=1e-3)
    # The share of each mapped class that is each class, where it is labelled.
    truth = np.concatenate([c.truth.ravel() for c in cases[1].values()])
    wanted = np.zeros(3)
    for i in range(3):
        sample = truth[(mapped == i) & (truth != 255)]
        wanted += found.mapped_ha[i] * np.bincount(sample, minlength=3) / len(sample)
    np.testing.assert_allclose(found.estimated_ha, wanted, rtol=1e-3)


def test_confidence_is_that_of_the_map(done: Evaluation, model: Path, cases: tuple[Path, dict[str, Case]]) -> None:
    found = done.scenes["0/scene"].calibration
    case = cases[1]["0"]
    assert found is not None
    folder = case.made.path.parent
    predict([str(case.made.path)], str(model), folder / "sure.tif", device="cpu", confidence=True)
    with rasterio.open(folder / "sure_confidence.tif") as file:
        sure = file.read(1)
    use = (case.truth != 255) & (case.mapped != 255)
    assert found.count.sum() == use.sum()
    assert found.confidence.sum() == pytest.approx(sure[use].astype(float).sum() / 254)
    assert found.correct.sum() == (case.truth == case.mapped)[use].sum()


def test_a_network_of_doubled_logits_has_twice_the_temperature(
    model: Path, cases: tuple[Path, dict[str, Case]], tmp_path: Path, done: Evaluation
) -> None:
    doubled = make_model(tmp_path / "doubled", factor=2)
    found = evaluate(str(doubled), configuration(cases[0], *cases[1]), output=tmp_path / "out", device="cpu")
    assert found.total.calibration is not None and done.total.calibration is not None
    assert found.total.calibration.temperature == pytest.approx(2 * done.total.calibration.temperature, rel=1e-3)


def test_the_windows_shown_are_those_of_the_scenes(done: Evaluation, cases: tuple[Path, dict[str, Case]]) -> None:
    assert len(done.worst) == len(done.best) == 1  # of three blocks, each a whole scene
    errors = {}
    for name, case in cases[1].items():
        truth, mapped = of_known(case)
        errors[f"{name}/scene"] = float((truth != mapped)[truth != 255].mean())
    for shown, wanted in ((done.worst[0], max(errors.values())), (done.best[0], min(errors.values()))):
        case = cases[1][shown.scene.split("/")[0]]
        assert shown.error == pytest.approx(wanted) == errors[shown.scene]
        np.testing.assert_array_equal(shown.mapped, case.mapped)
        np.testing.assert_array_equal(shown.truth, case.truth)
        valid = case.made.valid
        np.testing.assert_array_equal(shown.picture[valid], np.moveaxis(case.made.pixels, 0, 2)[valid])
        assert (shown.picture[~valid] == 128).all()


def test_results_depend_on_neither_batches_nor_bands_nor_strips(model: Path, tmp_path: Path) -> None:
    case = write_case(tmp_path / "a", model, (1060, 530), seed=3, window=128)
    (labelled,) = open_scenes(configuration(tmp_path, "a"), "val")
    predictor = Predictor(load_model(model), CPU)
    results: list[SceneResult] = []
    shown = []
    for options in ({}, {"batch_size": 3}, {"band_rows": 512}, {"band_rows": 512, "strip_cols": 512, "batch_size": 1}):
        finder = CaseFinder(3)
        tiling = Tiling(size=128, overlap=32, **{k: v for k, v in options.items() if k != "batch_size"})
        layers = Layers(confidence=True)
        plan = predictor.plan(labelled.scene, tiling, batch_size=options.get("batch_size"), layers=layers)
        assert (plan.bands, plan.strips) == (3 if "band_rows" in options else 1, 2 if "strip_cols" in options else 1)
        counts = measure_scene(predictor, labelled, plan, Measures(boundary_px=2), finder=finder)
        results.append(counts.result(1.0, 0.5))
        shown.append([(c.window, c.error) for cases in finder.cases() for c in cases])
    first = results[0]
    np.testing.assert_allclose(first.scores.iou, plain_iou([(case.truth, case.mapped)]))
    for other, windows in zip(results[1:], shown[1:], strict=True):
        np.testing.assert_array_equal(other.scores.matrix, first.scores.matrix)
        for part in ("boundary", "objects", "calibration", "areas"):
            for field in dataclasses.fields(getattr(first, part)):
                found = (getattr(getattr(result, part), field.name) for result in (other, first))
                values = (np.array(value, dtype=np.float64) for value in found)  # None becomes NaN
                np.testing.assert_allclose(*values, rtol=1e-12, err_msg=f"{part}.{field.name}")
        assert windows == shown[0]


def test_only_the_blocks_of_the_split_count(model: Path, tmp_path: Path) -> None:
    case = write_case(tmp_path / "a", model, (200, 180), seed=5)
    split = {"block": 64, "val_share": 0.3, "buffer": 8}
    config = configuration(
        tmp_path,
        data={"scenes": [{k: str(tmp_path / f"a/{k}.tif") for k in ("scene", "labels")}], "split": split},
    )
    (labelled,) = open_scenes(config, "val")
    assert labelled.split is not None
    validates, near = np.zeros(case.truth.shape, dtype=bool), np.zeros(case.truth.shape, dtype=bool)
    for w in labelled.split.validation:
        validates[w.row : w.row_stop, w.col : w.col_stop] = True
        near[max(w.row - 8, 0) : w.row_stop + 8, max(w.col - 8, 0) : w.col_stop + 8] = True
    assert validates.any() and not near.all()
    for name, part in (("val", validates), ("train", ~near)):
        found = evaluate(str(model), config, output=tmp_path / name, split=name, device="cpu")
        truth = np.where(part, case.truth, 255).astype(np.uint8)
        np.testing.assert_allclose(found.total.scores.iou, plain_iou([(truth, case.mapped)]))
        assert found.total.areas is not None
        counts = np.bincount(case.mapped[part], minlength=256)[:3]
        np.testing.assert_allclose(found.total.areas.mapped_ha, counts * 0.25e-4, rtol=1e-3)


def test_multi_scale_and_flip_is_predicts(model: Path, cases: tuple[Path, dict[str, Case]], tmp_path: Path) -> None:
    folder, scenes = cases
    predict([str(scenes["0"].made.path)], str(model), tmp_path / "map.tif", device="cpu", tta="scales+flips")
    with rasterio.open(tmp_path / "map.tif") as file:
        mapped = file.read(1)
    assert (mapped != scenes["0"].mapped).any()
    config = configuration(folder, "0")
    found = evaluate(str(model), config, output=tmp_path / "out", device="cpu", ms_flip=True)
    np.testing.assert_allclose(found.total.scores.iou, plain_iou([(scenes["0"].truth, mapped)]))


def test_protocols_of_patches_count_pixels_alone(
    model: Path, cases: tuple[Path, dict[str, Case]], tmp_path: Path
) -> None:
    config = configuration(cases[0], *cases[1])
    found = evaluate(str(model), config, output=tmp_path / "out", device="cpu", protocol="jseg")
    wanted = evaluate_patches(load_model(model), open_scenes(config, "val"), "jseg", device=CPU)
    assert list(found.scenes) == list(wanted)
    np.testing.assert_array_equal(found.total.scores.matrix, sum(wanted.values()))
    assert found.total.boundary is found.total.objects is found.total.calibration is found.total.areas is None
    assert {p.name for p in found.folder.iterdir()} == set(FILES)
    assert "jseg" in (found.folder / "report.html").read_text(encoding="utf-8")
    assert summary_lines(found)[-1] == str(tmp_path / "out")


def test_classes_named_are_objects(model: Path, cases: tuple[Path, dict[str, Case]], tmp_path: Path) -> None:
    config = configuration(cases[0], "0")
    found = evaluate(str(model), config, output=tmp_path / "out", device="cpu", objects=["road", "road"])
    assert found.total.objects is not None
    assert found.total.objects.true[2] > 0 and not found.total.objects.true[:2].any()
    assert found.facts["objects"] == ["road"]


def test_background_is_no_object_unless_named(model: Path, cases: tuple[Path, dict[str, Case]], tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    contract = tmp_path / "model/geoseg.json"
    values = json.loads(contract.read_text(encoding="utf-8"))
    values["classes"][0] |= {"name": "Background", "background": True}
    contract.write_text(json.dumps(values), encoding="utf-8")
    classes = [{"name": name, "color": "#000000"} for name in ("Background", "roof", "road")]
    config = configuration(cases[0], "0", classes=classes)

    def f1(name: str, **options: Any) -> tuple[list[str], list[bool]]:
        found = evaluate(str(tmp_path / "model"), config, output=tmp_path / name, device="cpu", windows=0, **options)
        assert found.total.objects is not None
        return found.facts["objects"], np.isnan(found.total.objects.f1).tolist()

    assert f1("default") == (["roof", "road"], [True, False, False])
    assert f1("named", objects=["Background", "road"]) == (["Background", "road"], [False, True, False])


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_scene_without_a_crs_has_no_hectares(model: Path, tmp_path: Path) -> None:
    write_case(tmp_path / "a", model, (70, 70), crs=None)
    found = evaluate(str(model), configuration(tmp_path, "a"), output=tmp_path / "out", device="cpu")
    assert found.total.areas is None and found.scenes["scene"].areas is None
    assert found.total.scores.miou > 0


def test_a_scene_that_is_listed_twice_counts_twice(
    model: Path, cases: tuple[Path, dict[str, Case]], tmp_path: Path
) -> None:
    found = evaluate(str(model), configuration(cases[0], "2", "2"), output=tmp_path / "out", device="cpu")
    assert len(found.scenes) == 2
    one, two = (r.scores.matrix for r in found.scenes.values())
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(found.total.scores.matrix, one + two)


# --- what is left


def test_the_files_hold_the_numbers(done: Evaluation) -> None:
    assert {p.name for p in done.folder.iterdir()} == set(FILES)
    content = json.loads((done.folder / "scores.json").read_text(encoding="utf-8"))
    assert content["classes"] == list(CLASSES)
    assert content["facts"]["model"] == "tiny" and content["facts"]["scenes"] == 3
    assert list(content["scenes"]) == list(done.scenes)
    scores = content["all"]
    assert scores["miou"] == done.total.scores.miou
    assert scores["confusion"] == done.total.scores.matrix.tolist()
    assert scores["boundary_px"] == 3
    assert done.total.calibration is not None and done.total.objects is not None and done.total.areas is not None
    assert scores["calibration"]["temperature"] == done.total.calibration.temperature
    assert len(scores["calibration"]["bins"]) == 20
    assert content["windows"]["worst"][0]["error"] == done.worst[0].error
    with (done.folder / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [r["class"] for r in rows] == [*CLASSES, "mean", "overall"] * 4
    every = {r["class"]: r for r in rows if r["scene"] == "all"}
    for i, name in enumerate(CLASSES):
        assert float(every[name]["iou"]) == pytest.approx(done.total.scores.iou[i], abs=1e-6)
        assert every[name]["recall"] == every[name]["accuracy"]
        assert int(every[name]["objects_matched"]) == done.total.objects.matched[i]
        assert float(every[name]["estimated_ha"]) == pytest.approx(done.total.areas.estimated_ha[i], abs=1e-6)
        assert scores["classes"][name]["f1"] == done.total.scores.f1[i]
    assert float(every["mean"]["iou"]) == pytest.approx(done.total.scores.miou, abs=1e-6)
    assert float(every["overall"]["accuracy"]) == pytest.approx(done.total.scores.accuracy, abs=1e-6)
    assert every["overall"]["true_px"] == "" == every["mean"]["objects_true"]
    with (done.folder / "confusion.csv").open(encoding="utf-8") as file:
        header, *matrix = csv.reader(file)
    assert header[1:] == list(CLASSES)
    np.testing.assert_array_equal(np.array([r[1:] for r in matrix], dtype=int), done.total.scores.matrix)
    with (done.folder / "reliability.csv").open(encoding="utf-8") as file:
        bins = [r for r in csv.DictReader(file) if r["scene"] == "all"]
    assert [int(r["pixels"]) for r in bins] == done.total.calibration.count.tolist()
    with Image.open(done.folder / "confusion.png") as drawn:
        assert np.asarray(drawn.convert("L")).std() > 1
    assert "tiny" in (done.folder / "report.html").read_text(encoding="utf-8")


def test_the_lines_say_it_to_people(done: Evaluation) -> None:
    lines = summary_lines(done)
    assert lines[-1] == str(done.folder)
    (means,) = (line for line in lines if line.startswith("mIoU"))
    assert means.endswith(f"accuracy {done.total.scores.accuracy:.4f}")
    for word in ("boundary IoU", "object F1", "temperature", "estimated, ha", "0/scene: mIoU"):
        assert any(word in line for line in lines), word


def test_many_scenes_are_not_listed_one_by_one(done: Evaluation) -> None:
    scenes = {f"scene {i}": done.total for i in range(25)}
    lines = summary_lines(dataclasses.replace(done, scenes=scenes))
    assert sum(line.startswith("scene ") for line in lines) == 20
    assert "and 5 more scenes, see scores.csv" in lines


def test_the_verb_takes_its_options(model: Path, cases: tuple[Path, dict[str, Case]], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(configuration(cases[0], "0", "2").model_dump(mode="json")))
    words = ["evaluate", str(model), str(config), "-o", str(tmp_path / "out"), "--device", "cpu", "--ms-flip"]
    words += ["--objects", "roof", "--objects", "road", "--boundary", "2", "--windows", "0"]
    ran = commands.run("-q", *words)
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == str(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))
    assert content["facts"]["objects"] == ["roof", "road"] and content["facts"]["multi-scale and flip"]
    assert content["all"]["boundary_px"] == 2
    assert content["windows"] == {"worst": [], "best": []}
    again = commands.run("-q", *words)
    assert again.exit_code == 2 and "exists" in again.stderr and "--overwrite" in again.stderr


def test_the_same_evaluation_twice_is_the_same_bytes(
    model: Path, cases: tuple[Path, dict[str, Case]], done: Evaluation, tmp_path: Path
) -> None:
    again = evaluate(
        str(model),
        configuration(cases[0], *cases[1]),
        output=tmp_path / "again",
        device="cpu",
        windows=2,
        batch_size=1,
    )
    for name in set(FILES) - {"confusion.png"}:  # which tells the version of what drew it
        assert (again.folder / name).read_bytes() == (done.folder / name).read_bytes(), name


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_there_is_not_replaced_unasked(
    model: Path, cases: tuple[Path, dict[str, Case]], tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("mine")
    config = configuration(cases[0], "2")
    with pytest.raises(OutputError, match=rf"{name} exists"):
        evaluate("no such model either", config, output=tmp_path, device="cpu")
    assert [p.name for p in tmp_path.iterdir()] == [name]
    if name == FILES[0]:
        evaluate(str(model), config, output=tmp_path, device="cpu", overwrite=True)
        assert (tmp_path / name).read_text() != "mine"


def test_kept_maps_are_predicts_and_are_shown(model: Path, cases: tuple[Path, dict[str, Case]], tmp_path: Path) -> None:
    folder, scenes = cases
    evaluate(str(model), configuration(folder, "0", "2"), output=tmp_path / "out", device="cpu", maps=True)
    for name in ("0", "2"):
        with rasterio.open(tmp_path / "out" / "maps" / f"{name}_scene_map.tif") as file:
            assert (file.read(1) == scenes[name].mapped).all()
    pytest.importorskip("rio_tiler")
    from geoseg.view.program import open_session

    session = open_session([tmp_path / "out"])
    facts = session.facts()
    shown = [layer["name"] for layer in facts["layers"] if layer["shown"]]
    maps = ["0_scene_map.tif", "2_scene_map.tif"]
    assert shown == ["scene.tif", "scene.tif", "labels.tif", maps[0], "labels.tif", maps[1]]
    assert [layer["of"] for layer in facts["layers"] if layer["kind"] == "share"] == [
        str(tmp_path / "out" / "maps" / name) for name in maps
    ]
    assert {window["name"] for window in facts["windows"]} & {"0/scene", "2/scene"}
    with pytest.raises(OutputError, match="exists"):
        evaluate(str(model), configuration(folder, "0"), output=tmp_path / "out", device="cpu", maps=True)


def test_a_scene_that_breaks_off_leaves_nothing(model: Path, tmp_path: Path) -> None:
    write_case(tmp_path / "a", model, (300, 200), seed=2)
    scene = tmp_path / "a" / "scene.tif"
    data = scene.read_bytes()
    scene.write_bytes(data[: len(data) * 2 // 3])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SceneError, match="cannot be read"):
        evaluate(str(model), configuration(tmp_path, "a"), output=tmp_path / "new" / "out", device="cpu", maps=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "said", "hint"),
    [
        ({"split": "test"}, "split must be one of val, train, found 'test'", "--split val"),
        (
            {"protocol": "isaid"},
            "protocol must be one of scene, jseg, mmseg, whole, found 'isaid'",
            "--protocol scene, jseg, mmseg, whole",
        ),
        ({"protocol": "jseg", "size": 64}, "--size has no effect", "leave out --size"),
        (
            {"protocol": "mmseg", "backend": "torch"},
            "--backend has no effect",
            "leave out --backend",
        ),
        (
            {"protocol": "mmseg", "objects": ["roof"]},
            "--objects has no effect",
            "leave out --objects",
        ),
        ({"protocol": "whole"}, "whole pictures needs a size to fit them in", "augment.base_size"),
        ({"objects": ["rooof"]}, "class 'rooof' of --objects is not one of grass, roof, road", "--objects"),
        ({"boundary_px": 0}, "--boundary must be at least 1 px, found 0", "--boundary 3"),
        ({"windows": -1}, "--windows must not be negative", "--windows 0"),
        ({"size": 50}, "50", "--size"),
    ],
)
def test_refusals_come_before_anything_is_made(
    model: Path, cases: tuple[Path, dict[str, Case]], tmp_path: Path, options: dict[str, Any], said: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate(
            str(model), configuration(cases[0], "2"), output=tmp_path / "deep" / "out", **{"device": "cpu", **options}
        )
    assert said in caught.value.message
    assert caught.value.hint is not None and hint in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_scene_of_another_gsd_is_to_be_resampled(
    model: Path, cases: tuple[Path, dict[str, Case]], tmp_path: Path
) -> None:
    coarse = configuration(cases[0], "2", imagery={"gsd_m": 2.0})
    with pytest.raises(SceneError, match="but the model was trained on") as caught:
        evaluate(str(model), coarse, output=tmp_path / "out", device="cpu")
    assert caught.value.hint == "add imagery.gsd_m=0.5 to resample it on the way"


# --- pictures


def test_pictures_are_red_green_and_blue_wherever_these_are() -> None:
    pixels = np.arange(4 * 6, dtype=np.uint8).reshape(4, 2, 3)
    valid = np.ones((2, 3), dtype=bool)
    found = picture(pixels, valid, ("nir", "Blue", "green", "red"))
    np.testing.assert_array_equal(np.moveaxis(found, 2, 0), pixels[[3, 2, 1]])
    np.testing.assert_array_equal(picture(pixels[:1], valid, ("pan",))[..., 1], pixels[0])
    np.testing.assert_array_equal(np.moveaxis(picture(pixels, valid, ("a", "b", "c", "d")), 2, 0), pixels[:3])


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_other_data_types_are_stretched_over_what_is_valid(dtype: str) -> None:
    values = np.linspace(100, 3100, 400).reshape(20, 20).astype(dtype)
    valid = np.ones((20, 20), dtype=bool)
    valid[0] = False
    values[0] = -1 if dtype == "float32" else 30_000
    found = picture(np.stack([values] * 3), valid, ("red", "green", "blue"))
    assert (found[0] == 128).all()
    assert found[1, 0, 0] == 0 and found[-1, -1, 0] == 255
    assert abs(int(found[10, 10, 1]) - 128) < 10
    constant = picture(np.full((3, 2, 2), 7, dtype=dtype), np.ones((2, 2), dtype=bool), ("red", "green", "blue"))
    assert (constant == constant[0, 0, 0]).all()
    nothing = picture(np.stack([values] * 3), np.zeros((20, 20), dtype=bool), ("red", "green", "blue"))
    assert (nothing == 128).all()
