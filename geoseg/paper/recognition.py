"""What network another program's checkpoint is for, and that network with its weights.

Three layouts are known: ImageNet checkpoints of MSCAN, segmentation checkpoints of the official repository
(mmsegmentation 0.x), and those of mmsegmentation 1.x. The shapes give the dimensions. Then all names and shapes are
compared, in the file's own spelling; only the bases of the factorization, which most files lack, may be missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from geoseg.classes import Color
from geoseg.errors import ConfigError, ModelError
from geoseg.models.checkpoints import (
    convert_official_state_dict,
    encoder_key,
    is_official_spelling,
    mismatch,
    official_key,
    without_wrappers,
)
from geoseg.models.mscan import MLP_RATIOS, MSCAN, SIZES
from geoseg.models.segnext import RECIPES, SegNeXt
from geoseg.options import AnyPath
from geoseg.words import count

BASES = "decode_head.hamburger.ham.bases"
OWN_BASES = "decoder.hamburger.ham.bases"
NORM_GROUPS = 32

_MARK = "attn.spatial_gating_unit.conv0_1."
"""Only MSCAN has strips of this name; its predecessor VAN only has the module around them."""

_STAGES = (1, 2, 3, 4)

_OPENMMLAB_RANK = 16
"""mmsegmentation's B and L inherit it from T's configuration; the official repository's ranks are in `RECIPES`."""

WHOLE_FILE = "the checkpoint of SegNeXt is incomplete; copy or download it again"

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Design:
    """What the names and shapes of a state dict say about its network."""

    embed_dims: tuple[int, ...]  # channels of the four stages
    depths: tuple[int, ...]  # blocks of the four stages
    mlp_ratios: tuple[float, ...]  # hidden width of the MLPs relative to the stage's channels
    official: bool  # whether names are those of the official repository rather than of mmsegmentation 1.x
    classes: int  # of the segmentation, or of the ImageNet head (0 without one)
    width: int | None = None  # of the decoder; None for an ImageNet checkpoint
    rank: int | None = None  # of the factorization, if the file has its bases

    @property
    def size(self) -> str | None:
        """tiny, small, base or large; None for a network that is not the paper's."""
        known = self._known_encoder
        if known is None or self.width not in (None, RECIPES[f"tu-{known}"].decoder_channels):
            return None
        return known.removeprefix("mscan_")

    @property
    def name(self) -> str:
        """SegNeXt-T, MSCAN-B, …, or the dimensions of a network that is not the paper's."""
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
        return self._known_encoder or "mscan_tiny"

    @property
    def encoder_options(self) -> dict[str, Any]:
        """Keyword arguments for timm beside the name; none for the paper's sizes."""
        return {} if self._known_encoder is not None else self.dimensions

    @property
    def dimensions(self) -> dict[str, Any]:
        """The encoder's dimensions as keyword arguments of `MSCAN`."""
        return {"embed_dims": self.embed_dims, "depths": self.depths, "mlp_ratios": self.mlp_ratios}

    @property
    def _known_encoder(self) -> str | None:
        dimensions = (self.embed_dims, self.depths), self.mlp_ratios
        return next((name for name, size in SIZES.items() if (size, MLP_RATIOS) == dimensions), None)


def recognize(tensors: Mapping[str, Tensor], source: AnyPath) -> tuple[Design, dict[str, Tensor]]:
    """The network that a state dict is for, and the state dict without ``module.`` or ``model.`` before every name.

    A `ModelError` names the ``source`` if it is another network's, for other than three bands, or incomplete.
    """
    tensors = without_wrappers(tensors)
    segments = any(key.startswith("backbone.") for key in tensors)
    start = "backbone." if segments else ""
    if not any(key.startswith(f"{start}block") and _MARK in key for key in tensors):
        raise ModelError(
            f"{source} is the checkpoint of another network: no tensor has a name of SegNeXt's, "
            f"the first is {next(iter(tensors))!r:.120}",
            hint="for checkpoints of SegNeXt: geoseg weights list",
        )

    def dimension(key: str, axis: int = 0) -> int:
        if key not in tensors or tensors[key].ndim <= axis:
            found = f"lacks {key}" if key not in tensors else f"has {key} of shape {tuple(tensors[key].shape)}"
            raise ModelError(f"{source} {found}, which gives the dimensions", hint=WHOLE_FILE)
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


def build_encoder(design: Design, tensors: Mapping[str, Tensor], source: AnyPath) -> MSCAN:
    """MSCAN with the weights of an ImageNet checkpoint, in evaluation mode; arguments as `recognize` returns them.

    A `ModelError` names the first tensor that is missing, unexpected, or of another shape.
    """
    with torch.device("meta"):
        network = MSCAN(num_classes=design.classes, **design.dimensions)
    _compare(design, tensors, network, source)
    return _filled(network, {encoder_key(key): value for key, value in tensors.items()})


def build_segnext(
    design: Design, tensors: Mapping[str, Tensor], source: AnyPath, *, rank: int, norm_groups: int = NORM_GROUPS
) -> SegNeXt:
    """SegNeXt with the weights of a segmentation checkpoint, in evaluation mode; arguments as `recognize` returns them.

    The file's bases are used if they have the given ``rank`` (see `find_rank`), else those of a fresh network. No
    tensor shows the groups of the decoder's norms; all published files have 32.

    Raises:
        ModelError: A tensor is missing, unexpected, or of another shape; the first is named.
        ConfigError: The groups do not divide the decoder's width.
    """
    assert design.width is not None, "an ImageNet checkpoint has no decoder"
    if design.width % norm_groups:
        raise ConfigError(
            f"the decoder of {source} has {design.width} channels, which {norm_groups} groups do not divide",
            hint="use the groups that it was trained with: --norm-groups 8",
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


def find_rank(design: Design, source: AnyPath, *, asked: int | None = None) -> tuple[int, str]:
    """Rank of the factorization of a segmentation checkpoint, and the reason for it; ``asked`` is the user's choice.

    No weight depends on it, and only files with bases show it. The official repository trains B and L with 64,
    mmsegmentation 1.x with 16; T and S have 16 in both.

    Raises:
        ConfigError: A rank below 1, or none is known because the network is not the paper's.
    """
    if asked is not None:
        if asked < 1:
            raise ConfigError(f"--nmf-rank {asked} is below 1", hint="--nmf-rank 16")
        other = f"; the file's bases of rank {design.rank} are left out" if design.rank not in (None, asked) else ""
        return asked, f"as requested{other}"
    if design.rank is not None:
        return design.rank, "that of the file's bases"
    if design.size is None:
        raise ConfigError(
            f"{source} is a {design.name}, and does not show the rank of its factorization",
            hint="give the rank it was trained with (MD_R): --nmf-rank 16",
        )
    rank = RECIPES[f"tu-{design.encoder}"].nmf_rank
    if rank == _OPENMMLAB_RANK:
        return rank, "that of every T and S"
    if design.official:
        return rank, "that of the official repository's B and L, whose names the file has"
    return _OPENMMLAB_RANK, "that of mmsegmentation 1.x, whose names the file has"


def class_notes(notes: object) -> tuple[tuple[str, ...] | None, tuple[Color, ...] | None]:
    """Class names, and their colours in [0, 255], from the notes of mmsegmentation 0.x or 1.x, if they are complete."""
    if not isinstance(notes, Mapping):
        return None, None
    inner = notes.get("dataset_meta")
    sources = [notes, *([inner] if isinstance(inner, Mapping) else [])]
    names, palette = (
        next((value for s in sources for key in keys if isinstance(value := s.get(key), list | tuple)), None)
        for keys in (("CLASSES", "classes"), ("PALETTE", "palette"))
    )
    if not names or not all(isinstance(name, str) and name.strip() for name in names) or len(set(names)) < len(names):
        return None, None
    if palette is None or len(palette) != len(names) or not all(_is_color(color) for color in palette):
        return tuple(names), None
    return tuple(names), tuple((red, green, blue) for red, green, blue in palette)


def _depth(tensors: Mapping[str, Tensor], block: str) -> int:
    """Blocks of a stage: one more than the highest number after ``block``."""
    numbers = {key.removeprefix(block).partition(".")[0] for key in tensors if key.startswith(block)}
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=0)


def _compare(design: Design, tensors: Mapping[str, Tensor], network: nn.Module, source: AnyPath) -> None:
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
        raise ModelError(f"{source} looks like {design.name}, but it {problem}", hint=WHOLE_FILE)


def _filled(network: N, state: Mapping[str, Tensor]) -> N:
    """A network of the meta device with copies of the tensors, in the network's dtypes."""
    dtypes = {key: value.dtype for key, value in network.state_dict().items()}
    own = {key: value.to(dtypes[key], copy=True).contiguous() for key, value in state.items()}
    network.load_state_dict(own, strict=True, assign=True)
    return network.eval()


def _is_color(color: object) -> bool:
    return (
        isinstance(color, list | tuple)
        and len(color) == 3
        and all(isinstance(channel, int) and 0 <= channel <= 255 for channel in color)
    )
