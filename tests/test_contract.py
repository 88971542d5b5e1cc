from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from geoseg.contract import CONTRACT_FILE, Band, ClassEntry, Contract, WindowSettings, load_contract
from geoseg.errors import ModelError


def contract(**changes: Any) -> Contract:
    values = {
        "name": "fields",
        "bands": (Band(name="red", mean=0.3, std=0.1), Band(name="nir", mean=0.5, std=0.2)),
        "dtype": "uint16",
        "scale": 1e-4,
        "gsd_m": 0.5,
        "classes": (ClassEntry(name="other", color="#000000"), ClassEntry(name="Äcker", color="#00ff00")),
        "window": WindowSettings(size=256, overlap=64),
        "training": {"val_miou": 0.71, "scenes": ["a.tif"]},
    }
    return Contract(**(values | changes))


@pytest.mark.parametrize("nodata", ["file", 0.0, -9999.0])
@pytest.mark.parametrize("gsd_m", [None, 0.15])
def test_saved_and_loaded_it_is_equal(tmp_path: Path, nodata: str | float, gsd_m: float | None) -> None:
    saved = contract(nodata=nodata, gsd_m=gsd_m)
    saved.save(tmp_path)
    assert load_contract(tmp_path) == saved


def test_the_file_is_for_people_too(tmp_path: Path) -> None:
    contract().save(tmp_path)
    text = (tmp_path / CONTRACT_FILE).read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert json.loads(text)["bands"][1] == {"name": "nir", "mean": 0.5, "std": 0.2}


def test_class_ids_are_places_in_the_list() -> None:
    table = contract().class_table
    assert table.names == ("other", "Äcker")
    assert (table[1].id, table[1].color) == (1, (0, 255, 0))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 2}, "version"),
        ({"gsd": 0.5}, "gsd"),
        ({"dtype": "float64"}, "dtype"),
        ({"scale": 0}, "scale"),
        ({"bands": []}, "bands"),
        ({"bands": [{"name": "red", "mean": 0.5, "std": 0}]}, "bands.0.std"),
        ({"bands": [{"name": "red", "mean": 0.5, "std": 1, "max": 1}]}, "bands.0.max"),
        ({"classes": [{"name": "a", "color": "green"}]}, "classes.0.color"),
        ({"window": {"size": 100}}, "window.size"),
        ({"window": {"size": 64, "overlap": 64}}, "overlap 64 must be below size 64"),
        ({"nodata": "none"}, "nodata"),
    ],
)
def test_what_is_wrong_in_a_contract_is_named(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    values = json.loads(contract().model_dump_json()) | change
    (tmp_path / CONTRACT_FILE).write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        load_contract(tmp_path)
    assert complaint in caught.value.message
    assert str(tmp_path) in caught.value.message


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    values = json.loads(contract().model_dump_json())
    del values["classes"]
    (tmp_path / CONTRACT_FILE).write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ModelError, match="classes: Field required"):
        load_contract(tmp_path)


def test_a_folder_without_a_contract_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a geoseg model folder") as caught:
        load_contract(tmp_path)
    assert "geoseg train" in str(caught.value.hint)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b""])
def test_a_broken_file_is_explained(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CONTRACT_FILE).write_bytes(content)
    with pytest.raises(ModelError, match=CONTRACT_FILE):
        load_contract(tmp_path)
