"""What every format of polygons keeps: the tests of a format inherit it and say what is its own."""

from __future__ import annotations

import resource
import sqlite3
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import geopandas
import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from geoseg.class_map.writing import MapFileWriter
from geoseg.errors import OutputError, SceneError
from geoseg.export import style_qml, write_polygons
from geoseg.grid import Grid
from geoseg.map_rows import MapRows
from geoseg.polygons import PolygonRules
from geoseg.programs.info import describe
from geoseg.programs.vectorize import vectorize
from support.coverages import NORTH_UP, TABLE, UTM, batch, blobs, coverage, pieces

PLACES = [(UTM, NORTH_UP), ("EPSG:4326", Affine(1e-4, 0, 15, 0, -1e-4, 47)), (None, Affine.scale(1, -1))]
FIELDS = ["class_id", "class_name", "area_m2", "perim_m", "conf_mean", "conf_min", "source"]
TOWGS84 = "+proj=tmerc +lat_0=0 +lon_0=9 +x_0=3500000 +ellps=bessel +units=m +towgs84={} +type=crs"
OBLIQUE = "+proj=omerc +lat_0=4 +lonc=102.25 +alpha=323.02 +gamma=330 +x_0=804671 +ellps=evrstSS +units=m +type=crs"
RAW = PolygonRules()
PIXEL = Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As a full disk would, the system refuses to write more than this into a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def write_classes(path: Path, values: Any = None, *, crs: str | None = "EPSG:32633", transform: Affine = PIXEL) -> Path:
    """A class map, by default of `blobs`."""
    values = blobs() if values is None else values
    grid = Grid(*values.shape, transform, CRS.from_user_input(crs) if crs else None)
    with MapFileWriter(path, grid, TABLE) as out:
        out.write(MapRows(values))
    return path


def closing_rows(path: Path, query: str) -> list[Any]:
    """Rows of a GeoPackage, read by SQLite."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


def legend(style: Path) -> list[list[str | None]]:
    """Labels of a style for rasters and for polygons."""
    root = ET.parse(style)
    return [
        [entry.get("label") for entry in root.findall(path)]
        for path in ("pipe/rasterrenderer/colorPalette/paletteEntry", "renderer-v2/categories/category")
    ]


def sorted_by_bounds(geometries: Any) -> Any:
    """The order of polygons by their bounds: formats with an index have an order of their own."""
    return np.lexsort(shapely.bounds(geometries).T[::-1])


class FormatContract:
    """Tests of one format through the functions that users call."""

    suffix: ClassVar[str]

    def path(self, folder: Path, name: str = "map") -> Path:
        return folder / f"{name}{self.suffix}"

    def read(self, path: Path) -> geopandas.GeoDataFrame:
        """The file as another program reads it."""
        return pyogrio.read_dataframe(path, layer=0)

    def style(self, path: Path) -> str:
        """The QGIS style that belongs to a file."""
        return path.with_suffix(".qml").read_text(encoding="utf-8")

    def test_without_a_source_there_is_no_such_field(self, tmp_path: Path) -> None:
        polygons, layer = coverage(source=None)
        write_polygons([polygons], self.path(tmp_path), layer)
        assert "source" not in self.read(self.path(tmp_path)).columns

    def test_the_legend_has_the_classes_that_are_present(self, tmp_path: Path) -> None:
        polygons, layer = coverage(np.kron([[2, 0], [0, 2]], np.ones((5, 5), np.uint8)).astype(np.uint8))
        write_polygons([polygons], self.path(tmp_path), layer)
        wanted = style_qml(TABLE, present=[0, 2])
        assert self.style(self.path(tmp_path)) == wanted
        labels = [c.get("label") for c in ET.fromstring(wanted).findall("renderer-v2/categories/category")]
        assert labels == ["ground", "水"]

    def test_overwriting_leaves_nothing_of_the_older_file(self, tmp_path: Path) -> None:
        polygons, layer = coverage()
        path = self.path(tmp_path, layer.name)
        write_polygons([polygons], path, layer)
        names = sorted(p.name for p in tmp_path.iterdir())
        (path.with_suffix(".qix") if self.suffix == ".shp" else tmp_path / f"{path.name}-wal").write_text("old")
        one, layer = coverage(np.array([[1]], dtype=np.uint8))
        write_polygons([one], path, layer)
        assert sorted(p.name for p in tmp_path.iterdir()) == names
        assert len(self.read(path)) == 1

    @pytest.mark.parametrize("error", [SceneError("the disk of the map has gone"), KeyboardInterrupt()], ids=repr)
    def test_an_error_of_the_source_is_passed_on(self, tmp_path: Path, error: BaseException) -> None:
        polygons, layer = coverage()

        def batches() -> Iterator[Any]:
            yield polygons
            raise error

        with pytest.raises(type(error)) as caught:
            write_polygons(batches(), self.path(tmp_path), layer)
        assert caught.value is error
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_is_an_error_wherever_it_strikes(self, tmp_path: Path) -> None:
        polygons, layer = coverage(blobs((200, 200)))
        path = self.path(tmp_path)
        write_polygons([polygons], path, layer)
        sizes = sorted(p.stat().st_size for p in tmp_path.iterdir())
        for file in tmp_path.iterdir():
            file.unlink()
        limits = {size - less for size in sizes for less in (1, 100, 4_000, 10_000, size // 2)}
        for limit in sorted(limit for limit in limits if 8_000 < limit < sizes[-1]):
            with (
                files_of_at_most(limit),
                pytest.raises(OutputError, match=rf"cannot write .*map\{self.suffix}: .+"),
            ):
                write_polygons([polygons], path, layer)
            assert list(tmp_path.iterdir()) == []

    def test_vectorize_writes_the_whole_map(self, tmp_path: Path) -> None:
        values = blobs()
        source = write_classes(tmp_path / "map.tif", values)
        style = (tmp_path / "map.qml").read_text()
        report = vectorize(source, self.path(tmp_path), rules=RAW)
        assert (tmp_path / "map.qml").read_text() == style  # map and polygons of one name share it
        back = self.read(report.path)
        pixels = np.bincount(values.ravel(), minlength=256)
        assert len(back) == report.polygons == sum(c.polygons for c in report.classes)
        assert [c.name for c in report.classes] == list(TABLE.names)
        np.testing.assert_allclose([c.area_m2 for c in report.classes], pixels[:3] * 0.09, rtol=1e-3)
        described = "\n".join(describe(str(report.path)))
        assert f"map: {len(back)} features" in described and "class_name: text" in described

    def test_a_style_saved_by_a_person_is_kept(self, tmp_path: Path) -> None:
        source = write_classes(tmp_path / "map.tif")
        path, style = self.path(tmp_path, "out"), tmp_path / "out.qml"
        style.write_text("<qgis><renderer-v2/></qgis>")
        with pytest.raises(OutputError, match=rf"out\.qml exists, and out\{self.suffix} would replace it") as error:
            vectorize(source, path)
        assert "--overwrite" in str(error.value.hint)
        assert not path.exists()
        assert style.read_text() == "<qgis><renderer-v2/></qgis>"
        vectorize(source, path, overwrite=True)
        assert legend(style)[1] == list(TABLE.names)
        path.unlink()
        if self.suffix != ".shp":
            vectorize(source, path)  # a style of ours is replaced without a word


class ExactContract(FormatContract):
    """Tests of a format that holds coordinates in the map's CRS, to the last bit."""

    measures_off: ClassVar[float] = 0.0
    """How far off a measure may be; exact ones keep their data type."""

    def files(self, stem: str, crs: str | None) -> set[str]:
        """What is written, beside the style."""
        return {f"{stem}{self.suffix}"}

    def same_crs(self, found: Any, wanted: str | None) -> bool:
        return bool(found == wanted)

    @pytest.mark.parametrize(("crs", "transform"), PLACES)
    @pytest.mark.filterwarnings("error")
    def test_polygons_and_attributes_come_back(self, tmp_path: Path, crs: str | None, transform: Affine) -> None:
        polygons, layer = coverage(crs=crs, transform=transform)
        path = self.path(tmp_path, "Karte é")
        assert write_polygons(pieces(polygons, 4), path, layer) == len(polygons)
        assert {p.name for p in tmp_path.iterdir()} - {"Karte é.qml"} == self.files("Karte é", crs)
        frame = self.read(path)
        assert list(frame.columns) == [*FIELDS, "geometry"]
        assert self.same_crs(frame.crs, crs)
        geometries = polygons.geometries()
        order = sorted_by_bounds(geometries)
        frame = frame.iloc[sorted_by_bounds(frame.geometry.to_numpy())]
        found, wanted = shapely.normalize(frame.geometry.to_numpy()), shapely.normalize(geometries[order])
        assert shapely.equals_exact(found, wanted).all()
        assert list(frame.class_id) == list(polygons.class_id[order])
        assert list(frame.class_name) == [TABLE[i].name for i in polygons.class_id[order]]
        for name, values in polygons.columns.items():
            np.testing.assert_allclose(frame[name], values[order], rtol=0, atol=self.measures_off)
            assert self.measures_off or frame[name].dtype == values.dtype
        assert set(frame.source) == {layer.source}

    @pytest.mark.parametrize(
        ("crs", "x", "y"), [(TOWGS84.format("598.1,73.7,418.2"), 3.5e6, 5.5e6), (OBLIQUE, 8e5, 4e5)]
    )
    def test_a_crs_in_no_register_is_kept(self, tmp_path: Path, crs: str, x: float, y: float) -> None:
        source = write_classes(tmp_path / "map.tif", crs=crs, transform=Affine(0.3, 0, x, 0, -0.3, y))
        back = self.read(vectorize(source, self.path(tmp_path, "out"), rules=RAW).path)
        places = [
            pyproj.Transformer.from_crs(known, 4326, always_xy=True).transform(x, y)
            for known in (back.crs, pyproj.CRS.from_user_input(crs))
        ]
        np.testing.assert_allclose(*places, rtol=0, atol=1e-7)

    @pytest.mark.parametrize("crs", [UTM, None])
    def test_a_layer_without_polygons_has_its_fields(self, tmp_path: Path, crs: str | None) -> None:
        _, layer = coverage(crs=crs)
        for name, batches, fields in (("empty", [batch([], [])], FIELDS), ("nothing", [], [*FIELDS[:2], FIELDS[-1]])):
            path = self.path(tmp_path, name)
            assert write_polygons(batches, path, layer) == 0
            frame = self.read(path)
            assert (len(frame), list(frame.columns)) == (0, [*fields, "geometry"])
            assert self.same_crs(frame.crs, crs)

    def test_a_window_reads_what_touches_it(self, tmp_path: Path) -> None:
        polygons, layer = coverage()
        write_polygons([polygons], self.path(tmp_path), layer)
        bounds = shapely.bounds(polygons.geometries())
        left, bottom, right, top = shapely.total_bounds(polygons.geometries())
        window = left, bottom, left + 0.3 * (right - left), bottom + 0.2 * (top - bottom)
        hits = shapely.intersects(shapely.box(*bounds.T), shapely.box(*window))
        assert len(self.read_window(self.path(tmp_path), window)) == hits.sum() < len(polygons)

    def read_window(self, path: Path, window: tuple[float, ...]) -> geopandas.GeoDataFrame:
        return pyogrio.read_dataframe(path, layer=0, bbox=window)
