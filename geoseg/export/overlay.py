"""A picture of a result: imagery, class map and polygons side by side, with a legend. Imports no torch."""

import math
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import shapely
from affine import Affine
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.path import Path as Outline
from PIL import Image

from geoseg.arrays import ByteArray
from geoseg.classes import NODATA, ClassTable, format_color
from geoseg.export.styles import darker
from geoseg.files import atomic_output
from geoseg.options import AnyPath

_DPI = 100
_MARGIN, _GAP, _HEADING, _LEGEND_ROW = 24, 16, 34, 30  # px
_NODATA_GREY = (0.93, 0.93, 0.93)
_INK = "#222222"


def write_overlay(
    path: AnyPath,
    pixels: ByteArray,
    class_values: ByteArray,
    classes: ClassTable,
    polygons: geopandas.GeoDataFrame,
    *,
    transform: Affine | None = None,
    title: str = "",
    panel_px: int = 900,
) -> None:
    """Write a PNG of three panels: the imagery, the class map, and the polygons over the imagery; a legend below.

    The legend names the classes of the map with their share of its valid pixels, the largest first.

    Args:
        path: Output file, replaced if it exists.
        pixels: Red, green and blue, (3, H, W) uint8; large scenes should come reduced.
        class_values: Class map, (h, w) uint8, of the same ground and side ratio, not necessarily the same size.
        classes: Names and colours.
        polygons: Columns class_id and geometry.
        transform: Affine pixel of ``class_values`` → coordinates of the polygons; None where these are pixels.
        title: Line above the panels.
        panel_px: Longer side of a panel, px. Larger imagery is averaged down to it.
    """
    if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.dtype != np.uint8 or class_values.ndim != 2:
        raise ValueError(
            f"expected pixels (3, H, W) uint8 and class values (h, w), "
            f"found {pixels.shape} {pixels.dtype} and {class_values.shape}"
        )
    height, width = class_values.shape
    scale = panel_px / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)  # of a panel, px
    picture = _resized(np.moveaxis(pixels, 0, -1), size) / 255.0
    # Half grey and a little lighter, so that the classes' colours stand out and the ground is still seen
    muted = 0.15 + 0.85 * (0.6 * picture + 0.4 * (picture @ [0.299, 0.587, 0.114])[..., None])
    table = np.tile(_NODATA_GREY, (256, 1))
    table[: len(classes)] = [[v / 255 for v in c.color] for c in classes]
    colored = _resized(np.round(table[class_values] * 255).astype(np.uint8), size)
    columns = max((3 * size[0] + 2 * _GAP) // 260, 1)  # of the legend
    figure, axes = _panels(size, title, legend_rows=math.ceil(len(classes) / columns))
    panels = {"Imagery": picture, "Classes": colored / 255.0, "Polygons": muted}
    for axis, (heading, shown) in zip(axes, panels.items(), strict=True):
        axis.set_title(heading, loc="left", fontsize=13, color=_INK, pad=8)
        axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set(color="#bbbbbb", linewidth=0.8)
        axis.imshow(shown, extent=(0, width, height, 0), aspect="auto", interpolation="none")
    _draw_polygons(axes[2], polygons, classes, transform)
    _draw_legend(figure, class_values, classes, columns=columns)
    with atomic_output(Path(path)) as scratch:
        FigureCanvasAgg(figure)  # registers itself as what draws the figure
        # Level 4 takes half the time of the default, for 1 % more bytes.
        figure.savefig(scratch, format="png", pil_kwargs={"compress_level": 4})


def _resized(rgb: ByteArray, size: tuple[int, int]) -> ByteArray:
    """Averages where there are more pixels (H, W, 3) than the panel has, sharp squares where there are fewer."""
    kernel = Image.Resampling.BOX if rgb.shape[1] >= size[0] else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(rgb).resize(size, kernel))


def _panels(size: tuple[int, int], title: str, *, legend_rows: int) -> tuple[Figure, list[Axes]]:
    """A figure of exactly the pixels that three panels of ``size`` need, and their axes."""
    width = 3 * size[0] + 2 * _GAP + 2 * _MARGIN
    top = _MARGIN + (_HEADING + 8 if title else 0) + _HEADING
    bottom = _MARGIN + legend_rows * _LEGEND_ROW + 12
    height = top + size[1] + bottom
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    if title:
        y = 1 - (_MARGIN + _HEADING / 2) / height
        figure.text(_MARGIN / width, y, title, fontsize=18, fontweight="bold", color=_INK, va="center")
    lefts = [_MARGIN + index * (size[0] + _GAP) for index in range(3)]
    panel = size[0] / width, size[1] / height
    return figure, [figure.add_axes((left / width, bottom / height, *panel)) for left in lefts]


def _draw_polygons(axis: Axes, frame: geopandas.GeoDataFrame, classes: ClassTable, transform: Affine | None) -> None:
    geometries = frame.geometry if transform is None else frame.geometry.affine_transform((~transform).to_shapely())
    for c in classes:
        # One path each; holes stay open because GeoJSON's ring orders make them run the other way.
        polygons = shapely.orient_polygons(shapely.get_parts(geometries[frame.class_id == c.id]))
        rings = [[Outline(ring.coords, closed=True) for ring in shapely.get_rings(polygon)] for polygon in polygons]
        outlines = [Outline.make_compound_path(*outline) for outline in rings]
        fill, edge = format_color(c.color), format_color(darker(c.color))
        style: dict[str, Any] = {"facecolors": [(fill, 0.42)], "edgecolors": [(edge, 0.95)], "linewidths": 0.9}
        axis.add_collection(PathCollection(outlines, **style), autolim=False)


def _draw_legend(figure: Figure, class_values: ByteArray, classes: ClassTable, *, columns: int) -> None:
    counts = np.bincount(class_values.ravel(), minlength=256)
    valid = max(int(counts[:NODATA].sum()), 1)
    handles = []
    for c in sorted((c for c in classes if counts[c.id]), key=lambda c: -counts[c.id]):
        share = counts[c.id] / valid
        percent = "<1 %" if share < 0.01 else f"{100 * share:.0f} %"
        edge = format_color(darker(c.color))
        handles.append(Patch(facecolor=format_color(c.color), edgecolor=edge, label=f"{c.name}  {percent}"))
    if counts[NODATA]:
        handles.append(Patch(facecolor=_NODATA_GREY, edgecolor="#999999", label="no data"))
    width, height = figure.get_size_inches() * _DPI
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(_MARGIN / width, (_MARGIN - 10) / height),
        borderaxespad=0,
        borderpad=0,
        ncols=min(columns, max(len(handles), 1)),
        frameon=False,
        fontsize=12,
        labelcolor=_INK,
        handlelength=1.4,
        handleheight=1.0,
        columnspacing=1.8,
    )
