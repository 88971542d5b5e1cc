"""Protocols of published numbers: patches or whole pictures, each predicted on its own, without stitching.

A number that is to be compared has to be made as the other one was. What these protocols have in common: a patch is
predicted as if there were nothing around it, its logits are interpolated to its own size, and the counts of all patches
are summed, so that ground in the overlap of patches counts as often as it is seen. geoseg's own protocol is another:
one map of the whole scene, every pixel counted once.

References:
    The converters and test settings of mmsegmentation (mmseg) and of JSeg, which the paper's numbers on iSAID were made
    with; written here from a description of what they do.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.class_tables import ISAID_LEFT_OUT
from geoseg.classes import NODATA
from geoseg.data.labelled import LabelledScene, labels_of
from geoseg.errors import ConfigError
from geoseg.network.backends import load_backend
from geoseg.network.logits import Logits
from geoseg.network.metrics import Matrix, confusion_matrix
from geoseg.network.model_folder import Normalize
from geoseg.prediction.predictor import PredictingModel
from geoseg.runtime.processors import processors
from geoseg.scene import Pixels, Valid
from geoseg.windows import Window, round_up, window_starts

log = logging.getLogger(__name__)

RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Scales of the paper's multi-scale testing, each also flipped left to right."""

_MAX_THREADS = 8
_MEMORY = 4 << 30
"""What the patches in work at once may take together, bytes, as long as it is more than one of them."""

_CLASSES_AT_ONCE = 16

Narrow = Literal["cut", "whole"]
Labels = npt.NDArray[np.uint8]
View = tuple[Pixels, Valid]


@dataclass(frozen=True, slots=True)
class PatchProtocol:
    """How scenes are cut, and what the network sees of a patch.

    Attributes:
        patch: Side of the patches, px; None takes every scene whole.
        overlap: Strip that neighbours share, px.
        narrow: What becomes of a scene that does not exceed the patch along one side: "cut" along the other side, or
            kept "whole".
        pad: Whether what a patch lacks below and to the right becomes black pixels, and label 255.
        fit: Longer and shorter side, px, that a patch is resized to fit in, its ratio kept; for the "whole" protocol
            the configuration's own.
        multiple: Both sides are then enlarged to a multiple of this, px.
        skipped: Names of scenes that do not count.
    """

    patch: int | None
    overlap: int = 0
    narrow: Narrow = "cut"
    pad: bool = False
    fit: tuple[int, int] | None = None
    multiple: int = 1
    skipped: frozenset[str] = frozenset()


PROTOCOLS: dict[str, PatchProtocol] = {
    "jseg": PatchProtocol(800, 200, narrow="whole", fit=(896, 896), multiple=32, skipped=ISAID_LEFT_OUT),
    "mmseg": PatchProtocol(896, 384, pad=True, fit=(896, 896)),
    "whole": PatchProtocol(None, multiple=32),
}
"""By name: "jseg" is behind the published numbers on iSAID, "mmseg" is mmsegmentation's there, and "whole" is for sets
of photographs (ADE20K, COCO-Stuff)."""


def find_protocol(name: str) -> PatchProtocol:
    """The protocol of a name.

    Raises:
        ConfigError: No such name; the hint lists them.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"no protocol is called {name!r}", hint=f"--protocol scene, {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def isaid_windows(height: int, width: int, *, patch: int, overlap: int, narrow: Narrow = "cut") -> list[Window]:
    """Patches of a scene as the converters of iSAID cut it.

    They start at multiples of the stride; one that would end outside is moved back to the border. Along a side that
    does not exceed the patch there is one, of the side's length.

    Args:
        height: Scene height, px.
        width: Scene width, px.
        patch: Side of a patch, px: 896 for mmsegmentation, 800 for JSeg.
        overlap: Strip that neighbours share, px: 384 and 200.
        narrow: "cut" cuts a scene of any shape, as mmsegmentation; "whole" keeps one whole of which not both sides
            exceed the patch, as JSeg.

    Returns:
        Patches in row-major order, none twice. mmsegmentation writes some several times, which gives the same files,
        and loses rows or columns where one side is exactly the patch and the other less; here nothing is lost.

    Raises:
        ValueError: ``overlap`` outside ``[0, patch)``, or an empty scene.
    """
    if narrow == "whole" and min(height, width) <= patch:
        return [Window(0, 0, height, width)]
    rows = window_starts(height, size=patch, overlap=overlap)
    cols = window_starts(width, size=patch, overlap=overlap)
    return [Window(row, col, min(patch, height), min(patch, width)) for row in rows for col in cols]


def evaluate_patches(
    trained: PredictingModel,
    scenes: Sequence[LabelledScene],
    protocol: str | PatchProtocol,
    *,
    device: torch.device,
    ms_flip: bool = False,
    base_size: tuple[int, int] | None = None,
    split: str = "val",
    progress: Callable[[Sequence[Any]], Iterable[Any]] | None = None,
) -> dict[str, Matrix]:
    """Confusion matrices (K, K) int64, rows = truth, of scenes by name: `scene_names`, without those that are skipped.

    The network computes in float32. Each patch is a forward of its own, on a CPU on one thread, so that the counts
    depend on nothing but the patch.

    Args:
        trained: The model; the scenes must fit its contract.
        scenes: Scenes with labels.
        protocol: A key of `PROTOCOLS`, or one of your own.
        device: Where the network runs.
        ms_flip: Average the probabilities of `RATIOS` of the size, each also flipped, at the patch's own size.
        base_size: Longer and shorter side that whole pictures are fitted in: ``augment.base_size``.
        split: Which labels count where scenes are cut into blocks, "train" or "val".
        progress: Wraps the sequence of patches, as tqdm does.

    Raises:
        ConfigError: No such protocol, or "whole" without a base size.
        SceneError: A scene that cannot be read.
    """
    rule = find_protocol(protocol) if isinstance(protocol, str) else protocol
    if rule.fit is None:
        if base_size is None:
            raise ConfigError(
                "the protocol for whole pictures needs to know the size to fit them in",
                hint="set augment.base_size=[2048,512], or what the training had",
            )
        rule = replace(rule, fit=(max(base_size), min(base_size)))
    names = scene_names(scenes)
    left_out = sorted(rule.skipped & set(names))
    if left_out:
        log.info("protocol %s does not count %s", protocol, ", ".join(left_out))
    patches = [
        (name, scene, window)
        for name, scene in zip(names, scenes, strict=True)
        if name not in rule.skipped
        for window in _windows(scene, rule)
    ]
    count = len(trained.contract.classes)
    matrices = {name: np.zeros((count, count), dtype=np.int64) for name, _, _ in patches}
    largest = max((max(w.height, rule.patch or 1) * max(w.width, rule.patch or 1) for _, _, w in patches), default=1)
    threads = _threads(largest * 4 * (3 * count if ms_flip else count // 4 + _CLASSES_AT_ONCE))
    network = _Network(trained, device, at_once=threads)
    ratios, flips = (RATIOS, (False, True)) if ms_flip else ((1.0,), (False,))

    def one(scene: LabelledScene, window: Window) -> Matrix:
        pixels, valid, labels = _read(scene, window, rule, split)
        views = [(_resized(pixels, valid, _input_sizes(labels.shape, rule, r)), f) for r in ratios for f in flips]
        return network.count(views, labels)

    def finish() -> None:
        name, future = ahead.popleft()
        matrices[name] += future.result()

    ahead: deque[tuple[str, Future[Matrix]]] = deque()
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "geoseg-patches", initializer=torch.set_num_threads, initargs=(1,))
    try:
        for name, scene, window in progress(patches) if progress else patches:
            ahead.append((name, pool.submit(one, scene, window)))
            if len(ahead) > 2 * threads:
                finish()
        while ahead:
            finish()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # the workers' choice would be that of threads to come, too
    return matrices


def scene_names(scenes: Sequence[LabelledScene]) -> list[str]:
    """Names of scenes: those of their files, with as many folders as it takes to tell them apart."""
    paths = [Path(scene.config.scene).with_suffix("").parts for scene in scenes]
    names = [parts[-1] for parts in paths]
    for depth in range(2, max(map(len, paths), default=1) + 1):
        common = {name for name, count in Counter(names).items() if count > 1}
        if not common:
            break
        names = ["/".join(parts[-depth:]) if name in common else name for name, parts in zip(names, paths, strict=True)]
    return names


class _Network:
    """A network in float32 that counts what it makes of patches; patches may come from several threads."""

    def __init__(self, trained: PredictingModel, device: torch.device, *, at_once: int) -> None:
        self._device, self._count = device, len(trained.contract.classes)
        self._scale = trained.contract.scale
        self._normalize = Normalize(trained.contract).to(device)
        self._normalize.scale = 1.0  # what is not a byte comes scaled
        # One patch after the other on a GPU, which computes them no faster side by side.
        self._turn = threading.Lock() if device.type != "cpu" else None
        if device.type == "cpu":
            self._run: Callable[[Tensor], Tensor] = load_backend(
                trained,
                backend="torch",  # patches have many sizes, and other backends make each ready for seconds
                precision="float32",
                bands=len(trained.contract.bands),
                at_once=at_once,
            )
        else:
            self._run = Logits(copy.deepcopy(trained.network)).to(device).eval()

    def count(self, views: list[tuple[View, bool]], labels: Labels) -> Matrix:
        """The confusion matrix (K, K) of one patch: seen at several sizes, some flipped, against labels (H, W)."""
        if self._turn is None:
            return self._counted(views, labels)
        exact = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=torch.backends.cudnn.allow_tf32
        )
        with self._turn, exact:
            return self._counted(views, labels)

    @torch.inference_mode()
    def _counted(self, views: list[tuple[View, bool]], labels: Labels) -> Matrix:
        if len(views) == 1:
            (pixels, valid), _ = views[0]
            classes = _largest(self._logits(pixels, valid), valid.shape, labels.shape)
        else:
            total: Tensor | None = None
            for (pixels, valid), flipped in views:
                part = (pixels[..., ::-1], valid[:, ::-1]) if flipped else (pixels, valid)
                logits = _interpolated(self._logits(*part), valid.shape, labels.shape)
                found = F.softmax(logits, dim=1)
                found = found.flip(3) if flipped else found
                total = found if total is None else total + found
            assert total is not None
            classes = total.argmax(1)[0]
        truth = torch.from_numpy(labels).to(self._device)
        return confusion_matrix(truth, classes, self._count).cpu().numpy()

    def _logits(self, pixels: Pixels, valid: Valid) -> Tensor:
        """Logits (1, K, h / s, w / s) of pixels (B, h, w)."""
        x = torch.from_numpy(np.ascontiguousarray(pixels)).to(self._device)[None].float()
        if pixels.dtype == np.uint8:
            x = x * self._scale
        mask = None if valid.all() else torch.from_numpy(np.ascontiguousarray(valid)).to(self._device)[None]
        return self._run(self._normalize(x, mask)).float()


def _windows(scene: LabelledScene, rule: PatchProtocol) -> list[Window]:
    height, width = scene.grid.shape
    if rule.patch is None:
        return [Window(0, 0, height, width)]
    return isaid_windows(height, width, patch=rule.patch, overlap=rule.overlap, narrow=rule.narrow)


def _read(scene: LabelledScene, window: Window, rule: PatchProtocol, split: str) -> tuple[Pixels, Valid, Labels]:
    """Pixels (B, H, W), valid and labels (H, W) of a patch, padded where the protocol pads."""
    pixels, valid, labels = scene.read(window)
    if scene.split is not None:
        labels = np.where(valid, labels_of(scene, split).read(window), NODATA).astype(np.uint8)
    if rule.pad and rule.patch is not None:
        margin = (0, max(rule.patch - window.height, 0)), (0, max(rule.patch - window.width, 0))
        pixels = np.pad(pixels, ((0, 0), *margin))
        valid = np.pad(valid, margin, constant_values=True)  # black is what the network sees there
        labels = np.pad(labels, margin, constant_values=NODATA)
    return pixels, valid, labels


def _input_sizes(shape: tuple[int, ...], rule: PatchProtocol, ratio: float) -> list[tuple[int, int]]:
    """Heights and widths, px, that a patch (H, W) is brought to one after the other before the network sees it."""
    assert rule.fit is not None
    longer, shorter = (int(side * ratio) for side in rule.fit)
    factor = min(longer / max(shape), shorter / min(shape))
    height, width = (max(int(side * factor + 0.5), 1) for side in shape)
    return [(height, width), (round_up(height, rule.multiple), round_up(width, rule.multiple))]


def _resized(pixels: Pixels, valid: Valid, sizes: Sequence[tuple[int, int]]) -> View:
    """Pixels (B, h, w) and valid (h, w) of other sizes: bilinear, bytes stay bytes, as the original programs do it."""
    for size in sizes:
        if valid.shape == size:
            continue
        shape = size[::-1]
        bands = [cv2.resize(np.ascontiguousarray(band), shape, interpolation=cv2.INTER_LINEAR) for band in pixels]
        nearest = cv2.resize(valid.astype(np.uint8), shape, interpolation=cv2.INTER_NEAREST_EXACT)
        pixels, valid = np.stack(bands), nearest > 0
    return pixels, valid


def _interpolated(logits: Tensor, network: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """Logits (1, K, h / s, w / s) at the size the network saw, and from there at the patch's own, (1, K, H, W)."""
    for size in (network, patch):
        if tuple(logits.shape[2:]) != size:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return logits


def _largest(logits: Tensor, network: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """Class (H, W) of the largest interpolated logit, the first of equals; few classes at a time, for 171 take room."""
    best, classes = torch.max(_interpolated(logits[:, :_CLASSES_AT_ONCE], network, patch), dim=1)
    for first in range(_CLASSES_AT_ONCE, logits.shape[1], _CLASSES_AT_ONCE):
        part = _interpolated(logits[:, first : first + _CLASSES_AT_ONCE], network, patch)
        value, index = torch.max(part, dim=1)
        classes = torch.where(value > best, index + first, classes)
        best = torch.maximum(value, best)
    return classes[0]


def _threads(patch_bytes: int) -> int:
    return max(min(processors(), _MAX_THREADS, _MEMORY // max(patch_bytes, 1)), 1)
