"""All problems of the scenes and labels of a configuration, found before training starts.

Every scene is checked, whatever is wrong with the others: its header, its labels, a few places of its imagery, and
whether labels lie where the imagery has them. Then scenes are compared: places, pixel sizes, classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from geoseg.arrays import BoolArray
from geoseg.classes import NODATA
from geoseg.config import SceneConfig, TrainConfig
from geoseg.data.checks.alignment import WINDOWS, Offset, direction, label_offset
from geoseg.data.checks.imagery import SceneFacts, check_header, check_pixels, compare_scenes
from geoseg.data.histogram import class_histogram
from geoseg.data.labelled import LabelledScene, check_labelled_area, is_raster
from geoseg.data.labels import LabelFacts
from geoseg.data.layers import whole_layers
from geoseg.data.leakage import check_leakage, leakage_hint
from geoseg.data.polygon_labels import check_polygon_labels
from geoseg.data.problems import Problem, as_problem, error, has_error, in_order, warning
from geoseg.data.raster_labels import check_raster_labels
from geoseg.errors import GeosegError, quoted
from geoseg.georeference import crs_name
from geoseg.grid import Grid
from geoseg.runtime.processors import processors
from geoseg.scene import Scene

PIXEL_SCENES = 200
OFFSET_SCENES = 64
"""Scenes of which pixels are read, and offsets measured; of more, as many are spread evenly."""

_MANY = 16
_FEW_WINDOWS = 8
"""Windows per scene in which offsets are measured if there are many scenes."""

_THREADS = 8


@dataclass(slots=True)
class _Checked:
    """One scene of the configuration, and what is known of it so far."""

    config: SceneConfig
    index: int
    facts: SceneFacts | None = None
    found: LabelFacts = field(default_factory=LabelFacts)
    labelled: LabelledScene | None = None
    problems: list[Problem] = field(default_factory=list)

    @property
    def grid(self) -> Grid | None:
        return self.facts.grid if self.facts is not None else None

    @property
    def is_sound(self) -> bool:
        return self.facts is not None and not has_error(self.problems)


def check_data(settings: TrainConfig) -> list[Problem]:
    """All problems of a configuration's scenes and labels: errors, then warnings, each sorted by file."""
    # The position of a scene in its split decides which of its blocks validate.
    places = {entry: i for split in ("val", "train") for i, entry in enumerate(settings.data.entries(split))}
    scenes = [_Checked(entry, index) for entry, index in places.items()]
    shared: list[Problem] = []
    threads = min(_THREADS, processors())
    with whole_layers(), ThreadPoolExecutor(threads, thread_name_prefix="geoseg-check") as pool:

        def each(some: Sequence[_Checked], check: Callable[..., None], *args: Any) -> None:
            list(pool.map(lambda scene: _checked(scene, check, *args), some))

        each(scenes, _check_header, settings)
        for problems in pool.map(lambda group: _check_polygons(group, settings), _by_polygons(scenes)):
            shared += problems
        each(scenes, _check_labels, settings)
        broken = {problem.where for problem in shared if problem.severity == "error"}
        each(scenes, _open, settings, broken)
        each(_spread([s for s in scenes if s.is_sound], PIXEL_SCENES), _check_pixels, settings)
        opened = [scene for scene in scenes if scene.labelled is not None]
        measured = _spread(opened, OFFSET_SCENES)
        windows = WINDOWS if len(measured) <= _MANY else _FEW_WINDOWS
        each(measured, _check_offset, windows)
        if not shared and len(opened) == len(scenes):
            each(scenes, _count_training, settings)
    found = [problem for scene in scenes for problem in scene.problems] + shared
    found += compare_scenes([scene.facts for scene in scenes if scene.facts is not None])
    found += _check_leakage(scenes, settings)
    if not has_error(found):
        found += _check_classes(scenes, settings)
    return in_order(found)


def _checked(scene: _Checked, check: Callable[..., None], *args: Any) -> None:
    """Check a scene; an exception is a problem too."""
    try:
        check(scene, *args)
    except GeosegError as raised:
        scene.problems.append(as_problem(scene.config.scene, raised))


def _spread(scenes: Sequence[_Checked], most: int) -> Sequence[_Checked]:
    """All scenes, or as many as wanted, spread evenly."""
    if len(scenes) <= most:
        return scenes
    return [scenes[i] for i in np.linspace(0, len(scenes) - 1, most).astype(int)]


def _check_header(scene: _Checked, settings: TrainConfig) -> None:
    problems, scene.facts = check_header(scene.config, settings.imagery, settings.train.size)
    scene.problems += problems


def _by_polygons(scenes: Sequence[_Checked]) -> list[list[_Checked]]:
    """Scenes whose labels are polygons, those with the same file and rules together."""
    groups: dict[SceneConfig, list[_Checked]] = {}
    for scene in scenes:
        if not is_raster(scene.config):
            rules = scene.config.model_copy(update={"scene": scene.config.labels, "labelled_area": None})
            groups.setdefault(rules, []).append(scene)
    return list(groups.values())


def _check_polygons(group: Sequence[_Checked], settings: TrainConfig) -> list[Problem]:
    grids = {scene.config.scene: scene.grid for scene in group}
    first = settings.data.first_label
    problems, found = check_polygon_labels(group[0].config, grids, settings.class_table, first_label=first)
    for scene in group:
        scene.found = found[scene.config.scene]
    return problems


def _check_labels(scene: _Checked, settings: TrainConfig) -> None:
    """Check labels that are a raster, and the labelled area."""
    config, grid = scene.config, scene.grid
    if is_raster(config):
        classes, first = settings.class_table, settings.data.first_label
        problems, scene.found = check_raster_labels(config.labels, config.scene, grid, classes, first_label=first)
        scene.problems += problems
    if config.labelled_area is not None and grid is not None:
        scene.problems += check_labelled_area(config.labelled_area, config.scene, grid)


def _open(scene: _Checked, settings: TrainConfig, broken: set[str]) -> None:
    """Open the scene as training will, which reports what the other checks do not."""
    if scene.is_sound and not broken & {str(scene.config.labels), str(scene.config.scene)}:
        scene.labelled = LabelledScene(scene.config, settings, index=scene.index)


def _check_pixels(scene: _Checked, settings: TrainConfig) -> None:
    scene.problems += check_pixels(scene.config, settings.imagery)


def _check_offset(scene: _Checked, windows: int) -> None:
    assert scene.labelled is not None
    offset = label_offset(scene.labelled, windows=windows)
    if offset is not None and offset.is_clear:
        scene.problems.append(_offset_problem(scene.config, scene.labelled.grid, offset))


def _offset_problem(config: SceneConfig, grid: Grid, offset: Offset) -> Problem:
    t = grid.transform
    where = direction(offset.rows, offset.cols)
    if grid.is_georeferenced and t.a > 0 > t.e and t.b == t.d == 0:
        for word, side in ("up", "north"), ("down", "south"), ("left", "west"), ("right", "east"):
            where = where.replace(word, side)
    gsd = grid.gsd_m()
    far = f"{offset.distance_px:.1f} px" + (f" ({offset.distance_px * gsd:.2g} m)" if gsd is not None else "")
    better = f"{offset.gain:.1f} times better" if offset.gain < 10 else "more than 10 times better"
    dx, dy = -t.a * offset.cols - t.b * offset.rows, -t.d * offset.cols - t.e * offset.rows
    move = f"{dx:.6g} in x and {dy:.6g} in y" + (f" ({crs_name(grid.crs)})" if grid.crs is not None else "")
    return warning(
        config.labels,
        f"labels {config.labels} seem to lie {far} too far {where} in scene {config.scene} ({offset.rows:+d} rows, "
        f"{offset.cols:+d} columns): moved back, their borders match its edges {better}, and "
        f"{offset.agreeing} of {offset.windows} windows agree",
        f"compare both in QGIS; if this is right, move the labels by {move}",
    )


def _count_training(scene: _Checked, settings: TrainConfig) -> None:
    """Which classes training sees of a scene that it sees in part."""
    assert scene.labelled is not None
    config = scene.config
    if settings.data.split is not None or config.corrections is not None or config.is_part_labelled:
        present = class_histogram(scene.labelled, settings).total > 0
        scene.found = LabelFacts(present, scene.found.numbers)


def _check_leakage(scenes: Sequence[_Checked], settings: TrainConfig) -> list[Problem]:
    opened = {scene.config: scene.labelled for scene in scenes if scene.labelled is not None}
    train, val = ([opened[e] for e in settings.data.entries(s) if e in opened] for s in ("train", "val"))
    if not train or not val:
        return []
    messages = check_leakage(train, val, split=settings.data.split)
    if settings.data.leakage == "refuse":
        return [error("data", message, leakage_hint(settings.data.split)) for message in messages]
    return [warning("data", message) for message in messages]


def _check_classes(scenes: Sequence[_Checked], settings: TrainConfig) -> Iterator[Problem]:
    """Classes that training, or validation, never sees."""
    classes = settings.class_table
    seen = {split: _seen(scenes, settings, split) for split in ("train", "val")}
    train, val = seen["train"], seen["val"]
    if train is None or val is None:
        return
    for split, kind, here in (("train", "training", train), ("val", "validation", val)):
        if not here.any():
            message = f"no pixel of the {kind} scenes has a class: all are outside the labelled areas or ignored"
            hint = f"see what they hold with: geoseg stats CONFIG --split {split}; and look at labels and areas in QGIS"
            yield error("classes", message, hint)
            return
    yield from _check_first_label(scenes, settings, train | val)
    if train.sum() == 1:
        only = classes[int(train.argmax())].name
        message = f"every labelled pixel of the training scenes is {only!r}: there is nothing to learn"
        yield error("classes", message, _other_class(settings, only))
        return
    if val.sum() == 1:
        only = classes[int(val.argmax())].name
        message = f"every labelled pixel of the validation scenes is {only!r}: no score tells which network is best"
        hint = "validate on a scene that has more; otherwise the last network is kept. "
        yield warning("classes", message, hint + _other_class(settings, only, "val"))
    for c in classes:
        if not train[c.id]:
            message = f"class {c.name!r} occurs in no training scene, so it cannot be learnt"
            yield warning("classes", message, "label some of it, or leave it out of the classes")
        elif not val[c.id]:
            message = f"class {c.name!r} occurs in no validation scene, so it is not scored"
            yield warning("classes", message, "validate on a scene that has some of it")


def _seen(scenes: Sequence[_Checked], settings: TrainConfig, split: str) -> BoolArray | None:
    """Classes that a split sees, (K,); None if unknown."""
    by_config = {scene.config: scene for scene in scenes}
    seen = np.zeros(len(settings.classes), dtype=bool)
    for entry in settings.data.entries(split):
        scene = by_config[entry]
        if scene.found.present is None:
            return None
        if settings.data.split is not None and split == "val":
            seen |= _validating(scene, len(seen))
        else:
            seen |= scene.found.present
            _add_outside(seen, entry, settings)
    return seen


def _add_outside(seen: BoolArray, entry: SceneConfig, settings: TrainConfig) -> None:
    """Add the class outside the polygons, if any."""
    if not is_raster(entry) and entry.outside not in (None, "ignore"):
        seen[settings.class_table.id_of(str(entry.outside))] = True


def _validating(scene: _Checked, classes: int) -> BoolArray:
    """Classes in the blocks of a scene that validate, (K,)."""
    assert scene.labelled is not None and scene.labelled.split is not None
    counts = np.zeros(NODATA + 1, dtype=np.int64)
    for window in scene.labelled.split.validation:
        counts += np.bincount(scene.labelled.labels.read(window).ravel(), minlength=NODATA + 1)
    return counts[:classes] > 0


def _check_first_label(scenes: Sequence[_Checked], settings: TrainConfig, seen: BoolArray) -> Iterator[Problem]:
    """Numbers of classes that would fit the table if the first one were one lower or higher."""
    classes, first = settings.class_table, settings.data.first_label
    numbers = frozenset[int]().union(*(scene.found.numbers for scene in scenes))
    if seen.all() or not numbers:
        return
    named = np.zeros(len(classes), dtype=bool)
    for scene in scenes:
        if not scene.found.numbers and scene.found.present is not None:
            named |= scene.found.present
        _add_outside(named, scene.config, settings)
    for other in (first - 1, first + 1):
        ids = [number - other for number in numbers if number >= other]
        if other >= 0 and ids and max(ids) < len(classes):
            here = named.copy()
            here[ids] = True
            if here.all():
                never = ", ".join(classes.names[i] for i in np.flatnonzero(~seen))
                message = f"with data.first_label={first}, class {never} never occurs; with {other} every class would"
                hint = f"check in QGIS whether {first} is {classes.names[0]!r}; if not: data.first_label={other}"
                yield warning("classes", message, hint)
                return


def _other_class(settings: TrainConfig, only: str, split: str = "train") -> str:
    """How labels of one class get a second one: hidden by nodata, outside the polygons, or by labelling."""
    names, first = settings.class_table.names, settings.data.first_label
    others = [name for name in names if name != only]
    if not others:
        return f"add a class to the configuration for what is not {only}, such as background"
    for entry in settings.data.entries(split):
        if not is_raster(entry):
            if entry.outside == "ignore":
                return f"outside: {others[0]}, if that is all ground outside the polygons of {entry.labels}"
            continue
        with Scene(entry.labels) as labels:
            nodata = labels.nodata
        if nodata is not None and first <= nodata < first + len(names):
            name = names[int(nodata) - first]
            return f"if {nodata:g} is class {name!r}: gdal_edit.py -unsetnodata {quoted(entry.labels)}"
    return f"label some of {' or '.join(others)}"
