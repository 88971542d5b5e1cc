"""Checks of imagery before training: headers of all scenes, pixels of a few places."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geoseg.arrays import AnyArray
from geoseg.config.settings import ImageryConfig, SceneConfig
from geoseg.contract import GSD_TOLERANCE
from geoseg.data.labelled import open_configured
from geoseg.data.problems import Problem, as_problem, error, warning
from geoseg.errors import SceneError, quoted
from geoseg.georeference import Georeference, crs_name, pyproj_crs
from geoseg.grid import Grid, crs_hint
from geoseg.paths import InputPath
from geoseg.scene import Scene
from geoseg.scene.advice import bands_named, dtype_hint, palette_hint, scaling_hint
from geoseg.words import count, listed

MAX_BLOCK_PX = 1024
MAX_DECODED = 4.0
"""A scene with longer blocks (strips are as long as the scene) is slow if more than this many times a window's pixels
must be decoded for it."""

MAX_INVALID_SHARE = 0.5
MIN_ZERO_SHARE = 0.05
MAX_GSD_RATIO = 2.0
USUAL_RANGE = (0.05, 3.0)  # of the brightest scaled pixels, their 99.5th percentile
_FULL_SCALES = (255, 1023, 2047, 4095, 10_000, 65_535)


@dataclass(frozen=True, slots=True)
class SceneFacts:
    """Facts of one scene, to be compared with others."""

    path: InputPath  # the scene
    grid: Grid  # its grid
    gsd_m: float | None  # its ground sample distance, m, after resampling; None without a CRS
    decoded: float  # pixels decoded for each pixel of a training window
    block_shape: tuple[int, int]  # (rows, columns) of its blocks, px


def check_header(config: SceneConfig, imagery: ImageryConfig, size: int) -> tuple[list[Problem], SceneFacts | None]:
    """Whether a scene opens, with the configured bands and data type, and a usable CRS; its facts if it is a raster."""
    path = config.scene
    problems: list[Problem] = []
    try:
        scene = open_configured(config, imagery)
    except SceneError as raised:
        try:
            scene = Scene(path, bands=(1,), crs=config.crs)
        except SceneError:
            return [as_problem(path, raised)], None
        problems.append(_open_problem(scene, imagery, raised))
    with scene:
        if scene.dtype != imagery.dtype:
            hint = f"set imagery.dtype={scene.dtype}"
            with suppress(SceneError):  # the file is truncated or damaged, which another check reports
                hint += f"; or convert this scene: {dtype_hint(scene, imagery.dtype).partition(': ')[2]}"
            message = f"scene {path} is {scene.dtype}, the configuration says {imagery.dtype}"
            problems.append(error(path, message, hint))
        elif not problems:
            problems += _check_bands(scene, imagery)
        problems += _check_place(scene, imagery)
        decoded = _decoded(scene.grid, scene.block_shape, size)
        gsd = scene.grid.gsd_m()
        seen = gsd if imagery.gsd_m is None or gsd is None else imagery.gsd_m
        facts = SceneFacts(path, scene.grid, seen, decoded, scene.block_shape)
    return problems, facts


def _open_problem(scene: Scene, imagery: ImageryConfig, raised: SceneError) -> Problem:
    """The problem of a raster that cannot be opened with the configured bands."""
    path = scene.path
    if "was asked for" not in raised.message:
        return as_problem(path, raised)
    named = f"({listed(imagery.bands, 8)})" if imagery.indexes is None else "as imagery.indexes"
    expected = f"{listed([str(b) for b in imagery.band_indexes], 8)} {named}"
    hint = f"choose them with imagery.bands and imagery.indexes; see them with: geoseg info {quoted(path)}"
    message = f"{raised.message}; the configuration asks for {expected}"
    return error(path, message, palette_hint(path) if scene.has_palette else hint)


def _check_bands(scene: Scene, imagery: ImageryConfig) -> Iterator[Problem]:
    """Bands whose names are others, and scale and offset tags, which are not applied."""
    path = scene.path
    named = bands_named(path, imagery.bands) if imagery.indexes is None else None
    if named not in (None, imagery.band_indexes):
        assert named is not None
        taken, by_name = (",".join(map(str, bands)) for bands in (imagery.band_indexes, named))
        message = f"bands {taken} of scene {path} are used as {', '.join(imagery.bands)}, but have other names"
        yield warning(path, message, f"imagery.indexes=[{by_name}]")
    scaling = scene.scaling
    if scaling is not None and any(pair != (imagery.effective_scale, 0) for pair in scaling):
        tags = ", ".join(f"{gain:g} and {offset:g}" for gain, offset in dict.fromkeys(scaling))
        message = f"scale and offset tags of scene {path} ({tags}) are not applied, but imagery.scale"
        hint = "the model will treat other scenes the same way; if only some have such tags, apply them first: "
        hint += scaling_hint(scene, imagery.dtype, imagery.effective_scale)
        yield warning(path, f"{message} ({imagery.effective_scale:.4g})", hint)


def _check_place(scene: Scene, imagery: ImageryConfig) -> Iterator[Problem]:
    """Pixels that are far from square on the ground, and a place on Earth that is not known."""
    sides, grid, path = scene.grid.pixel_size_m(), scene.grid, scene.path
    if imagery.gsd_m is None and sides is not None and max(sides) > (1 + GSD_TOLERANCE) * min(sides):
        if pyproj_crs(grid.crs).is_geographic:
            longitude, latitude = grid.transform @ (grid.width / 2, grid.height / 2)
            how = f"-t_srs EPSG:{326 if latitude >= 0 else 327}{int((longitude + 180) % 360 // 6) + 1:02d}"
        else:
            side = min(abs(grid.transform.a), abs(grid.transform.e)) or min(sides)
            how = f"-tr {side:.9g} {side:.9g}"
        message = f"the pixels of scene {path} are {sides[1]:.3g} m wide and {sides[0]:.3g} m high, far from square"
        yield warning(path, message, f"make them square: gdalwarp {how} -r bilinear {quoted(path)} square.tif")
    if scene.warp_command is not None:
        message = f"scene {path} has control points but no transform: its labels count in pixels"
        yield warning(path, message, scene.warp_command)
    elif grid.georeference is Georeference.LOCAL:
        message = f"the CRS of scene {path} ({crs_name(grid.crs)}) does not say where on Earth it lies"
        yield warning(path, f"{message}, so its labels must have the same CRS")
    elif grid.georeference in (Georeference.ASTRAY, Georeference.CRS_ALONE):
        yield warning(path, f"scene {path} {grid.place_note}")


def check_pixels(config: SceneConfig, imagery: ImageryConfig) -> Iterator[Problem]:
    """Problems that a few windows of a scene show: constant bands, nodata, values off the usual scale."""
    path = config.scene
    try:
        with open_configured(config, imagery) as scene:
            pixels, valid = scene.sample()
            has_nodata = scene.nodata is not None or imagery.alpha
    except SceneError as raised:
        yield as_problem(path, raised)
        return
    pixels, share = pixels[:, valid], 1 - valid.mean()
    if not valid.any():
        hint = f"see what it holds with: geoseg info {quoted(path)}; then imagery.nodata"
        yield warning(path, f"none of {count(valid.size, 'pixel')} sampled in scene {path} is valid", hint)
        return
    if share > MAX_INVALID_SHARE:
        message = f"{share:.0%} of the pixels sampled in scene {path} are nodata: most of its windows teach little"
        yield warning(path, message, "cut the scene to its valid part, or leave it out")
    finite = np.isfinite(pixels).all(axis=0)
    if not finite.all():
        message = f"scene {path} has infinite values ({1 - finite.mean():.2g} of the pixels sampled)"
        yield error(path, message, "make them nodata, or imagery.nodata=…")
        pixels = pixels[:, finite]
    if not pixels.size:
        return
    if imagery.nodata == "file" and not has_nodata:
        zero = float((pixels == 0).all(axis=0).mean())
        if MIN_ZERO_SHARE < zero < 1:
            message = f"{zero:.0%} of the pixels sampled in scene {path} are 0 in all bands, but it has no nodata value"
            yield warning(path, message, "if 0 means no data: imagery.nodata=0")
    constant = np.flatnonzero(pixels.min(axis=1) == pixels.max(axis=1)).tolist()
    if constant:
        bands = [f"{imagery.band_indexes[b]} ({imagery.bands[b]}) is {pixels[b, 0]:g}" for b in constant]
        message = f"band {listed(bands, 4)} in all pixels sampled in scene {path}"
        hint = f"see its bands with: geoseg info {quoted(path)}; then imagery.bands, imagery.indexes"
        yield warning(path, message, hint)
    if imagery.scale is None and imagery.dtype == pixels.dtype:
        yield from _check_scale(path, imagery, pixels)


def _check_scale(path: InputPath, imagery: ImageryConfig, pixels: AnyArray) -> Iterator[Problem]:
    """Pixels that the default scale leaves far from the range that networks and augmentation expect."""
    brightest = float(np.percentile(np.abs(pixels.astype(np.float32)), 99.5))
    scaled = brightest * imagery.effective_scale
    if brightest == 0 or USUAL_RANGE[0] <= scaled <= USUAL_RANGE[1]:
        return
    full = next((f for f in _FULL_SCALES if brightest <= f), brightest) if brightest > 1.5 else 1.0
    yield warning(
        path,
        f"the {imagery.dtype} pixels of scene {path} reach {brightest:g}; times the scale "
        f"{imagery.effective_scale:.4g} that is {scaled:.3g}, but about 1 is usual",
        f"imagery.scale={1 / full:.6g}",
    )


def compare_scenes(facts: Sequence[SceneFacts]) -> Iterator[Problem]:
    """Scenes with and without CRS, scenes of very different GSD, and scenes that are slow to read."""
    without = [f for f in facts if not f.grid.is_georeferenced]
    if without and len(without) < len(facts):
        message = f"{len(without)} of {len(facts)} scenes have no CRS, the others have one: {_names(without)}"
        yield warning(without[0].path, message, crs_hint(without[0].grid))
    sized = sorted((f.gsd_m, str(f.path), f) for f in facts if f.gsd_m is not None)
    if sized:
        (fine, _, finest), (coarse, _, coarsest) = sized[0], sized[-1]
        if coarse > MAX_GSD_RATIO * fine:
            message = f"scenes differ in pixel size: {finest.path} has {fine:.3g} m, {coarsest.path} {coarse:.3g} m"
            hint = f"train a model for each, or resample all to one size: imagery.gsd_m={coarse:.3g}"
            yield warning(coarsest.path, message, hint)
    slow = [f for f in facts if max(f.block_shape) > MAX_BLOCK_PX and f.decoded > MAX_DECODED]
    if slow:
        worst = max(slow, key=lambda f: f.decoded)
        yield warning(
            worst.path,
            f"{len(slow)} of {len(facts)} scenes are stored in a way that makes windows slow to read: "
            f"{_names(slow)} (blocks of {worst.block_shape[0]} × {worst.block_shape[1]} px, "
            f"{worst.decoded:.0f} times what a window shows)",
            f"geoseg prepare scenes {_typed([f.path for f in slow])} -o FOLDER",
        )


def _typed(paths: Sequence[InputPath]) -> str:
    """Files as arguments of a command; many of one folder as a pattern, for the shell to expand."""
    folders: dict[str, list[str]] = {}
    for path in paths:
        pattern = f"{quoted(path.parent)}/*{path.suffix}" if isinstance(path, Path) else quoted(path)
        folders.setdefault(pattern, []).append(quoted(path))
    return " ".join(pattern if len(files) > 8 else " ".join(files) for pattern, files in folders.items())


def _names(facts: Sequence[SceneFacts]) -> str:
    return listed([str(f.path) for f in facts], 3)


def _decoded(grid: Grid, block_shape: tuple[int, int], size: int) -> float:
    """Pixels decoded on average for a window at a random place, over those it shows."""
    decoded = 1.0
    for length, block in zip(grid.shape, block_shape, strict=True):
        window = min(size, length)
        decoded *= min(window + block - 1, -(-length // block) * block) / window
    return decoded
