"""Key names of the official SegNeXt checkpoints, and of mmsegmentation's, to ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

ENCODER_PREFIX = "encoder.model.model."


def convert_official_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of `geoseg.models.SegNeXt` from that of an official segmentation model.

    The official one (mmsegmentation 0.x) and mmsegmentation 1.x differ in the name of the MLP's depthwise
    convolution only. Neither stores bases of the factorization: a strict load needs ``decoder.hamburger.ham.bases``
    added, from the fresh model or from elsewhere.

    Args:
        state_dict: Tensors under ``backbone.`` and ``decode_head.``, of any variant.

    Raises:
        KeyError: A key under neither prefix.
    """
    converted = {}
    for key, value in state_dict.items():
        if key.startswith("backbone."):
            name = key.removeprefix("backbone.").replace("mlp.dwconv.dwconv.", "mlp.dwconv.")
            converted[ENCODER_PREFIX + name] = value
        elif key.startswith("decode_head.conv_seg."):
            converted["segmentation_head." + key.removeprefix("decode_head.conv_seg.")] = value
        elif key.startswith("decode_head."):
            converted["decoder." + key.removeprefix("decode_head.")] = value
        else:
            raise KeyError(f"{key!r} is not a key of an official SegNeXt segmentation checkpoint")
    return converted
