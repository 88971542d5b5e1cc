"""Scenes and a model to a class map, or straight on to polygons: the program behind ``geoseg predict``."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

import geoseg
from geoseg.classes import NODATA, ClassTable
from geoseg.contract import GSD_TOLERANCE, Contract
from geoseg.devices import resolve_device
from geoseg.errors import DeviceError, OutputError, SceneError
from geoseg.export import EXPORTERS
from geoseg.grid import Grid
from geoseg.map_files import MapFileWriter
from geoseg.map_rows import MapRows
from geoseg.model_folder import Normalize, TrainedModel, load_model
from geoseg.outputs import check_output
from geoseg.plan import Plan, count, plan_prediction
from geoseg.polygons import parse_tolerance
from geoseg.scene import Mosaic, Pixels, Scene, Valid, open_scene
from geoseg.stitch import Stitcher
from geoseg.vectorize import vectorize
from geoseg.windows import Window

log = logging.getLogger(__name__)

RASTER_SUFFIXES = (".tif", ".tiff")
DEFAULT_BATCH = {"cpu": 2, "cuda": 16}

ClassValues = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PredictReport:
    """What `predict` wrote and how it went.

    Attributes:
        path: The output.
        grid: Grid of the class map.
        plan: Windows and memory.
        skipped: Windows without a valid pixel, which never reached the network.
        areas_m2: Area per class, m² on the ground (px without a CRS), (K,).
        classes: The class table.
        seconds: Time of the prediction, without loading the model.
        polygons: Number of polygons, where the output is a vector file.
    """

    path: Path
    grid: Grid
    plan: Plan
    skipped: int
    areas_m2: npt.NDArray[np.float64]
    classes: ClassTable
    seconds: float
    polygons: int | None = None

    @property
    def mpx_per_s(self) -> float:
        """Scene pixels per second, in millions."""
        return self.grid.height * self.grid.width / 1e6 / self.seconds

    def lines(self) -> list[str]:
        """The report for people, the output's path first."""
        total = max(float(self.areas_m2.sum()), 1e-12)
        unit, factor = ("ha", 1e-4) if self.grid.is_georeferenced else ("px", 1.0)
        width = max(len(c.name) for c in self.classes)
        table = [
            f"  {c.name:{width}}  {area * factor:12,.2f} {unit}  {100 * area / total:5.1f} %"
            for c, area in zip(self.classes, self.areas_m2, strict=True)
        ]
        size = f"{self.grid.height} × {self.grid.width} px"
        done = f"{size} in {self.seconds:.1f} s, {self.mpx_per_s:.2f} Mpx/s; {self.plan}"
        extra = [f"{count(self.skipped, 'window')} without a valid pixel skipped"] if self.skipped else []
        if self.polygons is not None:
            extra.append(count(self.polygons, "polygon"))
        if not self.grid.is_georeferenced:
            extra.append("the scene has no CRS, so neither has the map: its coordinates are pixels")
        return [str(self.path), *table, done, *extra]


def predict(
    scenes: Sequence[str],
    model: str,
    output: Path,
    *,
    size: int | None = None,
    overlap: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: bool = False,
    ignore_gsd: bool = False,
    simplify: str = "1.5px",
    min_area_m2: float = 0.0,
    overwrite: bool = False,
    progress: bool = False,
) -> PredictReport:
    """Map scenes with a model.

    Everything that can be wrong is checked before the first window; nothing is found under the output's name before
    it is finished.

    Args:
        scenes: Rasters; several are read as one mosaic.
        model: Model folder, or the name of a shipped model.
        output: ``.tif`` for a class map; ``.gpkg``, ``.geojson``, ``.shp``, ``.fgb`` or ``.parquet`` for polygons.
        size: Window side, px; None takes the model's.
        overlap: Strip shared by neighbouring windows, px; None takes the model's, or a quarter of ``size``.
        batch_size: Windows per forward; None takes 2 on a CPU, 16 on a GPU.
        device: "auto", "cpu", "cuda" or "cuda:N".
        bands: 1-based bands of the scene for the model's bands; None takes all.
        nodata: Value that means nothing, over the file's own.
        alpha: Take the alpha band as validity.
        ignore_gsd: Predict though the ground sample distance is not the model's.
        simplify: Tolerance for the borders of polygons: "1.5px", "0.5m" or "none".
        min_area_m2: Polygons below this area go to a neighbour.
        overwrite: Replace what is there.
        progress: Draw a progress bar on standard error.

    Raises:
        OutputError: Unknown suffix, the output exists, or its folder cannot be written.
        ModelError: No such model, or a broken one.
        SceneError: A scene that cannot be read, or breaks the model's imagery contract.
        ConfigError: A window size, overlap or tolerance that cannot be meant.
        DeviceError: A device that is not there, or is out of memory.
    """
    suffix = output.suffix.lower()
    if suffix not in (*RASTER_SUFFIXES, *EXPORTERS):
        known = ", ".join((".tif", *EXPORTERS))
        raise OutputError(f"output {output} has the unknown suffix {suffix or '(none)'}", hint=f"known: {known}")
    check_output(output, overwrite=overwrite, inputs=scenes)
    tolerance = parse_tolerance(simplify)
    target = resolve_device(device)
    trained = load_model(model)
    with open_model_scene(trained.contract, scenes, bands=bands, nodata=nodata, alpha=alpha) as scene:
        check_scene(trained.contract, scene, ignore_gsd=ignore_gsd)
        predictor = Predictor(trained, target)
        plan = predictor.plan(scene, size=size, overlap=overlap, batch_size=batch_size)
        tags = provenance(trained, plan)
        if suffix in RASTER_SUFFIXES:
            return _write_map(predictor, scene, plan, output, tags, progress=progress)
        if tolerance is not None and tolerance.unit == "m" and not scene.grid.is_georeferenced:
            raise SceneError(
                f"{scene.path} has no CRS, so --simplify {simplify} has no meaning", hint="--simplify 1.5px"
            )
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".geoseg-") as scratch:
            class_map = Path(scratch) / f"{output.stem}.tif"
            report = _write_map(predictor, scene, plan, class_map, tags, progress=progress)
            vectors = vectorize(class_map, output, simplify=tolerance, min_area_m2=min_area_m2, overwrite=overwrite)
    return PredictReport(
        output, report.grid, plan, report.skipped, report.areas_m2, report.classes, report.seconds, vectors.polygons
    )


def open_model_scene(
    contract: Contract,
    scenes: Sequence[str],
    *,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: bool = False,
) -> Scene | Mosaic:
    """Open scenes under a model's nodata rule, unless ``nodata`` says otherwise."""
    if nodata is None and isinstance(contract.nodata, float):
        nodata = contract.nodata
    return open_scene(scenes, bands=bands, nodata=nodata, alpha=alpha)


def check_scene(contract: Contract, scene: Scene | Mosaic, *, ignore_gsd: bool = False) -> None:
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
        factor = 100 * gsd / contract.gsd_m
        raise SceneError(
            f"scene {scene.path} has pixels of {gsd:.3g} m, but the model was trained on {contract.gsd_m:.3g} m",
            hint=f"resample it: gdal_translate -r average -outsize {factor:.1f}% {factor:.1f}% {scene.path} OUT.tif, "
            "or add --ignore-gsd",
        )


class Predictor:
    """A model on a device.

    Args:
        trained: The model.
        device: Where it runs.
    """

    def __init__(self, trained: TrainedModel, device: torch.device) -> None:
        self.contract = trained.contract
        self.device = device
        self.classes = trained.contract.class_table
        network = trained.network
        self.stride = int(getattr(network, "logits_stride", 1))
        self._network: nn.Module = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._normalize = Normalize(self.contract).to(device)

    def plan(
        self,
        scene: Scene | Mosaic,
        *,
        size: int | None = None,
        overlap: int | None = None,
        batch_size: int | None = None,
    ) -> Plan:
        """Windows and memory for a scene; what is not given comes from the model's contract.

        Raises:
            ConfigError: See `geoseg.plan.plan_prediction`.
        """
        window = self.contract.window
        if overlap is None:
            overlap = window.overlap if size is None else size // 4 // 32 * 32
        return plan_prediction(
            scene.grid.height,
            scene.grid.width,
            size=window.size if size is None else size,
            overlap=overlap,
            stride=self.stride,
            classes=len(self.classes),
            pixel_bytes=len(scene.bands) * scene.dtype.itemsize,
            batch_size=DEFAULT_BATCH[self.device.type] if batch_size is None else batch_size,
        )

    @torch.inference_mode()
    def logits(self, pixels: Tensor, valid: Tensor) -> Tensor:
        """Logits at the network's stride of pixels (N, B, H, W) as read and valid (N, H, W)."""
        x = self._normalize(pixels.to(self.device, non_blocking=True), valid.to(self.device, non_blocking=True))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            network = self._network
            out: Tensor = network.forward_logits(x) if self.stride > 1 else network(x)  # type: ignore[operator]
        return out

    def rows(self, scene: Scene | Mosaic, plan: Plan, counts: dict[str, int] | None = None) -> Iterator[ClassValues]:
        """Class ids of a scene in finished rows, (h, W) uint8, from top to bottom; 255 exactly where it is invalid.

        The next strip of the scene is read in a thread while the network works on this one.

        Args:
            scene: The open scene.
            plan: Its plan.
            counts: Gets "skipped", the number of windows without a valid pixel.

        Raises:
            SceneError: A block of the scene cannot be read.
            DeviceError: The device is out of memory.
        """
        stitcher = Stitcher(
            height=plan.height,
            width=plan.width,
            classes=len(self.classes),
            stride=plan.stride,
            window_height=plan.window_height,
            window_width=plan.window_width,
            padded_width=plan.padded_width,
            device=self.device,
        )
        skipped = 0
        pending = np.empty((0, plan.width), dtype=bool)  # validity of the rows not finished yet
        with ThreadPoolExecutor(1, thread_name_prefix="geoseg-read") as reader:
            strips = _Strips(scene, plan)
            future = reader.submit(strips.next)
            for i, row in enumerate(plan.rows):
                pixels, valid, fresh = future.result()
                next_row = plan.rows[i + 1] if i + 1 < len(plan.rows) else None
                if next_row is not None:
                    future = reader.submit(strips.next)
                pending = np.concatenate([pending, valid[-fresh:, : plan.width]])
                cols = [c for c in plan.cols if valid[:, c : c + plan.window_width].any()]
                skipped += len(plan.cols) - len(cols)
                for first in range(0, len(cols), plan.batch_size):
                    self._add(stitcher, plan, row, cols[first : first + plan.batch_size], pixels, valid)
                for ids in stitcher.finish(next_row):
                    rows = ids.cpu().numpy()
                    rows[~pending[: len(rows)]] = NODATA
                    pending = pending[len(rows) :]
                    yield rows
        if counts is not None:
            counts["skipped"] = skipped

    def _add(self, stitcher: Stitcher, plan: Plan, row: int, cols: list[int], pixels: Pixels, valid: Valid) -> None:
        width = plan.window_width
        try:
            batch = self.logits(
                torch.from_numpy(np.stack([pixels[:, :, c : c + width] for c in cols])),
                torch.from_numpy(np.stack([valid[:, c : c + width] for c in cols])),
            )
            for col, logits in zip(cols, batch, strict=True):
                stitcher.add(Window(row, col, plan.window_height, width), logits)
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"device {self.device} is out of memory with {plan.batch_size} windows of {plan.window_height} px",
                hint=f"--batch-size {max(plan.batch_size // 2, 1)}",
            ) from error


class _Strips:
    """Strips of a scene as high as a window, each row read once: what two strips share is kept."""

    def __init__(self, scene: Scene | Mosaic, plan: Plan) -> None:
        self._scene, self._plan = scene, plan
        self._starts = iter(plan.rows)
        self._stop = 0
        self._pixels: Pixels | None = None
        self._valid: Valid | None = None

    def next(self) -> tuple[Pixels, Valid, int]:
        """Pixels (B, h, W) and valid (h, W) of the next strip, and how many of its last rows are new."""
        start = next(self._starts)
        stop = start + self._plan.window_height
        fresh = stop - self._stop
        pixels, valid = self._scene.read(Window(self._stop, 0, fresh, self._plan.padded_width), reflect_valid=True)
        if self._pixels is not None and self._valid is not None:
            kept = fresh - self._plan.window_height
            pixels = np.concatenate([self._pixels[:, kept:], pixels], axis=1) if kept else pixels
            valid = np.concatenate([self._valid[kept:], valid]) if kept else valid
        self._stop, self._pixels, self._valid = stop, pixels, valid
        return pixels, valid, fresh


def provenance(trained: TrainedModel, plan: Plan) -> dict[str, str]:
    """Tags of a class map: what made it."""
    return {
        "GEOSEG_VERSION": geoseg.__version__,
        "GEOSEG_MODEL": trained.contract.name,
        "GEOSEG_MODEL_SHA256": trained.digest,
        "GEOSEG_WINDOW": f"{plan.window_height}x{plan.window_width}",
        "GEOSEG_OVERLAP": str(plan.overlap),
    }


def _write_map(
    predictor: Predictor, scene: Scene | Mosaic, plan: Plan, path: Path, tags: dict[str, str], *, progress: bool
) -> PredictReport:
    """Predict into a class map; areas are summed on the way."""
    classes = predictor.classes
    if not scene.grid.is_georeferenced:
        log.warning("%s has no CRS: the map will have none either", scene.path)
    row_area = scene.grid.pixel_area_m2()
    areas = np.zeros(len(classes))
    counts = {"skipped": 0}
    start, done = time.perf_counter(), 0
    bar = tqdm(total=plan.height * plan.width, unit="px", unit_scale=True, desc="predict", disable=not progress)
    with bar, MapFileWriter(path, scene.grid, classes, tags=tags) as writer:
        for rows in predictor.rows(scene, plan, counts):
            writer.write(MapRows(rows))
            keys = rows.astype(np.int32) + 256 * np.arange(len(rows), dtype=np.int32)[:, None]
            per_row = np.bincount(keys.ravel(), minlength=256 * len(rows)).reshape(-1, 256)[:, : len(classes)]
            areas += row_area[done : done + len(rows)] @ per_row
            done += len(rows)
            bar.update(rows.size)
    return PredictReport(path, scene.grid, plan, counts["skipped"], areas, classes, time.perf_counter() - start)
