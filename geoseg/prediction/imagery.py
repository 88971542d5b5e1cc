"""Whether a scene is what a model was trained on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from os import PathLike

import numpy as np

from geoseg.contract import GSD_TOLERANCE, Contract
from geoseg.errors import SceneError
from geoseg.scene import Raster, open_scene
from geoseg.scene.advice import band_hint, dtype_hint, order_of, scaling_hint
from geoseg.words import count

log = logging.getLogger(__name__)

_FAR = 2.0
"""Standard deviations from the training's mean, from which on a scene's own mean is not a matter of what it shows."""


def open_model_scene(
    contract: Contract,
    scenes: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: bool = False,
    crs: str | None = None,
    aoi: str | PathLike[str] | None = None,
    gsd_m: float | None = None,
) -> Raster:
    """Open scenes under a model's nodata rule, unless ``nodata`` says otherwise."""
    return open_scene(
        scenes, bands=bands, nodata=model_nodata(contract, nodata), alpha=alpha, crs=crs, aoi=aoi, gsd_m=gsd_m
    )


def model_nodata(contract: Contract, nodata: float | None) -> float | None:
    """The value that means nothing: the one given, else the model's, else None for the file's own."""
    return contract.nodata if nodata is None and isinstance(contract.nodata, float) else nodata


def check_scene(contract: Contract, scene: Raster, *, ignore_gsd: bool = False) -> None:
    """Refuse a scene that breaks the model's imagery contract.

    Raises:
        SceneError: Another number of bands, another dtype, values that are the model's only after the scale and offset
            of the file's tags, or pixels of which a side is more than 30 % off the model's.
    """
    wanted = [band.name for band in contract.bands]
    if len(scene.bands) != len(wanted):
        raise SceneError(
            f"scene {scene.path} has {count(len(scene.bands), 'band')}, "
            f"but the model expects {len(wanted)} ({', '.join(wanted)})",
            hint=band_hint(scene, wanted),
        )
    order, natural = order_of(scene.band_names, wanted), tuple(range(1, len(wanted) + 1))
    if scene.bands == natural and order not in (None, natural):
        log.warning(
            "the bands of scene %s are %s, but the model takes them as %s: --bands %s puts them in its order",
            scene.path,
            ", ".join(scene.band_names),
            ", ".join(wanted),
            ",".join(map(str, order)),
        )
    if scene.dtype != contract.dtype:
        raise SceneError(
            f"scene {scene.path} is {scene.dtype}, but the model was trained on {contract.dtype}",
            hint=dtype_hint(scene, contract.dtype),
        )
    _check_scaling(contract, scene)
    sides = scene.grid.pixel_size_m()
    if ignore_gsd or contract.gsd_m is None or sides is None:
        return
    if not all(1 / (1 + GSD_TOLERANCE) <= side / contract.gsd_m <= 1 + GSD_TOLERANCE for side in sides):
        size = f"{sides[0]:.3g}"
        if f"{sides[1]:.3g}" != size:
            size += f" × {sides[1]:.3g}"
        raise SceneError(
            f"scene {scene.path} has pixels of {size} m, but the model was trained on {contract.gsd_m:.3g} m",
            hint="add --gsd model to resample it on the way, or --ignore-gsd to map it as it is",
        )


def _check_scaling(contract: Contract, scene: Raster) -> None:
    """Whether the pixels as stored, or with the tags' scale and offset, are what the model was trained on."""
    if scene.scaling is None or all(pair == (contract.scale, 0) for pair in scene.scaling):
        return
    gain, offset = np.array(scene.scaling).T
    tags = ", ".join(f"{g:g} and {o:g}" for g, o in dict.fromkeys(scene.scaling))
    message = (
        f"scene {scene.path} has scale and offset tags ({tags}), which are not applied: "
        f"the model takes the pixels as stored times {contract.scale:.4g}"
    )
    hint = scaling_hint(scene, contract.dtype, contract.scale)
    pixels, valid = scene.sample()
    if valid.any():
        mean = pixels[:, valid].mean(axis=1, dtype=np.float64)
        usual, spread = np.array([(band.mean, band.std) for band in contract.bands]).T
        as_stored, as_tagged = (
            np.abs((values - usual) / spread).mean() for values in (mean * contract.scale, mean * gain + offset)
        )
        if as_stored > _FAR and as_tagged < as_stored / 2:
            raise SceneError(
                f"{message}, and these are {as_stored:.1f} standard deviations from those of its training",
                hint=f"apply the tags: {hint}",
            )
    log.warning("%s; if the training imagery had them applied: %s", message, hint)
