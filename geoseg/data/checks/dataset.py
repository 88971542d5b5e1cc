"""All problems of the scenes and labels of a configuration, found before training starts.

Every scene is checked, whatever is wrong with the others: its header, its labels, a few places of its imagery, and
whether labels lie where the imagery has them. Then scenes are compared: places, pixel sizes, classes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from geoseg.arrays import BoolArray
from geoseg.classes import NODATA
from geoseg.config.settings import SceneConfig, TrainConfig
from geoseg.contract import contact_widths
from geoseg.data.checks.alignment import WINDOWS, direction, label_offset
from geoseg.data.checks.imagery import SceneFacts, check_header, check_pixels, compare_scenes
from geoseg.data.checks.polygons import check_polygon_labels
from geoseg.data.histogram import class_histogram
from geoseg.data.labelled import LabelledScene, check_labelled_area, is_raster
from geoseg.data.labels import LabelFacts
from geoseg.data.layers import whole_layers
from geoseg.data.leakage import check_leakage, leakage_hint
from geoseg.data.problems import Problem, as_problem, error, has_error, warning
from geoseg.data.raster_labels import check_raster_labels
from geoseg.data.statistics import evenly
from geoseg.errors import GeosegError, quoted
from geoseg.georeference import crs_name
from geoseg.grid import Grid
from geoseg.runtime.machine import reading_threads
from geoseg.scene import Scene

PIXEL_SCENES = 200
OFFSET_SCENES = 64  # scenes of which pixels are read, and offsets measured; of more, as many are spread evenly

_MANY = 16
_FEW_WINDOWS = 8  # windows per scene in which offsets are measured if there are many scenes


@dataclass(slots=True)
class _Scene:
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
    """All problems of a configuration's scenes and labels, each once: errors, then warnings, each sorted by file."""
    checks = _Checks(settings)
    found = [*checks.each_scene(), *checks.leakage()]
    if not has_error(found):
        found += checks.all_classes()
        found += checks.touching()
    return sorted(dict.fromkeys(found), key=lambda p: (p.severity != "error", p.where, p.message))


class _Checks:
    def __init__(self, settings: TrainConfig) -> None:
        self.settings, self.classes, self.first = settings, settings.class_table, settings.data.first_label
        # The position of a scene in its split decides which of its blocks validate.
        places = {entry: i for split in ("val", "train") for i, entry in enumerate(settings.data.entries(split))}
        self.scenes = {entry: _Scene(entry, index) for entry, index in places.items()}

    def each_scene(self) -> list[Problem]:
        """Problems of single scenes, of polygons that several have in common, and between scenes."""
        scenes, shared = list(self.scenes.values()), list[Problem]()
        with whole_layers(), reading_threads("check") as pool:

            def each(some: Sequence[_Scene], check: Callable[[_Scene], Iterable[Problem]]) -> None:
                """Check scenes; an exception is a problem too."""

                def checked(scene: _Scene) -> None:
                    try:
                        scene.problems += check(scene)
                    except GeosegError as raised:
                        scene.problems.append(as_problem(scene.config.scene, raised))

                list(pool.map(checked, some))

            each(scenes, self._header)
            for problems in pool.map(self._polygons, self._by_polygons()):
                shared += problems
            each(scenes, self._labels)
            broken = {problem.where for problem in shared if problem.severity == "error"}
            each([s for s in scenes if not broken & {str(s.config.labels), str(s.config.scene)}], self._open)
            sound = [scene for scene in scenes if scene.is_sound]
            each(evenly(sound, PIXEL_SCENES), lambda scene: check_pixels(scene.config, self.settings.imagery))
            opened = [scene for scene in scenes if scene.labelled is not None]
            measured = evenly(opened, OFFSET_SCENES)
            windows = WINDOWS if len(measured) <= _MANY else _FEW_WINDOWS
            each(measured, lambda scene: _offset(scene, windows))
            if not shared and len(opened) == len(scenes):
                each(scenes, self._count_training)
        found = [problem for scene in scenes for problem in scene.problems] + shared
        return [*found, *compare_scenes([scene.facts for scene in scenes if scene.facts is not None])]

    def _header(self, scene: _Scene) -> list[Problem]:
        problems, scene.facts = check_header(scene.config, self.settings.imagery, self.settings.train.size)
        return problems

    def _by_polygons(self) -> list[list[_Scene]]:
        """Scenes whose labels are polygons, those with the same file and rules together."""
        groups: dict[SceneConfig, list[_Scene]] = {}
        for config, scene in self.scenes.items():
            if not is_raster(config):
                rules = config.model_copy(update={"scene": config.labels, "labelled_area": None})
                groups.setdefault(rules, []).append(scene)
        return list(groups.values())

    def _polygons(self, group: Sequence[_Scene]) -> list[Problem]:
        grids = {scene.config.scene: scene.grid for scene in group}
        problems, found = check_polygon_labels(group[0].config, grids, self.classes, first_label=self.first)
        for scene in group:
            scene.found = found[scene.config.scene]
        return problems

    def _labels(self, scene: _Scene) -> list[Problem]:
        """Check labels that are a raster, and the labelled area."""
        config, grid, problems = scene.config, scene.grid, list[Problem]()
        if is_raster(config):
            is_resampled = self.settings.imagery.gsd_m is not None
            problems, scene.found = check_raster_labels(
                config, grid, self.classes, first_label=self.first, is_resampled=is_resampled
            )
        return problems + check_labelled_area(config, grid)

    def _open(self, scene: _Scene) -> list[Problem]:
        """Open the scene as training will, which reports what the other checks do not."""
        if scene.is_sound:
            scene.labelled = LabelledScene(scene.config, self.settings, index=scene.index)
        return []

    def _count_training(self, scene: _Scene) -> list[Problem]:
        """Count the classes that training sees of a scene that it sees in part."""
        assert scene.labelled is not None
        config = scene.config
        if self.settings.data.split is not None or config.corrections is not None or config.is_part_labelled:
            present = class_histogram(scene.labelled, self.settings).total > 0
            scene.found = LabelFacts(present, scene.found.numbers)
        return []

    def leakage(self) -> list[Problem]:
        """Ground that trains and validates."""
        data = self.settings.data
        train, val = (
            [s.labelled for s in map(self.scenes.__getitem__, data.entries(split)) if s.labelled is not None]
            for split in ("train", "val")
        )
        if not train or not val:
            return []
        messages = check_leakage(train, val, split=data.split)
        if data.leakage == "refuse":
            return [error("data", message, leakage_hint(data.split)) for message in messages]
        return [warning("data", message) for message in messages]

    def touching(self) -> Iterator[Problem]:
        """Labels that do not show where objects of a class to separate touch."""
        widths = contact_widths(self.settings.classes)
        if not widths:
            return
        names, hint = [self.classes[i].name for i in widths], "leave out separate in the classes"
        for config in self.scenes:
            if is_raster(config):
                message = f"labels {config.labels} are a raster, which does not show where one {names[0]} ends"
                hint = f"give them as polygons, one for each {names[0]}; or {hint}"
                yield error(config.labels, message, hint)
                return
        train = [self.scenes[entry].labelled for entry in self.settings.data.entries("train")]
        if not any(s is not None and s.touching is not None and s.touching.pairs for s in train):
            near = ", ".join(f"{width:g} m" for width in widths.values())
            message = f"no two polygons of {' and '.join(names)} in the training scenes are within {near} of each other"
            hint = f"draw each object as a polygon of its own, or try a larger contact_m; or {hint}"
            yield error("classes", message, hint)

    def all_classes(self) -> Iterator[Problem]:
        """Classes that training, or validation, never sees."""
        train, val = self._seen("train"), self._seen("val")
        if train is None or val is None:
            return
        for split, kind, here in (("train", "training", train), ("val", "validation", val)):
            if not here.any():
                message = f"no pixel of the {kind} scenes has a class: all are outside the labelled areas or ignored"
                hint = f"see what they hold with: geoseg stats CONFIG --split {split}; "
                yield error("classes", message, hint + "and look at labels and areas in QGIS")
                return
        yield from self._first_label(train | val)
        if train.sum() == 1:
            only = self.classes[int(train.argmax())].name
            message = f"every labelled pixel of the training scenes is {only!r}: there is nothing to learn"
            yield error("classes", message, self._other_class(only, "train"))
            return
        if val.sum() == 1:
            only = self.classes[int(val.argmax())].name
            message = f"every labelled pixel of the validation scenes is {only!r}: no score tells which network is best"
            hint = "validate on a scene that has more; otherwise the last network is kept. "
            yield warning("classes", message, hint + self._other_class(only, "val"))
        for c in self.classes:
            if not train[c.id]:
                message = f"class {c.name!r} occurs in no training scene, so it cannot be learnt"
                yield warning("classes", message, "label some of it, or leave it out of the classes")
            elif not val[c.id]:
                message = f"class {c.name!r} occurs in no validation scene, so it is not scored"
                yield warning("classes", message, "validate on a scene that has some of it")

    def _seen(self, split: str) -> BoolArray | None:
        """Classes that a split sees, (K,); None if unknown."""
        seen = np.zeros(len(self.classes), dtype=bool)
        for entry in self.settings.data.entries(split):
            scene = self.scenes[entry]
            if scene.found.present is None:
                return None
            if self.settings.data.split is None or split == "train":
                seen |= scene.found.present
                self._add_outside(seen, entry)
                continue
            assert scene.labelled is not None and scene.labelled.split is not None
            for window in scene.labelled.split.validation:
                labels = scene.labelled.labels.read(window)
                seen |= np.bincount(labels.ravel(), minlength=NODATA + 1)[: len(seen)] > 0
        return seen

    def _add_outside(self, seen: BoolArray, entry: SceneConfig) -> None:
        """Add the class outside the polygons, if any."""
        if not is_raster(entry) and entry.outside not in (None, "ignore"):
            seen[self.classes.id_of(str(entry.outside))] = True

    def _first_label(self, seen: BoolArray) -> Iterator[Problem]:
        """Numbers of classes that would fit the table if the first one were one lower or higher."""
        classes, first, scenes = self.classes, self.first, self.scenes.values()
        numbers = frozenset[int]().union(*(scene.found.numbers for scene in scenes))
        if seen.all() or not numbers:
            return
        named = np.zeros(len(classes), dtype=bool)
        for scene in scenes:
            if not scene.found.numbers and scene.found.present is not None:
                named |= scene.found.present
            self._add_outside(named, scene.config)
        for other in (first - 1, first + 1):
            ids = [number - other for number in numbers if number >= other]
            if other < 0 or not ids or max(ids) >= len(classes):
                continue
            if (named | np.isin(np.arange(len(classes)), ids)).all():
                never = ", ".join(classes.names[i] for i in np.flatnonzero(~seen))
                message = f"with data.first_label={first}, class {never} never occurs; with {other} every class would"
                hint = f"check in QGIS whether {first} is {classes.names[0]!r}; if not: data.first_label={other}"
                yield warning("classes", message, hint)
                return

    def _other_class(self, only: str, split: str) -> str:
        """How labels of one class get a second one: hidden by nodata, outside the polygons, or by labelling."""
        names = self.classes.names
        others = [name for name in names if name != only]
        if not others:
            return f"add a class to the configuration for what is not {only}, such as background"
        for entry in self.settings.data.entries(split):
            if not is_raster(entry):
                if entry.outside == "ignore":
                    return f"outside: {others[0]}, if that is all ground outside the polygons of {entry.labels}"
                continue
            with Scene(entry.labels) as labels:
                nodata = labels.nodata
            if nodata is not None and self.first <= nodata < self.first + len(names):
                name = names[int(nodata) - self.first]
                return f"if {nodata:g} is class {name!r}: gdal_edit.py -unsetnodata {quoted(entry.labels)}"
        return f"label some of {' or '.join(others)}"


def _offset(scene: _Scene, windows: int) -> Iterator[Problem]:
    """Labels that lie beside what they label."""
    assert scene.labelled is not None
    config, grid, offset = scene.config, scene.labelled.grid, label_offset(scene.labelled, windows=windows)
    if offset is None or not offset.is_clear:
        return
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
    yield warning(
        config.labels,
        f"labels {config.labels} seem to lie {far} too far {where} in scene {config.scene} ({offset.rows:+d} rows, "
        f"{offset.cols:+d} columns): moved back, their borders match its edges {better}, and "
        f"{offset.agreeing} of {offset.windows} windows agree",
        f"compare both in QGIS; if this is right, move the labels by {move}",
    )
