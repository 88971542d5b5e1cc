"""The imagery contract, ``geoseg.json`` in a model folder: what imagery a model takes and which classes it gives."""

from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from geoseg.arrays import FloatArray
from geoseg.classes import ClassTable, parse_color
from geoseg.errors import ModelError, reason
from geoseg.options import AnyPath

CONTRACT_FILE = "geoseg.json"
MODEL_FILES = frozenset({"config.json", "model.safetensors", CONTRACT_FILE, "README.md"})
"""What a model folder may hold."""

SHIPPED = Path(__file__).parent / "weights"
GSD_TOLERANCE = 0.3  # A scene is refused if its GSD differs by more than this share from the model's
CONTACT_M = 1.0  # see `ClassEntry`

DType = Literal["uint8", "uint16", "int16", "float32"]

DEFAULT_SCALE: dict[str, float] = {"uint8": 1 / 255, "uint16": 1e-4, "int16": 1e-4, "float32": 1.0}
"""Scale that brings usual imagery near [0, 1]: bytes, reflectance × 10 000, reflectance."""


class Frozen(BaseModel):
    """Base of all stored values: unknown keys are refused, nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Band(Frozen):
    """One input channel: its meaning, and mean and standard deviation of its scaled values."""

    name: str
    mean: float
    std: float = Field(gt=0)


class ClassEntry(Frozen):
    """One class; its id is its place in the list. Vector outputs leave out a background unless it is asked for.

    Attributes:
        separate: Whether the network also sees where two objects of the class touch, so that they can become polygons
            of their own. Labels must be polygons, one for each object.
        contact_m: How near another object is where an object's pixels belong to the contact, m; 1 by default.
    """

    name: str = Field(min_length=1)
    color: str
    background: bool = False
    separate: bool = False
    contact_m: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @field_validator("color")
    @classmethod
    def _is_color(cls, color: str) -> str:
        parse_color(color)
        return color

    @model_validator(mode="after")
    def _contact_of_separate(self) -> Self:
        if self.contact_m is not None and not self.separate:
            raise ValueError(f"contact_m of class {self.name} has no effect without separate: true")
        if self.separate and self.background:
            raise ValueError(f"class {self.name} is the background, which has no objects to separate")
        return self


class WindowSettings(Frozen):
    """Side and overlap of the windows of a prediction, px."""

    size: int = Field(default=512, ge=32, multiple_of=32)
    overlap: int = Field(default=128, ge=0, multiple_of=32)

    @model_validator(mode="after")
    def _overlap_below_size(self) -> Self:
        if self.overlap >= self.size:
            raise ValueError(f"overlap {self.overlap} must be below size {self.size}")
        return self


class PrecisionScore(Frozen):
    """How good a model's maps are in one precision, each from 0 to 1.

    Attributes:
        miou: Mean IoU on the scenes that were measured.
        agreement: Share of labelled pixels whose class is that of the float32 map.
    """

    miou: float = Field(ge=0, le=1)
    agreement: float = Field(ge=0, le=1)


class PrecisionRecord(Frozen):
    """The cost of reduced precision, as `geoseg evaluate` measured it on the validation scenes of ``measured_on``."""

    measured_on: str
    float32: PrecisionScore
    bfloat16: PrecisionScore

    @property
    def loss_points(self) -> float:
        """Points of mIoU that bfloat16 loses; negative where it gains."""
        return 100 * (self.float32.miou - self.bfloat16.miou)


class Contract(Frozen):
    """What a model takes and gives.

    Attributes:
        version: Version of this file's format.
        bands: Input channels in order.
        dtype: Data type of the imagery.
        scale: Factor on pixel values before mean and standard deviation.
        nodata: "file": pixels the file itself calls invalid; a number: pixels with that value in every band.
        gsd_m: Ground sample distance of the imagery, metres; None for imagery without georeference.
        window: Windows the model predicts with unless the user says otherwise.
        stride: Pixels per logit; None in folders of geoseg 0.1, whose network knows.
        precision: What reduced precision costs; None where it was not measured.
        training: How and on what it was trained: free text and numbers for people.
    """

    version: Literal[1] = 1
    name: str
    bands: tuple[Band, ...] = Field(min_length=1)
    dtype: DType
    scale: float = Field(gt=0)
    nodata: Literal["file"] | float = "file"
    gsd_m: float | None = Field(default=None, gt=0)
    classes: tuple[ClassEntry, ...] = Field(min_length=1, max_length=255)
    window: WindowSettings = WindowSettings()
    stride: int | None = Field(default=None, ge=1)
    precision: PrecisionRecord | None = None
    training: dict[str, Any] = Field(default_factory=dict)

    @property
    def class_table(self) -> ClassTable:
        """The classes as a table."""
        return class_table(self.classes)

    @property
    def statistics(self) -> FloatArray:
        """Mean and standard deviation of the scaled values of each band, (2, B)."""
        return np.array([(band.mean, band.std) for band in self.bands]).T

    def save(self, folder: Path) -> None:
        """Write ``geoseg.json`` into a model folder."""
        (folder / CONTRACT_FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def class_table(entries: tuple[ClassEntry, ...]) -> ClassTable:
    """Class table of stored entries, ids from 0."""
    return ClassTable.from_entries(entry.model_dump() for entry in entries)


def contact_widths(entries: tuple[ClassEntry, ...]) -> dict[int, float]:
    """How near another object is in the contact, m, by the id of each class to separate."""
    return {i: entry.contact_m or CONTACT_M for i, entry in enumerate(entries) if entry.separate}


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONTRACT_FILE}"))


def find_model(name: AnyPath) -> Path:
    """Folder of a model given by path, or by name where it ships with the package; else a `ModelError`."""
    path = Path(name)
    if path.is_dir():
        return path
    if str(name) in shipped_models():
        return SHIPPED / str(name)
    shipped = ", ".join(shipped_models()) or "none"
    found = f"{name} is a file, not a model folder" if path.exists() else f"no model folder {name}"
    raise ModelError(found, hint=f"shipped models: {shipped}; or train one: geoseg train CONFIG")


def load_contract(folder: Path) -> Contract:
    """The contract of a model folder; a `ModelError` if it has none, or names the first key that is wrong."""
    path = folder / CONTRACT_FILE
    try:
        return Contract.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{folder} has no {CONTRACT_FILE}, so it is not a geoseg model folder",
            hint="a model folder holds config.json, model.safetensors and geoseg.json; geoseg train writes one",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {reason(error)}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(
            f"{path} is not a valid imagery contract: {where + ': ' if where else ''}{first['msg']}",
            hint="copy the whole folder that geoseg train wrote",
        ) from error
