"""Protocols of patches against a plain implementation of their description, in numpy, patch by patch."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import torch

from geoseg.config import TrainConfig, parse_config
from geoseg.contract import Band, ClassEntry, Contract
from geoseg.data.labelled import LabelledScene
from geoseg.errors import ConfigError
from geoseg.models.checkpoints import official_key
from geoseg.network.metrics import Scores
from geoseg.network.model_folder import build_network, load_model
from geoseg.paper import patches
from geoseg.paper.isaid import CLASSES as CLASSES_OF_ISAID
from geoseg.paper.patches import PROTOCOLS, PatchProtocol, evaluate_patches, scene_names
from geoseg.paper.recognition import BASES
from geoseg.windows import Window
from support import commands
from support.isaid import Made, colors, made
from support.networks import TINY, InMemory

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

CLASSES = 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")
Ids = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]

MMSEG = PROTOCOLS["mmseg"]
LENGTHS = (1, 199, 200, 447, 448, 449, 511, 512, 513, 600, 799, 800, 801, 895, 896, 897, 1400, 1408, 1409, 2000, 4321)


# --- which patches: the rules as they are described, once more


def mmseg_patches(height: int, width: int, patch: int, overlap: int) -> list[Box]:
    """(top, bottom, left, right) of the patches of the padded image, in the order they are first written."""
    height, width = max(height, patch), max(width, patch)
    boxes: dict[Box, None] = {}
    top = 0
    while top < height:
        left = 0
        while left < width:
            bottom, right = min(top + patch, height), min(left + patch, width)
            boxes[bottom - patch, bottom, right - patch, right] = None
            left += patch - overlap
        top += patch - overlap
    return list(boxes)


def jseg_patches(height: int, width: int, patch: int, overlap: int) -> list[Box]:
    if height > patch and width > patch:
        return mmseg_patches(height, width, patch, overlap)
    return [(0, height, 0, width)]


@pytest.mark.parametrize("height", LENGTHS)
def test_windows_are_those_of_both_converters(height: int) -> None:
    for width in LENGTHS:
        found = MMSEG.windows(height, width)
        padded = [(w.row, w.row + 896, w.col, w.col + 896) for w in found]
        assert padded == mmseg_patches(height, width, 896, 384), width
        assert all(w.row_stop <= height and w.col_stop <= width for w in found)
        jseg = PROTOCOLS["jseg"].windows(height, width)
        assert [(w.row, w.row_stop, w.col, w.col_stop) for w in jseg] == jseg_patches(height, width, 800, 200), width


def test_what_the_official_converter_loses_is_kept() -> None:
    """One side of exactly 896: it wrote rows 304 … 600 alone, under the name _-296_600_0_896."""
    assert MMSEG.windows(600, 896) == [Window(0, 0, 600, 896)]
    assert MMSEG.windows(896, 500) == [Window(0, 0, 896, 500)]
    assert MMSEG.windows(300, 896) == [Window(0, 0, 300, 896)]


def test_no_window_occurs_twice() -> None:
    assert MMSEG.windows(896, 896) == [Window(0, 0, 896, 896)]
    assert MMSEG.windows(500, 600) == [Window(0, 0, 500, 600)]
    many = MMSEG.windows(2000, 1500)
    assert len(set(many)) == len(many) == 12


def test_protocols_have_the_published_numbers() -> None:
    jseg, mmseg = PROTOCOLS["jseg"], PROTOCOLS["mmseg"]
    assert (jseg.patch, jseg.overlap, jseg.fit, jseg.multiple, jseg.pad) == (800, 200, (896, 896), 32, False)
    assert (mmseg.patch, mmseg.overlap, mmseg.fit, mmseg.pad) == (896, 384, (896, 896), True)
    assert jseg.skipped == {"P1527", "P1530"} and not mmseg.skipped


# --- the counts, in numpy


class Plain:
    """A network, and how patches are predicted and counted by the description: float64, whole arrays, one by one."""

    def __init__(self, trained: InMemory) -> None:
        self.network = trained.network
        self.close = 0  # labelled pixels whose two best classes float32 may not tell apart

    def logits(self, image: Ids, size: Sequence[tuple[int, int]]) -> npt.NDArray[np.float64]:
        """(K, H, W) of an image (H, W, 3), which the network sees at the last of some sizes."""
        shape = image.shape[:2]
        for height, width in size:
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        x = (image / 255 - MEAN) / STD
        with torch.inference_mode():
            x = torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32))
            coarse = self.network.forward_logits(x)[0].double().numpy()
        return bilinear(bilinear(coarse, size[-1]), shape)

    def count(
        self, image: Ids, truth: Ids, sizes: Callable[[float], Sequence[tuple[int, int]]], *, ms_flip: bool = False
    ) -> npt.NDArray[np.int64]:
        """Counts of one patch; a ratio of sizes gives those its image is brought to one after the other."""
        if ms_flip:
            scores: Any = 0
            for ratio in (0.5, 0.75, 1, 1.25, 1.5, 1.75):
                scores = scores + softmax(self.logits(image, sizes(ratio)))
                scores = scores + softmax(self.logits(image[:, ::-1], sizes(ratio)))[..., ::-1]
        else:
            scores = self.logits(image, sizes(1))
        second, best = np.partition(scores, -2, axis=0)[-2:]
        self.close += int((best - second < 1e-4)[truth != 255].sum())
        matrix = np.zeros((len(scores), len(scores)), dtype=np.int64)
        labelled = truth != 255
        np.add.at(matrix, (truth[labelled], scores.argmax(0)[labelled]), 1)
        return matrix


def bilinear(values: npt.NDArray[np.float64], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Values (K, h, w) at another size, by pixel centres."""
    for axis, length in zip((1, 2), size, strict=True):
        old = values.shape[axis]
        if old == length:
            continue
        at = np.maximum((np.arange(length) + 0.5) * old / length - 0.5, 0)
        first = np.floor(at).astype(int)
        share = (at - first).reshape([-1 if a == axis else 1 for a in range(3)])
        below = values.take(first, axis)
        values = below + share * (values.take(np.minimum(first + 1, old - 1), axis) - below)
    return values


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


def fitted(height: int, width: int, longer: float, shorter: float) -> tuple[int, int]:
    factor = min(longer / max(height, width), shorter / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def up(length: int) -> int:
    return math.ceil(length / 32) * 32


def plain_mmseg(plain: Plain, image: Ids, ids: Ids, *, patch: int, overlap: int, ms_flip: bool = False) -> Any:
    height, width = ids.shape
    black = np.zeros((max(height, patch), max(width, patch), 3), np.uint8)
    black[:height, :width] = image
    labels = np.full(black.shape[:2], 255, np.uint8)
    labels[:height, :width] = ids

    def sizes(ratio: float) -> list[tuple[int, int]]:
        return [(int(patch * ratio), int(patch * ratio))]

    return sum(
        plain.count(black[t:b, left:right], labels[t:b, left:right], sizes, ms_flip=ms_flip)
        for t, b, left, right in mmseg_patches(height, width, patch, overlap)
    )


def plain_jseg(plain: Plain, image: Ids, ids: Ids, *, patch: int, overlap: int, fit: int, ms_flip: bool = False) -> Any:
    total: Any = 0
    for top, bottom, left, right in jseg_patches(*ids.shape, patch, overlap):

        def sizes(ratio: float, height: int = bottom - top, width: int = right - left) -> list[tuple[int, int]]:
            height, width = fitted(height, width, int(fit * ratio), int(fit * ratio))
            return [(height, width), (up(height), up(width))]

        total += plain.count(image[top:bottom, left:right], ids[top:bottom, left:right], sizes, ms_flip=ms_flip)
    return total


# --- scenes and a network


@pytest.fixture(scope="module")
def trained() -> InMemory:
    """A small random SegNeXt whose classes are about equally likely."""
    torch.manual_seed(0)
    network = build_network("segnext", "tu-mscan_tiny", encoder_weights=None, in_channels=3, classes=CLASSES, **TINY)
    network.eval()
    with torch.inference_mode():
        logits = network.forward_logits(torch.randn(4, 3, 96, 96))
        network.segmentation_head.weight /= logits.std()
        network.segmentation_head.bias -= logits.mean((0, 2, 3)) / logits.std()
    contract = Contract(
        name="random",
        bands=tuple(Band(name=n, mean=m, std=s) for n, m, s in zip(("red", "green", "blue"), MEAN, STD, strict=True)),
        dtype="uint8",
        scale=1 / 255,
        classes=tuple(ClassEntry(name=f"c{i}", color=f"#0000{i:02x}") for i in range(CLASSES)),
    )
    return InMemory(network, contract)


Make = Callable[..., tuple[LabelledScene, Ids, Ids]]


def settings(folder: Path, name: str, **changes: Any) -> TrainConfig:
    entry = {"scene": str(folder / f"{name}.tif"), "labels": str(folder / f"{name}_labels.tif")}
    values = {
        "name": "patches",
        "output": str(folder / "run"),
        "classes": [{"name": f"c{i}", "color": f"#0000{i:02x}"} for i in range(CLASSES)],
        "data": {"train": [entry], "val": [entry]},
    }
    return parse_config(values | changes, source="test")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A scene of a size with labels of every class, some ignored: as opened, its image (H, W, 3) and its ids."""

    def made(height: int, width: int, name: str = "scene", **changes: Any) -> tuple[LabelledScene, Ids, Ids]:
        rng = np.random.default_rng((height, width))
        coarse = rng.integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        ids = np.kron(rng.integers(0, CLASSES + 1, (height // 16 + 1, width // 16 + 1)), np.ones((16, 16), int))
        ids = np.where(ids == CLASSES, 255, ids)[:height, :width].astype(np.uint8)
        path = tmp_path / f"{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = {"driver": "GTiff", "height": height, "width": width, "dtype": "uint8"}
        with rasterio.open(path, "w", count=3, **size) as file:
            file.write(image.transpose(2, 0, 1))
        with rasterio.open(tmp_path / f"{name}_labels.tif", "w", count=1, nodata=255, **size) as file:
            file.write(ids, 1)
        config = settings(tmp_path, name, **changes)
        return LabelledScene(config.data.entries("val")[0], config), image, ids

    return made


def check(found: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64], plain: Plain) -> None:
    """Equal counts, but for pixels whose two best classes are equal to within float32."""
    np.testing.assert_array_equal(found.sum(1), wanted.sum(1))  # every labelled pixel, as often as it is in a patch
    assert np.abs(found - wanted).sum() <= 2 * plain.close
    assert plain.close < 1e-3 * wanted.sum() + 1
    assert Scores(found).miou == pytest.approx(own_miou(wanted), abs=2e-4)
    assert (wanted.sum(0) > 0).sum() >= 3  # the network tells classes apart


def own_miou(matrix: npt.NDArray[np.int64]) -> float:
    ious = []
    for k in range(len(matrix)):
        hits = matrix[k, k]
        union = matrix[k].sum() + matrix[:, k].sum() - hits
        if union:
            ious.append(hits / union)
    return float(np.mean(ious))


AWKWARD = [(64, 64), (40, 64), (64, 30), (31, 50), (65, 64), (65, 65), (33, 200), (150, 111), (104, 105)]


@pytest.mark.parametrize(("height", "width"), AWKWARD)
def test_padded_patches_count_as_described(height: int, width: int, make: Make, trained: InMemory) -> None:
    scene, image, ids = make(height, width)
    rule = PatchProtocol(64, 24, pad=True, fit=(64, 64))
    found = evaluate_patches(trained, [scene], rule, device=CPU)
    plain = Plain(trained)
    check(found["scene"], plain_mmseg(plain, image, ids, patch=64, overlap=24), plain)


@pytest.mark.parametrize(("height", "width"), AWKWARD)
def test_patches_resized_to_fit_count_as_described(height: int, width: int, make: Make, trained: InMemory) -> None:
    scene, image, ids = make(height, width)
    rule = PatchProtocol(64, 16, narrow="whole", fit=(72, 72), multiple=32)
    found = evaluate_patches(trained, [scene], rule, device=CPU)
    plain = Plain(trained)
    check(found["scene"], plain_jseg(plain, image, ids, patch=64, overlap=16, fit=72), plain)


def test_scales_and_flips_average_probabilities(make: Make, trained: InMemory) -> None:
    scene, image, ids = make(90, 70)
    rule = PatchProtocol(64, 24, pad=True, fit=(64, 64))
    several = evaluate_patches(trained, [scene], rule, device=CPU, ms_flip=True)["scene"]
    plain = Plain(trained)
    check(several, plain_mmseg(plain, image, ids, patch=64, overlap=24, ms_flip=True), plain)
    rule = PatchProtocol(64, 16, narrow="whole", fit=(72, 72), multiple=32)
    several = evaluate_patches(trained, [scene], rule, device=CPU, ms_flip=True)["scene"]
    plain = Plain(trained)
    check(several, plain_jseg(plain, image, ids, patch=64, overlap=16, fit=72, ms_flip=True), plain)


@pytest.mark.parametrize(("height", "width"), [(896, 130), (60, 900)])
def test_the_protocols_by_name(height: int, width: int, make: Make, trained: InMemory) -> None:
    """One side exactly 896, and one above; the other smaller."""
    scene, image, ids = make(height, width)
    found = evaluate_patches(trained, [scene], "mmseg", device=CPU)["scene"]
    plain = Plain(trained)
    check(found, plain_mmseg(plain, image, ids, patch=896, overlap=384), plain)
    found = evaluate_patches(trained, [scene], "jseg", device=CPU)["scene"]
    plain = Plain(trained)
    check(found, plain_jseg(plain, image, ids, patch=800, overlap=200, fit=896), plain)


def test_ground_in_the_overlap_counts_as_often_as_it_is_seen(make: Make, trained: InMemory) -> None:
    scene, _, ids = make(810, 805)
    found = evaluate_patches(trained, [scene], "jseg", device=CPU)["scene"]
    assert found.sum() == sum((ids[r : r + 800, c : c + 800] != 255).sum() for r in (0, 10) for c in (0, 5))


def test_whole_pictures_are_fitted_in_the_base_size(make: Make, trained: InMemory) -> None:
    scene, image, ids = make(75, 100)
    found = evaluate_patches(trained, [scene], "whole", device=CPU, base_size=(256, 64))["scene"]

    def sizes(ratio: float) -> list[tuple[int, int]]:
        return [(64, 85), (64, 96)]  # the shorter side decides; 85 = 100 · 64 / 75

    plain = Plain(trained)
    check(found, plain.count(image, ids, sizes), plain)
    with pytest.raises(ConfigError, match="needs a size to fit them in"):
        evaluate_patches(trained, [scene], "whole", device=CPU)


def test_many_classes_are_compared_a_few_at_a_time() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 41, 5, 7)
    logits[:, 33] = logits[:, 2] = 9  # of equals the first
    whole = patches._interpolated(logits, (20, 28), (31, 30)).argmax(1)[0]
    assert torch.equal(patches._largest(logits, (20, 28), (31, 30)), whole)
    assert set(whole.unique().tolist()) == {2}
    logits[:, 33] = logits[:, 2] = 0
    whole = patches._interpolated(logits, (20, 28), (31, 30)).argmax(1)[0]
    assert torch.equal(patches._largest(logits, (20, 28), (31, 30)), whole) and len(whole.unique()) > 20


# --- what the counts do not depend on


def test_threads_and_company_change_nothing(make: Make, trained: InMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = make(150, 111, "one")[0], make(64, 100, "other")[0]
    rule = PatchProtocol(64, 24, pad=True, fit=(64, 64))
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(patches, "processors", lambda n=threads: n)
        results.append(evaluate_patches(trained, [one, other], rule, device=CPU))
    results.append(evaluate_patches(trained, [one], rule, device=CPU))
    for result in results[1:]:
        np.testing.assert_array_equal(result["one"], results[0]["one"])
    np.testing.assert_array_equal(results[1]["other"], results[0]["other"])


def test_torchs_threads_are_as_before(make: Make, trained: InMemory) -> None:
    before = torch.get_num_threads()
    evaluate_patches(trained, [make(64, 64)[0]], PatchProtocol(64, 24, fit=(64, 64)), device=CPU)
    assert torch.get_num_threads() == before


def test_progress_sees_every_patch(make: Make, trained: InMemory) -> None:
    seen: list[int] = []

    def progress(items: Sequence[Any]) -> Iterable[Any]:
        for item in items:
            seen.append(len(items))
            yield item

    evaluate_patches(trained, [make(104, 64)[0]], PatchProtocol(64, 24, fit=(64, 64)), device=CPU, progress=progress)
    assert seen == [2, 2]


# --- scenes that do not count, or only in part


def test_scenes_left_out_of_the_paper_do_not_count(make: Make, trained: InMemory) -> None:
    scenes = [make(40, 40, name)[0] for name in ("P1527", "P1528", "P1530")]
    rule = replace(PROTOCOLS["jseg"], fit=(64, 64))
    assert list(evaluate_patches(trained, scenes, rule, device=CPU)) == ["P1528"]


def test_scenes_of_one_name_are_named_with_their_folders(make: Make, trained: InMemory) -> None:
    scenes = [make(64, 64, name)[0] for name in ("a/x", "b/x", "y")]
    assert scene_names(scenes) == ["a/x", "b/x", "y"]
    rule = PatchProtocol(64, 24, fit=(64, 64))
    found = evaluate_patches(trained, scenes, rule, device=CPU)
    assert list(found) == ["a/x", "b/x", "y"] and all(matrix.sum() for matrix in found.values())


def test_only_validation_blocks_of_a_split_scene_count(make: Make, trained: InMemory, tmp_path: Path) -> None:
    _, _, ids = make(200, 200)
    entry = {"scene": str(tmp_path / "scene.tif"), "labels": str(tmp_path / "scene_labels.tif")}
    data = {"scenes": [entry], "split": {"block": 64, "val_share": 0.3, "buffer": 0}}
    small = {"size": 32, "max_class_share": 1}
    config = settings(
        tmp_path, "scene", data=data, train=small, augment={"scale": [1, 1]}, window={"size": 64, "overlap": 32}
    )
    scene = LabelledScene(config.data.entries("val")[0], config)
    assert scene.split is not None and scene.split.validation
    rule = PatchProtocol(None, fit=(200, 200))
    wanted = sum(int((ids[w.row : w.row_stop, w.col : w.col_stop] != 255).sum()) for w in scene.split.validation)
    assert evaluate_patches(trained, [scene], rule, device=CPU)["scene"].sum() == wanted
    assert 0 < wanted < (ids != 255).sum()


def test_an_unknown_protocol_is_answered_with_the_known_ones(make: Make, trained: InMemory) -> None:
    with pytest.raises(ConfigError, match="no protocol is called 'mmesg'") as caught:
        evaluate_patches(trained, [make(64, 64)[0]], "mmesg", device=CPU)
    assert "jseg, mmseg, whole" in str(caught.value.hint)


def test_pixels_that_mean_nothing_do_not_count(make: Make, trained: InMemory, tmp_path: Path) -> None:
    _, image, ids = make(100, 90, "holes")  # its labels are taken, not its scene
    pixels = np.maximum(image.transpose(2, 0, 1), 1)
    pixels[:, 20:70, 30:50] = 0
    size = {"driver": "GTiff", "height": 100, "width": 90, "dtype": "uint8"}
    with rasterio.open(tmp_path / "holed.tif", "w", count=3, nodata=0, **size) as file:
        file.write(pixels)
    (tmp_path / "holes_labels.tif").rename(tmp_path / "holed_labels.tif")
    config = settings(tmp_path, "holed")
    scene = LabelledScene(config.data.entries("val")[0], config)
    rule = PatchProtocol(None, fit=(90, 100))
    ids[20:70, 30:50] = 255
    found = evaluate_patches(trained, [scene], rule, device=CPU)["holed"]
    np.testing.assert_array_equal(found.sum(1), np.bincount(ids[ids != 255], minlength=CLASSES))


def test_scenes_of_16_bit_are_scaled_once(make: Make, trained: InMemory, tmp_path: Path) -> None:
    scene, image, _ = make(100, 90)
    rule = PatchProtocol(64, 24, pad=True, fit=(64, 64))
    wanted = evaluate_patches(trained, [scene], rule, device=CPU)["scene"]
    size = {"driver": "GTiff", "height": 100, "width": 90, "dtype": "uint16"}
    with rasterio.open(tmp_path / "deep.tif", "w", count=3, **size) as file:
        file.write(image.transpose(2, 0, 1).astype(np.uint16) * 40)
    (tmp_path / "scene_labels.tif").rename(tmp_path / "deep_labels.tif")
    scale = 1 / 255 / 40
    config = settings(tmp_path, "deep", imagery={"dtype": "uint16", "scale": scale})
    deep = replace(trained, contract=trained.contract.model_copy(update={"dtype": "uint16", "scale": scale}))
    scene = LabelledScene(config.data.entries("val")[0], config)
    found = evaluate_patches(deep, [scene], rule, device=CPU)["deep"]
    assert np.abs(found - wanted).sum() <= 4  # a pixel or two whose best classes are equal to within float32


# --- iSAID from the release and an official checkpoint to both numbers


def official_checkpoint(path: Path) -> Path:
    """A random SegNeXt of 16 classes as the official repository saves its own."""
    torch.manual_seed(1)
    network = build_network("segnext", "tu-mscan_tiny", encoder_weights=None, in_channels=3, classes=16, **TINY).eval()
    with torch.inference_mode():
        logits = network.forward_logits(torch.randn(4, 3, 96, 96))
        network.segmentation_head.weight /= logits.std()
        network.segmentation_head.bias -= logits.mean((0, 2, 3)) / logits.std()
    state = {official_key(key, official=True): value for key, value in network.state_dict().items()}
    del state[BASES]
    torch.save({"meta": {}, "state_dict": state, "optimizer": {}}, path)
    return path


def test_an_official_checkpoint_is_scored_by_both_protocols(tmp_path: Path) -> None:
    release = Made(tmp_path / "release")
    image, ids = release.truth["val"]["P0020"] = made(7, 60, 910)
    release.image("val", "P0020", image)
    release.mask("val", "P0020", colors(ids))
    release.pack()
    report = commands.succeed("prepare", "isaid", release.folder, "-o", tmp_path / "isaid")
    assert "3 train, 2 val, 1 test" in report and "any commercial use" in report
    checkpoint = official_checkpoint(tmp_path / "segnext.pth")
    small = ("--nmf-rank", TINY["nmf_rank"], "--norm-groups", TINY["norm_groups"])
    imported = commands.succeed("weights", "import", checkpoint, "-o", tmp_path / "model", *small)
    assert "taken for iSAID's" in imported

    config = Path(__file__).parents[1] / "configs/isaid/segnext_t.yaml"
    for protocol, reference, numbers in (
        ("jseg", plain_jseg, {"patch": 800, "overlap": 200, "fit": 896}),
        ("mmseg", plain_mmseg, {"patch": 896, "overlap": 384}),
    ):
        output, plain = tmp_path / protocol, Plain(load_model(tmp_path / "model"))
        printed = commands.succeed(
            *("evaluate", tmp_path / "model", config, f"data.root={tmp_path / 'isaid'}"),
            *("--protocol", protocol, "-o", output, "--device", "cpu"),
        )
        wanted = sum(reference(plain, *truth, **numbers) for truth in release.truth["val"].values())
        with (output / "confusion.csv").open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        check(np.array([[int(count) for count in row[1:17]] for row in rows[:16]]), wanted, plain)
        assert f"mIoU {own_miou(wanted):.3f}" in printed


def test_the_recipe_trains_on_a_prepared_release(tmp_path: Path) -> None:
    """One small step of it, to see that its keys go together."""
    release = Made(tmp_path / "release")
    commands.succeed("prepare", "isaid", release.folder, "-o", tmp_path / "isaid")
    small = {"decoder_channels": 32, "nmf_rank": 4, "norm_groups": 8, "embed_dims": [8, 16, 24, 32]}
    model = commands.succeed(
        *("train", Path(__file__).parents[1] / "configs/isaid/segnext_t.yaml", f"data.root={tmp_path / 'isaid'}"),
        *(f"output={tmp_path / 'run'}", "model.encoder_weights=null"),
        *(f"model.options={json.dumps(small | {'depths': [1, 1, 1, 1], 'drop_path_rate': 0.1})}",),
        *("train.iterations=1", "train.val_every=1", "train.batch_size=2", "train.size=64", "train.workers=0"),
        *("window={size: 64, overlap: 32}", "--device", "cpu"),
    ).splitlines()[-1]
    contract = load_model(model).contract
    assert contract.class_table == CLASSES_OF_ISAID
    assert "commercial" in contract.training["licence"]
