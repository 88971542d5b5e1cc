"""Networks in OpenVINO's format, kept in the user's cache folder, so that a second prediction needs no torch.

An entry is a zip file named after a digest of everything that its content depends on; a damaged one is replaced.
"""

import contextlib
import functools
import hashlib
import json
import logging
import shutil
import tempfile
import time
import warnings
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from geoseg.errors import OutputError, in_one_line
from geoseg.files import atomic_output
from geoseg.network.forward import does_not_run
from geoseg.network.stored_model import StoredModel
from geoseg.runtime.machine import user_cache

log = logging.getLogger(__name__)

FORMAT = 2  # version of the entries; raise it when the same inputs give another entry
KEPT_BYTES = 2 << 30  # size of all entries together; storing a new one removes those that were not used for longest
TOLERANCE = 1e-3  # how much a converted network's logits may differ from torch's, as a share of the largest
ANY = -1  # OpenVINO's mark for an axis of any length

NETWORK_FILES = ("network.xml", "network.bin")
_PACKAGES = ("openvino", "torch", "timm", "segmentation-models-pytorch")


def converted(model: StoredModel, shape: tuple[int, ...], core: Any) -> Any:
    """A network as ``openvino.Model`` for windows of one shape (N, B, H, W), from the cache if it is there.

    A SegNeXt has one entry for windows of any shape, other networks one for each; a model without a ``key`` has none.
    ``core`` is OpenVINO's. A `ModelError` if OpenVINO cannot convert the network, or its logits are not torch's.
    """
    shapes = (ANY, shape[1], ANY, ANY), shape
    entries = [user_cache("networks") / f"{_digest(model.key, one)}.zip" for one in shapes if model.key]
    for entry in entries:
        network = _cached(entry, model, shape, core)
        if network is not None:
            return network
    files, is_free = _convert(model, shape, core)
    if entries:
        _store(entries[0 if is_free else 1], files)
    network = core.read_model(*files)
    network.reshape(list(shape))
    return network


def _digest(key: str, shape: tuple[int, ...]) -> str:
    facts = [FORMAT, key, shape, _sources(), [version(name) for name in _PACKAGES]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


@functools.cache
def _sources() -> str:
    """Digest of the code that defines networks, their inference form and the conversion."""
    here = Path(__file__).parent
    files = [*sorted((here.parent / "models").rglob("*.py")), here / "folding.py", Path(__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _cached(entry: Path, model: StoredModel, shape: tuple[int, ...], core: Any) -> Any:
    """The network of an entry; None if it does not exist, is damaged or is another model's."""
    try:
        with zipfile.ZipFile(entry) as archive:  # compares checksums
            network = core.read_model(*(archive.read(name) for name in NETWORK_FILES))
        network.reshape(list(shape))
        found = network.output(0).partial_shape
        if list(found)[:2] != [shape[0], len(model.contract.class_table.channels)]:
            raise ValueError(f"its logits have the shape {found}")
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged bytes make zipfile and OpenVINO raise errors of many kinds
        log.warning("the cached network %s is damaged and is made again: %s", entry, in_one_line(error))
        return None
    with contextlib.suppress(OSError):
        entry.touch()  # records the last use
    return network


def _store(entry: Path, files: tuple[bytes, ...]) -> None:
    """Store a network; if that fails, only time is lost."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(entry) as scratch, zipfile.ZipFile(scratch, "w") as archive:
            for name, content in zip(NETWORK_FILES, files, strict=True):
                archive.writestr(name, content)
        _trim(entry)
    except (OSError, OutputError) as error:
        log.warning("cannot store the converted network in %s, so every run converts it again: %s", entry.parent, error)


def _trim(newest: Path) -> None:
    """Remove the entries not used for longest until all together take less than `KEPT_BYTES`."""
    room = KEPT_BYTES - newest.stat().st_size
    others = {path: path.stat() for path in newest.parent.iterdir() if path != newest}
    for path, facts in sorted(others.items(), key=lambda item: item[1].st_mtime, reverse=True):
        if path.suffix != newest.suffix:  # being written, left behind by a killed process, or of an older version
            if time.time() - facts.st_mtime > 3600:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            continue
        room -= facts.st_size
        if room < 0:
            path.unlink(missing_ok=True)


def _convert(model: StoredModel, shape: tuple[int, ...], core: Any) -> tuple[tuple[bytes, ...], bool]:
    """The files of the converted network, and whether they are for windows of any shape, as those of SegNeXt are.

    Its logits are compared with torch's on a dark and on a bright window of noise. Only the network as read from its
    files is ever run: the converter's own object gives other last bits.
    """
    import openvino as ov
    import torch

    from geoseg.network.folding import FoldedSegNeXt, Logits, deployed

    log.info("converting the network, once; about 5 s")
    logits = Logits(deployed(model.network)).eval().requires_grad_(False)
    is_free = isinstance(logits.network, FoldedSegNeXt)  # others may write down the size that they are traced with
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with (
        warnings.catch_warnings(),
        torch.inference_mode(False),
        torch.no_grad(),
        tempfile.TemporaryDirectory(prefix="geoseg-") as folder,
    ):
        warnings.simplefilter("ignore")  # tracing is deprecated in torch, but the converter needs it
        wanted = np.stack([logits(x.clone()).numpy() for x in (noise - 1, noise + 1)])
        try:
            traced = torch.jit.trace(logits, noise.clone(), check_trace=False)  # type: ignore[no-untyped-call]
            size = [ANY, shape[1], ANY, ANY] if is_free else list(shape)
            path = Path(folder, NETWORK_FILES[0])
            ov.save_model(ov.convert_model(traced, example_input=noise.clone(), input=size), path, False)
            files = path.read_bytes(), path.with_suffix(".bin").read_bytes()
            network = core.read_model(*files)
            network.reshape(list(shape))
            compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            found = np.stack([compiled(x.numpy())[0] for x in (noise - 1, noise + 1)])
        except Exception as error:  # whatever torch's tracer and OpenVINO's frontends raise
            raise does_not_run("OpenVINO", error) from error
    worst = float(np.abs(found - wanted).max()) if found.shape == wanted.shape else np.inf
    if not worst <= TOLERANCE * max(float(np.abs(wanted).max()), 1.0):
        raise does_not_run("OpenVINO", ValueError(f"its logits differ by {worst:.3g} from torch's"))
    return files, is_free
