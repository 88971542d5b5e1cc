"""Which network a foreign checkpoint is of, and that network with its weights in place.

Three layouts are known: ImageNet classification checkpoints of MSCAN, segmentation checkpoints of the official
repository (mmsegmentation 0.x), and those of mmsegmentation 1.x. Dimensions are read off the shapes. Names and shapes
are then compared one by one, in the file's own spelling: nothing is left out, and nothing filled in but the bases of
the factorization, which most files lack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from geoseg.errors import ConfigError, ModelError
from geoseg.models.mscan import MSCAN
from geoseg.models.official import (
    convert_official_state_dict,
    encoder_key,
    is_official_spelling,
    mismatch,
    official_key,
    without_wrappers,
)
from geoseg.models.segnext import RECIPES, SegNeXt
from geoseg.words import count

BASES = "decode_head.hamburger.ham.bases"
OWN_BASES = "decoder.hamburger.ham.bases"
NORM_GROUPS = 32

_MARK = "attn.spatial_gating_unit.conv0_1."
"""Only MSCAN has strips of this name; VAN, its predecessor, has the module around them."""

_STAGES = (1, 2, 3, 4)
_RATIOS = (8, 8, 4, 4)
_SIZES: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {
    ((32, 64, 160, 256), (3, 3, 5, 2)): "tiny",
    ((64, 128, 320, 512), (2, 2, 4, 2)): "small",
    ((64, 128, 320, 512), (3, 3, 12, 3)): "base",
    ((64, 128, 320, 512), (3, 5, 27, 3)): "large",
}
"""Channels and depths of the paper's Table 2."""

_OPENMMLAB_RANK = 16
"""mmsegmentation's B and L take it over from T's configuration; the official repository's ranks are in `RECIPES`."""

WHOLE_FILE = "it is no whole checkpoint of SegNeXt; copy or download it again"

Source = str | PathLike[str]
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Design:
    """What the names and shapes of a state dict tell of its network.

    Attributes:
        embed_dims: Channels of the four stages.
        depths: Blocks of the four stages.
        mlp_ratios: Hidden width of the MLPs over the stage's channels.
        official: Names as the official repository spells them, not as mmsegmentation 1.x does.
        classes: Classes of the segmentation, or of the ImageNet head (0 where there is none).
        width: Width of the decoder; None for an ImageNet checkpoint.
        rank: Rank of the factorization, where the file has its bases.
    """

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratios: tuple[float, ...]
    official: bool
    classes: int
    width: int | None = None
    rank: int | None = None

    @property
    def size(self) -> str | None:
        """tiny, small, base or large; None for a network that is not the paper's."""
        size = self._encoder_size
        if size is not None and self.width not in (None, RECIPES[f"tu-mscan_{size}"].decoder_channels):
            return None
        return size

    @property
    def name(self) -> str:
        """SegNeXt-T, MSCAN-B, …; for a network that is not the paper's its dimensions."""
        family = "MSCAN" if self.width is None else "SegNeXt"
        if self.size is not None:
            return f"{family}-{self.size[0].upper()}"
        decoder = "" if self.width is None else f", decoder {self.width}"
        channels, depths = (" ".join(map(str, values)) for values in (self.embed_dims, self.depths))
        return f"{family} of channels {channels}, depths {depths}{decoder}"

    @property
    def layout(self) -> str:
        """Kind of the checkpoint and whose names its tensors have."""
        kind = "ImageNet" if self.width is None else "segmentation"
        return f"{kind} checkpoint, names of {'the official repository' if self.official else 'mmsegmentation 1.x'}"

    @property
    def encoder(self) -> str:
        """timm's name of the encoder, to be built with `encoder_options`."""
        return f"mscan_{self._encoder_size or 'tiny'}"

    @property
    def encoder_options(self) -> dict[str, Any]:
        """What timm must be told beside the name: nothing for the paper's sizes."""
        if self._encoder_size is not None:
            return {}
        return {"embed_dims": self.embed_dims, "depths": self.depths, "mlp_ratios": self.mlp_ratios}

    @property
    def _encoder_size(self) -> str | None:
        return _SIZES.get((self.embed_dims, self.depths)) if self.mlp_ratios == _RATIOS else None


def recognize(tensors: Mapping[str, Tensor], source: Source) -> tuple[Design, dict[str, Tensor]]:
    """The network that a state dict is of, and the state dict without what wrappers put before its names.

    Args:
        tensors: State dict in one of the three layouts; ``module.`` or ``model.`` before every name is taken off.
        source: Named in errors.

    Raises:
        ModelError: The state dict of another network, of other imagery than three bands, or one that lacks a tensor
            of which the dimensions are read.
    """
    tensors = without_wrappers(tensors)
    segments = any(key.startswith("backbone.") for key in tensors)
    start = "backbone." if segments else ""
    if not any(key.startswith(f"{start}block") and _MARK in key for key in tensors):
        raise ModelError(
            f"{source} is the checkpoint of another network: no tensor has a name of SegNeXt's, "
            f"the first is {next(iter(tensors))!r:.120}",
            hint="see where to get SegNeXt's: geoseg weights list",
        )

    def dimension(key: str, axis: int = 0) -> int:
        if key not in tensors or tensors[key].ndim <= axis:
            found = f"lacks {key}" if key not in tensors else f"has {key} of shape {tuple(tensors[key].shape)}"
            raise ModelError(f"{source} {found}, which tells the dimensions", hint=WHOLE_FILE)
        return int(tensors[key].shape[axis])

    bands = dimension(f"{start}patch_embed1.proj.0.weight", axis=1)
    if bands != 3:
        raise ModelError(
            f"{source} takes {count(bands, 'band')}, and does not say which",
            hint="only checkpoints for red, green and blue can be imported",
        )
    stems = ("patch_embed1.proj.3", "patch_embed2.proj", "patch_embed3.proj", "patch_embed4.proj")
    dims = tuple(dimension(f"{start}{stem}.weight") for stem in stems)
    hidden = [dimension(f"{start}block{i}.0.mlp.fc1.weight") for i in _STAGES]
    width, rank = None, None
    if segments:
        classes, width = dimension("decode_head.conv_seg.weight"), dimension("decode_head.squeeze.conv.weight")
        rank = dimension(BASES, axis=2) if BASES in tensors else None
    else:
        classes = dimension("head.weight") if any(key.startswith("head.") for key in tensors) else 0
    design = Design(
        embed_dims=dims,
        depths=tuple(_depth(tensors, f"{start}block{i}.") for i in _STAGES),
        mlp_ratios=tuple(h // c if h % c == 0 else h / c for h, c in zip(hidden, dims, strict=True)),
        official=is_official_spelling(tensors),
        classes=classes,
        width=width,
        rank=rank,
    )
    return design, tensors


def build_encoder(design: Design, tensors: Mapping[str, Tensor], source: Source) -> MSCAN:
    """MSCAN with the weights of an ImageNet checkpoint, in evaluation mode.

    Args:
        design: Network and state dict as `recognize` gives them.
        tensors: See ``design``.
        source: Named in errors.

    Raises:
        ModelError: A tensor that is missing, of another shape, or one too many; the first is named.
    """
    with torch.device("meta"):
        network = MSCAN(
            num_classes=design.classes,
            embed_dims=design.embed_dims,
            depths=design.depths,
            mlp_ratios=design.mlp_ratios,
        )
    _compare(design, tensors, network, source)
    return _filled(network, {encoder_key(key): value for key, value in tensors.items()})


def build_segnext(
    design: Design, tensors: Mapping[str, Tensor], source: Source, *, rank: int, norm_groups: int = NORM_GROUPS
) -> SegNeXt:
    """SegNeXt with the weights of a segmentation checkpoint, in evaluation mode.

    Bases that the file has are used where they are of the rank asked for; else the network has those of a fresh one.

    Args:
        design: Network and state dict as `recognize` gives them.
        tensors: See ``design``.
        source: Named in errors.
        rank: Rank of the factorization; see `find_rank`.
        norm_groups: Groups of the decoder's group norms; no tensor tells them, all published files have 32.

    Raises:
        ModelError: A tensor that is missing, of another shape, or one too many; the first is named.
        ConfigError: A width of the decoder that the groups do not divide.
    """
    if design.width is None:
        raise ValueError("an ImageNet checkpoint has no decoder")
    if design.width % norm_groups:
        raise ConfigError(
            f"the decoder of {source} has {design.width} channels, which {norm_groups} groups do not divide",
            hint="give the groups that it was trained with: --norm-groups 8",
        )
    tensors = dict(tensors)
    if design.rank != rank:
        tensors.pop(BASES, None)
    with torch.device("meta"):
        network: SegNeXt = SegNeXt(
            encoder_name=f"tu-{design.encoder}",
            classes=design.classes,
            decoder_channels=design.width,
            nmf_rank=rank,
            norm_groups=norm_groups,
            **design.encoder_options,
        )
    _compare(design, tensors, network, source)
    return _filled(network, {OWN_BASES: network.state_dict()[OWN_BASES], **convert_official_state_dict(tensors)})


def find_rank(design: Design, source: Source, *, asked: int | None = None) -> tuple[int, str]:
    """Rank of the factorization of a segmentation checkpoint, and why it is that.

    No weight depends on it. The official repository trains B and L with 64, mmsegmentation 1.x with 16, T and S have
    16 in both; a file with bases shows it.

    Args:
        design: Network as `recognize` gives it.
        source: Named in errors.
        asked: What the user says; goes before everything else.

    Raises:
        ConfigError: A rank below 1, or one of a network that is not the paper's and was not asked for.
    """
    if asked is not None:
        if asked < 1:
            raise ConfigError(f"--nmf-rank {asked} is below 1", hint="--nmf-rank 16")
        other = f"; the file's bases of rank {design.rank} are left out" if design.rank not in (None, asked) else ""
        return asked, f"as asked for{other}"
    if design.rank is not None:
        return design.rank, "that of the file's bases"
    if design.size is None:
        raise ConfigError(
            f"{source} is a {design.name}, and does not tell the rank of its factorization",
            hint="give the rank it was trained with (MD_R): --nmf-rank 16",
        )
    rank = RECIPES[f"tu-mscan_{design.size}"].nmf_rank
    if rank == _OPENMMLAB_RANK:
        return rank, "that of every T and S"
    if design.official:
        return rank, "that of the official repository's B and L, whose names the file has"
    return _OPENMMLAB_RANK, "that of mmsegmentation 1.x, whose names the file has"


def _depth(tensors: Mapping[str, Tensor], block: str) -> int:
    """Blocks of a stage: one more than the highest number after ``block``."""
    numbers = {key.removeprefix(block).partition(".")[0] for key in tensors if key.startswith(block)}
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=0)


def _compare(design: Design, tensors: Mapping[str, Tensor], network: nn.Module, source: Source) -> None:
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    state = network.state_dict()
    wanted = {official_key(key, official=design.official): tuple(value.shape) for key, value in state.items()}
    if BASES not in found:
        wanted.pop(BASES, None)
    problem = mismatch(found, wanted)
    whole = [key for key, value in tensors.items() if not value.is_floating_point() and "num_batches" not in key]
    if problem is None and whole:
        problem = f"has {whole[0]} of {str(tensors[whole[0]].dtype).removeprefix('torch.')}"
    if problem is not None:
        raise ModelError(f"{source} is not the {design.name} that it looks like: it {problem}", hint=WHOLE_FILE)


def _filled(network: N, state: Mapping[str, Tensor]) -> N:
    """A network without storage, with copies of tensors in their place, in its own dtypes."""
    dtypes = {key: value.dtype for key, value in network.state_dict().items()}
    own = {key: value.to(dtypes[key], copy=True).contiguous() for key, value in state.items()}
    network.load_state_dict(own, strict=True, assign=True)
    return network.eval()
