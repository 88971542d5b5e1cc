"""Pixels to logits. Importing this package registers MSCAN in timm and SegNeXt in SMP's architecture mapping."""

from typing import Any

import segmentation_models_pytorch as smp

from geoseg.models import mscan
from geoseg.models.checkpoints import convert_official_state_dict
from geoseg.models.mscan import MSCAN
from geoseg.models.segnext import RECIPES, SegNeXt

smp.MODEL_ARCHITECTURES_MAPPING["segnext"] = SegNeXt
# from_pretrained looks the class up by its name in SMP's own namespace
smp.SegNeXt = SegNeXt

__all__ = ["MSCAN", "RECIPES", "SegNeXt", "convert_official_state_dict", "create_model", "mscan"]


def create_model(arch: str = "segnext", *args: Any, **options: Any) -> smp.base.SegmentationModel:
    """``smp.create_model`` with SegNeXt among its architectures and MSCAN among its encoders.

    Arguments are SMP's: ``encoder_name="tu-mscan_tiny"``, ``classes=5``, ``in_channels=4``. A KeyError for an unknown
    architecture.
    """
    return smp.create_model(arch, *args, **options)
