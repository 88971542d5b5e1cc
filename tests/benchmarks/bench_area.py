"""Cost of one forward against the area of the image: SegNeXt's is proportional to it, attention's is not.

    python tests/benchmarks/bench_area.py --sizes 256 512 1024 2048 4096

Square images, one network after the other (the largest images would not fit together), named and timed as in
`bench_network.py`. For each side: time, time per Mpx, time per Mpx over that of the first side, and the exponent p of
t ∝ areaᵖ from the side before; below, p by least squares on all sides, 1 for a cost proportional to the area. A network
that needs more memory than there is has no time for that side.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from processes import Result, Variant, ask_once, available_bytes, measure, note, processor, spread

CLASSES = 16
SIDES = [256, 512, 1024, 2048, 4096]
VARIANTS = ["official-tuned", "geoseg-torch", "segformer-b0-tuned"]


def exponent(sides: list[int], seconds: list[float]) -> float:
    """p of t ∝ areaᵖ."""
    return float(np.polyfit(2 * np.log(sides), np.log(seconds), 1)[0])


def print_network(name: str, found: dict[int, Result]) -> None:
    """One network's table and fit."""
    print(f"\n{name:28} {'s':>24} {'s / Mpx':>9} {'relative':>8} {'MiB':>7} {'p':>6}")
    done: list[int] = []
    for side, result in found.items():
        if result.left_out:
            print(f"{side:21} × {side:<4} left out: {result.left_out}")
            continue
        area = side * side / 1e6
        first = found[done[0]].median / (done[0] ** 2 / 1e6) if done else result.median / area
        local = exponent([done[-1], side], [found[done[-1]].median, result.median]) if done else None
        done.append(side)
        print(
            f"{side:21} × {side:<4} {spread(result.seconds, '.3f'):>24} {result.median / area:9.3f} "
            f"{result.median / area / first:8.2f} {result.peak_bytes / 2**20:7.0f} "
            f"{'' if local is None else format(local, '.2f'):>6}"
            + (f"   {result.disturbed} disturbed" if result.disturbed else "")
        )
    if len(done) > 1:
        p = exponent(done, [found[side].median for side in done])
        print(f"{name}: t ∝ area^{p:.2f} from {done[0]}² to {done[-1]}²")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIDES, help="sides of the images, px, multiples of 32")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, help="networks by name")
    parser.add_argument("--model", choices=["T", "S", "B", "L"], default="T")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", dest="quiet", action="store_false", help="take samples while others are busy, too")
    parser.add_argument("--tries", type=int, default=5, help="times a disturbed sample is repeated")
    parser.add_argument("--json", type=Path, help="file for every sample")
    options = parser.parse_args()
    try:
        variants = [Variant.parse(name) for name in options.variants]
    except ValueError as error:
        parser.error(str(error))
    request = {
        "device": options.device,
        "threads": options.threads,
        "streams": 1,
        "batch": 1,
        "classes": CLASSES,
        "upsample": True,
        "size": options.model,
    }
    found: dict[str, dict[int, Result]] = {variant.name: {} for variant in variants}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = folder / "weights.pt"
        ask_once("weights", path=str(weights), **request)
        for side in sorted(options.sizes):
            note(f"{side} × {side}")
            for variant in variants:
                free = available_bytes() if options.device == "cpu" else None
                result = measure(
                    [variant],
                    {
                        **request,
                        "height": side,
                        "width": side,
                        "weights": str(weights),
                        "limit_bytes": free and int(0.9 * free),
                    },
                    rounds=options.rounds,
                    tries=options.tries,
                    quiet=options.quiet,
                    folder=folder,
                )[variant.name]
                found[variant.name][side] = result
    print(f"SegNeXt-{options.model} and others, {processor()}, {options.threads} threads, {CLASSES} classes")
    for network, results in found.items():
        print_network(network, results)
    if options.json:
        report = {network: {side: asdict(r) for side, r in by_side.items()} for network, by_side in found.items()}
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
