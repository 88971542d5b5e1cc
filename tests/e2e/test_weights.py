"""``geoseg weights``: checkpoints of other programs become model folders that every verb takes."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import timm
import torch
import yaml
from torch import Tensor

from geoseg.class_tables import KNOWN
from geoseg.cli import app, weights
from geoseg.contract import load_contract
from geoseg.models.checkpoints import official_key
from geoseg.network.model_folder import build_network, load_model
from geoseg.paper.recognition import BASES
from geoseg.pretrained import OFFICIAL_FOLDER, PRETRAINED, Pretrained, sha256_of
from support.commands import Ran, files_in, read_map, run, succeed
from support.scenes import write_scene

if "weights" not in {group.name for group in app.registered_groups}:
    app.add_typer(weights.app, name="weights")

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_reference.npz"
SMALL: dict[str, Any] = {"embed_dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}
NAMES = ("water", "land", "road", "building", "vegetation", "other")


def official() -> dict[str, Tensor]:
    """State dict of the golden network, with its bases, in the official names."""
    with np.load(GOLDEN) as file:
        state = {k.removeprefix("sd/"): torch.from_numpy(file[k]) for k in file if k.startswith("sd/")}
        return {**state, BASES: torch.from_numpy(file["bases"])}


def later(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("mlp.dwconv.dwconv.", "mlp.dwconv."): value for key, value in state.items()}


def imagenet(**options: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = timm.create_model("mscan_tiny", **{**SMALL, **options}).state_dict()
    return {key.replace("mlp.dwconv.", "mlp.dwconv.dwconv."): value for key, value in state.items()}


@dataclass(frozen=True)
class Place:
    folder: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def checkpoint(self, content: object, name: str = "weights.pth") -> Path:
        torch.save(content, self / name)
        return self / name

    def importing(self, *options: object, source: object = None, out: str = "model") -> list[object]:
        """Import, by default of the golden network as the official repository would save it."""
        if source is None:
            source = self.checkpoint({"meta": {}, "state_dict": official(), "optimizer": {}})
        return ["weights", "import", source, "-o", self / out, "--norm-groups", 8, *options]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A folder, an empty torch.hub in another, and no network, whatever this machine has."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    (tmp_path / "place").mkdir()
    return Place(tmp_path / "place")


def facts(stdout: str) -> dict[str, str]:
    """The report by its names."""
    return {line[:10].strip(): line[10:].strip() for line in stdout.splitlines()}


@pytest.mark.parametrize("names", [official, lambda: later(official())], ids=["official", "mmsegmentation"])
def test_a_segmentation_checkpoint_becomes_a_model_folder(names: Callable[[], dict[str, Tensor]], place: Place) -> None:
    source = place.checkpoint({"meta": {}, "state_dict": names()})
    report = facts(succeed(*place.importing(source=source)))
    assert sorted(path.name for path in (place / "model").iterdir()) == [
        "config.json",
        "geoseg.json",
        "model.safetensors",
    ]
    assert report["folder"] == str(place / "model")
    assert report["NMF rank"] == "8, that of the file's bases"
    assert (
        report["network"] == "SegNeXt of channels 8 16 24 32, depths 1 1 2 1, decoder 32, 6 classes, 66,254 parameters"
    )
    assert ("mmsegmentation" in report["layout"]) == (names is not official)

    model = load_model(place / "model")
    with np.load(GOLDEN) as file, torch.inference_mode():
        logits = model.network(torch.from_numpy(file["input"]))
        np.testing.assert_allclose(logits.numpy(), file["out/logits"], rtol=1e-4, atol=1e-5)

    contract = model.contract
    assert [(b.name, b.mean, b.std) for b in contract.bands] == [
        ("red", 0.485, 0.229),
        ("green", 0.456, 0.224),
        ("blue", 0.406, 0.225),
    ]
    assert (contract.dtype, contract.scale, contract.gsd_m, contract.nodata) == ("uint8", 1 / 255, None, "file")
    assert (contract.window.size, contract.window.overlap) == (512, 128)
    assert [c.name for c in contract.classes] == [f"class_{i}" for i in range(6)]
    assert contract.training["checkpoint"] == "weights.pth"
    assert contract.training["sha256"] == sha256_of(source)
    assert "commercial users" in contract.training["licence"]
    assert json.loads((place / "model" / "config.json").read_text())["nmf_rank"] == 8


def test_an_imported_model_predicts_and_starts_a_training(place: Place) -> None:
    (place / "classes.yaml").write_text("\n".join(f"- {name}" for name in NAMES))
    report = facts(succeed(*place.importing("--classes", place / "classes.yaml")))
    assert report["classes"] == "6, of classes.yaml"
    described = succeed("info", place / "model")
    assert "SegNeXt with tu-mscan_tiny" in described and "3 building" in described and "sha256:" in described

    scene = write_scene(place / "scene.tif", size=(96, 80))
    windows = ["--size", 64, "--overlap", 32]
    succeed("-q", "predict", scene.path, "-m", place / "model", "-o", place / "map.tif", *windows)
    values, _ = read_map(place / "map.tif")
    assert values.shape == (96, 80) and values.max() < 6

    write_config(place)
    succeed("-q", "train", place / "config.yaml", *shlex.split(report["train"]))
    trained, imported = load_model(place / "run" / "model").network, load_model(place / "model").network
    stem = "encoder.model.model.patch_embed1.proj.0.weight"
    difference = (trained.state_dict()[stem] - imported.state_dict()[stem]).abs().max()
    assert 0 < difference < 1e-3  # one small step away


def write_config(place: Place) -> None:
    """One step of training on a scene with as many classes as the golden network."""
    scene = write_scene(place / "scene.tif", size=(96, 80))
    labels = (np.indices(scene.valid.shape).sum(0) // 30 % 6).astype(np.uint8)
    profile = {"height": 96, "width": 80, "crs": scene.crs, "transform": scene.transform}
    with rasterio.open(place / "labels.tif", "w", driver="GTiff", count=1, dtype="uint8", **profile) as file:
        file.write(labels, 1)
    pair = [{"scene": "scene.tif", "labels": "labels.tif"}]
    values = {
        "name": "more",
        "output": "run",
        "classes": [{"name": name, "color": f"#{40 * i:02x}0000"} for i, name in enumerate(NAMES)],
        "data": {"train": pair, "val": pair, "leakage": "warn"},
        "window": {"size": 64, "overlap": 32},
        "train": {
            "iterations": 1,
            "batch_size": 2,
            "size": 64,
            "workers": 0,
            "val_every": 1,
            "warmup_iterations": 0,
            "measure_precision": False,
        },
    }
    (place / "config.yaml").write_text(yaml.safe_dump(values))


def test_an_imagenet_checkpoint_becomes_weights_to_start_from(place: Place) -> None:
    source = place.checkpoint({"state_dict": imagenet()})
    report = facts(succeed("weights", "import", source, "-o", place / "encoder"))
    assert report["network"] == "MSCAN of channels 8 16 24 32, depths 1 1 2 1, 1000 classes, 93,456 parameters"
    assert sorted(path.name for path in (place / "encoder").iterdir()) == ["config.json", "model.safetensors"]
    wanted = later(imagenet())
    overlay = {"file": str(place / "encoder" / "model.safetensors")}
    wholes = [timm.create_model("mscan_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)]
    if hasattr(timm.models._hub, "load_model_config_from_path"):  # timm 1.0.16 and later
        wholes.append(timm.create_model(f"local-dir:{place / 'encoder'}", pretrained=True))
    for whole in wholes:
        assert whole.state_dict().keys() == wanted.keys()
        assert all(torch.equal(value, wanted[key]) for key, value in whole.state_dict().items())
    features = timm.create_model(
        "mscan_tiny", pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, **SMALL
    )
    assert torch.equal(features.model.patch_embed1.proj[0].weight, wanted["patch_embed1.proj.0.weight"])

    write_config(place)
    small = ["model.options.decoder_channels=32", "model.options.norm_groups=8", "train.learning_rate=1e-6"]
    succeed("-q", "train", place / "config.yaml", *shlex.split(report["train"]), *small)
    (place / "encoder" / "model.safetensors").unlink()  # what is trained holds all that it needs
    trained = load_model(place / "run" / "model").network
    stem = trained.state_dict()["encoder.model.model.patch_embed1.proj.0.weight"]
    torch.testing.assert_close(stem, wanted["patch_embed1.proj.0.weight"], rtol=0, atol=1e-4)


def test_a_checkpoint_of_16_classes_is_taken_for_isaids(place: Place) -> None:
    torch.manual_seed(0)
    network = build_network("segnext", "tu-mscan_tiny", encoder_weights=None, in_channels=3, classes=16)
    state = {official_key(key, official=False): value for key, value in network.state_dict().items()}
    del state[BASES]
    source = place.checkpoint({"state_dict": {f"module.{key}": value for key, value in state.items()}}, "iter.pth")
    ran = run("-v", "weights", "import", source, "-o", place / "model")
    assert ran.exit_code == 0, ran.stderr
    report = facts(ran.stdout)
    assert report["network"] == "SegNeXt-T, 16 classes, 4,228,976 parameters"
    assert report["NMF rank"] == "16, that of every T and S"
    assert report["train"] == f"model.encoder=tu-mscan_tiny model.start_from={place / 'model'}"
    assert "taken for iSAID's by their number" in report["classes"]
    assert "rank of the factorization 16" in ran.stderr
    assert load_contract(place / "model").class_table == KNOWN["iSAID"]


def test_class_names_come_from_the_checkpoints_notes(place: Place) -> None:
    notes = {"dataset_meta": {"classes": NAMES, "palette": [[i, 2 * i, 3 * i] for i in range(6)]}}
    source = place.checkpoint({"state_dict": later(official()), "meta": notes})
    assert facts(succeed(*place.importing(source=source)))["classes"] == "6, as in the file"
    table = load_contract(place / "model").class_table
    assert table.names == NAMES and table[5].color == (5, 10, 15)


def test_what_an_import_wrote_is_replaced_when_asked(place: Place) -> None:
    succeed("-q", *place.importing())
    succeed("-q", *place.importing("--nmf-rank", 4, "--overwrite"))
    assert json.loads((place / "model" / "config.json").read_text())["nmf_rank"] == 4
    source = place.checkpoint(imagenet(), "encoder.pth")
    succeed("-q", "weights", "import", source, "-o", place / "model", "--overwrite")
    assert sorted(path.name for path in (place / "model").iterdir()) == ["config.json", "model.safetensors"]
    assert files_in(place.folder) == [
        "encoder.pth",
        "model",
        "model/config.json",
        "model/model.safetensors",
        "weights.pth",
    ]


def test_published_weights_are_listed_and_said_to_be_here(place: Place) -> None:
    listed = succeed("weights", "list")
    for entry in PRETRAINED.values():
        assert f"{entry.name} " in listed and entry.url in listed and entry.sha256 in listed
    assert OFFICIAL_FOLDER in listed and "commercial users" in listed
    assert listed.count("not downloaded") == len(PRETRAINED)
    path = PRETRAINED["mscan_base"].path()
    assert str(path.parent) in listed
    path.parent.mkdir(parents=True)
    path.touch()
    assert succeed("weights", "list").count("not downloaded") == len(PRETRAINED) - 1


def test_a_published_file_that_is_here_is_imported_by_its_name(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    source = place.checkpoint({"state_dict": later(official())})
    digest = sha256_of(source)[:8]
    url = f"https://download.openmmlab.com/mmsegmentation/v0.5/segnext/segnext-{digest}.pth"
    monkeypatch.setitem(PRETRAINED, "small", Pretrained("small", "a small one", url, is_encoder=False))
    path = PRETRAINED["small"].path()
    path.parent.mkdir(parents=True)
    source.rename(path)
    assert f"small a small one, SHA-256 {digest}…, downloaded" in " ".join(succeed("weights", "list").split())
    report = facts(succeed(*place.importing(source="small")))
    assert report["checkpoint"].startswith(f"{path}, SHA-256 {digest}")
    assert load_contract(place / "model").training["checkpoint"] == f"segnext-{digest}.pth"


# --- refusals


def missing(place: Place) -> list[object]:
    return place.importing(source=place / "nowhere.pth")


def folder(place: Place) -> list[object]:
    return place.importing(source=place.folder)


def unknown_suffix(place: Place) -> list[object]:
    return place.importing(source=place.checkpoint(official(), "weights.onnx"))


def truncated(place: Place) -> list[object]:
    path = place.checkpoint(official())
    path.write_bytes(path.read_bytes()[:-2000])
    return place.importing(source=path)


def text(place: Place) -> list[object]:
    (place / "weights.pth").write_text("<html>404</html>")
    return place.importing(source=place / "weights.pth")


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


def pickled_code(place: Place) -> list[object]:
    return place.importing(source=place.checkpoint({"state_dict": official(), "meta": Evil(place / "trace")}))


def altered(place: Place) -> list[object]:
    return place.importing(source=place.checkpoint(official(), "segnext-0123abcd.pth"))


def no_state_dict(place: Place) -> list[object]:
    return place.importing(source=place.checkpoint({"epoch": 3}))


def another_network(place: Place) -> list[object]:
    return place.importing(source=place.checkpoint(timm.create_model("resnet18").state_dict()))


def missing_key(place: Place) -> list[object]:
    state = official()
    del state["backbone.norm2.weight"], state["backbone.norm2.bias"]
    return place.importing(source=place.checkpoint(state))


def surplus_key(place: Place) -> list[object]:
    return place.importing(source=place.checkpoint({**official(), "auxiliary_head.conv_seg.bias": torch.zeros(6)}))


def another_shape(place: Place) -> list[object]:
    return place.importing(source=place.checkpoint({**official(), "decode_head.align.gn.bias": torch.zeros(6)}))


def other_bands(place: Place) -> list[object]:
    state = {**official(), "backbone.patch_embed1.proj.0.weight": torch.zeros(4, 4, 3, 3)}
    return place.importing(source=place.checkpoint(state))


def too_many_classes(place: Place) -> list[object]:
    head = {"decode_head.conv_seg.weight": torch.zeros(300, 32, 1, 1), "decode_head.conv_seg.bias": torch.zeros(300)}
    return place.importing(source=place.checkpoint({**official(), **head}))


def wrong_number_of_classes(place: Place) -> list[object]:
    (place / "classes.yaml").write_text("- grass\n- roof\n")
    return place.importing("--classes", place / "classes.yaml")


def missing_class_file(place: Place) -> list[object]:
    return place.importing("--classes", place / "nowhere.yaml")


def broken_class_file(place: Place) -> list[object]:
    (place / "classes.json").write_text("[{]")
    return place.importing("--classes", place / "classes.json")


def classes_of_an_encoder(place: Place) -> list[object]:
    (place / "classes.yaml").write_text("- grass\n- roof\n")
    source = place.checkpoint(imagenet())
    return ["weights", "import", source, "-o", place / "model", "--classes", place / "classes.yaml"]


def rank_not_said(place: Place) -> list[object]:
    state = official()
    del state[BASES]
    return place.importing(source=place.checkpoint(state))


def rank_of_nothing(place: Place) -> list[object]:
    return place.importing("--nmf-rank", 0)


def groups_that_do_not_divide(place: Place) -> list[object]:
    return place.importing("--norm-groups", 24)


def output_exists(place: Place) -> list[object]:
    (place / "model").mkdir()
    return place.importing()


def output_is_a_file(place: Place) -> list[object]:
    (place / "model").write_text("a file")
    return place.importing("--overwrite")


def output_with_other_files(place: Place) -> list[object]:
    (place / "model").mkdir()
    (place / "model" / "thesis.docx").write_text("a year of work")
    return place.importing("--overwrite")


def output_with_the_checkpoint(place: Place) -> list[object]:
    (place / "model").mkdir()
    source = place.checkpoint(official(), "model/model.safetensors.pth").rename(place / "model" / "README.md")
    return place.importing("--overwrite", source=source)


def output_in_no_folder(place: Place) -> list[object]:
    return place.importing(out="nowhere/model")


def published_without_a_network(place: Place) -> list[object]:
    return place.importing(source="segnext_base_ade20k")


CASES: dict[Callable[[Place], list[object]], tuple[str, ...]] = {
    missing: ("nowhere.pth", "does not exist", "geoseg weights list"),
    folder: ("is a folder",),
    unknown_suffix: ("weights.onnx", ".onnx", ".pth"),
    truncated: ("weights.pth", "truncated"),
    text: ("weights.pth", "cannot be read as a checkpoint"),
    pickled_code: ("weights.pth", f"{os.name}.system"),
    altered: ("segnext-0123abcd.pth", "truncated or altered", "0123abcd"),
    no_state_dict: ("weights.pth", "holds no state dict", "epoch"),
    another_network: ("weights.pth", "another network", "conv1.weight"),
    missing_key: ("weights.pth", "lacks backbone.norm2.weight and 1 more"),
    surplus_key: ("weights.pth", "has auxiliary_head.conv_seg.bias"),
    another_shape: ("weights.pth", "decode_head.align.gn.bias of shape (6,) instead of (32,)"),
    other_bands: ("weights.pth", "4 bands"),
    too_many_classes: ("weights.pth", "300 classes", "255"),
    wrong_number_of_classes: ("classes.yaml lists 2 classes", "weights.pth has 6"),
    missing_class_file: ("nowhere.yaml",),
    broken_class_file: ("classes.json",),
    classes_of_an_encoder: ("weights.pth", "ImageNet checkpoint", "--classes"),
    rank_not_said: ("weights.pth", "--nmf-rank"),
    rank_of_nothing: ("--nmf-rank 0",),
    groups_that_do_not_divide: ("32 channels", "24 groups", "--norm-groups"),
    output_exists: ("model exists", "--overwrite"),
    output_is_a_file: ("model is a file",),
    output_with_other_files: ("model holds thesis.docx",),
    output_with_the_checkpoint: ("README.md",),
    output_in_no_folder: ("nowhere", "mkdir -p"),
    published_without_a_network: ("segnext_base_ade20k", "hub/checkpoints", "b6f6c70c.pth", "curl"),
}


@pytest.mark.parametrize("prepare", CASES, ids=lambda prepare: prepare.__name__)
def test_one_message_and_nothing_left(prepare: Callable[[Place], list[object]], place: Place) -> None:
    arguments = prepare(place)
    before = {name: _content(place / name) for name in files_in(place.folder)}
    check_refusal(run("-q", *arguments), *CASES[prepare])
    assert {name: _content(place / name) for name in files_in(place.folder)} == before


def check_refusal(ran: Ran, *said: str) -> None:
    assert ran.exit_code == 2, ran.stderr
    lines = ran.stderr.splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint:  "), ran.stderr
    assert ran.stdout == ""
    for text in said:
        assert text in ran.stderr


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody may write in")
@pytest.mark.parametrize("kind", [official, imagenet])
def test_a_folder_that_cannot_be_written(kind: Callable[[], dict[str, Tensor]], place: Place) -> None:
    source = place.checkpoint(kind())
    closed = Path("/proc/self/task")
    check_refusal(run("weights", "import", source, "-o", closed / "model"), str(closed))


def test_missing_pretrained_weights_say_where_to_put_them(place: Place) -> None:
    write_config(place)
    before = files_in(place.folder)
    ran = run("-q", "train", place / "config.yaml", "model.encoder_weights=imagenet")
    assert (ran.exit_code, ran.stdout) == (2, "")
    for words in ("error: ", PRETRAINED["mscan_tiny"].url, "hub/checkpoints", "put the file there"):
        assert words in ran.stderr
    assert files_in(place.folder) == before
