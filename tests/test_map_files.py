from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

import geoseg.class_map.geotiff
from geoseg.class_map import ClassMapReader, layer_path
from geoseg.class_map.names import DISAGREEMENT
from geoseg.class_map.overviews import add_checksum, count_values, halve
from geoseg.class_map.reading import DIGEST_TAG, SCENE_TAG
from geoseg.class_map.writing import LAYERS, MapFileWriter
from geoseg.classes import ClassTable
from geoseg.errors import OutputError
from geoseg.grid import Grid
from geoseg.map_rows import MapRows
from support.map_files import TABLE, grid_of, random_rows, write

Bytes = npt.NDArray[np.uint8]


class Directory(NamedTuple):
    """Where a TIFF directory lies in the file, what tags it has, and where its blocks are."""

    offset: int
    tags: dict[int, tuple[int, ...]]

    @property
    def blocks(self) -> list[tuple[int, int]]:
        return list(zip(self.tags[324], self.tags[325], strict=True))


def directories(data: bytes) -> list[Directory]:
    """The directories of a TIFF or BigTIFF, read without GDAL."""
    big = struct.unpack_from("<H", data, 2)[0] == 43
    counts, entry, words = ("<Q", "<HHQ8s", "<Q") if big else ("<H", "<HHI4s", "<I")
    sizes = {1: "B", 2: "B", 3: "H", 4: "I", 5: "Q", 12: "d", 16: "Q"}
    (offset,) = struct.unpack_from(words, data, 8 if big else 4)
    found = []
    while offset:
        (number,) = struct.unpack_from(counts, data, offset)
        at, tags = offset + struct.calcsize(counts), {}
        for i in range(number):
            tag, kind, count, value = struct.unpack_from(entry, data, at + i * struct.calcsize(entry))
            form = f"<{count}{sizes[kind]}"
            where = value if struct.calcsize(form) <= len(value) else data[struct.unpack(words, value)[0] :]
            tags[tag] = struct.unpack_from(form, where)
        found.append(Directory(offset, tags))
        (offset,) = struct.unpack_from(words, data, at + number * struct.calcsize(entry))
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MapRows]:
    rows = random_rows(1300, 1700)
    return write(tmp_path_factory.mktemp("maps") / "map.tif", rows, tags={"GEOSEG_MODEL": "tiny"}), rows


@pytest.mark.parametrize("layer", LAYERS)
def test_the_layout_is_that_of_a_cog(made: tuple[Path, MapRows], layer: str) -> None:
    data = layer_path(made[0], layer).read_bytes()
    assert data[8:16] == b"GDAL_STR"  # the notes of the layout, right after the header
    found = directories(data)
    sizes = [(d.tags[257][0], d.tags[256][0]) for d in found]
    assert sizes == [(1300, 1700), (650, 850), (325, 425)]
    blocks = [block for d in reversed(found) for block in d.blocks]
    # Directories first, the full resolution's in front; then blocks, from the coarsest overview to the full resolution.
    assert [d.offset for d in found] == sorted(d.offset for d in found)
    assert found[-1].offset < blocks[0][0]
    assert blocks == sorted(blocks)
    for offset, size in blocks:
        assert struct.unpack_from("<I", data, offset - 4)[0] == size
        assert data[offset + size : offset + size + 4] == data[offset + size - 4 : offset + size]
    assert {d.tags[322] + d.tags[323] for d in found} == {(512, 512)}
    assert blocks[-1][0] + blocks[-1][1] + 4 == len(data)
    with rasterio.open(layer_path(made[0], layer)) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.profile["compress"] in ("zstd", "deflate")


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_comes_back_with_its_meaning(made: tuple[Path, MapRows], layer: str) -> None:
    path, rows = made
    values = getattr(rows, layer)
    with rasterio.open(layer_path(path, layer)) as file:
        np.testing.assert_array_equal(file.read() if layer == "probabilities" else file.read(1), values)
        assert Grid(file.height, file.width, file.transform, file.crs) == grid_of(1300, 1700)
        assert file.nodatavals == (255,) * file.count
        assert file.descriptions == (TABLE.names if layer == "probabilities" else (layer,))
        assert file.tags()["GEOSEG_MODEL"] == "tiny"
        kinds = [c.name for c in file.colorinterp]
        if layer in ("classes", "disagreement"):
            table = TABLE if layer == "classes" else DISAGREEMENT
            assert kinds == ["palette"]
            assert [file.colormap(1)[c.id] for c in table] == [(*c.color, 255) for c in table]
            assert file.colormap(1)[255] == (0, 0, 0, 0)
            assert file.scales == (1,)
        else:
            assert kinds[0] == "gray"
            assert not {"alpha", "red", "green", "blue", "palette"} & set(kinds)
            assert file.scales == (1 / 254,) * file.count
            assert file.offsets == (0,) * file.count


@pytest.mark.parametrize("layer", ["classes", "disagreement"])
def test_names_and_table_lie_beside_the_finished_file(made: tuple[Path, MapRows], layer: str) -> None:
    path = layer_path(made[0], layer)
    root = ET.parse(path.with_name(path.name + ".aux.xml"))
    table = TABLE if layer == "classes" else DISAGREEMENT
    assert [e.text for e in root.findall(".//Category")] == list(table.names)
    rows = [[f.text for f in row] for row in root.findall(".//GDALRasterAttributeTable/Row")]
    values = getattr(made[1], layer)
    assert rows == [[str(v) for v in (c.id, (values == c.id).sum(), c.name, *c.color)] for c in table]


def test_styles_colour_classes_and_shares(made: tuple[Path, MapRows]) -> None:
    folder = made[0].parent
    entries = ET.parse(folder / "map_disagreement.qml").findall(".//paletteEntry")
    assert [e.get("label") for e in entries] == ["windows agree", "windows differ"]
    for layer in ("confidence", "probabilities"):
        renderer = ET.parse(folder / f"map_{layer}.qml").find("pipe/rasterrenderer")
        assert renderer is not None
        assert renderer.get("type") == "singlebandpseudocolor"
        values = [float(item.get("value", "")) for item in renderer.findall("rastershader/colorrampshader/item")]
        assert values == sorted(values)
        assert (values[0], values[-1]) == (0, 1)


def test_the_legend_has_the_classes_that_are_present(tmp_path: Path) -> None:
    table = ClassTable.from_names(["a", "b", "c"], ["#010101", "#020202", "#030303"])
    with MapFileWriter(tmp_path / "m.tif", grid_of(2, 2), table) as out:
        for row in ([[2, 0]], [[255, 0]]):
            out.write(MapRows(np.array(row, dtype=np.uint8)))
    labels = [e.get("label") for e in ET.parse(tmp_path / "m.qml").findall(".//paletteEntry")]
    assert labels == ["a", "c"]


def test_probabilities_open_with_the_first_object_class(tmp_path: Path) -> None:
    table = ClassTable.from_names(["ground", "roof"], ["#010101", "#020202"], ["ground"])
    layers = ["classes", "probabilities"]
    values = np.zeros((2, 2, 2), dtype=np.uint8)
    with MapFileWriter(tmp_path / "m.tif", grid_of(2, 2), table, layers=layers) as out:
        out.write(MapRows(values[0], probabilities=values))
    root = ET.parse(tmp_path / "m_probabilities.qml")
    renderer, legend = root.find("pipe/rasterrenderer"), root.find(".//rampLegendSettings")
    assert renderer is not None and legend is not None
    assert renderer.get("band") == "2"
    assert (legend.get("minimumLabel"), legend.get("maximumLabel")) == ("0 % roof", "100 % roof")


def halved(values: Bytes, layer: str) -> Bytes:
    """An overview by the definition: of each 2 × 2 pixels the first commonest valid value, or the mean."""
    height, width = values.shape
    out = np.full((-(-height // 2), -(-width // 2)), 255, dtype=np.uint8)
    for row, col in np.ndindex(*out.shape):
        block = [int(v) for v in values[2 * row : 2 * row + 2, 2 * col : 2 * col + 2].ravel() if v != 255]
        if block:
            out[row, col] = max(block, key=block.count) if layer == "classes" else int(sum(block) / len(block) + 0.5)
    return out


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 2**32 - 1),
    top=st.sampled_from([3, 255]),
)
def test_overviews_by_the_definition(shape: tuple[int, int], seed: int, top: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(shape) < 0.3, 255, rng.integers(0, top, shape)).astype(np.uint8)
    np.testing.assert_array_equal(halve(values[None], by_mean=False)[0], halved(values, "classes"))
    np.testing.assert_array_equal(halve(values[None], by_mean=True)[0], halved(values, "confidence"))


@pytest.mark.parametrize("layer", ["classes", "confidence"])
def test_the_files_overviews_are_made_one_from_the_other(made: tuple[Path, MapRows], layer: str) -> None:
    row, col = 200, 100  # multiples of 4; the border of nodata is within
    expected = getattr(made[1], layer)[row:, col : col + 200]
    assert 0 < (expected == 255).mean() < 1
    for number in range(2):
        expected, row, col = halved(expected, layer), row // 2, col // 2
        with rasterio.open(layer_path(made[0], layer), overview_level=number) as file:
            np.testing.assert_array_equal(file.read(1)[row:, col : col + expected.shape[1]], expected)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    cut=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_checksum_knows_values_and_places_but_no_order(
    shape: tuple[int, int, int], cut: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, shape, dtype=np.uint8)

    def checksum(*parts: tuple[Bytes, int, int]) -> int:
        total = np.zeros(1, dtype=np.uint64)
        for rows, row, col in parts:
            add_checksum(rows, row, col, total)
        return int(total[0])

    r, c = cut
    parts = [
        (values[:, a, b], a.start or 0, b.start or 0)
        for b in (slice(c, None), slice(c))
        for a in (slice(r, None), slice(r))
    ]
    whole = checksum((values, 0, 0))
    assert checksum(*parts) == whole
    changed = values.copy()
    changed[tuple(rng.integers(0, n) for n in shape)] ^= 1
    assert checksum((changed, 0, 0)) != whole
    turned = values[:, ::-1].copy()
    assert (turned == values).all() or checksum((turned, 0, 0)) != whole


def test_counts_of_values() -> None:
    values = np.random.default_rng(0).integers(0, 256, (70, 90), dtype=np.uint8)
    counts = np.ones(256, dtype=np.int64)
    count_values(values, counts)
    np.testing.assert_array_equal(counts, 1 + np.bincount(values.ravel(), minlength=256))


@given(heights=st.lists(st.integers(0, 700), max_size=5), height=st.integers(1, 1100), threads=st.integers(1, 3))
def test_the_bytes_of_no_layer_depend_on_feed_or_threads(
    tmp_path_factory: pytest.TempPathFactory, heights: list[int], height: int, threads: int
) -> None:
    folder = tmp_path_factory.mktemp("maps")
    rows = random_rows(height, 530)
    write(folder / "one.tif", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GDAL_NUM_THREADS", str(threads))
        write(folder / "two.tif", rows, heights=heights)
    for name in (p.name for p in folder.glob("one*")):
        assert (folder / name).read_bytes() == (folder / name.replace("one", "two")).read_bytes(), name


def test_the_map_is_the_same_file_whatever_layers_lie_beside_it(tmp_path: Path) -> None:
    rows = random_rows(300, 400)
    alone = write(tmp_path / "alone.tif", rows, layers=["classes"])
    assert alone.read_bytes() == write(tmp_path / "all.tif", rows).read_bytes()
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith("alone")} == {
        "alone.tif",
        "alone.tif.aux.xml",
        "alone.qml",
    }


def test_tags_given_at_the_end_are_in_every_file(tmp_path: Path) -> None:
    rows = random_rows(40, 50)
    with MapFileWriter(tmp_path / "m.tif", grid_of(40, 50), TABLE, layers=LAYERS, tags={"GEOSEG_A": "1"}) as out:
        out.write(rows)
        out.set_tags({"GEOSEG_SEAM_SCORE": "1.07"})
    for layer in LAYERS:
        with rasterio.open(layer_path(tmp_path / "m.tif", layer)) as file:
            assert file.tags()["GEOSEG_A"] == "1"
            assert file.tags()["GEOSEG_SEAM_SCORE"] == "1.07"


@pytest.mark.parametrize("classes", [1, 3, 4, 9])
def test_probabilities_of_any_number_of_classes_are_no_picture(tmp_path: Path, classes: int) -> None:
    table = ClassTable.from_names([f"c{i}" for i in range(classes)], ["#102030"] * classes)
    values = np.random.default_rng(0).integers(0, 255, (classes, 30, 40), dtype=np.uint8)
    layers = ["classes", "probabilities"]
    with MapFileWriter(tmp_path / "m.tif", grid_of(30, 40), table, layers=layers) as out:
        out.write(MapRows(np.zeros((30, 40), np.uint8), probabilities=values))
    with rasterio.open(tmp_path / "m_probabilities.tif") as file:
        np.testing.assert_array_equal(file.read(), values)
        assert file.descriptions == table.names
        assert not {"red", "green", "blue", "alpha", "palette"} & {c.name for c in file.colorinterp}


def test_deflate_where_gdal_has_no_zstd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geoseg.class_map.geotiff, "compression", lambda: "deflate")
    rows = random_rows(600, 700)
    with rasterio.open(write(tmp_path / "m.tif", rows)) as file:
        assert file.profile["compress"] == "deflate"
        np.testing.assert_array_equal(file.read(1), rows.classes)


def test_rows_that_do_not_fit_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    rows = random_rows(40, 30)
    for wrong, message in [
        (MapRows(rows.classes), "without confidence"),
        (MapRows(rows.classes, rows.confidence[:39]), "confidence must be"),  # type: ignore[index]
        (MapRows(rows.classes[:, :29], rows.confidence), "classes must be"),
        (MapRows(rows.classes.astype(np.int64), rows.confidence), "int64"),  # type: ignore[arg-type]
    ]:
        with (
            pytest.raises(ValueError, match=message),
            MapFileWriter(tmp_path / "m.tif", grid_of(40, 30), TABLE, layers=["classes", "confidence"]) as out,
        ):
            out.write(wrong)
    for layers in (["confidence"], ["classes", "logits"]):
        with pytest.raises(ValueError, match="layers must be of classes, confidence"):
            MapFileWriter(tmp_path / "m.tif", grid_of(40, 30), TABLE, layers=layers)
    assert list(tmp_path.iterdir()) == []


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from geoseg.errors import OutputError
from support.map_files import random_rows, write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
rows = random_rows(900, 1100)
# A file may grow to so many bytes and no more, which GDAL takes for a full disk.
for limit in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write(Path(sys.argv[2]) / "m.tif", rows, heights=[100] * 8)
    except OutputError as error:
        print(limit, "OutputError", error)
    else:
        print(limit, "written")
"""


def test_a_full_disk_at_any_moment_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    # GDAL reports no error for blocks that its threads could not write; so every step of the way is tried.
    sizes = {p.name: p.stat().st_size for p in write(tmp_path / "whole.tif", random_rows(900, 1100)).parent.iterdir()}
    for path in tmp_path.iterdir():
        path.unlink()
    largest = max(sizes.values())
    limits = [*range(20_000, largest, largest // 10), *(largest - n for n in (1000, 4, 1)), largest]
    run = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(Path(__file__).parent), str(tmp_path), *map(str, limits)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    lines = [line.split(maxsplit=1) for line in run.stdout.splitlines()]
    assert [int(limit) for limit, _ in lines] == limits
    assert all(what.startswith(f"OutputError cannot write {tmp_path}/m") for _, what in lines[:-1]), run.stdout
    assert lines[-1][1] == "written"
    found = {p.name.replace("m", "whole", 1): p.stat().st_size for p in tmp_path.iterdir()}
    assert found == sizes


def test_an_unwritable_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError), MapFileWriter(tmp_path / "no" / "m.tif", grid_of(40, 30), TABLE, layers=LAYERS):
        pass


def test_after_an_exception_the_older_files_stay(tmp_path: Path) -> None:
    path = write(tmp_path / "m.tif", random_rows(40, 30))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt), MapFileWriter(path, grid_of(40, 30), TABLE, layers=LAYERS) as out:
        out.write(random_rows(40, 30, seed=1))
        raise KeyboardInterrupt
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_scene_that_is_nearly_empty_is_quick_and_small(tmp_path: Path) -> None:
    height, width = 6_000, 20_000
    empty = np.full((500, width), 255, dtype=np.uint8)
    some = empty.copy()
    some[100:200, 100:200] = 1
    start = time.process_time()
    with MapFileWriter(tmp_path / "m.tif", grid_of(height, width), TABLE, layers=["classes", "confidence"]) as out:
        for i in range(height // 500):
            rows = some if i == 6 else empty
            out.write(MapRows(rows, rows))
    assert time.process_time() - start < 10
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 1_000_000
    with ClassMapReader(tmp_path / "m.tif") as reader:
        assert sum(int((r.classes == 1).sum()) for r in reader.rows()) == 10_000


# --- read back as rows


@pytest.mark.parametrize("height", [1, 100, 512, 5000])
def test_rows_are_read_with_their_confidence(made: tuple[Path, MapRows], height: int) -> None:
    path, rows = made
    with ClassMapReader(path) as reader:
        assert (reader.grid, reader.classes) == (grid_of(1300, 1700), TABLE)
        assert reader.confidence_path == layer_path(path, "confidence")
        parts = list(reader.rows(height))
    assert [len(p) for p in parts[:-1]] == [height] * (len(parts) - 1)
    np.testing.assert_array_equal(np.concatenate([p.classes for p in parts]), rows.classes)
    np.testing.assert_array_equal(
        np.concatenate([p.confidence for p in parts if p.confidence is not None]), rows.confidence
    )


def test_the_source_is_the_scene_where_the_map_says_so(tmp_path: Path) -> None:
    rows = random_rows(40, 30)
    with ClassMapReader(write(tmp_path / "a.tif", rows, layers=["classes"])) as reader:
        assert reader.source == "a.tif"
        assert reader.confidence_path is None
    tags = {SCENE_TAG: "Orthofoto Süd.vrt"}
    with ClassMapReader(write(tmp_path / "b.tif", rows, layers=["classes"], tags=tags)) as reader:
        assert reader.source == "Orthofoto Süd.vrt"


def test_confidence_of_another_map_is_left_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "m.tif", random_rows(40, 30))
    write(path, random_rows(40, 30, seed=1), layers=["classes"])
    with ClassMapReader(path) as reader:
        assert reader.confidence_path is None
        assert next(reader.rows()).confidence is None
    assert "belongs to another map" in caplog.text


def test_the_digest_is_that_of_the_classes(made: tuple[Path, MapRows]) -> None:
    with rasterio.open(made[0]) as file:
        assert file.tags()[DIGEST_TAG] == hashlib.sha256(made[1].classes.tobytes()).hexdigest()


def test_peak_memory_does_not_grow_with_the_height(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import rasterio
from geoseg.class_map import ClassMapReader
from geoseg.class_map.writing import MapFileWriter
from support.map_files import TABLE, grid_of, random_rows
def cycle(height):
    rows = random_rows(512, 3000)
    with rasterio.Env(GDAL_CACHEMAX=16 << 20):
        with MapFileWriter(Path(sys.argv[2]) / "m.tif", grid_of(height, 3000), TABLE, layers=["classes"]) as out:
            for _ in range(height // 512):
                out.write(rows)
        with ClassMapReader(Path(sys.argv[2]) / "m.tif") as reader:
            for _ in reader.rows():
                pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(cycle(2048), cycle(2048 * 10))
"""
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120, env=dict(os.environ))
    small, large = map(float, run.stdout.split())
    assert large - small < 30  # MB; the larger map has 61
