"""Rasters that are slow to read in windows to tiled GeoTIFFs, pixel for pixel: ``geoseg prepare scenes``.

A window of a striped TIFF costs whole rows, one of a PNG or JPEG all rows above it, one in tiles little but itself.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterWindow
from tqdm import tqdm

from geoseg.errors import OutputError, SceneError, in_one_line, quoted
from geoseg.files import atomic_output, check_output, make_folder
from geoseg.georeference import copy_raster
from geoseg.options import AnyPath
from geoseg.paths import RASTER_SUFFIXES, InputPath, input_path, opened_name
from geoseg.runtime.ahead import gather
from geoseg.runtime.machine import processors
from geoseg.scene.open_files import open_dataset, reason

BLOCK = 256  # side of the blocks of a copy, px

FAST = frozenset({"none", "deflate", "lzw", "zstd", "packbits", "lerc_zstd", "lerc_deflate", "lerc"})
"""Compressions that a GeoTIFF of small blocks may have to be fast; JPEG takes twice as long, others longer."""

_LARGEST_BLOCK = 1024  # longest side of a block that costs little more than the window it is read for, px
_PIXEL_INTERLEAVED = 4
"""Up to this many bands lie pixel by pixel; of more, few are usually wanted, and each has blocks of its own."""
_FAILED = "files cannot be copied"
_COMPARED_BYTES = 128 << 20
_TIMED_PX, _TIMED_WINDOWS, _TIMED_SECONDS = 512, 6, 2.0


@dataclass(frozen=True, slots=True)
class PreparedScene:
    """What became of one file."""

    source: InputPath
    target: Path | None  # its copy; None where it was fast enough and left alone
    why: str  # how the source is laid out
    bytes: tuple[int, int] = (0, 0)  # of source and copy
    seconds: tuple[float, float] = (0.0, 0.0)  # for a window of 512 px at a random place, in the page cache

    def line(self) -> str:
        """For people."""
        if self.target is None:
            return f"{self.source}  left alone: {self.why} already (--overwrite copies it all the same)"
        before, after = self.seconds
        sizes = " → ".join(f"{size / 1e6:,.1f}" for size in self.bytes)
        times = f"{1e3 * before:,.1f} → {1e3 * after:,.1f} ms a window"
        return f"{self.target}  {self.why}, {sizes} MB, {times} ({before / max(after, 1e-9):.1f} ×)"


@dataclass(frozen=True, slots=True)
class PreparedScenes:
    """What became of several files."""

    folder: Path
    scenes: tuple[PreparedScene, ...]  # in the order given

    def lines(self) -> list[str]:
        """The report for people."""
        copied = [scene for scene in self.scenes if scene.target is not None]
        sizes = " → ".join(f"{sum(scene.bytes[i] for scene in copied) / 1e6:,.1f}" for i in (0, 1))
        total = f"{len(copied)} copied, {sizes} MB, every pixel compared; {len(self.scenes) - len(copied)} left alone"
        return [*(scene.line() for scene in self.scenes), total, str(self.folder)]


def prepare_scenes(
    sources: Sequence[AnyPath], output: AnyPath, *, overwrite: bool = False, progress: bool = False
) -> PreparedScenes:
    """Copy rasters into tiled, zstd-compressed GeoTIFFs ``FOLDER/STEM.tif``, several at once.

    All bands, georeference (CRS, transform, GCPs, RPCs), nodata, mask, colours, descriptions, scales and tags are
    kept. Every copy is read back and compared before it appears. Files that are fast already are left alone.
    With ``overwrite`` these are copied too, and copies that are there are replaced.

    Raises:
        SceneError: Files that cannot be opened, and nothing is copied; or whose pixels cannot be read, and the others
            are. All of these are listed.
        OutputError: Two files would get one name, a copy exists, or the folder cannot be written.
    """
    names = [opened_name(source, RASTER_SUFFIXES, SceneError) for source in sources]
    paths, folder = list(dict.fromkeys(input_path(name) for name in names)), Path(output)
    layouts = dict(zip(paths, gather(_layout, paths, _FAILED), strict=True))
    wanted = [path for path, (_, is_fast) in layouts.items() if overwrite or not is_fast]
    targets = _targets(wanted, folder, overwrite=overwrite)
    threads = max(min(processors(), len(wanted)), 1)
    # A single file is compressed by all cores, many by one core each.
    cores = max(processors() // threads, 1)

    with tqdm(total=len(wanted), unit="scene", desc="prepare", disable=not progress) as bar:

        def copied(path: InputPath) -> None:
            try:
                _copy(path, targets[path], cores)
            finally:
                bar.update()

        gather(copied, wanted, _FAILED, threads=threads, name="prepare")
    # One after another and with nothing beside, or the times would be of the machine's other work.
    scenes = []
    for path, (layout, _) in layouts.items():
        target = targets.get(path)
        if target is None:
            scenes.append(PreparedScene(path, None, layout))
        else:
            sizes = Path(path).stat().st_size if Path(path).exists() else 0, target.stat().st_size
            scenes.append(PreparedScene(path, target, layout, sizes, (_seconds(path), _seconds(target))))
    return PreparedScenes(folder, tuple(scenes))


def _layout(path: InputPath) -> tuple[str, bool]:
    """How a file is laid out, for people, and whether windows of it are fast already."""
    with open_dataset(str(path)) as dataset:
        if not dataset.count:
            raise SceneError(f"{path} holds no bands of its own", hint=f"list its parts with: gdalinfo {quoted(path)}")
        if dataset.driver != "GTiff":
            return dataset.driver, False
        rows, cols = dataset.block_shapes[0]
        tags = dataset.tags(ns="IMAGE_STRUCTURE")
        compression = tags.get("COMPRESSION", "none").lower().removeprefix("ycbcr ")
        # A strip of a narrow file is no worse than a tile.
        is_small = max(rows, cols) <= _LARGEST_BLOCK
        kind = f"tiles of {cols} × {rows} px" if dataset.profile.get("tiled") else f"strips of {rows} rows"
        return f"{kind}, {compression}", is_small and compression in FAST


def _targets(paths: Sequence[InputPath], folder: Path, *, overwrite: bool) -> dict[InputPath, Path]:
    """Where each file goes, once it is known that all may be written."""
    if not paths:
        return {}
    names: dict[str, InputPath] = {}
    clashes = []
    for path in paths:
        # Some file systems take A.tif and a.tif for one.
        other = names.setdefault(Path(path).stem.casefold(), path)
        if other is not path:
            clashes.append(f"{other} and {path} would both be {folder / Path(path).stem}.tif")
    if clashes:
        raise OutputError("\n  ".join(clashes), hint="copy them into two folders, one after the other")
    make_folder(folder)

    def checked(path: InputPath) -> Path:
        return check_output(folder / f"{Path(path).stem}.tif", overwrite=overwrite, inputs=paths)

    return dict(zip(paths, gather(checked, paths, _FAILED), strict=True))


def _copy(source: InputPath, target: Path, cores: int) -> None:
    """Copy one file and compare."""
    with atomic_output(target) as scratch:
        try:
            with open_dataset(str(source)) as dataset, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
                copy_raster(dataset, scratch, driver="GTiff", **_options(dataset, cores))
                with open_dataset(str(scratch)) as copy:
                    _compare(dataset, copy, source, target)
        except RasterioError as error:
            raise SceneError(
                f"{source} cannot be copied to {target}: {in_one_line(reason(error, str(source)))}",
                hint=f"check the file with: gdalinfo -checksum {quoted(source)}, and the free space of {target.parent}",
            ) from error


def _options(dataset: Any, cores: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "tiled": "yes",
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "zstd",
        "bigtiff": "if_safer",
        "interleave": "pixel" if dataset.count <= _PIXEL_INTERLEAVED else "band",
        "num_threads": cores,
    }
    name, *others = set(dataset.dtypes)
    if not others and not name.startswith("complex") and "NBITS" not in dataset.tags(1, ns="IMAGE_STRUCTURE"):
        options["predictor"] = 3 if name.startswith("float") else 2
    return options


def _compare(dataset: Any, copy: Any, source: InputPath, target: Path) -> None:
    """Refuse a copy that differs in any pixel or in what says where and what the pixels are."""
    for what in ("crs", "transform", "gcps", "dtypes", "colorinterp", "descriptions", "scales", "offsets", "units"):
        if getattr(dataset, what) != getattr(copy, what) and not _means_the_same(dataset, copy, what):
            raise SceneError(
                f"the copy {target} would lose the {what} of {source}: {getattr(copy, what)!s:.80}",
                hint="copy it yourself: gdal_translate -co TILED=YES -co COMPRESS=ZSTD "
                f"{quoted(source)} {quoted(target)}",
            )
    if not np.array_equal(_as_floats(dataset.nodatavals), _as_floats(copy.nodatavals), equal_nan=True):
        raise SceneError(
            f"the copy {target} would lose the nodata of {source}, {list(dataset.nodatavals)!s:.80}",
            hint="a GeoTIFF has one nodata value for all bands: copy bands of one value each, as in: "
            f"gdal_translate -b 1 {quoted(source)} one.tif",
        )
    row_bytes = dataset.width * sum(np.dtype(name).itemsize for name in dataset.dtypes)
    groups = [list(dataset.indexes)] if row_bytes * BLOCK <= _COMPARED_BYTES else [[i] for i in dataset.indexes]
    masked = any(MaskFlags.per_dataset in flags for flags in dataset.mask_flag_enums)
    for row in range(0, dataset.height, BLOCK):
        window = RasterWindow(0, row, dataset.width, min(BLOCK, dataset.height - row))
        for bands in groups:
            before, after = dataset.read(bands, window=window), copy.read(bands, window=window)
            same = np.array_equal(before, after, equal_nan=before.dtype.kind in "fc")
            if same and masked:
                same = np.array_equal(dataset.read_masks(bands, window=window), copy.read_masks(bands, window=window))
            if not same:
                raise SceneError(
                    f"the copy of {source} differs from it in rows {row} … {row + int(window.height) - 1}",
                    hint="run the command again; if it differs again, check memory and disk of the machine",
                )


def _means_the_same(dataset: Any, copy: Any, what: str) -> bool:
    """Whether what is not equal differs in nothing that matters."""
    if what == "colorinterp":
        # A GeoTIFF of one band or many calls the first one grey, which says no more than nothing at all.
        plain = {ColorInterp.undefined: ColorInterp.gray}
        one, two = ([plain.get(c, c) for c in some.colorinterp] for some in (dataset, copy))
        return one == two
    if what != "gcps":
        return False
    # Control points may lose their names. A raster without any gives none and no CRS.
    (points, crs), (others, other_crs) = dataset.gcps, copy.gcps
    if len(points) != len(others) or crs != other_crs:
        return False
    first, second = (np.array([(p.row, p.col, p.x, p.y, p.z or 0) for p in some]) for some in (points, others))
    return bool(np.allclose(first, second, rtol=1e-12, atol=1e-9))


def _as_floats(values: Sequence[float | None]) -> Any:
    # A band without nodata is told from one whose nodata is NaN by a number that none has.
    return np.array([np.inf if value is None else value for value in values], dtype=np.float64)


def _seconds(path: InputPath) -> float:
    """Median time of windows at random places, the same for files of one size; each time the file is opened anew."""
    rng = np.random.default_rng(0)
    times: list[float] = []
    while len(times) < _TIMED_WINDOWS and sum(times) < _TIMED_SECONDS:
        with open_dataset(str(path)) as dataset:  # anew, so that GDAL keeps no block of the window before
            row, col = (int(rng.integers(max(n - _TIMED_PX, 0) + 1)) for n in dataset.shape)
            height, width = min(_TIMED_PX, dataset.height), min(_TIMED_PX, dataset.width)
            start = time.perf_counter()
            dataset.read(window=RasterWindow(col, row, width, height))
            times.append(time.perf_counter() - start)
    return float(np.median(times))
