"""iSAID to scenes, labels and the official split: ``geoseg prepare isaid``.

Pictures are read from their archives in strips. Every pixel's colour is checked, all problems of the release are
reported together, and nothing is written under the output's name unless there are none.
"""

import csv
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterWindow
from tqdm import tqdm

from geoseg.arrays import ByteArray, IntArray
from geoseg.class_tables import ISAID_LEFT_OUT, KNOWN
from geoseg.classes import NODATA, ClassTable, Color
from geoseg.errors import LabelError, OutputError, in_one_line, one_error
from geoseg.files import atomic_output, check_output_folder, output_error
from geoseg.georeference import open_raster
from geoseg.options import AnyPath
from geoseg.paper.isaid_release import LABELLED, SPLITS, Pair, Picture, find_release
from geoseg.runtime.machine import reading_threads
from geoseg.words import count

CLASSES: ClassTable = KNOWN["iSAID"]

LICENCE = "iSAID's labels and DOTA's images are for academic purposes; their authors prohibit any commercial use"

LICENCE_TEXT = """\
These scenes are the photographs of DOTA, and the labels those of iSAID, in another file format.

Their authors give both out for academic purposes and prohibit any commercial use. That holds for these copies too, and
whoever is given a model trained on them should know of it. Terms, and the papers to cite:

  iSAID  https://captain-whu.github.io/iSAID/
  DOTA   https://captain-whu.github.io/DOTA/
"""

BLOCK = 256  # side of the blocks of what is written, and height of the strips that are read, px

_OURS = {*SPLITS, "train.csv", "val.csv", "LICENSE"}
_NAMED_COLORS = 5


@dataclass(frozen=True, slots=True)
class IsaidReport:
    """What was written."""

    folder: Path
    scenes: dict[str, int]  # number of each split
    pixels: IntArray  # of each class in train and val together, (K,)
    left_out: tuple[str, ...] = ()  # ids of scenes that are in no list to train on

    def lines(self) -> list[str]:
        """The report for people."""
        counts = ", ".join(f"{n} {split}" if n else f"no {split}" for split, n in self.scenes.items())
        if self.left_out:
            counts += f"; {', '.join(self.left_out)} not in train.csv, as in the published training"
        total = max(int(self.pixels.sum()), 1)
        shares = ", ".join(f"{c.name} {100 * n / total:.3g} %" for c, n in zip(CLASSES, self.pixels, strict=True))
        return [f"scenes   {counts}", f"classes  {shares}", f"licence  {LICENCE}", f"folder   {self.folder}"]


def prepare_isaid(source: AnyPath, output: AnyPath, *, overwrite: bool = False, progress: bool = False) -> IsaidReport:
    """Turn the official release of iSAID into GeoTIFF scenes, rasters of class ids and the official split.

    Writes ``{train,val}/{scenes,labels}/P0003.tif``, ``test/scenes/P0006.tif``, ``train.csv`` and ``val.csv`` (columns
    scene and labels, paths relative to the folder) and ``LICENSE``: tiled, zstd, without georeference, as the release
    has none. A split that the release lacks is left out and reported. ``train.csv`` lacks the scenes that the published
    training left out.

    Photographs are read as in trainings on iSAID: one grey band three times, an index by its palette, no alpha. A mask
    must be opaque.

    Args:
        source: Folder of the release; see `geoseg.paper.isaid_release`.
        output: Folder to write.
        overwrite: Replace a folder that this function wrote.
        progress: Draw a progress bar on standard error.

    Raises:
        LabelError: Not a release; or all problems of its files in one list: pictures without a partner, of different
            sizes or unreadable, and colours that are not iSAID's.
        OutputError: The folder exists, holds other files, overlaps the release, or cannot be written.
    """
    source, output = Path(source), Path(output)
    inside, release_folder = output.resolve(), source.resolve()
    if inside == release_folder or release_folder in inside.parents or inside in release_folder.parents:
        raise OutputError(f"output {output} and the release {source} lie in each other", hint="choose another with -o")
    check_output_folder(output, overwrite=overwrite, ours=_OURS, writer="geoseg prepare isaid")
    pairs, problems = find_release(source)
    pixels = np.zeros(len(CLASSES), dtype=np.int64)
    with atomic_output(output) as scratch:
        scratch.mkdir()
        for split in {pair.split for pair in pairs}:
            for kind in ("scenes", "labels")[: 1 + (split in LABELLED)]:
                (scratch / split / kind).mkdir(parents=True)

        def converted(pair: Pair) -> tuple[list[str], IntArray]:
            # A PNG has no sidecars here, and looking for them would list an archive of thousands for each picture.
            with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED="NO"):
                return _convert(pair, scratch, output, write=not problems)  # after a problem the rest is only checked

        with (
            reading_threads("isaid") as threads,
            tqdm(total=len(pairs), unit="scene", desc="prepare", disable=not progress) as bar,
        ):
            for found, counted in threads.map(converted, pairs):
                problems += found
                pixels += counted
                bar.update()
        if problems:
            errors = [LabelError(problem, hint="download those files again, or correct them") for problem in problems]
            what = f"{source} has {count(len(problems), 'problem')}, so nothing was written"
            raise one_error(errors, what, most=200)
        _write_lists(pairs, scratch)
        if output.exists():
            shutil.rmtree(output)
    counts = {split: sum(pair.split == split for pair in pairs) for split in SPLITS}
    left_out = tuple(pair.id for pair in pairs if pair.split == "train" and pair.id in ISAID_LEFT_OUT)
    return IsaidReport(output, counts, pixels, left_out)


def _convert(pair: Pair, folder: Path, output: Path, *, write: bool) -> tuple[list[str], IntArray]:
    """Check a pair; write its scene and labels if ``write`` and nothing is wrong."""
    pixels = np.zeros(len(CLASSES), dtype=np.int64)
    problems: list[str] = []
    scene, labels = (Path(pair.split, kind, f"{pair.id}.tif") for kind in ("scenes", "labels"))
    if (mask := pair.mask) is not None:
        # A picture that cannot be read is reported below.
        with suppress(_UnusablePicture), _opened(pair.image) as image, _opened(mask) as other:
            if image.shape != other.shape:
                sizes = f"{other.height} × {other.width} px, its image {pair.image.name} {image.height} × {image.width}"
                problems.append(f"{mask.name}: has {sizes}")
        problems += _labels(mask, folder / labels if write else None, output / labels, pixels)
    rows = (rgb for rgb, _ in _rgb_rows(pair.image))
    target = folder / scene if write and not problems else None
    profile = {"count": 3, "predictor": 2, "photometric": "rgb", "interleave": "pixel"}
    return problems + _copied(pair.image, rows, target, output / scene, profile), pixels


def _labels(mask: Picture, path: Path | None, final: Path, pixels: IntArray) -> list[str]:
    colors = PaletteReader(CLASSES)
    holes = 0

    def rows() -> Iterator[ByteArray]:
        nonlocal holes
        row = 0
        for rgb, alpha in _rgb_rows(mask):
            ids = colors.read(rgb, row=row)
            pixels[:] += np.bincount(ids.ravel(), minlength=NODATA + 1)[: len(CLASSES)]
            holes += 0 if alpha is None else int((alpha != 255).sum())
            row += rgb.shape[1]
            yield ids[None]

    problems = _copied(mask, rows(), path, final, {"count": 1, "nodata": NODATA})
    if holes:
        problems.append(f"{mask.name}: {holes:,} px are not opaque, so their colour is not certain")
    strange = colors.strange.most_common()
    for color, number in strange[:_NAMED_COLORS]:
        row, col = colors.first[color]
        where = f"{number:,} px, the first in row {row}, column {col}"
        problems.append(f"{mask.name}: colour {color} is not one of iSAID's, {where}")
    if len(strange) > _NAMED_COLORS:
        rest = sum(number for _, number in strange[_NAMED_COLORS:])
        problems.append(f"{mask.name}: {len(strange) - _NAMED_COLORS:,} further such colours, {rest:,} px")
    return problems


class _UnusablePicture(Exception):
    """A picture that cannot be read, or is not a PNG of bytes."""


@contextmanager
def _opened(picture: Picture) -> Iterator[Any]:
    try:
        with open_raster(picture.path) as file:
            if file.driver != "PNG" or set(file.dtypes) != {"uint8"}:
                raise _UnusablePicture(f"is {file.driver} of {file.dtypes[0]}, expected a PNG of bytes")
            yield file
    except RasterioError as error:
        raise _UnusablePicture(f"cannot be read ({in_one_line(error.__cause__ or error, 150)})") from error


def _rgb_rows(picture: Picture) -> Iterator[tuple[ByteArray, ByteArray | None]]:
    """Strips from the top: red, green and blue (3, H, W), and alpha (H, W) if the picture has it."""
    with _opened(picture) as file:
        palette = None
        if file.count == 1 and file.colorinterp[0] is ColorInterp.palette:
            palette = np.zeros((256, 4), dtype=np.uint8)
            for index, color in file.colormap(1).items():
                palette[index] = color
        for bands in _strips(file):
            if palette is not None:
                bands = palette[bands[0]].transpose(2, 0, 1)
            alpha = bands[-1] if len(bands) in (2, 4) else None
            yield (bands[:3] if len(bands) >= 3 else np.repeat(bands[:1], 3, axis=0)), alpha


def _strips(file: Any) -> Iterator[ByteArray]:
    """A raster's pixels (B, H, W), `BLOCK` rows at a time."""
    for row in range(0, file.height, BLOCK):
        yield file.read(window=RasterWindow(0, row, file.width, min(BLOCK, file.height - row)))


def _copied(
    picture: Picture, rows: Iterator[ByteArray], path: Path | None, final: Path, profile: dict[str, Any]
) -> list[str]:
    """Write rows (B, H, W) as a tiled GeoTIFF of a picture's size, or only read them without a path; return problems.

    The file is read back and compared by checksums, because GDAL does not report every full disk.
    """
    try:
        if path is None:
            for _ in rows:
                pass
            return []
        with _opened(picture) as file:
            size = {"height": file.height, "width": file.width}
        checks: list[int] = []
        with _created(path, size | profile) as target:
            row = 0
            for part in rows:
                target.write(part, window=RasterWindow(0, row, part.shape[2], part.shape[1]))
                checks.append(zlib.crc32(part.tobytes()))
                row += part.shape[1]
        with open_raster(path) as file:
            if checks != [zlib.crc32(strip.tobytes()) for strip in _strips(file)]:
                raise OSError("what was written cannot be read back")
    except _UnusablePicture as error:
        return [f"{picture.name}: {error}"]
    except (RasterioError, OSError, SystemError) as error:
        raise output_error(f"cannot write {final}", error) from error
    return []


def _created(path: Path, profile: dict[str, Any]) -> Any:
    layout = {"driver": "GTiff", "dtype": "uint8", "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK}
    target = open_raster(path, "w", compress="zstd", bigtiff="if_safer", **layout, **profile)
    if profile["count"] == 1:
        target.write_colormap(1, {c.id: (*c.color, 255) for c in CLASSES})
        target.update_tags(1, **{f"class_{c.id}": c.name for c in CLASSES})
    return target


def _write_lists(pairs: list[Pair], folder: Path) -> None:
    (folder / "LICENSE").write_text(LICENCE_TEXT, encoding="utf-8")
    for split in LABELLED:
        left_out = ISAID_LEFT_OUT if split == "train" else frozenset()
        rows = [pair for pair in pairs if pair.split == split and pair.id not in left_out]
        if rows:
            with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["scene", "labels"])
                writer.writerows([f"{split}/{kind}/{pair.id}.tif" for kind in ("scenes", "labels")] for pair in rows)


class PaletteReader:
    """Colours to class ids, in strips of a picture: every pixel's colour is looked up, none is rounded.

    Colours that no class has become 255; ``strange`` counts their pixels, and ``first`` says where each was met.
    """

    def __init__(self, classes: ClassTable) -> None:
        self.strange: Counter[Color] = Counter()
        self.first: dict[Color, tuple[int, int]] = {}  # row and column
        keys = [(c.color[0] << 16) | (c.color[1] << 8) | c.color[2] for c in classes]
        assert len(set(keys)) == len(keys), "two classes have one colour"
        # One byte for every possible colour: 16 MB, of which a picture touches a small part.
        self._ids = np.full(1 << 24, NODATA, dtype=np.uint8)
        self._ids[keys] = np.arange(len(keys))

    def read(self, rgb: ByteArray, *, row: int) -> ByteArray:
        """Class ids (H, W) of colours (3, H, W) that start at ``row`` of the picture."""
        red, green, blue = rgb.astype(np.int32)
        keys = (red << 16) | (green << 8) | blue
        labels: ByteArray = self._ids[keys]
        unknown = np.flatnonzero(labels == NODATA)
        if unknown.size:
            found, first, counts = np.unique(keys.ravel()[unknown], return_index=True, return_counts=True)
            for i in np.argsort(first):
                at, key = int(unknown[first[i]]), int(found[i])
                color = key >> 16, key >> 8 & 255, key & 255
                self.first.setdefault(color, (row + at // keys.shape[1], at % keys.shape[1]))
                self.strange[color] += int(counts[i])
        return labels
