"""Protocols of published numbers: patches or whole pictures, each predicted on its own, without stitching.

Only numbers made in the same way can be compared. In these protocols a patch is predicted as if there were nothing
around it, its logits are interpolated to its own size, and the counts of all patches are summed, so ground in the
overlap of patches counts several times. geoseg's own protocol counts every pixel of one map of the whole scene once.

References:
    The converters and test settings of mmsegmentation (mmseg) and of JSeg, behind the paper's numbers on iSAID; written
    from a description of what they do.
"""

import copy
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.arrays import ByteArray, IntArray, Pixels, Valid
from geoseg.class_tables import ISAID_LEFT_OUT
from geoseg.classes import NODATA
from geoseg.data.labelled import LabelledScene, labels_of
from geoseg.errors import ConfigError
from geoseg.network.backends import Request, load_backend
from geoseg.network.folding import Logits
from geoseg.network.metrics import confusion_matrix
from geoseg.network.model_folder import Normalize
from geoseg.network.stored_model import StoredModel
from geoseg.network.tta import PAPER_SCALES
from geoseg.prediction.batches import same_kernels
from geoseg.runtime.machine import processors
from geoseg.tiling.arrays import mapped_logits
from geoseg.windows import Window, round_up, window_grid

log = logging.getLogger(__name__)

_MEMORY = 4 << 30  # what the patches that are computed at once may take together, bytes
_CLASSES_AT_ONCE = 16

View = tuple[Pixels, Valid]


@dataclass(frozen=True, slots=True)
class PatchProtocol:
    """How scenes are cut, and what the network sees of a patch; lengths in px."""

    patch: int | None  # side of the patches; None for whole scenes
    overlap: int = 0  # strip that neighbours share
    narrow: Literal["cut", "whole"] = "cut"  # or "whole" for a scene that does not exceed the patch along one side
    pad: bool = False  # smaller patches below and to the right with black pixels and label 255
    fit: tuple[int, int] | None = None  # longer and shorter side to resize a patch into; None: the configuration's
    multiple: int = 1  # both sides are then enlarged to a multiple of this
    skipped: frozenset[str] = frozenset()  # names of scenes that do not count

    def windows(self, height: int, width: int) -> list[Window]:
        """Patches of a scene, px, as the converters of iSAID cut it, in row-major order, none twice.

        They start at multiples of the stride; a patch that would end outside is moved back to the border. Unlike in
        mmsegmentation no rows or columns are lost if one side equals the patch and the other is shorter.
        """
        if self.patch is None or (self.narrow == "whole" and min(height, width) <= self.patch):
            return [Window(0, 0, height, width)]
        return window_grid(height, width, size=self.patch, overlap=self.overlap)


PROTOCOLS: dict[str, PatchProtocol] = {
    "jseg": PatchProtocol(800, 200, narrow="whole", fit=(896, 896), multiple=32, skipped=ISAID_LEFT_OUT),
    "mmseg": PatchProtocol(896, 384, pad=True, fit=(896, 896)),
    "whole": PatchProtocol(None, multiple=32),
}
"""By name: "jseg" for the published numbers on iSAID, "mmseg" for mmsegmentation's there, "whole" for sets of
photographs (ADE20K, COCO-Stuff)."""


def evaluate_patches(
    trained: StoredModel,
    scenes: Sequence[LabelledScene],
    protocol: str | PatchProtocol,
    *,
    device: torch.device,
    ms_flip: bool = False,
    base_size: tuple[int, int] | None = None,
    split: str = "val",
    progress: Callable[[Sequence[Any]], Iterable[Any]] | None = None,
) -> dict[str, IntArray]:
    """Confusion matrices (K, K) int64, rows = truth, by `scene_names`, without skipped scenes.

    The network computes in float32. Each patch is a forward of its own, on one thread of a CPU, so the counts depend
    only on the patch.

    Args:
        trained: The model; the scenes must fit its contract.
        scenes: Scenes with labels.
        protocol: A key of `PROTOCOLS`, or a protocol of your own.
        device: Where the network runs.
        ms_flip: Average the probabilities at `PAPER_SCALES` of the size, each also flipped left to right.
        base_size: Longer and shorter side that whole pictures are fitted in: ``augment.base_size``.
        split: Which labels count in scenes that are split into blocks, "train" or "val".
        progress: Wraps the sequence of patches, as tqdm does.

    Raises:
        ConfigError: No such protocol, or "whole" without a base size.
        SceneError: A scene cannot be read.
    """
    if isinstance(protocol, str) and protocol not in PROTOCOLS:
        raise ConfigError(f"no protocol is called {protocol!r}", hint=f"--protocol scene, {', '.join(PROTOCOLS)}")
    rule = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    if rule.fit is None:
        if base_size is None:
            raise ConfigError(
                "the protocol for whole pictures needs a size to fit them in",
                hint="set augment.base_size=[2048,512], or the training's",
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
        for window in rule.windows(*scene.grid.shape)
    ]
    count = len(trained.contract.classes)
    matrices = {name: np.zeros((count, count), dtype=np.int64) for name, _, _ in patches}
    largest = max((max(w.height, rule.patch or 1) * max(w.width, rule.patch or 1) for _, _, w in patches), default=1)
    patch_bytes = largest * 4 * (3 * count if ms_flip else count // 4 + _CLASSES_AT_ONCE)
    threads = max(min(processors(), 8, _MEMORY // max(patch_bytes, 1)), 1)
    network = _Network(trained, device, at_once=threads)
    ratios, flips = (PAPER_SCALES, (False, True)) if ms_flip else ((1.0,), (False,))

    def one(scene: LabelledScene, window: Window) -> IntArray:
        pixels, valid, labels = _read(scene, window, rule, split)
        views = [(_resized(pixels, valid, _input_sizes(labels.shape, rule, r)), f) for r in ratios for f in flips]
        return network.count(views, labels)

    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "geoseg-patches", initializer=torch.set_num_threads, initargs=(1,))
    try:
        results = pool.map(lambda patch: one(*patch[1:]), patches)
        for (name, _, _), matrix in zip(progress(patches) if progress else patches, results, strict=True):
            matrices[name] += matrix
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # new threads would take over the workers' number
    return matrices


def scene_names(scenes: Sequence[LabelledScene]) -> list[str]:
    """Names of scenes: file names, with as many parent folders as are needed to distinguish them."""
    paths = [Path(scene.config.scene).with_suffix("").parts for scene in scenes]
    names = [parts[-1] for parts in paths]
    for depth in range(2, max(map(len, paths), default=1) + 1):
        common = {name for name, count in Counter(names).items() if count > 1}
        if not common:
            break
        names = ["/".join(parts[-depth:]) if name in common else name for name, parts in zip(names, paths, strict=True)]
    return names


class _Network:
    """A network in float32 that counts its classes of patches; patches may come from several threads."""

    def __init__(self, trained: StoredModel, device: torch.device, *, at_once: int) -> None:
        self._device, self._count = device, len(trained.contract.classes)
        self._channels = trained.contract.class_table.channels
        self._scale = trained.contract.scale
        self._normalize = Normalize(trained.contract).to(device)
        self._normalize.scale = 1.0  # pixels come scaled
        # A GPU computes patches no faster side by side.
        self._turn = threading.Lock() if device.type != "cpu" else None
        if device.type == "cpu":
            # Patches have many sizes, and other backends take seconds to get ready for each.
            request = Request(bands=len(trained.contract.bands), at_once=at_once)
            self._run: Callable[[Tensor], Tensor] = load_backend(trained, "torch", request)
        else:
            self._run = Logits(copy.deepcopy(trained.network)).to(device).eval()

    def count(self, views: list[tuple[View, bool]], labels: ByteArray) -> IntArray:
        """The confusion matrix (K, K) of one patch: views at several sizes, some flipped, against labels (H, W)."""
        if self._turn is None:
            return self._counted(views, labels)
        with self._turn, same_kernels():
            return self._counted(views, labels)

    @torch.inference_mode()
    def _counted(self, views: list[tuple[View, bool]], labels: ByteArray) -> IntArray:
        if len(views) == 1:
            (pixels, valid), _ = views[0]
            classes = _largest(self._logits(pixels, valid), valid.shape, labels.shape)
        else:
            total: Any = 0
            for (pixels, valid), flipped in views:
                part = (pixels[..., ::-1], valid[:, ::-1]) if flipped else (pixels, valid)
                found = F.softmax(_interpolated(self._logits(*part), valid.shape, labels.shape), dim=1)
                total = total + (found.flip(3) if flipped else found)
            classes = total.argmax(1)[0]
        truth = torch.from_numpy(labels).to(self._device)
        return confusion_matrix(truth, classes, self._count).cpu().numpy()

    def _logits(self, pixels: Pixels, valid: Valid) -> Tensor:
        """Logits (1, K, h / s, w / s) of pixels (B, h, w)."""
        x = torch.from_numpy(np.ascontiguousarray(pixels)).to(self._device)[None].float()
        if pixels.dtype == np.uint8:
            x = x * self._scale
        mask = None if valid.all() else torch.from_numpy(np.ascontiguousarray(valid)).to(self._device)[None]
        logits: Tensor = mapped_logits(self._run(self._normalize(x, mask)).float(), self._channels, torch)
        return logits


def _read(scene: LabelledScene, window: Window, rule: PatchProtocol, split: str) -> tuple[Pixels, Valid, ByteArray]:
    """Pixels (B, H, W), valid and labels (H, W) of a patch, padded where the protocol pads."""
    pixels, valid, labels = scene.read(window, labels_of(scene, split).read(window))
    if rule.pad and rule.patch is not None:
        margin = (0, max(rule.patch - window.height, 0)), (0, max(rule.patch - window.width, 0))
        pixels = np.pad(pixels, ((0, 0), *margin))
        valid = np.pad(valid, margin, constant_values=True)  # the network sees black there
        labels = np.pad(labels, margin, constant_values=NODATA)
    return pixels, valid, labels


def _input_sizes(shape: tuple[int, ...], rule: PatchProtocol, ratio: float) -> list[tuple[int, int]]:
    """Heights and widths, px, that a patch (H, W) is resized to, one after the other."""
    assert rule.fit is not None
    longer, shorter = (int(side * ratio) for side in rule.fit)
    factor = min(longer / max(shape), shorter / min(shape))
    height, width = (max(int(side * factor + 0.5), 1) for side in shape)
    return [(height, width), (round_up(height, rule.multiple), round_up(width, rule.multiple))]


def _resized(pixels: Pixels, valid: Valid, sizes: Sequence[tuple[int, int]]) -> View:
    """Pixels (B, h, w) and valid (h, w) resized: bilinear, bytes stay bytes, as in the original programs."""
    for size in sizes:
        if valid.shape == size:
            continue
        shape = size[::-1]
        bands = [cv2.resize(np.ascontiguousarray(band), shape, interpolation=cv2.INTER_LINEAR) for band in pixels]
        nearest = cv2.resize(valid.astype(np.uint8), shape, interpolation=cv2.INTER_NEAREST_EXACT)
        pixels, valid = np.stack(bands), nearest > 0
    return pixels, valid


def _interpolated(logits: Tensor, network: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """Logits (1, K, h / s, w / s) interpolated to the network's input size, then to the patch's, (1, K, H, W)."""
    for size in (network, patch):
        if tuple(logits.shape[2:]) != size:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return logits


def _largest(logits: Tensor, network: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """Class (H, W) of the largest interpolated logit, the first of equals; few classes at a time to save memory."""
    best, classes = torch.max(_interpolated(logits[:, :_CLASSES_AT_ONCE], network, patch), dim=1)
    for first in range(_CLASSES_AT_ONCE, logits.shape[1], _CLASSES_AT_ONCE):
        part = _interpolated(logits[:, first : first + _CLASSES_AT_ONCE], network, patch)
        value, index = torch.max(part, dim=1)
        classes = torch.where(value > best, index + first, classes)
        best = torch.maximum(value, best)
    return classes[0]
