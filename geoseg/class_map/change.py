"""Two class maps of one place: what each pixel was and what it became."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import numpy as np

from geoseg.arrays import ByteArray, FloatArray, IntArray
from geoseg.class_map.reading import ClassMapReader
from geoseg.classes import NODATA, ClassTable, MapClass
from geoseg.errors import LabelError, SceneError, quoted
from geoseg.georeference import crs_name, pyproj_crs, refuse_unwarped
from geoseg.grid import Grid
from geoseg.map_rows import MapRows
from geoseg.options import AnyPath, MapReading
from geoseg.runtime.jit import njit

UNCHANGED = "unchanged"  # name of the class 0 of a map of changes

_ROWS_PX = 1 << 22
_SAME_PLACE_PX = 1e-3


class MapPair:
    """Two class maps on one grid, the earlier one first, open; a context manager.

    Their ids are the earlier map's, to which the later one's are brought by the names of the classes. A `SceneError`
    for another grid or other classes; see `ClassMapReader`.
    """

    def __init__(self, old: AnyPath, new: AnyPath, reading: MapReading = MapReading()) -> None:
        with ExitStack() as stack:
            self._readers = tuple(stack.enter_context(ClassMapReader(path, reading)) for path in (old, new))
            first, second = self._readers
            for reader in self._readers:
                refuse_unwarped(os.fspath(reader.path), reader.warp_command)
            _check_grids(first, second)
            self.grid: Grid = first.grid
            self.classes, numbers = _common_classes(first, second)
            self._numbers = np.full(256, NODATA, dtype=np.uint8)
            self._numbers[: len(numbers)] = numbers
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def path(self) -> str:
        """The earlier map, for messages about both."""
        return os.fspath(self._readers[0].path)

    def rows(self) -> Iterator[tuple[ByteArray, ByteArray]]:
        """Class ids of both maps from top to bottom, each (h, W); 255 where either map is nodata.

        A `LabelError` for a value outside the class table.
        """
        step = max(_ROWS_PX // self.grid.width, 1)  # blocks of a file are 512 rows; what is made of them takes less
        for parts in zip(*(reader.rows() for reader in self._readers), strict=True):
            old, new = (part.classes for part in parts)
            for first in range(0, len(old), step):
                yield self._joined(old[first : first + step], new[first : first + step])

    def _joined(self, old: ByteArray, new: ByteArray) -> tuple[ByteArray, ByteArray]:
        for reader, values in zip(self._readers, (old, new), strict=True):
            outside = (values >= len(self.classes)) & (values != NODATA)
            if outside.any():
                raise LabelError(
                    f"{reader.path} holds the value {values[outside][0]}, but its class table ends at "
                    f"{len(self.classes) - 1}",
                    hint="--classes FILE.yaml names all classes of both maps",
                )
        known = (old != NODATA) & (new != NODATA)
        return np.where(known, old, np.uint8(NODATA)), np.where(known, self._numbers[new], np.uint8(NODATA))


def _check_grids(old: ClassMapReader, new: ClassMapReader) -> None:
    """Refuse maps whose pixels are not the same ground."""
    a, b = old.grid, new.grid
    has: list[str] = []
    if (a.crs is None) != (b.crs is None) or (a.crs is not None and pyproj_crs(a.crs) != pyproj_crs(b.crs)):
        has.append(f"{crs_name(b.crs)} and not {crs_name(a.crs)}")
    if a.shape != b.shape:
        has.append(f"{b.width} × {b.height} px and not {a.width} × {a.height} px")
    corners = [(0, 0), (a.width, 0), (0, a.height)]
    moved = [np.subtract(~a.transform @ (b.transform @ corner), corner) for corner in corners]
    if has or not (np.abs(moved) < _SAME_PLACE_PX).all():
        col, row = moved[0]
        how = (
            f"has {'; '.join(has)}"
            if has
            else f"is moved by {col:.4g} columns and {row:.4g} rows, or with other pixels"
        )
        raise SceneError(f"{new.path} is not on the grid of {old.path}: it {how}", hint=_warp_command(old, new))


def _warp_command(old: ClassMapReader, new: ClassMapReader) -> str:
    """How to bring the later map to the earlier one's grid."""
    grid, t = old.grid, old.grid.transform
    if grid.crs is None or new.grid.crs is None:
        return "both need a CRS, or neither: gdal_edit.py -a_srs EPSG:… assigns one"
    if t.b or t.d or t.a < 0 or t.e > 0 or ":" not in crs_name(grid.crs):
        return f"rio warp {quoted(new.path)} aligned.tif --like {quoted(old.path)} --resampling nearest"
    bounds = " ".join(f"{value:.12g}" for value in grid.bounds)
    size = f"-ts {grid.width} {grid.height}"
    crs = quoted(crs_name(grid.crs))
    return f"gdalwarp -r near -dstnodata {NODATA} -t_srs {crs} -te {bounds} {size} {quoted(new.path)} aligned.tif"


def _common_classes(old: ClassMapReader, new: ClassMapReader) -> tuple[ClassTable, list[int]]:
    """The classes of both maps, and the earlier map's id of each class of the later one."""
    if not old.is_named and not new.is_named:  # ids are all that is known
        longest = max(old.classes, new.classes, key=len)
        return longest, list(range(len(longest)))
    first, second = old.classes.names, new.classes.names
    if set(first) != set(second):
        lacking = [
            f"{path} lacks {', '.join(names)}"
            for path, names in (
                (old.path, [name for name in second if name not in first]),
                (new.path, [name for name in first if name not in second]),
            )
            if names
        ]
        raise SceneError(
            f"{old.path} and {new.path} have different classes: {'; '.join(lacking)}",
            hint="if their ids mean the same, name the classes of both: --classes FILE.yaml",
        )
    return old.classes, [first.index(name) for name in second]


def change_matrix(pair: MapPair) -> tuple[IntArray, FloatArray]:
    """Pixels of every pair of classes, and their true area, m² (`Grid.area_unit` without a CRS), (K, K) each.

    Rows are the earlier map. What is nodata in either does not count. They do not depend on how rows are cut.
    """
    number = len(pair.classes)
    pixels, area = np.zeros((number, number), dtype=np.int64), np.zeros((number, number))
    row, row_m2 = 0, pair.grid.pixel_area_m2()
    for old, new in pair.rows():
        _count_pairs(old, new, row_m2[row : row + len(old)], pixels, area)
        row += len(old)
    return pixels, area


@njit
def _count_pairs(old: ByteArray, new: ByteArray, row_m2: FloatArray, pixels: IntArray, area: FloatArray) -> None:
    """Add rows (h, W) to pixels and area, (K, K) each; areas are added up row by row."""
    height, width = old.shape
    classes = len(pixels)
    here = np.zeros((classes, classes), dtype=np.int64)
    for row in range(height):
        here[:] = 0
        for col in range(width):
            if old[row, col] != NODATA:
                here[old[row, col], new[row, col]] += 1
        for i in range(classes):
            for j in range(classes):
                if here[i, j]:
                    pixels[i, j] += here[i, j]
                    area[i, j] += here[i, j] * row_m2[row]


@dataclass(frozen=True, slots=True, eq=False)
class Transitions:
    """The changes between two maps as classes of one map; class 0 is `UNCHANGED`."""

    classes: ClassTable  # their names, as ``forest:built``, in the colours of what was new
    table: ByteArray  # class of each pair of ids, (256, 256) uint8; 255 for nodata
    pairs: tuple[tuple[str, str], ...]  # earlier and later name of each class; of the unchanged, none

    def rows(self, pair: MapPair) -> Iterator[MapRows]:
        """The map of changes from top to bottom."""
        for old, new in pair.rows():
            yield MapRows(self.table[old, new])


def transition_name(old: str, new: str) -> str:
    """The name of a change."""
    return f"{old}:{new}"


def transitions(classes: ClassTable, is_present: IntArray) -> Transitions:
    """The changes that are present, (K, K), as classes, ordered by the earlier class; a `SceneError` above 254."""
    present = np.argwhere((is_present > 0) & ~np.eye(len(classes), dtype=bool)).tolist()
    if len(present) >= NODATA:
        raise SceneError(
            f"the maps have {len(present)} different changes, and a map of changes holds at most {NODATA - 1}",
            hint="leave out -o for the table alone, or join classes in both maps first, with gdal_calc.py",
        )
    table = np.full((256, 256), NODATA, dtype=np.uint8)
    entries, pairs = [MapClass(0, UNCHANGED, (217, 217, 217), background=True)], [("", "")]
    table[np.arange(len(classes)), np.arange(len(classes))] = 0
    for number, (i, j) in enumerate(present, start=1):
        old, new = classes[i], classes[j]
        entries.append(MapClass(number, transition_name(old.name, new.name), new.color))
        pairs.append((old.name, new.name))
        table[i, j] = number
    return Transitions(ClassTable(tuple(entries)), table, tuple(pairs))
