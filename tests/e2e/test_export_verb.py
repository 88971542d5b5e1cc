"""``geoseg export``: the file as a host reads it, the STAC item, and what is refused."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from rasterio.windows import Window as RasterWindow

import geoseg
from geoseg.contract import Contract, DType, load_contract
from geoseg.landscape import Landscape, write_landscape
from support.commands import files_in, read_map, run, succeed
from support.model_folders import CLASSES, write_model
from support.networks import FEW_LAYERS

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TILE = 256
AGREE = 0.999


@dataclass(frozen=True)
class Plugin:
    """What QGIS Deepness 0.6 does with a file, as far as it decides about the map; written after its source.

    The metadata are read with ``json.loads``, the tile's side from the input's shape, which must be a square of fixed
    size; tiles go in as (N, H, W, B) bytes.
    """

    session: Any
    keys: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Plugin:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        texts = session.get_modelmeta().custom_metadata_map
        plugin = cls(session, {key: json.loads(text) for key, text in texts.items()})
        assert plugin.keys["model_type"].capitalize() == "Segmentor"
        assert [int(i) for i in plugin.keys["class_names"]] == list(range(len(plugin.keys["class_names"])))
        (given,), (made,) = session.get_inputs(), session.get_outputs()
        assert isinstance(given.shape[-1], int) and given.shape[-2] == given.shape[-1]
        assert len(made.shape) == 4 and made.shape[2] == made.shape[3] and made.shape[1] > 1
        assert given.shape[0] == 1 or isinstance(given.shape[0], str)
        assert given.shape[-1] == plugin.keys["tile_size"]
        return plugin

    def tile(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Class ids (N, H, W) of tiles (N, H, W, B)."""
        x = np.float32(tiles * 1.0 / 255.0)
        x = (x - np.float32(self.keys["standardization_mean"])) / np.float32(self.keys["standardization_std"])
        values = self.session.run(None, {self.session.get_inputs()[0].name: x.transpose(0, 3, 1, 2)})[0]
        values[values < self.keys["seg_thresh"]] = 0
        return values.argmax(axis=1)


def values(path: Path, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What a file makes of one window (B, H, W), fed as its own metadata say."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    contract = Contract.model_validate_json(metadata["geoseg_contract"])
    x = pixels.astype(np.float64)
    if json.loads(metadata["geoseg_input"]) == "pixel / 255":
        x /= 255
    elif json.loads(metadata["geoseg_input"]) != "pixel":
        mean, std = (np.array([[[getattr(b, name)]] for b in contract.bands]) for name in ("mean", "std"))
        x = (x * contract.scale - mean) / std
    return session.run(None, {session.get_inputs()[0].name: x[None].astype(np.float32)})[0][0]


def predicted(scene: Path, model: str | Path, size: int, *options: str) -> npt.NDArray[np.uint8]:
    """geoseg's own map of a scene that is one window."""
    out = scene.with_name(f"{scene.stem}_map.tif")
    succeed("-q", "predict", scene, "-m", model, "-o", out, "--size", size, "--overlap", 0, *options)
    return read_map(out)[0]


def share(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    assert a.shape == b.shape
    return float((a == b).mean())


@pytest.fixture(scope="module")
def landscape(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, npt.NDArray[np.uint8]]:
    scene = Landscape(TILE, TILE, seed=11)
    path = tmp_path_factory.mktemp("landscape") / "scene.tif"
    write_landscape(scene, path)
    with rasterio.open(path) as file:
        return path, file.read()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    path = tmp_path_factory.mktemp("exported") / "landscape.onnx"
    return path, succeed("export", "landscape-tiny", "-o", path, "--size", TILE).splitlines()


# The shipped model on a landscape


def test_two_files_and_a_report(exported: tuple[Path, list[str]]) -> None:
    path, lines = exported
    assert files_in(path.parent) == ["landscape.json", "landscape.onnx"]
    facts = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    assert facts["input"] == f"pixels (batch, 3, {TILE}, {TILE}) float32: pixel / 255; red, green, blue"
    assert facts["output"] == "probabilities at the size of the input"
    assert facts["check"].startswith("ONNX Runtime ") and facts["check"].endswith(
        "same class on 100.000% of the pixels"
    )
    assert facts["Deepness"] == "runs it as it is"
    assert facts["item"] == str(path.with_suffix(".json"))


def test_deepness_makes_the_same_map(exported: tuple[Path, list[str]], landscape: tuple[Path, Any]) -> None:
    scene, pixels = landscape
    plugin = Plugin.load(exported[0])
    (found,) = plugin.tile(pixels.transpose(1, 2, 0)[None])
    assert share(found, predicted(scene, "landscape-tiny", TILE)) >= AGREE
    assert len(np.unique(found)) > 2


def test_the_metadata_say_what_the_model_is(exported: tuple[Path, list[str]]) -> None:
    keys = Plugin.load(exported[0]).keys
    contract = load_contract(Path(geoseg.__file__).parent / "weights" / "landscape-tiny")
    assert list(keys["class_names"].values()) == [c.name for c in contract.classes]
    assert keys["resolution"] == float(f"{100 * (contract.gsd_m or 0):.3g}")
    assert (keys["tile_size"], keys["tiles_size"], keys["tiles_overlap"]) == (TILE, TILE, 25)
    assert Contract.model_validate(keys["geoseg_contract"]) == contract
    assert (keys["geoseg_input"], keys["geoseg_output"]) == ("pixel / 255", "probabilities")
    assert (keys["geoseg_version"], len(keys["geoseg_weights"])) == (geoseg.__version__, 16)


def read_item(path: Path) -> dict[str, Any]:
    item: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return item


def test_the_item_is_valid(exported: tuple[Path, list[str]]) -> None:
    """Against STAC's own schemas, which pystac ships, and the MLM fields against stac-model; nothing is fetched."""
    validation = pytest.importorskip("pystac.validation")
    pytest.importorskip("jsonschema")
    item = read_item(exported[0])
    assert validation.validate_dict(item, extensions=[])
    broken = item | {"properties": {k: v for k, v in item["properties"].items() if k != "datetime"}}
    with pytest.raises(Exception, match="datetime"):
        validation.validate_dict(broken, extensions=[])

    schema = pytest.importorskip("stac_model.schema")
    fields = {key: value for key, value in item["properties"].items() if key.startswith("mlm:")}
    model = schema.MLModelProperties.model_validate(fields)
    assert model.name == "landscape-tiny" and [t.value if hasattr(t, "value") else t for t in model.tasks] == [
        "semantic-segmentation"
    ]


def test_the_item_describes_the_file(exported: tuple[Path, list[str]]) -> None:
    pystac = pytest.importorskip("pystac")
    from pystac.extensions.mlm import MLMExtension

    path, _ = exported
    item = pystac.Item.from_file(str(path.with_suffix(".json")))
    mlm = MLMExtension.ext(item)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,), (made,) = mlm.input, mlm.output
    assert given.name == session.get_inputs()[0].name and made.name == session.get_outputs()[0].name
    assert given.input.shape == [-1, *session.get_inputs()[0].shape[1:]]
    assert made.result.shape == [-1, *session.get_outputs()[0].shape[1:]]
    assert given.bands == [b["name"] for b in item.properties["bands"]] == ["red", "green", "blue"]
    assert given.properties["value_scaling"] == [{"type": "scale", "value": 255.0}]
    assert (mlm.architecture, mlm.framework, mlm.total_parameters) == ("SegNeXt", "ONNX", 4226663)
    names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    assert {str(c["value"]): c["name"] for c in made.properties["classification:classes"]} == names
    assert made.properties["classification:classes"][0]["color_hint"] == "B08D64"
    asset = item.assets["model"]
    assert "mlm:model" in asset.roles and asset.get_absolute_href() == str(path)
    assert asset.extra_fields["file:size"] == path.stat().st_size
    assert asset.extra_fields["file:checksum"] == "1220" + hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.real_data
def test_deepness_makes_the_same_map_of_real_imagery(
    real_data: Path, exported: tuple[Path, list[str]], tmp_path: Path
) -> None:
    scene = tmp_path / "crop.tif"
    with rasterio.open(real_data / "hot_buildings/val/images/banepa_b.tif") as file:
        pixels = file.read(window=RasterWindow(0, 0, TILE, TILE))
        profile = {"crs": file.crs, "transform": file.transform, "dtype": "uint8", "count": 3}
        with rasterio.open(scene, "w", driver="GTiff", height=TILE, width=TILE, **profile) as crop:
            crop.write(pixels)
    (found,) = Plugin.load(exported[0]).tile(pixels.transpose(1, 2, 0)[None])
    assert share(found, predicted(scene, "landscape-tiny", TILE, "--ignore-gsd", "--precision", "float32")) >= AGREE
    assert np.bincount(found.ravel()).max() < 0.9 * found.size


# Every kind of file, with random weights


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """As in conftest.py, but of few layers, which are exported sooner."""

    @cache
    def model(bands: int = 3, dtype: DType = "uint8") -> Path:
        folder = tmp_path_factory.mktemp("models") / f"{bands}-{dtype}"
        return write_model(folder, bands=bands, dtype=dtype, architecture="unet", options=FEW_LAYERS)

    return model


def test_deepness_normalizes_where_the_file_does_not(
    random_model: Callable[..., Path], make_scene: Callable[..., Any], tmp_path: Path
) -> None:
    scene, path = make_scene(size=(96, 96)), tmp_path / "model.onnx"
    succeed("export", random_model(), "-o", path, "--size", "96", "--no-stac", "--no-normalize")
    plugin = Plugin.load(path)
    assert plugin.keys["standardization_mean"] == pytest.approx([0.5, 0.5, 0.5])
    assert plugin.keys["standardization_std"] == pytest.approx([0.2, 0.2, 0.2])
    (found,) = plugin.tile(scene.pixels.transpose(1, 2, 0)[None])
    assert share(found, predicted(scene.path, random_model(), 96)) >= AGREE
    assert len(np.unique(found)) == len(CLASSES)


@pytest.fixture(scope="module")
def of_16_bits(random_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    model, path = random_model(bands=4, dtype="uint16"), tmp_path_factory.mktemp("16 bits") / "model.onnx"
    return model, path, succeed("export", model, "-o", path)


def test_16_bit_models_take_pixels_as_they_are(
    of_16_bits: tuple[Path, Path, str], make_scene: Callable[..., Any]
) -> None:
    model, path, printed = of_16_bits
    scene = make_scene(size=(64, 64), bands=4, dtype="uint16")
    assert "float32: pixel; red, green, blue, nir" in printed
    assert "Deepness  no: the plugin divides pixels by 255, and the model takes uint16 imagery" in printed
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert not {"model_type", "tile_size", "class_names"} & session.get_modelmeta().custom_metadata_map.keys()
    assert share(values(path, scene.pixels).argmax(0), predicted(scene.path, model, 64)) >= AGREE
    assert read_item(path)["properties"]["mlm:input"][0]["value_scaling"] is None


def test_any_size(random_model: Callable[..., Path], make_scene: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    printed = succeed("export", random_model(), "-o", path, "--dynamic", "--no-softmax")
    assert "pixels (batch, 3, height, width) float32" in printed
    assert "Deepness  no: the plugin needs probabilities, and the file gives logits" in printed
    for size in ((64, 64), (96, 160)):
        logits = values(path, make_scene(size=size).pixels)
        assert logits.shape == (len(CLASSES), *size)
        assert logits.min() < 0 and np.abs(logits.sum(0) - 1).max() > 0.1
    assert read_item(path)["properties"]["mlm:input"][0]["input"]["shape"] == [-1, 3, -1, -1]


def test_class_ids(random_model: Callable[..., Path], make_scene: Callable[..., Any], tmp_path: Path) -> None:
    scene, path = make_scene(size=(64, 64)), tmp_path / "model.ONNX"
    succeed("export", random_model(), "-o", path, "--argmax")
    ids = values(path, scene.pixels)
    assert ids.dtype == np.uint8 and share(ids, predicted(scene.path, random_model(), 64)) >= AGREE
    assert read_item(path)["properties"]["mlm:output"][0]["result"]["shape"] == [-1, 64, 64]


# Refusals


def refused(folder: Path, *arguments: object) -> str:
    """The message of a command that must be refused and leave the folder as it is."""
    before = {name: (folder / name).stat().st_mtime_ns for name in files_in(folder)}
    ran = run("export", *arguments)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert {name: (folder / name).stat().st_mtime_ns for name in files_in(folder)} == before
    assert "Traceback" not in ran.stderr
    return ran.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere", "-o", "model.onnx"], "error: no model folder nowhere"),
        (["MODEL", "-o", "model.pt"], "expected .onnx\nhint:  -o model.onnx"),
        (["MODEL", "-o", "model"], "has the suffix (none), expected .onnx"),
        (["MODEL", "-o", "there.onnx"], "there.onnx exists\nhint:  add --overwrite"),
        (["MODEL", "-o", "described.onnx"], "described.json exists\nhint:  add --overwrite"),
        (["MODEL", "-o", "no/model.onnx"], "does not exist"),
        (["MODEL", "-o", "model.onnx", "--size", "100"], "must be a multiple of 32 px\nhint:  --size 128"),
        (["MODEL", "-o", "model.onnx", "--size", "64", "--overlap", "64"], "overlap 64 must be a multiple of 32 px"),
        (["MODEL", "-o", "model.onnx", "--opset", "9"], "opset 9 is not in 18 … 23\nhint:  --opset 20"),
    ],
)
def test_what_is_refused(
    options: list[str],
    message: str,
    random_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "there.onnx").write_bytes(b"mine")
    (tmp_path / "described.json").write_bytes(b"mine")
    monkeypatch.chdir(tmp_path)
    assert message in refused(tmp_path, *(str(random_model()) if word == "MODEL" else word for word in options))


@pytest.mark.parametrize(
    ("package", "hint"),
    [
        ("onnx", 'pip install "geoseg[onnx]"'),
        ("onnxscript", 'pip install "geoseg[onnx]"'),
        ("pystac", 'pip install "geoseg[stac]", or --no-stac'),
    ],
)
def test_an_extra_that_is_missing(
    package: str, hint: str, random_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = refused(tmp_path, random_model(), "-o", tmp_path / "model.onnx", "--stac")
    assert message.endswith(f"hint:  {hint}\n")


def test_without_pystac_and_onnxruntime_there_is_the_same_file(
    of_16_bits: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, first, _ = of_16_bits
    monkeypatch.setitem(sys.modules, "pystac", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"older")
    printed = succeed("export", model, "-o", path, "--overwrite")
    assert files_in(tmp_path) == ["model.onnx"] and path.read_bytes() == first.read_bytes()
    assert "check     not checked: onnxruntime is not installed" in printed
    assert "item      none" in printed


def test_a_file_that_gives_something_else_is_not_kept(
    of_16_bits: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No two programs agree to the last bit, so a tolerance of nothing refuses every file."""
    model, first, _ = of_16_bits
    monkeypatch.setattr("geoseg.model_export.host.TOLERANCE", 0.0)
    monkeypatch.setattr("geoseg.model_export.export.onnx_model", lambda *_, **__: onnx.load(first))
    (tmp_path / "model.onnx").write_bytes(b"mine")
    message = refused(tmp_path, model, "-o", tmp_path / "model.onnx", "--overwrite")
    assert "does not match the model: values differ by" in message
