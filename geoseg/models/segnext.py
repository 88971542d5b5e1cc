"""SegNeXt as an SMP model: MSCAN (or any other encoder), the light Hamburger decoder, logits at stride 8.

Paper: Guo et al., NeurIPS 2022, arXiv 2209.08575. Original code Apache-2.0; independent implementation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from segmentation_models_pytorch.base import ClassificationHead, SegmentationModel
from segmentation_models_pytorch.base.hub_mixin import supports_config_loading
from segmentation_models_pytorch.base.modules import Activation
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from geoseg.models.studies import build_decoder


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the paper chooses for each encoder."""

    decoder_channels: int
    nmf_rank: int
    drop_path_rate: float | None


RECIPES: dict[str, Recipe] = {
    "tu-mscan_tiny": Recipe(256, 16, 0.1),
    "tu-mscan_small": Recipe(256, 16, 0.1),
    "tu-mscan_base": Recipe(512, 64, 0.1),
    "tu-mscan_large": Recipe(1024, 64, 0.3),
}
"""SegNeXt-T, S, B and L as the official repository trains them on ADE20K. mmsegmentation's B and L have rank 16."""


class SegNeXt(SegmentationModel):  # type: ignore[misc]
    """Image (N, B, H, W) of any size to logits (N, K, H, W).

    Args:
        encoder_name: SMP encoder; ``tu-mscan_tiny``, ``…small``, ``…base`` and ``…large`` are SegNeXt-T, S, B, L.
        encoder_depth, encoder_weights, in_channels, classes, activation, aux_params: As of every SMP model, whose
            interface makes this signature so long. The depth must be 5, else a ValueError; weights are timm's, or None.
        decoder_channels: Width of the decoder; None for the paper's (256 for encoders of others).
        nmf_rank: Rank of the factorization; None for the paper's (16 for encoders of others).
        drop_path_rate: Stochastic depth; None for the paper's (not passed to encoders of others).
        norm_groups: Groups of the decoder's group norms.
        decoder_dropout: Share of the decoded channels that a training step drops, in [0, 1).
        decoder, stage1, context: Studies, see `geoseg.models.studies.build_decoder`, also for its ValueErrors.
        **encoder_kwargs: Passed to the encoder; for studies see `geoseg.models.mscan.MultiScaleGate`.

    Attributes:
        logits_stride: Pixels per logit of `forward_logits`: 8, in studies also 4 or 32.

    References:
        Table 2 of the paper. The defaults are its final design; parameter counts equal the official ones.
    """

    requires_divisible_input_shape = False

    @supports_config_loading  # type: ignore[untyped-decorator]
    def __init__(
        self,
        encoder_name: str = "tu-mscan_tiny",
        encoder_depth: int = 5,
        encoder_weights: str | None = None,
        in_channels: int = 3,
        classes: int = 1,
        activation: str | None = None,
        aux_params: Mapping[str, Any] | None = None,
        decoder_channels: int | None = None,
        nmf_rank: int | None = None,
        drop_path_rate: float | None = None,
        norm_groups: int = 32,
        decoder_dropout: float = 0.1,
        decoder: str = "ham",
        stage1: bool = False,
        context: str = "ham",
        **encoder_kwargs: Any,
    ) -> None:
        super().__init__()
        if encoder_depth != 5:
            raise ValueError(f"SegNeXt joins strides 8, 16 and 32, so encoder_depth must be 5, found {encoder_depth}")
        recipe = RECIPES.get(encoder_name, Recipe(256, 16, None))
        if drop_path_rate is None:
            drop_path_rate = recipe.drop_path_rate
        if drop_path_rate is not None:
            encoder_kwargs = {"drop_path_rate": drop_path_rate, **encoder_kwargs}
        self.encoder = get_encoder(
            encoder_name, in_channels=in_channels, depth=encoder_depth, weights=encoder_weights, **encoder_kwargs
        )
        width = decoder_channels or recipe.decoder_channels
        self.decoder: Any = build_decoder(
            decoder,
            self.encoder.out_channels,
            context=context,
            stage1=stage1,
            channels=width,
            rank=nmf_rank or recipe.nmf_rank,
            groups=norm_groups,
        )
        self.logits_stride = self.decoder.stride
        self.dropout = nn.Dropout2d(decoder_dropout)
        self.segmentation_head = nn.Conv2d(width, classes, 1)
        for parameter, std in zip(self.segmentation_head.parameters(), (0.01, 0.0), strict=True):
            nn.init.normal_(parameter, std=std)
        self.activation = Activation(activation)
        self.classification_head = (
            ClassificationHead(in_channels=self.encoder.out_channels[-1], **aux_params) if aux_params else None
        )
        self.name = f"segnext-{encoder_name}"

    def forward_logits(self, x: Tensor) -> Tensor:
        """Logits (N, K, ceil(H/s), ceil(W/s)) at ``logits_stride`` s, at which overlapping windows are blended."""
        return self._head(self.encoder(x))

    def _head(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.segmentation_head(self.dropout(self.decoder(features)))
        return logits

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (N, K, H, W), upsampled with ``align_corners=False``; with ``aux_params`` also scores of the image."""
        features = self.encoder(x)
        logits = F.interpolate(self._head(features), size=x.shape[2:], mode="bilinear", align_corners=False)
        masks: Tensor = self.activation(logits)
        if self.classification_head is not None:
            return masks, self.classification_head(features[-1])
        return masks
