"""Whether training sees ground that validates: scenes that overlap or touch, and files that are the same."""

import filecmp
import hashlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from rasterio.crs import CRS

from geoseg.config.settings import SplitConfig
from geoseg.data.labelled import LabelledScene
from geoseg.data.labels import in_crs, outline
from geoseg.georeference import pyproj_crs
from geoseg.grid import ground_area_m2
from geoseg.paths import InputPath
from geoseg.windows import Window

_ENDS_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class _Area:
    """Ground that trains or validates: an outline in a CRS, and the size of a pixel in its unit."""

    scene: InputPath
    outline: Any  # shapely geometry
    crs: CRS
    pixel: float


def check_leakage(
    train: Sequence[LabelledScene], val: Sequence[LabelledScene], *, split: SplitConfig | None
) -> list[str]:
    """What training and validation share, one sentence per pair of scenes; empty if they are apart.

    Outlines of scenes are compared in a common CRS, nodata or not. Scenes that touch are reported too: a window of one
    shows what the other continues. Scenes without a CRS are compared as files only: the same file, or equal content. Of
    scenes cut into blocks, the buffer is checked, and validation blocks against the training part of other scenes.
    """
    found = []
    pairs: Iterable[tuple[InputPath, InputPath]]
    if split is None:
        trains, vals = (dict.fromkeys(s.config.scene for s in scenes) for scenes in (train, val))
        groups = [dict.fromkeys(group) for group in _alike([*trains, *vals])]
        pairs = ((a, b) for group in groups for b in group if b in vals for a in group if a in trains)
    else:
        if split.buffer == 0:
            found.append("training windows may touch the blocks that validate: data.split.buffer is 0")
        times = Counter(s.config.scene for s in train) | Counter(s.config.scene for s in val)
        found += [
            f"{path} is listed {n} times, and each time other blocks validate" for path, n in times.items() if n > 1
        ]
        train = val = list({s.config.scene: s for s in (*train, *val)}.values())
        pairs = itertools.chain(*(itertools.combinations(g, 2) for g in _alike([s.config.scene for s in train])))
    known: set[frozenset[InputPath]] = set()
    for one, other in pairs:
        if one == other or Path(one).samefile(other):
            found.append(f"{one} trains and validates" + (f", as {other}" if one != other else ""))
        elif filecmp.cmp(one, other, shallow=False):
            found.append(f"scenes {one} and {other} are the same, byte for byte")
        else:
            continue
        known.add(frozenset((one, other)))
    for a, b, meeting in _meetings(_areas(train, "train"), _areas(val, "val")):
        if frozenset((a, b)) in known or (split is not None and a == b):
            continue
        if split is None:
            found.append(f"training scene {a} and validation scene {b} {meeting}")
        else:
            found.append(f"blocks of {b} that validate and the training part of {a} {meeting}")
    return found


def leakage_hint(split: SplitConfig | None) -> str:
    """The fix for what `check_leakage` found."""
    fix = (
        "set data.split.buffer=64 or so, and list no ground twice (gdalbuildvrt makes one scene of several that touch)"
    )
    if split is None:
        fix = (
            "use scenes of other places in data.val, or list all under data.scenes and cut them with data.split and "
            "its buffer"
        )
    return f"{fix}; data.leakage=warn trains anyway"


def _alike(paths: Sequence[InputPath]) -> list[list[InputPath]]:
    """Groups of two or more files with the same size, beginning and end.

    Comparing thousands of chips of one size with each other would take hours.
    """
    sizes: dict[InputPath, int] = {
        path: path.stat().st_size for path in paths if isinstance(path, Path) and path.is_file()
    }
    times = Counter(sizes.get(path) for path in paths)
    groups: dict[object, list[InputPath]] = defaultdict(list)
    for path in paths:
        size = sizes.get(path)
        if size is None:  # a folder, on a server, or inside an archive
            groups[path].append(path)
        elif times[size] > 1:
            groups[size, _ends(path)].append(path)
    return [group for group in groups.values() if len(group) > 1]


def _ends(path: InputPath) -> bytes:
    with Path(path).open("rb") as file:
        first = file.read(_ENDS_BYTES)
        file.seek(max(file.seek(0, os.SEEK_END) - _ENDS_BYTES, 0))
        return hashlib.sha256(first + file.read(_ENDS_BYTES)).digest()


def _areas(scenes: Sequence[LabelledScene], part: str) -> list[_Area]:
    """Ground of georeferenced scenes; of those cut into blocks the "train" or "val" part."""
    found = []
    for scene in scenes:
        grid, split = scene.grid, scene.split
        if grid.crs is None or not grid.is_georeferenced:
            continue
        ground: Any = outline(grid)
        if split is not None:
            n = split.buffer if part == "train" else 0
            kept = [Window(w.row - n, w.col - n, w.height + 2 * n, w.width + 2 * n) for w in split.validation]
            blocks = shapely.union_all([outline(grid, window) for window in kept])
            ground = ground.difference(blocks) if part == "train" else blocks
        if not ground.is_empty:
            t = grid.transform
            pixel = float(min(np.hypot(t.a, t.d), np.hypot(t.b, t.e)))
            found.append(_Area(scene.config.scene, ground, grid.crs, pixel))
    return found


def _meetings(train: Sequence[_Area], val: Sequence[_Area]) -> Iterator[tuple[InputPath, InputPath, str]]:
    """Scenes of areas less than half a pixel apart, and how they meet."""
    groups: dict[CRS, list[_Area]] = defaultdict(list)
    for area in train:
        groups[area.crs].append(area)
    for crs, areas in groups.items():
        tree = shapely.STRtree([a.outline for a in areas])
        near = max(a.pixel for a in areas) / 2
        for b in val:
            ground = b.outline
            if b.crs != crs:
                ground = in_crs(ground, b.crs, crs)
                if ground is None:
                    continue
                ground = shapely.make_valid(ground)
            for i in np.sort(tree.query(ground, predicate="dwithin", distance=near)).tolist():
                a = areas[i]
                if a.outline.distance(ground) < a.pixel / 2:
                    yield a.scene, b.scene, _meeting(a, ground)


def _meeting(area: _Area, ground: Any) -> str:
    """How an area and other ground in its CRS meet, in m² or m."""
    shared = area.outline.intersection(ground)
    is_edge = shared.buffer(-area.pixel / 4).is_empty  # a sliver is a common edge computed twice
    place = (area.outline if is_edge else shared).centroid
    unit_m2 = float(ground_area_m2(pyproj_crs(area.crs), np.array([place.x]), np.array([place.y]))[0])
    if not is_edge:
        return f"overlap by {shared.area * unit_m2:,.0f} m²"
    edge = area.outline.buffer(area.pixel / 2, join_style="mitre").intersection(ground.boundary)
    # Half a pixel is added at both ends.
    metres = max(edge.length - area.pixel, 0) * float(np.sqrt(unit_m2))
    return f"touch along {metres:,.0f} m" if metres >= 1 else "touch at a corner"
