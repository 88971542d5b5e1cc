"""Checks of imagery before training: headers of every scene, pixels of a few places in some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg.config import ImageryConfig, SceneConfig
from geoseg.contract import GSD_TOLERANCE
from geoseg.data.checks.problems import Problem, as_problem, error, listed, warning
from geoseg.data.labelled import open_configured
from geoseg.errors import SceneError, quoted
from geoseg.georeference import AnyCRS, Georeference, crs_georeference, crs_name, pyproj_crs
from geoseg.grid import Grid, crs_hint
from geoseg.paths import InputPath
from geoseg.scene import Scene
from geoseg.scene.advice import bands_named, dtype_hint, palette_hint, scaling_hint
from geoseg.windows import Window
from geoseg.words import count

SAMPLE_SIDE, SAMPLES = 128, 3
"""Side of the windows that are read of a scene, px, and how many along each axis."""

HUGE_BLOCK_BYTES = 64 << 20
"""Of a scene with larger blocks one window is read: each costs a block."""

MAX_BLOCK_PX = 1024
MAX_DECODED = 4.0
"""A scene with longer blocks (strips are as long as the scene) is slow where more than so many times a window's pixels
are decoded for it."""

MAX_INVALID_SHARE = 0.5
MIN_ZERO_SHARE = 0.05
USUAL_RANGE = (0.05, 3.0)
"""Between these the brightest scaled pixels (their 99.5th percentile) of usual imagery lie."""

_FEW_FILES = 8
MAX_GSD_RATIO = 2.0

LOCAL = Georeference.LOCAL

_BRIGHTEST = 99.5
_FULL_SCALES = (255, 1023, 2047, 4095, 10_000, 65_535)


@dataclass(frozen=True, slots=True)
class SceneFacts:
    """What one scene has, to be compared with the others.

    Attributes:
        path: Of the scene.
        grid: Its grid.
        gsd_m: Its ground sample distance, m; None without CRS.
        decoded: Pixels decoded for each pixel of a window that trains.
        block_shape: (rows, columns) of its blocks, px.
        usable: Whether it can be trained on.
    """

    path: InputPath
    grid: Grid
    gsd_m: float | None
    decoded: float
    block_shape: tuple[int, int]
    usable: bool


def no_way(what: str, path: InputPath, crs: AnyCRS, scene: InputPath, scene_crs: AnyCRS, *, assign: str) -> Problem:
    """That no way leads from the CRS of labels to their scene's.

    Args:
        what: The labels, in the plural.
        path: Their file.
        crs: Their CRS.
        scene: The scene.
        scene_crs: Its CRS.
        assign: Command that gives the labels another CRS.
    """
    places = f"{what} {path} are in {crs_name(crs)}, scene {scene} in {crs_name(scene_crs)}"
    if crs_georeference(crs) is LOCAL:
        return error(path, f"{places}: the CRS of {what} does not say where on earth they lie", assign)
    if crs_georeference(scene_crs) is LOCAL:
        hint = f"where that is wrong: gdal_edit.py -a_srs EPSG:… {quoted(scene)}"
        return error(path, f"{places}: the scene's CRS is undefined, it does not say where on earth it lies", hint)
    return error(path, f"{places}: no way is known from one to the other", "draw the labels in the scene's own CRS")


def check_header(config: SceneConfig, imagery: ImageryConfig, size: int) -> tuple[list[Problem], SceneFacts | None]:
    """Whether a scene opens, and has the bands, the data type and a CRS that can be used.

    Args:
        config: Names the scene.
        imagery: What it must be.
        size: Side of the windows that train, px.

    Returns:
        Problems, and the scene's facts where it is a raster at all.
    """
    path = config.scene
    problems: list[Problem] = []
    try:
        scene = open_configured(config, imagery)
    except SceneError as raised:
        message = f"{raised.message}; the configuration wants {listed([str(b) for b in imagery.band_indexes], 8)} " + (
            f"({listed(imagery.bands, 8)})" if imagery.indexes is None else "as imagery.indexes"
        )
        is_about_bands = "was asked for" in raised.message
        try:
            scene = Scene(path, bands=(1,), crs=config.crs)
        except SceneError:
            return [as_problem(path, raised)], None
        hint = f"choose them with imagery.bands and imagery.indexes; see them with: geoseg info {quoted(path)}"
        if scene.has_palette:
            hint = palette_hint(str(path))
        problems.append(error(path, message, hint) if is_about_bands else as_problem(path, raised))
    with scene:
        if scene.dtype != imagery.dtype:
            message = f"scene {path} is {scene.dtype}, the configuration says {imagery.dtype}"
            problems.append(error(path, message, _dtype_hint(scene, imagery)))
        elif not problems:
            problems += _check_bands(scene, imagery)
        grid = scene.grid
        problems += _check_sides(scene)
        if scene.warp_command is not None:
            message = f"scene {path} has control points but no transform: its labels count in pixels"
            problems.append(warning(path, message, scene.warp_command))
        elif grid.georeference is LOCAL:
            message = f"the CRS of scene {path} ({crs_name(grid.crs)}) does not say where on earth it lies"
            problems.append(warning(path, f"{message}, so its labels must have the same CRS"))
        elif grid.georeference in (Georeference.ASTRAY, Georeference.CRS_ALONE):
            problems.append(warning(path, f"scene {path} {grid.place_note}"))
        facts = SceneFacts(
            path,
            grid,
            grid.gsd_m(),
            _decoded(grid, scene.block_shape, size),
            scene.block_shape,
            usable=not any(p.severity == "error" for p in problems),
        )
    return problems, facts


def _dtype_hint(scene: Scene, imagery: ImageryConfig) -> str:
    hint = f"set imagery.dtype={scene.dtype}"
    try:
        return f"{hint}; or convert this scene: {dtype_hint(scene, imagery.dtype).partition(': ')[2]}"
    except SceneError:  # the file is cut off or damaged, which is said elsewhere
        return hint


def _check_bands(scene: Scene, imagery: ImageryConfig) -> list[Problem]:
    """Bands that are others by their names, and scale and offset that are not applied."""
    problems, path = [], scene.path
    named = bands_named(path, imagery.bands) if imagery.indexes is None else None
    if named not in (None, imagery.band_indexes):
        taken, by_name = (",".join(map(str, bands)) for bands in (imagery.band_indexes, named))
        message = f"bands {taken} of scene {path} are taken for {', '.join(imagery.bands)}, by their names they are not"
        problems.append(warning(path, message, f"imagery.indexes=[{by_name}]"))
    scaling = scene.scaling
    if scaling is not None and any(pair != (imagery.effective_scale, 0) for pair in scaling):
        tags = ", ".join(f"{gain:g} and {offset:g}" for gain, offset in dict.fromkeys(scaling))
        message = f"scale and offset tags of scene {path} ({tags}) are not applied, but imagery.scale"
        hint = "the model will take other scenes the same way; where only some have such tags, apply them first: "
        hint += scaling_hint(scene, imagery.dtype, imagery.effective_scale)
        problems.append(warning(path, f"{message} ({imagery.effective_scale:.4g})", hint))
    return problems


def _check_sides(scene: Scene) -> list[Problem]:
    """Pixels that are far from square on the ground: a network learns shapes that another grid does not have."""
    sides, grid = scene.grid.pixel_size_m(), scene.grid
    if sides is None or max(sides) <= (1 + GSD_TOLERANCE) * min(sides):
        return []
    if pyproj_crs(grid.crs).is_geographic:
        longitude, latitude = grid.transform @ (grid.width / 2, grid.height / 2)
        how = f"-t_srs EPSG:{326 if latitude >= 0 else 327}{int((longitude + 180) % 360 // 6) + 1:02d}"
    else:
        side = min(abs(grid.transform.a), abs(grid.transform.e)) or min(sides)
        how = f"-tr {side:.9g} {side:.9g}"
    message = f"the pixels of scene {scene.path} are {sides[1]:.3g} m wide and {sides[0]:.3g} m high, far from square"
    hint = f"make them square: gdalwarp {how} -r bilinear {quoted(scene.path)} square.tif"
    return [warning(scene.path, message, hint)]


def check_pixels(config: SceneConfig, imagery: ImageryConfig) -> list[Problem]:
    """What a few windows of a scene show: bands without content, nodata, values off the usual scale.

    Args:
        config: Names a scene whose header is in order.
        imagery: What its pixels should be.
    """
    path = config.scene
    try:
        with open_configured(config, imagery) as scene:
            parts = [scene.read(window) for window in _samples(scene)]
            has_nodata = scene.nodata is not None or imagery.alpha
            dtype = scene.dtype
    except SceneError as raised:
        return [as_problem(path, raised)]
    valid = np.concatenate([v.ravel() for _, v in parts])
    pixels = np.concatenate([p.reshape(len(p), -1) for p, _ in parts], axis=1)[:, valid]  # (B, valid pixels)
    share = 1 - valid.mean()
    if not valid.any():
        return [
            warning(
                path,
                f"none of {count(valid.size, 'pixel')} looked at in scene {path} is valid",
                f"see what it holds with: geoseg info {quoted(path)}; then imagery.nodata",
            )
        ]
    problems = []
    if share > MAX_INVALID_SHARE:
        problems.append(
            warning(
                path,
                f"{share:.0%} of the pixels looked at in scene {path} are nodata: most of its windows teach little",
                "cut the scene to what it shows, or leave it out",
            )
        )
    finite = np.isfinite(pixels).all(axis=0)
    if not finite.all():
        problems.append(
            error(
                path,
                f"scene {path} holds infinite values ({1 - finite.mean():.2g} of the pixels looked at)",
                "make them nodata, or imagery.nodata=…",
            )
        )
        pixels = pixels[:, finite]
    if not pixels.size:
        return problems
    if imagery.nodata == "file" and not has_nodata:
        zero = float((pixels == 0).all(axis=0).mean())
        if MIN_ZERO_SHARE < zero < 1:
            problems.append(
                warning(
                    path,
                    f"{zero:.0%} of the pixels looked at in scene {path} are 0 in all bands, "
                    "and there is no nodata value",
                    "where they mean nothing: imagery.nodata=0",
                )
            )
    problems += _constant_bands(path, imagery, pixels)
    scale = _off_scale(path, imagery, dtype, pixels)
    return [*problems, scale] if scale is not None else problems


def compare_scenes(facts: Sequence[SceneFacts]) -> list[Problem]:
    """What only shows side by side: scenes with and without CRS, of very different GSD, and those that are slow."""
    problems = []
    without = [f for f in facts if not f.grid.is_georeferenced]
    if without and len(without) < len(facts):
        problems.append(
            warning(
                without[0].path,
                f"{len(without)} of {len(facts)} scenes have no CRS, the others have one: "
                f"{_names([f.path for f in without])}",
                crs_hint(without[0].grid),
            )
        )
    sized = sorted((f for f in facts if f.gsd_m is not None), key=lambda f: f.gsd_m or 0)
    if sized:
        finest, coarsest = sized[0], sized[-1]
        assert finest.gsd_m is not None and coarsest.gsd_m is not None
        if coarsest.gsd_m > MAX_GSD_RATIO * finest.gsd_m:
            problems.append(
                warning(
                    coarsest.path,
                    f"scenes differ in pixel size: {finest.path} has {finest.gsd_m:.3g} m, "
                    f"{coarsest.path} {coarsest.gsd_m:.3g} m",
                    f"train a model for each, or bring them to one: {_resampled(finest, coarsest.grid)}",
                )
            )
    slow = [f for f in facts if max(f.block_shape) > MAX_BLOCK_PX and f.decoded > MAX_DECODED]
    if slow:
        worst = max(slow, key=lambda f: f.decoded)
        problems.append(
            warning(
                worst.path,
                f"{len(slow)} of {len(facts)} scenes are stored in a way that makes windows slow to read: "
                f"{_names([f.path for f in slow])} (blocks of {worst.block_shape[0]} × {worst.block_shape[1]} px, "
                f"{worst.decoded:.0f} times what a window shows)",
                f"geoseg prepare scenes {_typed([f.path for f in slow])} -o FOLDER",
            )
        )
    return problems


def _typed(paths: Sequence[InputPath]) -> str:
    """Files as arguments of a command; many of one folder by a pattern, for the shell to write out."""
    folders: dict[str, list[InputPath]] = {}
    for path in paths:
        pattern = f"{quoted(path.parent)}/*{path.suffix}" if isinstance(path, Path) else quoted(path)
        folders.setdefault(pattern, []).append(path)
    words = [[pattern] if len(files) > _FEW_FILES else map(quoted, files) for pattern, files in folders.items()]
    return " ".join(word for part in words for word in part)


def _resampled(scene: SceneFacts, wanted: Grid) -> str:
    t = wanted.transform
    to = "" if scene.grid.crs == wanted.crs else f"-t_srs {quoted(crs_name(wanted.crs))} "
    sides = f"{np.hypot(t.a, t.d):.9g} {np.hypot(t.b, t.e):.9g}"
    return f"gdalwarp {to}-tr {sides} -r average {quoted(scene.path)} coarser.tif"


def _names(paths: Sequence[str | PathLike[str]]) -> str:
    return listed([str(path) for path in paths], 3)


def _decoded(grid: Grid, block_shape: tuple[int, int], size: int) -> float:
    """Pixels decoded on average for a window of a random place, over those it shows."""
    decoded, shown = 1.0, 1.0
    for length, block in zip(grid.shape, block_shape, strict=True):
        window = min(size, length)
        decoded *= min(window + block - 1, -(-length // block) * block)
        shown *= window
    return decoded / shown


def _samples(scene: Scene) -> list[Window]:
    """Windows spread evenly over a scene: nine, or one in the middle where blocks are huge."""
    rows, cols = scene.block_shape
    huge = rows * cols * scene.file_bands * scene.dtype.itemsize > HUGE_BLOCK_BYTES
    starts, sides = [], []
    for length in scene.grid.shape:
        side = min(SAMPLE_SIDE, length)
        last = length - side
        starts.append([last // 2] if huge else sorted({round(last * i / (SAMPLES - 1)) for i in range(SAMPLES)}))
        sides.append(side)
    return [Window(row, col, sides[0], sides[1]) for row in starts[0] for col in starts[1]]


def _constant_bands(path: InputPath, imagery: ImageryConfig, pixels: npt.NDArray[Any]) -> list[Problem]:
    constant = np.flatnonzero(pixels.min(axis=1) == pixels.max(axis=1)).tolist()
    if not constant:
        return []
    told = [f"{imagery.band_indexes[b]} ({imagery.bands[b]}) is {pixels[b, 0]:g}" for b in constant]
    return [
        warning(
            path,
            f"band {listed(told, 4)} in all pixels looked at in scene {path}",
            f"see its bands with: geoseg info {quoted(path)}; then imagery.bands, imagery.indexes",
        )
    ]


def _off_scale(
    path: InputPath, imagery: ImageryConfig, dtype: np.dtype[Any], pixels: npt.NDArray[Any]
) -> Problem | None:
    """A warning where the default scale leaves pixels far from the range that networks and augmentation expect."""
    if imagery.scale is not None or imagery.dtype != dtype:
        return None
    brightest = float(np.percentile(np.abs(pixels.astype(np.float32)), _BRIGHTEST))
    low, high = USUAL_RANGE
    if brightest == 0 or low <= brightest * imagery.effective_scale <= high:
        return None
    full = next((f for f in _FULL_SCALES if brightest <= f), brightest) if brightest > 1.5 else 1.0
    return warning(
        path,
        f"the {imagery.dtype} pixels of scene {path} reach {brightest:g}; times the scale "
        f"{imagery.effective_scale:.4g} that is {brightest * imagery.effective_scale:.3g}, and about 1 is usual",
        f"imagery.scale={1 / full:.6g}",
    )
