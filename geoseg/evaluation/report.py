"""An evaluation as one self-contained HTML file: numbers, tables, plots, pictures."""

import base64
import hashlib
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image, features

from geoseg.arrays import BoolArray, ByteArray, FloatArray, IntArray
from geoseg.classes import NODATA, ClassTable, format_color
from geoseg.evaluation.report_plots import Bars, bar_plot, reliability_diagram
from geoseg.evaluation.result import AreaEstimate, Evaluation, SceneResult, WindowCase
from geoseg.evaluation.tables import class_columns, class_means, reliability_rows
from geoseg.files import atomic_output
from geoseg.network.metrics import ratio
from geoseg.words import listed

_RELIABILITY = "Share of the pixels that are right, over the confidence of the map"
_ERROR_COLOR = "#e5007d"  # of errors in pictures and legend, unlike vegetation, water or buildings
_LONGEST_PX = 512  # longer side of a picture; larger windows come reduced
_QUALITY = 80  # of lossy pictures
_LISTED = 6  # entries of a list among the facts; a data set may have hundreds of scenes
_NOTHING = "–"  # no value: a class in neither truth nor map has no IoU


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
        reliability_plot=calibration and reliability_diagram("reliability-plot", _RELIABILITY, calibration),
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
        return listed(list(map(_words, value)), _LISTED)
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
    bars = Bars([classes[i] for i in order], 100 * iou[order], shown, tooltips, 100 * border[order])
    title = "IoU of each class, per cent, the largest first"
    return bar_plot("iou-plot", title, bars, end=100, line=100 * total.scores.miou)


def _area_plot(classes: ClassTable, areas: AreaEstimate) -> str:
    decimals = _area_decimals(areas)
    columns = (areas.mapped_ha, areas.estimated_ha, areas.margin_ha)
    mapped, estimated, margin = (
        [_NOTHING if np.isnan(v) else f"{v:,.{decimals}f}" for v in values] for values in columns
    )
    tooltips = [f"{c.name}: mapped {mapped[c.id]} ha, estimated {estimated[c.id]} ± {margin[c.id]} ha" for c in classes]
    bars = Bars(list(classes), areas.mapped_ha, estimated, tooltips, areas.estimated_ha, areas.margin_ha)
    return bar_plot("area-plot", "Area of each class, hectares, mapped and estimated", bars)


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
    return _uri(Image.fromarray(np.ascontiguousarray(rgb)), Image.Resampling.BOX, kind, quality=_QUALITY)


def _uri(picture: Image.Image, resampling: Image.Resampling, kind: str, **options: Any) -> str:
    """The picture, at most `_LONGEST_PX` long, as a data URI."""
    scale = min(_LONGEST_PX / max(picture.size), 1)
    size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    file = io.BytesIO()
    picture.resize(size, resampling).save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
