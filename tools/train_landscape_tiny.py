"""Train the shipped model landscape-tiny on generated landscapes, from random weights.

python tools/train_landscape_tiny.py runs/landscape-tiny [ITERATIONS]
"""

from __future__ import annotations

import sys
from pathlib import Path

from geoseg.programs.demo import training_config
from geoseg.programs.train import train

ITERATIONS = 700

if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    iterations = int(sys.argv[2]) if len(sys.argv) == 3 else ITERATIONS
    print(train(training_config(Path(sys.argv[1]), iterations=iterations), overwrite=True, progress=True))
