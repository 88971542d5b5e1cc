"""What a scene, a label file, a class map or a model folder is, in lines for people: ``geoseg info``."""

from __future__ import annotations

import re
from pathlib import Path

from geoseg.contract import CONTRACT_FILE, find_model, shipped_models
from geoseg.errors import ConfigError, SceneError
from geoseg.paths import VECTOR_SUFFIXES, exists, input_path, opened_name, suffix
from geoseg.programs.info.models import model_facts
from geoseg.programs.info.rasters import class_raster_facts, is_class_raster, scene_facts
from geoseg.programs.info.words import Fact
from geoseg.scene import Scene


def describe(path: str, *, model: str | None = None, crs: str | None = None) -> list[str]:
    """Lines that say what is at a path, ``name  text`` each; warnings last.

    Args:
        path: A raster, a vector file, a model folder, or the name of a shipped model.
        model: Model to plan the prediction of a scene with; None takes the shipped ones that fit the scene.
        crs: CRS of a raster that has a transform but no CRS.

    Raises:
        SceneError: Nothing at the path, or nothing that can be read.
        ModelError: A damaged model folder, or no model of that name.
        ConfigError: A model is named, but the path is not a scene.
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
        return "model", model_facts(folder)
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
