from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import geoseg.network.model_folder
from geoseg.contract import CONTRACT_FILE, find_model, shipped_models
from geoseg.errors import ConfigError, ModelError
from geoseg.network.model_folder import Normalize, build_network, load_model, save_model
from geoseg.network.stored_model import CONFIG_FILE, WEIGHTS_FILE
from support.model_folders import contract
from support.networks import FEW_LAYERS, TINY


def network(architecture: str = "segnext", encoder: str = "tu-mscan_tiny", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    options = {"in_channels": 3, "classes": 3} | (TINY if architecture == "segnext" else {}) | options
    return build_network(architecture, encoder, encoder_weights=None, **options).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, network(), contract())
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of a model folder, to be broken."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same_function(saved: Path) -> None:
    assert {p.name for p in saved.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE, CONTRACT_FILE}
    assert [p.name for p in saved.parent.iterdir()] == ["tiny"]  # no scratch folder is left
    trained = load_model(saved)
    assert trained.contract == contract().model_copy(update={"stride": 8})
    assert not trained.network.training
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(trained.network(x), network()(x))
    assert len(trained.digest) == 16


@torch.no_grad()
def test_other_architectures_do_too(tmp_path: Path) -> None:
    unet = network("unet", "resnet18", in_channels=1, classes=2, **FEW_LAYERS)
    save_model(tmp_path / "unet", unet, contract(1, 2))
    x = torch.randn(1, 1, 64, 64)
    assert torch.equal(load_model(tmp_path / "unet").network(x), unet(x))


@torch.no_grad()
def test_half_weights_take_half_the_space_and_load_as_float32(saved: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "half", network(), contract(), half=True)
    sizes = [(folder / WEIGHTS_FILE).stat().st_size for folder in (tmp_path / "half", saved)]
    assert sizes[0] < 0.75 * sizes[1]  # the header with the names is as long as before
    trained = load_model(tmp_path / "half")
    assert {p.dtype for p in trained.network.parameters()} == {torch.float32}
    x = torch.randn(1, 3, 64, 64)
    full = network()(x)
    assert 0 < (trained.network(x) - full).abs().max() < 0.02 * full.abs().max()


def test_the_digest_is_the_weights(saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    save_model(again, network(), contract(name="another name"))
    assert load_model(again).digest == load_model(saved).digest
    with torch.no_grad():
        other = network()
        next(other.parameters()).add_(1e-3)
    save_model(again, other, contract())
    assert load_model(again).digest != load_model(saved).digest


def test_an_existing_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    save_model(folder, network(), contract())
    assert not (folder / "old.txt").exists()


def test_a_failed_save_leaves_the_old_folder_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(geoseg.network.model_folder, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(folder, network(), contract(), half=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_loading_prints_nothing(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(saved)
    assert capfd.readouterr().out == ""


# --- broken folders


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE, CONTRACT_FILE])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ModelError, match=f"has no {file}") as caught:
        load_model(folder)
    assert caught.value.hint


@pytest.mark.parametrize(("bands", "classes", "key"), [(4, 3, "in_channels"), (3, 5, "classes")])
def test_a_contract_of_another_network_is_refused(folder: Path, bands: int, classes: int, key: str) -> None:
    contract(bands, classes).save(folder)
    with pytest.raises(ModelError, match=f"has {key} 3, but {CONTRACT_FILE} has {max(bands, classes)}"):
        load_model(folder)


@pytest.mark.parametrize("kept", [0, 7, 1000, -100])
def test_truncated_weights_are_explained(folder: Path, kept: int) -> None:
    weights = folder / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(ModelError, match=WEIGHTS_FILE):
        load_model(folder)


@pytest.mark.parametrize(
    "change",
    [{"decoder_channels": 64}, {"_model_class": "Unet"}, {"classes": 4}, {"encoder_name": "resnet18"}],
    ids=lambda c: next(iter(c)),
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # SMP lists the mismatched keys
def test_weights_that_do_not_fit_the_network_are_refused(folder: Path, change: dict[str, Any]) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=CONFIG_FILE):
        load_model(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"_model_class": "Segformer2"}', '{"_model_class": "SegNeXt", "z": 1}']
)
def test_a_config_that_describes_no_model_is_explained(folder: Path, text: str) -> None:
    (folder / CONFIG_FILE).write_text(text)
    with pytest.raises(ModelError, match=CONFIG_FILE):
        load_model(folder)


def test_an_unknown_name_is_answered_with_the_shipped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no model folder buildings-huge") as caught:
        find_model("buildings-huge")
    assert all(name in str(caught.value.hint) for name in shipped_models())
    assert "geoseg train" in str(caught.value.hint)
    Path("map.tif").touch()
    with pytest.raises(ModelError, match=r"^map\.tif is a file, not a model folder"):
        find_model("map.tif")


def test_shipped_models_are_found_by_name_and_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in shipped_models():
        trained = load_model(name)
        assert trained.folder.name == name
        assert trained.contract.name == name


def test_a_folder_comes_before_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in shipped_models():
        Path(name).mkdir()
        assert find_model(name) == Path(name)


# --- networks by name


@pytest.mark.parametrize(
    ("architecture", "encoder", "options", "complaint"),
    [
        ("segnxt", "tu-mscan_tiny", {}, "model.architecture 'segnxt' is unknown"),
        ("segnext", "resnet19", {}, "resnet19"),
        ("unet", "tu-mscan_huge", {}, "mscan_huge"),
        ("segnext", "tu-mscan_tiny", {"strip_width": 3}, "strip_width"),
        ("unet", "resnet18", {"decoder_depth": 3}, "takes no option decoder_depth"),
        ("segnext", "resnet18", {"strip_width": 3}, "takes no option strip_width"),
    ],
)
def test_what_cannot_be_built_is_explained(
    architecture: str, encoder: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build_network(architecture, encoder, encoder_weights=None, in_channels=3, classes=2, **options)


def test_an_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        build_network("segnxt", "resnet18", encoder_weights=None, in_channels=3, classes=2)
    assert "segnext" in str(caught.value.hint)


# --- normalisation


def test_pixels_are_normalised_per_band_and_zero_if_invalid() -> None:
    normalize = Normalize(contract())
    pixels = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    valid = torch.rand(2, 5, 4) < 0.7
    out = normalize(pixels, valid)
    for band, entry in enumerate(contract().bands):
        wanted = (pixels[:, band].float() / 255 - entry.mean) / entry.std
        torch.testing.assert_close(out[:, band], torch.where(valid, wanted, 0.0))
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(normalize(pixels, torch.ones_like(valid)), normalize(pixels))


def test_nan_where_invalid_reaches_nothing() -> None:
    pixels = torch.full((1, 3, 2, 2), float("nan"))
    pixels[..., 0] = 0.5
    valid = torch.tensor([[[True, False], [True, False]]])
    assert torch.isfinite(Normalize(contract(dtype="float32", scale=1.0))(pixels, valid)).all()


def test_the_statistics_are_no_weights() -> None:
    assert Normalize(contract()).state_dict() == {}
