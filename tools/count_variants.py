"""Count all variants of SegNeXt and write the table that ``geoseg models`` prints."""

from __future__ import annotations

from geoseg.paper.catalogue import VARIANTS, as_csv, measure
from geoseg.paper.variants import TABLE

TABLE.write_text(as_csv([measure(variant) for variant in VARIANTS]), encoding="utf-8")
print(TABLE)
