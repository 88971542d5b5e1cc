"""Facts and warnings about a raster, imagery or class ids; texts that vector files and models share."""

import math
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyproj
from rasterio.enums import MaskFlags

from geoseg.arrays import AnyArray
from geoseg.class_map import read_class_map
from geoseg.classes import NODATA
from geoseg.contract import Contract, WindowSettings, find_model, load_contract, shipped_models
from geoseg.errors import SceneError, quoted
from geoseg.georeference import AnyCRS, Georeference, pyproj_crs, transformer
from geoseg.grid import Grid
from geoseg.options import Tiling
from geoseg.runtime.machine import processors
from geoseg.scene import Pixels, Scene, Valid
from geoseg.scene.advice import GDAL_TYPES, holds, palette_hint
from geoseg.tiling.plan import MAX_CPU_WINDOWS, LogitsShape, Plan, SceneShape, plan_prediction
from geoseg.windows import Window, pieces

Fact: TypeAlias = tuple[str, str]  # A line of the description: name and text
FEW_VALUES = 32  # no more values than this may be classes
STRIDE = 8  # pixels per logit of SegNeXt

_SQUARE = 0.01
_WHOLE_READ_PX = 400_000_000


def scene_facts(scene: Scene, pixels: Pixels, valid: Valid, model: str | None) -> list[Fact]:
    """Facts and warnings about imagery; ``pixels`` (B, N) and ``valid`` (N,) are a sample of it."""
    facts = [("scene", scene.path), *_raster_facts(scene)]
    for band, name, values in zip(scene.bands, scene.band_names, pixels, strict=True):
        interp = scene.dataset.colorinterp[band - 1].name
        tagged = f", tagged {interp}" if interp not in (name, "undefined", "gray") else ""
        scaled = ""
        if scene.scaling is not None:
            scaled = ", scale {:g} and offset {:g} in its tags".format(*scene.scaling[scene.bands.index(band)])
        text = f"{name}{tagged}, {scene.dtype}, values {_value_range(values[valid])} in a sample{scaled}"
        facts.append((f"band {band}", text))
    facts.append(("nodata", _validity(scene)))
    facts += _prediction(scene, model)
    warnings = (*_place_warnings(scene), *_warnings(scene, pixels, valid))
    return facts + [("warning", text) for text in warnings]


def class_raster_facts(scene: Scene) -> list[Fact]:
    """Facts about a raster of class ids: the share of every class, and its area where the raster is georeferenced."""
    facts = [("class map", scene.path), *_raster_facts(scene), ("nodata", _validity(scene))]
    names: dict[int, str] = {}
    if scene.dtype == np.uint8:
        names = dict(enumerate(read_class_map(scene.path, window=Window(0, 0, 1, 1)).classes.names))
    warnings = [("warning", text) for text in _place_warnings(scene)]
    if scene.has_palette and len(names) > FEW_VALUES:
        warnings.append(("warning", f"where it is imagery, and no classes, {palette_hint(scene.path)}"))
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
    file = scene.dataset
    compression = file.compression.value if file.compression else "none"
    rows, cols = scene.block_shape
    overviews = ", ".join(f"1/{level}" for level in file.overviews(1)) or "none"
    return [
        ("size", f"{width} × {height} px, {height * width / 1e6:.4g} Mpx{file_size(scene.path)}"),
        *_place_facts(grid),
        ("file", f"{file.driver}, blocks of {cols} × {rows} px, compression {compression}, overviews {overviews}"),
    ]


def _place_facts(grid: Grid) -> list[Fact]:
    kind = grid.georeference
    if kind is Georeference.NONE:
        return [("CRS", "none: the raster has no georeference")]
    crs = "none" if grid.crs is None else crs_text(pyproj_crs(grid.crs))
    if kind is Georeference.CRS_ALONE:
        return [("CRS", f"{crs}, but no transform")]
    t = grid.transform
    sides = f"{math.hypot(t.a, t.d):.6g} × {math.hypot(t.b, t.e):.6g}"
    pixel = f"{sides} units" if grid.crs is None else f"{sides} {unit_name(pyproj_crs(grid.crs))} on the map"
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
        ("extent", f"{extent(kind, grid.crs, grid.bounds)}, {area:.4g} {unit}"),
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
    plan = _plan(scene, WindowSettings(), classes=2, stride=STRIDE)
    return facts or [("prediction", f"{plan} (SegNeXt of two classes; name a model with -m)")]


def _planned(scene: Scene, contract: Contract, stride: int) -> Fact:
    plan = _plan(scene, contract.window, classes=len(contract.class_table.channels), stride=stride)
    return "prediction", f"{plan}, with {contract.name}"


def _plan(scene: Scene, window: WindowSettings, *, classes: int, stride: int) -> Plan:
    """As `geoseg.prediction.predictor.Predictor.plan`, which would load numba."""
    shape = SceneShape(
        height=scene.grid.height,
        width=scene.grid.width,
        pixel_bytes=len(scene.bands) * scene.dtype.itemsize,
        chunk_rows=scene.block_shape[0],
    )
    tiling = Tiling(size=window.size, overlap=window.overlap)
    at_once = min(processors(), MAX_CPU_WINDOWS)
    return plan_prediction(shape, LogitsShape(stride=stride, classes=classes), tiling, batch_size=at_once)


def _place_warnings(scene: Scene) -> Iterable[str]:
    if scene.warp_command is not None:
        yield f"it has control points that are not applied yet: {scene.warp_command}"
    elif scene.grid.place_note is not None:
        yield f"it {scene.grid.place_note}"


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


def is_class_raster(scene: Scene, pixels: Pixels, valid: Valid) -> bool:
    """Whether a raster seems to hold class ids: one band of integers with a palette, or of few values."""
    if scene.file_bands != 1 or scene.dtype.kind not in "iu":
        return False
    return scene.has_palette or len(np.unique(pixels[0, valid])) <= FEW_VALUES


def _count_classes(scene: Scene) -> tuple[dict[int, int], dict[int, float]]:
    """Pixels and square metres of each value among the valid pixels."""
    pixel_area = scene.grid.pixel_area_m2()
    counts: dict[int, int] = defaultdict(int)
    areas: dict[int, float] = defaultdict(float)
    for window in pieces(*scene.grid.shape, 512, scene.grid.width):
        pixels, valid = scene.read(window)
        values, numbers = np.unique(pixels[0, valid], return_counts=True)
        square_metres = float(pixel_area[window.row : window.row_stop].mean())
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
            counts[value] += number
            areas[value] += number * square_metres
    return counts, areas


def _value_range(values: AnyArray) -> str:
    return f"{values.min():g} … {values.max():g}" if values.size else "none valid"


def crs_text(crs: pyproj.CRS) -> str:
    """Code and name of a CRS."""
    authority = crs.to_authority()
    return f"{':'.join(authority)}, {crs.name}" if authority else crs.name


def extent(kind: Georeference, crs: AnyCRS | None, bounds: tuple[float, float, float, float]) -> str:
    """Bounds in degrees of WGS 84; in the units of the coordinates where they have no place on Earth."""
    way = transformer(crs, "EPSG:4326") if kind is Georeference.EARTH and crs is not None else None
    if way is not None:
        left, bottom, right, top = way.transform_bounds(*bounds)
        if np.isfinite([left, bottom, right, top]).all():
            return f"longitude {left:.6g} … {right:.6g}, latitude {bottom:.6g} … {top:.6g}"
    left, bottom, right, top = bounds
    symbol = "" if crs is None else f" {unit_name(pyproj_crs(crs))}"
    return f"x {left:.9g} … {right:.9g}{symbol}, y {bottom:.9g} … {top:.9g}{symbol}"


def unit_name(crs: pyproj.CRS) -> str:
    """Symbol or name of the unit of the axes."""
    name = crs.axis_info[0].unit_name
    return {"metre": "m", "degree": "°"}.get(name, name)


def file_size(path: str) -> str:
    """Size of a file, after a comma; empty if there is none."""
    file = Path(path)
    if not file.is_file():
        return ""
    size = float(file.stat().st_size)
    for symbol in ("B", "kB", "MB", "GB"):
        if size < 1000 or symbol == "GB":
            break
        size /= 1000
    return f", {size:.3g} {symbol}"
