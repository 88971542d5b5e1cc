"""The table of ``geoseg models``, stored as data so that printing it builds no network.

`tools/count_variants.py` counts and writes it; a test compares the numbers with the file.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

TABLE = Path(__file__).with_name("variants.csv")  # written by ``tools/count_variants.py``


def as_csv() -> str:
    """The variants as CSV with a header; our numbers in full, the paper's as printed."""
    return TABLE.read_text(encoding="utf-8")


def as_text() -> Iterator[str]:
    """The variants as a table in lines, and below it why numbers are not compared."""
    reasons: dict[str, str] = {}
    cells = [
        ("variant", "options", "table", "params", "paper", "512×512", "paper", "2048×1024", "paper", ""),
        ("", "", "", "M", "M", "GMAC", "GFLOPs", "GMAC", "GFLOPs", ""),
    ]
    for row in csv.DictReader(io.StringIO(as_csv())):
        why_not = row["not_compared"]
        mark = reasons.setdefault(why_not, chr(ord("a") + len(reasons))) if why_not else ""
        cells.append(
            (
                *(row["variant"], row["options"], row["table"]),
                *(_scaled(row["parameters"], 1e6, 3), row["paper_parameters_m"] or "-"),
                *(_scaled(row["macs_512"] or row["macs_224"], 1e9, 3), row["paper_gflops_512"] or "-"),
                *(_scaled(row["macs_2048x1024"], 1e9, 2), row["paper_gflops_2048x1024"] or "-", mark),
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        left = [text.ljust(width) for text, width in zip(line[:3], widths, strict=False)]
        right = [text.rjust(width) for text, width in zip(line[3:-1], widths[3:], strict=False)]
        yield "  ".join([*left, *right, line[-1]]).rstrip()
    yield ""
    yield "GMAC: multiply-accumulates as the paper counts its GFLOPs; 150 classes at 512×512, 19 at 2048×1024."
    for reason, mark in reasons.items():
        yield f"{mark}: {reason}."


def _scaled(number: str, unit: float, digits: int) -> str:
    return f"{int(number) / unit:.{digits}f}" if number else "-"
