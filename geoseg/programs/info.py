"""What a scene, a label file, a class map or a model folder is, in lines for people."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyproj
from rasterio.enums import MaskFlags

from geoseg.class_map import read_class_map
from geoseg.classes import NODATA, format_color
from geoseg.contract import CONTRACT_FILE, Contract, WindowSettings, find_model, load_contract, shipped_models
from geoseg.errors import ConfigError, LabelError, SceneError, quoted
from geoseg.georeference import AnyCRS, Georeference, crs_georeference, pyproj_crs, transformer
from geoseg.grid import Grid
from geoseg.paths import VECTOR_SUFFIXES, exists, input_path, opened_name, suffix
from geoseg.runtime.processors import processors
from geoseg.scene import Pixels, Scene, Valid
from geoseg.scene.advice import GDAL_TYPES, holds, palette_hint
from geoseg.tiling.plan import MAX_CPU_WINDOWS, Plan, plan_prediction
from geoseg.windows import Window
from geoseg.words import count

if TYPE_CHECKING:
    from geoseg.scene.vector_files import VectorLayer

STRIDE = 8
"""Pixels per logit of SegNeXt."""

_FEW_VALUES = 32
_SQUARE = 0.01
_WHOLE_READ_PX = 400_000_000

Fact = tuple[str, str]


def describe(path: str, *, model: str | None = None, crs: str | None = None) -> list[str]:
    """Lines that say what is at a path, ``name  text`` each; warnings last.

    Args:
        path: A raster, a vector file, a model folder, or the name of a model that is shipped.
        model: Model to plan the prediction of a scene with; None takes the shipped ones that take the scene.
        crs: CRS of a raster that has a transform but no CRS.

    Raises:
        SceneError: Nothing at the path, or nothing that can be read.
        ModelError: A model folder that is damaged, or no model of that name.
        ConfigError: A model was named for what is no scene.
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
        return "vector file", vector_facts(path)
    with Scene(path, crs=crs) as scene:
        pixels, valid = scene.sample()
        if _is_class_raster(scene, pixels, valid):
            return "class raster", class_raster_facts(scene)
        return "scene", scene_facts(scene, pixels, valid, model)


# Rasters


def scene_facts(scene: Scene, pixels: Pixels, valid: Valid, model: str | None) -> list[Fact]:
    """Facts and warnings about imagery; ``pixels`` (B, N) and ``valid`` (N,) are a sample of it."""
    facts = [("scene", scene.path), *_raster_facts(scene)]
    for band, name, values in zip(scene.bands, scene.band_names, pixels, strict=True):
        interp = scene.dataset.colorinterp[band - 1].name
        tagged = f", tagged {interp}" if interp not in (name, "undefined", "gray") else ""
        scaled = (
            ""
            if scene.scaling is None
            else ", scale {:g} and offset {:g} in its tags".format(*scene.scaling[scene.bands.index(band)])
        )
        text = f"{name}{tagged}, {scene.dtype}, values {_value_range(values[valid])} in a sample{scaled}"
        facts.append((f"band {band}", text))
    facts.append(("nodata", _validity(scene)))
    facts += _prediction(scene, model)
    warnings = (*_place_warnings(scene), *_warnings(scene, pixels, valid))
    return facts + [("warning", text) for text in warnings]


def class_raster_facts(scene: Scene) -> list[Fact]:
    """Facts about a raster of class ids: the share of every class, and its area where the raster is georeferenced."""
    facts = [("class map", scene.path), *_raster_facts(scene), ("nodata", _validity(scene))]
    if scene.dtype == np.uint8:
        names = dict(enumerate(read_class_map(scene.path, window=Window(0, 0, 1, 1)).classes.names))
    else:
        names = {}
    warnings = [("warning", text) for text in (*_place_warnings(scene), *_palette_warnings(scene, len(names)))]
    if scene.grid.height * scene.grid.width > _WHOLE_READ_PX:
        return [*facts, *((f"class {value}", name) for value, name in names.items()), *warnings]
    counts, areas = _count_classes(scene)
    unit, factor = scene.grid.area_unit
    total = sum(counts.values())
    for value in sorted({*names, *counts}):
        area = f", {areas[value] * factor:.4g} {unit}" if unit != "px" and value in areas else ""
        share = f"{counts.get(value, 0) / max(total, 1):.2%} of the valid pixels{area}"
        facts.append((f"class {value}", f"{names[value]}: {share}" if value in names else share))
    if NODATA in counts:
        facts.append(("warning", f"{NODATA} occurs and is not declared as nodata; in labels geoseg ignores it"))
    return facts + warnings


def _raster_facts(scene: Scene) -> list[Fact]:
    grid = scene.grid
    height, width = grid.shape
    facts = [("size", f"{width} × {height} px, {height * width / 1e6:.4g} Mpx{_file_size(scene.path)}")]
    facts += _place_facts(grid)
    file = scene.dataset
    compression = file.compression.value if file.compression else "none"
    rows, cols = scene.block_shape
    overviews = ", ".join(f"1/{level}" for level in file.overviews(1)) or "none"
    return [
        *facts,
        ("file", f"{file.driver}, blocks of {cols} × {rows} px, compression {compression}, overviews {overviews}"),
    ]


def _place_facts(grid: Grid) -> list[Fact]:
    kind = grid.georeference
    if kind is Georeference.NONE:
        return [("CRS", "none: the raster has no georeference")]
    crs = "none" if grid.crs is None else _crs_text(pyproj_crs(grid.crs))
    if kind is Georeference.CRS_ALONE:
        return [("CRS", f"{crs}, but no transform")]
    t = grid.transform
    sides = f"{math.hypot(t.a, t.d):.6g} × {math.hypot(t.b, t.e):.6g}"
    pixel = f"{sides} units" if grid.crs is None else f"{sides} {_unit(pyproj_crs(grid.crs))} on the map"
    ground, gsd = grid.pixel_size_m(), grid.gsd_m()
    if ground is not None and gsd is not None:
        height, width = ground
        apart = f" ({width:.4g} × {height:.4g})" if abs(width / height - 1) > _SQUARE else ""
        pixel += f", {gsd:.4g} m{apart} on the ground"
    turn = math.degrees(math.atan2(t.d, t.a))
    how = f", rotated by {turn:.4g}°" if abs(turn) > 1e-6 else ", south-up" if t.e > 0 else ""
    unit, factor = grid.area_unit
    area = float(grid.pixel_area_m2().sum()) * grid.width * factor
    return [
        ("CRS", crs),
        ("pixel", pixel + how),
        ("extent", f"{_extent(kind, grid.crs, grid.bounds)}, {area:.4g} {unit}"),
    ]


def _validity(scene: Scene) -> str:
    flags = scene.dataset.mask_flag_enums[scene.bands[0] - 1]
    has_mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
    has_value = scene.nodata is not None and not math.isnan(scene.nodata)
    found = [f"value {scene.nodata:g}"] if has_value else []
    found += ["mask band"] if has_mask else []
    found += ["NaN"] if scene.dtype.kind == "f" else []
    return " and ".join(found) or "none: every pixel counts"


def _prediction(scene: Scene, model: str | None) -> list[Fact]:
    """Windows and memory of a prediction on a CPU, and what the model has against the scene.

    Without a model those that are shipped and take the scene; where none does, SegNeXt's usual windows.
    """
    from geoseg.prediction.imagery import check_scene, doubts

    if model is not None:
        from geoseg.network.stored_model import open_model

        stored = open_model(model)
        facts = [_planned(scene, stored.contract, stored.stride)]
        try:
            check_scene(stored.contract, scene)
            facts += [("warning", doubt) for doubt in doubts(stored.contract, scene)]
        except SceneError as error:
            facts.append(("warning", f"{error.message}; {error.hint}"))
        return facts
    facts = []
    for contract in (load_contract(find_model(name)) for name in shipped_models()):
        with suppress(SceneError):
            check_scene(contract, scene)
            facts.append(_planned(scene, contract, contract.stride or STRIDE))
    window = WindowSettings()
    plan = _plan(scene, window, classes=2, stride=STRIDE)
    return facts or [("prediction", f"{plan} (SegNeXt of two classes; name a model with -m)")]


def _planned(scene: Scene, contract: Contract, stride: int) -> Fact:
    plan = _plan(scene, contract.window, classes=len(contract.classes), stride=stride)
    return "prediction", f"{plan}, with {contract.name}"


def _plan(scene: Scene, window: WindowSettings, *, classes: int, stride: int) -> Plan:
    """As `geoseg.prediction.predictor.Predictor.plan`, which would load numba."""
    return plan_prediction(
        *scene.grid.shape,
        size=window.size,
        overlap=window.overlap,
        stride=stride,
        classes=classes,
        pixel_bytes=len(scene.bands) * scene.dtype.itemsize,
        batch_size=min(processors(), MAX_CPU_WINDOWS),
        chunk_rows=scene.block_shape[0],
    )


def _place_warnings(scene: Scene) -> Iterable[str]:
    if scene.warp_command is not None:
        yield f"it has control points that are not applied yet: {scene.warp_command}"
    elif scene.grid.place_note is not None:
        yield f"it {scene.grid.place_note}"


def _palette_warnings(scene: Scene, colors: int) -> Iterable[str]:
    if scene.has_palette and colors > _FEW_VALUES:
        yield f"where it is imagery, and no classes, {palette_hint(scene.path)}"


def _warnings(scene: Scene, pixels: Pixels, valid: Valid) -> Iterable[str]:
    path = quoted(scene.path)
    if scene.alpha_band is not None:
        shades = np.unique(pixels[scene.bands.index(scene.alpha_band)])
        if len(shades) <= 2:
            colors = ",".join(str(b) for b in scene.bands if b != scene.alpha_band)
            yield f"band {scene.alpha_band} is alpha: use it as validity with --bands {colors} --alpha"
        else:
            yield (
                f"band {scene.alpha_band} is tagged alpha but holds {len(shades)} shades in a sample, so it may be "
                "near infrared; it counts as an ordinary band unless --alpha is given"
            )
    black = (pixels == 0).all(axis=0)
    if scene.nodata is None and scene.dtype.kind != "f" and (black & valid).mean() > 0.01:
        yield f"{black.mean():.0%} of a sample is 0 in all bands; if that means nothing, say so with --nodata 0"
    if scene.scaling is not None:
        yield "its scale and offset tags are not applied: a model takes the pixels as stored, times its own scale"
    if scene.block_shape[1] == scene.grid.width > 2048:
        yield f"strips are slow to read in windows: gdal_translate -co TILED=YES -co COMPRESS=ZSTD {path} tiled.tif"
    if scene.dtype.name not in GDAL_TYPES:
        fits = next((name for name in GDAL_TYPES if holds(name, pixels[:, valid])), "float32")
        yield f"no model takes {scene.dtype}: gdal_translate -ot {GDAL_TYPES[fits]} {path} {fits}.tif"


def _is_class_raster(scene: Scene, pixels: Pixels, valid: Valid) -> bool:
    if scene.file_bands != 1 or scene.dtype.kind not in "iu":
        return False
    try:
        scene.dataset.colormap(1)
    except ValueError:
        return len(np.unique(pixels[0, valid])) <= _FEW_VALUES
    return True


def _count_classes(scene: Scene) -> tuple[dict[int, int], dict[int, float]]:
    """Pixels and square metres of each value among the valid pixels."""
    height, width = scene.grid.shape
    pixel_area = scene.grid.pixel_area_m2()
    counts: dict[int, int] = {}
    areas: dict[int, float] = {}
    for row in range(0, height, 512):
        window = Window(row, 0, min(512, height - row), width)
        pixels, valid = scene.read(window)
        values, numbers = np.unique(pixels[0, valid], return_counts=True)
        square_metres = float(pixel_area[row : row + window.height].mean())
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
            counts[value] = counts.get(value, 0) + number
            areas[value] = areas.get(value, 0.0) + number * square_metres
    return counts, areas


# Vectors


def vector_facts(path: str) -> list[Fact]:
    """Facts about a file of features, layer by layer: CRS, count, fields, and the values of fields that may be classes.

    Raises:
        LabelError: It cannot be read.
    """
    # and with it pandas, which a raster can do without
    from geoseg.scene.vector_files import STYLES, layer_names, open_layer, reading

    name = input_path(path)
    facts = [("vector", f"{path}{_file_size(path)}")]
    with reading("vector file", name, LabelError):
        for layer, _ in layer_names(name):
            if layer == STYLES:
                facts.append(("styles", "QGIS styles are inside"))
            else:
                facts += _layer_facts(open_layer(name, layer, count=True))
    return facts


def _layer_facts(layer: VectorLayer) -> list[Fact]:
    facts = [("layer", f"{layer.name}: {count(layer.features, 'feature')} of type {layer.kind or 'none'}")]
    if layer.crs is None:
        command = f"ogr2ogr -a_srs EPSG:… with_crs.gpkg {quoted(layer.path)} {quoted(layer.name)}"
        text = f"layer {layer.name} has no CRS, so it cannot be laid over a scene: {command}"
        facts += [("CRS", "none"), ("warning", text)]
    else:
        crs = pyproj_crs(layer.crs)
        facts.append(("CRS", _crs_text(crs)))
        if layer.features and layer.bounds is not None:
            facts.append(("extent", _extent(crs_georeference(crs), crs, layer.bounds)))
    attributes = layer.table()
    for field, dtype in layer.fields.items():
        kind = "text" if dtype in ("object", "string", "large_string") else dtype
        facts.append(("field", f"{field}: {kind}{_class_values(attributes[field])}"))
    return facts


def _class_values(column: Any) -> str:
    """Values and their counts, where few values recur as the classes of labels do."""
    counts = column.value_counts()
    recur = len(counts) == 1 or (1 < len(counts) <= _FEW_VALUES and counts.iloc[0] > 1)
    if column.dtype.kind in "fM" or not recur or max(len(str(value)) for value in counts.index) > 60:
        return ""
    missing = int(column.isna().sum())
    values = [f"{value} ({count})" for value, count in counts.items()] + ([f"empty ({missing})"] if missing else [])
    return ", values " + ", ".join(values)


# Models


def model_facts(folder: Path) -> list[Fact]:
    """Facts about a model folder.

    Raises:
        ModelError: No imagery contract, or a damaged one.
    """
    contract = load_contract(folder)
    facts = [("model", f"{contract.name}, in {folder}"), *_network_facts(folder)]
    facts += [("band", f"{b.name}: mean {b.mean:.4g}, standard deviation {b.std:.4g}") for b in contract.bands]
    facts += [
        ("pixels", f"{contract.dtype} × {contract.scale:.4g}, nodata {_contract_nodata(contract)}"),
        ("GSD", f"{contract.gsd_m:.4g} m" if contract.gsd_m else "any: trained without georeference"),
        ("windows", f"{contract.window.size} px that overlap by {contract.window.overlap} px"),
    ]
    facts += [
        ("class", f"{c.id} {c.name} {format_color(c.color)}{', background' if c.background else ''}")
        for c in contract.class_table
    ]
    return facts + [("training", f"{_words(key)}: {_text(value)}") for key, value in contract.training.items()]


def _network_facts(folder: Path) -> list[Fact]:
    config, weights = folder / "config.json", folder / "model.safetensors"
    facts = []
    if config.is_file():
        values = json.loads(config.read_text(encoding="utf-8"))
        words = [str(values[key]) for key in ("_model_class", "encoder_name") if values.get(key)]
        facts.append(("network", " with ".join(words) or "unnamed"))
    if weights.is_file():
        facts.append(("weights", f"{weights.name}{_file_size(str(weights))}"))
    missing = [p.name for p in (config, weights) if not p.is_file()]
    return facts + [("warning", f"{name} is missing, so the model cannot be loaded") for name in missing]


def _contract_nodata(contract: Contract) -> str:
    return "as the file says" if contract.nodata == "file" else f"{contract.nodata:g}"


def _model_folder(path: str) -> Path | None:
    """The folder where a path is one of a model or the name of a shipped model, else None."""
    if (Path(path) / CONTRACT_FILE).is_file():
        return Path(path)
    if not Path(path).exists() and re.fullmatch(r"[\w-]+", path):
        return find_model(path) if path in shipped_models() else None
    return None


# Words


def _crs_text(crs: pyproj.CRS) -> str:
    authority = crs.to_authority()
    return f"{':'.join(authority)}, {crs.name}" if authority else crs.name


def _extent(kind: Georeference, crs: AnyCRS | None, bounds: tuple[float, float, float, float]) -> str:
    """Bounds in degrees of WGS 84; in the units of the coordinates where they have no place on Earth."""
    way = transformer(crs, "EPSG:4326") if kind is Georeference.EARTH and crs is not None else None
    if way is not None:
        left, bottom, right, top = way.transform_bounds(*bounds)
        if np.isfinite([left, bottom, right, top]).all():
            return f"longitude {left:.6g} … {right:.6g}, latitude {bottom:.6g} … {top:.6g}"
    left, bottom, right, top = bounds
    unit = "" if crs is None else f" {_unit(pyproj_crs(crs))}"
    return f"x {left:.9g} … {right:.9g}{unit}, y {bottom:.9g} … {top:.9g}{unit}"


def _unit(crs: pyproj.CRS) -> str:
    name = crs.axis_info[0].unit_name
    return {"metre": "m", "degree": "°"}.get(name, name)


def _value_range(values: npt.NDArray[Any]) -> str:
    return f"{values.min():g} … {values.max():g}" if values.size else "none valid"


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


def _file_size(path: str) -> str:
    file = Path(path)
    if not file.is_file():
        return ""
    size = float(file.stat().st_size)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f", {size:.3g} {unit}"
