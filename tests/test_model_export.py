"""ONNX graphs, what hosts feed and get, metadata and STAC items; `tests/e2e/test_export_verb.py` runs the verb."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from support.model_folders import contract
from support.networks import FEW_LAYERS, SHALLOW, InMemory, visible

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from geoseg.contract import DEFAULT_SCALE, Contract  # noqa: E402
from geoseg.errors import ConfigError, ModelError  # noqa: E402
from geoseg.model_export.host import (  # noqa: E402
    NORMALIZED,
    Feed,
    HostModel,
    check_file,
    feed_values,
    find_feed,
    reference,
    sample_windows,
)
from geoseg.model_export.metadata import deepness_entries, slug, value_scaling, why_not  # noqa: E402
from geoseg.model_export.onnx_graph import OPSET, onnx_model  # noqa: E402
from geoseg.network.folding import deployed  # noqa: E402
from geoseg.network.model_folder import build_network  # noqa: E402
from geoseg.options import ExportOptions  # noqa: E402

SIZE = (96, 160)
ON_SHAPES = {"Shape", "Gather", "Concat", "Slice", "Squeeze", "Unsqueeze"}


def network(architecture: str = "segnext", encoder: str = "tu-mscan_tiny", seed: int = 0, **options: Any) -> nn.Module:
    """Random weights in which every parameter and every statistic of the batch norms shows."""
    torch.manual_seed(seed)
    options = {"in_channels": 3, "classes": 3} | (SHALLOW if architecture == "segnext" else {}) | options
    made = build_network(architecture, encoder, encoder_weights=None, **options).eval()
    return visible(made, seed=seed + 1)


def hosted(made: nn.Module) -> nn.Module:
    """The inference form at full resolution, from normalised input to logits."""
    return HostModel(deployed(made), contract(), feed=NORMALIZED, result="logits").eval()


def trained(made: nn.Module, terms: Contract) -> InMemory:
    return InMemory(made, terms, folder=Path("tiny"))


def session(data: bytes) -> Any:
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def difference(data: bytes, module: nn.Module, *shape: int) -> float:
    """Largest difference of a file from torch on noise, as a share of the largest value."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = module(x).numpy()
    runtime = session(data)
    (found,) = runtime.run(None, {runtime.get_inputs()[0].name: x.numpy()})
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def onnx_bytes(module: nn.Module, **how: Any) -> bytes:
    data: bytes = onnx_model(module, bands=3, **how).SerializeToString(deterministic=True)
    return data


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    return network()


@pytest.fixture(scope="module")
def free(tiny: nn.Module) -> bytes:
    return onnx_bytes(hosted(tiny), batch=None)


@pytest.fixture(scope="module")
def fixed(tiny: nn.Module) -> bytes:
    return onnx_bytes(hosted(tiny), size=SIZE)


# The graph


@pytest.mark.parametrize("shape", [(1, 3, 96, 160), (2, 3, 97, 133), (3, 3, 64, 31), (1, 3, 33, 200)])
def test_any_size_and_batch_equal_torch(tiny: nn.Module, free: bytes, shape: tuple[int, ...]) -> None:
    assert difference(free, tiny, *shape) < 1e-4


def test_free_axes_have_names(free: bytes) -> None:
    runtime = session(free)
    assert runtime.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert runtime.get_outputs()[0].shape == ["batch", 3, "height", "width"]


def test_a_fixed_size_equals_torch_and_computes_no_shapes(tiny: nn.Module, fixed: bytes) -> None:
    assert difference(fixed, tiny, 1, 3, *SIZE) < 1e-4
    assert session(fixed).get_inputs()[0].shape == [1, 3, *SIZE]
    operations = collections.Counter(node.op_type for node in onnx.load_from_string(fixed).graph.node)
    assert not ON_SHAPES & operations.keys()
    gelus = sum(isinstance(m, nn.GELU) for m in tiny.modules())
    assert operations["Gelu"] == gelus and "Erf" not in operations


def test_the_inference_form_has_no_batch_norms(tiny: nn.Module, fixed: bytes) -> None:
    assert any(isinstance(module, nn.BatchNorm2d) for module in tiny.modules())
    assert "BatchNormalization" not in {node.op_type for node in onnx.load_from_string(fixed).graph.node}


def test_the_same_network_has_the_same_bytes(fixed: bytes) -> None:
    """In another process, with another hash seed, other threads and other random numbers before it."""
    code = (
        "import hashlib, test_model_export as t\n"
        "made = t.hosted(t.network())\n"
        f"t.torch.set_num_threads({3 - min(torch.get_num_threads(), 2)})\n"
        "t.torch.manual_seed(5)\n"
        "data = t.onnx_bytes(made, size=t.SIZE)\n"
        "print(hashlib.sha256(data).hexdigest())"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert ran.stdout.split()[-1] == hashlib.sha256(fixed).hexdigest()


def test_a_file_tells_nothing_of_the_machine_that_wrote_it(fixed: bytes) -> None:
    model = onnx.load_from_string(fixed)
    assert b".py" not in fixed and b"site-packages" not in fixed
    assert (model.producer_name, len(model.metadata_props)) == ("geoseg", 0)


def types_in(model: Any) -> set[int]:
    graph = model.graph
    inside = {t.data_type for t in graph.initializer} | {v.type.tensor_type.elem_type for v in graph.value_info}
    return inside | {a.i for node in graph.node for a in node.attribute if a.name == "to"}


@pytest.mark.parametrize(("opset", "file_format"), [(18, 8), (20, 9)])
def test_old_runtimes_can_read_it(tiny: nn.Module, fixed: bytes, opset: int, file_format: int) -> None:
    data = fixed if opset == OPSET else onnx_bytes(hosted(tiny), size=SIZE, opset=opset)
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (file_format, [("", opset)])
    assert onnx.TensorProto.DOUBLE not in types_in(model)
    assert difference(data, tiny, 1, 3, *SIZE) < 1e-4


def test_other_architectures_go_the_same_way() -> None:
    unet = network("unet", "resnet18", **FEW_LAYERS)
    data = onnx_bytes(unet, batch=None, multiple=32)
    assert difference(data, unet, 2, 3, 64, 96) < 1e-4
    assert session(data).get_inputs()[0].shape == ["batch", 3, "height", "width"]


class DependsOnValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_exported_is_said_in_a_line() -> None:
    with pytest.raises(ModelError, match="cannot be written as ONNX") as caught:
        onnx_bytes(DependsOnValues(), size=(32, 32))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("opset", [12, 99])
def test_an_opset_that_cannot_be_written(tiny: nn.Module, opset: int) -> None:
    with pytest.raises(ConfigError, match=f"opset {opset} is not in 18 … 23"):
        onnx_bytes(tiny, opset=opset)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named(tiny: nn.Module, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=package) as caught:
        onnx_bytes(tiny, size=(32, 32))
    assert caught.value.hint == 'pip install "geoseg[onnx]"'


# What hosts feed and get

FEEDS: list[tuple[str, float, bool, Feed]] = [
    ("uint8", 1 / 255, True, "pixel / 255"),
    ("uint8", 0.01, True, "pixel / 255"),
    ("uint8", 0.01, False, "(pixel * scale - mean) / std"),
    ("uint16", 1e-4, True, "pixel"),
    ("uint16", 1e-4, False, "(pixel * scale - mean) / std"),
    ("float32", 1.0, True, "pixel"),
]


@pytest.mark.parametrize(("dtype", "scale", "normalize", "feed"), FEEDS)
@pytest.mark.parametrize("result", ["probabilities", "logits", "classes"])
def test_a_host_gets_what_the_network_gives(
    tiny: nn.Module, dtype: Any, scale: float, normalize: bool, feed: Feed, result: Any
) -> None:
    terms = contract(dtype=dtype, scale=scale)
    assert find_feed(terms, normalize=normalize) == feed
    pixels = sample_windows(terms, 64, 72)
    assert pixels.dtype == dtype and pixels.std() > 0
    host = HostModel(tiny, terms, feed=feed, result=result)
    with torch.inference_mode():
        found = host(torch.from_numpy(feed_values(pixels, terms, feed))).numpy()
    wanted = reference(trained(tiny, terms), pixels, result)
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    if result == "classes":
        assert (found == wanted).mean() > 0.999
    else:
        assert np.abs(found - wanted).max() < 1e-4


@pytest.mark.parametrize(("dtype", "scale", "normalize", "feed"), FEEDS)
def test_the_item_states_the_feeding(dtype: Any, scale: float, normalize: bool, feed: Feed) -> None:
    terms = contract(dtype=dtype, scale=scale)
    pixels = sample_windows(terms, 8, 8)
    fed = pixels.astype(np.float64)
    entries = value_scaling(terms, feed)
    for band, entry in enumerate(entries if len(entries) != 1 else entries * 3):
        if entry["type"] == "scale":
            fed[:, band] /= entry["value"]
        else:
            assert entry["type"] == "z-score"
            fed[:, band] = (fed[:, band] - entry["mean"]) / entry["stddev"]
    np.testing.assert_allclose(fed, feed_values(pixels, terms, feed), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DEFAULT_SCALE)
def test_samples_are_spread_as_the_model_knows_its_bands(dtype: Any) -> None:
    terms = contract(bands=5, dtype=dtype, scale=DEFAULT_SCALE[dtype])
    scaled = sample_windows(terms, 64, 64) * terms.scale
    for i, band in enumerate(terms.bands):
        assert scaled[:, i].mean() == pytest.approx(band.mean, abs=0.05)
        assert scaled[:, i].std() == pytest.approx(band.std, rel=0.2)


# Deepness


@pytest.mark.parametrize("feed", ["pixel / 255", "(pixel * scale - mean) / std"])
@pytest.mark.parametrize("scale", [1 / 255, 0.01])
def test_deepness_feeds_what_the_file_takes(feed: Feed, scale: float) -> None:
    terms = contract(scale=scale)
    keys = deepness_entries(terms, ExportOptions(normalize=feed != NORMALIZED), size=512, overlap=128)
    mean, std = (np.array(json.loads(keys[f"standardization_{n}"]))[:, None, None] for n in ("mean", "std"))
    pixels = sample_windows(terms, 8, 8)
    np.testing.assert_allclose((pixels / 255 - mean) / std, feed_values(pixels, terms, feed), rtol=1e-5, atol=1e-5)


def test_the_keys_of_deepness() -> None:
    keys = deepness_entries(contract(gsd_m=0.14), ExportOptions(), size=512, overlap=160)
    assert {key: json.loads(value) for key, value in keys.items()} == {
        "model_type": "Segmentor",
        "class_names": {"0": "c0", "1": "c1", "2": "c2"},
        "resolution": 14.0,
        "tile_size": 512,
        "tiles_size": 512,
        "tiles_overlap": 31,
        "standardization_mean": [0.0, 0.0, 0.0],
        "standardization_std": [1.0, 1.0, 1.0],
        "seg_thresh": 0.0,
        "seg_small_segment": 0,
    }
    assert "resolution" not in deepness_entries(contract(), ExportOptions(), size=512, overlap=0)


@pytest.mark.parametrize(("gsd_m", "resolution"), [(0.5002, 50.0), (0.1, 10.0), (0.125, 12.5), (10.003, 1000.0)])
def test_the_resolution_of_deepness_is_a_round_figure(gsd_m: float, resolution: float) -> None:
    keys = deepness_entries(contract(gsd_m=gsd_m), ExportOptions(), size=512, overlap=0)
    assert json.loads(keys["resolution"]) == resolution


def test_what_deepness_would_misread() -> None:
    assert why_not(contract(), "probabilities") is None
    assert "uint16" in str(why_not(contract(dtype="uint16", scale=1e-4), "probabilities"))
    assert "logits" in str(why_not(contract(), "logits"))
    assert "classes" in str(why_not(contract(), "classes"))
    assert "single class" in str(why_not(contract(classes=1), "probabilities"))


# STAC


@given(st.text(max_size=20))
def test_names_in_an_item_are_names(name: str) -> None:
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-]+[a-zA-Z0-9]", slug(name))


@pytest.mark.parametrize("name", ["buildings-tiny", "SegNeXt.T_2"])
def test_good_names_stay(name: str) -> None:
    assert slug(name) == name


# The check


def host_file(path: Path, made: nn.Module, terms: Contract) -> Path:
    host = HostModel(deployed(made), terms, feed="pixel / 255", result="probabilities").eval()
    path.write_bytes(onnx_bytes(host, size=(64, 64), batch=None))
    return path


def test_a_file_is_checked_against_torch(tiny: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terms, sizes = contract(), [(64, 64)]
    path = host_file(tmp_path / "a.onnx", tiny, terms)
    how: dict[str, Any] = {"feed": "pixel / 255", "result": "probabilities"}
    agreement = check_file(path, trained(tiny, terms), sizes=sizes, **how)
    assert agreement is not None and agreement.difference < 1e-5 and agreement.agreement == 1
    with pytest.raises(ModelError, match="does not match the model: values differ by"):
        check_file(path, trained(network(seed=1), terms), sizes=sizes, **how)
    with pytest.raises(ModelError, match="does not run in ONNX Runtime"):
        check_file(path, trained(tiny, terms), sizes=[(32, 32)], **how)
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match="does not run in ONNX Runtime"):
        check_file(path, trained(tiny, terms), sizes=sizes, **how)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert check_file(path, trained(tiny, terms), sizes=sizes, **how) is None
