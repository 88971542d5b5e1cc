"""The viewer's server: the tiles of any raster lie where they belong, and nothing else is served."""

from __future__ import annotations

import http.client
import importlib
import io
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import geopandas
import numpy as np
import numpy.typing as npt
import pyproj
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.enums import ColorInterp
from shapely.geometry import Point, box

pytest.importorskip("rio_tiler")
pytest.importorskip("starlette")

import geoseg
import geoseg.view
from geoseg.classes import NODATA, format_color
from geoseg.errors import ConfigError, GeosegError, OutputError, SceneError
from geoseg.grid import Grid
from geoseg.options import ViewOptions
from geoseg.programs.vectorize import vectorize
from geoseg.scene.shades import shades, stretch
from geoseg.view.layers import Opener, count_areas
from geoseg.view.place import TILE_PX, WORLD_M, mercator, tile_bounds, tiles_over
from geoseg.view.program import open_session
from geoseg.view.server import Server
from geoseg.view.session import Session
from support import commands
from support.scenes import Orientation, place_transform, write_scene
from support.views import CLASSES, SIDE, write_map


def one_layer(path: Path, **options: Any) -> Session:
    return open_session([path], ViewOptions(**options))


def mosaic(session: Session, number: int = 0, band: int = 1) -> tuple[Any, Any, int]:
    """All tiles of the highest level side by side, the map coordinates of the first corner, and the level."""
    raster = session.layers[number].raster
    assert raster is not None
    z = raster.zoom_levels(finer=2)[1]
    found = tiles_over(raster.bounds, z)
    left, top = min(x for _, x, _ in found), min(y for _, _, y in found)
    columns, rows = (max(t[i] for t in found) - (left, top)[i - 1] + 1 for i in (1, 2))
    whole = np.full((rows * TILE_PX, columns * TILE_PX), NODATA, np.uint8)
    for _, x, y in found:
        body, kind = session.tile(number, z, x, y, band) or (b"", "")
        assert kind == "application/octet-stream"
        values = np.frombuffer(body, np.uint8).reshape(TILE_PX, TILE_PX)
        whole[(y - top) * TILE_PX :, (x - left) * TILE_PX :][:TILE_PX, :TILE_PX] = values
    return whole, tile_bounds(z, left, top), z


@pytest.mark.parametrize("orientation", ["north", "south", "rotated"])
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:3857", "EPSG:4326", "EPSG:2263"])
def test_map_lies_where_it_belongs(tmp_path: Path, crs: str, orientation: Orientation) -> None:
    ids = write_map(tmp_path / "map.tif", crs=crs, orientation=orientation)
    whole, (left, _, _, top), z = mosaic(one_layer(tmp_path / "map.tif"))
    rows, cols = (a.ravel() for a in np.meshgrid(np.arange(4, SIDE, 8), np.arange(4, SIDE, 8), indexing="ij"))
    x, y = place_transform(crs, orientation) @ (cols.astype(float), rows.astype(float))
    to_map = pyproj.Transformer.from_crs(crs, 3857, always_xy=True)
    east, north = to_map.transform(x, y)
    pixel = WORLD_M / 2**z / TILE_PX
    found = whole[((top - north) / pixel).astype(int), ((east - left) / pixel).astype(int)]
    assert (found == ids[rows, cols]).all()
    # Each class covers in the tiles what it covers on the ground of the map.
    shares = [np.bincount(a[a != NODATA], minlength=3) / (a != NODATA).sum() for a in (whole, ids)]
    assert np.abs(shares[0] - shares[1]).max() < 0.02


def test_map_without_georeference_lies_in_pixels(tmp_path: Path) -> None:
    ids = write_map(tmp_path / "map.tif", crs=None)
    session = one_layer(tmp_path / "map.tif")
    whole, (left, _, _, top), z = mosaic(session)
    pixel = WORLD_M / 2**z / TILE_PX
    at = np.arange(4, SIDE, 8)
    found = whole[np.ix_(((top + at) / pixel).astype(int), ((at - left) / pixel).astype(int))]
    assert (found == ids[4::8, 4::8]).all()
    assert session.facts()["plane"] == [0, 0, 1]


@pytest.mark.parametrize("transform", [Affine(1e-6, 0, 7, 0, -1e-6, 9), Affine(2, 0, 4e6, 0, -2, 9e6)])
def test_unknown_coordinates_are_drawn_at_a_size_to_zoom_into(tmp_path: Path, transform: Affine) -> None:
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=64, width=64, count=3, dtype="uint8", transform=transform
    ) as file:
        file.write(np.full((3, 64, 64), 77, np.uint8))
    left, top = transform.c, transform.f
    house = box(left, top - 32 * transform.a, left + 32 * transform.a, top)
    geopandas.GeoDataFrame({"class": ["house"]}, geometry=[house]).to_file(tmp_path / "a.gpkg")
    session = open_session([tmp_path / "a.tif", tmp_path / "a.gpkg"])
    image, vector = (layer.raster or layer.vector for layer in session.layers)
    assert image is not None and vector is not None and vector.bounds is not None
    assert np.allclose(image.bounds, (0, mercator_degrees(-64), mercator_degrees(64), 0), atol=1e-9)
    assert np.allclose(vector.bounds, (0, mercator_degrees(-32), mercator_degrees(32), 0), atol=1e-9)
    session.work()
    assert session.layers[1].error is None
    z = vector.zooms[1]
    assert session.tile(1, *tiles_over(vector.bounds, z)[0]) is not None


RGBA = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]


def mercator_degrees(metres: float) -> float:
    return float(np.degrees(metres / 6378137))


def picture(session: Session, number: int = 0) -> npt.NDArray[Any]:
    raster = session.layers[number].raster
    assert raster is not None
    west, south, east, north = raster.bounds
    z = raster.zoom_levels(finer=0)[1]
    x, y = mercator((west + east) / 2, (south + north) / 2)
    side = WORLD_M / 2**z
    found = session.tile(number, z, int(x / side + 2 ** (z - 1)), int(2 ** (z - 1) - y / side))
    assert found is not None
    return np.asarray(Image.open(io.BytesIO(found[0])))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("bands", [1, 3, 5])
def test_imagery_of_any_depth_is_stretched(tmp_path: Path, dtype: str, bands: int) -> None:
    scene = write_scene(tmp_path / "a.tif", dtype=dtype, bands=bands, size=(400, 400))
    if dtype == "uint16":  # as of a sensor of 12 bit
        with rasterio.open(scene.path, "r+") as file:
            file.write(file.read() // 16)
    low, high = np.percentile(picture(one_layer(scene.path))[..., :3], (5, 95))
    assert low < 90 and high > 160


def test_what_is_brighter_than_the_stretch_is_white(tmp_path: Path) -> None:
    pictures = []
    for brightest in (255, 300):
        scene = write_scene(tmp_path / f"{brightest}.tif", dtype="uint16", bands=1, size=(300, 300))
        values = np.repeat([0, 255], 150).astype(np.uint16)[None, None].repeat(300, axis=1)
        values[:, 60:240, 154:158] = brightest  # less than 2 % of all
        with rasterio.open(scene.path, "r+") as file:
            file.write(values)
        pictures.append(picture(one_layer(scene.path)))
    np.testing.assert_array_equal(*pictures)


def test_infinite_values_do_not_spoil_the_stretch() -> None:
    decibels = np.array([-np.inf, -np.inf, -20, -15, -10, np.inf], np.float32)
    assert stretch(decibels) == pytest.approx((-19.8, -10.2))
    assert shades(decibels, *stretch(decibels)).tolist() == [0, 0, 0, 127, 255, 255]
    assert stretch(np.array([np.nan, np.inf])) == (0, 255)


def test_bands_are_drawn_in_the_order_asked_for(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "a.tif", bands=4, size=(300, 300))
    with rasterio.open(scene.path, "r+") as file:
        file.write(np.stack([np.full((300, 300), v, np.uint8) for v in (10, 90, 170, 250)]))
    assert picture(one_layer(scene.path))[100, 100, :3].tolist() == pytest.approx([10, 90, 170], abs=3)
    assert picture(one_layer(scene.path, bands=(4, 3, 1)))[100, 100, :3].tolist() == pytest.approx(
        [250, 170, 10], abs=3
    )
    assert picture(one_layer(scene.path, bands=(2,)))[100, 100, :3].tolist() == pytest.approx([90] * 3, abs=3)
    with pytest.raises(SceneError, match=r"has bands 1 … 4, but band 7"):
        one_layer(scene.path, bands=(7, 1, 2))
    with pytest.raises(ConfigError, match="2 bands cannot be shown"):
        one_layer(scene.path, bands=(1, 2))


def test_some_bands_of_an_image_are_read_through_overviews(tmp_path: Path) -> None:
    # Without that, the tile of the whole world takes hundreds of gigabytes.
    scene = write_scene(tmp_path / "a.tif", bands=4, size=(300, 300))
    for bands in (None, (4, 3, 2), (2,)):
        assert one_layer(scene.path, bands=bands).tile(0, 0, 0, 0) is not None


def test_near_infrared_tagged_alpha_hides_nothing(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 250, (4, 640, 640)).astype(np.uint8)
    pixels[3, :, np.arange(640) // 16 % 2 == 1] = 0
    profile: dict[str, Any] = {"driver": "GTiff", "height": 640, "width": 640, "count": 4, "dtype": "uint8"}
    place = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 5e5, 0, -0.5, 5.2e6)}
    with rasterio.open(tmp_path / "nir.tif", "w", **profile, **place) as file:
        file.colorinterp = RGBA
        file.write(pixels)
    assert picture(one_layer(tmp_path / "nir.tif")).shape[-1] == 3
    pixels[3] = np.where(pixels[3] == 0, 0, 255)
    with rasterio.open(tmp_path / "alpha.tif", "w", **profile, **place) as file:
        file.colorinterp = RGBA
        file.write(pixels)
    with_alpha = picture(one_layer(tmp_path / "alpha.tif"))
    assert set(np.unique(with_alpha[..., 3])) == {0, 255}


def test_layers_of_a_map_are_found_beside_it(tmp_path: Path) -> None:
    layers = ("classes", "confidence", "probabilities", "disagreement")
    ids = write_map(tmp_path / "map.tif", layers=layers)
    session = one_layer(tmp_path / "map.tif")
    facts = session.facts()["layers"]
    assert [(layer["name"], layer["kind"], layer["shown"]) for layer in facts] == [
        ("map.tif", "classes", True),
        ("map_disagreement.tif", "classes", False),
        ("map_confidence.tif", "share", False),
        ("map_probabilities.tif", "share", False),
    ]
    assert facts[3]["bands"] == list(CLASSES.names)
    assert [c["name"] for c in facts[0]["classes"]] == list(CLASSES.names)
    assert {layer["of"] for layer in facts[1:]} == {str(tmp_path / "map.tif")}
    whole, _, _ = mosaic(session)
    for number, band, wanted in ((1, 1, whole == 1), (3, 3, np.where(whole == 2, 200, 20))):
        values, _, _ = mosaic(session, number, band)
        known = (whole != NODATA) & (values != NODATA)
        assert (values[known] == wanted[known]).all()
    # Layers of another map are left out.
    write_map(tmp_path / "map.tif", seed=5)
    assert len(one_layer(tmp_path / "map.tif").layers) == 1
    assert count_areas(session.layers[0])["unit"] == "ha"
    assert ids.shape == (SIDE, SIDE)


def test_areas_are_those_of_the_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = write_map(tmp_path / "map.tif", side=1024)
    layer = Opener().raster_layer(str(tmp_path / "map.tif"))
    exact = count_areas(layer)
    assert not exact["about"]
    for i in range(3):
        assert exact["areas"][i] == pytest.approx((ids == i).sum() * 0.25e-4, rel=2e-3)
    monkeypatch.setattr("geoseg.view.rasters._MOST_COUNTED", 300_000)
    about = count_areas(layer)
    assert about["about"]
    assert all(about["areas"][i] == pytest.approx(exact["areas"][i], rel=0.02) for i in range(3))


def test_labels_without_names_are_classes(tmp_path: Path) -> None:
    write_scene(tmp_path / "a.tif", bands=1)
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.write((np.arange(SIDE * 80, dtype=np.uint8) % 4).reshape(1, SIDE, 80))
    session = one_layer(tmp_path / "a.tif")
    assert session.layers[0].kind == "classes"
    assert [c["name"] for c in session.facts()["layers"][0]["classes"]] == [f"class_{i}" for i in range(4)]


# Slow rasters


def test_striped_raster_says_what_is_slow(tmp_path: Path) -> None:
    place = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 5e5, 0, -0.5, 5.2e6)}
    path = tmp_path / "striped.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=30_000, width=30_000, count=3, dtype="uint8", sparse_ok=True, **place
    ) as file:
        file.write(np.full((3, 64, 64), 99, np.uint8), window=rasterio.windows.Window(0, 0, 64, 64))
    layer = one_layer(path).facts()["layers"][0]
    assert "has no overviews" in layer["slow"]
    assert f"geoseg prepare scenes {path} -o tiled" in layer["slow"]
    raster = one_layer(path).layers[0].raster
    assert raster is not None and raster.pixel_zoom - 3 < raster.fast_zoom <= raster.pixel_zoom + 1
    session = one_layer(path)
    assert session.tile(0, raster.fast_zoom - 3, *tiles_over(raster.bounds, raster.fast_zoom - 3)[0][1:]) is None
    assert session.tile(0, *tiles_over(raster.bounds, raster.fast_zoom)[0]) is not None


def test_raster_with_overviews_is_fast_at_any_zoom(tmp_path: Path) -> None:
    write_map(tmp_path / "map.tif", side=1024)
    raster = one_layer(tmp_path / "map.tif").layers[0].raster
    assert raster is not None
    assert raster.fast_zoom == 0
    assert raster.slow_note is None


# Features


def houses(crs: str = "EPSG:32633", count: int = 30) -> geopandas.GeoDataFrame:
    shapes = [box(500_000 + 9 * i, 5_200_000 - 7, 500_005 + 9 * i, 5_200_000) for i in range(count)]
    names = ["house" if i % 3 else "road" for i in range(count)]
    return geopandas.GeoDataFrame({"class_name": names, "area_m2": 35.0}, geometry=shapes, crs="EPSG:32633").to_crs(crs)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".fgb", ".parquet"])
def test_features_of_any_format_are_kept_once(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"houses{suffix}"
    frame = houses("EPSG:4326" if suffix == ".geojson" else "EPSG:32633")
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path)
    session = one_layer(path)
    vector = session.layers[0].vector
    assert vector is not None and vector.bounds is not None and not vector.is_made
    before = sorted(tmp_path.iterdir())
    session.work()
    assert sorted(tmp_path.iterdir()) == before, "nothing may be written beside the inputs"
    assert vector.is_made
    facts = session.facts()["layers"][0]
    assert facts["making"] is None and facts["error"] is None
    assert facts["values"] == ["house", "road"]
    found = [session.tile(0, *tile) for tile in tiles_over(vector.bounds, vector.full_zoom)]
    assert any(b"house" in body for body, _ in filter(None, found))
    # A second viewer finds them made, and a changed file gets new ones.
    again = one_layer(path).layers[0].vector
    assert again is not None and again.is_made and again.store == vector.store
    if suffix == ".gpkg":
        houses(count=31).to_file(path)
        changed = one_layer(path).layers[0].vector
        assert changed is not None and not changed.is_made


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb"])
def test_polygons_have_the_colours_of_their_style(tmp_path: Path, suffix: str) -> None:
    write_map(tmp_path / "map.tif")
    vectorize(tmp_path / "map.tif", tmp_path / f"map{suffix}")
    session = one_layer(tmp_path / f"map{suffix}")
    session.work()
    facts = session.facts()["layers"][0]
    assert facts["field"] == "class_name" and facts["values"] == sorted(CLASSES.names)
    assert {name: facts["colors"][name] for name in CLASSES.names} == {c.name: format_color(c.color) for c in CLASSES}
    (tmp_path / "map.qml").write_text("<qgis><renderer-v2><symbols>")
    assert one_layer(tmp_path / f"map{suffix}").layers[0].vector is not None


def test_pmtiles_are_shown_as_they_are(tmp_path: Path) -> None:
    write_map(tmp_path / "map.tif")
    vectorize(tmp_path / "map.tif", tmp_path / "map.pmtiles")
    session = one_layer(tmp_path / "map.pmtiles")
    session.work()
    vector, facts = session.layers[0].vector, session.facts()["layers"][0]
    assert vector is not None and vector.bounds is not None and facts["error"] is None
    assert "color" in facts["fields"]
    found = session.tile(0, *tiles_over(vector.bounds, vector.zooms[0])[0])
    assert found is not None and b"house" in found[0] and format_color(CLASSES[2].color).encode() in found[0]
    assert session.tile(0, vector.zooms[1], 0, 0) is None


def test_empty_layers_and_points_are_shown_as_such(tmp_path: Path) -> None:
    houses(count=3)[:0].to_file(tmp_path / "none.gpkg")
    geopandas.GeoDataFrame({"type": ["well"]}, geometry=[Point(15, 47)], crs=4326).to_file(tmp_path / "wells.gpkg")
    session = open_session([tmp_path / "none.gpkg", tmp_path / "wells.gpkg"])
    session.work()
    empty, wells = session.facts()["layers"]
    assert (empty["error"], empty["bounds"]) == ("it is empty", None)
    assert wells["error"] is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.tif", None, "no such file"),
        ("notes.txt", b"hello", "not a raster"),
        ("notes.gpkg", b"hello", "neither a raster nor a vector file"),
        ("notes.pmtiles", b"hello", "no vector tiles"),
    ],
)
def test_files_that_cannot_be_shown_are_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(GeosegError, match=message):
        one_layer(tmp_path / name)


# The server


@contextmanager
def serving(session: Session) -> Iterator[str]:
    server = Server(session)
    server.start()
    try:
        yield server.address
    finally:
        server.stop()


def ask(
    address: str, path: str = "", *, method: str = "GET", body: Any = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    parts = urlsplit(address)
    with closing(http.client.HTTPConnection(parts.netloc, timeout=20)) as connection:
        data = None if body is None else json.dumps(body)
        connection.request(method, path if path.startswith("/") else parts.path + path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())


def test_only_the_page_and_what_was_named_is_served(tmp_path: Path) -> None:
    write_map(tmp_path / "map.tif")
    write_map(tmp_path / "other.tif")
    with serving(one_layer(tmp_path / "map.tif")) as address:
        token = urlsplit(address).path.strip("/")
        assert len(token) >= 20
        status, page, headers = ask(address)
        assert status == 200 and b"maplibre-gl.js" in page
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        for name in ("page.js", "page.css", "maplibre-gl.js", "maplibre-gl.css", "state", "corrections/0"):
            assert ask(address, name)[0] == 200, name
        refused = ("/", "/state", f"/{token}", f"/{token}x/state", f"/{token[:-1]}/state", "//", f"/{token}/../state")
        inside = ("map.tif", "other.tif", "page/", "../map.tif", "..%2fmap.tif", "tiles/", "tiles/0", "page.py")
        outside = ("tiles/0/3/9/9/1", "tiles/0/99/0/0/1", f"tiles/0/{'9' * 5000}/0/0/1")
        for path in (*refused, *inside, *outside):
            assert ask(address, path)[0] == 403, path
        assert ask(address, "tiles/7/0/0/0/1")[0] == 409
        for host in ("example.com", "example.com:80", "127.0.0.1.example.com", ""):
            assert ask(address, Host=host)[0] == 403, host
        assert ask(address, Host="localhost:1234")[0] == 200  # as through a tunnel
        for method in ("PUT", "GET"):
            assert ask(address, "corrections/0", method=method, Origin="https://example.com")[0] == 403


def test_command_prints_its_address_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    write_map(tmp_path / "map.tif")
    command = [sys.executable, "-m", "geoseg", "view", "--no-browser", str(tmp_path / "map.tif")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert ask(process.stdout.readline().strip())[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0


def test_taken_port_is_reported(tmp_path: Path) -> None:
    write_map(tmp_path / "map.tif")
    with serving(one_layer(tmp_path / "map.tif")) as address:
        port = urlsplit(address).port
        result = commands.run("view", str(tmp_path / "map.tif"), "--port", str(port), "--no-browser")
    assert result.exit_code == 2
    assert f"port {port} cannot be used: Address already in use" in result.stderr


def test_replaced_files_are_shown_anew_and_lost_ones_reported(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    write_map(path)
    write_map(tmp_path / "new.tif", seed=3)
    session = one_layer(path)
    with serving(session) as address:
        first = json.loads(ask(address, "state")[1])["layers"][0]
        raster = session.layers[0].raster
        assert raster is not None
        tile = "tiles/0/{}/{}/{}/1".format(*tiles_over(raster.bounds, raster.zoom_levels(finer=0)[1])[0])
        before = ask(address, tile)
        assert before[0] == 200
        shutil.copy(tmp_path / "new.tif", path)
        second = json.loads(ask(address, "state")[1])["layers"][0]
        assert second["state"] != first["state"] and second["error"] is None
        assert ask(address, tile)[1] != before[1]
        path.write_bytes(b"half a file")
        assert "not a raster" in json.loads(ask(address, "state")[1])["layers"][0]["error"]
        assert ask(address, tile)[0] in (204, 409)
        path.unlink()
        assert json.loads(ask(address, "state")[1])["layers"][0]["error"] == "the file is gone"
        assert ask(address, tile)[0] in (204, 409)
        shutil.copy(tmp_path / "new.tif", path)
        assert json.loads(ask(address, "state")[1])["layers"][0]["error"] is None
        assert ask(address, tile)[0] == 200


# Corrections


def square(lon: float, lat: float, size: float = 1e-5, name: str = "house", note: str = "") -> dict[str, Any]:
    ring = [[lon, lat], [lon + size, lat], [lon + size, lat + size], [lon, lat + size], [lon, lat]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": {"class": name, "note": note}}


def test_no_viewer_replaces_what_another_has_written(tmp_path: Path) -> None:
    write_map(tmp_path / "map.tif")
    before = {p.name for p in tmp_path.iterdir()}
    sessions = [one_layer(tmp_path / "map.tif") for _ in range(2)]

    def draw(session: Session) -> None:
        drawn = 0
        while drawn < 12:
            found, state = session.corrections(0)
            try:
                session.correct(0, [*found["features"], square(15, 47, name="road")], state)
                drawn += 1
            except ConfigError as error:
                assert "changed by another program" in str(error)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(draw, sessions))
    assert len(geopandas.read_file(tmp_path / "map.corrections.gpkg")) == 24
    assert [p.name for p in tmp_path.iterdir() if p.name not in before] == ["map.corrections.gpkg"]


def test_corrections_that_another_program_edits_are_left_alone(tmp_path: Path) -> None:
    write_map(tmp_path / "map.tif")
    session = one_layer(tmp_path / "map.tif")
    state = session.correct(0, [square(15, 47)], "none")
    assert session.facts()["layers"][0]["corrected"] == state
    with closing(sqlite3.connect(tmp_path / "map.corrections.gpkg")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutputError, match="is being written by another program"):
            session.correct(0, [], state)
    assert len(geopandas.read_file(tmp_path / "map.corrections.gpkg")) == 1


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", None])
def test_corrections_are_saved_in_the_scenes_crs(tmp_path: Path, crs: str | None) -> None:
    write_map(tmp_path / "map.tif", crs=crs)
    session = one_layer(tmp_path / "map.tif")
    raster = session.layers[0].raster
    assert raster is not None
    west, south, east, north = raster.bounds
    lon, lat = (west + east) / 2, (south + north) / 2
    file = tmp_path / "map.corrections.gpkg"
    with serving(session) as address:
        found = json.loads(ask(address, "corrections/0")[1])
        assert found == {"collection": {"type": "FeatureCollection", "features": []}, "state": "none"}
        assert not file.exists()
        features = [square(lon, lat, note="a shed"), square(lon, lat, 2e-5, "ignore")]
        status, body, _ = ask(address, "corrections/0", method="PUT", body={"features": features, "state": "none"})
        assert status == 200
        frame = geopandas.read_file(file)
        assert frame["class"].tolist() == ["house", "ignore"]
        assert frame["note"].tolist() == ["a shed", ""]
        assert frame["time"].notna().all()
        assert set(frame.columns) == {"class", "time", "note", "geometry"}
        assert (
            (frame.crs is None or (not frame.crs.is_projected and not frame.crs.is_geographic))
            if crs is None
            else (frame.crs == crs)
        )
        left, bottom, right, top = frame.total_bounds
        with rasterio.open(tmp_path / "map.tif") as written:
            grid = Grid(written.height, written.width, written.transform, written.crs).as_drawn()
        bounds = grid.bounds
        assert bounds[0] < left < right < bounds[2] and bounds[1] < bottom < top < bounds[3]
        back = json.loads(ask(address, "corrections/0")[1])
        corner = back["collection"]["features"][0]["geometry"]["coordinates"][0][0]
        assert corner == pytest.approx([lon, lat], abs=1e-9)
        # Deleting all leaves an empty layer; the file is as the page knows it, or the change is refused.
        state = json.loads(body)["state"]
        assert back["state"] == state
        stale = ask(address, "corrections/0", method="PUT", body={"features": [], "state": "none"})
        assert stale[0] == 409 and b"changed by another program" in stale[1]
        assert ask(address, "corrections/0", method="PUT", body={"features": [], "state": state})[0] == 200
        assert geopandas.read_file(file).empty
    assert sorted(p.name for p in tmp_path.iterdir() if "correct" in p.name) == [file.name]


def test_corrections_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    write_map(tmp_path / "map.tif")
    session = one_layer(tmp_path / "map.tif")
    bow = square(15, 47)
    bow["geometry"]["coordinates"][0][1:3] = bow["geometry"]["coordinates"][0][2:0:-1]

    def timed(time: Any) -> dict[str, Any]:
        plain = square(15, 47)
        return {**plain, "properties": {**plain["properties"], "time": time}}

    beyond = square(15, 47)
    beyond["geometry"]["coordinates"] = [[[0, 89], [0, 95], [10, 95], [0, 89]]]
    cases = [
        (bow, "polygon 1 crosses itself"),
        (square(15, 47, name="castle"), "polygon 1 has the unknown class 'castle'"),
        (square(15, 47, size=0), "polygon 1 has no area"),
        ({"type": "Feature"}, "polygon 1 is not a GeoJSON feature"),
        (timed("yesterday"), "polygon 1 is not a GeoJSON feature"),
        (timed(5), "polygon 1 is not a GeoJSON feature"),
        ({**bow, "geometry": {**bow["geometry"], "type": "Shape"}}, "polygon 1 is not a GeoJSON feature"),
        (beyond, "polygon 1 lies where the map's CRS has no coordinates"),
    ]
    with serving(session) as address:
        for feature, message in cases:
            status, body, _ = ask(address, "corrections/0", method="PUT", body={"features": [feature], "state": "none"})
            assert status == 409 and message in json.loads(body)["error"]
        assert ask(address, "corrections/0", method="PUT", body=[1])[0] == 400
        assert ask(address, "corrections/9")[0] == 409
    assert not (tmp_path / "map.corrections.gpkg").exists()


# Windows to look at, pages that are saved, notebooks


def doubtful(path: Path) -> None:
    sure = np.full((1024, 1024), 240, np.uint8)
    sure[600:700, 300:500] = 30
    sure[100:120, 800:900] = 100
    write_map(path, side=1024, layers=("classes", "confidence"), confidence=sure)


def test_windows_of_most_doubt_come_first(tmp_path: Path) -> None:
    doubtful(tmp_path / "map.tif")
    session = one_layer(tmp_path / "map.tif", doubt=True, windows=3)
    assert [(w["name"], w["kind"]) for w in session.windows[:2]] == [
        ("row 512, column 256", "Least sure"),
        ("row 0, column 768", "Least sure"),
    ]
    assert len(session.windows) == 3
    west, south, east, north = session.windows[0]["bounds"]
    to_map = pyproj.Transformer.from_crs(4326, 32633, always_xy=True)
    left, top = place_transform("EPSG:32633", "north") @ (256 + 128, 512 + 128)
    assert to_map.transform((west + east) / 2, (south + north) / 2) == pytest.approx((left, top), abs=0.5)
    write_map(tmp_path / "sure.tif")
    with pytest.raises(ConfigError, match="no map has a layer") as raised:
        one_layer(tmp_path / "sure.tif", doubt=True)
    assert "--confidence" in (raised.value.hint or "")


def test_evaluation_folder_shows_scenes_labels_worst_windows(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", size=(SIDE, SIDE))
    write_map(tmp_path / "labels.tif")
    window = {"scene": "scene", "error": 0.42, "row": 16, "col": 8, "height": 32, "width": 32}
    files = {"scene": {"scene": str(scene.path), "labels": str(tmp_path / "labels.tif")}}
    folder = tmp_path / "eval"
    folder.mkdir()
    (folder / "scores.json").write_text(json.dumps({"files": files, "windows": {"worst": [window]}}))
    session = one_layer(folder)
    assert [layer.name for layer in session.layers] == ["scene.tif", "labels.tif"]
    assert [(w["name"], w["note"]) for w in session.windows] == [("scene", "42 % wrong")]
    (tmp_path / "labels.tif").unlink()
    with pytest.raises(SceneError, match="is gone"):
        one_layer(folder)
    (folder / "scores.json").write_text("{}")
    with pytest.raises(SceneError, match="does not name the scenes"):
        one_layer(folder)


def test_saved_page_holds_all_and_says_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_map(tmp_path / "map.tif", layers=("classes", "confidence"))
    page = tmp_path / "page.html"
    asked = ["view", str(tmp_path / "map.tif"), "--save", str(page)]
    result = commands.run(*asked)
    assert result.exit_code == 0
    assert "page.html: " in result.stderr and "tiles, about" in result.stderr
    text = page.read_text(encoding="utf-8")
    assert "GEOSEG_SAVED" in text and str(tmp_path) not in text
    again = commands.run(*asked)
    assert again.exit_code == 2 and "exists" in again.stderr
    monkeypatch.setattr("geoseg.view.saving.MOST_TILES", 3)
    many = commands.run(*asked, "--overwrite")
    assert many.exit_code == 2 and "the page would hold" in many.stderr


def test_notebooks_show_the_page_in_a_frame(tmp_path: Path) -> None:
    write_map(tmp_path / "map.tif")
    shown = geoseg.show(tmp_path / "map.tif")
    try:
        assert f'src="{shown.address}"' in shown._repr_html_()
        assert ask(shown.address)[0] == 200
    finally:
        shown.close()
    with pytest.raises(ConfigError, match="nothing to show"):
        geoseg.show()


def test_missing_extra_is_named_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rio_tiler", None)
    with pytest.raises(ConfigError, match="needs packages that are not installed: rio_tiler") as caught:
        importlib.reload(geoseg.view)
    assert caught.value.hint == 'pip install "geoseg[view]"'
