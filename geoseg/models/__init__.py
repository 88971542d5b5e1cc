"""Pixels to logits. Importing this package registers MSCAN in timm and SegNeXt in SMP's architecture mapping."""

from __future__ import annotations

import segmentation_models_pytorch as smp

from geoseg.models import mscan
from geoseg.models.mscan import MSCAN
from geoseg.models.official import convert_official_state_dict
from geoseg.models.segnext import RECIPES, SegNeXt

smp.MODEL_ARCHITECTURES_MAPPING["segnext"] = SegNeXt
# from_pretrained looks the class up by its name in SMP's own namespace
smp.SegNeXt = SegNeXt

__all__ = ["MSCAN", "RECIPES", "SegNeXt", "convert_official_state_dict", "mscan"]
