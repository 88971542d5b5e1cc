"""The page as one file that needs no server: everything it shows lies within, as base64."""

import base64
import gzip
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orjson

from geoseg.errors import ConfigError
from geoseg.files import atomic_output, check_output
from geoseg.view.layers import Layer
from geoseg.view.place import TILE_PX, tiles_over
from geoseg.view.server import page_file
from geoseg.view.session import Session
from geoseg.words import count

log = logging.getLogger(__name__)

MOST_TILES = 2000
_PAGE_BYTES = 1_400_000
_TILE_BYTES = {"image": 30_000, "classes": 4_000, "share": 12_000, "vector": 20_000}
_SCREEN_PX = 1024  # the lowest zoom level is the one at which a layer is no larger than this

_MOST_OF_LEVEL = 128
"""Tiles of the highest level of a layer of features, whose outlines could be drawn ever more exactly."""

Tile = tuple[int, int, int, int, int]  # layer, zoom level, column, row, band


def saved_tiles(session: Session) -> list[Tile]:
    """The tiles that a saved page holds: of each layer from the level at which it fits the screen to its pixels."""
    return [tile for number, layer in enumerate(session.layers) for tile in _tiles(number, layer)]


def _tiles(number: int, layer: Layer) -> Iterator[Tile]:
    if layer.raster is not None:
        (low, high), bounds, side = layer.raster.zoom_levels(finer=0), layer.raster.bounds, TILE_PX
    elif layer.vector is not None and layer.vector.bounds is not None:
        (low, high), bounds, side = layer.vector.zooms, layer.vector.bounds, 2 * TILE_PX
    else:
        return
    while low < high and len(tiles_over(bounds, low + 1)) * side**2 <= _SCREEN_PX**2:
        low += 1
    if layer.vector is not None:
        high = next((z for z in range(low, high) if len(tiles_over(bounds, z + 1)) > _MOST_OF_LEVEL), high)
    for band in range(1, max(len(layer.bands), 1) + 1):
        for z in range(low, high + 1):
            yield from ((number, *tile, band) for tile in tiles_over(bounds, z))


def expected_bytes(session: Session, tiles: list[Tile]) -> int:
    """About how large a page of these tiles becomes."""
    kinds = [session.layers[number].kind for number, *_ in tiles]
    return _PAGE_BYTES + sum(_TILE_BYTES[kind] for kind in kinds)


def save(
    session: Session, output: Path, *, overwrite: bool = False, on_start: Callable[[str], object] = log.info
) -> int:
    """Write a session as one page, and return its bytes; stores of features are made first.

    ``on_start`` is called with how large the page will be, before any tile is made. A `ConfigError` if the layers have
    too many tiles for one page, an `OutputError` if the file exists or cannot be written.
    """
    check_output(output, overwrite=overwrite, inputs=[layer.path for layer in session.layers])
    tiles = saved_tiles(session)
    if len(tiles) > MOST_TILES:
        raise ConfigError(
            f"the page would hold {len(tiles)} tiles, and {MOST_TILES} are the most that a browser opens well",
            hint="leave out --save, or cut a part: gdal_translate -srcwin COLUMN ROW 4096 4096 IN.tif PART.tif",
        )
    on_start(f"{output.name}: {count(len(tiles), 'tile')}, about {expected_bytes(session, tiles) / 1e6:.0f} MB")
    session.work()
    facts = session.facts()
    files: dict[str, bytes] = {}
    for number, z, x, y, band in tiles:
        found = session.tile(number, z, x, y, band)
        if found is None:
            continue
        body, kind = found
        if kind == "application/octet-stream" and not (np.frombuffer(body, np.uint8) != 255).any():
            continue
        files[f"tiles/{number}/{z}/{x}/{y}/{band}"] = body
    lowest: dict[int, list[int]] = {}
    for number, z, *_ in tiles:
        low, high = lowest.setdefault(number, [z, z])
        lowest[number] = [min(low, z), max(high, z)]
    for layer in facts["layers"]:
        layer["zooms"], layer["corrections"], layer["slow"] = lowest.get(layer["id"]), None, None
        layer["corrected"] = None
        layer["path"] = layer["name"]  # a page that is passed on tells no folders
        layer["of"] = Path(layer["of"]).name if layer["of"] else None
    files["state"] = orjson.dumps(facts, option=orjson.OPT_NON_STR_KEYS)
    packed = {name: base64.b64encode(gzip.compress(body, 6, mtime=0)).decode() for name, body in files.items()}
    page = _page(packed)
    with atomic_output(output) as scratch:
        scratch.write_bytes(page)
    return len(page)


def _page(files: dict[str, str]) -> bytes:
    """The page with its scripts, styles and files within."""
    page = page_file("")
    for name in ("maplibre-gl.css", "page.css"):
        link = f'<link rel="stylesheet" href="{name}">'.encode()
        page = page.replace(link, b"<style>" + page_file(name) + b"</style>")
    data = b"<script>window.GEOSEG_SAVED = " + orjson.dumps(files) + b"</script>\n"
    for name in ("maplibre-gl.js", "page.js"):
        script = page_file(name).replace(b"</script", b"<\\/script").partition(b"//# sourceMappingURL")[0]
        page = page.replace(f'<script src="{name}"></script>'.encode(), data + b"<script>" + script + b"</script>")
        data = b""
    return page
