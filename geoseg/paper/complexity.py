"""What a network costs: parameters and multiply-accumulates of one forward, counted without weights or pixels.

The SegNeXt paper's "GFLOPs" are multiply-accumulates as torchprofile counts them in the original code: convolutions
and matrix products, one per normalised element, one per element of an element-wise product, four per element of a
bilinear interpolation, including the last one to the image's size. Sums, biases, activations, divisions and softmax
count nothing. Here they are counted while the network runs on torch's meta device, which only has shapes.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from geoseg.models.hamburger import HamburgerDecoder, NMF2d


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


def _convolution(args: tuple[Any, ...], out: Tensor) -> int:
    return out.numel() * int(math.prod(args[1].shape[1:]))


def _matrix_product(args: tuple[Any, ...], out: Tensor) -> int:
    return out.numel() * int(args[-2].shape[-1])


RULES: dict[str, tuple[str, Callable[[tuple[Any, ...], Any], int]]] = {
    "convolution": ("convolutions", _convolution),
    "mm": ("products", _matrix_product),
    "bmm": ("products", _matrix_product),
    "addmm": ("products", _matrix_product),
    "upsample_bilinear2d": ("interpolation", lambda args, out: 4 * out.numel()),
    "mul": ("elementwise", lambda args, out: out.numel()),
    "native_layer_norm": ("elementwise", lambda args, out: out[0].numel()),
    "native_group_norm": ("elementwise", lambda args, out: out[0].numel()),
    # torch's version decides which one runs
    "native_batch_norm": ("elementwise", lambda args, out: out[0].numel()),
    "_native_batch_norm_legit_no_training": ("elementwise", lambda args, out: out[0].numel()),
    "_batch_norm_no_update": ("elementwise", lambda args, out: out[0].numel()),
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
