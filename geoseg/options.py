"""Every option of the verbs, defined once: name, choices, default and help; the reason why the file is long.

The command line and the keywords of `geoseg.predict` are made from these classes. Nothing heavy is loaded here.
"""

import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from numbers import Integral, Real
from os import PathLike
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from geoseg.errors import ConfigError
from geoseg.tolerance import Tolerance
from geoseg.words import nearest

AnyPath: TypeAlias = str | PathLike[str]
Taper: TypeAlias = Callable[[int, int], Any]
"""Weights of a window along one axis from its length and its overlap, both in logits: (length,), each in [0, 1]."""

Blend = Literal["sine", "linear", "flat", "crop"]
TtaName = Literal["none", "flips", "d4", "scales", "scales+flips"]
Backend = Literal["auto", "openvino", "torch", "compile"]
Precision = Literal["auto", "float32", "bfloat16"]
ExecutorName = Literal["in-process", "ray"]
Split = Literal["val", "train"]
Protocol = Literal["scene", "jseg", "mmseg", "whole"]
Method = Literal["vw", "dp"]
Small = Literal["merge", "drop"]

CONTACT_SHARE = 0.25
"""Chosen on training scenes: networks are seldom sure of a thin contact, and where there is none they are."""

T = TypeVar("T")

_NOUNS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    NoneType: "None",
    PathLike: "a path",
    Callable: "a function",
    Mapping: "a mapping from names to lists",
}


class Checked:
    """Base of all options; a `ConfigError` for a value of another type. numpy's numbers and arrays are as good."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if not _fits(value, hint):
                choices = [get_args(part) for part in (hint, *get_args(hint)) if get_origin(part) is Literal]
                raise ConfigError(
                    f"{name} must be {_noun(hint)}, found {value!r:.80}",
                    hint=f"--{name.replace('_', '-')} {', '.join(choices[0])}" if choices else None,
                )


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return isinstance(value, str) and value in parts
    if kind is Sequence:
        is_list = isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)
        return is_list and all(_fits(item, parts[0]) for item in value)
    if kind is Mapping:
        return isinstance(value, Mapping) and all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, kind)


def _noun(hint: Any) -> str:
    """A type in words."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(map(_noun, parts))
    if kind is Literal:
        return f"one of {', '.join(parts)}"
    if kind is Sequence:
        return f"a list of {_noun(parts[0]).removeprefix('a ')}s"
    return _NOUNS.get(kind) or f"{kind.__name__}(…)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Imagery(Checked):
    """Which pixels of a scene the model sees.

    Attributes:
        bands: Bands in the model's order, from 1; all of them by default.
        nodata: Pixel value that marks nodata; the file's own by default.
        alpha: Take validity from the alpha band.
        crs: CRS of a raster that has a transform but no CRS.
        aoi: Vector file with the area of interest; nothing outside its polygons is mapped.
        gsd: Resample the scene to pixels of this size in metres, or, with "model", of the model's size.
        ignore_gsd: Map the scene even if its pixel size is not the model's.
    """

    bands: Sequence[int] | None = None
    nodata: float | None = None
    alpha: bool = False
    crs: str | None = None
    aoi: AnyPath | None = None
    gsd: str | float | None = None
    ignore_gsd: bool = False

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if isinstance(self.gsd, str) and self.gsd != "model":
            try:
                float(self.gsd)
            except ValueError:
                message = f"gsd {self.gsd!r} is not a number of metres"
                raise ConfigError(message, hint="--gsd 0.5, or --gsd model") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class MapReading(Checked):
    """How class maps are read.

    Attributes:
        crs: CRS of a raster that has a transform but no CRS.
        classes: YAML or JSON with names of classes; the map's own by default.
    """

    crs: str | None = None
    classes: AnyPath | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Network(Checked):
    """What runs the network, and how.

    Attributes:
        device: auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.
        backend: What runs the network; auto is OpenVINO on a CPU, torch.compile on a GPU.
        precision: auto is bfloat16 on a GPU, and on a CPU if the model is known to lose nothing by it.
        batch_size: Windows per step; by default one per processor, 16 on a GPU.
    """

    device: str = "auto"
    backend: Backend = "auto"
    precision: Precision = "auto"
    batch_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows(Checked):
    """The windows that the network sees.

    Attributes:
        size: Side of a window, px, a multiple of 32; the model's by default.
        overlap: Overlap of neighbouring windows, px; the model's by default, or a quarter of a given size.
    """

    size: int | None = None
    overlap: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling(Windows):
    """How a scene is cut into windows, and how their predictions become one map.

    Attributes:
        size: Side of a window, px, a multiple of 32; the model's by default.
        overlap: Overlap of neighbouring windows, px; the model's by default, or a quarter of a given size.
        blend: How overlapping windows are weighted. In Python also a function from a window's length and overlap, in
            logits, to its weights along one axis.
        tta: Test-time augmentation: predict flipped, turned and scaled windows too.
        band_rows: Height of the parts that an interrupted run keeps, px, a multiple of 512.
        strip_cols: Width of the strips that the scene is cut into, px, a multiple of 512; one strip if memory allows.
    """

    blend: Blend | Taper = "sine"
    tta: TtaName = "none"
    band_rows: int | None = None
    strip_cols: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers(Checked):
    """Rasters written beside the class map; see `geoseg.map_rows.MapRows`.

    Attributes:
        confidence: Write OUT_confidence.tif too: the probability of the class.
        probabilities: Write OUT_probabilities.tif too: the probability of every class.
        disagreement: Write OUT_disagreement.tif too: where overlapping windows differ, in cells of the network's
            stride (8 px for SegNeXt).
        contact: Write OUT_contact.tif too, by which --separate separates touching objects; by default if the model
            knows it.
    """

    confidence: bool = False
    probabilities: bool = False
    disagreement: bool = False
    contact: bool | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are wanted."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name))

    def bytes(self, classes: int) -> int:
        """Bytes of these layers per pixel."""
        return self.confidence + self.probabilities * classes + self.disagreement + bool(self.contact)


# Predicted outlines of buildings wander by some 3 px.
WALL_TOLERANCE = Tolerance(4, "px")


@dataclass(frozen=True, slots=True)
class PolygonRules(Checked):
    """Rules for the polygons of a class map. The default keeps every pixel step.

    They act in this order: dissolve, keep, fill holes, merge or drop small regions, separate, regularize, smooth,
    simplify. Areas are in m²; without a CRS, in square units of the coordinates.

    Attributes:
        simplify: Simplification tolerance, such as 1.5px or 0.5m; none keeps every vertex.
        method: vw removes details by area (Visvalingam), dp by distance (Douglas-Peucker).
        smooth: Cut the corners of pixels first, so that slopes have no stairs.
        regularize: Class whose polygons get straight walls and right angles where the outline allows it; repeatable.
        regularize_tolerance: How far walls may be from the outline, such as 4px or 0.6m, from 1 to 32 px; a tenth of
            the outline, and corners, twice as far.
        min_area_m2: Smallest polygon kept, m²; where classes are left out, smaller holes are filled too.
        small: Polygons below --min-area are merged into the neighbour with the longest common border, or dropped.
        fill_holes_m2: Holes below this area, m², join the polygon around them.
        keep: Class that becomes polygons, after dissolving; repeatable; all but the background by default.
        dissolve: Make one class of several, as NAME=CLASS,CLASS; repeatable.
        separate: Class whose touching objects become polygons of their own, if the model was trained for it;
            repeatable.
        contact_share: Share of the contact, above 0 and up to 1, from which --separate parts objects; lower parts more.
    """

    simplify: Tolerance | None = None
    method: Method = "vw"
    smooth: bool = False
    regularize: Sequence[str] = ()
    regularize_tolerance: Tolerance = WALL_TOLERANCE
    min_area_m2: float = 0
    small: Small = "merge"
    fill_holes_m2: float = 0
    keep: Sequence[str] = ()
    dissolve: Mapping[str, Sequence[str]] = field(default_factory=dict)
    separate: Sequence[str] = ()
    contact_share: float = CONTACT_SHARE

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if not 0 < self.contact_share <= 1:
            message = f"--contact-share must be above 0 and at most 1, found {self.contact_share:g}"
            raise ConfigError(message, hint=f"--contact-share {CONTACT_SHARE:g}")
        if self.contact_share != CONTACT_SHARE and not self.separate:
            raise ConfigError("--contact-share has no effect without --separate", hint="--separate CLASS")
        if self.small != "merge" and not self.min_area_m2:
            raise ConfigError(f"--small {self.small} has no effect without --min-area", hint="--min-area 10")
        if self.method != "vw" and self.simplify is None:
            hint = "--simplify 1.5px, or leave out --simplify-method"
            raise ConfigError(f"--simplify-method {self.method} has no effect with --simplify none", hint=hint)
        if self.regularize_tolerance != WALL_TOLERANCE and not self.regularize:
            raise ConfigError("--regularize-tolerance has no effect without --regularize", hint="--regularize building")


# Looked at on generated scenes: 1 px leaves the stairs of shallow slopes, 2 px starts to cut corners of small houses.
DEFAULT_RULES = PolygonRules(simplify=Tolerance(1.5, "px"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Running(Checked):
    """Where a prediction runs, and what becomes of earlier output.

    Attributes:
        executor: Run in this process, or on a Ray cluster.
        address: Ray cluster, as host:port; by default that of RAY_ADDRESS, or this machine alone.
        readers: Threads that decode the scene; one on a CPU and up to eight beside a GPU by default.
        restart: Discard what an interrupted run has finished.
        overwrite: Replace existing output.
        progress: Draw a progress bar on standard error.
    """

    executor: ExecutorName = "in-process"
    address: str | None = None
    readers: int | None = None
    restart: bool = False
    overwrite: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.readers is not None and self.readers < 1:
            raise ConfigError(f"readers must be at least 1, found {self.readers}", hint="readers=1, or leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions(Checked):
    """All options of a prediction."""

    tiling: Tiling = Tiling()
    network: Network = Network()
    imagery: Imagery = Imagery()
    layers: Layers = Layers()
    rules: PolygonRules = DEFAULT_RULES
    running: Running = Running()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures(Checked):
    """What an evaluation measures.

    Attributes:
        split: Scenes of the configuration to measure on; of scenes cut into blocks, the blocks of this split.
        protocol: Whole stitched scenes, or the patches and pictures of published numbers (pixel scores only).
        ms_flip: Six scales, each also flipped: the paper's multi-scale testing.
        objects: Class whose regions count as objects; repeatable; all but the background by default.
        within_m: Match objects one to one if their centres lie within this many metres, for labels that are points; by
            default they match by overlap.
        boundary_px: Width of the strips along borders, px.
        windows: Show this many of the worst windows, and of the best.
    """

    split: Split = "val"
    protocol: Protocol = "scene"
    ms_flip: bool = False
    objects: Sequence[str] = ()
    within_m: float | None = None
    boundary_px: int = 3
    windows: int = 8

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.within_m is not None and not 0 < self.within_m < math.inf:
            raise ConfigError(f"--within must be metres above 0, found {self.within_m}", hint="--within 2")
        if self.boundary_px < 1:
            raise ConfigError(f"--boundary must be at least 1 px, found {self.boundary_px}", hint="--boundary 3")
        if self.windows < 0:
            raise ConfigError(f"--windows must not be negative, found {self.windows}", hint="--windows 0 for none")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions(Checked):
    """All options of an evaluation.

    Attributes:
        maps: Keep the map of each scene in the folder, where geoseg view finds it.
        overwrite: Replace existing output.
        progress: Draw a progress bar on standard error.
    """

    measures: Measures = Measures()
    tiling: Windows = Windows()
    network: Network = Network()
    maps: bool = False
    overwrite: bool = False
    progress: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions(Checked):
    """How a training runs; what is trained is in its configuration.

    Attributes:
        resume: Continue from the run's last checkpoint.
        overwrite: Replace existing output.
        device: auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.
        devices: Processes on this machine, one per device; auto takes all GPUs.
        nodes: Number of machines; each runs the same command.
        progress: Draw a progress bar on standard error.
    """

    resume: bool = False
    overwrite: bool = False
    device: str = "auto"
    devices: int | str = 1
    nodes: int = 1
    progress: bool = False

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        text = str(self.devices)
        if text != "auto" and not (text.isdecimal() and int(text) > 0):
            raise ConfigError(f"--devices {text} is not a number of devices", hint="--devices 2, or auto for all GPUs")


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewOptions(Checked):
    """How the viewer shows files.

    Attributes:
        port: Port to listen on; 0 takes a free one.
        browser: Open the browser, or print the address alone.
        bands: Bands shown as red, green and blue, from 1; the first three by default.
        basemap: Online background map, with {z}, {x} and {y} in its address.
        doubt: List the windows of a map that the model was least sure of.
        windows: List this many with --doubt.
    """

    port: int = 0
    browser: bool = True
    bands: Sequence[int] | None = None
    basemap: str | None = None
    doubt: bool = False
    windows: int = 20

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.bands is not None and len(self.bands) not in (1, 3):
            raise ConfigError(f"{len(self.bands)} bands cannot be shown", hint="name three, as --bands 4,3,2, or one")
        address = self.basemap
        if address is not None and not (address.startswith(("https://", "http://")) and "{z}" in address):
            raise ConfigError(
                f"basemap {address!r} is not the address of map tiles", hint="--basemap 'https://HOST/{z}/{x}/{y}.png'"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions(Windows):
    """What an exported model takes and gives.

    Attributes:
        size: Side of the window, px; the model's by default.
        overlap: Overlap of neighbouring windows, px, for the metadata; the model's by default.
        dynamic: Take windows of any size (QGIS Deepness needs a fixed one); the size is then a proposal.
        normalize: Put the normalisation into the file, or leave it to the host.
        softmax: Give probabilities, or logits.
        argmax: Give class ids instead of probabilities.
        opset: Version of ONNX's operations.
        stac: Describe the model in OUT.json, a STAC item; by default if pystac is installed.
    """

    dynamic: bool = False
    normalize: bool = True
    softmax: bool = True
    argmax: bool = False
    opset: int = 20
    stac: bool | None = None

    @property
    def result(self) -> Literal["logits", "probabilities", "classes"]:
        """What the model gives."""
        if self.argmax:
            return "classes"
        return "probabilities" if self.softmax else "logits"


def from_keywords(kind: type[T], keywords: Mapping[str, Any], *, caller: str, given: T | None = None) -> T:
    """Options, those given or the default ones, changed by keywords; a TypeError for an unknown name or another type.

    Each keyword is the name of an option, or of a group of options given as one value.
    """
    changes: dict[str, Any] = {}
    singles: dict[str, dict[str, Any]] = {}
    given = kind() if given is None else given
    if not isinstance(given, kind):
        raise TypeError(f"{caller}() takes options as {kind.__name__}(…), found {given!r}")
    groups = {f.name: getattr(given, f.name) for f in fields(kind)}  # type: ignore[arg-type]
    places = {f.name: name for name, group in groups.items() if is_dataclass(group) for f in fields(group)}
    for name, value in keywords.items():
        if name in groups:
            if is_dataclass(groups[name]) and not isinstance(value, type(groups[name])):
                raise TypeError(f"{caller}() takes {name} as {type(groups[name]).__name__}(…), found {value!r}")
            changes[name] = value
        elif name in places:
            singles.setdefault(places[name], {})[name] = value
        else:
            near = nearest(name, [*places, *groups])
            hint = f"; did you mean {near!r}?" if near else ""
            raise TypeError(f"{caller}() got an unexpected keyword argument {name!r}{hint}")
    for group, values in singles.items():
        changes[group] = replace(changes.get(group, groups[group]), **values)
    return replace(given, **changes)  # type: ignore[type-var]


def signature_with(function: Callable[..., Any], kind: type) -> inspect.Signature:
    """The signature of a function that takes options as keywords, with each of them in place of ``**options``."""
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    return inspect.Signature([*own, *_parameters(kind())])


def _parameters(options: Any) -> Iterable[inspect.Parameter]:
    hints = get_type_hints(type(options))
    for f in fields(options):
        value = getattr(options, f.name)
        if is_dataclass(value) and not isinstance(value, PolygonRules):
            yield from _parameters(value)
        else:
            yield inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=hints[f.name])
