"""Put a trained model into the package: float16 weights and the model card.

python tools/ship_model.py runs/buildings-tiny/model docs/cards/buildings-tiny.md
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from geoseg.contract import SHIPPED
from geoseg.network.model_folder import load_model, save_model


def main(folder: str, card: str) -> None:
    """Write ``geoseg/weights/NAME`` from a model folder and its card."""
    trained = load_model(folder)
    target = SHIPPED / trained.contract.name
    save_model(target, trained.network, trained.contract, half=True)
    shutil.copy(card, target / "README.md")
    print(target, f"{sum(f.stat().st_size for f in target.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 3 or not Path(sys.argv[2]).is_file():
        sys.exit(__doc__)
    main(*sys.argv[1:])
