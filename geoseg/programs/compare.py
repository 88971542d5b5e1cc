"""Two class maps → what changed: the program behind ``geoseg compare``. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from geoseg.arrays import FloatArray, IntArray
from geoseg.class_map.change import MapPair, Transitions, change_matrix, transition_name, transitions
from geoseg.class_map.writing import MapFileWriter
from geoseg.classes import ClassTable
from geoseg.errors import SceneError
from geoseg.evaluation.change import estimated_change, read_errors
from geoseg.export import Layer, check_format, write_polygons
from geoseg.grid import Grid
from geoseg.options import DEFAULT_RULES, AnyPath, MapReading, PolygonRules
from geoseg.paths import is_map
from geoseg.programs.early import check_comparing
from geoseg.programs.vectorize import check_rules, write_vectors
from geoseg.runtime.ahead import ahead
from geoseg.words import aligned, count

_MOST_COLUMNS = 8  # of the matrix as text
_MOST_CHANGES = 20  # listed where the matrix is wider


@dataclass(frozen=True, slots=True, eq=False)
class ChangeReport:
    """What `compare` found."""

    path: Path | None  # the file of changes, or None
    classes: ClassTable  # classes of both maps
    grid: Grid  # their grid
    pixels: IntArray  # pixels of every pair of classes, (K, K); rows are the earlier map
    area_m2: FloatArray  # their true area, m² (`Grid.area_unit` without a CRS), (K, K)
    # Change of each class corrected for the errors of the maps, (K,); None without an evaluation
    estimate_m2: FloatArray | None = None
    margin_m2: FloatArray | None = None  # half of its 95 % interval, (K,)
    polygons: int | None = None  # number of polygons of change; None if none were asked for
    notes: tuple[str, ...] = ()  # remarks for people

    def lines(self) -> list[str]:
        """The report for people: the matrix or the largest changes, each class, and the path of the changes."""
        unit, factor = self.grid.area_unit
        area, names = self.area_m2 * factor, self.classes.names
        total, changed = float(area.sum()), float(area.sum() - np.trace(area))
        if len(names) <= _MOST_COLUMNS:
            rows = [[*row, sum(row)] for row in area.tolist()]
            found = _table([f"from \\ to, {unit}", *names, "before"], names, rows)
        else:
            order = np.argsort(-np.where(np.eye(len(names)), 0, area), axis=None, kind="stable")
            places = [divmod(int(i), len(names)) for i in order[:_MOST_CHANGES]]
            shown = [(i, j) for i, j in places if i != j and area[i, j] > 0]
            listed = [transition_name(names[i], names[j]) for i, j in shown]
            found = _table([f"largest changes, {unit}", "area"], listed, [[area[i, j]] for i, j in shown])
        before, after = area.sum(axis=1), area.sum(axis=0)
        columns = [before, after, after - before]
        heads = [f"class, {unit}", "before", "after", "change"]
        if self.estimate_m2 is not None and self.margin_m2 is not None:
            columns += [self.estimate_m2 * factor, self.margin_m2 * factor]
            heads += ["estimated", "± 95 %"]
        found += ["", *_table(heads, names, np.stack(columns, axis=1).tolist()), ""]
        if changed:
            found.append(f"{changed:,.2f} of {total:,.2f} {unit} changed ({changed / total:.2%})")
        else:
            found.append(f"nothing changed: all {total:,.2f} {unit} have the same class in both maps")
        if not self.grid.is_metric:
            found.append(f"the maps' grid {self.grid.place_note}")
        if self.path is not None:
            what = "" if self.polygons is None else f": {count(self.polygons, 'polygon')} of change"
            found += [*self.notes, f"{self.path}{what}"]
        return found


def _table(heads: Sequence[str], names: Sequence[str], rows: Sequence[Sequence[float]]) -> list[str]:
    cells = [["–" if np.isnan(value) else f"{value:,.2f}" for value in row] for row in rows]
    return aligned([heads, *([name, *row] for name, row in zip(names, cells, strict=True))])


def compare(
    old: AnyPath,
    new: AnyPath,
    output: AnyPath | None = None,
    *,
    rules: PolygonRules = DEFAULT_RULES,
    evaluations: Sequence[AnyPath] = (),
    crs: str | None = None,
    classes: AnyPath | None = None,
    overwrite: bool = False,
) -> ChangeReport:
    """Count what became of each class between two class maps of one place, and write where.

    Both maps are read a band at a time, twice if there is an output. What is nodata in either is left out.

    Args:
        old: The earlier class map.
        new: The later one, on the same grid and with classes of the same names.
        output: Polygons of change, in the format of the suffix, with fields ``from`` and ``to``; or a raster of
            changes (``.tif``), 0 where nothing changed. None writes no file.
        rules: Rules for the polygons. Changes are classes with names such as ``forest:built``.
        evaluations: Folders that `geoseg evaluate` wrote, of the earlier map's model and of the later one's; one if the
            same model made both. They give the change of each class an estimate and an interval.
        crs: CRS of maps that have a transform but no CRS.
        classes: File with the names of the classes of both maps; None takes the maps' own.
        overwrite: Replace existing output.

    Raises:
        SceneError: Not class maps, or maps on different grids, with different classes or without common ground; more
            than 254 changes with an output; see `geoseg.programs.vectorize.vectorize`.
        OutputError: See `geoseg.programs.vectorize.vectorize`.
        LabelError: A value outside the maps' class table.
        ConfigError: A class or a change that there is not, or an evaluation that does not fit.
    """
    path = None if output is None else Path(output)
    check_comparing([old, new], path, rules=rules, evaluations=evaluations, classes=classes, overwrite=overwrite)
    with MapPair(old, new, MapReading(crs=crs, classes=classes)) as pair:
        errors = [read_errors(folder, pair.classes.names) for folder in evaluations]
        if path is not None and not is_map(path):
            check_format(path, pair.grid)
        pixels, area_m2 = change_matrix(pair)
        if not pixels.any():
            raise SceneError(f"{old} and {new} have no common ground: no pixel is valid in both")
        report = ChangeReport(path, pair.classes, pair.grid, pixels, area_m2)
        if errors:
            estimate, margin = estimated_change(errors, area_m2.sum(axis=1), area_m2.sum(axis=0))
            report = replace(report, estimate_m2=estimate, margin_m2=margin)
        return report if path is None else _written(pair, path, rules, report)


def _written(pair: MapPair, path: Path, rules: PolygonRules, report: ChangeReport) -> ChangeReport:
    """The report, after the changes are written."""
    changes = transitions(pair.classes, report.pixels + _named(rules, pair.classes))
    rows = ahead(changes.rows(pair), name="geoseg-read")
    if is_map(path):
        with MapFileWriter(path, pair.grid, changes.classes) as writer:
            for part in rows:
                writer.write(part)
        return report
    check_rules(rules, pair.grid, changes.classes, path=pair.path)
    texts = _texts(changes, rules)
    if len(changes.pairs) == 1:
        polygons = write_polygons([], path, Layer(path.stem, pair.grid.as_drawn(), changes.classes, more_texts=texts))
        return replace(report, polygons=polygons)
    found = write_vectors(rows, pair.grid, changes.classes, path, rules=rules, texts=texts)
    return replace(report, polygons=found.polygons, notes=found.notes[:1] if rules.regularize else ())


def _named(rules: PolygonRules, classes: ClassTable) -> IntArray:
    """1 for the pairs of classes (K, K) that the rules name: they may be named though none occurs."""
    named = {*rules.keep, *rules.regularize, *(name for members in rules.dissolve.values() for name in members)}
    return np.array([[transition_name(a, b) in named for b in classes.names] for a in classes.names], dtype=np.int64)


def _texts(changes: Transitions, rules: PolygonRules) -> dict[str, list[str]]:
    """The fields ``from`` and ``to`` of each class; of a group those of all its changes."""
    pairs = list(changes.pairs)
    for members in rules.dissolve.values():
        ids = sorted(changes.classes.id_of(name) for name in members)
        joined = [", ".join(dict.fromkeys(changes.pairs[i][side] for i in ids)) for side in (0, 1)]
        pairs[ids[0]] = joined[0], joined[1]
    return {"from": [a for a, _ in pairs], "to": [b for _, b in pairs]}
