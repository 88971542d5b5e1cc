"""Whether a scene is like the imagery that a model was trained on."""

import logging

import numpy as np

from geoseg.arrays import FloatArray
from geoseg.contract import GSD_TOLERANCE, Contract
from geoseg.errors import SceneError
from geoseg.scene import Raster
from geoseg.scene.advice import band_hint, dtype_hint, order_of, scaling_hint
from geoseg.words import count

log = logging.getLogger(__name__)

_MOST_OFFSET, _MOST_SPREAD = 1.0, 3.0
"""Bands of a suitable scene have means within this many standard deviations of the training's (0.5 for held-out scenes
of the shipped model), and standard deviations that differ from it by at most this factor."""

_FEWEST = 4096  # valid pixels, below which nothing is said of a scene
_MOST_UPSAMPLING = 2.0
_LEAST_CONFIDENCE = 2 / 3  # of the way from chance to certainty

_FAR = 2.0
"""Standard deviations from the training's mean beyond which the content of a scene cannot explain its own mean."""


def model_nodata(contract: Contract, nodata: float | None) -> float | None:
    """The nodata value: the one given, else the model's, else None for the file's own."""
    return contract.nodata if nodata is None and isinstance(contract.nodata, float) else nodata


def check_scene(
    contract: Contract,
    scene: Raster,
    *,
    ignore_gsd: bool = False,
    gsd_hint: str = "add --gsd model to resample it on the way, or --ignore-gsd to map it as it is",
) -> None:
    """Refuse a scene that breaks the model's imagery contract, with a `SceneError`.

    That is another number of bands, another dtype, values that fit the model only with the scale and offset of the
    file's tags, or a pixel size more than 30 % off the model's; ``gsd_hint`` says what to do about that.
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
            hint=gsd_hint,
        )


def _check_scaling(contract: Contract, scene: Raster) -> None:
    """Refuse pixels that fit the model only with the scale and offset of the file's tags."""
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
        usual, spread = contract.statistics
        as_stored, as_tagged = (
            np.abs((values - usual) / spread).mean() for values in (mean * contract.scale, mean * gain + offset)
        )
        if as_stored > _FAR and as_tagged < as_stored / 2:
            raise SceneError(
                f"{message}, and these are {as_stored:.1f} standard deviations from those of its training",
                hint=f"apply the tags: {hint}",
            )
    log.warning("%s; if the training imagery had them applied: %s", message, hint)


def doubts(contract: Contract, scene: Raster) -> tuple[str, ...]:
    """Why a scene that `check_scene` lets pass may not suit the model all the same; one sentence each."""
    return tuple(filter(None, (_size_doubt(contract, scene), _value_doubt(contract, scene))))


def _value_doubt(contract: Contract, scene: Raster) -> str | None:
    """A doubt if the pixels have other means or contrasts than the training's."""
    try:
        pixels, valid = scene.sample()
    except SceneError:  # reported by whoever reads that place
        return None
    if np.count_nonzero(valid) < _FEWEST:
        return None
    values = pixels[:, valid].astype(np.float64) * contract.scale
    usual, spread = contract.statistics
    off = []
    offsets = (values.mean(axis=1) - usual) / spread
    if np.abs(offsets).max() > _MOST_OFFSET:
        off.append(f"mean of {_by_band(contract, offsets, '+.1f')} standard deviations")
    ratios = values.std(axis=1) / spread
    if not (ratios.min() >= 1 / _MOST_SPREAD and ratios.max() <= _MOST_SPREAD):
        off.append(f"contrast of {_by_band(contract, ratios, '.2g')} times the usual")
    return (
        f"scene {scene.path} is unlike the imagery that the model was trained on ({'; '.join(off)}): "
        "look at the map before relying on it"
        if off
        else None
    )


def _size_doubt(contract: Contract, scene: Raster) -> str | None:
    """A doubt if the imagery lacks the details that the model sees, or its objects have another size."""
    own, seen = scene.own_grid.pixel_size_m(), scene.grid.pixel_size_m()
    if own is None or seen is None:
        return None
    if max(own) > _MOST_UPSAMPLING * max(seen):
        return (
            f"the pixels of scene {scene.path} are {max(own):.2g} m, {max(own) / max(seen):.1f} times what they are "
            f"resampled to: details of {max(seen):.2g} m, which the model was trained on, are not in the imagery"
        )
    factor = max(seen) / contract.gsd_m if contract.gsd_m is not None else 1.0
    if 1 / _MOST_UPSAMPLING <= factor <= _MOST_UPSAMPLING:
        return None
    return (
        f"the model sees scene {scene.path} at pixels of {max(seen):.2g} m, but was trained on {contract.gsd_m:.2g} m: "
        "objects have another size than it knows"
    )


def _by_band(contract: Contract, values: FloatArray, form: str) -> str:
    return ", ".join(f"{value:{form}} ({band.name})" for value, band in zip(values, contract.bands, strict=True))


def low_confidence(mean: float | None, classes: int) -> str | None:
    """A sentence about a map if its mean confidence is low for this many classes."""
    if mean is None or classes < 2 or (mean - 1 / classes) / (1 - 1 / classes) >= _LEAST_CONFIDENCE:
        return None
    return f"the model was unsure of its map (mean confidence {mean:.2f}): the imagery may be unlike its training's"
