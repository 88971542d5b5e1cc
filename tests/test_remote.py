"""Imagery on an HTTP server: a server of our own that answers ranges, counts what it sends, and fails on request."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.shutil import copy as rasterio_copy

from geoseg.errors import SceneError
from geoseg.scene import open_scene
from geoseg.scene.raster import Raster
from geoseg.windows import Window, window_grid
from support.scenes import write_scene


class Server(ThreadingHTTPServer):
    """Serves a folder with ranges.

    Attributes:
        requests: Method and path of each request, in order.
        sent: Bytes of bodies sent.
        failing: Status to answer instead, as long as it is in the list; each failure takes one.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.requests: list[str] = []
        self.sent = 0
        self.failing: list[int] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def forget(self) -> None:
        self.requests, self.sent = [], 0


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        file = self.server.folder / self.path.partition("?")[0].lstrip("/")
        if self.server.failing or not file.is_file():
            self.send_response(self.server.failing.pop(0) if self.server.failing else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = file.read_bytes()
        total = len(content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        self.send_response(206 if wanted else 200)
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or total - 1), total - 1)
            content = content[first : last + 1]
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{total}-{file.stat().st_mtime_ns}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.server.sent += len(content)
            self.wfile.write(content)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.05")
    with Server(tmp_path) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def write_cog(path: Path, *, side: int = 1024) -> np.ndarray:
    """Noise, which does not compress, as a COG of 256 px blocks."""
    pixels = np.random.default_rng(0).integers(0, 255, (3, side, side), dtype=np.uint8)
    plain = path.with_suffix(".plain.tif")
    with rasterio.open(
        plain, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8", crs="EPSG:32633",
        transform=Affine(0.5, 0, 500_000, 0, -0.5, 5_200_000),
    ) as file:  # fmt: skip
        file.write(pixels)
    rasterio_copy(plain, path, driver="COG", compress="deflate", blocksize=256, overviews="none")
    return pixels


def whole(scene: Raster) -> Window:
    return Window(0, 0, *scene.grid.shape)


@pytest.mark.parametrize("prefix", ["", "/vsicurl/"])
def test_a_window_downloads_its_blocks_and_no_more(server: Server, tmp_path: Path, prefix: str) -> None:
    pixels = write_cog(tmp_path / f"scene{len(prefix)}.tif", side=2048)
    size = (tmp_path / f"scene{len(prefix)}.tif").stat().st_size
    with open_scene(prefix + server.url(f"scene{len(prefix)}.tif")) as scene:
        assert scene.grid.shape == (2048, 2048)
        assert len(server.requests) <= 3 and server.sent < 100_000, server.requests
        server.forget()
        got, valid = scene.read(Window(700, 900, 40, 50))
        np.testing.assert_array_equal(got, pixels[:, 700:740, 900:950])
        assert valid.all()
        block = 256 * 256 * 3
        assert len(server.requests) <= 2 and server.sent < 3 * block < size / 10, (server.requests, server.sent)
        server.forget()
        np.testing.assert_array_equal(scene.read(Window(720, 910, 20, 20))[0], pixels[:, 720:740, 910:930])
        assert not server.requests  # the block is known


def test_a_whole_scene_is_downloaded_once_in_few_requests(server: Server, tmp_path: Path) -> None:
    pixels = write_cog(tmp_path / "strips.tif")
    size = (tmp_path / "strips.tif").stat().st_size
    with open_scene(server.url("strips.tif")) as scene:
        for row in range(0, 1024, 256):
            np.testing.assert_array_equal(scene.read(Window(row, 0, 256, 1024))[0], pixels[:, row : row + 256])
    assert server.sent < 1.2 * size, server.sent / size
    assert len(server.requests) < 30, server.requests


def test_several_threads_download_at_once(server: Server, tmp_path: Path) -> None:
    pixels = write_cog(tmp_path / "threads.tif")
    windows = window_grid(1024, 1024, size=256, overlap=0)
    with open_scene(server.url("threads.tif")) as scene, ThreadPoolExecutor(4) as threads:
        for w, (got, _) in zip(windows, threads.map(scene.read, windows), strict=True):
            np.testing.assert_array_equal(got, pixels[:, w.row : w.row_stop, w.col : w.col_stop])


def test_a_server_that_is_busy_is_asked_again(server: Server, tmp_path: Path) -> None:
    pixels = write_cog(tmp_path / "busy.tif")
    with open_scene(server.url("busy.tif")) as scene:
        server.failing = [503, 503]
        np.testing.assert_array_equal(scene.read(Window(0, 0, 100, 100))[0], pixels[:, :100, :100])
    assert not server.failing


def test_a_failing_server_names_the_rows_and_may_recover(server: Server, tmp_path: Path) -> None:
    pixels = write_cog(tmp_path / "broken.tif")
    with open_scene(server.url("broken.tif")) as scene:
        server.failing = [500] * 1000
        with pytest.raises(
            SceneError, match=r"broken\.tif cannot be read in rows 600 … 699, columns 512 … 767"
        ) as error:
            scene.read(Window(600, 512, 100, 256))
        assert "server" in (error.value.hint or "")
        server.failing = []
        np.testing.assert_array_equal(scene.read(Window(600, 512, 100, 256))[0], pixels[:, 600:700, 512:768])


def test_a_server_that_went_away(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cog(tmp_path / "gone.tif")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    with open_scene(server.url("gone.tif")) as scene:
        server.shutdown()
        server.socket.close()
        with pytest.raises(SceneError, match=r"rows 500 … 519.*the server does not answer: .*refused"):
            scene.read(Window(500, 0, 20, 20))


def test_what_is_not_there(server: Server) -> None:
    for name in ("nowhere.tif", "no/where.tif"):
        with pytest.raises(SceneError, match="404") as error:
            open_scene(server.url(name))
        assert "gdalinfo" in (error.value.hint or "")


def test_a_mosaic_of_remote_files_and_a_vrt_of_them(server: Server, tmp_path: Path) -> None:
    left = write_scene(tmp_path / "left.tif", size=(64, 64))
    right = write_scene(tmp_path / "right.tif", size=(64, 64), shift=(0, 64), seed=1)
    both = np.concatenate([left.pixels, right.pixels], axis=2)
    with open_scene([server.url("left.tif"), server.url("right.tif")]) as mosaic:
        np.testing.assert_array_equal(mosaic.read(whole(mosaic))[0], both)
    source = "<SimpleSource><SourceFilename>/vsicurl/{}</SourceFilename><SourceBand>1</SourceBand>{}</SimpleSource>"
    rect = '<SrcRect xOff="0" yOff="0" xSize="64" ySize="64"/><DstRect xOff="{}" yOff="0" xSize="64" ySize="64"/>'
    sources = source.format(server.url("left.tif"), rect.format(0)) + source.format(
        server.url("right.tif"), rect.format(64)
    )
    (tmp_path / "both.vrt").write_text(
        '<VRTDataset rasterXSize="128" rasterYSize="64">'
        f'<VRTRasterBand dataType="Byte" band="1">{sources}</VRTRasterBand></VRTDataset>'
    )
    with open_scene(tmp_path / "both.vrt") as scene:
        np.testing.assert_array_equal(scene.read(whole(scene))[0], both[:1])


def test_a_fingerprint_tells_when_a_remote_file_was_replaced(server: Server, tmp_path: Path) -> None:
    write_scene(tmp_path / "a.tif")
    with open_scene(server.url("a.tif?signature=secret")) as scene:
        facts = scene.fingerprint()["files"][0]
        assert facts["path"] == server.url("a.tif") and facts["bytes"] == str((tmp_path / "a.tif").stat().st_size)
        assert scene.fingerprint()["files"][0] == facts
        server.forget()
        write_scene(tmp_path / "a.tif", seed=5)
        assert scene.fingerprint()["files"][0]["etag"] != facts["etag"]
        assert server.requests == ["GET /a.tif?signature=secret"] and server.sent <= 2


def test_an_environment_variable_wins_over_our_setting(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cog(tmp_path / "env.tif")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    with open_scene(server.url("env.tif")) as scene:
        server.forget()
        server.failing = [503] * 1000
        with pytest.raises(SceneError, match="the server answers 503"):
            scene.read(Window(0, 0, 20, 20))
        assert len(server.requests) < 8  # with our four retries it would be five times as many
