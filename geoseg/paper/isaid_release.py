"""The official release of iSAID as downloaded: which mask belongs to which picture, zipped or not.

    SRC/{train,val,test}/images/part1.zip …            the photographs of DOTA 1.0, P0003.png
    SRC/{train,val}/Semantic_masks/images.zip          P0003_instance_color_RGB.png

Archives may be unpacked into folders of any depth. Nothing is extracted: GDAL reads inside archives.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from geoseg.errors import LabelError

LABELLED = ("train", "val")
SPLITS = (*LABELLED, "test")
IMAGES, MASKS = "images", "Semantic_masks"
MASK_SUFFIX = "_instance_color_RGB.png"
LAYOUT = f"expected: SRC/train/{IMAGES}/*.zip and SRC/train/{MASKS}/*.zip, or their unpacked folders; likewise val"


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG, in a folder or an archive."""

    name: str  # its path in the release, for people
    path: str  # what GDAL opens
    archive: bool  # whether it is in one


@dataclass(frozen=True, slots=True)
class Pair:
    """A photograph, and its mask if the split has labels."""

    split: str
    id: str
    image: Picture
    mask: Picture | None


def find_release(source: Path) -> tuple[list[Pair], list[str]]:
    """The pictures of all existing splits, paired by their whole ids, and problems in lines for people.

    They come by split and id; unpacked ones are preferred to archives.
    A `LabelError` if there is no such folder, or neither train nor val in it.
    """
    if not source.is_dir():
        raise LabelError(f"no such folder: {source}", hint=LAYOUT)
    if not any((source / split).is_dir() for split in LABELLED):
        raise LabelError(f"{source} holds neither train nor val, so it is not a release of iSAID", hint=LAYOUT)
    pairs: list[Pair] = []
    problems: list[str] = []
    for split in SPLITS:
        if not (source / split).is_dir():
            continue
        images = _pictures(source, f"{split}/{IMAGES}", ".png", problems)
        if split not in LABELLED:
            pairs += [Pair(split, key, picture, None) for key, picture in sorted(images.items())]
            continue
        masks = _pictures(source, f"{split}/{MASKS}", MASK_SUFFIX, problems)
        for folder, found in ((IMAGES, images), (MASKS, masks)):
            if not found:
                problems.append(f"{split}/{folder}: no pictures, and no archive that holds any")
        if images and masks:
            problems += [f"{images[key].name}: has no mask" for key in sorted(images.keys() - masks.keys())]
            problems += [f"{masks[key].name}: has no image" for key in sorted(masks.keys() - images.keys())]
        pairs += [Pair(split, key, images[key], masks[key]) for key in sorted(images.keys() & masks.keys())]
    return pairs, problems


def _pictures(source: Path, folder: str, suffix: str, problems: list[str]) -> dict[str, Picture]:
    """Pictures of a folder and its archives by id."""
    found: dict[str, Picture] = {}
    for picture in _listed(source, folder, problems):
        base = picture.name.rpartition("/")[2]
        # A mask may lie beside the photographs.
        if not base.lower().endswith(suffix.lower()) or (suffix != MASK_SUFFIX and base.endswith("_RGB.png")):
            continue
        key = base[: -len(suffix)]
        other = found.setdefault(key, picture)
        if other.archive and not picture.archive:
            found[key] = picture
        elif other is not picture and other.archive == picture.archive:
            problems.append(f"{picture.name}: is a duplicate of {other.name}")
    return found


def _listed(source: Path, folder: str, problems: list[str]) -> Iterator[Picture]:
    """Files of a folder and members of its archives, except hidden ones."""
    for path in sorted((source / folder).rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix.lower() != ".zip":
            yield Picture(name, str(path), archive=False)
            continue
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
        except (zipfile.BadZipFile, OSError) as error:
            problems.append(f"{name}: is incomplete ({error}); download it again")
            continue
        for member in sorted(members):
            if not (member.endswith("/") or member.startswith("__MACOSX/") or "/." in f"/{member}"):
                yield Picture(f"{name}/{member}", f"/vsizip/{{{path.resolve()}}}/{member}", archive=True)
