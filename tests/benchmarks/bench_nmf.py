"""How many rounds of the factorization matter, and how much its first bases do.

    python tests/benchmarks/bench_nmf.py

Share of pixels whose class differs from that of the seven rounds of the official code, on generated landscapes with the
shipped model landscape-tiny, and accuracy against their exact truth. The table of `docs/nmf.md`.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.inference.folding import FoldedSegNeXt, deployed
from geoseg.landscape import Landscape
from geoseg.model_folder import Normalize, load_model
from geoseg.windows import Window

STEPS = (0, 1, 2, 3, 4, 5, 6, 7, 10, 20)
SEEDS = (1, 2, 3)


@torch.inference_mode()
def class_map(network: FoldedSegNeXt, inputs: list[Tensor]) -> Tensor:
    return torch.stack([network(x)[0].argmax(0) for x in inputs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512, help="side of a window, px")
    parser.add_argument("--windows", type=int, default=4)
    options = parser.parse_args()

    trained = load_model("landscape-tiny")
    network, normalize = deployed(trained.network), Normalize(trained.contract)
    assert isinstance(network, FoldedSegNeXt)
    inputs, truths = [], []
    for seed in range(options.windows):
        landscape = Landscape(options.side, options.side, seed=100 + seed, gsd_m=trained.contract.gsd_m or 0.5)
        pixels, labels = landscape.read(Window(0, 0, options.side, options.side))
        inputs.append(normalize(torch.from_numpy(pixels[None])))
        truths.append(torch.from_numpy(labels).long())
    truth = torch.stack(truths)

    official = class_map(network, inputs)
    print(f"{options.windows} windows of {options.side} × {options.side} px")
    print("rounds   pixels that differ, %   accuracy, %")
    for steps in STEPS:
        network.decoder.steps = steps
        found = class_map(network, inputs)
        differ, right = (100 * float(x.float().mean()) for x in (found != official, found == truth))
        print(f"{steps:6}   {differ:21.3f}   {right:11.2f}")
    network.decoder.steps = 7
    bases = network.decoder.bases.clone()
    for seed in SEEDS:
        drawn = torch.rand(bases.shape, generator=torch.Generator().manual_seed(seed))
        network.decoder.bases.copy_(F.normalize(drawn, dim=1))
        found = class_map(network, inputs)
        differ, right = (100 * float(x.float().mean()) for x in (found != official, found == truth))
        print(f"bases {seed}  {differ:21.3f}   {right:11.2f}")


if __name__ == "__main__":
    main()
