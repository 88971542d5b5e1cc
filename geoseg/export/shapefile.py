"""ESRI Shapefile: vertices, index and attributes as three files, in numbered parts where they would grow past 2 GB.

Written here and not by GDAL: the format is arrays with a header, and so the sizes are known before a byte is written,
numbers get the widths they need (GDAL's driver gives every real number 24 characters), and it is fast.

References:
    ESRI Shapefile Technical Description (1998); the .dbf is dBASE III's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import pyproj
from pyproj.exceptions import CRSError

from geoseg._jit import njit
from geoseg.errors import OutputError
from geoseg.export.arrow import batch_slice, portions, with_first, writing
from geoseg.export.layer import Layer
from geoseg.export.wkb import ByteArray, copy_bytes, polygon_bounds
from geoseg.polygons.batch import FloatArray, IntArray, PolygonBatch

LIMIT = 2**31 - 1  # bytes of a .shp or a .dbf; programs that seek with 32 bits read no further

_NAME_LENGTH = 10
_TEXT_WIDTH = 254
_DECIMALS = 6
_HEADER = 100  # bytes, of .shp and .shx
_VERSION, _POLYGON = 1000, 5


def write_shapefile(batches: Iterable[PolygonBatch], path: Path, layer: Layer, *, limit: int = LIMIT) -> int:
    """Write a shapefile, and ``name_2.shp``, ``name_3.shp``, … beside it for what does not fit.

    Each part is complete: ``.shp``, ``.shx``, ``.dbf``, a ``.cpg`` that says UTF-8, and a ``.prj`` where there is a
    CRS. Field names longer than ten characters are shortened, and ``name.fields.txt`` tells which. Real numbers have
    six decimals, fewer where the number is large; texts longer than 254 bytes are cut.

    Args:
        batches: The polygons; all batches have the columns of the first.
        path: Scratch path of the first ``.shp``.
        layer: Name, grid, classes and source.
        limit: Most bytes of a ``.shp`` or ``.dbf``.

    Returns:
        Number of features in all parts.

    Raises:
        OutputError: A file cannot be written, or a single polygon is larger than the limit.
    """
    first, batches = with_first(batches)
    table = _Table(first, layer)
    renamed = [f"{field.name} = {field.full_name}\n" for field in table.fields if field.name != field.full_name]
    if renamed:
        with writing(path):
            path.with_suffix(".fields.txt").write_text("".join(renamed), encoding="utf-8")
    with _Parts(path, table, None if layer.grid.crs is None else _esri_wkt(layer.grid.crs), limit) as parts:
        for batch in batches:
            for portion in portions(batch):
                parts.add(portion)
    return parts.count


def short_names(names: Iterable[str]) -> dict[str, str]:
    """A field name of at most ten characters for every name, no two alike: cut, and numbered where that clashes."""
    short: dict[str, str] = {}
    for name in names:
        candidate, number = name[:_NAME_LENGTH], 1
        while candidate.lower() in {s.lower() for s in short.values()}:
            number += 1
            candidate = f"{name[: _NAME_LENGTH - 1 - len(str(number))]}_{number}"
        short[name] = candidate
    return short


def _esri_wkt(crs: Any) -> str:
    definition = pyproj.CRS.from_user_input(crs)
    try:
        return definition.to_wkt("WKT1_ESRI")
    except CRSError:  # a projection that ESRI's dialect has no word for
        return definition.to_wkt()


class _Parts:
    """The files of the part that is being written; the next part is begun where a polygon does not fit."""

    def __init__(self, path: Path, table: _Table, wkt: str | None, limit: int) -> None:
        self._path, self._table, self._wkt, self._limit = path, table, wkt, limit
        self._number = 0
        self.count = 0

    def __enter__(self) -> _Parts:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with writing(self._path), self._files:
            if kind is None:
                self._finish()

    def add(self, batch: PolygonBatch) -> None:
        """Write a batch, over as many parts as it takes."""
        while len(batch):
            ends = np.cumsum(_record_sizes(batch))
            records = np.arange(1, len(batch) + 1) * self._table.width
            fits = (self._shp_size + ends <= self._limit) & (self._dbf_size + records < self._limit)
            fitting = int(np.count_nonzero(fits))
            if fitting:
                self._write(batch_slice(batch, 0, fitting))
                batch = batch_slice(batch, fitting, len(batch))
            elif self._features:
                with writing(self._path), self._files:
                    self._finish()
                self._begin()
            else:
                hint = "make it simpler with --simplify or --min-area, or write a GeoPackage: -o out.gpkg"
                raise OutputError(f"a polygon is too large for the shapefile {self._path.name}", hint=hint)

    def _begin(self) -> None:
        self._number += 1
        stem = self._path.stem if self._number == 1 else f"{self._path.stem}_{self._number}"
        path = self._path.with_name(stem + self._path.suffix)
        self._features, self._shp_size, self._dbf_size = 0, _HEADER, len(self._table.header(0))
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        with ExitStack() as stack, writing(self._path):
            self._shp, self._shx, self._dbf = (
                stack.enter_context(p.open("wb")) for p in (path, path.with_suffix(".shx"), path.with_suffix(".dbf"))
            )
            for file, size in (self._shp, _HEADER), (self._shx, _HEADER), (self._dbf, self._dbf_size):
                file.write(bytes(size))  # the header is known at the end
            path.with_suffix(".cpg").write_text("UTF-8", encoding="ascii")
            if self._wkt is not None:
                path.with_suffix(".prj").write_text(self._wkt, encoding="utf-8")
            self._files = stack.pop_all()

    def _write(self, batch: PolygonBatch) -> None:
        bounds = polygon_bounds(batch)
        shapes, offsets = _shapes(batch, bounds, self._features + 1)
        index = np.empty((len(batch), 2), dtype=">i4")  # in words of two bytes
        index[:, 0], index[:, 1] = (self._shp_size + offsets[:-1]) // 2, np.diff(offsets) // 2 - 4
        records = self._table.records(batch)
        with writing(self._path):
            self._shp.write(shapes.data)
            self._shx.write(index.tobytes())
            self._dbf.write(records.tobytes())
        self._bounds[:2] = np.minimum(self._bounds[:2], bounds[:, :2].min(axis=0))
        self._bounds[2:] = np.maximum(self._bounds[2:], bounds[:, 2:].max(axis=0))
        self._features += len(batch)
        self._shp_size += len(shapes)
        self._dbf_size += records.size
        self.count += len(batch)

    def _finish(self) -> None:
        self._dbf.write(b"\x1a")
        _put_header(self._dbf, self._table.header(self._features))
        bounds = self._bounds if self._features else np.zeros(4)
        for file, size in (self._shp, self._shp_size), (self._shx, _HEADER + 8 * self._features):
            head = struct.pack(">i20xi", 9994, size // 2) + struct.pack(
                "<ii8d", _VERSION, _POLYGON, *bounds, 0, 0, 0, 0
            )
            _put_header(file, head)


def _put_header(file: IO[bytes], header: bytes) -> None:
    file.seek(0)
    file.write(header)


def _record_sizes(batch: PolygonBatch) -> IntArray:
    """Bytes of each polygon in the .shp, (n,), with the 8 of its record's header."""
    rings, vertices = np.diff(batch.polygons), np.diff(batch.rings[batch.polygons])
    return np.asarray(8 + 44 + 4 * rings + 16 * vertices, dtype=np.int64)


def _shapes(batch: PolygonBatch, bounds: FloatArray, number: int) -> tuple[ByteArray, IntArray]:
    """Records of the .shp, numbered from ``number``, and where each begins, (n + 1,)."""
    offsets = np.concatenate([[0], np.cumsum(_record_sizes(batch))])
    out = np.empty(offsets[-1], dtype=np.uint8)
    xy = np.ascontiguousarray(batch.xy, dtype="<f8").view(np.uint8).reshape(-1)
    boxes = np.ascontiguousarray(bounds, dtype="<f8").view(np.uint8).reshape(-1)
    _fill_shapes(out, offsets, number, xy, boxes, batch.rings, batch.polygons)
    return out, offsets


@njit
def _fill_shapes(
    out: ByteArray,
    offsets: IntArray,
    number: int,
    xy: ByteArray,
    boxes: ByteArray,
    rings: IntArray,
    polygons: IntArray,
) -> None:
    """Write records; a shapefile's shells run clockwise and its holes the other way, so every ring is reversed."""
    for i in range(len(polygons) - 1):
        at = offsets[i]
        length = (offsets[i + 1] - at) // 2 - 4
        for k in range(4):  # big-endian
            out[at + k] = ((number + i) >> (24 - 8 * k)) & 255
            out[at + 4 + k] = (length >> (24 - 8 * k)) & 255
        at = _put_int(out, at + 8, _POLYGON)
        at = copy_bytes(out, at, boxes, 32 * i, 32)
        first = rings[polygons[i]]
        at = _put_int(out, at, polygons[i + 1] - polygons[i])
        at = _put_int(out, at, rings[polygons[i + 1]] - first)
        for r in range(polygons[i], polygons[i + 1]):
            at = _put_int(out, at, rings[r] - first)
        for r in range(polygons[i], polygons[i + 1]):
            for k in range(rings[r + 1] - 1, rings[r] - 1, -1):
                at = copy_bytes(out, at, xy, 16 * k, 16)


@njit
def _put_int(out: ByteArray, at: int, value: int) -> int:
    """Write a number as four bytes, the lowest first, and give the position behind it."""
    for k in range(4):
        out[at + k] = (value >> (8 * k)) & 255
    return at + 4


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of the .dbf: numbers (N) with decimals, or text (C)."""

    full_name: str
    name: str
    kind: str
    width: int
    decimals: int = 0

    def descriptor(self) -> bytes:
        name, kind = self.name.encode(), self.kind.encode()
        return struct.pack("<11sc4xBB14x", name, kind, self.width, self.decimals)


class _Table:
    """Columns of a layer as the fields of a .dbf."""

    def __init__(self, first: PolygonBatch, layer: Layer) -> None:
        self._names = _texts(layer.classes.names)
        self._source = None if layer.source is None else _texts([layer.source])
        kinds: dict[str, tuple[str, int, int]] = {"class_id": ("N", 3, 0), "class_name": ("C", self._names.shape[1], 0)}
        kinds |= {name: _number_kind(values.dtype) for name, values in first.columns.items()}
        if self._source is not None:
            kinds["source"] = ("C", self._source.shape[1], 0)
        short = short_names(kinds)
        self.fields = [_Field(name, short[name], *kind) for name, kind in kinds.items()]
        self.width = 1 + sum(field.width for field in self.fields)

    def header(self, count: int) -> bytes:
        """Everything before the records."""
        size = 32 + 32 * len(self.fields) + 1
        # The date of the last change is the one that GDAL writes too when it wants the same bytes every day.
        start = struct.pack("<4BIHH20x", 3, 95, 7, 26, count, size, self.width)
        return start + b"".join(field.descriptor() for field in self.fields) + b"\r"

    def records(self, batch: PolygonBatch) -> ByteArray:
        """Records of a batch as text, (n, width)."""
        out = np.full((len(batch), self.width), ord(" "), dtype=np.uint8)
        at = 1  # after the flag of deleted records
        for field in self.fields:
            cells = out[:, at : at + field.width]
            if field.full_name == "class_name":
                cells[:] = self._names[batch.class_id]
            elif field.full_name == "source" and self._source is not None:
                cells[:] = self._source[0]
            else:
                values = batch.class_id if field.full_name == "class_id" else batch.columns[field.full_name]
                _fill_numbers(cells, values.astype(np.float64), field.decimals)
            at += field.width
        return out


def _texts(texts: Iterable[str]) -> ByteArray:
    """Texts as rows of UTF-8, filled up with spaces; characters past the 254th byte are left out."""
    encoded = [text.encode()[:_TEXT_WIDTH].decode(errors="ignore").encode() for text in texts]
    width = max(1, *map(len, encoded))
    return np.frombuffer(b"".join(t.ljust(width) for t in encoded), dtype=np.uint8).reshape(-1, width)


def _number_kind(dtype: np.dtype[Any]) -> tuple[str, int, int]:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return "N", max(len(str(limits.min)), len(str(limits.max))), 0
    # 12 places before the point are the area of a continent in m²; float32 holds seven digits, of a share here.
    return ("N", 19, _DECIMALS) if dtype.itemsize > 4 else ("N", 9, _DECIMALS)


@njit
def _fill_numbers(cells: ByteArray, values: FloatArray, decimals: int) -> None:
    """Numbers as text, to the right of each row; blank where there is none, with fewer decimals where they are long.

    A number that does not fit at all is written as asterisks, as dBASE did.
    """
    width = cells.shape[1]
    for i in range(len(values)):
        value = values[i]
        if np.isnan(value):
            continue
        for places in range(decimals, -1, -1):
            scaled = abs(value) * 10.0**places
            if scaled >= 9e18:
                continue
            digits = np.int64(np.round(scaled))
            negative = value < 0 and digits > 0
            at = width - 1
            place = 0
            while at >= 0 and (digits > 0 or place <= places):
                if places > 0 and place == places:
                    cells[i, at] = 46  # .
                    at -= 1
                    if at < 0:
                        break
                cells[i, at] = 48 + digits % 10
                digits //= 10
                at -= 1
                place += 1
            if digits == 0 and place > places and at >= negative - 1:
                for k in range(at + 1):
                    cells[i, k] = 32
                if negative:
                    cells[i, at] = 45  # -
                break
        else:
            cells[i, :] = 42
