"""Class map → polygons → GIS file: the program behind ``geoseg vectorize``. Imports no torch."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geoseg.class_map import ClassMapReader, layer_path
from geoseg.classes import NODATA, ClassTable
from geoseg.errors import LabelError, SceneError, quoted
from geoseg.export import Layer, check_format, write_polygons
from geoseg.georeference import refuse_unwarped
from geoseg.grid import Grid
from geoseg.map_rows import MapRows
from geoseg.options import DEFAULT_RULES, AnyPath, MapReading, PolygonRules
from geoseg.paths import exists
from geoseg.polygons import PolygonBatch, class_rules, polygonize_rows
from geoseg.polygons.walls.rows import Outlines
from geoseg.programs.early import check_vectorizing
from geoseg.runtime.ahead import ahead
from geoseg.words import count

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClassArea:
    """One class of a vectorised map: polygons and their area, m² (`Grid.area_unit` where the map has no CRS)."""

    name: str
    polygons: int
    area_m2: float


@dataclass(frozen=True, slots=True)
class VectorReport:
    """Polygons and areas that `vectorize` wrote."""

    path: Path
    polygons: int
    classes: tuple[ClassArea, ...]  # those that have polygons, in the order of their ids
    grid: Grid
    notes: tuple[str, ...] = ()  # for people: regularized outlines, a background left out

    def lines(self) -> list[str]:
        """The report for people, the output's path first."""
        unit, factor = self.grid.area_unit
        width = max((len(c.name) for c in self.classes), default=0)
        table = [
            f"  {c.name:{width}}  {c.area_m2 * factor:12,.2f} {unit}  {count(c.polygons, 'polygon')}"
            for c in self.classes
        ]
        extra = [] if self.grid.is_metric else [f"the map {self.grid.place_note}"]
        return [str(self.path), *table, *self.notes, *extra]


def vectorize(
    map_path: AnyPath,
    output: AnyPath,
    *,
    rules: PolygonRules = DEFAULT_RULES,
    crs: str | None = None,
    classes: AnyPath | None = None,
    overwrite: bool = False,
) -> VectorReport:
    """Write the polygons of a class map as a GIS file, in the format of the output's suffix.

    The map is read and its polygons are written a band at a time; neither is ever held whole.

    Args:
        map_path: Class map: what `geoseg predict` wrote, or any raster of one uint8 band. The confidence raster that
            lies beside it (``MAP_confidence.tif``) gives the polygons their conf_mean and conf_min, the contact raster
            (``MAP_contact.tif``) separates objects.
        output: See `geoseg.export.EXPORTERS` for the suffixes; a ``.qml`` style comes beside it.
        rules: Rules for regions and borders.
        crs: CRS of a map that has a transform but no CRS.
        classes: File with the names of the classes, see `geoseg.class_tables.read_class_table`; None takes the map's.
        overwrite: Replace existing output.

    Raises:
        SceneError: The input is not a class map, cannot be read, is all nodata, or has control points in place of a
            transform; or the CRS is not the map's; or there is no contact raster to separate objects by.
        OutputError: Unknown suffix, the output exists, its folder cannot be written, or its format cannot hold the map.
        LabelError: A value outside the map's class table.
        ConfigError: A class that the map does not have, a tolerance in metres and the map has no CRS, or a file of
            classes that cannot be read.
    """
    path = Path(output)
    check_vectorizing(map_path, path, rules=rules, classes=classes, overwrite=overwrite)
    with ClassMapReader(map_path, MapReading(crs=crs, classes=classes)) as reader:
        refuse_unwarped(os.fspath(map_path), reader.warp_command)
        check_format(path, reader.grid)
        check_rules(rules, reader.grid, reader.classes, path=map_path)
        if rules.separate and reader.contact_path is None:
            contact = layer_path(map_path, "contact")
            why = f"{contact} was not written with {map_path}" if exists(contact) else f"no {contact} beside the map"
            raise SceneError(
                f"{why}, so --separate cannot tell where objects touch",
                hint="geoseg predict writes both if the model was trained with separate: true",
            )
        if not reader.is_named:
            log.warning("%s does not name its classes: --classes FILE.yaml gives them names", map_path)
        try:
            rows = ahead(_not_empty(reader.rows(contact=bool(rules.separate)), map_path), name="geoseg-read")
            return write_vectors(rows, reader.grid, reader.classes, path, rules=rules, source=reader.source)
        except LabelError as error:
            hint = f"look at it with: geoseg info {quoted(map_path)}; --classes FILE.yaml names all of it"
            raise LabelError(f"{map_path}: {error.message}", hint=hint) from error


def check_rules(rules: PolygonRules, grid: Grid, classes: ClassTable, *, path: AnyPath) -> None:
    """Refuse rules that a map cannot meet, before any work, with a `ConfigError`; ``path`` is named in it.

    That is a class that the map does not have, or a tolerance that is in metres without a CRS, too large, or of walls
    and less than a pixel.
    """
    class_rules(rules, classes)
    if rules.simplify is not None:
        rules.simplify.in_pixels(grid, path)
    if rules.regularize:
        rules.regularize_tolerance.walls_px(grid, path)
    if not grid.is_metric and (rules.min_area_m2 or rules.fill_holes_m2):
        log.warning("%s has no CRS: --min-area and --fill-holes count in %s", path, grid.area_unit[0])


def write_vectors(
    rows: Iterable[MapRows],
    grid: Grid,
    classes: ClassTable,
    output: Path,
    *,
    rules: PolygonRules = DEFAULT_RULES,
    source: str | None = None,
    texts: Mapping[str, Sequence[str]] | None = None,
) -> VectorReport:
    """Write the polygons of a class map that arrives row by row; all of it or nothing.

    An existing output is replaced (call `geoseg.files.check_output` before the work). ``source`` is the name of the
    scene that was mapped, ``texts`` are further fields with a value for each class. For errors see `vectorize`.
    """
    drawn = grid.as_drawn()
    resolved = class_rules(rules, classes)
    outlines, number = Outlines(), len(classes)
    polygons, areas = np.zeros(number, dtype=np.int64), np.zeros(number)

    def counted() -> Iterator[PolygonBatch]:
        for batch in polygonize_rows(rows, drawn, classes, rules=rules, outlines=outlines):
            polygons[:] += np.bincount(batch.class_id, minlength=number)
            areas[:] += np.bincount(batch.class_id, weights=batch.columns["area_m2"], minlength=number)
            yield batch

    layer = Layer(output.stem, drawn, resolved.classes, source, texts or {})
    total = write_polygons(ahead(counted(), name="geoseg-polygons"), output, layer)
    found = [ClassArea(c.name, int(polygons[c.id]), float(areas[c.id])) for c in resolved.classes if polygons[c.id]]
    notes = [str(outlines)] if rules.regularize else []
    if not rules.keep and resolved.left_out is not None:
        left_out = ", ".join(c.name for c in resolved.classes if c.background)
        notes.append(
            f"left out: {left_out} (background); --keep CLASS (repeatable) selects the classes that become polygons"
        )
    return VectorReport(output, total, tuple(found), grid, tuple(notes))


def _not_empty(rows: Iterable[MapRows], map_path: AnyPath) -> Iterator[MapRows]:
    """The rows; an error at their end if all pixels are nodata."""
    empty = True
    for part in rows:
        empty = empty and bool((part.classes == NODATA).all())
        yield part
    if empty:
        raise SceneError(
            f"{map_path} is all nodata, so there are no polygons to write",
            hint=f"look at it with: geoseg info {quoted(map_path)}",
        )
