"""Class tables from files, those of known data sets, and colours for classes that have none."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from geoseg.classes import ClassTable, Color, parse_color
from geoseg.errors import ConfigError, in_one_line

HINT = "a list of names, or of entries like {name: roof, color: '#cc3311'}, alone or under the key classes"

_ISAID: dict[str, Color] = {
    "background": (0, 0, 0),
    "ship": (0, 0, 63),
    "store_tank": (0, 63, 63),
    "baseball_diamond": (0, 63, 0),
    "tennis_court": (0, 63, 127),
    "basketball_court": (0, 63, 191),
    "Ground_Track_Field": (0, 63, 255),
    "Bridge": (0, 127, 63),
    "Large_Vehicle": (0, 127, 127),
    "Small_Vehicle": (0, 0, 127),
    "Helicopter": (0, 0, 191),
    "Swimming_pool": (0, 0, 255),
    "Roundabout": (0, 191, 127),
    "Soccer_ball_field": (0, 127, 191),
    "plane": (0, 127, 255),
    "Harbor": (0, 100, 155),
}
_CITYSCAPES: dict[str, Color] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}

_ADE20K = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop,
stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck,
tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land,
bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer,
plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank,
trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic
light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
"""
_VOC = """
background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike,
person, pottedplant, sheep, sofa, train, tvmonitor
"""
_PASCAL_CONTEXT = """
background, aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car,
cat, ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground, horse,
keyboard, light, motorbike, mountain, mouse, person, plate, platform, pottedplant, road, rock, sheep, shelves,
sidewalk, sign, sky, snow, sofa, table, track, train, tree, truck, tvmonitor, wall, water, window, wood
"""
_COCO_STUFF = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking
meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie,
suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis
racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog,
pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell
phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush,
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile,
cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other,
floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other,
hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow,
plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other,
towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood,
water-other, waterdrops, window-blind, window-other, wood
"""


_BACKGROUND = {"background"}
"""What lies around the objects of iSAID, Pascal VOC and Pascal Context."""


def distinct_colors(count: int) -> list[Color]:
    """Colours that differ from each other: hues in steps of the golden ratio, light and dark in turn."""
    colors: dict[Color, None] = {}
    for color in _hues():
        colors[color] = None
        if len(colors) == count:
            break
    return list(colors)


def _hues() -> Iterator[Color]:
    step = 0
    while True:
        hue, saturation, value = (0.05 + step * 0.618034) % 1, (0.75, 0.5, 0.9)[step % 3], (0.85, 0.95, 0.6)[step % 3]
        red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
        yield red, green, blue
        step += 1


def numbered_classes(count: int) -> ClassTable:
    """Classes called ``class_0``, ``class_1``, … with distinct colours."""
    return ClassTable.from_names([f"class_{i}" for i in range(count)], distinct_colors(count))


def _named(text: str) -> ClassTable:
    """Classes named in a text, with commas between."""
    names = " ".join(text.split()).split(", ")
    return ClassTable.from_names(names, distinct_colors(len(names)), _BACKGROUND)


KNOWN: dict[str, ClassTable] = {
    **{
        name: ClassTable.from_names(table, table.values(), _BACKGROUND)
        for name, table in (("iSAID", _ISAID), ("Cityscapes", _CITYSCAPES))
    },
    **{
        name: _named(text)
        for name, text in (
            ("ADE20K", _ADE20K),
            ("COCO-Stuff", _COCO_STUFF),
            ("Pascal-VOC", _VOC),
            ("Pascal-Context", _PASCAL_CONTEXT),
        )
    },
}
"""Data sets that SegNeXt was published for, in mmsegmentation's order; the first two in its colours too."""

ISAID_LEFT_OUT = frozenset({"P1527", "P1530"})
"""Pictures of iSAID that JSeg passes over: the published networks were trained and tested without them."""


def read_class_table(path: str | PathLike[str]) -> ClassTable:
    """The class table in a YAML or JSON file.

    Args:
        path: A list of names, or of entries with ``name``, ``color`` (``#rrggbb`` or three numbers), ``id`` and
            ``background``, of which the name alone is needed; alone or under the key ``classes``, as in a training's
            configuration. Classes without a colour are given one.

    Raises:
        ConfigError: No such file, or none of these forms; ids that are not 0 … K−1; a name twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except FileNotFoundError as error:
        raise ConfigError(f"no such file of classes: {path}", hint=HINT) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not valid YAML or JSON: {in_one_line(error, 120)}", hint=HINT) from error
    entries = content.get("classes") if isinstance(content, Mapping) else content
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path} lists no classes", hint=HINT)
    rows = [_row(path, place, entry) for place, entry in enumerate(entries)]
    ids = [row.id for row in rows]
    if sorted(ids) != list(range(len(ids))):
        raise ConfigError(f"{path}: class ids must be 0 … {len(ids) - 1}, found {ids!s:.80}", hint=HINT)
    rows.sort(key=lambda row: row.id)
    spare, background = distinct_colors(len(rows)), {row.name for row in rows if row.background}
    try:
        return ClassTable.from_names([r.name for r in rows], [r.color or spare[r.id] for r in rows], background)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}", hint=HINT) from error


class _Row(NamedTuple):
    """One entry of a file."""

    id: int
    name: str
    color: Color | None
    background: bool


def _row(path: Path, place: int, entry: Any) -> _Row:
    """One entry, checked."""
    values = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        raise ConfigError(f"{path}: class {place} has no name, found {entry!r:.80}", hint=HINT)
    unknown = sorted(str(key) for key in values.keys() - {"id", "name", "color", "background"})
    if unknown:
        raise ConfigError(f"{path}: class {values['name']} has an unknown key {unknown[0]}", hint=HINT)
    number, color, background = values.get("id", place), values.get("color"), values.get("background", False)
    if not isinstance(number, int):
        raise ConfigError(f"{path}: class {values['name']} has the id {number!r:.40}, which is not a number", hint=HINT)
    if not isinstance(background, bool):
        raise ConfigError(f"{path}: background of class {values['name']} is {background!r:.40}, not true", hint=HINT)
    try:
        return _Row(number, values["name"], _color(color), background)
    except ValueError as error:
        raise ConfigError(f"{path}: class {values['name']}: {error}", hint=HINT) from error


def _color(value: Any) -> Color | None:
    if value is None or isinstance(value, str):
        return None if value is None else parse_color(value)
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(channel, int) for channel in value):
        raise ValueError(f"color {value!r:.40} is neither #rrggbb nor three numbers")
    red, green, blue = value
    return red, green, blue
