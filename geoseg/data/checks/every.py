"""All that is wrong with the scenes and labels of a configuration, in one list before the first step of training.

Every scene is looked at, whatever is wrong with the others: its header, its labels, a few places of its imagery, and
whether labels lie where the imagery has them. Then the scenes are compared: places, pixel sizes, classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from geoseg.classes import NODATA
from geoseg.config import SceneConfig, TrainConfig
from geoseg.data.checks.alignment import WINDOWS, Offset, direction, label_offset
from geoseg.data.checks.imagery import SceneFacts, check_header, check_pixels, compare_scenes
from geoseg.data.checks.polygons import check_labelled_area, check_polygon_labels
from geoseg.data.checks.problems import Problem, as_problem, error, in_order, problem_lines, refuse, warning
from geoseg.data.checks.rasters import check_raster_labels
from geoseg.data.histogram import class_histogram
from geoseg.data.labelled import LabelledScene
from geoseg.data.labels import is_raster
from geoseg.data.layers import whole_layers
from geoseg.data.leakage import check_leakage, leakage_hint
from geoseg.errors import GeosegError, quoted
from geoseg.georeference import crs_name
from geoseg.grid import Grid
from geoseg.runtime.processors import processors
from geoseg.scene import Scene

__all__ = ["Problem", "check_data", "problem_lines", "refuse"]

PIXEL_SCENES = 200
OFFSET_SCENES = 64
"""Of how many scenes pixels are read, and offsets measured; of more, so many spread evenly."""

_MANY = 16
_FEW_WINDOWS = 8
"""Where offsets of more scenes than that are measured, in so many windows each."""

_THREADS = 8

Bools = npt.NDArray[np.bool_]


@dataclass(slots=True)
class _Checked:
    """One scene of the configuration and what is known of it by now."""

    config: SceneConfig
    index: int
    facts: SceneFacts | None = None
    present: Bools | None = None
    """Classes its labels hold, (K,)."""
    numbers: frozenset[int] = frozenset()
    """Numbers that stand for classes in its labels."""
    labelled: LabelledScene | None = None
    problems: list[Problem] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        return self.facts is not None and not any(p.severity == "error" for p in self.problems)


def check_data(settings: TrainConfig) -> list[Problem]:
    """Everything that is wrong with a configuration's scenes and labels.

    Args:
        settings: The experiment.

    Returns:
        Errors, then warnings, each sorted by file; empty where all is well.
    """
    # A scene's place in its split decides which of its blocks validate.
    places = {entry: i for split in ("val", "train") for i, entry in enumerate(settings.data.entries(split))}
    scenes = [_Checked(entry, index) for entry, index in places.items()]
    shared: list[Problem] = []
    threads = min(_THREADS, processors())
    with whole_layers(), ThreadPoolExecutor(threads, thread_name_prefix="geoseg-check") as pool:
        _each(pool, scenes, lambda scene: _look_at_header(scene, settings))
        groups = _by_polygons(scenes)
        for problems in pool.map(lambda group: _look_at_polygons(group, settings), groups):
            shared += problems
        _each(pool, scenes, lambda scene: _look_at_labels(scene, settings))
        broken = {problem.where for problem in shared if problem.severity == "error"}
        _each(pool, scenes, lambda scene: _open(scene, settings, broken))
        sound = [scene for scene in scenes if scene.is_sound]
        _each(pool, _spread(sound, PIXEL_SCENES), lambda scene: _look_at_pixels(scene, settings))
        opened = [scene for scene in scenes if scene.labelled is not None]
        measured = _spread(opened, OFFSET_SCENES)
        windows = WINDOWS if len(measured) <= _MANY else _FEW_WINDOWS
        _each(pool, measured, lambda scene: _look_at_offset(scene, windows))
        if not shared and len(opened) == len(scenes):
            _each(pool, scenes, lambda scene: _count_training(scene, settings))
    found = [problem for scene in scenes for problem in scene.problems] + shared
    found += compare_scenes([scene.facts for scene in scenes if scene.facts is not None])
    found += _check_leakage(scenes, settings)
    if not any(problem.severity == "error" for problem in found):
        found += _check_classes(scenes, settings)
    return in_order(found)


def _each(pool: ThreadPoolExecutor, scenes: Sequence[_Checked], look: Callable[[_Checked], None]) -> None:
    for _ in pool.map(look, scenes):
        pass


def _spread(scenes: Sequence[_Checked], most: int) -> Sequence[_Checked]:
    """All of a few scenes, or as many of them as wanted, spread evenly."""
    if len(scenes) <= most:
        return scenes
    return [scenes[i] for i in np.linspace(0, len(scenes) - 1, most).astype(int)]


def _look_at_header(scene: _Checked, settings: TrainConfig) -> None:
    problems, scene.facts = check_header(scene.config, settings.imagery, settings.train.size)
    scene.problems += problems


def _by_polygons(scenes: Sequence[_Checked]) -> list[list[_Checked]]:
    """Scenes whose labels are polygons, those with the same file and the same rules together."""
    groups: dict[SceneConfig, list[_Checked]] = {}
    for scene in scenes:
        if not is_raster(scene.config):
            rules = scene.config.model_copy(update={"scene": scene.config.labels, "labelled_area": None})
            groups.setdefault(rules, []).append(scene)
    return list(groups.values())


def _look_at_polygons(group: Sequence[_Checked], settings: TrainConfig) -> list[Problem]:
    places = [(scene.config.scene, _grid(scene)) for scene in group]
    first = settings.data.first_label
    problems, facts = check_polygon_labels(group[0].config, places, settings.class_table, first_label=first)
    for scene, classes in zip(group, facts.present, strict=True):
        scene.present, scene.numbers = classes, facts.numbers
    return problems


def _look_at_labels(scene: _Checked, settings: TrainConfig) -> None:
    """Labels that are a raster, and the labelled area of either kind where `_open` will not come to it."""
    config, grid = scene.config, _grid(scene)
    if is_raster(config):
        first = settings.data.first_label
        problems, scene.present, scene.numbers = check_raster_labels(
            config.labels, config.scene, grid, settings.class_table, first_label=first
        )
        scene.problems += problems
    if config.labelled_area is not None and grid is not None:
        scene.problems += check_labelled_area(config.labelled_area, config.scene, grid)


def _open(scene: _Checked, settings: TrainConfig, broken: set[str]) -> None:
    """As training will; what the checks did not foresee is a problem too."""
    if not scene.is_sound or broken & {str(scene.config.labels), str(scene.config.scene)}:
        return
    try:
        scene.labelled = LabelledScene(scene.config, settings, index=scene.index)
    except GeosegError as raised:
        scene.problems.append(as_problem(scene.config.scene, raised))


def _look_at_pixels(scene: _Checked, settings: TrainConfig) -> None:
    scene.problems += check_pixels(scene.config, settings.imagery)


def _look_at_offset(scene: _Checked, windows: int) -> None:
    assert scene.labelled is not None
    try:
        offset = label_offset(scene.labelled, windows=windows)
    except GeosegError as raised:
        scene.problems.append(as_problem(scene.config.scene, raised))
        return
    if offset is not None and offset.is_clear:
        scene.problems.append(_tell_offset(scene.config, scene.labelled.grid, offset))


def _tell_offset(config: SceneConfig, grid: Grid, offset: Offset) -> Problem:
    t = grid.transform
    words = direction(offset.rows, offset.cols)
    if grid.is_georeferenced and t.a > 0 > t.e and t.b == t.d == 0:
        for word, side in ("up", "north"), ("down", "south"), ("left", "west"), ("right", "east"):
            words = words.replace(word, side)
    gsd = grid.gsd_m()
    far = f"{offset.distance_px:.1f} px" + (f" ({offset.distance_px * gsd:.2g} m)" if gsd is not None else "")
    better = f"{offset.gain:.1f} times better" if offset.gain < 10 else "more than 10 times better"
    dx, dy = -t.a * offset.cols - t.b * offset.rows, -t.d * offset.cols - t.e * offset.rows
    move = f"{dx:.6g} in x and {dy:.6g} in y" + (f" ({crs_name(grid.crs)})" if grid.crs is not None else "")
    return warning(
        config.labels,
        f"labels {config.labels} seem to lie {far} too far {words} in scene {config.scene} ({offset.rows:+d} rows, "
        f"{offset.cols:+d} columns): moved back, their borders meet its edges {better}, and "
        f"{offset.agreeing} of {offset.windows} windows agree",
        f"look at both in QGIS; if it is so, move the labels by {move}",
    )


def _count_training(scene: _Checked, settings: TrainConfig) -> None:
    """Which classes training sees of a scene that it does not see all of."""
    assert scene.labelled is not None
    if settings.data.split is None and scene.config.labelled_area is None:
        return
    try:
        scene.present = class_histogram(scene.labelled, settings).total > 0
    except GeosegError as raised:
        scene.problems.append(as_problem(scene.config.labels, raised))


def _check_leakage(scenes: Sequence[_Checked], settings: TrainConfig) -> list[Problem]:
    opened = {scene.config: scene.labelled for scene in scenes if scene.labelled is not None}
    train, val = ([opened[e] for e in settings.data.entries(s) if e in opened] for s in ("train", "val"))
    if not train or not val:
        return []
    split = settings.data.split
    tell = error if settings.data.leakage == "refuse" else warning
    hint = leakage_hint(split) if tell is error else None
    return [tell("data", message, hint) for message in check_leakage(train, val, split=split)]


def _check_classes(scenes: Sequence[_Checked], settings: TrainConfig) -> list[Problem]:
    """Classes that training, or validation, never sees."""
    classes = settings.class_table
    by_config = {scene.config: scene for scene in scenes}
    seen: dict[str, Bools] = {}
    for split in ("train", "val"):
        here = np.zeros(len(classes), dtype=bool)
        for entry in settings.data.entries(split):
            scene = by_config[entry]
            if scene.present is None:
                return []
            if settings.data.split is not None and split == "val":
                here |= _validating(scene, len(classes))
                continue
            here |= scene.present
            if not is_raster(entry) and entry.outside not in (None, "ignore"):
                here[classes.id_of(entry.outside)] = True
        seen[split] = here
    for split, kind in (("train", "training"), ("val", "validation")):
        if not seen[split].any():
            message = f"no pixel of the {kind} scenes has a class: all lie outside the labelled areas, or are ignored"
            hint = f"see what they hold with: geoseg stats CONFIG --split {split}; and look at labels and areas in QGIS"
            return [error("classes", message, hint)]
    problems = _check_first_label(scenes, settings, seen["train"] | seen["val"])
    if seen["train"].sum() == 1:
        only = classes[int(seen["train"].argmax())].name
        message = f"every labelled pixel of the training scenes is {only!r}: a network that maps nothing else is right"
        return [error("classes", message, _other_class(settings, only)), *problems]
    if seen["val"].sum() == 1:
        only = classes[int(seen["val"].argmax())].name
        message = f"every labelled pixel of the validation scenes is {only!r}: no score tells which network is best"
        hint = (
            f"validate on a scene that has more; else the last network is kept. {_other_class(settings, only, 'val')}"
        )
        problems.append(warning("classes", message, hint))
    for c in classes:
        if not seen["train"][c.id]:
            message = f"class {c.name!r} occurs in no training scene, so it cannot be learnt"
            problems.append(warning("classes", message, "label some of it, or leave it out of the classes"))
        elif not seen["val"][c.id]:
            message = f"class {c.name!r} occurs in training and nowhere in validation, so it is not scored"
            problems.append(warning("classes", message, "validate on a scene that has some of it"))
    return problems


def _check_first_label(scenes: Sequence[_Checked], settings: TrainConfig, seen: Bools) -> list[Problem]:
    """Numbers of classes that would fit the table if the first one were one lower or higher."""
    classes, first = settings.class_table, settings.data.first_label
    numbers = frozenset[int]().union(*(scene.numbers for scene in scenes))
    if seen.all() or not numbers:
        return []
    named = np.zeros(len(classes), dtype=bool)
    for scene in scenes:
        if not scene.numbers and scene.present is not None:
            named |= scene.present
        if not is_raster(scene.config) and scene.config.outside not in (None, "ignore"):
            named[classes.id_of(scene.config.outside)] = True
    for other in (first - 1, first + 1):
        ids = [number - other for number in numbers if number >= other]
        if other >= 0 and ids and max(ids) < len(classes):
            here = named.copy()
            here[ids] = True
            if here.all():
                never = ", ".join(classes.names[i] for i in np.flatnonzero(~seen))
                message = f"with data.first_label={first}, class {never} never occurs; with {other} every class would"
                hint = f"see in QGIS whether {first} stands for {classes.names[0]!r}; if not: data.first_label={other}"
                return [warning("classes", message, hint)]
    return []


def _other_class(settings: TrainConfig, only: str, split: str = "train") -> str:
    """How labels of one class get a second one: where nodata hides it, where none is given outside, or by labelling."""
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
            return f"where {nodata:g} is class {name!r}: gdal_edit.py -unsetnodata {quoted(entry.labels)}"
    return f"label some of {' or '.join(others)}"


def _validating(scene: _Checked, classes: int) -> Bools:
    """Classes in the blocks of a scene that validate."""
    assert scene.labelled is not None and scene.labelled.split is not None
    counts = np.zeros(NODATA + 1, dtype=np.int64)
    for window in scene.labelled.split.validation:
        counts += np.bincount(scene.labelled.labels.read(window).ravel(), minlength=NODATA + 1)
    return counts[:classes] > 0


def _grid(scene: _Checked) -> Grid | None:
    return scene.facts.grid if scene.facts is not None else None
