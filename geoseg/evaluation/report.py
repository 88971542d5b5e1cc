"""An evaluation as one self-contained HTML file: numbers, tables, plots, pictures."""

import base64
import hashlib
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, features

from geoseg.arrays import BoolArray, ByteArray, FloatArray, IntArray
from geoseg.classes import NODATA, ClassTable, MapClass, format_color
from geoseg.evaluation.result import AreaEstimate, Calibration, Evaluation, SceneResult, WindowCase
from geoseg.evaluation.tables import class_columns, class_means, reliability_rows
from geoseg.files import atomic_output
from geoseg.network.metrics import ratio
from geoseg.words import listed

_ERROR_COLOR = "#e5007d"  # of errors in pictures and legend, unlike vegetation, water or buildings
_LONGEST_PX = 512  # longer side of a picture; larger windows come reduced
_NOTHING = "–"  # no value: a class in neither truth nor map has no IoU
_STYLE: Any = {"svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 13, "axes.axisbelow": True}
_WIDTH, _ROW, _AXIS = 420, 24, 34  # px: a plot, the row of a class, the labels of the axis
_LONGEST_NAME = 22  # characters; longer names are cut, their tooltips are not


def write_report(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation as one self-contained HTML file, replacing an existing one.

    The same evaluation gives the same bytes. Measures that are None are left out or stated as not measured; NaN is
    shown as an en dash.
    """
    page = report_page(evaluation)
    with atomic_output(path) as scratch:
        # Bytes of file names that are not UTF-8 become escapes.
        scratch.write_bytes(page.encode("utf-8", "backslashreplace"))


def report_page(evaluation: Evaluation) -> str:
    """The page of `write_report` as text."""
    templates = Environment(
        loader=PackageLoader("geoseg.evaluation"),
        autoescape=True,  # names of classes and scenes may be anything
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    templates.tests["finite"] = math.isfinite
    templates.filters |= {"color": format_color, "words": _words, "percent": _percent}
    script = templates.get_template("report.js").render()
    classes, total, model = evaluation.classes, evaluation.total, evaluation.facts.get("model")
    matrix = total.scores.matrix
    calibration = total.calibration if total.calibration is not None and total.calibration.count.any() else None
    page = templates.get_template("report.html.j2").render(
        title=f"Evaluation of {_words(model)}" if model else "Evaluation",
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        facts=evaluation.facts,
        classes=classes,
        total=total,
        scenes=evaluation.scenes,
        groups=_column_groups(total),
        shares=ratio(matrix, matrix.sum(axis=1, keepdims=True)),
        calibration=calibration,
        bins=calibration and reliability_rows(calibration),
        areas=total.areas,
        area_decimals=_area_decimals(total.areas),
        area_changes=total.areas and 100 * (ratio(total.areas.estimated_ha, total.areas.mapped_ha) - 1),
        iou_plot=_iou_plot(classes, total),
        reliability_plot=calibration and _reliability_plot(calibration),
        area_plot=total.areas and _area_plot(classes, total.areas),
        windows={
            key: [_window_pictures(case, classes) for case in cases]
            for key, cases in (("worst", evaluation.worst), ("best", evaluation.best))
        },
        error_color=_ERROR_COLOR,
    )
    return f"{page}\n"


def _words(value: Any) -> str:
    """A fact as text; lists and tables in a line."""
    if value is None:
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(v)}" for key, v in value.items())
    if isinstance(value, (list, tuple)):
        return listed(list(map(_words, value)), 6)  # a data set may have hundreds of scenes
    return f"{value:g}" if isinstance(value, float) else str(value)


def _percent(share: float, decimals: int = 1) -> str:
    return _NOTHING if math.isnan(share) else f"{100 * share:.{decimals}f} %"


def _column_groups(result: SceneResult) -> list[tuple[str, dict[str, tuple[FloatArray | IntArray, float]]]]:
    """Groups of columns of the class table: names, values (K,) and their mean."""
    values, means = class_columns(result), class_means(result)
    pixels = {"IoU": "iou", "boundary IoU": "boundary_iou", "precision": "precision", "recall": "recall", "F1": "f1"}
    groups = [("pixels", pixels)]
    if result.objects is not None:
        objects = {"precision": "object_precision", "recall": "object_recall", "F1": "object_f1"}
        groups.append((f"objects, {result.objects.rule}", objects))
    return [
        (group, {head: (values[key], means[key]) for head, key in keys.items() if key in values})
        for group, keys in groups
    ]


def _iou_plot(classes: ClassTable, total: SceneResult) -> str:
    iou = total.scores.iou
    border = np.full(len(classes), np.nan) if total.boundary is None else total.boundary.iou
    order = np.argsort(-iou, kind="stable")  # NaN comes last
    tooltips = [
        f"{classes[i].name}: IoU {_percent(iou[i])}"
        + ("" if np.isnan(border[i]) else f", boundary IoU {_percent(border[i])}")
        for i in order
    ]
    shown = [_percent(v).removesuffix(" %") for v in iou[order]]
    bars = _Bars([classes[i] for i in order], 100 * iou[order], shown, tooltips, 100 * border[order])
    title = "IoU of each class, per cent, the largest first"
    return _bar_plot("iou-plot", title, bars, end=100, line=100 * total.scores.miou)


def _area_plot(classes: ClassTable, areas: AreaEstimate) -> str:
    decimals = _area_decimals(areas)
    columns = (areas.mapped_ha, areas.estimated_ha, areas.margin_ha)
    mapped, estimated, margin = (
        [_NOTHING if np.isnan(v) else f"{v:,.{decimals}f}" for v in values] for values in columns
    )
    tooltips = [f"{c.name}: mapped {mapped[c.id]} ha, estimated {estimated[c.id]} ± {margin[c.id]} ha" for c in classes]
    bars = _Bars(list(classes), areas.mapped_ha, estimated, tooltips, areas.estimated_ha, areas.margin_ha)
    return _bar_plot("area-plot", "Area of each class, hectares, mapped and estimated", bars)


def _area_decimals(areas: AreaEstimate | None) -> int:
    """Decimals that show four digits of the largest area, and small ones to one hundredth of a hectare."""
    known = [] if areas is None else [float(v) for v in (*areas.mapped_ha, *areas.estimated_ha) if v > 0]
    if not known:
        return 1
    of_largest, of_smallest = 3 - math.floor(math.log10(max(known))), 1 - math.floor(math.log10(min(known)))
    return max(of_largest, min(of_smallest, 2), 0)


def _window_pictures(case: WindowCase, classes: ClassTable) -> dict[str, Any]:
    """A window on the page: its place and errors in words, and four pictures as (name, alt text, URI)."""
    w = case.window
    place = f"{case.scene}, rows {w.row:,} to {w.row_stop:,}, columns {w.col:,} to {w.col_stop:,}"
    unknown = np.equal(case.truth, NODATA) | np.equal(case.mapped, NODATA)
    wrong = np.not_equal(case.truth, case.mapped) & ~unknown
    confusion = ""
    if wrong.any():
        pairs = case.truth[wrong].astype(int) * len(classes) + case.mapped[wrong]
        true, mapped = divmod(int(np.bincount(pairs).argmax()), len(classes))
        confusion = f"; most often {classes[true].name} mapped as {classes[mapped].name}"
    errors = f"Errors, {100 * case.error:.1f} % of the labelled pixels, over the imagery"
    return {
        "error": case.error,
        "place": place,
        "confusion": confusion,
        # A narrow window at the edge of a scene is not enlarged.
        "width": f"{100 * w.width / w.height:.2f}%" if w.width < w.height else None,
        "pictures": (
            ("imagery", f"Imagery of {place}", _photo(case.picture)),
            ("truth", f"Truth: {_shares(case.truth, classes)}", _class_picture(case.truth, classes)),
            ("map", f"Map: {_shares(case.mapped, classes)}", _class_picture(case.mapped, classes)),
            ("errors", errors, _photo(_errors(case.picture, unknown, wrong))),
        ),
    }


def _shares(ids: ByteArray, classes: ClassTable) -> str:
    counts = np.bincount(ids.ravel(), minlength=NODATA + 1)
    known = int(counts[: len(classes)].sum())
    present = sorted((c for c in classes if counts[c.id]), key=lambda c: -int(counts[c.id]))
    return ", ".join(f"{c.name} {counts[c.id] / known:.0%}".replace("%", " %") for c in present) or "nothing known"


def _errors(picture: ByteArray, unknown: BoolArray, wrong: BoolArray) -> ByteArray:
    """The imagery in light grey, nearly white where unknown, with the errors over it."""
    grey = 0.4 * (picture @ np.array([0.299, 0.587, 0.114])) + 0.6 * 255
    grey[unknown] = 0.25 * grey[unknown] + 0.75 * 255
    rgb = np.repeat(grey[..., None], 3, axis=2).round().astype(np.uint8)
    rgb[wrong] = tuple(bytes.fromhex(_ERROR_COLOR[1:]))
    return rgb


def _class_picture(ids: ByteArray, classes: ClassTable) -> str:
    """A palette PNG, transparent where unknown: the page gives that its colour, light or dark."""
    picture = Image.fromarray(np.ascontiguousarray(ids))
    picture.putpalette([channel for c in classes for channel in c.color] + [0] * 3 * (NODATA + 1 - len(classes)))
    return _uri(picture, Image.Resampling.NEAREST, "PNG", optimize=True, transparency=NODATA)


def _photo(rgb: ByteArray) -> str:
    kind = "WebP" if features.check("webp") else "JPEG"  # distributions may build pillow without WebP
    return _uri(Image.fromarray(np.ascontiguousarray(rgb)), Image.Resampling.BOX, kind, quality=80)


def _uri(picture: Image.Image, resampling: Image.Resampling, kind: str, **options: Any) -> str:
    """The picture, at most `_LONGEST_PX` long, as a data URI."""
    scale = min(_LONGEST_PX / max(picture.size), 1)
    size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    file = io.BytesIO()
    picture.resize(size, resampling).save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


# --- plots, as SVG in the page's colours, light or dark


@dataclass(frozen=True, slots=True, eq=False)
class _Bars:
    """Bars of a plot, one per class."""

    classes: Sequence[MapClass]  # from top to bottom
    values: FloatArray  # lengths, (K,); NaN draws none
    shown: Sequence[str]  # text to the right of each bar
    tooltips: Sequence[str]  # each row as a sentence
    marks: FloatArray  # positions of marks across the bars, (K,); NaN for none
    margins: FloatArray | None = None  # half lengths of whiskers through the marks, (K,); None for strokes


def _bar_plot(name: str, title: str, bars: _Bars, *, end: float | None = None, line: float = math.nan) -> str:
    """An ``<svg>`` element of horizontal bars over an axis from 0 to ``end`` (None to fit).

    ``name`` is its id in the page, ``title`` its subject for screen readers, ``line`` the value of a line across all
    bars, such as their mean; NaN for none.
    """
    values, marks, margins = bars.values, bars.marks, bars.margins
    with matplotlib.rc_context(_STYLE):
        rows = np.arange(len(bars.classes))
        figure, (axes,) = _figure(len(rows) * _ROW + _AXIS, 1)
        axes.grid(axis="x", clip_on=False, gid="grid|")
        colors = [format_color(c.color) for c in bars.classes]
        for bar, tooltip in zip(axes.barh(rows, values, 0.5, color=colors, clip_on=False), bars.tooltips, strict=True):
            _mark(bar, "bar", tooltip)
        whiskers = None if margins is None else np.stack([np.minimum(margins, marks), margins])
        kind, size = ("|", 15) if margins is None else ("o", 5)
        for layer in ("halo", "stroke"):  # without a halo, a stroke on a bar of its own colour is lost
            drawn = axes.errorbar(marks, rows, xerr=whiskers, fmt=kind, markersize=size, capsize=4, clip_on=False)
            for artist in drawn.get_children():
                _mark(artist, layer)
        if not math.isnan(line):
            _mark(axes.axvline(line, clip_on=False), "mean")
        right = 8 * (max(map(len, bars.shown)) + 1)  # px: of the column of numbers
        place: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
        for y, text, tooltip in zip(rows, bars.shown, bars.tooltips, strict=True):
            _mark(axes.annotate(text, (1, y), (right, 0), ha="right", va="center_baseline", **place), "number", tooltip)
        names = [c.name if len(c.name) <= _LONGEST_NAME else c.name[: _LONGEST_NAME - 1] + "…" for c in bars.classes]
        axes.set_yticks(rows, [_printable(name) for name in names], parse_math=False)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter("{x:,.10g}")
        axes.set_xlim(0, end)
        return _svg(figure, name, title)


def _reliability_plot(calibration: Calibration) -> str:
    """Accuracy of each bin over its confidence and the diagonal; below, shares of pixels."""
    count = calibration.count
    sure, right = 100 * ratio(calibration.confidence, count), 100 * ratio(calibration.correct, count)
    share = 100 * count / count.sum()
    places = 100 * (np.arange(len(count)) + 0.5) / len(count)
    with matplotlib.rc_context(_STYLE):
        figure, (above, below) = _figure(_WIDTH, 2, height_ratios=(4, 1), sharex=True)
        above.grid(clip_on=False, gid="grid|")
        for axes, heights, kind in ((above, right, "accuracy"), (below, share, "share")):
            for i in np.flatnonzero(count):
                (bar,) = axes.bar(places[i], heights[i], 100 / len(count), clip_on=False)
                tooltip = f"confidence {sure[i]:.1f} %, right {right[i]:.1f} %, {count[i]:,} px ({share[i]:.1f} %)"
                _mark(bar, kind, tooltip)
        _mark(above.plot([0, 100], [0, 100], clip_on=False)[0], "diagonal")
        _mark(above.plot(sure, right, "o", markersize=6, clip_on=False)[0], "dot")
        above.set(xlim=(0, 100), ylim=(0, 100), ylabel="right, %")
        below.set(xlabel="confidence, %", ylabel="pixels", yticks=[])
        return _svg(figure, "reliability-plot", "Share of the pixels that are right, over the confidence of the map")


def _figure(height: float, rows: int, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure as wide as all others, and its axes without frames and ticks."""
    figure = Figure(figsize=(_WIDTH / 72, height / 72), layout="constrained")
    axes = list(figure.subplots(rows, squeeze=False, **options).flat)
    for one in axes:
        one.set_frame_on(False)
        one.tick_params(length=0)
    return figure, axes


def _mark(artist: Artist, kind: str, tooltip: str = "") -> None:
    """Give an artist a class for the style sheet and a tooltip, both in its id, which `_svg` reads from the SVG."""
    artist.set_gid(f"{kind}|{_printable(tooltip)}")


def _printable(text: str) -> str:
    """The text without characters that XML does not allow."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _svg(figure: Figure, name: str, title: str) -> str:
    file = io.BytesIO()
    # No date and no random ids: the same plot gives the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's browser draws the text, and has more fonts
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(file.getvalue())
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]  # HTML names SVG's elements without a namespace
        for key in [key for key in element.attrib if "}" in key]:
            element.set(key.rpartition("}")[2], element.attrib.pop(key))
        if element.tag == "g":
            kind, marked, tooltip = element.attrib.pop("id", "").partition("|")
            if marked:
                element.set("class", kind)
            for drawn in element.iter() if marked and kind not in ("bar", "number") else ():
                drawn.attrib.pop("style", None)  # the page's style sheet has the colours, light and dark
            if tooltip:
                _put_title(element, tooltip)
    for element in root.findall("defs"):
        root.remove(element)  # a style for all elements, which would be the page's, too
    _put_title(root, title).set("id", f"{name}-title")
    root.attrib = {"id": name, "role": "img", "aria-labelledby": f"{name}-title", "viewBox": root.attrib["viewBox"]}
    return ElementTree.tostring(root, encoding="unicode")


def _put_title(element: ElementTree.Element, text: str) -> ElementTree.Element:
    title = ElementTree.Element("title")
    title.text = text
    element.insert(0, title)
    return title
