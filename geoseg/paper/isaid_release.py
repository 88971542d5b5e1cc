"""The official release of iSAID as it is downloaded: which picture belongs to which mask, zipped or not.

    SRC/{train,val,test}/images/part1.zip …            the photographs of DOTA 1.0, P0003.png
    SRC/{train,val}/Semantic_masks/images.zip          P0003_instance_color_RGB.png

Archives may be unpacked, into folders of any depth. Nothing is extracted: GDAL reads inside them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from geoseg.errors import LabelError

LABELLED = ("train", "val")
SPLITS = (*LABELLED, "test")
IMAGES, MASKS = "images", "Semantic_masks"
MASK_SUFFIX = "_instance_color_RGB.png"
LAYOUT = f"wanted: SRC/train/{IMAGES}/*.zip and SRC/train/{MASKS}/*.zip, or their unpacked folders; likewise val"


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG, in a folder or an archive.

    Attributes:
        name: Where it is, for people, from the release's folder on.
        path: What GDAL opens.
        archive: Whether it lies in one.
    """

    name: str
    path: str
    archive: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """A photograph, and its mask where the split has labels."""

    split: str
    id: str
    image: Picture
    mask: Picture | None


@dataclass(frozen=True, slots=True)
class Release:
    """What a release holds.

    Attributes:
        pairs: Photographs with their masks, by split and id.
        archives: How many archives they lie in.
        problems: What does not fit together, in lines for people.
    """

    pairs: tuple[Pair, ...]
    archives: int
    problems: tuple[str, ...]


def find_release(source: Path) -> Release:
    """Pair the pictures of every split that is there, by the whole id, whatever dots or underscores it has.

    A picture that is there both unpacked and in an archive is taken unpacked.

    Raises:
        LabelError: No such folder, or neither train nor val in it.
    """
    if not source.is_dir():
        raise LabelError(f"no such folder: {source}", hint=LAYOUT)
    if not any((source / split).is_dir() for split in LABELLED):
        raise LabelError(f"{source} holds neither train nor val, so it is no release of iSAID", hint=LAYOUT)
    pairs: list[Pair] = []
    problems: list[str] = []
    archives = 0
    for split in SPLITS:
        if not (source / split).is_dir():
            continue
        images, images_zipped = _pictures(source, f"{split}/{IMAGES}", ".png", problems)
        archives += images_zipped
        if split not in LABELLED:
            pairs += [Pair(split, key, picture, None) for key, picture in sorted(images.items())]
            continue
        masks, masks_zipped = _pictures(source, f"{split}/{MASKS}", MASK_SUFFIX, problems)
        archives += masks_zipped
        for folder, found in ((IMAGES, images), (MASKS, masks)):
            if not found:
                problems.append(f"{split}/{folder}: no pictures, and no archive that holds any")
        if images and masks:
            problems += [f"{images[key].name}: has no mask" for key in sorted(images.keys() - masks.keys())]
            problems += [f"{masks[key].name}: has no image" for key in sorted(masks.keys() - images.keys())]
        pairs += [Pair(split, key, images[key], masks[key]) for key in sorted(images.keys() & masks.keys())]
    return Release(tuple(pairs), archives, tuple(problems))


def _pictures(source: Path, folder: str, suffix: str, problems: list[str]) -> tuple[dict[str, Picture], int]:
    """Pictures of a folder and its archives by id, and how many archives hold any."""
    found: dict[str, Picture] = {}
    archives = set()
    for archive, picture in _listed(source, folder, problems):
        base = picture.name.rpartition("/")[2]
        # A mask beside the photographs is no photograph.
        if not base.lower().endswith(suffix.lower()) or (suffix != MASK_SUFFIX and base.endswith("_RGB.png")):
            continue
        key = base[: -len(suffix)]
        other = found.get(key)
        if other is not None and other.archive == picture.archive:
            problems.append(f"{picture.name}: is there a second time, as {other.name}")
        elif other is None or other.archive:
            found[key] = picture
            archives.add(archive)
    return found, len(archives - {None})


def _listed(source: Path, folder: str, problems: list[str]) -> Iterator[tuple[Path | None, Picture]]:
    """Files of a folder and members of its archives, without what archivers and systems hide among them."""
    for path in sorted((source / folder).rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix.lower() != ".zip":
            yield None, Picture(name, str(path), archive=False)
            continue
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
        except (zipfile.BadZipFile, OSError) as error:
            problems.append(f"{name}: is no whole archive ({error}); download it again")
            continue
        for member in sorted(members):
            if not (member.endswith("/") or member.startswith("__MACOSX/") or "/." in f"/{member}"):
                yield path, Picture(f"{name}/{member}", f"/vsizip/{{{path.resolve()}}}/{member}", archive=True)
