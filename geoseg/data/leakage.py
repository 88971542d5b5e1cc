"""Whether training sees ground that validation is on: scenes that overlap or touch, and files that are the same."""

from __future__ import annotations

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
from shapely.geometry.base import BaseGeometry

from geoseg.config import SplitConfig
from geoseg.data.labelled import LabelledScene
from geoseg.data.split import corners
from geoseg.georeference import pyproj_crs, transformer
from geoseg.grid import ground_area_m2
from geoseg.paths import InputPath
from geoseg.windows import Window

HINT_SCENES = (
    "take scenes of other places for data.val, or name all under data.scenes and cut them with data.split and its "
    "buffer; data.leakage=warn trains all the same"
)
HINT_BLOCKS = (
    "give data.split.buffer=64 or so, name no ground twice (gdalbuildvrt makes one scene of several that touch); "
    "data.leakage=warn trains all the same"
)

_ENDS_BYTES = 1 << 16

_PIECES = 32
"""Into how many pieces each side of an outline is cut before it changes CRS, where a straight line bends."""


@dataclass(frozen=True, slots=True)
class _Area:
    """Ground that trains or validates: an outline in a CRS, and how far apart outlines must lie there not to touch."""

    scene: InputPath
    outline: BaseGeometry
    crs: CRS
    pixel: float


def check_leakage(
    train: Sequence[LabelledScene], val: Sequence[LabelledScene], *, split: SplitConfig | None
) -> list[str]:
    """What training and validation share, one sentence for each pair of scenes; none where they are apart.

    Outlines of scenes are compared in a common CRS, nodata or not. Scenes that touch are told of too: a window of one
    shows what the other goes on with. Scenes without CRS lie nowhere, so only the same file, or one of the same
    content, is found. Where scenes are cut into blocks, those of one scene are kept apart by the split itself; looked
    at here are its buffer, and the validation blocks of each scene against the training parts of all others.

    Args:
        train: Scenes that train.
        val: Scenes that validate.
        split: How scenes are cut; None where they are split whole.

    Returns:
        Messages; what to do about them says `leakage_hint`.
    """
    if split is None:
        trains, vals = (dict.fromkeys(s.config.scene for s in scenes) for scenes in (train, val))
        groups = [dict.fromkeys(group) for group in _alike([*trains, *vals])]
        found, known = _same_files((a, b) for group in groups for b in group if b in vals for a in group if a in trains)
        wholes = [[_whole(s) for s in scenes if s.grid.is_georeferenced] for scenes in (train, val)]
        for a, b, shared, length in _meetings(*wholes):
            if frozenset((a.scene, b.scene)) not in known:
                found.append(f"training scene {a.scene} and validation scene {b.scene} {_meeting(a, shared, length)}")
        return found
    found = []
    if split.buffer == 0:
        found.append("training windows may touch the blocks that validate: data.split.buffer is 0")
    times = Counter(s.config.scene for s in train) | Counter(s.config.scene for s in val)
    found += [f"{scene} is named {n} times, and each time other blocks validate" for scene, n in times.items() if n > 1]
    scenes = list({s.config.scene: s for s in (*train, *val)}.values())
    same, known = _same_files(
        pair for group in _alike([s.config.scene for s in scenes]) for pair in itertools.combinations(group, 2)
    )
    parts = [part for s in scenes if s.grid.is_georeferenced for part in _training_part(s)]
    blocks = [block for s in scenes if s.grid.is_georeferenced for block in _validation_part(s)]
    for a, b, shared, length in _meetings(parts, blocks):
        if a.scene != b.scene and frozenset((a.scene, b.scene)) not in known:
            meeting = _meeting(a, shared, length)
            same.append(f"blocks of {b.scene} that validate and the training part of {a.scene} {meeting}")
    return [*found, *same]


def leakage_hint(split: SplitConfig | None) -> str:
    """What to type where `check_leakage` found something."""
    return HINT_SCENES if split is None else HINT_BLOCKS


def _same_files(pairs: Iterable[tuple[InputPath, InputPath]]) -> tuple[list[str], set[frozenset[InputPath]]]:
    """Messages about files that are the same or equal, of pairs that may be, and which these are."""
    messages, known = [], set()
    for one, other in pairs:
        if one == other or Path(one).samefile(other):
            messages.append(f"{one} trains and validates" + (f", as {other}" if one != other else ""))
        elif filecmp.cmp(one, other, shallow=False):
            messages.append(f"scenes {one} and {other} are the same, byte for byte")
        else:
            continue
        known.add(frozenset((one, other)))
    return messages, known


def _alike(paths: Sequence[InputPath]) -> list[list[InputPath]]:
    """Groups of files that have one size and begin and end alike; a file alone is no group, one named twice is.

    Thousands of chips of one size are no rarity, and comparing all of them with each other would take hours.
    """
    by_size: dict[int, list[InputPath]] = defaultdict(list)
    for path in paths:
        by_size[_size(path)].append(path)
    groups: dict[tuple[int, bytes], list[InputPath]] = defaultdict(list)
    for size, some in by_size.items():
        if size != 0 and len(some) > 1:
            for path in some:
                groups[size, _ends(path) if size > 0 else str(path).encode()].append(path)
    return [group for group in groups.values() if len(group) > 1]


def _size(path: InputPath) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:  # on a server, or inside an archive
        return -1


def _ends(path: InputPath) -> bytes:
    with Path(path).open("rb") as file:
        first = file.read(_ENDS_BYTES)
        file.seek(max(file.seek(0, os.SEEK_END) - _ENDS_BYTES, 0))
        return hashlib.sha256(first + file.read(_ENDS_BYTES)).digest()


def _whole(scene: LabelledScene) -> _Area:
    return _area(scene, corners(scene.grid, Window(0, 0, *scene.grid.shape)))


def _validation_part(scene: LabelledScene) -> Iterator[_Area]:
    if scene.split is not None and scene.split.validation:
        yield _area(scene, shapely.union_all([corners(scene.grid, w) for w in scene.split.validation]))


def _training_part(scene: LabelledScene) -> Iterator[_Area]:
    """What lies ``buffer`` px or more from the blocks that validate."""
    split = scene.split
    if split is None:
        return
    n = split.buffer
    kept = [Window(w.row - n, w.col - n, w.height + 2 * n, w.width + 2 * n) for w in split.validation]
    whole = corners(scene.grid, Window(0, 0, *scene.grid.shape))
    part = whole.difference(shapely.union_all([corners(scene.grid, w) for w in kept]))
    if not part.is_empty:
        yield _area(scene, part)


def _area(scene: LabelledScene, outline: BaseGeometry) -> _Area:
    t, crs = scene.grid.transform, scene.grid.crs
    assert crs is not None
    pixel = min(np.hypot(t.a, t.d), np.hypot(t.b, t.e))
    return _Area(scene.config.scene, outline, crs, float(pixel))


def _meetings(
    train: Sequence[_Area], val: Sequence[_Area]
) -> Iterator[tuple[_Area, _Area, BaseGeometry | None, float]]:
    """Pairs less than half a pixel apart: what they share in the first one's CRS, or None and the length they touch."""
    for crs, areas in _by_crs(train).items():
        tree = shapely.STRtree([a.outline for a in areas])
        for other, theirs in _by_crs(val).items():
            for b in theirs:
                outline = b.outline if crs == other else _moved(b.outline, other, crs)
                if outline is None:
                    continue
                near = max(a.pixel for a in areas) / 2
                for i in np.sort(tree.query(outline, predicate="dwithin", distance=near)).tolist():
                    a = areas[i]
                    half = a.pixel / 2
                    if a.outline.distance(outline) >= half:
                        continue
                    shared = a.outline.intersection(outline)
                    # A sliver is a common edge, computed twice.
                    if shared.buffer(-half / 2).is_empty:
                        along = a.outline.buffer(half, join_style="mitre").intersection(outline.boundary).length
                        yield a, b, None, along
                    else:
                        yield a, b, shared, 0.0


def _by_crs(areas: Iterable[_Area]) -> dict[CRS, list[_Area]]:
    groups: dict[str, list[_Area]] = defaultdict(list)
    for area in areas:
        groups[area.crs.to_wkt()].append(area)
    return {group[0].crs: group for group in groups.values()}


def _moved(outline: BaseGeometry, crs: CRS, wanted: CRS) -> BaseGeometry | None:
    """An outline in another CRS; None where it has no place there."""
    left, bottom, right, top = outline.bounds
    fine = shapely.segmentize(outline, max(right - left, top - bottom) / _PIECES)
    way = transformer(crs, wanted)
    if way is None:
        return None
    moved: Any = shapely.transform(fine, lambda p: np.column_stack(way.transform(*p.T)))
    if not np.isfinite(moved.bounds).all():
        return None
    made: BaseGeometry = shapely.make_valid(moved)
    return made


def _meeting(area: _Area, shared: BaseGeometry | None, length: float) -> str:
    """How two areas meet, in metres on the ground."""
    place = area.outline.centroid if shared is None else shared.centroid
    unit_m2 = float(ground_area_m2(pyproj_crs(area.crs), np.array([place.x]), np.array([place.y]))[0])
    if shared is not None:
        return f"overlap by {shared.area * unit_m2:,.0f} m²"
    # Half a pixel is added at both ends.
    metres = max(length - area.pixel, 0) * float(np.sqrt(unit_m2))
    return f"touch along {metres:,.0f} m" if metres >= 1 else "touch at a corner"
