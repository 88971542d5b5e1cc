"""Forward of SegNeXt as geoseg runs it, against the official form and against other networks of its size.

    python tests/benchmarks/bench_network.py --models T B --sizes 512 1024 768x1536

Every network runs in a process of its own, loaded once; all of them run in every round, one at a time. A sample during
which other processes used more than a tenth of a core is repeated. Tables give medians over the rounds, ranges in
brackets, and ratios that are medians of the rounds' own.

official           the official code's form, eager: float32, or under autocast with -bf16
…-tuned            with glibc set to keep freed memory (environment variables): the fair rival, eager times halve
segformer-b0, -b2  SMP's Segformer with mit_b0 and mit_b2
unet-r34           SMP's Unet with resnet34
geoseg-module      geoseg's network as it was trained, eager, channels last
geoseg-BACKEND     what `geoseg predict --backend BACKEND` runs; -bf16 in reduced precision; no environment variables

All SegNeXts have the same seeded random weights. "differ" is the share of pixels whose class is not that of the
official form in float32. Every network ends with logits at the size of the image; with --no-upsample SegNeXts end at
stride 8, where geoseg blends them. "roof" is the share of the roofline: the time that the multiplications would take at
the speed of a large matrix product, or that reading and writing each block's features once would take at the speed of
a copy, whichever is longer, over the time measured. Memory is the largest that the process has had, loading included;
on a GPU what torch has had there.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from processes import RIVALS, Result, Variant, ask_once, measure, note, processor, ratios, spread

CLASSES = 16
ON_CPU = (
    "official",
    "official-tuned",
    "official-bf16-tuned",
    *(f"{rival}-tuned" for rival in RIVALS),
    "geoseg-module",
    "geoseg-torch",
    "geoseg-compile",
    "geoseg-openvino",
    "geoseg-torch-bf16",
    "geoseg-compile-bf16",
    "geoseg-openvino-bf16",
)
ON_GPU = (
    "official",
    "official-bf16",
    *(f"{rival}-bf16" for rival in RIVALS),
    "geoseg-torch",
    "geoseg-torch-bf16",
    "geoseg-compile",
    "geoseg-compile-bf16",
)
AGAINST = {"cpu": ("official-tuned", "official"), "cuda": ("official-bf16", "official")}
"""Rivals that ratios are given to; they always run."""

GMAC = {"T": 23.9, "S": 59.1, "B": 131.1, "L": 263.5}
"""Multiplications of a forward with 16 classes, 10⁹ per 10⁶ px: convolutions and factorization."""
FUSED_MB = {"T": 245, "S": 286, "B": 537, "L": 948}
"""What each block must read and write at least, in bf16, MB per 10⁶ px; twice as much in float32."""


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of "512" or "768x1536"."""
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def roof_seconds(size: str, precision: str, best: Mapping[str, float]) -> float:
    """Least seconds per 10⁶ px of a forward on this machine."""
    arithmetic = 2 * GMAC[size] / best[precision]
    memory = FUSED_MB[size] * (2 if precision == "float32" else 1) / 1000 / best["copy"]
    return max(arithmetic, memory)


def row(result: Result, rivals: Sequence[Result], megapixels: float, roof: float | None) -> str:
    """One line of a table."""
    name = result.variant.name
    if result.left_out:
        return f"{name:24} left out: {result.left_out}"
    speed = megapixels / result.median
    milliseconds = spread([1000 * s for s in result.seconds], ".1f")
    cells = [f"{name:24} {milliseconds:>24} {speed:8.2f} {result.peak_bytes / 2**20:7.0f}"]
    cells += [f"{spread(ratios(rival, result), '.2f'):>17}" if rival.seconds else f"{'':17}" for rival in rivals]
    cells.append(f"{100 * result.differing:9.4f}" if result.differing is not None else f"{'':9}")
    cells.append(f"{100 * roof * speed:6.1f}" if roof is not None else f"{'':6}")
    return " ".join(cells) + (f"   {result.disturbed} disturbed" if result.disturbed else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(GMAC), default=["T", "B"])
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=[(512, 512), (1024, 1024), (768, 1536)])
    parser.add_argument("--variants", nargs="+", help="networks by name, beside the official form; all by default")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--streams",
        type=int,
        nargs="?",
        const=0,
        help="throughput of so many images side by side, threads divided among them; by default one for each thread",
    )
    parser.add_argument("--no-upsample", dest="upsample", action="store_false", help="SegNeXts end at stride 8")
    parser.add_argument("--busy", dest="quiet", action="store_false", help="take samples while others are busy, too")
    parser.add_argument("--tries", type=int, default=10, help="times a disturbed sample is repeated")
    parser.add_argument("--json", type=Path, help="file for every sample")
    options = parser.parse_args()
    streams = 1 if options.streams is None else options.streams or options.threads
    if streams > 1 and options.device != "cpu":
        parser.error("--streams is for a CPU: a GPU takes several images with --batch")
    if streams > options.threads:
        parser.error(f"{streams} streams need as many threads, found {options.threads}")
    against = AGAINST[options.device]
    names = options.variants or (ON_CPU if options.device == "cpu" else ON_GPU)
    try:
        variants = [Variant.parse(name) for name in dict.fromkeys((*against, *names))]
    except ValueError as error:
        parser.error(str(error))

    given = {
        "device": options.device,
        "threads": options.threads,
        "streams": streams,
        "batch": options.batch,
        "classes": CLASSES,
        "upsample": options.upsample,
    }
    note("roofline")
    best = ask_once("roofline", **given)
    report: dict[str, Any] = {"machine": platform.platform(), "processor": processor(), "roofline": best, "runs": []}
    report["options"] = {**given, "rounds": options.rounds, "quiet": options.quiet}
    print(
        f"{processor()}, {options.threads} threads; best of this machine: float32 {best['float32']:.0f} GFLOP/s, "
        f"bf16 {best['bf16']:.0f} GFLOP/s, copy {best['copy']:.0f} GB/s",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in options.models:
            weights = folder / f"{model}.pt"
            classes = ask_once("weights", size=model, path=str(weights), **given)
            for height, width in options.sizes:
                note(f"SegNeXt-{model}, {height} × {width}: loading")
                request = {**given, "size": model, "height": height, "width": width, "weights": str(weights)}
                found = measure(
                    variants,
                    request,
                    rounds=options.rounds,
                    tries=options.tries,
                    quiet=options.quiet,
                    folder=folder,
                    reference="official",
                )
                megapixels = options.batch * height * width / 1e6
                side_by_side = f", {streams} batches side by side (ms of one: all of them / {streams})"
                print(
                    f"\nSegNeXt-{model}, {height} × {width} px, batch {options.batch}{side_by_side * (streams > 1)}, "
                    f"{CLASSES} classes ({classes['classes']} seen, the largest on {100 * classes['largest']:.0f} % "
                    "of the pixels)\n"
                    f"{'':24} {'ms':>24} {'Mpx/s':>8} {'MiB':>7} {'× ' + against[0]:>17} {'× ' + against[1]:>17} "
                    f"{'differ, %':>9} {'roof, %':>6}"
                )
                rivals = [found[rival] for rival in against]
                for result in found.values():
                    known = result.variant.architecture in ("official", "geoseg")
                    roof = roof_seconds(model, result.variant.precision, best) if known else None
                    print(row(result, rivals, megapixels, roof), flush=True)
                results = [asdict(result) for result in found.values()]
                for entry, result in zip(results, found.values(), strict=True):
                    entry["median_seconds"] = statistics.median(result.seconds) if result.seconds else None
                report["runs"].append({"model": model, "height": height, "width": width, "results": results})
                if options.json:
                    options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
