"""Options of verbs, made of the classes of `geoseg.options` or shared by several verbs, and how help prints them."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from geoseg.errors import ConfigError
from geoseg.options import Imagery, Network, Running
from geoseg.runtime.machine import check_device
from geoseg.tolerance import parse_tolerance, parse_wall_tolerance

V = TypeVar("V", bound=Callable[..., None])

GROUP: dict[str, Any] = {
    "no_args_is_help": True,
    # Plain text: rich would triple the time of --help, and its frames do not survive a log file.
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""How the program and its groups of verbs print help."""

PANELS = {
    "Tiling": "Windows",
    "Windows": "Windows",
    "Network": "Network",
    "Imagery": "Imagery",
    "Layers": "Layers",
    "PolygonRules": "Polygons",
    "Running": "Running",
    "Measures": "Measures",
}
"""Panels of the help by class."""


def parse_groups(texts: list[str]) -> dict[str, tuple[str, ...]]:
    """Groups of classes, each written as ``NAME=CLASS,CLASS,…``; a `ConfigError` for anything else or a name twice."""
    groups: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, members = (part.strip() for part in text.partition("="))
        classes = tuple(member.strip() for member in members.split(",") if member.strip())
        if not (name and equals and classes):
            raise ConfigError(f"--dissolve {text!r} is not NAME=CLASS,…", hint="--dissolve green=tree,grass")
        if name in groups:
            raise ConfigError(f"--dissolve names the group {name} twice", hint="list all its classes once")
        groups[name] = classes
    return groups


def parse_bands(text: str | None) -> tuple[int, ...] | None:
    """1-based band numbers of ``4,3,2``; a `ConfigError` for anything but whole numbers from 1 with commas."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) >= 1 for word in words):
        raise ConfigError(f"--bands {text!r} is not a list of band numbers from 1", hint="write it as --bands 4,3,2")
    return tuple(int(word) for word in words)


@dataclass(frozen=True, slots=True)
class Flag:
    """How a field is written on the command line, where that does not follow from its type."""

    metavar: str | None = None  # what stands for the value in the help
    name: str | None = None  # the option's name; None takes the field's
    kind: Any = None  # the type that typer gives; None takes the field's
    parse: Callable[[Any], Any] | None = None  # checks what typer gives, and makes the field's value of it
    default: str | None = None  # of the option, as written; None takes the field's
    minimum: int | None = None  # smallest value


FLAGS = {
    "size": Flag("PX"),
    "overlap": Flag("PX"),
    "device": Flag("DEVICE", parse=check_device),
    "batch_size": Flag("N", minimum=1),
    "bands": Flag("4,3,2", kind=str | None, parse=parse_bands),
    "nodata": Flag("VALUE"),
    "crs": Flag("EPSG:N"),
    "classes": Flag("FILE", kind=str | None),
    "aoi": Flag("FILE", kind=str | None),
    "gsd": Flag("M|model", kind=str | None),
    "simplify": Flag("1.5px|0.5m|none", kind=str, parse=parse_tolerance, default="1.5px"),
    "method": Flag(name="--simplify-method"),
    "regularize": Flag("CLASS", kind=list[str], parse=tuple),
    "regularize_tolerance": Flag("4px|0.6m", kind=str, parse=parse_wall_tolerance, default="4px"),
    "min_area_m2": Flag("M2", "--min-area", minimum=0),
    "fill_holes_m2": Flag("M2", "--fill-holes", minimum=0),
    "keep": Flag("CLASS", kind=list[str], parse=tuple),
    "dissolve": Flag("NAME=CLASS,…", kind=list[str], parse=parse_groups),
    "separate": Flag("CLASS", kind=list[str], parse=tuple),
    "contact_share": Flag("SHARE"),
    "address": Flag("HOST:PORT"),
    "opset": Flag("N"),
    "devices": Flag("N|auto", kind=str, default="1"),
    "nodes": Flag("N", minimum=1),
    "objects": Flag("CLASS", kind=list[str], parse=tuple),
    "within_m": Flag("M", "--within"),
    "boundary_px": Flag("PX", "--boundary", minimum=1),
    "windows": Flag("N", minimum=0),
    "port": Flag("N"),
    "basemap": Flag("URL"),
}

PYTHON_ONLY = {"band_rows", "strip_cols", "readers", "progress"}  # fields that the command line has no option for


def with_options(verb: V) -> V:
    """The verb with one option for each field in place of a parameter that is a class of `geoseg.options`.

    The verb itself gets the value.
    """
    hints = get_type_hints(verb, include_extras=True)
    parameters, groups = [], {}
    for name, parameter in inspect.signature(verb).parameters.items():
        if is_dataclass(hints[name]) and isinstance(hints[name], type):
            groups[name] = hints[name]
            parameters += _expanded(hints[name](), panel=PANELS.get(hints[name].__name__))
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=parameter.KEYWORD_ONLY))

    def expanded(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = _collected(kind, given)
        verb(**{name: given[name] for name in hints if name in given})

    expanded.__name__, expanded.__doc__ = verb.__name__, verb.__doc__
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {p.name: p.annotation for p in parameters}
    return expanded  # type: ignore[return-value]


def _expanded(options: Any, *, panel: str | None) -> list[inspect.Parameter]:
    """One parameter for each field of options that have their defaults."""
    kind = type(options)
    texts, hints = sentences(kind), get_type_hints(kind)
    found = []
    for f in fields(kind):
        value = getattr(options, f.name)
        if is_dataclass(value) and type(value).__name__ in PANELS:
            found += _expanded(value, panel=PANELS[type(value).__name__])
        elif f.name not in PYTHON_ONLY:
            found.append(_parameter(f.name, hints[f.name], value, texts.get(f.name), panel))
    return found


def _parameter(name: str, hint: Any, value: Any, text: str | None, panel: str | None) -> inspect.Parameter:
    flag = FLAGS.get(name, Flag())
    kind = _plain(hint) if flag.kind is None else flag.kind
    default = [] if kind == list[str] else value if flag.default is None else flag.default
    dashed = name.replace("_", "-")
    is_switch = kind in (bool, bool | None) and value is not False  # one that is not off can be turned off
    option = typer.Option(
        flag.name or (f"--{dashed}/--no-{dashed}" if is_switch else f"--{dashed}"),
        metavar=flag.metavar,
        min=flag.minimum,
        help=text,
        rich_help_panel=panel,
        show_default=default is not None and default is not False and default != [],
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _plain(hint: Any) -> Any:
    """Of a union the choices, if it has any: what else it takes cannot be written on a command line."""
    choices = [part for part in get_args(hint) if get_origin(part) is Literal]
    return choices[0] if get_origin(hint) is Union and choices else hint


def _collected(kind: Any, given: dict[str, Any]) -> Any:
    """Options from the values of their fields, which are taken out of ``given``."""
    default, values = kind(), {}
    for f in fields(kind):
        value = getattr(default, f.name)
        if is_dataclass(value) and type(value).__name__ in PANELS:
            values[f.name] = _collected(type(value), given)
        elif f.name in given:
            parse = FLAGS.get(f.name, Flag()).parse
            values[f.name] = given.pop(f.name) if parse is None else parse(given.pop(f.name))
    return kind(**values)


def sentences(kind: type) -> dict[str, str]:
    """The first sentence that the docstring of a class says of each attribute."""
    _, _, text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", text, flags=re.MULTILINE)
    return {name: " ".join(text.split()).partition(". ")[0].rstrip(".") + "." for name, text in found}


class Command(TyperCommand):
    """A verb whose help shows options by panel, in plain text: rich would triple its time, and logs show no frames."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Options, then each argument by its name; typer would write a list as {SCENE}... and its type beside it."""
        return ["[OPTIONS]", *(_in_usage(p) for p in self.get_params(ctx) if p.param_type_name == "argument")]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then the options of each panel; those without one come first."""
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                default = "Options"
                if parameter.param_type_name == "argument":
                    default, record = "Arguments", (_in_usage(parameter), record[1])
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(record)
        for panel, records in panels.items():
            if records:
                with formatter.section(panel):
                    formatter.write_dl(records)


def _in_usage(argument: Any) -> str:
    """An argument's name, with dots if it takes several values and in brackets if it may be left out."""
    name = argument.metavar.rstrip("…")
    several = "…" if argument.nargs == -1 else ""
    return f"{name}{several}" if argument.required or name.startswith("[") else f"[{name}]{several}"


MODEL_HELP = "Model folder, or the name of a shipped model."

Model = Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help=MODEL_HELP)]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]…", help="Settings that replace the file's, as train.iterations=500."),
]
Config = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file of the experiment.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help=sentences(Running)["overwrite"])]
Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", callback=check_device, help=sentences(Network)["device"])
]
Crs = Annotated[str | None, typer.Option("--crs", metavar="EPSG:N", help=sentences(Imagery)["crs"])]
