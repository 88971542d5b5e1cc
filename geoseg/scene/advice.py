"""What to type for a scene that is not what a model takes: other bands, another data type, values not as stored."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from geoseg.arrays import AnyArray
from geoseg.errors import quoted
from geoseg.scene.mosaic import Mosaic
from geoseg.scene.open_files import open_dataset
from geoseg.scene.raster import Raster
from geoseg.scene.shades import stretch

GDAL_TYPES = {"uint8": "Byte", "uint16": "UInt16", "int16": "Int16", "float32": "Float32"}

_RANGES_NM = {"blue": (450, 490, 520), "green": (520, 560, 600), "red": (620, 665, 695), "nir": (760, 840, 960)}
"""Shortest, usual and longest central wavelength of a band of that name."""

# Only Sentinel-2 has a band of this name, and then B2 … B8 are known; of other satellites they are other colours.
_SENTINEL_2_SIGN, _SENTINEL_2 = "b8a", {"blue": "b2", "green": "b3", "red": "b4", "nir": "b8"}

_WAVELENGTH = re.compile(r"(\d+(?:\.\d+)?) ?(nm|nanomet\w*|um|µm|μm|micromet\w*)", re.IGNORECASE)


def bands_named(path: str, wanted: Sequence[str]) -> tuple[int, ...] | None:
    """1-based bands of a file that are the wanted ones by their descriptions, wavelengths or colour interpretation.

    A band for every name, as "red" and "nir", or None where the file does not tell.
    """
    with open_dataset(path) as dataset:
        texts = [_plain(text or "") for text in dataset.descriptions]
        lengths = [_wavelength_nm(dataset, band) for band in dataset.indexes]
        colors = [interp.name for interp in dataset.colorinterp]
    names = [_plain(name) for name in wanted]
    found = [_by_text(name, texts) or _by_wavelength(name, lengths) for name in names]
    if not any(texts) and not any(found):
        found = [colors.index(name) + 1 if name in colors else None for name in names]
        others = [band for band, color in enumerate(colors, start=1) if color != "alpha"]
        if None in found and len(others) == len(names) < len(colors):
            found = list(others)  # alpha alone is too many
    bands = tuple(band for band in found if band is not None)
    return bands if len(set(bands)) == len(names) else None


def band_hint(scene: Raster, wanted: Sequence[str]) -> str:
    """What to type where a scene has more or fewer bands than the wanted ones, whose names are given in order."""
    path, names = scene.paths[0], ", ".join(wanted)
    if isinstance(scene, Mosaic) and scene.is_stack:
        files = " ".join(quoted(p) for p in scene.paths)
        return f"the files seem to be the bands of one scene, so stack them: gdalbuildvrt -separate stack.vrt {files}"
    if scene.file_bands < len(wanted):
        return palette_hint(path) if scene.has_palette else f"see what it holds with: geoseg info {quoted(path)}"
    found = bands_named(path, wanted)
    if found is None:
        return f"say with --bands which of them are {names}, in this order; list them with: geoseg info {quoted(path)}"
    hint = f"choose them with --bands {','.join(map(str, found))}"
    if scene.alpha_band is not None and scene.alpha_band not in found:
        hint += f" (add --alpha if band {scene.alpha_band} marks the valid pixels)"
    return hint


def palette_hint(path: str) -> str:
    """What to type for a scene that has numbers of colours in a table in place of colours."""
    return f"it has a palette, so expand its colours: gdal_translate -expand rgb {quoted(path)} rgb.tif"


def order_of(names: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...] | None:
    """Places from 1 of the wanted names among those of as many bands; None where they are not the same names."""
    texts = [_plain(name) for name in names]
    found = [_by_text(_plain(name), texts) for name in wanted]
    places = tuple(place for place in found if place is not None)
    return places if len(set(places)) == len(names) == len(wanted) else None


def dtype_hint(scene: Raster, dtype: str) -> str:
    """What to type where a scene has another data type than wanted, by the values it has in a sample."""
    pixels, valid = scene.sample()
    values = pixels[:, valid]
    values = values[np.isfinite(values)]
    command = f"gdal_translate -ot {GDAL_TYPES[dtype]}"
    files = f"{quoted(scene.paths[0])} converted.tif"
    if scene.scaling is not None and dtype == "float32":
        return f"apply its scale and offset: {command} -unscale {files}"
    if dtype == "float32" or not values.size:
        return f"convert it, if the values are those of the training: {command} {files}"
    if holds(dtype, values):
        return f"its values ({values.min():g} … {values.max():g} in a sample) fit as they are: {command} {files}"
    low, high = stretch(values)
    high = high if high > low else low + 1
    return (
        f"stretch it as the training imagery was; by a sample of its values: {command} "
        f"-scale {low:.6g} {high:.6g} 0 {np.iinfo(dtype).max} {files}"
    )


def holds(dtype: str, values: AnyArray) -> bool:
    """Whether pixels of an integer data type can have these values, as they are."""
    if not values.size or np.dtype(dtype).kind not in "iu" or values.dtype.kind == "c":
        return False
    limits = np.iinfo(dtype)
    return bool(((limits.min <= values) & (values <= limits.max) & (values == np.rint(values))).all())


def scaling_hint(scene: Raster, dtype: str, scale: float) -> str:
    """What to type for pixels that, times ``scale``, are the values that the scale and offset of the tags give."""
    assert scene.scaling is not None
    how = [f"0 10000 {offset / scale:.9g} {(10_000 * gain + offset) / scale:.9g}" for gain, offset in scene.scaling]
    if len(set(how)) == 1:
        words = f"-scale {how[0]}"
    else:
        words = " ".join(f"-scale_{band} {text}" for band, text in zip(scene.bands, how, strict=True))
    return (
        f"gdal_translate -ot {GDAL_TYPES[dtype]} {words} -a_scale 1 -a_offset 0 {quoted(scene.paths[0])} unscaled.tif"
    )


def _plain(text: str) -> str:
    """A name in lower case, its words apart: "B04" and "b4" are the same, "Near-Infrared" is "nir"."""
    text = re.sub(r"[^0-9a-zµμ.]+", " ", text.lower()).strip()
    text = re.sub(r"\b(near ?infra ?red|near ?ir|infra ?red)\b", "nir", text)
    return re.sub(r"\bb0+(?=\d)", "b", text)


def _by_text(name: str, texts: Sequence[str]) -> int | None:
    if any(text.split(" ")[0] == _SENTINEL_2_SIGN for text in texts):
        name = _SENTINEL_2.get(name, name)
    exact = [band for band, text in enumerate(texts, start=1) if text == name]
    # A red edge is not red.
    inside = [band for band, text in enumerate(texts, start=1) if name in text.split(" ") and "edge" not in text]
    for bands in exact, inside:
        if len(bands) == 1:
            return bands[0]
    return None


def _by_wavelength(name: str, lengths: Sequence[float | None]) -> int | None:
    if name not in _RANGES_NM:
        return None
    low, usual, high = _RANGES_NM[name]
    near = [(abs(nm - usual), band) for band, nm in enumerate(lengths, start=1) if nm is not None and low <= nm <= high]
    return min(near)[1] if near else None


def _wavelength_nm(dataset: Any, band: int) -> float | None:
    tags = {key.lower(): value for ns in (None, "IMAGERY") for key, value in dataset.tags(band, ns=ns).items()}
    for tag in ("wavelength", "central_wavelength_um", "central_wavelength"):
        match = re.match(r"\d+(?:\.\d+)?", tags.get(tag, ""))
        if match is not None:
            return _as_nm(float(match[0]))
    match = _WAVELENGTH.search(dataset.descriptions[band - 1] or "")
    return None if match is None else _as_nm(float(match[1]))


def _as_nm(length: float) -> float:
    """Nanometres; what is below 30 is in micrometres."""
    return length * 1000 if length < 30 else length
