"""Published weights: their addresses, the first digits of their SHA-256, and where they are stored.

openmmlab's file names end in the first eight digits of their SHA-256, as torch.hub expects; the files are stored in
torch.hub's folder, ``$TORCH_HOME/hub/checkpoints``. Only a download loads torch.
"""

import hashlib
import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geoseg.errors import ModelError, quoted
from geoseg.options import AnyPath

log = logging.getLogger(__name__)

OFFICIAL_FOLDER = "https://cloud.tsinghua.edu.cn/d/c15b25a6745946618462/"
"""The official repository's own files, for a browser: mscan_t.pth … mscan_l.pth and segmentation models."""

LICENCE = "code Apache-2.0; the official README asks commercial users to contact the authors"

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")  # suffixes of checkpoints that can be read

_OPENMMLAB = "https://download.openmmlab.com/mmsegmentation/v0.5/"
_NAMED_DIGEST = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")


@dataclass(frozen=True, slots=True)
class Pretrained:
    """One published file: its name here, what it holds, and its address."""

    name: str
    what: str
    url: str
    is_encoder: bool  # whether it is an encoder that timm loads rather than a whole SegNeXt

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.url.rpartition("/")[2]

    @property
    def sha256(self) -> str:
        """The first digits of its SHA-256, from its name."""
        return self.file.rpartition("-")[2].partition(".")[0]

    def path(self, folder: AnyPath | None = None) -> Path:
        """Where it is stored: in ``folder``, or in torch.hub's."""
        return (Path(folder) if folder is not None else checkpoint_folder()) / self.file


def _encoder(size: str, digest: str) -> Pretrained:
    url = f"{_OPENMMLAB}pretrain/segnext/mscan_{size[0]}_20230227-{digest}.pth"
    return Pretrained(f"mscan_{size}", f"encoder MSCAN-{size[0].upper()}, ImageNet", url, is_encoder=True)


def _ade20k(size: str, stamp: str, digest: str, miou: float) -> Pretrained:
    stem = f"segnext_mscan-{size[0]}_1x16_512x512_adamw_160k_ade20k"
    url = f"{_OPENMMLAB}segnext/{stem}/{stem}_{stamp}-{digest}.pth"
    return Pretrained(
        f"segnext_{size}_ade20k", f"SegNeXt-{size[0].upper()}, ADE20K, mIoU {miou:.2f}", url, is_encoder=False
    )


PRETRAINED: dict[str, Pretrained] = {
    entry.name: entry
    for entry in (
        _encoder("tiny", "119e8c9f"),
        _encoder("small", "f33ccdf2"),
        _encoder("base", "3ab7d230"),
        _encoder("large", "cef260d4"),
        _ade20k("tiny", "20230210_140244", "05bd8466", 41.50),
        _ade20k("small", "20230214_113014", "43013668", 44.16),
        _ade20k("base", "20230209_172053", "b6f6c70c", 48.03),
        _ade20k("large", "20230209_172055", "19b14b63", 50.99),
    )
}
"""By name: encoders as in timm, whole networks as ``segnext_SIZE_DATASET``."""


def checkpoint_folder() -> Path:
    """torch.hub's folder of checkpoints; it may not exist."""
    hub = sys.modules.get("torch.hub")
    if hub is not None:  # its set_dir may have changed the folder
        return Path(hub.get_dir()) / "checkpoints"
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("TORCH_HOME", Path(cache) / "torch")).expanduser()
    return home / "hub" / "checkpoints"


def list_weights() -> list[str]:
    """Published weights in lines for people: names, addresses, digests, and whether they are downloaded."""
    width = max(len(name) for name in PRETRAINED)
    lines = [f"stored in {checkpoint_folder()}; download with: geoseg weights import NAME -o FOLDER", ""]
    for entry in PRETRAINED.values():
        here = "downloaded" if entry.path().is_file() else "not downloaded"
        lines.append(f"{entry.name:<{width}}  {entry.what}, SHA-256 {entry.sha256}…, {here}")
        lines.append(f"{'':<{width}}  {entry.url}")
    official = "the official repository's own files, to be downloaded by hand, without digests"
    return [
        *lines,
        "",
        f"{'official':<{width}}  {official}",
        f"{'':<{width}}  {OFFICIAL_FOLDER}",
        "",
        f"licence: {LICENCE}",
    ]


def check_source(source: AnyPath) -> None:
    """Refuse, with a `ModelError`, what is neither a file with a checkpoint's suffix nor a name of `PRETRAINED`."""
    path = Path(source)
    if str(source) in PRETRAINED and not path.exists():
        return
    if path.is_dir() or not path.exists():
        found = "is a folder, not a checkpoint" if path.is_dir() else "does not exist"
        raise ModelError(f"{path} {found}", hint="for published ones: geoseg weights list")
    if path.suffix.lower() not in SUFFIXES:
        raise ModelError(
            f"{path} has the unknown suffix {path.suffix or '(none)'} for a checkpoint",
            hint=f"known: {', '.join(SUFFIXES)}",
        )


def fetch(entry: Pretrained, *, folder: AnyPath | None = None, progress: bool = False) -> Path:
    """A published file on this disk, downloaded to ``folder`` or torch.hub's if necessary; its digest is checked.

    A `ModelError` says where to put it if it cannot be downloaded, or that it is truncated or altered.
    """
    path = entry.path(folder)
    if not path.is_file():
        import torch

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            log.info("downloading %s to %s", entry.url, path)
            torch.hub.download_url_to_file(entry.url, str(path), entry.sha256, progress)
        except (OSError, RuntimeError) as error:
            other = ", name another with pretrained_cfg_overlay=dict(file=…), or train with model.encoder_weights=null"
            reason = " ".join(str(getattr(error, "reason", None) or error).split())  # urllib wraps the actual error
            raise ModelError(
                f"{entry.name} is not at {path} and cannot be downloaded from {entry.url}: {reason}; "
                f"put the file there{other if entry.is_encoder else ''}",
                hint=f"with network access: curl -L --create-dirs -o {quoted(path)} {entry.url}",
            ) from error
    check_digest(path, sha256_of(path))
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Path, sha256: str) -> None:
    """Compare a file's SHA-256 with the digits in its name, if any; a `ModelError` if they differ.

    Eight decimal digits are taken for a date, unless the file is one of `PRETRAINED`.
    """
    named = _NAMED_DIGEST.search(path.name)
    if named is None or sha256.startswith(named[1]):
        return
    if named[1].isdecimal() and path.name not in {entry.file for entry in PRETRAINED.values()}:
        return
    raise ModelError(
        f"{path} is truncated or altered: its SHA-256 begins with {sha256[: len(named[1])]}, its name says {named[1]}",
        hint=f"rm {quoted(path)}, and download it again",
    )


def encoder_file(
    variant: str, *, config: object = None, overlay: Mapping[str, Any] | None = None, folder: AnyPath | None = None
) -> Path | None:
    """The file for timm's ``pretrained=True``: the caller's, or the published one; None for another source.

    The caller's ``config`` (``pretrained_cfg``), unless it is a mere tag, and ``overlay`` may name a source; ``folder``
    is timm's ``cache_dir``. For errors see `fetch`.
    """
    overlay = overlay or {}
    if overlay.get("file"):
        return Path(overlay["file"])
    if any(overlay.get(key) for key in ("url", "hf_hub_id", "state_dict")) or not isinstance(config, str | None):
        return None
    return fetch(PRETRAINED[variant], folder=folder)
