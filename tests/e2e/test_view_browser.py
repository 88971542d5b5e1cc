"""The viewer in a real browser: it draws the map, switches, swipes, shows what is clicked, and saves corrections."""

from __future__ import annotations

import http.server
import io
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from PIL import Image
from shapely.geometry import box

pytest.importorskip("rio_tiler")
pytest.importorskip("maplibre")

from geoseg.classes import NODATA, RIGHT
from geoseg.landscape import LANDSCAPE_CLASSES, Landscape, write_landscape
from geoseg.options import ViewOptions
from geoseg.programs.predict import predict
from geoseg.view.program import open_session, save_page
from geoseg.view.server import Server
from support.browser import BROWSER, Browser
from support.commands import succeed
from support.scenes import place_transform, write_scene
from support.training import settings, write_config
from support.views import CLASSES, SIDE, write_map

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")

DEFAULT = ViewOptions()
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


def visit(browser: Browser, address: str) -> None:
    """Open a page, and forget what came before."""
    browser.open("about:blank")
    browser.run("1")
    browser.requests.clear()
    browser.console.clear()
    browser.open(address)
    browser.settled()


@contextmanager
def showing(browser: Browser, paths: Sequence[Path], options: ViewOptions = DEFAULT) -> Iterator[Server]:
    """A server of its own, open in the browser."""
    server = Server(open_session(paths, options))
    server.start()
    try:
        visit(browser, server.address)
        yield server
    finally:
        server.stop()


@pytest.fixture
def viewer(folder: Path, browser: Browser, server: Server) -> Iterator[Viewer]:
    visit(browser, server.address)
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


def test_slider_blends_the_map_with_the_imagery(viewer: Viewer) -> None:
    row, col = viewer.block(1)
    shades = {}
    for share in (0, 1, 0.5):
        viewer.browser.run(
            "(() => { const s = document.querySelector(\"#layers li[data-layer='1'] input[type=range]\");"
            f" s.value = {share}; s.dispatchEvent(new Event('input')); }})()"
        )
        viewer.browser.settled()
        shades[share] = np.array(viewer.color(row, col))
    assert shades[1].tolist() == list(CLASSES[1].color) and (shades[0] != shades[1]).any()
    assert np.abs(shades[0.5] - (shades[0] + shades[1]) / 2).max() <= 3


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


def test_fingers_move_zoom_and_draw_on_a_tablet(viewer: Viewer, folder: Path) -> None:
    browser = viewer.browser
    try:
        browser.send("Emulation.setDeviceMetricsOverride", width=820, height=1180, deviceScaleFactor=1, mobile=True)
        browser.send("Emulation.setTouchEmulationEnabled", enabled=True)
        browser.settled()
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        buttons = "[...document.querySelectorAll('button, select')].filter((b) => b.offsetParent)"
        assert browser.run(f"{buttons}.every((b) => b.offsetHeight >= 24)")
        before = browser.run("maps[0].getCenter().lng")
        browser.swipe((600, 600), (450, 600))
        browser.wait(f"maps[0].getCenter().lng > {before}")
        browser.wait("!maps[0].isMoving()")
        viewer.check("#draw")
        for place in ((500, 400), (700, 400), (700, 600), (502, 403)):  # the last one on the first
            browser.tap(*place)
        browser.wait("correcting.features.length === 1 && correcting.pending === 0")
        assert len(geopandas.read_file(folder / "map.corrections.gpkg")) == 1
    finally:
        browser.send("Emulation.setTouchEmulationEnabled", enabled=False)
        browser.send("Emulation.setDeviceMetricsOverride", width=1280, height=720, deviceScaleFactor=1, mobile=False)
        (folder / "map.corrections.gpkg").unlink(missing_ok=True)


def test_correction_is_added_to_those_of_another_viewer(viewer: Viewer, folder: Path) -> None:
    browser, other = viewer.browser, open_session([folder / "map.tif"])
    browser.run("clearTimeout(polling)")  # so that the page learns of it when it saves
    features = [square_of(viewer, 24, 24, "house")]
    other.correct(0, features, "none")
    browser.run(f"edit(null, {json.dumps(square_of(viewer, 56, 56, 'road'))}, 0)")
    browser.wait("correcting.pending === 0")
    assert geopandas.read_file(folder / "map.corrections.gpkg")["class"].tolist() == ["road", "house"]
    assert "changed by another program" in viewer.text("#notices")
    viewer.check("#undo")
    browser.wait("correcting.pending === 0")
    assert geopandas.read_file(folder / "map.corrections.gpkg")["class"].tolist() == ["house"]
    (folder / "map.corrections.gpkg").unlink()
    browser.console.clear()  # of the refused request


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
    browser.wait("correcting.history.length === 1 && correcting.pending === 0")
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
    save_page([folder / name for name in ("scene.tif", "map.tif", "houses.gpkg")], tmp_path / "page.html")
    visit(browser, (tmp_path / "page.html").as_uri())
    x, y = browser.run(middle_of(3))
    browser.click(x, y)
    browser.wait("document.querySelector('.maplibregl-popup') !== null")
    browser.run("(() => { const l = layers.get(1); l.opacity = 1; restyle(l); })()")
    browser.settled()
    shot = browser.picture()
    seen = {tuple(color) for color in shot.reshape(-1, 3)[::7].tolist()}
    assert {tuple(c.color) for c in CLASSES} <= seen
    assert all(address.startswith(("file:", "data:", "blob:")) for address in browser.requests)
    assert browser.console == []


def middle_of(layer: int) -> str:
    """The window's pixel in the middle of the first feature of a layer."""
    return (
        f"(() => {{ const [feature] = maps[0].queryRenderedFeatures({{ layers: ['fill{layer}'] }});"
        " const box = new maplibregl.LngLatBounds(); feature.geometry.coordinates[0].forEach((c) => box.extend(c));"
        " const p = maps[0].project(box.getCenter()), map = document.getElementById('map').getBoundingClientRect();"
        " return [p.x + map.left, p.y + map.top]; })()"
    )


def square_of(viewer: Viewer, row: int, col: int, name: str) -> dict[str, Any]:
    """A GeoJSON feature of 8 × 8 px."""
    place = place_transform("EPSG:32633", "north")
    (left, top), (right, bottom) = place @ (col, row), place @ (col + 8, row + 8)
    shape = geopandas.GeoSeries([box(left, bottom, right, top)], crs="EPSG:32633").to_crs(4326)[0]
    coordinates = [[list(corner) for corner in shape.exterior.coords]]
    geometry = {"type": "Polygon", "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": {"class": name, "note": ""}}


def test_far_empty_and_replaced_layers_are_reported(tmp_path: Path, browser: Browser) -> None:
    write_map(tmp_path / "here.tif")
    far = geopandas.GeoDataFrame({"class": ["house"]}, geometry=[box(20, 60, 20.001, 60.001)], crs=4326)
    far.to_file(tmp_path / "far.gpkg")
    far[:0].to_file(tmp_path / "none.gpkg")
    with showing(browser, [tmp_path / name for name in ("here.tif", "far.gpkg", "none.gpkg")]):
        browser.wait("[...layers.values()].every((l) => l.making === null)")
        said = str(browser.run("document.getElementById('notices').innerText"))
        assert "far.gpkg lies elsewhere than here.tif" in said and "none.gpkg: it is empty" in said
        browser.run("document.querySelector(\"#layers li[data-layer='1'] .zoom\").click()")
        browser.settled()
        lng, lat = browser.run("maps[0].getCenter().toArray()")
        assert (lng, lat) == pytest.approx((20.0005, 60.0005), abs=1e-3)
        assert browser.run("maps[0].queryRenderedFeatures({ layers: ['fill1'] }).length") > 0
        write_map(tmp_path / "here.tif", seed=4)
        browser.wait("document.getElementById('notices').innerText.includes('here.tif was replaced and is shown anew')")
        (tmp_path / "here.tif").unlink()
        browser.wait("document.getElementById('notices').innerText.includes('here.tif: the file is gone')")
    assert browser.console == []


def test_windows_of_doubt_are_visited_by_keys(tmp_path: Path, browser: Browser) -> None:
    sure = np.full((512, 512), 250, np.uint8)
    sure[300:400, 300:400], sure[20:60, 20:60] = 10, 120
    write_map(tmp_path / "map.tif", side=512, layers=("classes", "confidence"), confidence=sure)
    with showing(browser, [tmp_path / "map.tif"], ViewOptions(doubt=True, windows=2)) as server:
        listed = "[...document.querySelectorAll('#windows button')].map((b) => b.getAttribute('aria-current'))"
        assert browser.run("document.getElementById('windows-title').innerText") == "Least sure"
        assert browser.run(listed) == ["true", "false"]
        first = browser.run("maps[0].getCenter().toArray()")
        browser.key("n")
        assert browser.run(listed) == ["false", "true"]
        assert browser.run("maps[0].getCenter().toArray()") != first
        browser.key("p")
        assert browser.run("maps[0].getCenter().toArray()") == pytest.approx(first)
        assert server.address in browser.requests
    assert browser.console == []


def test_background_map_is_the_only_thing_from_elsewhere(tmp_path: Path, browser: Browser) -> None:
    write_map(tmp_path / "map.tif")
    tile = io.BytesIO()
    Image.new("RGB", (256, 256), (10, 200, 250)).save(tile, "PNG")
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()
            self.wfile.write(tile.getvalue())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as elsewhere:
        threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
        template = f"http://127.0.0.1:{elsewhere.server_port}/tiles/{{z}}/{{x}}/{{y}}.png"
        with showing(browser, [tmp_path / "map.tif"], ViewOptions(basemap=template)) as server:
            shot = browser.picture()
            own = server.address.split("/")[2]
        elsewhere.shutdown()
    assert asked and all(path.startswith("/tiles/") for path in asked)
    assert shot[360, 330].tolist() == [10, 200, 250]  # beside the map
    hosts = {address.split("/")[2] for address in browser.requests if address.startswith("http")}
    assert hosts == {own, f"127.0.0.1:{elsewhere.server_port}"}
    assert browser.console == []


def test_look_correct_train_and_look_again(tmp_path: Path, browser: Browser) -> None:
    write_landscape(Landscape(128, 128, seed=3), tmp_path / "scene.tif")
    scene, first, second = (tmp_path / name for name in ("scene.tif", "map.tif", "again.tif"))
    predict([str(scene)], "landscape-tiny", first, size=128, device="cpu")
    with rasterio.open(first) as file:
        before = file.read(1)
    names = LANDSCAPE_CLASSES.names
    wrong = min(range(len(names)), key=lambda i: int((before[32:96, 32:96] == i).sum()))  # what is hardly there
    with showing(browser, [scene, first]):
        west, south, east, north = browser.run("layers.get(1).bounds")
        for count, (name, left, right) in enumerate(((names[wrong], 0.25, 0.75), (RIGHT, 0.02, 0.2)), 1):
            browser.run(f"document.getElementById('correct-class').value = {name!r}")
            browser.run("document.getElementById('draw').click()")
            for x, y in ((left, 0.25), (right, 0.25), (right, 0.75), (left, 0.75)):
                place = [west + x * (east - west), north - y * (north - south)]
                at = browser.run(f"(() => {{ const p = maps[0].project({place}); return [p.x + 320, p.y]; }})()")
                browser.click(*at)
            browser.key("Enter")
            browser.wait(f"correcting.features.length === {count} && correcting.pending === 0")
    files = {"scene": "scene.tif", "labels": "map.tif", "corrections": "map.corrections.gpkg"}
    corrected = {key: str(tmp_path / name) for key, name in files.items()} | {"corrected_only": True}
    values = settings(
        tmp_path,
        tmp_path / "run",
        model={"start_from": "landscape-tiny"},
        data={"train": [corrected], "val": [corrected], "leakage": "warn"},
        train={"iterations": 10, "val_every": 10, "warmup_iterations": 1, "learning_rate": 3e-3},
    )
    succeed("train", write_config(tmp_path / "config.yaml", values), "--device", "cpu")
    predict([str(scene)], str(tmp_path / "run" / "model"), second, size=128, device="cpu")
    with rasterio.open(second) as file:
        after = file.read(1)
    inside = (slice(36, 92), slice(36, 92))
    assert (before[inside] == wrong).mean() < 0.5 < (after[inside] == wrong).mean()


def test_notebook_shows_the_page_below_the_cell(tmp_path: Path, browser: Browser) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    write_map(tmp_path / "map.tif")
    cell = nbformat.v4.new_code_cell(f"import geoseg\ngeoseg.show({str(tmp_path / 'map.tif')!r}, height=560)")
    client = nbclient.NotebookClient(nbformat.v4.new_notebook(cells=[cell]), timeout=120)
    with client.setup_kernel():
        client.execute_cell(cell, 0)
        html = cell.outputs[0].data["text/html"]
        (tmp_path / "notebook.html").write_text(f"<!doctype html><title>Notebook</title>{html}", encoding="utf-8")
        visit_frame(browser, (tmp_path / "notebook.html").as_uri())
    assert browser.console == []


def visit_frame(browser: Browser, address: str) -> None:
    """Open a page with the viewer in a frame, and wait until the frame shows all classes."""
    browser.open("about:blank")
    browser.run("1")
    browser.console.clear()
    browser.open(address)
    browser.wait("document.readyState === 'complete' && document.querySelector('iframe') !== null")
    ground = np.array([0xF1, 0xF3, 0xF5])
    wanted = np.rint(0.65 * COLORS + 0.35 * ground)
    end = time.monotonic() + 30
    while True:
        pixels = browser.picture()[::5, ::5].reshape(-1, 1, 3).astype(int)
        if (np.abs(pixels - wanted).max(axis=-1) < 4).any(axis=0).all():
            return
        assert time.monotonic() < end, "the frame does not show the map"
        time.sleep(0.2)
