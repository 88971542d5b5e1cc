"""Write a raster from top to bottom as a Cloud Optimized GeoTIFF: tiled, with overviews, its directory in front.

A COG has its overviews before its full resolution, so it cannot be written while rows come. They go to a temporary
tiled GeoTIFF instead, their overviews to further ones, each block compressed and written once; at the end GDAL's COG
driver copies them into place. Memory is some rows, whatever the height; disk is twice the file for that while. What
GDAL cannot write, because the disk is full, it does not always report: the finished file is read back and compared.
"""

from __future__ import annotations

import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError  # what rasterio.shutil.copy raises; it has no public name
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterWindow

from geoseg.arrays import ByteArray
from geoseg.class_map.overviews import Halve, add_checksum
from geoseg.classes import NODATA, Color
from geoseg.files import open_raster, writing
from geoseg.grid import Grid

BLOCK = 512
"""Side of a block of the finished file, px; also what the longer side of the coarsest overview stays below."""

_STRIP = 128
"""Height of the temporary files' blocks, px: a quarter of the finished ones', and so is the memory for their rows."""

_COPY_BYTES = 16 << 20
_CACHE_BYTES = 64 << 20
"""GDAL's block cache is a share of the machine's memory by default and would fill up with the whole raster."""


class CogWriter:
    """A uint8 raster with nodata 255 being written from top to bottom; a context manager.

    The file's bytes depend on the pixels, not on how the rows come nor on the number of threads (all processors, or
    what the environment variable GDAL_NUM_THREADS says).

    Args:
        path: File to write, in a folder of its own that also takes the temporary files: what
            `geoseg.files.atomic_output` gives.
        grid: Size, transform and CRS.
        halve: How overviews are made: `halve_by_mode` or `halve_by_mean` of `geoseg.class_map.overviews`.
        bands: Description of every band; their number is the number of bands.
        palette: Colours of the values of a single band; None for shades.
        scale: What a stored value is multiplied with to give the real one.
        smooth: Whether neighbouring values differ little, so that differences compress better than values.

    Raises:
        OutputError: The folder is not writable or the disk is full.
    """

    def __init__(
        self,
        path: Path,
        grid: Grid,
        *,
        halve: Halve,
        bands: Sequence[str],
        palette: Mapping[int, Color] | None = None,
        scale: float = 1.0,
        smooth: bool = False,
    ) -> None:
        self.path = path
        self.grid = grid
        self._halve = halve
        self._bands = tuple(bands)
        self._palette = palette
        self._scale = scale
        self._smooth = smooth
        self._stack = ExitStack()

    def __enter__(self) -> CogWriter:
        self._folder = self.path.with_name(self.path.name + ".parts")
        self._levels: list[_Level] = []
        with ExitStack() as stack, self._writing():
            self._folder.mkdir()
            shape = self.grid.shape
            while not self._levels or max(self._levels[-1].shape) > BLOCK:
                file = _create(
                    self._folder / f"{2 ** len(self._levels)}.tif", shape, len(self._bands), smooth=self._smooth
                )
                stack.callback(file.close)
                self._levels.append(_Level(file, shape, len(self._bands)))
                shape = (shape[0] + 1) // 2, (shape[1] + 1) // 2
            self._describe()
            self._stack = stack.pop_all()
        return self

    def _writing(self) -> AbstractContextManager[None]:
        # A SystemError is rasterio's word for a failure that GDAL gave no reason for.
        return writing(self.path, RasterioError, CPLE_BaseError, SystemError)

    def _describe(self) -> None:
        file = self._levels[0].file
        if self.grid.crs is not None:
            file.crs = self.grid.crs
        if not self.grid.transform.is_identity:
            file.transform = self.grid.transform
        file.descriptions = self._bands
        if self._palette is not None:
            colors = {value: (*color, 255) for value, color in self._palette.items()}
            file.write_colormap(1, {**colors, NODATA: (0, 0, 0, 0)})
        if self._scale != 1:
            file.scales = (self._scale,) * len(self._bands)

    def write(self, rows: ByteArray) -> None:
        """Append rows, (B, h, W) uint8, h of any size.

        Raises:
            OutputError: The disk is full.
        """
        with self._writing():
            self._write(0, rows)

    def _write(self, level: int, rows: ByteArray) -> None:
        for strip in self._levels[level].write(rows):
            if level + 1 < len(self._levels):
                self._write(level + 1, self._halve(strip))

    def finish(self, tags: Mapping[str, str]) -> None:
        """Copy what was written into the finished file, with these tags in it; to be called once, after all rows.

        Raises:
            OutputError: The disk is full.
        """
        with self._writing():
            self._levels[0].file.update_tags(**tags)
            self._stack.close()
            with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES):
                rasterio.shutil.copy(
                    self._join(),
                    self.path,
                    driver="COG",
                    COMPRESS=_compression(),
                    # A fifth larger than GDAL's level 9 on class maps, an eighth on confidences, and five times faster.
                    LEVEL=1 if _compression() == "zstd" else 6,
                    PREDICTOR="YES" if self._smooth else "NO",
                    BLOCKSIZE=BLOCK,
                    BIGTIFF="IF_SAFER",  # and never sparse: empty blocks cost 0.4 kB, and some viewers need them
                    NUM_THREADS=_threads(),
                )
                self._check()
            shutil.rmtree(self._folder)

    def _check(self) -> None:
        width = max(_COPY_BYTES // (BLOCK * BLOCK * len(self._bands)), 1) * BLOCK
        for number, level in enumerate(self._levels):
            overview: dict[str, Any] = {"overview_level": number - 1} if number else {}
            total = np.zeros(1, dtype=np.uint64)
            with open_raster(self.path, num_threads=_threads(), **overview) as file:
                for row in range(0, file.height, BLOCK):
                    for col in range(0, file.width, width):
                        window = RasterWindow(col, row, min(width, file.width - col), min(BLOCK, file.height - row))
                        add_checksum(file.read(window=window), row, col, total)
            if total[0] != level.checksum[0]:
                raise OSError("what was written cannot be read back")

    def _join(self) -> Path:
        """A VRT in which the temporary files are one raster and its overviews: what GDAL's COG driver copies."""
        path = self._folder / "joined.vrt"
        rasterio.shutil.copy(self._folder / "1.tif", path, driver="VRT")
        tree = ET.parse(path)
        for band in tree.getroot().findall("VRTRasterBand"):
            for level in range(1, len(self._levels)):
                overview = ET.SubElement(band, "Overview")
                ET.SubElement(overview, "SourceFilename", relativeToVRT="1").text = f"{2**level}.tif"
                ET.SubElement(overview, "SourceBand").text = band.get("band")
        tree.write(path, encoding="utf-8")
        return path

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class _Level:
    """One temporary file, of the raster itself or of an overview, and the rows it waits with until a strip is whole.

    Rewriting a compressed block would leave its old bytes behind.
    """

    def __init__(self, file: Any, shape: tuple[int, int], bands: int) -> None:
        self.file = file
        self.shape = shape
        self.rows_written = 0
        self.checksum = np.zeros(1, dtype=np.uint64)
        self._buffer = np.empty((bands, min(_STRIP, shape[0]), shape[1]), dtype=np.uint8)

    def write(self, rows: ByteArray) -> Iterator[ByteArray]:
        """Append rows; yield every strip that is whole, after it is in the file."""
        height, width = self.shape
        while rows.shape[1]:
            filled = self.rows_written % _STRIP
            taken = rows[:, : _STRIP - filled]
            self._buffer[:, filled : filled + taken.shape[1]] = taken
            self.rows_written += taken.shape[1]
            rows = rows[:, taken.shape[1] :]
            if self.rows_written % _STRIP == 0 or self.rows_written == height:
                strip = self._buffer[:, : filled + taken.shape[1]]
                top = self.rows_written - strip.shape[1]
                add_checksum(strip, top, 0, self.checksum)
                self.file.write(strip, window=RasterWindow(0, top, width, strip.shape[1]))
                yield strip


def _create(path: Path, shape: tuple[int, int], bands: int, *, smooth: bool) -> Any:
    # Without these GDAL takes three bands for red, green and blue, and a fourth for their opacity.
    plain = {"photometric": "minisblack", "alpha": "unspecified"} if bands > 1 else {}
    return open_raster(
        path,
        "w",
        driver="GTiff",
        height=shape[0],
        width=shape[1],
        count=bands,
        dtype="uint8",
        nodata=NODATA,
        tiled=True,
        blockxsize=BLOCK,
        blockysize=_STRIP,
        interleave="band",
        bigtiff="if_safer",
        sparse_ok=True,
        # No num_threads: errors of other threads are lost, and a full disk would be noticed at the end only.
        compress=_compression(),
        zstd_level=1,
        zlevel=1,
        predictor=2 if smooth else 1,
        **plain,
    )


@cache
def _compression() -> str:
    """The best that GDAL was built with. rasterio does not say; a one-pixel file in memory does."""
    pixel: dict[str, Any] = {"driver": "GTiff", "height": 1, "width": 1, "count": 1, "dtype": "uint8"}
    with rasterio.MemoryFile() as memory:
        try:
            open_raster(memory.name, "w", compress="zstd", **pixel).close()
        except RasterioError:
            return "deflate"
    return "zstd"


def _threads() -> str:
    return os.environ.get("GDAL_NUM_THREADS", "ALL_CPUS")
