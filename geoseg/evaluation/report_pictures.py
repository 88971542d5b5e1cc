"""The worst and best windows as pictures inside the page: imagery, truth, map, errors."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image, features

from geoseg.arrays import BoolArray, ByteArray
from geoseg.classes import NODATA, ClassTable
from geoseg.evaluation.result import WindowCase

ERROR_COLOR = "#e5007d"
"""Colour of errors in pictures and legend, unlike vegetation, water or buildings."""

_LONGEST_PX = 512  # longer side of a picture; larger windows come reduced
_QUALITY = 80  # of lossy pictures


def window_pictures(case: WindowCase, classes: ClassTable) -> dict[str, Any]:
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
    rgb[wrong] = tuple(bytes.fromhex(ERROR_COLOR[1:]))
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
