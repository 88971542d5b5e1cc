"""Tiled GeoTIFFs written from top to bottom: parts of a prediction, and the overviews of a map while it is made."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterWindow

from geoseg.arrays import ByteArray
from geoseg.class_map.overviews import add_checksum
from geoseg.classes import NODATA
from geoseg.files import writing
from geoseg.georeference import open_raster

BLOCK = 512  # width of blocks, px; also the height of the blocks of a finished map
STRIP = 128  # height of blocks, px: a quarter of a finished map's, and so is the memory for their rows

_READ_BYTES = 16 << 20


def writing_raster(path: Path) -> AbstractContextManager[None]:
    """`geoseg.files.writing` for what GDAL writes; rasterio raises SystemError if GDAL gives no reason."""
    return writing(path, RasterioError, SystemError)


class TiledFile:
    """A uint8 GeoTIFF with nodata 255 that takes rows in any number; a context manager that closes the file.

    Rows wait until a row of blocks is complete: rewriting a compressed block would leave its old bytes behind. Of
    ``smooth`` rows differences of neighbours are compressed. An empty file takes no pixels: rows are only passed on.

    Attributes:
        file: The open rasterio dataset.
        checksum: Of the rows so far (`add_checksum`).
    """

    def __init__(
        self, path: Path, shape: tuple[int, int], bands: int, *, smooth: bool = False, is_empty: bool = False
    ) -> None:
        self.path, self.shape, self.rows_written = path, shape, 0
        self.checksum = np.zeros(1, dtype=np.uint64)
        self._is_empty = is_empty
        self._buffer = np.empty((bands, min(STRIP, shape[0]), shape[1]), dtype=np.uint8)
        # Without these GDAL takes three bands for red, green and blue, and a fourth for their opacity.
        plain: dict[str, Any] = {"photometric": "minisblack", "alpha": "unspecified"} if bands > 1 else {}
        self.file = open_raster(
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, rows: ByteArray) -> Iterator[ByteArray]:
        """Append rows (B, h, W); yield every row of blocks that is complete, after it is in the file."""
        height, width = self.shape
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
        for row in range(0, file.height, rows):
            for col in range(0, file.width, width):
                window = RasterWindow(col, row, min(width, file.width - col), min(rows, file.height - row))
                add_checksum(file.read(window=window), row, col, total)
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
