"""The viewer in a real browser: it draws the map, switches, swipes, shows what is clicked, and saves corrections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import geopandas
import numpy as np
import numpy.typing as npt
import pytest
from shapely.geometry import box

pytest.importorskip("rio_tiler")
pytest.importorskip("maplibre")

from geoseg.classes import NODATA
from geoseg.view.program import open_session, save_page
from geoseg.view.server import Server
from support.browser import BROWSER, Browser
from support.scenes import place_transform, write_scene
from support.views import CLASSES, SIDE, write_map

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")

COLORS = np.array([c.color for c in CLASSES])


class Viewer:
    """A page of files that a test has made, open in a browser."""

    def __init__(self, server: Server, browser: Browser, ids: npt.NDArray[np.uint8]) -> None:
        self.server, self.browser, self.ids = server, browser, ids

    def at(self, row: float, col: float, crs: str = "EPSG:32633") -> tuple[float, float]:
        """Where a place of the map is in the window, px."""
        x, y = place_transform(crs, "north") @ (col, row)
        frame = geopandas.GeoSeries.from_xy([x], [y], crs=crs).to_crs(4326)
        lon, lat = float(frame.x[0]), float(frame.y[0])
        found = self.browser.run(
            f"(() => {{ const p = maps[0].project([{lon!r}, {lat!r}]), box = document.getElementById('map')"
            ".getBoundingClientRect(); return [p.x + box.left, p.y + box.top]; })()"
        )
        return float(found[0]), float(found[1])

    def color(self, row: float, col: float) -> list[int]:
        x, y = self.at(row, col)
        return list(map(int, self.browser.picture()[round(y), round(x)]))

    def text(self, selector: str) -> str:
        return str(self.browser.run(f"document.querySelector({selector!r})?.innerText ?? ''"))

    def check(self, selector: str) -> None:
        self.browser.run(f"document.querySelector({selector!r}).click()")
        self.browser.settled()

    def block(self, class_id: int) -> tuple[int, int]:
        """Centre of a block of a class away from the edge: row, column."""
        rows, cols = np.nonzero(self.ids[12:-12:8, 12:-12:8] == class_id)
        middle = len(rows) // 2
        return int(rows[middle]) * 8 + 12, int(cols[middle]) * 8 + 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("view")
    write_scene(path / "scene.tif", size=(SIDE, SIDE))
    ids = write_map(path / "map.tif", layers=("classes", "confidence"))
    np.save(path / "ids.npy", ids)
    place = place_transform("EPSG:32633", "north")
    shapes, names = [], []
    for row, col in zip(*np.nonzero(ids[::8, ::8] == 2), strict=True):
        left, top = place @ (int(col) * 8, int(row) * 8)
        shapes.append(box(left, top - 4, left + 4, top))
        names.append("house")
    frame = geopandas.GeoDataFrame({"class_name": names, "area_m2": 16.0}, geometry=shapes, crs="EPSG:32633")
    frame["confidence"] = 0.75
    frame.to_file(path / "houses.gpkg")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    started = Server(open_session([str(folder / name) for name in ("scene.tif", "map.tif", "houses.gpkg")]))
    started.start()
    yield started
    started.stop()


@pytest.fixture
def viewer(folder: Path, browser: Browser, server: Server) -> Iterator[Viewer]:
    browser.open("about:blank")
    browser.run("1")
    browser.requests.clear()
    browser.console.clear()
    browser.open(server.address)
    browser.settled()
    browser.wait("[...layers.values()].every((l) => l.making === null)")
    browser.run("(() => { const l = layers.get(1); l.opacity = 1; restyle(l); })()")
    browser.settled()
    yield Viewer(server, browser, np.load(folder / "ids.npy"))
    own = server.address.split("/")[2]
    addresses = [address for address in browser.requests if not address.startswith(("data:", "about:", "geoseg:"))]
    assert all(address.removeprefix("blob:").startswith(f"http://{own}/") for address in addresses), addresses
    assert browser.console == []


def test_map_draws_the_classes_where_they_are(viewer: Viewer) -> None:
    viewer.check("#layers li[data-layer='3'] input")  # features off
    shot = viewer.browser.picture()
    for row in range(12, SIDE, 8):
        for col in range(12, SIDE, 8):
            x, y = viewer.at(row, col)
            assert (shot[round(y), round(x)] == COLORS[viewer.ids[row, col]]).all(), (row, col)
    x, y = viewer.at(4, 4)
    assert viewer.ids[4, 4] == NODATA
    assert not (shot[round(y), round(x)] == COLORS).all(axis=1).any()
    legend = viewer.text("#legend")
    assert all(c.name in legend for c in CLASSES) and "ha" in legend


def test_layers_and_classes_are_switched(viewer: Viewer) -> None:
    row, col = viewer.block(1)
    road = CLASSES[1].color
    assert viewer.color(row, col) == list(road)
    viewer.check("#layers li[data-layer='1'] input")  # the map off: imagery
    under = viewer.color(row, col)
    assert under != list(road)
    viewer.check("#layers li[data-layer='1'] input")
    assert viewer.color(row, col) == list(road)
    viewer.check("#legend li:nth-child(2) input")  # one class off
    assert viewer.color(row, col) == under
    other = viewer.block(0)
    assert viewer.color(*other) == list(CLASSES[0].color)
    viewer.browser.key("2")  # and on by its key
    viewer.browser.settled()
    assert viewer.color(row, col) == list(road)
    viewer.browser.key(" ", " ")
    viewer.browser.settled()
    assert viewer.color(row, col) == under
    viewer.browser.key(" ", " ")
    viewer.browser.settled()
    assert viewer.color(row, col) == list(road)


def test_swipe_line_moves_between_two_layers(viewer: Viewer) -> None:
    row, col = viewer.block(1)
    x, _ = viewer.at(row, col)
    road = list(CLASSES[1].color)
    viewer.check("#swipe")  # imagery left, classes right of the line, which is in the middle
    left, right = (viewer.browser.run(f"document.getElementById('swipe-{side}').value") for side in ("left", "right"))
    assert (left, right) == ("0", "1")
    line = 320 + (1280 - 320) / 2
    viewer.browser.drag((line, 600), (x + 30, 600))
    viewer.browser.settled()
    assert viewer.color(row, col) != road
    viewer.browser.drag((x + 30, 600), (x - 30, 600))
    viewer.browser.settled()
    assert viewer.color(row, col) == road
    viewer.check("#swipe")
    assert viewer.browser.run("maps.length") == 1


def test_pointer_and_click_say_what_is_there(viewer: Viewer) -> None:
    row, col = viewer.block(2)
    x, y = viewer.at(row, col)
    viewer.browser.mouse("Moved", x, y)
    viewer.browser.wait("document.getElementById('under').innerText !== ''")
    assert viewer.text("#under") == "house 79 %"  # 200 of 254
    assert viewer.text("#place").count("°") == 2
    viewer.browser.click(x, y)
    viewer.browser.wait("document.querySelector('.maplibregl-popup') !== null")
    said = viewer.text(".maplibregl-popup")
    assert "house" in said and "16 m²" in said and "75 %" in said


def test_place_is_kept_in_the_address(viewer: Viewer) -> None:
    viewer.browser.run("maps[0].jumpTo({ zoom: 20.5 }); 0")
    viewer.browser.wait("location.hash.startsWith('#place=20.5/')")
    viewer.browser.send("Page.reload")
    viewer.browser.settled()
    assert viewer.browser.run("maps[0].getZoom()") == pytest.approx(20.5)


def test_both_themes_fit_the_window(viewer: Viewer) -> None:
    grounds = []
    for _ in range(2):
        viewer.check("#theme")
        color = viewer.browser.run("getComputedStyle(document.body).backgroundColor")
        grounds.append(sum(map(int, color.removeprefix("rgb(").removesuffix(")").split(","))))
        assert viewer.browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert max(grounds) > 700 > 150 > min(grounds)
    viewer.check("#fold")
    assert viewer.browser.run("document.getElementById('map').clientWidth") == 1280
    viewer.check("#unfold")


def test_drawn_correction_lands_in_the_geopackage(viewer: Viewer, folder: Path) -> None:
    file = folder / "map.corrections.gpkg"
    browser = viewer.browser
    browser.run("document.getElementById('correct-class').value = 'road'")
    browser.run("document.getElementById('note').value = 'a yard'")
    viewer.check("#draw")
    corners = [(24, 24), (24, 56), (56, 56), (56, 24)]
    for corner in corners:
        browser.click(*viewer.at(*corner))
    browser.key("Enter")
    browser.wait("correcting.features.length === 1 && correcting.state !== 'none'")
    frame = geopandas.read_file(file)
    assert (frame["class"][0], frame["note"][0], frame.crs) == ("road", "a yard", "EPSG:32633")
    left, top = place_transform("EPSG:32633", "north") @ (24, 24)
    right, bottom = place_transform("EPSG:32633", "north") @ (56, 56)
    assert frame.total_bounds == pytest.approx([left, bottom, right, top], abs=0.3)
    # A corner is moved, which undo takes back; the class is changed; the polygon is deleted, and comes back.
    area = frame.area[0]
    viewer.check("#corrections .swatch")
    browser.drag(viewer.at(56, 56), viewer.at(72, 72))
    browser.wait("correcting.history.length === 2")
    assert geopandas.read_file(file).area[0] > 1.2 * area
    viewer.check("#undo")
    browser.wait("correcting.history.length === 1")
    assert geopandas.read_file(file).area[0] == pytest.approx(area)
    browser.run(
        "(() => { const s = document.querySelector('#corrections select'); s.value = 'ignore';"
        " s.dispatchEvent(new Event('change')); })()"
    )
    browser.wait("correcting.history.length === 2")
    assert geopandas.read_file(file)["class"].tolist() == ["ignore"]
    viewer.check("#corrections li button:last-child")
    browser.wait("correcting.features.length === 0")
    assert geopandas.read_file(file).empty
    viewer.check("#undo")
    browser.wait("correcting.features.length === 1")
    browser.key("Escape")
    # Another page finds it.
    browser.send("Page.reload")
    browser.settled()
    browser.wait("correcting.features.length === 1")
    assert geopandas.read_file(file)["class"].tolist() == ["ignore"]
    file.unlink()


def test_saved_page_draws_without_a_server(folder: Path, browser: Browser, tmp_path: Path) -> None:
    save_page([folder / "scene.tif", folder / "map.tif"], tmp_path / "page.html")
    browser.open("about:blank")
    browser.run("1")
    browser.requests.clear()
    browser.console.clear()
    browser.open((tmp_path / "page.html").as_uri())
    browser.settled()
    browser.run("(() => { const l = layers.get(1); l.opacity = 1; restyle(l); })()")
    browser.settled()
    shot = browser.picture()
    seen = {tuple(color) for color in shot.reshape(-1, 3)[::7].tolist()}
    assert {tuple(c.color) for c in CLASSES} <= seen
    assert all(address.startswith(("file:", "data:", "blob:")) for address in browser.requests)
    assert browser.console == []
