"""GeoTIFFs written from top to bottom: plain tiled ones (parts of a prediction), and COGs with overviews.

A COG has its overviews first, so they go into temporary files; at the end GDAL copies a VRT of all files into place.
"""

import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import rasterio
from affine import Affine
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterWindow

from geoseg.arrays import ByteArray
from geoseg.class_map.overviews import add_checksum, halve
from geoseg.classes import NODATA, Color
from geoseg.files import writing
from geoseg.georeference import copy_raster, open_raster
from geoseg.grid import Grid
from geoseg.map_rows import CONFIDENCE_SCALE
from geoseg.windows import Window, pieces

BLOCK = 512  # width of blocks, px; also the height of the blocks of a finished map
STRIP = 128  # height of blocks, px: a quarter of a finished map's, and so is the memory for their rows

_READ_BYTES = 16 << 20
_CACHE_BYTES = 64 << 20
"""GDAL's block cache is a share of the machine's memory by default and would fill up with the whole raster."""


def writing_raster(path: Path) -> AbstractContextManager[None]:
    """`geoseg.files.writing` for what GDAL writes; rasterio raises SystemError if GDAL gives no reason."""
    return writing(path, RasterioError, SystemError)


class TiledFile:
    """A uint8 GeoTIFF with nodata 255 that takes rows in any number; a context manager that closes the file.

    Rows wait until a row of blocks is complete: rewriting a compressed block would leave its old bytes behind. Of
    ``smooth`` rows differences of neighbours are compressed. An empty file takes no pixels: rows are only passed on.
    ``bands`` are their descriptions.

    Attributes:
        file: The open rasterio dataset.
        checksum: Of the rows so far (`add_checksum`).
    """

    def __init__(
        self, path: Path, grid: Grid, bands: Sequence[str], *, smooth: bool = False, is_empty: bool = False
    ) -> None:
        self.grid, self.rows_written = grid, 0
        self.checksum = np.zeros(1, dtype=np.uint64)
        self._is_empty = is_empty
        self._buffer = np.empty((len(bands), min(STRIP, grid.height), grid.width), dtype=np.uint8)
        # Without these GDAL takes three bands for red, green and blue, and a fourth for their opacity.
        plain: dict[str, Any] = {"photometric": "minisblack", "alpha": "unspecified"} if len(bands) > 1 else {}
        self.file = open_raster(
            path,
            "w",
            driver="GTiff",
            height=grid.height,
            width=grid.width,
            count=len(bands),
            dtype="uint8",
            nodata=NODATA,
            tiled=True,
            blockxsize=BLOCK,
            blockysize=STRIP,
            interleave="band",
            bigtiff="if_safer",
            sparse_ok=True,
            # No num_threads: errors of other threads are lost, and a full disk would be noticed at the end only.
            compress=compression(),
            zstd_level=1,
            zlevel=1,
            predictor=2 if smooth else 1,
            **plain,
        )
        self.file.descriptions = tuple(bands)
        if grid.crs is not None:
            self.file.crs = grid.crs
        if grid.has_transform:
            self.file.transform = grid.transform

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, rows: ByteArray) -> Iterator[ByteArray]:
        """Append rows (B, h, W); yield every row of blocks that is complete, after it is in the file."""
        height, width = self.grid.shape
        while rows.shape[1]:
            filled = self.rows_written % STRIP
            taken = rows[:, : STRIP - filled]
            self._buffer[:, filled : filled + taken.shape[1]] = taken
            self.rows_written += taken.shape[1]
            rows = rows[:, taken.shape[1] :]
            if self.rows_written % STRIP == 0 or self.rows_written == height:
                strip = self._buffer[:, : filled + taken.shape[1]]
                top = self.rows_written - strip.shape[1]
                add_checksum(strip, top, 0, self.checksum)
                if not self._is_empty:
                    self.file.write(strip, window=RasterWindow(0, top, width, strip.shape[1]))
                yield strip


def check_written(path: Path, checksum: int, **options: Any) -> None:
    """Read a file back; an OSError if its pixels have another checksum. GDAL does not report every failed write."""
    total = np.zeros(1, dtype=np.uint64)
    with open_raster(path, num_threads=threads(), **options) as file:
        rows, cols = file.block_shapes[0]
        width = max(_READ_BYTES // (rows * cols * file.count), 1) * cols
        for part in pieces(file.height, file.width, rows, width):
            found = file.read(window=RasterWindow(part.col, part.row, part.width, part.height))
            add_checksum(found, part.row, part.col, total)
    if total[0] != checksum:
        raise OSError("what was written cannot be read back")


@cache
def compression() -> str:
    """The best that GDAL was built with. rasterio does not say; a one-pixel file in memory does."""
    pixel: dict[str, Any] = {"driver": "GTiff", "height": 1, "width": 1, "count": 1, "dtype": "uint8"}
    with rasterio.MemoryFile() as memory:
        try:
            open_raster(memory.name, "w", compress="zstd", **pixel).close()
        except RasterioError:
            return "deflate"
    return "zstd"


def threads() -> str:
    """Threads of GDAL: GDAL_NUM_THREADS, or all processors."""
    return os.environ.get("GDAL_NUM_THREADS", "ALL_CPUS")


@dataclass(frozen=True, slots=True)
class Tile:
    """A file with some of a raster's pixels: its place in the raster, px, and the number of its first band, from 1."""

    path: Path
    window: Window
    first_band: int


class CogWriter:
    """A uint8 raster with nodata 255 being written from top to bottom; a context manager.

    The file's bytes depend on the pixels, not on how the rows come nor on the number of `threads`. An `OutputError` if
    the folder is not writable or the disk is full.

    Args:
        path: File to write, in a folder of its own that also takes the temporary files (`geoseg.files.atomic_output`).
        grid: Size, transform and CRS.
        bands: Description of every band.
        palette: Colours of the values of a single band, which overviews keep by majority. None for shares, as in
            `geoseg.map_rows.MapRows`: overviews average them, and differences of neighbours are compressed.
        tiles: Files that hold the pixels when the writer finishes; None stores them as rows arrive.
    """

    def __init__(
        self,
        path: Path,
        grid: Grid,
        *,
        bands: Sequence[str],
        palette: Mapping[int, Color] | None = None,
        tiles: Sequence[Tile] | None = None,
    ) -> None:
        self.path = path
        self._grid, self._bands, self._palette, self._tiles = grid, tuple(bands), palette, tiles
        self._smooth = palette is None
        self._folder = path.with_name(path.name + ".parts")
        self._levels: list[TiledFile] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack, writing_raster(self.path):
            self._folder.mkdir()
            grid = self._grid
            while not self._levels or max(self._levels[-1].grid.shape) > BLOCK:
                path = self._folder / f"{2 ** len(self._levels)}.tif"
                is_empty = self._tiles is not None and not self._levels
                level = TiledFile(path, grid, self._bands, smooth=self._smooth, is_empty=is_empty)
                self._levels.append(stack.enter_context(level))
                grid = Grid((grid.height + 1) // 2, (grid.width + 1) // 2, Affine.identity(), None)
            file = self._levels[0].file
            if self._palette is None:
                file.scales = (1 / CONFIDENCE_SCALE,) * len(self._bands)
            else:
                colors = {value: (*color, 255) for value, color in self._palette.items()}
                file.write_colormap(1, {**colors, NODATA: (0, 0, 0, 0)})
            self._stack = stack.pop_all()
        return self

    def write(self, rows: ByteArray) -> None:
        """Append rows, (B, h, W) uint8, h of any size."""
        with writing_raster(self.path):
            self._write(0, rows)

    def _write(self, level: int, rows: ByteArray) -> None:
        for strip in self._levels[level].write(rows):
            if level + 1 < len(self._levels):
                self._write(level + 1, halve(strip, self._smooth))

    def finish(self, tags: Mapping[str, str]) -> None:
        """Make the finished file, with these tags in it; to be called once, after all rows."""
        with writing_raster(self.path):
            self._levels[0].file.update_tags(**tags)
            self._stack.close()
            with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES):
                copy_raster(
                    self._join(),
                    self.path,
                    driver="COG",
                    COMPRESS=compression(),
                    # A fifth larger than GDAL's level 9 on class maps, an eighth on confidences, and five times faster.
                    LEVEL=1 if compression() == "zstd" else 6,
                    PREDICTOR="YES" if self._smooth else "NO",
                    BLOCKSIZE=BLOCK,
                    BIGTIFF="IF_SAFER",  # and never sparse: empty blocks cost 0.4 kB, and some viewers need them
                    NUM_THREADS=threads(),
                )
                for number, level in enumerate(self._levels):
                    overview: dict[str, Any] = {"overview_level": number - 1} if number else {}
                    check_written(self.path, level.checksum[0], **overview)
            shutil.rmtree(self._folder)

    def _join(self) -> Path:
        """A VRT of the pixels and their overviews."""
        path = self._folder / "joined.vrt"
        copy_raster(self._folder / "1.tif", path, driver="VRT")
        tree = ET.parse(path)
        for band in tree.getroot().findall("VRTRasterBand"):
            number = int(band.get("band", "1"))
            if self._tiles is not None:
                for source in band.findall("SimpleSource") + band.findall("ComplexSource"):
                    band.remove(source)
                for tile in self._tiles:
                    size = {"xSize": str(tile.window.width), "ySize": str(tile.window.height)}
                    source = ET.SubElement(band, "SimpleSource")
                    ET.SubElement(source, "SourceFilename", relativeToVRT="0").text = str(tile.path.absolute())
                    ET.SubElement(source, "SourceBand").text = str(tile.first_band + number - 1)
                    ET.SubElement(source, "SrcRect", {"xOff": "0", "yOff": "0", **size})
                    place = {"xOff": str(tile.window.col), "yOff": str(tile.window.row)}
                    ET.SubElement(source, "DstRect", {**place, **size})
            for level in range(1, len(self._levels)):
                overview = ET.SubElement(band, "Overview")
                ET.SubElement(overview, "SourceFilename", relativeToVRT="1").text = f"{2**level}.tif"
                ET.SubElement(overview, "SourceBand").text = str(number)
        tree.write(path, encoding="utf-8")
        return path

    def __exit__(self, *_: object) -> None:
        self._stack.close()
