"""Whether a scene is what a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geoseg.contract import GSD_TOLERANCE, Contract
from geoseg.errors import SceneError
from geoseg.scene import Raster, open_scene


def open_model_scene(
    contract: Contract,
    scenes: str | Path | Sequence[str | Path],
    *,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: bool = False,
    aoi: Path | None = None,
    gsd_m: float | None = None,
) -> Raster:
    """Open scenes under a model's nodata rule, unless ``nodata`` says otherwise."""
    return open_scene(scenes, bands=bands, nodata=model_nodata(contract, nodata), alpha=alpha, aoi=aoi, gsd_m=gsd_m)


def model_nodata(contract: Contract, nodata: float | None) -> float | None:
    """The value that means nothing: the one given, else the model's, else None for the file's own."""
    return contract.nodata if nodata is None and isinstance(contract.nodata, float) else nodata


def check_scene(contract: Contract, scene: Raster, *, ignore_gsd: bool = False) -> None:
    """Refuse a scene that breaks the model's imagery contract.

    Raises:
        SceneError: Another number of bands, another dtype, or a GSD beyond ±30 % of the model's.
    """
    wanted = [band.name for band in contract.bands]
    if len(scene.bands) != len(wanted):
        places = ",".join(str(i) for i in range(1, len(wanted) + 1))
        enough = scene.file_bands >= len(wanted)
        hint = f"choose them with --bands {places}" if enough else f"see what it holds with: geoseg info {scene.path}"
        if enough and scene.alpha_band is not None and scene.alpha_band > len(wanted):
            hint += f" (add --alpha if band {scene.alpha_band} marks the valid pixels)"
        raise SceneError(
            f"scene {scene.path} has {len(scene.bands)} bands, "
            f"but the model expects {len(wanted)} ({', '.join(wanted)})",
            hint=hint,
        )
    if scene.dtype != contract.dtype:
        kind = {"uint8": "Byte", "uint16": "UInt16", "int16": "Int16", "float32": "Float32"}[contract.dtype]
        raise SceneError(
            f"scene {scene.path} is {scene.dtype}, but the model was trained on {contract.dtype}",
            hint=f"convert it to the same radiometry: gdal_translate -ot {kind} -scale … {scene.path} OUT.tif",
        )
    gsd = scene.grid.gsd_m()
    if ignore_gsd or contract.gsd_m is None or gsd is None:
        return
    if not 1 / (1 + GSD_TOLERANCE) <= gsd / contract.gsd_m <= 1 + GSD_TOLERANCE:
        raise SceneError(
            f"scene {scene.path} has pixels of {gsd:.3g} m, but the model was trained on {contract.gsd_m:.3g} m",
            hint="add --gsd model to resample it on the way, or --ignore-gsd to map it as it is",
        )
