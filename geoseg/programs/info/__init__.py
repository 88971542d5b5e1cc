"""What a scene, a label file, a class map or a model folder is, in lines for people: ``geoseg info``."""

import json
import re
from pathlib import Path
from typing import Any

from geoseg.classes import format_color
from geoseg.contract import CONTRACT_FILE, find_model, load_contract, shipped_models
from geoseg.errors import ConfigError, SceneError
from geoseg.network.stored_model import CONFIG_FILE, WEIGHTS_FILE
from geoseg.paths import VECTOR_SUFFIXES, exists, input_path, opened_name, suffix
from geoseg.programs.info.rasters import Fact, class_raster_facts, file_size, is_class_raster, scene_facts
from geoseg.scene import Scene


def describe(path: str, *, model: str | None = None, crs: str | None = None) -> list[str]:
    """Lines that say what is at a path or what a shipped model is, ``name  text`` each; warnings last.

    The prediction of a scene is planned with ``model``; None takes the shipped ones that fit the scene.
    """
    if model is not None:
        find_model(model)
    kind, facts = _facts(path, model, crs)
    if model is not None and kind != "scene":
        raise ConfigError(f"{path} is a {kind}, and only scenes are predicted", hint="leave out --model")
    width = max(len(name) for name, _ in facts)
    return [f"{name:<{width}}  {text}" for name, text in facts]


def _facts(path: str, model: str | None, crs: str | None) -> tuple[str, list[Fact]]:
    folder = _model_folder(path)
    if folder is not None:
        return "model", _model_facts(folder)
    path = opened_name(path, kind=SceneError)
    if suffix(input_path(path)) in VECTOR_SUFFIXES and exists(input_path(path)):
        from geoseg.programs.info.vectors import vector_facts  # and with it pandas, which rasters do without

        return "vector file", vector_facts(path)
    with Scene(path, crs=crs) as scene:
        pixels, valid = scene.sample()
        if is_class_raster(scene, pixels, valid):
            return "class raster", class_raster_facts(scene)
        return "scene", scene_facts(scene, pixels, valid, model)


def _model_folder(path: str) -> Path | None:
    """The folder where a path is one of a model or the name of a shipped model, else None."""
    if (Path(path) / CONTRACT_FILE).is_file():
        return Path(path)
    if not Path(path).exists() and re.fullmatch(r"[\w-]+", path):
        return find_model(path) if path in shipped_models() else None
    return None


def _model_facts(folder: Path) -> list[Fact]:
    contract = load_contract(folder)
    nodata = "as the file says" if contract.nodata == "file" else f"{contract.nodata:g}"
    facts = [("model", f"{contract.name}, in {folder}"), *_network_facts(folder)]
    facts += [("band", f"{b.name}: mean {b.mean:.4g}, standard deviation {b.std:.4g}") for b in contract.bands]
    facts += [
        ("pixels", f"{contract.dtype} × {contract.scale:.4g}, nodata {nodata}"),
        ("GSD", f"{contract.gsd_m:.4g} m" if contract.gsd_m else "any: trained without georeference"),
        ("windows", f"{contract.window.size} px that overlap by {contract.window.overlap} px"),
    ]
    facts += [
        (
            "class",
            f"{c.id} {c.name} {format_color(c.color)}{', background' if c.background else ''}"
            f"{', touching objects can be separated' if c.separate else ''}",
        )
        for c in contract.class_table
    ]
    return facts + [("training", f"{_words(key)}: {_text(value)}") for key, value in contract.training.items()]


def _network_facts(folder: Path) -> list[Fact]:
    config, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    facts = []
    if config.is_file():
        values = json.loads(config.read_text(encoding="utf-8"))
        words = [str(values[key]) for key in ("_model_class", "encoder_name") if values.get(key)]
        facts.append(("network", " with ".join(words) or "unnamed"))
    if weights.is_file():
        facts.append(("weights", f"{weights.name}{file_size(str(weights))}"))
    missing = [p.name for p in (config, weights) if not p.is_file()]
    return facts + [("warning", f"{name} is missing, so the model cannot be loaded") for name in missing]


def _words(key: str) -> str:
    """A key of the training's record as people write it."""
    return key.replace("_", " ").replace("miou", "mIoU").replace("iou", "IoU")


def _text(value: Any) -> str:
    """A value of the training's record without Python's brackets; settings that were not given are left out."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items() if inner is not None)
    if isinstance(value, list):
        return ", ".join(f"({_text(inner)})" if isinstance(inner, dict) else _text(inner) for inner in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
