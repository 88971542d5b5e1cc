"""SegNeXt's inference form on a CPU: matrix products by oneDNN, everything between them compiled, nothing twice.

Three things make the eager network slow on a CPU, and each has its answer here:

- The MLP's hidden features are eight times the stage's own; written, convolved, activated and read again they go
  through memory six times. Here a few rows of them at a time go through all of it, within the cache.
- Depthwise strips one after the other read and write everything each time. `cpu_kernels.multi_scale` is one pass.
- A 1×1 convolution in a thread of its own is, in torch, a plain matrix product without AVX-512. Here it is oneDNN's
  product of matrices, with its bias, its product with the gate or its sum with the residual done on the way. (oneDNN's
  own 1×1 convolution is slower where the input has few channels, and takes longer to begin.)

Windows go through one by one, and the result is the same bits for the same window whatever else is computed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from geoseg.inference.cpu_kernels import (
    add_upsampled,
    channel_sums,
    depthwise_gelu,
    factorization_round,
    layer_norm,
    multi_scale,
    scale_shift_relu,
)
from geoseg.inference.folding import FoldedBlock, FoldedDecoder, FoldedSegNeXt, FoldedStage
from geoseg.inference.simd import LANES
from geoseg.models.hamburger import NMF_EPS

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Features = npt.NDArray[Any]

HIDDEN_BYTES = 2 << 20
"""Hidden features that go through the MLP at a time."""

PIECES = 4
"""Most pieces of the rows that threads share; no result depends on the number of threads."""

PIECE_OPERATIONS = 1e8
"""What makes a piece worth its overhead: a block calls some ten kernels for each, which takes 0.2 ms by itself."""

T = TypeVar("T")


class Map(Protocol):
    """Results of some work for 0 … count - 1, in order, done by some threads."""

    def __call__(self, work: Callable[[int], T], count: int) -> list[T]:
        """Do it."""


class Conv:
    """A dense convolution through oneDNN, its weights laid out once for each size of its input.

    Args:
        conv: The convolution, without groups.
        dtype: float32, or bfloat16 with sums in float32.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        self.stride, self.padding = list(conv.stride), list(conv.padding)
        self.out_channels = conv.out_channels
        self._raw = conv.weight.detach().to(dtype)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self._weights: dict[tuple[int, int], Tensor] = {}

    def _weight(self, x: Tensor) -> Tensor:
        key = x.shape[2], x.shape[3]
        if key not in self._weights:
            self._weights[key] = torch.ops.mkldnn._reorder_convolution_weight(
                self._raw, self.padding, self.stride, [1, 1], 1, list(x.shape)
            )
        return self._weights[key]

    def __call__(self, x: Tensor, *, activation: str) -> Tensor:
        """The convolution of ``x`` (1, C, H, W) channels-last, then "none" or "gelu"."""
        out: Tensor = torch.ops.mkldnn._convolution_pointwise.default(
            x, self._weight(x), self.bias, self.padding, self.stride, [1, 1], 1, activation, [], "none"
        )
        return out


class Linear:
    """A 1×1 convolution of pixels (M, C) through oneDNN.

    Args:
        conv: The convolution.
        dtype: float32, or bfloat16 with sums in float32.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(conv.weight.detach().flatten(1).to(dtype))
        self._bias = None if conv.bias is None else conv.bias.detach().to(dtype)

    def __call__(self, x: Tensor, *, activation: str = "none") -> Tensor:
        """(M, K) of ``x`` (M, C), then "none" or "relu"."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self._weight, self._bias, activation, [], "")
        return out

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """The same of ``x`` times ``factor`` (M, K)."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, factor, self._weight, self._bias, "mul")
        return out

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """Add the same of ``x`` to ``total`` (M, K), in place."""
        total.copy_(torch.ops.mkldnn._linear_pointwise.binary(x, total, self._weight, self._bias, "add"))


@dataclass(frozen=True, slots=True)
class _FeatureMap:
    """Features of an image.

    Attributes:
        pixels: (H·W, C).
        height: H.
        width: W.
    """

    pixels: Tensor
    height: int
    width: int

    @classmethod
    def empty(cls, height: int, width: int, channels: int, dtype: torch.dtype) -> _FeatureMap:
        return cls(torch.empty((height * width, channels), dtype=dtype), height, width)

    def rows(self, piece: tuple[int, int]) -> Tensor:
        """Pixels of some rows: the first one, and the one after the last."""
        return self.pixels[piece[0] * self.width : piece[1] * self.width]

    def image(self) -> Tensor:
        """(1, C, H, W) channels-last, the same memory."""
        return self.pixels.view(1, self.height, self.width, -1).permute(0, 3, 1, 2)


class _Block:
    """One block's weights as the kernels take them."""

    def __init__(self, block: FoldedBlock, dtype: torch.dtype) -> None:
        self.proj_1, self.proj_2 = Linear(block.proj_1, dtype), Linear(block.proj_2, dtype)
        self.fc1, self.fc2 = Linear(block.fc1, dtype), Linear(block.fc2, dtype)
        # The strips' last biases reach conv3 only, as a constant: they are part of its own.
        conv3 = nn.Conv2d(block.conv3.in_channels, block.conv3.out_channels, 1)
        pairs = [(pair[0], pair[1]) for pair in block.strips]  # type: ignore[index]
        across = torch.stack([_bias(second) for _, second in pairs]).double().sum(0)
        conv3.weight.data.copy_(block.conv3.weight)
        conv3.bias.data.copy_(_bias(block.conv3).double() + block.conv3.weight.double().flatten(1) @ across)  # type: ignore[union-attr]
        self.conv3 = Linear(conv3, dtype)
        core: list[Floats] = [*_packed([block.conv0])]
        for first, second in pairs:
            core += _packed([first, second])
        self.core = tuple(core)
        weights, bias = _packed([block.dwconv])
        self.dw_weights, self.dw_bias = weights, bias
        self.hidden = block.fc1.out_channels


class CpuSegNeXt:
    """SegNeXt's inference form on a CPU; called as the network is.

    Args:
        folded: The network; all its channels multiples of 16.
        dtype: float32, or bfloat16: products of bfloat16 with sums in float32.
        threads: Threads for one window. 1 works in the caller's thread, which should have torch's own set to 1.

    Raises:
        ValueError: Channels that are no multiple of 16.
    """

    logits_stride = FoldedSegNeXt.logits_stride

    def __init__(self, folded: FoldedSegNeXt, *, dtype: torch.dtype = torch.float32, threads: int = 1) -> None:
        if not fits(folded):
            raise ValueError(f"channels must be multiples of {LANES}")
        self.dtype = dtype
        # torch's own threads wait for more work in a loop, and take the processors from ours: all is done in ours.
        self._helpers = threads - 1
        self._pool = _threads(self._helpers) if threads > 1 else None
        self._caller = _threads(1) if threads > 1 else None
        self._stages = [
            (
                [Conv(m, dtype) for m in stage.embed if isinstance(m, nn.Conv2d)],
                [_Block(cast(FoldedBlock, block), dtype) for block in stage.blocks],
                stage,
            )
            for stage in _stages(folded)
        ]
        self._decoder = _Decoder(folded.decoder, dtype, self._map)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Logits (N, K, ceil(H/8), ceil(W/8)) float32 of images (N, B, H, W) float32."""
        images = [image[None] for image in x]
        if self._caller is None:
            return torch.cat([self._one(image) for image in images])
        return torch.cat(list(self._caller.map(torch.inference_mode()(self._one), images)))

    def _one(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        features = []
        for embed, blocks, stage in self._stages:
            for conv in embed[:-1]:
                x = self._halved(conv, x, "gelu").image()
            y = self._halved(embed[-1], x, "none")
            self._blocks(blocks, y)
            features.append(self._normalized(y, stage))
            x = features[-1].image()
        return self._decoder(features[1:])

    def _map(self, work: Callable[[int], T], count: int) -> list[T]:
        """Results of ``work`` for 0 … count - 1, in order."""
        if self._pool is None or count == 1:
            return [work(i) for i in range(count)]
        # One message to each thread, and none for each piece: some take less time than a thread needs to wake up.
        left = iter(range(count))
        results: dict[int, T] = {}

        def take() -> None:
            for i in left:
                results[i] = work(i)

        helpers = [
            self._pool.submit(torch.inference_mode()(take))  # the mode is a thread's own
            for _ in range(min(self._helpers, count - 1))
        ]
        take()
        for helper in helpers:
            helper.result()
        return [results[i] for i in range(count)]

    def _halved(self, conv: Conv, x: Tensor, activation: str) -> _FeatureMap:
        """A 3×3 convolution of stride 2 and padding 1 of ``x`` (1, C, H, W) channels-last."""
        height, width = -(-x.shape[2] // 2), -(-x.shape[3] // 2)
        out = _FeatureMap.empty(height, width, conv.out_channels, x.dtype)
        image = out.image()
        pieces = _pieces(height)

        def work(i: int) -> None:
            start, stop = pieces[i]
            # One row of the output more on top, whose taps would reach into the padding: it is left out.
            extra = 1 if start else 0
            rows = conv(x[:, :, 2 * (start - extra) : 2 * stop], activation=activation)
            image[:, :, start:stop] = rows[:, :, extra:]

        self._map(work, len(pieces))
        return out

    def _blocks(self, blocks: Sequence[_Block], y: _FeatureMap) -> None:
        """All blocks of a stage, in place."""
        if not blocks:
            return
        pixels, channels = y.pixels.shape
        operations = 4 * pixels * channels * blocks[0].hidden  # of an MLP's products
        pieces = _pieces(y.height, next((n for n in (PIECES, 2) if operations >= n * PIECE_OPERATIONS), 1))
        projected = self._map(lambda i: _flat(blocks[0].proj_1(y.rows(pieces[i]))), len(pieces))
        scratch = tuple(_FeatureMap.empty(y.height, y.width, channels, y.pixels.dtype) for _ in range(2))
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            projected = self._block(block, y, pieces, projected, scratch, following)

    def _block(
        self,
        block: _Block,
        y: _FeatureMap,
        pieces: Sequence[tuple[int, int]],
        projected: list[Features],
        scratch: tuple[_FeatureMap, ...],
        following: _Block | None,
    ) -> list[Features]:
        """One block, in place; gives what the following one begins with, in pieces as ``projected`` is.

        A step ends where a piece needs rows or channels of another: before and after the strips, and before the MLP.
        """
        height, width, channels = y.height, y.width, y.pixels.shape[1]
        u, s = scratch
        flat_u, flat_s = _flat(u.pixels), _flat(s.pixels)
        inputs = (*projected, *[projected[0]] * (PIECES - len(pieces)))  # the kernel takes four; it reads no other
        # Two vectors of bfloat16 share a cache line: one thread does both.
        group = 1 if y.pixels.dtype == torch.float32 or channels % (2 * LANES) else 2
        groups = channels // LANES // group
        halves = [(0, height)] if groups > 1 or height < 64 else [(0, height // 2), (height // 2, height)]

        def core(i: int) -> None:
            begin, end = halves[i % len(halves)]
            first = i // len(halves) * group
            for vector in range(first, first + group):
                multi_scale(
                    inputs, pieces[0][1], flat_u, flat_s, height, width, channels, vector, begin, end, *block.core
                )

        def gate(i: int) -> tuple[Features | None, Features | None]:
            rows = y.rows(pieces[i])
            block.proj_2.add_to(rows, block.conv3.times(s.rows(pieces[i]), u.rows(pieces[i])))
            # What the neighbours' 3×3 will need of this piece, before its own MLP changes it.
            above = _flat(block.fc1(rows[:width])) if i else None
            below = _flat(block.fc1(rows[-width:])) if i + 1 < len(pieces) else None
            return above, below

        self._map(core, groups * len(halves))
        edges = self._map(gate, len(pieces))

        def rest(i: int) -> Features:
            rows = y.rows(pieces[i])
            above = edges[i - 1][1] if i else None
            below = edges[i + 1][0] if i + 1 < len(pieces) else None
            _mlp(block, rows, width, above, below)
            return projected[i] if following is None else _flat(following.proj_1(rows))

        return self._map(rest, len(pieces))

    def _normalized(self, y: _FeatureMap, stage: FoldedStage) -> _FeatureMap:
        """LayerNorm over the channels of a stage's own features."""
        channels = y.pixels.shape[1]
        out = _FeatureMap.empty(y.height, y.width, channels, y.pixels.dtype)
        pieces = _pieces(y.height)
        norm = stage.norm

        def work(i: int) -> None:
            rows = y.rows(pieces[i])
            layer_norm(
                _flat(out.rows(pieces[i])), _flat(rows), len(rows), channels,
                stage.scale.numpy(), norm.weight.numpy(), norm.bias.numpy(), norm.eps,
            )  # fmt: skip

        self._map(work, len(pieces))
        return out


def _mlp(block: _Block, y: Tensor, width: int, above: Features | None, below: Features | None) -> None:
    """Add the MLP to some rows ``y`` (rows·W, C), given the hidden features of the rows beside them, None for none."""
    height, hidden = len(y) // width, block.hidden
    row = width * hidden
    step = max(HIDDEN_BYTES // (row * y.element_size()), 2)
    zeros = np.zeros(row, dtype=_flat(y).dtype)
    before, before_at = zeros if above is None else above, 0
    after = zeros if below is None else below
    for top in range(0, height, step):
        bottom = min(top + step, height)
        x = _flat(block.fc1(y[top * width : bottom * width]))
        # The last row waits for the next piece's first one.
        first = -1 if top else 0
        last = bottom - top - (bottom < height)
        if last > first:
            out = torch.empty(((last - first) * width, hidden), dtype=y.dtype)
            depthwise_gelu(
                _flat(out), before, before_at, x, bottom - top, after, first, last, width, hidden,
                block.dw_weights, block.dw_bias,
            )  # fmt: skip
            block.fc2.add_to(y[(top + first) * width : (top + last) * width], out)
        before, before_at = x, (bottom - top - 1) * row


class _Decoder:
    """`FoldedDecoder` for one image."""

    def __init__(self, decoder: FoldedDecoder, dtype: torch.dtype, share: Map) -> None:
        self.folded, self._map = decoder, share
        self.squeeze = [Linear(conv, dtype) for conv in decoder.squeeze]  # type: ignore[arg-type]
        self.ham_in, self.align = Linear(decoder.ham_in, dtype), Linear(decoder.align, dtype)
        self.classifier = Linear(decoder.classifier, dtype)

    def __call__(self, stages: Sequence[_FeatureMap]) -> Tensor:
        large, *others = stages
        height, width = large.height, large.width
        pieces = _pieces(height)
        smaller = self._map(lambda i: _flat(self.squeeze[i + 1](others[i].pixels)), len(others))

        def squeezed(i: int) -> Tensor:
            start, stop = pieces[i]
            x = self.squeeze[0](large.rows(pieces[i]))
            for stage, of_stage in zip(smaller, others, strict=True):
                add_upsampled(
                    _flat(x), start, stop, height, width, stage, of_stage.height, of_stage.width, x.shape[1]
                )  # fmt: skip
            return x

        parts = self._map(squeezed, len(pieces))
        self._norm_relu(parts, self.folded.squeeze_norm)
        self._hamburger(parts)
        parts = self._map(lambda i: self.align(parts[i]), len(parts))
        self._norm_relu(parts, self.folded.align_norm)
        logits = torch.cat(self._map(lambda i: self.classifier(parts[i]).float(), len(parts)))
        return logits.T.reshape(1, -1, height, width)

    def _norm_relu(self, parts: Sequence[Tensor], norm: nn.GroupNorm) -> None:
        """Group norm over all parts, then ReLU, in place."""
        channels, groups = norm.num_channels, norm.num_groups
        pixels = [len(part) for part in parts]

        def moments(i: int) -> npt.NDArray[np.float64]:
            sums = np.empty((2, channels))
            channel_sums(_flat(parts[i]), pixels[i], channels, sums)
            return sums

        total = sum(self._map(moments, len(parts)))
        mean, square = np.asarray(total).reshape(2, groups, -1).sum(-1) / (sum(pixels) * channels // groups)
        rate = 1 / np.sqrt(np.maximum(square - mean**2, 0) + norm.eps)
        scale = np.repeat(rate, channels // groups) * norm.weight.double().numpy()
        shift = norm.bias.double().numpy() - np.repeat(mean, channels // groups) * scale
        scale_32, shift_32 = scale.astype(np.float32), shift.astype(np.float32)
        self._map(lambda i: scale_shift_relu(_flat(parts[i]), pixels[i], channels, scale_32, shift_32), len(parts))

    def _hamburger(self, parts: Sequence[Tensor]) -> None:
        """ReLU of the parts and their low-rank context, in place; see `FoldedDecoder.hamburger`."""
        channels, rank = parts[0].shape[1], self.folded.bases.shape[2]
        bases = self.folded.bases[0]

        def features(i: int) -> Floats:
            return _flat(self.ham_in(parts[i], activation="relu").float())

        pixels = self._map(features, len(parts))
        counts = [len(x) // channels for x in pixels]
        codes = [torch.empty(count, rank) for count in counts]

        def update(i: int, step: int) -> tuple[Tensor, Tensor]:
            """New codes of a part, and what the bases need of them: XᵀC and CᵀC."""
            product, codes_gram = torch.empty(channels, rank), torch.empty(rank, rank)
            factorization_round(
                pixels[i], codes[i].numpy().ravel(), counts[i], channels, rank, bases.numpy().ravel(),
                gram.numpy().ravel(), step == 0, np.float32(NMF_EPS),
                product.numpy().ravel(), codes_gram.numpy().ravel(),
            )  # fmt: skip
            return product, codes_gram

        steps = self.folded.steps
        for step in range(steps + 1):
            gram = bases.T @ bases
            products, grams = zip(*self._map(lambda i: update(i, step), len(parts)), strict=True)  # noqa: B023
            if step < steps:
                bases = bases * _sum(products) / (bases @ _sum(grams) + NMF_EPS)
        total = _sum([code.sum(dim=0, keepdim=True) for code in codes])
        rows, shift = self.folded.context(_sum(grams)[None], total[None], bases[None], sum(counts))
        by_channel, constant = rows[0].T.contiguous(), shift[0, 0]

        def finish(i: int) -> None:
            parts[i].add_(_linear(codes[i], by_channel, constant)).relu_()

        self._map(finish, len(parts))


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for it that oneDNN uses."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


@cache
def runs_here() -> bool:
    """Whether this torch and this processor run it: oneDNN's operations are there, and give what they should."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    conv, halving = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, stride=2, padding=1)
    with torch.inference_mode():
        x = torch.linspace(-1, 1, 16 * 24).view(1, 16, 4, 6).contiguous(memory_format=torch.channels_last)
        y = halving(x)
        wanted = conv(y) * y + conv(y)
        try:
            pixels = Conv(halving, torch.float32)(x, activation="none").permute(0, 2, 3, 1).reshape(-1, 16)
            linear = Linear(conv, torch.float32)
            found = linear.times(pixels, pixels)
            linear.add_to(found, pixels)
        except (AttributeError, RuntimeError) as error:
            log.info("oneDNN's fused operations do not run here: %s", error)
            return False
    return torch.allclose(found, wanted.permute(0, 2, 3, 1).reshape(-1, 16), rtol=1e-4, atol=1e-5)


def fits(folded: FoldedSegNeXt) -> bool:
    """Whether every width that the compiled passes see is a multiple of a vector."""
    blocks = [cast(FoldedBlock, block) for stage in _stages(folded) for block in stage.blocks]
    convs = [folded.decoder.ham_in]
    if folded.decoder.bases.shape[2] % LANES or any(stage.scale.numel() % LANES for stage in _stages(folded)):
        return False
    convs += [conv for block in blocks for conv in (block.proj_1, block.fc1)]
    return all(conv.out_channels % LANES == 0 for conv in convs)


def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "geoseg-forward", initializer=torch.set_num_threads, initargs=(1,))


def _stages(folded: FoldedSegNeXt) -> list[FoldedStage]:
    return cast(list[FoldedStage], list(folded.stages))


def _pieces(height: int, count: int = PIECES) -> list[tuple[int, int]]:
    """First row and row after the last of up to so many pieces, all but the last ones of one height."""
    rows = -(-height // count)
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


def _bias(conv: Any) -> Tensor:
    out: Tensor = conv.bias.detach()
    return out


def _packed(convs: Sequence[Any]) -> tuple[Floats, Floats]:
    """Weights (C / 16, [convolutions,] taps, 16) of depthwise convolutions, and the first one's bias (C / 16, 16)."""
    channels = convs[0].out_channels
    weights = [conv.weight.detach().reshape(channels // LANES, LANES, -1).transpose(1, 2) for conv in convs]
    stacked = torch.stack(weights, dim=1).squeeze(1).contiguous()
    return stacked.numpy(), _bias(convs[0]).reshape(-1, LANES).contiguous().numpy()


def _flat(x: Tensor) -> npt.NDArray[Any]:
    """The memory of features (M, C) as an array (M·C); bfloat16 as uint16."""
    if x.dtype == torch.bfloat16:
        return x.view(-1).view(torch.int16).numpy().view(np.uint16)
    out: npt.NDArray[Any] = x.view(-1).numpy()
    return out


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` (M, K) times ``weight`` (N, K) transposed, by oneDNN."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "none")
    return out


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """Sum in the order given."""
    total, *rest = parts
    total = total.clone()
    for part in rest:
        total += part
    return total
