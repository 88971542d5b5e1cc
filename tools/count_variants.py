"""Count every variant of SegNeXt beside the paper's numbers, and write the table that ``geoseg models`` prints.

The paper's "GFLOPs" are multiply-accumulates as torchprofile counts them in the original code: convolutions and matrix
products, one per normalised element, one per element of an element-wise product, four per element of a bilinear
interpolation, including the last one to the image's size. Sums, biases, activations, divisions and softmax count
nothing. Here they are counted while the network runs on torch's meta device, which has shapes but no weights or pixels.
"""

from __future__ import annotations

import copy
import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from geoseg.models import SegNeXt
from geoseg.models.hamburger import HamburgerDecoder, NMF2d

ADE20K_CLASSES = 150
CITYSCAPES_CLASSES = 19

NOT_FOUND = "the paper's number at 2048×1024 is not what its released configuration gives, at 512×512 it is"
RANK_16 = "as mmsegmentation 1.x trains it; the paper's GFLOPs are those of rank 64"
NO_CODE = "no code of it was published, so widths inside are ours, and the paper's cost of it was not checked"
NO_COST = "a cost of it in the paper was not found to compare with"
AT_224 = "counted at 224×224, where it is trained"
BASELINE = "a baseline of ours, not of the paper"


class Published(NamedTuple):
    """The paper's numbers: parameters in millions, GFLOPs at 512 × 512 and at 2048 × 1024; None if not compared."""

    parameters: float | None = None
    gflops_512: float | None = None
    gflops_2048: float | None = None


NOTHING = Published()


@dataclass(frozen=True, slots=True)
class Variant:
    """One network."""

    name: str  # in the paper, or what differs from SegNeXt-T
    table: str  # tables of the paper that have it
    encoder: str  # its name in timm
    options: Mapping[str, Any] = field(default_factory=dict)  # as in ``model.options`` of a configuration
    published: Published = NOTHING
    classifier: bool = False  # whether it is the encoder with a head for 1000 classes
    why_not: str = ""  # why a number of the paper is missing or differs


class Row(NamedTuple):
    """A variant and what was counted: parameters, multiply-accumulates of an image at three sizes."""

    variant: Variant
    parameters: int
    macs_512: int | None
    macs_2048: int | None
    macs_224: int | None


def _study(name: str, table: str, why_not: str, **options: Any) -> Variant:
    return Variant(name, table, "mscan_tiny", options, why_not=why_not)


VARIANTS = (
    Variant("SegNeXt-T", "2, 8", "mscan_tiny", {}, Published(4.3, 6.6, 50.5)),
    Variant("SegNeXt-S", "2, 8", "mscan_small", {}, Published(13.9, 15.9, 124.6)),
    Variant("SegNeXt-B", "2, 8", "mscan_base", {}, Published(27.6, 34.9, 275.7)),
    Variant("SegNeXt-L", "2, 8", "mscan_large", {}, Published(48.9, 70.0, 577.5), why_not=NOT_FOUND),
    Variant("SegNeXt-B, rank 16", "-", "mscan_base", {"nmf_rank": 16}, Published(27.6), why_not=RANK_16),
    Variant("SegNeXt-L, rank 16", "-", "mscan_large", {"nmf_rank": 16}, Published(48.9), why_not=RANK_16),
    _study("T with EMA", "5", NO_CODE, context="ema"),
    _study("T with non-local", "5", NO_CODE, context="non_local"),
    _study("T with CC", "5", NO_CODE, context="cc"),
    _study("T without context", "-", BASELINE, context="none"),
    _study("T without 7×7 branch", "6", NO_COST, branches=(11, 21)),
    _study("T without 11×11 branch", "6", NO_COST, branches=(7, 21)),
    _study("T without 21×21 branch", "6", NO_COST, branches=(7, 11)),
    _study("T without 1×1", "6", NO_COST, channel_mixing=False),
    _study("T without attention", "6", NO_COST, attention=False),
    _study("T, decoder (a)", "7", NO_CODE, decoder="mlp"),
    _study("T, decoder (b)", "7", NO_CODE, decoder="conv"),
    _study("T, (c) with stage 1", "7", NO_CODE, stage1=True),
    Variant("MSCAN-T", "3", "mscan_tiny", {}, Published(4.2), classifier=True, why_not=AT_224),
    Variant("MSCAN-S", "3", "mscan_small", {}, Published(14.0), classifier=True, why_not=AT_224),
    Variant("MSCAN-B", "3", "mscan_base", {}, Published(26.8), classifier=True, why_not=AT_224),
    Variant("MSCAN-L", "3", "mscan_large", {}, Published(45.2), classifier=True, why_not=AT_224),
)


def build(variant: Variant, *, classes: int = ADE20K_CLASSES) -> nn.Module:
    """The network of a variant on the meta device, in evaluation mode."""
    with torch.device("meta"), _Uninitialised():
        if variant.classifier:
            network: nn.Module = timm.create_model(variant.encoder, **variant.options)
        else:
            network = SegNeXt(f"tu-{variant.encoder}", classes=classes, **variant.options)
    return network.eval()


class _Uninitialised(TorchFunctionMode):
    """Skips torch.nn.init, which sets nothing on the meta device but takes longer than all the rest."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def measure(variant: Variant) -> Row:
    """Count a variant: at 512 × 512 with the classes of ADE20K, at 2048 × 1024 with those of Cityscapes.

    Classifiers are counted at 224 × 224, the size they are trained at.
    """
    network = build(variant)
    if variant.classifier:
        return Row(variant, parameters(network), None, None, cost(network, 224, 224).total)
    size, macs = parameters(network), cost(network, 512, 512).total
    head = network.segmentation_head
    network.segmentation_head = nn.Conv2d(head.in_channels, CITYSCAPES_CLASSES, 1, device="meta")  # type: ignore[arg-type,union-attr]
    return Row(variant, size, macs, cost(network, 1024, 2048).total, None)


def as_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV with a header; numbers in full, the paper's as printed there."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("variant", "table", "encoder", "options", "parameters", "paper_parameters_m", "macs_512")
    writer.writerow(
        [*names, "paper_gflops_512", "macs_2048x1024", "paper_gflops_2048x1024", "macs_224", "not_compared"]
    )
    for variant, size, macs_512, macs_2048, macs_224 in rows:
        paper = variant.published
        options = ", ".join(f"{key}={value!r}" for key, value in variant.options.items())
        start = (variant.name, variant.table, variant.encoder, options, size, paper.parameters, macs_512)
        writer.writerow([*start, paper.gflops_512, macs_2048, paper.gflops_2048, macs_224, variant.why_not])
    return text.getvalue()


# --- counting


class Cost(NamedTuple):
    """Multiply-accumulates of one forward, by kind."""

    convolutions: int
    products: int
    interpolation: int
    elementwise: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def parameters(module: nn.Module) -> int:
    """Numbers that training changes, so no statistics of batch norms and no bases."""
    return sum(p.numel() for p in module.parameters())


def cost(network: nn.Module, height: int, width: int, *, bands: int = 3) -> Cost:
    """Multiply-accumulates of one image (bands, height, width) in evaluation mode, as the original code needs them.

    The original decoder computes the first product of the factorization twice, the second time with a factor 1, and
    interpolates stage 2 to its own size; ours does neither.
    """
    network = copy.deepcopy(network).to("meta").eval()
    counter = _Counter()
    for module in network.modules():
        if isinstance(module, NMF2d):
            module.register_forward_hook(counter.repeated_product)
        elif isinstance(module, HamburgerDecoder):
            module.register_forward_hook(counter.idle_interpolation)
    with torch.no_grad(), counter:
        network(torch.empty(1, bands, height, width, device="meta"))
    return Cost(**{kind: counter.counted[kind] for kind in Cost._fields})


# torch's version decides which of the three runs
_BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_no_update")

RULES: dict[str, tuple[str, Callable[[tuple[Any, ...], Any], int]]] = {
    "convolution": ("convolutions", lambda args, out: out.numel() * math.prod(args[1].shape[1:])),
    **{name: ("products", lambda args, out: out.numel() * args[-2].shape[-1]) for name in ("mm", "bmm", "addmm")},
    "upsample_bilinear2d": ("interpolation", lambda args, out: 4 * out.numel()),
    "mul": ("elementwise", lambda args, out: out.numel()),
    **{
        name: ("elementwise", lambda args, out: out[0].numel())
        for name in ("native_layer_norm", "native_group_norm", *_BATCH_NORMS)
    },
}
"""Kind and count of each operation from its arguments and result, by name in ATen."""


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the cost of all operations while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (rule := RULES.get(func.overloadpacket.__name__)) is not None:
            kind, count = rule
            self.counted[kind] += count(args, out)
        return out

    def repeated_product(self, nmf: NMF2d, inputs: tuple[Tensor], out: Tensor) -> None:
        """X W of the softmax initialisation, computed again in the first round, and its factor of 1."""
        rank, pixels = nmf.bases.shape[2], out.shape[2] * out.shape[3]
        self.counted["products"] += out.shape[0] * pixels * out.shape[1] * rank
        self.counted["elementwise"] += out.shape[0] * pixels * rank

    def idle_interpolation(self, decoder: HamburgerDecoder, inputs: tuple[list[Tensor]], out: Tensor) -> None:
        """Stage 2 to its own size."""
        self.counted["interpolation"] += 4 * inputs[0][-3].numel()


if __name__ == "__main__":
    from geoseg.paper.variants import TABLE

    TABLE.write_text(as_csv([measure(variant) for variant in VARIANTS]), encoding="utf-8")
    print(TABLE)
