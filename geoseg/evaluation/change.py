"""Areas of two maps of one place corrected by what evaluations found wrong, and the change between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from geoseg.arrays import FloatArray, IntArray
from geoseg.errors import ConfigError
from geoseg.evaluation import SCORES_JSON
from geoseg.options import AnyPath


@dataclass(frozen=True, slots=True, eq=False)
class MapErrors:
    """What an evaluation says of the errors of a model's maps.

    Attributes:
        confusion: Pixels, (K, K), row = truth.
        spread: How much wider the interval of each class was in the evaluation, which counts blocks, than if errors
            of neighbouring pixels were independent, (K,); NaN if unknown.
    """

    confusion: IntArray
    spread: FloatArray

    def areas(self, mapped_m2: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Areas of the true classes where some area is mapped as each, and half their 95 % intervals, (K,) each.

        Equations 9 and 10 of Olofsson et al. (see `geoseg.evaluation.result.AreaEstimate`), stratified by mapped class,
        times `spread`. NaN if a class is mapped and the evaluation has none of it.
        """
        used = mapped_m2 != 0
        sampled = self.confusion.sum(axis=0)[used].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = self.confusion.T[used] / sampled[:, None]  # (mapped, true)
            variance = share * (1 - share) / (sampled - 1)[:, None]
            margin = 1.959963984540054 * np.sqrt(mapped_m2[used] ** 2 @ variance)  # 95 % of a normal distribution
        return mapped_m2[used] @ share, margin * self.spread


def read_errors(path: AnyPath, classes: Sequence[str]) -> MapErrors:
    """The errors that ``geoseg evaluate`` found, from its folder or ``scores.json``, for a map's classes in order.

    A `ConfigError` if it is no evaluation, one of other classes, or one without areas.
    """
    file = Path(path)
    file = file / SCORES_JSON if file.is_dir() else file
    try:
        content = orjson.loads(file.read_bytes())
        names, total = content["classes"], content["all"]
        found = {name: total["classes"][name] for name in names}
        confusion = np.array(total["confusion"], dtype=np.int64)
    except FileNotFoundError as error:
        raise ConfigError(f"no such evaluation: {file}", hint="geoseg evaluate MODEL CONFIG -o evaluation") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is not an evaluation of geoseg", hint="name the folder that geoseg evaluate wrote"
        ) from error
    if set(names) != set(classes):
        raise ConfigError(
            f"the evaluation {file} has the classes {', '.join(names)}, the maps {', '.join(classes)}",
            hint="name an evaluation of the model that made the maps",
        )
    if any("margin_ha" not in found[name] for name in names):
        raise ConfigError(
            f"the evaluation {file} has no areas", hint="evaluate whole scenes that have a CRS: --protocol scene"
        )
    order = [names.index(name) for name in classes]
    mapped, margin = (
        np.array([np.nan if found[name][key] is None else found[name][key] for name in classes], dtype=np.float64)
        for key in ("mapped_ha", "margin_ha")
    )
    alone = MapErrors(confusion[np.ix_(order, order)], np.ones(len(order)))
    independent = alone.areas(mapped)[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.where(independent > 0, margin / independent, 1.0)
    return MapErrors(alone.confusion, spread)


def estimated_change(
    errors: Sequence[MapErrors], old_m2: FloatArray, new_m2: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Change of the area of each true class, and half its 95 % interval, (K,) each, from what is mapped of each.

    ``errors`` are those of the earlier map and of the later one; or one, if the same model made both. Also then the
    errors of the dates count as independent: the same model errs in other ways on other imagery.
    """
    (before, before_margin), (after, after_margin) = errors[0].areas(old_m2), errors[-1].areas(new_m2)
    return after - before, np.hypot(before_margin, after_margin)
