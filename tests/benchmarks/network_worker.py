"""One network in a process of its own, run when `processes.py` asks for it over a pipe. Not started by hand.

Requests and answers are lines of JSON on standard input and output: ``load`` once, then ``run``, ``classes``, ``peak``
as often as wanted; or ``weights`` and ``roofline``, for which no network is loaded.
"""

from __future__ import annotations

import functools
import json
import math
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from official_form import VARIANTS, OfficialForm, Variant
from torch import Tensor, nn

if TYPE_CHECKING:
    from geoseg.models import SegNeXt

BANDS = 3
SEED = 0
ENCODERS = {"T": "tu-mscan_tiny", "S": "tu-mscan_small", "B": "tu-mscan_base", "L": "tu-mscan_large"}
CALIBRATION_SIDE = 256

Network = Callable[[Tensor], Tensor]


# --- weights and image: the same in every process


def image(height: int, width: int, batch: int = 1) -> Tensor:
    """A seeded image (N, 3, H, W): shapes of several sizes and noise, mean 0, standard deviation 1 or so."""
    generator = torch.Generator().manual_seed(SEED)
    x = 0.3 * torch.randn(batch, BANDS, height, width, generator=generator)
    for cell in (8, 32, 128):
        coarse = torch.randn(
            batch, BANDS, math.ceil(height / cell) + 1, math.ceil(width / cell) + 1, generator=generator
        )
        x += 0.5 * F.interpolate(coarse, scale_factor=cell, mode="bilinear")[:, :, :height, :width]
    return x


@torch.no_grad()
def visible_weights(variant: Variant, classes: int, *, groups: int = 32) -> dict[str, Tensor]:
    """Seeded random weights with which every parameter shows in the output, and no class takes all pixels.

    Layer scales are ±0.02 … 0.06, the size that trained ones of the shipped models have; with ten times larger ones a
    random network multiplies the rounding of bf16 until a third of the pixels change their class, which says nothing
    of trained networks. Batch norms are calibrated on an image, then perturbed; logits have mean 0 and standard
    deviation 1 per class on that image.

    Returns:
        State dict of `OfficialForm`, with ``decode_head.hamburger.ham.bases`` added.
    """
    torch.manual_seed(SEED)
    network = OfficialForm(variant, classes=classes, groups=groups)
    norms = nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, norms):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of the one image below
    for name, parameter in network.named_parameters():
        if "layer_scale" in name:
            sign = 2 * torch.randint(2, parameter.shape) - 1
            parameter.copy_(sign * torch.empty_like(parameter).uniform_(0.02, 0.06))
    x = image(CALIBRATION_SIDE, CALIBRATION_SIDE)
    network.train()
    network(x)
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean += 0.1 * module.running_var.sqrt() * torch.randn_like(module.running_mean)
            module.running_var *= torch.empty_like(module.running_var).uniform_(0.8, 1.25)
    last = network.decode_head.conv_seg
    assert last.bias is not None
    logits = network.forward_logits(x)
    std, mean = torch.std_mean(logits, dim=(0, 2, 3))
    last.weight /= std[:, None, None, None]
    last.bias.copy_((last.bias - mean) / std)
    return network.state_dict() | {"decode_head.hamburger.ham.bases": network.decode_head.hamburger.ham.bases}


# --- networks


def official(size: str, classes: int, weights: dict[str, Tensor]) -> OfficialForm:
    """The official form of T, S, B or L with these weights."""
    network = OfficialForm(VARIANTS[size], classes=classes)
    own = dict(weights)
    network.decode_head.hamburger.ham.bases = own.pop("decode_head.hamburger.ham.bases")
    network.load_state_dict(own, strict=True)
    return network


def segnext(size: str, classes: int, weights: dict[str, Tensor]) -> SegNeXt:
    """geoseg's SegNeXt with the same weights."""
    import segmentation_models_pytorch as smp

    from geoseg.models import convert_official_state_dict

    network: SegNeXt = smp.create_model("segnext", encoder_name=ENCODERS[size], encoder_weights=None, classes=classes)
    network.load_state_dict(convert_official_state_dict(weights), strict=True)
    network.eval()
    return network


def ours(network: SegNeXt, request: dict[str, Any]) -> Network:
    """geoseg's network behind one of its backends: the one place that knows how geoseg gives them."""
    device = torch.device(request["device"])
    if request["backend"] == "module":
        # the network as it was trained, without any inference form
        network.to(device).to(memory_format=torch.channels_last)
        return eager(network.forward_logits, request)
    from geoseg.network.backends import Request, load_backend
    from geoseg.network.stored_model import logits_stride

    streams = request["streams"]
    how = Request(
        precision={"bf16": "bfloat16"}.get(request["precision"], request["precision"]),
        device=request["device"],
        bands=BANDS,
        threads=request["threads"] // streams,
        at_once=streams,
        size=(request["height"], request["width"]),
    )
    model: Any = SimpleNamespace(network=network, stride=logits_stride(network), key=None)
    backend: Network = load_backend(model, request["backend"], how)
    return backend


def rival(name: str, classes: int) -> nn.Module:
    """One of SMP's networks with random weights."""
    import segmentation_models_pytorch as smp

    torch.manual_seed(SEED)
    options: dict[str, Any] = {"encoder_weights": None, "classes": classes}
    network: nn.Module = {
        "segformer-b0": lambda: smp.Segformer("mit_b0", **options),
        "segformer-b2": lambda: smp.Segformer("mit_b2", **options),
        "unet-r34": lambda: smp.Unet("resnet34", **options),
    }[name]()
    return network.eval()


def eager(network: Network, request: dict[str, Any]) -> Network:
    """A torch network in the precision asked for: reduced precision is autocast."""
    if request["precision"] == "float32":
        return network

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(torch.device(request["device"]).type, torch.bfloat16):
            return network(x)

    return forward


def build(request: dict[str, Any]) -> tuple[Network, Tensor]:
    """What was asked for, ready to run, and its input in the layout it takes."""
    device = torch.device(request["device"])
    x = image(request["height"], request["width"], request["batch"]).to(device)
    architecture, full = request["architecture"], request["upsample"]
    if architecture not in ("official", "geoseg"):
        return eager(rival(architecture, request["classes"]).to(device), request), x
    weights = torch.load(request["weights"], weights_only=True)
    if architecture == "official":
        network = official(request["size"], request["classes"], weights).to(device)
        return eager(network if full else network.forward_logits, request), x
    backend, size = ours(segnext(request["size"], request["classes"], weights), request), x.shape[2:]

    def forward(x: Tensor) -> Tensor:
        logits = backend(x)
        if full and logits.shape[2:] != size:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return logits

    return forward, x.contiguous(memory_format=torch.channels_last)


# --- one process


class Process:
    """The loaded network, its input, and how it is timed."""

    def __init__(self, request: dict[str, Any]) -> None:
        if request.get("limit_bytes"):
            # past it an allocation fails with a message, where the system would kill some process
            resource.setrlimit(resource.RLIMIT_DATA, (request["limit_bytes"],) * 2)
        self.device, self.streams = torch.device(request["device"]), request["streams"]
        per_stream = max(1, request["threads"] // self.streams)
        torch.set_num_threads(request["threads"] if self.streams == 1 else per_stream)
        torch.backends.cudnn.benchmark = True
        self.network, self.x = build(request)
        self.pool = ThreadPoolExecutor(self.streams, initializer=torch.set_num_threads, initargs=(per_stream,))
        self.run(1)
        self.run(1)

    def forward(self) -> Tensor:
        with torch.inference_mode():
            return self.network(self.x)

    def run(self, forwards: int) -> dict[str, float]:
        """So many forwards, by each stream: seconds per forward, and CPU seconds of them all."""
        cpu = time.process_time()
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(self.device)
            start.record()
            for _ in range(forwards):
                self.forward()
            end.record()
            torch.cuda.synchronize(self.device)
            seconds = start.elapsed_time(end) / 1000
        else:
            clock = time.perf_counter()
            if self.streams == 1:
                self._repeat(forwards)
            else:
                list(self.pool.map(self._repeat, [forwards] * self.streams))
            seconds = time.perf_counter() - clock
        return {"seconds": seconds / (forwards * self.streams), "cpu": time.process_time() - cpu}

    def _repeat(self, forwards: int) -> None:
        for _ in range(forwards):
            self.forward()

    def classes(self, path: str) -> None:
        """Write the class of every pixel (N, H, W), uint8."""
        logits = self.forward().float()
        if logits.shape[2:] != self.x.shape[2:]:
            logits = F.interpolate(logits, size=self.x.shape[2:], mode="bilinear", align_corners=False)
        np.save(path, logits.argmax(1).to(torch.uint8).cpu().numpy())

    def peak_bytes(self) -> int:
        """Largest memory so far: of the process, or on the GPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write_weights(request: dict[str, Any]) -> dict[str, float]:
    """Weights of T, S, B or L to a file; how evenly the classes share the calibration image."""
    torch.set_num_threads(request["threads"])
    weights = visible_weights(VARIANTS[request["size"]], request["classes"])
    torch.save(weights, request["path"])
    with torch.inference_mode():
        logits = official(request["size"], request["classes"], weights)(image(CALIBRATION_SIDE, CALIBRATION_SIDE))
    counts = logits.argmax(1).flatten().bincount(minlength=request["classes"])
    return {"classes": int((counts > 0).sum()), "largest": (counts.max() / counts.sum()).item()}


@torch.inference_mode()
def roofline(request: dict[str, Any]) -> dict[str, float]:
    """What the machine gives at best: GFLOP/s of large matrix products by precision, GB/s of a copy."""
    torch.set_num_threads(request["threads"])
    device = torch.device(request["device"])
    side, length = (2048, 2**26) if device.type == "cpu" else (8192, 2**29)

    def best(function: Callable[[], object]) -> float:
        seconds = []
        for _ in range(12):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            clock = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - clock)
        return min(seconds)

    found = {}
    for precision, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = best(functools.partial(torch.mm, a, b))
        if device.type == "cpu" and torch.backends.mkldnn.is_available():
            # The same product as a 1×1 convolution of oneDNN: torch.mm is MKL's in float32, which does not use all
            # that AMD processors have. Called by name, as torch's own conv2d takes MKL too with one thread.
            pixels = a.view(1, side // 64, 64, side).permute(0, 3, 1, 2)
            product = functools.partial(
                torch.mkldnn_convolution, pixels, b.view(side, side, 1, 1), None, (0, 0), (1, 1), (1, 1), 1
            )
            seconds = min(seconds, best(product))
        found[precision] = 2 * side**3 / seconds / 1e9
    source = torch.ones(length, device=device)
    target = torch.empty_like(source)
    target.fill_(0)
    found["copy"] = 2 * 4 * length / best(lambda: target.copy_(source)) / 1e9
    return found


def main() -> None:
    # Libraries print to standard output; answers go to a copy of it that they do not know.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.path.insert(0, str(Path(__file__).parents[2]))
    process: Process | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer: dict[str, Any] = {}
            match request["do"]:
                case "weights":
                    answer = write_weights(request)
                case "roofline":
                    answer = roofline(request)
                case "load":
                    clock = time.perf_counter()
                    process = Process(request)
                    answer = {"seconds": time.perf_counter() - clock, "torch": torch.__version__}
                    if process.device.type == "cuda":
                        answer["device"] = torch.cuda.get_device_name(process.device)
                case "run":
                    assert process is not None
                    answer = process.run(request["forwards"])
                case "classes":
                    assert process is not None
                    process.classes(request["path"])
                case "peak":
                    assert process is not None
                    answer = {"bytes": process.peak_bytes()}
        except Exception as error:  # reported to the parent, which leaves this network out
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
