"""Small models with random weights, as folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import geoseg.models  # noqa: F401  registers SegNeXt
from geoseg.contract import DEFAULT_SCALE, Band, ClassEntry, Contract, DType, WindowSettings
from geoseg.network.folding import logits_of
from geoseg.network.model_folder import Normalize, build_network, save_model
from support.networks import FEW_LAYERS, TINY


def contract(bands: int = 3, classes: int = 3, **changes: Any) -> Contract:
    values = {
        "name": "tiny",
        "bands": tuple(Band(name=f"b{i}", mean=0.4 + 0.05 * i, std=0.2 + 0.02 * i) for i in range(bands)),
        "dtype": "uint8",
        "scale": 1 / 255,
        "classes": tuple(ClassEntry(name=f"c{i}", color=f"#{i:02x}0000") for i in range(classes)),
    }
    return Contract(**(values | changes))


SCALE = {"uint8": 1 / 255, "uint16": 1 / 65535, "int16": 1 / 32767, "float32": 1.0}


def make_model(
    folder: Path, *, bands: int = 3, dtype: str = "uint8", architecture: str = "segnext", **changes: Any
) -> Path:
    """A small network with random weights whose four classes all occur on the made scenes, and its contract."""
    torch.manual_seed(1)
    if architecture == "segnext":
        network = build_network(
            "segnext", "tu-mscan_tiny", encoder_weights=None, in_channels=bands, classes=4, drop_path_rate=0.0, **TINY
        )
        head: Any = network.segmentation_head
        nn.init.normal_(head.weight)
    else:
        options = FEW_LAYERS if architecture == "unet" else {}
        network = build_network(architecture, "resnet18", encoder_weights=None, in_channels=bands, classes=4, **options)
    for module in network.modules():  # layers that scale by 0.01 would leave nothing but the stem
        for name, parameter in module.named_parameters(recurse=False):
            if name.startswith("layer_scale"):
                nn.init.constant_(parameter, 0.5)
    values: dict[str, Any] = {
        "name": "tiny",
        "bands": tuple(Band(name=f"b{i}", mean=0.5, std=0.2) for i in range(bands)),
        "dtype": dtype,
        "scale": SCALE[dtype],
        "gsd_m": 0.5,
        "classes": tuple(ClassEntry(name=f"class {i}", color=f"#{60 * i:02x}8000") for i in range(4)),
        "window": WindowSettings(size=64, overlap=32),
    }
    save_model(folder, network, Contract(**(values | changes)))
    return folder


CLASSES = (("grass", "#55aa33"), ("roof", "#cc3311"), ("road", "#777777"))
BANDS = ("red", "green", "blue", "nir")


def write_model(
    folder: Path,
    *,
    bands: int = 3,
    dtype: DType = "uint8",
    nodata: float | None = None,
    gsd_m: float | None = None,
    seed: int = 0,
    architecture: Literal["segnext", "unet"] = "segnext",
    options: Mapping[str, Any] = TINY,
) -> Path:
    """A model folder with random weights, balanced so that each class is about as likely as the others."""
    torch.manual_seed(seed)
    encoder = "tu-mscan_tiny" if architecture == "segnext" else "resnet18"
    network = build_network(
        architecture, encoder, encoder_weights=None, in_channels=bands, classes=len(CLASSES), **options
    ).eval()
    head: Any = network.segmentation_head if architecture == "segnext" else network.segmentation_head[0]  # type: ignore[index]
    scale = DEFAULT_SCALE[dtype]
    contract = Contract(
        name="random",
        bands=tuple(Band(name=name, mean=0.5 if dtype != "uint16" else 3.3, std=0.2) for name in BANDS[:bands]),
        dtype=dtype,
        scale=scale,
        nodata="file" if nodata is None else nodata,
        gsd_m=gsd_m,
        classes=tuple(ClassEntry(name=name, color=color) for name, color in CLASSES),
        window=WindowSettings(size=64, overlap=32),
    )
    with torch.inference_mode():
        shades = torch.nn.functional.interpolate(torch.rand(8, bands, 12, 12), size=(96, 96))
        pixels = Normalize(contract)(shades / scale * (1.0 if dtype != "uint16" else 6.6))
        logits = logits_of(network, pixels)
        head.weight /= logits.std()
        head.bias -= logits.mean((0, 2, 3)) / logits.std()
    save_model(folder, network, contract)
    return folder
