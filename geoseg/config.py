"""The configuration of one training: pydantic models over a YAML file, with ``key=value`` overrides.

Relative paths in the file count from the file's folder (scenes and labels from ``data.root`` where it is given); a
``data.root`` or ``output`` given on the command line counts from the working directory.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from geoseg.classes import ClassTable
from geoseg.contract import DEFAULT_SCALE, ClassEntry, DType, Frozen, WindowSettings, class_table, shipped_models
from geoseg.errors import ConfigError


class ModelConfig(Frozen):
    """Which network: an SMP architecture and encoder.

    Attributes:
        architecture: Key of SMP's architecture mapping: segnext, unet, fpn, …
        encoder: SMP encoder name.
        encoder_weights: Pretrained encoder weights, or None to start from random ones.
        options: Further keyword arguments of the architecture.
        start_from: Model folder, or name of a shipped model, of the same network, whose weights training starts from.
    """

    architecture: str = "segnext"
    encoder: str = "tu-mscan_tiny"
    encoder_weights: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    start_from: str | None = None


class ImageryConfig(Frozen):
    """What the pixels are; becomes the model's imagery contract.

    Attributes:
        bands: Meaning of the channels in order.
        indexes: 1-based bands of the files they come from; None takes the first ones in order.
        dtype: Data type the files must have.
        scale: Factor on pixel values; None takes 1/255 for uint8, 1e-4 for 16 bit, 1 for float32.
        mean: Per-band mean of scaled values; None measures it on the training scenes.
        std: Per-band standard deviation of scaled values; None measures it.
        nodata: "file" or a number; see `geoseg.contract.Contract`.
        alpha: Take the files' alpha band as validity.
        gsd_m: Ground sample distance, m; None takes the median of the training scenes.
    """

    bands: tuple[str, ...] = ("red", "green", "blue")
    indexes: tuple[int, ...] | None = None
    dtype: DType = "uint8"
    scale: float | None = Field(default=None, gt=0)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    nodata: Literal["file"] | float = "file"
    alpha: bool = False
    gsd_m: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_per_band(self) -> ImageryConfig:
        for key in ("indexes", "mean", "std"):
            values = getattr(self, key)
            if values is not None and len(values) != len(self.bands):
                raise ValueError(f"{key} has {len(values)} entries for {len(self.bands)} bands")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")
        return self

    @property
    def effective_scale(self) -> float:
        """The scale given, or the one usual for the dtype."""
        return self.scale if self.scale is not None else DEFAULT_SCALE[self.dtype]

    @property
    def band_indexes(self) -> tuple[int, ...]:
        """1-based file bands of the channels."""
        return self.indexes if self.indexes is not None else tuple(range(1, len(self.bands) + 1))


class SceneConfig(Frozen):
    """One labelled scene.

    Attributes:
        scene: Raster of the imagery.
        labels: Raster of class ids on the same grid, or polygons (GeoJSON, GeoPackage, …) in any CRS.
        attribute: Field of the polygons that holds a class's name or id; None where all are of ``class_name``.
        class_name: Class of all polygons, where no attribute tells.
        outside: Class outside all polygons, or "ignore".
    """

    scene: Path
    labels: Path
    attribute: str | None = None
    class_name: str | None = None
    outside: str | None = None

    @model_validator(mode="after")
    def _one_source_of_class(self) -> SceneConfig:
        if self.attribute is not None and self.class_name is not None:
            raise ValueError("give attribute or class_name, not both")
        return self


class DataConfig(Frozen):
    """Labelled scenes to train on and to validate on, and the folder their paths count from."""

    root: Path | None = None
    train: tuple[SceneConfig, ...] = Field(min_length=1)
    val: tuple[SceneConfig, ...] = Field(min_length=1)


class AugmentConfig(Frozen):
    """Random changes of the training windows; see `geoseg.augment`.

    Attributes:
        scale: Range of the zoom; 0.5 sees twice the ground at half the detail.
        dihedral: The eight flips and quarter turns; ground seen from above has no up.
        brightness: Largest share by which brightness changes.
        contrast: Largest share by which contrast changes.
        hue: Largest turn of the hue, degrees; three-band 8-bit imagery only.
        saturation: Largest change of the saturation in [0, 255]; three-band 8-bit imagery only.
        noise: Largest standard deviation of added noise, share of the range.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    dihedral: bool = True
    brightness: float = Field(default=0.2, ge=0, le=1)
    contrast: float = Field(default=0.2, ge=0, le=1)
    hue: float = Field(default=10, ge=0, le=90)
    saturation: float = Field(default=30, ge=0, le=255)
    noise: float = Field(default=0.0, ge=0, le=0.5)

    @model_validator(mode="after")
    def _range_of_scale(self) -> AugmentConfig:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be a range of positive numbers, found {list(self.scale)}")
        return self


class RunConfig(Frozen):
    """The recipe; the defaults are SegNeXt's for ADE20K, from ImageNet weights.

    Attributes:
        iterations: Optimizer steps.
        batch_size: Windows per step and device.
        size: Side of the training windows, px.
        max_class_share: A window whose commonest class exceeds this share is redrawn, ten times at most; 1 for never.
        learning_rate: Peak learning rate of the encoder.
        decoder_lr_factor: Learning rate of everything else over the encoder's.
        weight_decay: AdamW's, except for norms.
        warmup_iterations: Linear warm-up on top of the decay.
        poly_power: Power of the polynomial decay to 0.
        precision: Lightning's precision: "32-true", "bf16-mixed", "16-mixed"; None takes bf16 on a GPU that has it.
        workers: Processes that read windows; 0 reads in the main process.
        val_every: Iterations between validations; should divide ``iterations``, as what follows the last is not scored.
        compile: Compile the network with torch.compile.
    """

    iterations: int = Field(default=160_000, ge=1)
    batch_size: int = Field(default=16, ge=1)
    size: int = Field(default=512, ge=32, multiple_of=32)
    max_class_share: float = Field(default=0.75, gt=0, le=1)
    learning_rate: float = Field(default=6e-5, gt=0)
    decoder_lr_factor: float = Field(default=10, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_iterations: int = Field(default=1500, ge=0)
    poly_power: float = Field(default=1.0, ge=0)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] | None = None
    workers: int = Field(default=2, ge=0)
    val_every: int = Field(default=1000, ge=1)
    compile: bool = False


class TrainConfig(Frozen):
    """One complete experiment."""

    name: str = Field(min_length=1)
    output: Path
    seed: int = 0
    classes: tuple[ClassEntry, ...] = Field(min_length=1, max_length=255)
    model: ModelConfig = ModelConfig()
    imagery: ImageryConfig = ImageryConfig()
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    train: RunConfig = RunConfig()
    window: WindowSettings = WindowSettings()
    card: dict[str, Any] = Field(default_factory=dict)

    @property
    def class_table(self) -> ClassTable:
        """The classes as a table."""
        return class_table(self.classes)

    @model_validator(mode="after")
    def _class_names_known(self) -> TrainConfig:
        names = self.class_table.names
        for entry in (*self.data.train, *self.data.val):
            for key, allowed in (("class_name", names), ("outside", (*names, "ignore"))):
                value = getattr(entry, key)
                if value is not None and value not in allowed:
                    raise ValueError(f"{key} {value!r} of {entry.labels} is none of {', '.join(allowed)}")
        return self


def load_config(path: str | PathLike[str], overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration in a YAML file, with overrides.

    Args:
        path: YAML file.
        overrides: ``key.subkey=value``, the value in YAML: ``train.iterations=500``, ``data.root=/mnt/orthos``.

    Raises:
        ConfigError: No such file, broken YAML, an unknown key (the nearest valid one is named), or a wrong value.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no such configuration: {path}", hint="examples lie in the folder configs/") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint="a configuration is a text file in UTF-8") from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{path} is not valid YAML: {_in_one_line(error)}", hint="examples lie in the folder configs/"
        ) from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no keys", hint="examples lie in the folder configs/")
    folder = path.parent.resolve()
    _resolve(raw, "output", folder)
    _resolve_start(raw, folder)
    if isinstance(raw.get("data"), dict):
        _resolve(raw["data"], "root", folder)
    for override in overrides:
        _override(raw, override)
    # What came from the command line; what came from the file is absolute by now.
    _resolve(raw, "output", Path.cwd())
    _resolve_start(raw, Path.cwd())
    if isinstance(raw.get("data"), dict):
        _resolve(raw["data"], "root", Path.cwd())
    _resolve_scenes(raw, folder)
    return parse_config(raw, source=str(path))


def parse_config(values: Mapping[str, Any], *, source: str) -> TrainConfig:
    """The configuration of nested values; ``source`` is named in errors.

    Raises:
        ConfigError: See `load_config`.
    """
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise _explain(error, source) from error


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved configuration as YAML; `load_config` gives an equal one back."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), "utf-8")


def _resolve(values: dict[str, Any], key: str, folder: Path) -> None:
    if isinstance(values.get(key), str):
        values[key] = str(folder / Path(values[key]).expanduser())


def _resolve_start(values: dict[str, Any], folder: Path) -> None:
    model = values.get("model")
    if isinstance(model, dict) and model.get("start_from") not in shipped_models():
        _resolve(model, "start_from", folder)


def _resolve_scenes(values: dict[str, Any], folder: Path) -> None:
    """Scenes and labels count from ``data.root``, or from the configuration's folder where there is none."""
    data = values.get("data")
    if not isinstance(data, dict):
        return
    base = Path(data["root"]) if isinstance(data.get("root"), str) else folder
    for split in ("train", "val"):
        entries = data.get(split)
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict):
                _resolve(entry, "scene", base)
                _resolve(entry, "labels", base)


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"override {override!r} is not of the form key=value", hint="for example: train.iterations=500"
        )
    *parents, last = key.split(".")
    target: Any = values
    for parent in parents:
        target = target.setdefault(parent, {}) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        raise ConfigError(f"override {override!r}: {'.'.join(parents)} holds no keys")
    try:
        target[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {_in_one_line(error)}") from error


def _in_one_line(error: yaml.YAMLError) -> str:
    """Where the YAML breaks and why, without the excerpt PyYAML draws."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return (
        " ".join(str(error).split()) if mark is None else f"{problem} in line {mark.line + 1}, column {mark.column + 1}"
    )


def _explain(error: ValidationError, source: str) -> ConfigError:
    """The first problem, with the nearest valid key where a key is unknown."""
    first = error.errors()[0]
    location = [part for part in first["loc"] if part not in ("str", "float", "literal['file']")]
    where = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        valid = sorted(_keys_at(TrainConfig, location[:-1]))
        near = difflib.get_close_matches(str(location[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"valid keys there: {', '.join(valid)}"
        return ConfigError(f"{source} has an unknown key {where}", hint=hint)
    if first["type"] == "missing":
        return ConfigError(f"{source} lacks {where}", hint=f"add it, or give {where}=… on the command line")
    message = first["msg"].removeprefix("Value error, ")
    # A rule across several keys has found the whole table; its own words say enough.
    found = "" if isinstance(first["input"], dict) else f", found {first['input']!r:.80}"
    return ConfigError(f"{source}: {where + ': ' if where else ''}{message}{found}")


def _keys_at(model: type[BaseModel], location: Sequence[Any]) -> Iterator[str]:
    """Names of the fields at a place of the tree."""
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    yield from model.model_fields
