"""iSAID's release, as its authors pack it and as users unpack it, becomes scenes, labels and the official split."""

from __future__ import annotations

import csv
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from PIL import Image

from geoseg.classes import ClassTable
from geoseg.errors import LabelError, OutputError
from geoseg.paper import isaid
from geoseg.paper.isaid import CLASSES, PaletteReader, prepare_isaid
from support.isaid import MASK, TRAIN, VAL, Made, colors, made


@pytest.fixture
def release(tmp_path: Path) -> Made:
    return Made(tmp_path / "iSAID")


def read(path: Path) -> tuple[npt.NDArray[np.uint8], dict[str, Any], Any]:
    with rasterio.open(path) as file:
        return file.read(), file.profile, file


def check(folder: Path, truth: Made) -> None:
    for split, scenes in truth.truth.items():
        with (folder / f"{split}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows == [
            {"scene": f"{split}/scenes/{name}.tif", "labels": f"{split}/labels/{name}.tif"} for name in sorted(scenes)
        ]
        for row, name in zip(rows, sorted(scenes), strict=True):
            image, ids = scenes[name]
            pixels, profile, _ = read(folder / row["scene"])
            np.testing.assert_array_equal(pixels, image.transpose(2, 0, 1))
            assert (profile["compress"], profile["blockxsize"], profile["crs"]) == ("zstd", 256, None)
            labels, profile, _ = read(folder / row["labels"])
            np.testing.assert_array_equal(labels[0], ids)
            assert (profile["compress"], profile["nodata"], profile["crs"]) == ("zstd", 255, None)


pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


# --- what is written


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "archives"])
def test_every_scene_and_label_is_the_releases(release: Made, packed: bool, tmp_path: Path) -> None:
    if packed:
        release.pack()
    report = prepare_isaid(release.folder, tmp_path / "out")
    check(tmp_path / "out", release)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "LICENSE",
        "test",
        "train",
        "train.csv",
        "val",
        "val.csv",
    ]
    assert [p.name for p in (tmp_path / "out/test/scenes").iterdir()] == ["P0006.tif"]
    assert report.scenes == {"train": 3, "val": 1, "test": 1}
    ids = np.concatenate([i.ravel() for split in release.truth.values() for _, i in split.values()])
    np.testing.assert_array_equal(report.pixels, np.bincount(ids, minlength=16))
    assert "any commercial use" in "\n".join(report.lines())
    assert "prohibit any commercial use" in (tmp_path / "out/LICENSE").read_text()


def test_a_gis_sees_the_classes(release: Made, tmp_path: Path) -> None:
    prepare_isaid(release.folder, tmp_path / "out")
    with rasterio.open(tmp_path / "out/val/labels/P0007.tif") as file:
        assert {i: file.colormap(1)[i][:3] for i in range(16)} == {c.id: c.color for c in CLASSES}
        assert file.tags(1)["class_14"] == "plane"


def test_an_unpacked_picture_goes_before_the_archived_one(release: Made, tmp_path: Path) -> None:
    release.pack()
    other = made(5, *VAL["P0007"])
    release.truth["val"]["P0007"] = other
    release.image("val", "P0007", other[0])
    release.mask("val", "P0007", colors(other[1]))
    prepare_isaid(release.folder, tmp_path / "out")
    check(tmp_path / "out", release)


def test_a_missing_split_is_left_out_and_reported(release: Made, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (release.folder / split).rename(release.folder / f"not-{split}")
    report = prepare_isaid(release.folder, tmp_path / "out")
    assert not (tmp_path / "out/train.csv").exists()
    assert "no train, 1 val, no test" in report.lines()[0]


def test_scenes_left_out_by_the_paper_are_not_trained_on(release: Made, tmp_path: Path) -> None:
    for split, name in (("train", "P1527"), ("val", "P1530")):
        image, ids = made(7, 20, 30)
        release.image(split, name, image)
        release.mask(split, name, colors(ids))
    report = prepare_isaid(release.folder, tmp_path / "out")
    assert report.scenes["train"] == len(TRAIN) + 1 and report.scenes["val"] == len(VAL) + 1
    assert report.lines()[0].endswith("; P1527 not in train.csv, as in the published training")
    assert (tmp_path / "out/train/labels/P1527.tif").is_file()
    assert "P1527" not in (tmp_path / "out/train.csv").read_text()
    assert "P1530" in (tmp_path / "out/val.csv").read_text()  # protocols other than JSeg's count it


# --- other kinds of PNG


def with_alpha(rgb: npt.NDArray[np.uint8], alpha: int) -> npt.NDArray[np.uint8]:
    return np.dstack([rgb, np.full(rgb.shape[:2], alpha, np.uint8)])


def as_palette(rgb: npt.NDArray[np.uint8]) -> Image.Image:
    """The same colours by a palette whose order is not the classes'."""
    found = np.unique(rgb.reshape(-1, 3), axis=0)[::-1]
    index = (rgb[:, :, None] == found).all(-1).argmax(-1).astype(np.uint8)
    picture = Image.fromarray(index, mode="P")
    picture.putpalette(found.tobytes())
    return picture


def test_masks_of_indices_and_of_alpha_give_the_same_labels(release: Made, tmp_path: Path) -> None:
    ids = release.truth["train"]["P0003"][1]
    release.mask("train", "P0003", with_alpha(colors(ids), 255))
    ids = release.truth["val"]["P0007"][1]
    release.mask("val", "P0007", as_palette(colors(ids)))
    ids = release.truth["train"]["P0011"][1]
    ids[:] = 0
    release.mask("train", "P0011", np.zeros_like(ids))  # grey, and black is background
    prepare_isaid(release.folder, tmp_path / "out")
    check(tmp_path / "out", release)


def test_grey_indexed_and_alpha_images_become_rgb(release: Made, tmp_path: Path) -> None:
    grey = release.truth["train"]["P0003"][0]
    grey[:] = grey[:, :, :1]
    release.image("train", "P0003", grey[:, :, 0].copy())
    see_through = release.truth["train"]["P0011"][0]
    release.image("train", "P0011", with_alpha(see_through, 7))
    few = release.truth["val"]["P0007"][0]
    few[:] = few // 86 * 86
    release.image("val", "P0007", as_palette(few))
    prepare_isaid(release.folder, tmp_path / "out")
    check(tmp_path / "out", release)


# --- what is refused


def refused(release: Made, output: Path) -> str:
    with pytest.raises(LabelError) as caught:
        prepare_isaid(release.folder, output)
    assert not output.exists()
    assert [p for p in output.parent.iterdir() if "partial" in p.name] == []
    assert caught.value.hint
    return caught.value.message


def test_everything_that_is_wrong_stands_in_one_list(release: Made, tmp_path: Path) -> None:
    image, ids = release.truth["train"]["P0003"]
    rgb = colors(ids)
    rgb[290, 5:8] = (1, 2, 3)
    rgb[299, 0] = (0, 0, 64)
    release.mask("train", "P0003", rgb)
    release.mask("val", "P0007", colors(made(0, 64, 63)[1]))
    release.image("train", "P0100", image)
    release.mask("val", "P0200", colors(ids))
    release.image("train", "P0011", (release.truth["train"]["P0011"][0].astype(np.uint16) * 257)[:, :, 0])
    release.pack()
    message = refused(release, tmp_path / "out")
    assert "has 6 problems, so nothing was written" in message
    mask = f"train/Semantic_masks/images.zip/images/P0003{MASK}.png"
    assert f"{mask}: colour (1, 2, 3) is not one of iSAID's, 3 px, the first in row 290, column 5" in message
    assert f"{mask}: colour (0, 0, 64) is not one of iSAID's, 1 px, the first in row 299, column 0" in message
    assert f"P0007{MASK}.png: has 64 × 63 px, its image val/images/part1.zip/images/P0007.png 64 × 64" in message
    assert "images/P0100.png: has no mask" in message
    assert f"images/P0200{MASK}.png: has no image" in message
    assert "images/P0011.png: is PNG of uint16, expected a PNG of bytes" in message


def test_masks_with_many_strange_colors_are_summed_up(release: Made, tmp_path: Path) -> None:
    rgb = made(0, 64, 64)[0] | 1  # as if saved as JPEG; blue of 255 and 63 aside no channel of iSAID's is odd thrice
    release.mask("val", "P0007", rgb)
    lines = [line for line in refused(release, tmp_path / "out").splitlines() if "P0007" in line]
    assert len(lines) == 6
    assert "further such colours" in lines[-1]


def test_a_mask_one_can_see_through_is_refused(release: Made, tmp_path: Path) -> None:
    rgba = with_alpha(colors(release.truth["val"]["P0007"][1]), 255)
    rgba[3, 4:7, 3] = 254
    release.mask("val", "P0007", rgba)
    assert "3 px are not opaque" in refused(release, tmp_path / "out")


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_a_truncated_picture_is_named(kind: str, release: Made, tmp_path: Path) -> None:
    folder = "images" if kind == "image" else "Semantic_masks"
    path = next(p for p in (release.folder / "train" / folder).rglob("P0003*"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = refused(release, tmp_path / "out")
    assert f"{path.name}: cannot be read" in message


def test_a_truncated_archive_is_named(release: Made, tmp_path: Path) -> None:
    release.pack()
    path = release.folder / "val/images/part1.zip"
    path.write_bytes(path.read_bytes()[:-30])
    message = refused(release, tmp_path / "out")
    assert "val/images/part1.zip: is incomplete" in message
    assert "val/images: no pictures, and no archive that holds any" in message


def test_a_picture_that_is_there_twice_is_refused(release: Made, tmp_path: Path) -> None:
    release.save(release.folder / "val/images/P0007.png", release.truth["val"]["P0007"][0])
    assert "is a duplicate of" in refused(release, tmp_path / "out")


def test_another_folder_is_no_release(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="no such folder"):
        prepare_isaid(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "images").mkdir()
    with pytest.raises(LabelError, match="neither train nor val"):
        prepare_isaid(tmp_path, tmp_path.parent / f"{tmp_path.name}-out")


# --- the output


def test_only_an_own_folder_is_replaced(release: Made, tmp_path: Path) -> None:
    output = tmp_path / "out"
    prepare_isaid(release.folder, output)
    with pytest.raises(OutputError, match="exists"):
        prepare_isaid(release.folder, output)
    (release.folder / "test").rename(release.folder / "later")
    prepare_isaid(release.folder, output, overwrite=True)
    assert not (output / "test").exists()
    check(output, release)
    (output / "notes.txt").touch()
    with pytest.raises(OutputError, match=r"holds notes\.txt"):
        prepare_isaid(release.folder, output, overwrite=True)
    for bad in (release.folder, release.folder / "out", tmp_path):
        with pytest.raises(OutputError, match="lie in each other"):
            prepare_isaid(release.folder, bad, overwrite=True)


def test_a_folder_stays_as_it_was_where_the_release_is_wrong(release: Made, tmp_path: Path) -> None:
    output = tmp_path / "out"
    prepare_isaid(release.folder, output)
    release.mask("val", "P0007", made(0, 64, 64)[0])
    with pytest.raises(LabelError):
        prepare_isaid(release.folder, output, overwrite=True)
    release.truth["train"].pop("none", None)
    check(output, release)


def test_a_file_that_reads_back_otherwise_is_an_error(
    release: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk of which GDAL says nothing: the file is cut off after it was written."""
    created: Callable[..., Any] = isaid._created

    class Cut:
        def __init__(self, path: Path, profile: dict[str, Any]) -> None:
            self.path, self.file = path, created(path, profile)

        def __enter__(self) -> Any:
            return self.file

        def __exit__(self, *_: object) -> None:
            self.file.close()
            self.path.write_bytes(self.path.read_bytes()[:-500])

    monkeypatch.setattr(isaid, "_created", Cut)
    with pytest.raises(OutputError, match="cannot write") as caught:
        prepare_isaid(release.folder, tmp_path / "out")
    assert str(tmp_path / "out") in caught.value.message
    assert "partial" not in caught.value.message.split(":")[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iSAID"]


def test_a_full_disk_leaves_nothing(release: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(isaid, "_write_lists", full)
    with pytest.raises(OutputError, match="No space left"):
        prepare_isaid(release.folder, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iSAID"]


# --- the palette


def test_every_color_there_is_has_its_class_or_none() -> None:
    table = ClassTable.from_names(["a", "b"], [(0, 0, 0), (255, 255, 255)])
    every = np.arange(1 << 24, dtype=np.uint32).reshape(4096, 4096)
    rgb = np.stack([every >> 16, every >> 8 & 255, every & 255]).astype(np.uint8)
    reader = PaletteReader(table)
    top, bottom = reader.read(rgb[:, :1], row=0), reader.read(rgb[:, -1:], row=4095)
    assert top[0, 0] == 0 and (top[0, 1:] == 255).all()
    assert bottom[0, -1] == 1 and (bottom[0, :-1] == 255).all()
    assert len(reader.strange) == 2 * 4095
    assert reader.first[0, 0, 1] == (0, 1)
    assert reader.first[255, 240, 0][0] == 4095
