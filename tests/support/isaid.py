"""iSAID's release in a folder, made of noise."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from geoseg.paper.isaid import CLASSES

MASK = "_instance_color_RGB"
Ids = npt.NDArray[np.uint8]


def colors(ids: Ids) -> npt.NDArray[np.uint8]:
    """The mask of class ids (H, W) as the release colours it, (H, W, 3)."""
    return np.array([c.color for c in CLASSES], dtype=np.uint8)[ids]


def made(seed: int, height: int, width: int) -> tuple[npt.NDArray[np.uint8], Ids]:
    """A photograph (H, W, 3) of noise and class ids (H, W), every class among them."""
    rng = np.random.default_rng(seed)
    ids = np.kron(rng.integers(0, 16, (height // 8 + 1, width // 8 + 1)), np.ones((8, 8), int))[:height, :width]
    ids.flat[:16] = np.arange(16)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), ids.astype(np.uint8)


TRAIN = {"P0003": (300, 70), "P0011_2.rot": (40, 513), "P0011": (33, 50)}
VAL = {"P0007": (64, 64)}


class Made:
    """A release in a folder, and what is in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.truth: dict[str, dict[str, tuple[npt.NDArray[np.uint8], Ids]]] = {"train": {}, "val": {}}
        for split, sizes in (("train", TRAIN), ("val", VAL)):
            for seed, (name, size) in enumerate(sizes.items()):
                image, ids = self.truth[split][name] = made(seed + 10 * (split == "val"), *size)
                self.image(split, name, image)
                self.mask(split, name, colors(ids))
        self.image("test", "P0006", made(99, 20, 30)[0])

    def save(self, path: Path, picture: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path)
        return path

    def image(self, split: str, name: str, picture: Any) -> Path:
        return self.save(self.folder / split / "images" / "images" / f"{name}.png", picture)

    def mask(self, split: str, name: str, picture: Any) -> Path:
        return self.save(self.folder / split / "Semantic_masks" / "images" / f"{name}{MASK}.png", picture)

    def pack(self) -> None:
        """Put everything into the archives of the release, photographs into two parts."""
        for split in ("train", "val", "test"):
            for kind in ("images", "Semantic_masks"):
                files = sorted((self.folder / split / kind).rglob("*.png"))
                for number, file in enumerate(files):
                    part = f"part{number % 2 + 1}.zip" if kind == "images" else "images.zip"
                    with zipfile.ZipFile(self.folder / split / kind / part, "a", zipfile.ZIP_DEFLATED) as archive:
                        archive.write(file, f"images/{file.name}")
                        archive.writestr(f"__MACOSX/images/._{file.name}", b"not a picture")
                    file.unlink()
