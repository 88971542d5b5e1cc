"""iSAID to scenes, labels and the official split: ``geoseg prepare isaid``.

Pictures are read rows at a time out of their archives. Every pixel's colour is checked, and all that is wrong with the
release is said at once; nothing is written under the output's name unless all of it fits.
"""

from __future__ import annotations

import csv
import shutil
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow
from tqdm import tqdm

from geoseg.class_tables import ISAID_LEFT_OUT, KNOWN
from geoseg.classes import NODATA, ClassTable
from geoseg.errors import LabelError, OutputError, in_one_line
from geoseg.files import atomic_output, check_output_folder, output_error
from geoseg.paper.isaid_release import LABELLED, SPLITS, Pair, Picture, find_release
from geoseg.paper.palette import PaletteReader
from geoseg.runtime.processors import processors

CLASSES: ClassTable = KNOWN["iSAID"]

LICENCE = "iSAID's labels and DOTA's images are for academic purposes; their authors prohibit any commercial use"

LICENCE_TEXT = """\
These scenes are the photographs of DOTA, and the labels those of iSAID, in another file format.

Their authors give both out for academic purposes and prohibit any commercial use. That holds for these copies too, and
whoever is given a model trained on them should know of it. Terms, and the papers to cite:

  iSAID  https://captain-whu.github.io/iSAID/
  DOTA   https://captain-whu.github.io/DOTA/
"""

BLOCK = 256
"""Side of the blocks of what is written, px; also how many rows are read at once."""

_OURS = {*SPLITS, "train.csv", "val.csv", "LICENSE"}
_NAMED_PROBLEMS = 200
_NAMED_COLORS = 5
_THREADS = 8
# A PNG has no sidecars here, and looking for them lists an archive of thousands for each picture.
_GDAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}


@dataclass(frozen=True, slots=True)
class IsaidReport:
    """What was written.

    Attributes:
        folder: The folder.
        scenes: Number of scenes of each split.
        pixels: Pixels of each class in train and val together, (K,).
        left_out: Ids that are written and stand in no list to train on.
    """

    folder: Path
    scenes: dict[str, int]
    pixels: npt.NDArray[np.int64]
    left_out: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report for people."""
        counts = ", ".join(f"{n} {split}" if n else f"no {split}" for split, n in self.scenes.items())
        if self.left_out:
            counts += f"; {', '.join(self.left_out)} not in train.csv, as in the published training"
        total = max(int(self.pixels.sum()), 1)
        shares = ", ".join(f"{c.name} {100 * n / total:.3g} %" for c, n in zip(CLASSES, self.pixels, strict=True))
        return [
            f"scenes   {counts}",
            f"classes  {shares}",
            f"licence  {LICENCE}",
            f"folder   {self.folder}",
        ]


def prepare_isaid(
    source: str | PathLike[str], output: str | PathLike[str], *, overwrite: bool = False, progress: bool = False
) -> IsaidReport:
    """Turn the official release of iSAID into GeoTIFF scenes, rasters of class ids and the official split.

    Writes ``{train,val}/{scenes,labels}/P0003.tif``, ``test/scenes/P0006.tif``, ``train.csv`` and ``val.csv`` (columns
    scene and labels, paths from the file's folder on) and ``LICENSE``: tiled, zstd, without georeference, as the
    release has none. A split that the release lacks is left out, and the report says so. ``train.csv`` is without the
    scenes that the published training passed over.

    Photographs are read as the trainings on iSAID read them: one band of grey three times, an index by its palette,
    alpha left away. A mask must be opaque.

    Args:
        source: Folder of the release; see `geoseg.paper.isaid_release`.
        output: Folder to write.
        overwrite: Replace a folder that this function wrote.
        progress: Draw a progress bar on standard error.

    Raises:
        LabelError: No release; or all that is wrong with its files in one list: pictures without a partner, of
            different sizes or unreadable, and colours that are none of iSAID's.
        OutputError: The folder exists, holds other files, lies in the release, or cannot be written.
    """
    source, output = Path(source), Path(output)
    _check_folder(source, output, overwrite=overwrite)
    release = find_release(source)
    problems = list(release.problems)
    pixels = np.zeros(len(CLASSES), dtype=np.int64)
    with atomic_output(output) as scratch:
        scratch.mkdir()
        for split in sorted({pair.split for pair in release.pairs}):
            for kind in ("scenes", "labels")[: 1 + (split in LABELLED)]:
                (scratch / split / kind).mkdir(parents=True)
        with tqdm(total=len(release.pairs), unit="scene", desc="prepare", disable=not progress) as bar:
            for done in _converted(release.pairs, scratch, output, write=not problems):
                problems += done.problems
                pixels += done.pixels
                bar.update()
        if problems:
            raise _as_one_error(problems, source)
        _write_lists(release.pairs, scratch)
        if output.exists():
            shutil.rmtree(output)
    counts = {split: sum(pair.split == split for pair in release.pairs) for split in SPLITS}
    left_out = tuple(pair.id for pair in release.pairs if pair.split == "train" and pair.id in ISAID_LEFT_OUT)
    return IsaidReport(output, counts, pixels, left_out)


@dataclass(frozen=True, slots=True)
class _Done:
    """What came of one pair: problems in lines for people, or pixels of each class."""

    problems: list[str]
    pixels: npt.NDArray[np.int64]


def _converted(pairs: tuple[Pair, ...], folder: Path, output: Path, *, write: bool) -> Iterator[_Done]:
    """Convert pairs in threads, in their order; once something is wrong the rest is only checked."""
    wrong = not write

    def one(pair: Pair) -> _Done:
        nonlocal wrong
        with rasterio.Env(**_GDAL):
            done = _convert(pair, folder, output, write=not wrong)
        wrong = wrong or bool(done.problems)
        return done

    # The filter holds for the whole process, so it is set here and not in each thread.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with ThreadPoolExecutor(min(processors(), _THREADS), thread_name_prefix="geoseg-isaid") as threads:
            try:
                yield from threads.map(one, pairs)
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise


def _convert(pair: Pair, folder: Path, output: Path, *, write: bool) -> _Done:
    """Check a pair, and write its scene and labels where that is wanted and nothing is wrong."""
    pixels = np.zeros(len(CLASSES), dtype=np.int64)
    problems: list[str] = []
    scene, labels = (Path(pair.split, kind, f"{pair.id}.tif") for kind in ("scenes", "labels"))
    if pair.mask is not None:
        problems += _different_sizes(pair.image, pair.mask)
        problems += _labels(pair.mask, folder / labels, output / labels, pixels, write=write)
    problems += _scene(pair.image, folder / scene, output / scene, write=write and not problems)
    return _Done(problems, pixels)


def _different_sizes(image: Picture, mask: Picture) -> list[str]:
    try:
        with rasterio.open(image.path) as one, rasterio.open(mask.path) as other:
            if one.shape == other.shape:
                return []
            return [
                f"{mask.name}: has {other.height} × {other.width} px, its image {image.name} {one.height} × {one.width}"
            ]
    except RasterioError:
        return []  # said where it is read


def _labels(mask: Picture, path: Path, final: Path, pixels: npt.NDArray[np.int64], *, write: bool) -> list[str]:
    colors = PaletteReader(CLASSES)
    holes = 0

    def rows() -> Iterator[npt.NDArray[np.uint8]]:
        nonlocal holes
        row = 0
        for rgb, alpha in _rgb_rows(mask):
            ids = colors.read(rgb, row=row)
            pixels[:] += np.bincount(ids.ravel(), minlength=NODATA + 1)[: len(CLASSES)]
            holes += 0 if alpha is None else int((alpha != 255).sum())
            row += rgb.shape[1]
            yield ids[None]

    problems = _written(mask, path if write else None, final, rows(), _label_profile())
    if holes:
        problems.append(f"{mask.name}: {holes:,} px are not opaque, so their colour is not certain")
    strange = sorted(colors.strange.items(), key=lambda item: -item[1].count)
    for (red, green, blue), where in strange[:_NAMED_COLORS]:
        problems.append(
            f"{mask.name}: colour ({red}, {green}, {blue}) is none of iSAID's, {where.count:,} px, "
            f"the first in row {where.row}, column {where.col}"
        )
    if len(strange) > _NAMED_COLORS:
        rest = sum(where.count for _, where in strange[_NAMED_COLORS:])
        problems.append(f"{mask.name}: {len(strange) - _NAMED_COLORS:,} further such colours, {rest:,} px")
    return problems


def _scene(image: Picture, path: Path, final: Path, *, write: bool) -> list[str]:
    rows = (rgb for rgb, _ in _rgb_rows(image))
    return _written(image, path if write else None, final, rows, _scene_profile())


class _UnusablePicture(Exception):
    """A PNG of another kind than those that are understood."""


def _rgb_rows(picture: Picture) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]]:
    """Red, green and blue (3, H, W) rows at a time from the top, and alpha (H, W) where the picture has it."""
    with rasterio.open(picture.path) as file:
        if file.driver != "PNG" or set(file.dtypes) != {"uint8"}:
            raise _UnusablePicture(f"is {file.driver} of {file.dtypes[0]}, wanted a PNG of bytes")
        palette = None
        if file.count == 1 and file.colorinterp[0] is ColorInterp.palette:
            palette = np.zeros((256, 4), dtype=np.uint8)
            for index, color in file.colormap(1).items():
                palette[index] = color
        for row in range(0, file.height, BLOCK):
            window = RasterWindow(0, row, file.width, min(BLOCK, file.height - row))
            bands = file.read(window=window)
            if palette is not None:
                bands = palette[bands[0]].transpose(2, 0, 1)
            alpha = bands[-1] if len(bands) in (2, 4) else None
            yield (bands[:3] if len(bands) >= 3 else np.repeat(bands[:1], 3, axis=0)), alpha


def _scene_profile() -> dict[str, Any]:
    return {"count": 3, "predictor": 2, "photometric": "rgb", "interleave": "pixel"}


def _label_profile() -> dict[str, Any]:
    return {"count": 1, "nodata": NODATA}


def _written(
    picture: Picture, path: Path | None, final: Path, rows: Iterator[npt.NDArray[np.uint8]], profile: dict[str, Any]
) -> list[str]:
    """Write rows (B, H, W) of a picture as a tiled GeoTIFF and read them back; without a path only go through them.

    GDAL does not report every full disk: what was written is compared by a checksum.
    """
    try:
        if path is None:
            for _ in rows:
                pass
            return []
        with rasterio.open(picture.path) as file:
            size = {"height": file.height, "width": file.width}
        checks: list[int] = []
        try:
            with _created(path, size | profile) as target:
                row = 0
                for part in _unbroken(rows):
                    target.write(part, window=RasterWindow(0, row, part.shape[2], part.shape[1]))
                    checks.append(zlib.crc32(part.tobytes()))
                    row += part.shape[1]
            if checks != list(_checksums(path)):
                raise OSError("what was written cannot be read back")
        except (RasterioError, OSError, SystemError) as error:
            raise output_error(f"cannot write {final}", error) from error
    except _Broken as error:
        return [f"{picture.name}: cannot be read ({in_one_line(error, 150)})"]
    except _UnusablePicture as error:
        return [f"{picture.name}: {error}"]
    except RasterioError as error:
        return [f"{picture.name}: cannot be read ({in_one_line(error, 150)})"]
    return []


class _Broken(Exception):
    """A picture that could not be read to its end, while another file was being written."""


def _unbroken(rows: Iterator[npt.NDArray[np.uint8]]) -> Iterator[npt.NDArray[np.uint8]]:
    """The rows, with an error of reading them told apart from one of writing them."""
    try:
        yield from rows
    except RasterioError as error:
        raise _Broken(error.__cause__ or error) from error


def _created(path: Path, profile: dict[str, Any]) -> Any:
    target = rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint8",
        tiled=True,
        blockxsize=BLOCK,
        blockysize=BLOCK,
        compress="zstd",
        bigtiff="if_safer",
        **profile,
    )
    if profile["count"] == 1:
        target.write_colormap(1, {c.id: (*c.color, 255) for c in CLASSES})
        target.update_tags(1, **{f"class_{c.id}": c.name for c in CLASSES})
    return target


def _checksums(path: Path) -> Iterator[int]:
    with rasterio.open(path) as file:
        for row in range(0, file.height, BLOCK):
            window = RasterWindow(0, row, file.width, min(BLOCK, file.height - row))
            yield zlib.crc32(file.read(window=window).tobytes())


def _write_lists(pairs: tuple[Pair, ...], folder: Path) -> None:
    (folder / "LICENSE").write_text(LICENCE_TEXT, encoding="utf-8")
    for split in LABELLED:
        left_out = ISAID_LEFT_OUT if split == "train" else frozenset()
        rows = [pair for pair in pairs if pair.split == split and pair.id not in left_out]
        if rows:
            with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["scene", "labels"])
                writer.writerows([f"{split}/{kind}/{pair.id}.tif" for kind in ("scenes", "labels")] for pair in rows)


def _check_folder(source: Path, output: Path, *, overwrite: bool) -> None:
    """Whether the folder may be written; only what this module writes is ever replaced."""
    inside, release = output.resolve(), source.resolve()
    if inside == release or release in inside.parents or inside in release.parents:
        raise OutputError(f"output {output} and the release {source} lie in each other", hint="choose another with -o")
    check_output_folder(output, overwrite=overwrite, ours=_OURS, writer="geoseg prepare isaid")


def _as_one_error(problems: list[str], source: Path) -> LabelError:
    count = f"{len(problems):,} problems" if len(problems) > 1 else "a problem"
    lines = problems[:_NAMED_PROBLEMS]
    if len(problems) > len(lines):
        lines = [*lines, f"… and {len(problems) - len(lines):,} more"]
    listed = "\n".join(f"  {line}" for line in lines)
    return LabelError(
        f"{source} has {count}, so nothing was written:\n{listed}", hint="download those files again, or correct them"
    )
