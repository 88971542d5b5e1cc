"""Whether there is disk and memory for a prediction, and whether the scenes of a mosaic lie near each other."""

import shutil
from pathlib import Path

from geoseg.errors import ConfigError, OutputError, SceneError
from geoseg.runtime.machine import memory_bytes
from geoseg.scene import Raster
from geoseg.tiling.plan import IN_PROCESS, Plan
from geoseg.words import count

LARGE_PX = 1 << 30
LEAST_COVERED = 1e-3
"""Scenes that cover less than this share of a mosaic of more than `LARGE_PX` lie far apart: a mistake."""

MOST_COMPRESSED, MOST_COMPRESSED_NODATA = 200, 2000
"""No class map shrinks by more than these factors: inside scenes, and in nodata."""

EACH = "map each scene on its own: -o FOLDER/"


def check_room(plan: Plan, scene: Raster, folder: Path, *, there_bytes: int = 0) -> None:
    """Refuse a prediction into a folder that cannot be finished; an earlier run left parts of ``there_bytes``.

    Raises:
        SceneError: Scenes that cover next to nothing of their mosaic.
        OutputError: A disk too small for the output, even if it compresses well.
        ConfigError: More memory needed than the machine has.
    """
    several = len(scene.paths) > 1
    if scene.covered_share < LEAST_COVERED and plan.height * plan.width > LARGE_PX:
        number = count(len(scene.paths), "scene")
        raise SceneError(
            f"the {number} cover {100 * scene.covered_share:.2g} % of the mosaic, {plan.height} × {plan.width} px",
            hint=EACH,
        )
    least = plan.disk_bytes * (scene.covered_share / MOST_COMPRESSED + 1 / MOST_COMPRESSED_NODATA) - there_bytes
    free = shutil.disk_usage(folder).free
    if least > free:
        raise OutputError(
            f"a map of {plan.height} × {plan.width} px needs at least {_size(least)} of disk, "
            f"{folder} has {_size(free)} free",
            hint=EACH if several else "choose another folder with -o, or cut the scene with gdal_translate -srcwin",
        )
    memory = memory_bytes()
    if plan.executor == IN_PROCESS and memory is not None and plan.memory_bytes > memory:
        raise ConfigError(
            f"{plan.width} columns need {_size(plan.memory_bytes)} of memory, this machine has {_size(memory)}",
            hint=EACH if several else "cut the scene into narrower ones with gdal_translate -srcwin",
        )


def _size(number: float) -> str:
    return f"{number / 2**30:,.1f} GiB" if number >= 1 << 30 else f"{number / 2**20:,.1f} MiB"
