"""Networks in OpenVINO's format, kept in the user's cache folder, so that a second prediction needs no torch.

An entry is a folder named by a digest of all that its content depends on. It holds the network for one shape of
windows (``network.xml``, ``network.bin``) and ``entry.json`` with the files' digests. An entry that is incomplete or
damaged is made anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import secrets
import shutil
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from geoseg.errors import in_one_line
from geoseg.network.forward import Model, does_not_run
from geoseg.runtime.user_cache import user_cache

log = logging.getLogger(__name__)

FORMAT = 1
"""Of an entry; to be raised when the same inputs give another one."""

KEPT_BYTES = 2 << 30
"""Of all entries; when a new one is stored, those not used for longest go first."""

TOLERANCE = 1e-3
"""A converted network's logits may differ so much from torch's, as a share of the largest."""

Files: TypeAlias = tuple[bytes, ...]
"""Content of `NETWORK_FILES`."""

NETWORK_FILES = ("network.xml", "network.bin")
ENTRY_FILE = "entry.json"
_PACKAGES = ("openvino", "torch", "timm", "segmentation-models-pytorch")


def converted(model: Model, shape: tuple[int, ...], core: Any) -> Any:
    """A network as ``openvino.Model`` for windows of one shape, from the cache where it is there.

    Networks that do not come from a model folder are converted each time.

    Args:
        model: The network; `geoseg.network.stored_model.StoredModel` has the ``key`` that entries go by.
        shape: (N, B, H, W) of the windows.
        core: OpenVINO's core.

    Raises:
        ModelError: OpenVINO cannot convert the network, or its logits are not torch's.
    """
    key = getattr(model, "key", None)
    entry = None if key is None else user_cache("networks") / _digest(key, shape)
    files = None if entry is None else _read(entry)
    if files is None:
        files = _convert(model, shape, core)
        if entry is not None:
            _store(entry, files)
    return core.read_model(*files)


def _digest(key: str, shape: tuple[int, ...]) -> str:
    facts = [FORMAT, key, shape, _sources(), [version(name) for name in _PACKAGES]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


@functools.cache
def _sources() -> str:
    """Digest of the code that defines networks and their inference form."""
    here = Path(__file__).parent
    files = [*sorted((here.parent / "models").rglob("*.py")), here / "folding.py", here / "logits.py", Path(__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _read(entry: Path) -> Files | None:
    """The files of an entry; None where there is none, or a damaged one."""
    try:
        stated = json.loads((entry / ENTRY_FILE).read_text(encoding="utf-8"))
        files = tuple((entry / name).read_bytes() for name in NETWORK_FILES)
        if stated != _digests(files):
            raise ValueError("its files are not those that were stored")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("the cached network %s is damaged and made anew: %s", entry, in_one_line(error))
        return None
    with contextlib.suppress(OSError):
        entry.touch()  # the time of its last use
    return files


def _store(entry: Path, files: Files) -> None:
    """Keep a network; where that fails, only time is lost."""
    scratch = entry.with_name(f".{entry.name}.{secrets.token_hex(4)}.partial")
    try:
        scratch.mkdir(parents=True)
        for name, content in zip(NETWORK_FILES, files, strict=True):
            (scratch / name).write_bytes(content)
        (scratch / ENTRY_FILE).write_text(json.dumps(_digests(files)), encoding="utf-8")
        shutil.rmtree(entry, ignore_errors=True)
        scratch.rename(entry)
        _trim(entry)
    except OSError as error:
        log.warning("the converted network cannot be kept in %s, so every run converts it: %s", entry.parent, error)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _digests(files: Files) -> dict[str, list[str]]:
    return {"sha256": [hashlib.sha256(content).hexdigest() for content in files]}


def _trim(newest: Path) -> None:
    """Remove entries that were not used for longest, so that all together stay below `KEPT_BYTES`."""
    entries = [path for path in newest.parent.iterdir() if path != newest]
    room = KEPT_BYTES - _size(newest)
    for entry in sorted(entries, key=lambda path: path.stat().st_mtime, reverse=True):
        room -= _size(entry)
        abandoned = entry.suffix == ".partial" and time.time() - entry.stat().st_mtime > 3600
        if (room < 0 and entry.suffix != ".partial") or abandoned:
            shutil.rmtree(entry, ignore_errors=True)


def _size(entry: Path) -> int:
    return sum(file.stat().st_size for file in entry.iterdir())


def _convert(model: Model, shape: tuple[int, ...], core: Any) -> Files:
    """The network converted, and compared with torch on a dark and on a bright window of noise.

    The files and not the converter's own object: once read back, that gives other last bits.
    """
    import openvino as ov
    import torch

    from geoseg.network.folding import deployed
    from geoseg.network.logits import Logits

    log.info("converting the network for windows of %d × %d px, once", *shape[2:])
    logits = Logits(deployed(model.network)).eval().requires_grad_(False)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    windows = noise - 1, noise + 1
    with (
        warnings.catch_warnings(),
        torch.inference_mode(False),
        torch.no_grad(),
        tempfile.TemporaryDirectory(prefix="geoseg-") as folder,
    ):
        warnings.simplefilter("ignore")  # tracing is deprecated in torch, and still the converter's way in
        wanted = np.stack([logits(x.clone()).numpy() for x in windows])
        try:
            traced = torch.jit.trace(logits, noise.clone(), check_trace=False)  # type: ignore[no-untyped-call]
            network = ov.convert_model(traced, example_input=noise.clone(), input=list(shape))
            path = Path(folder, NETWORK_FILES[0])
            ov.save_model(network, path, compress_to_fp16=False)
            files = path.read_bytes(), path.with_suffix(".bin").read_bytes()
            compiled = core.compile_model(core.read_model(*files), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            found = np.stack([compiled(x.numpy())[0] for x in windows])
        except Exception as error:  # whatever torch's tracer and OpenVINO's frontends raise
            raise does_not_run("OpenVINO", error) from error
    worst = float(np.abs(found - wanted).max()) if found.shape == wanted.shape else np.inf
    if not worst <= TOLERANCE * max(float(np.abs(wanted).max()), 1.0):
        raise does_not_run("OpenVINO", ValueError(f"its logits differ by {worst:.3g} from torch's"))
    return files
