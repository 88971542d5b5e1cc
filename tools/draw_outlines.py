"""Draw a window of a class map beside its polygons under several rules, for docs/howto/polygons.md.

    python tools/draw_outlines.py map.tif docs/img/outlines.png --window 640 1200 150 --regularize building

Only the class map is drawn, never the imagery. Polygons are made from the whole map, then the window is drawn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from affine import Affine
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

from geoseg.class_map import read_class_map
from geoseg.polygons import PolygonRules, Tolerance, polygonize

TOLERANCE = Tolerance(1.5, "px")


def outline(polygon) -> Outline:
    """A polygon with its holes as one compound path."""
    rings = [polygon.exterior, *polygon.interiors]
    return Outline.make_compound_path(*(Outline(np.asarray(ring.coords), closed=True) for ring in rings))


def main() -> None:
    """Read the arguments, make the polygons in four ways, save the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("map", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--window", type=int, nargs=3, metavar=("ROW", "COL", "SIDE"), required=True)
    parser.add_argument("--regularize", nargs="*", default=[])
    parser.add_argument("--min-area-px", type=float, default=12)
    options = parser.parse_args()
    row, col, side = options.window
    found = read_class_map(options.map)
    ways = {
        "the class map, every pixel step": PolygonRules(),
        "default: --simplify 1.5px": PolygonRules(simplify=TOLERANCE),
        "--smooth --simplify 1px": PolygonRules(smooth=True, simplify=Tolerance(1.0, "px")),
        "--min-area, --regularize for buildings": PolygonRules(
            simplify=TOLERANCE, min_area_m2=options.min_area_px, regularize=options.regularize
        ),
    }
    colors = [tuple(channel / 255 for channel in c.color) for c in found.classes]
    figure, axes = plt.subplots(1, len(ways), figsize=(4.2 * len(ways), 4.5), dpi=110, layout="constrained")
    for axis, (title, rules) in zip(axes, ways.items(), strict=True):
        frame = polygonize(found.values, Affine.identity(), classes=found.classes, rules=rules)
        frame = frame.cx[col : col + side, row : row + side]
        for polygon, class_id in zip(frame.geometry, frame.class_id, strict=True):
            axis.add_patch(PathPatch(outline(polygon), facecolor=colors[class_id], edgecolor="black", linewidth=0.8))
        axis.set(title=title, xlim=(col, col + side), ylim=(row + side, row), xticks=[], yticks=[], aspect="equal")
    figure.savefig(options.output)


if __name__ == "__main__":
    main()
