"""The settings of an experiment as pydantic models, each key documented where it is defined."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from geoseg.classes import ClassTable, nearest_name
from geoseg.contract import DEFAULT_SCALE, ClassEntry, DType, Frozen, WindowSettings, class_table
from geoseg.errors import ConfigError
from geoseg.paths import InputPath, input_path
from geoseg.windows import round_up
from geoseg.words import count

Source = Annotated[InputPath, BeforeValidator(lambda name: input_path(name) if isinstance(name, str | Path) else name)]
"""An input file: a path, or a name that only GDAL can open."""


class ModelConfig(Frozen):
    """The network: an SMP architecture and encoder.

    Attributes:
        architecture: Key of SMP's architecture mapping: segnext, unet, fpn, …
        encoder: SMP encoder name.
        encoder_weights: Pretrained encoder weights; None for random ones.
        options: Further keyword arguments of the architecture.
        start_from: Folder of a model with the same network, or name of a shipped one, whose weights training starts
            from. Its classes may differ: classes of the same name keep their weights.
        freeze: Parts of the network that do not train, by the beginning of their names: "encoder",
            "encoder.model.stages_0".
    """

    architecture: str = "segnext"
    encoder: str = "tu-mscan_tiny"
    encoder_weights: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    start_from: str | None = None
    freeze: tuple[str, ...] = ()


class ImageryConfig(Frozen):
    """The imagery; becomes the model's imagery contract.

    Attributes:
        bands: Meaning of the channels in order.
        indexes: Their 1-based bands in the files; None for the first ones in order.
        dtype: Data type of the files.
        scale: Factor on pixel values; None for 1/255 (uint8), 1e-4 (16 bit) or 1 (float32).
        mean: Mean of scaled values per band; None measures it on the training scenes.
        std: Standard deviation of scaled values per band; None measures it.
        nodata: "file" or a number; see `geoseg.contract.Contract`.
        alpha: Use the files' alpha band as validity.
        gsd_m: Ground sample distance of the model, m: scenes are resampled to it while they are read (those without a
            CRS are not). None for the median of the training scenes, which are read as they are.
    """

    bands: tuple[str, ...] = Field(default=("red", "green", "blue"), min_length=1)
    indexes: tuple[int, ...] | None = None
    dtype: DType = "uint8"
    scale: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] | None = None
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] | None = None
    nodata: Literal["file"] | float = "file"
    alpha: bool = False
    gsd_m: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_per_band(self) -> Self:
        for key in ("indexes", "mean", "std"):
            values = getattr(self, key)
            if values is not None and len(values) != len(self.bands):
                entries = count(len(values), "entry", "entries")
                raise ValueError(f"{key} has {entries} for {count(len(self.bands), 'band')}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")
        return self

    @property
    def effective_scale(self) -> float:
        """The scale, or the usual one for the dtype."""
        return self.scale if self.scale is not None else DEFAULT_SCALE[self.dtype]

    @property
    def band_indexes(self) -> tuple[int, ...]:
        """1-based file bands of the channels."""
        return self.indexes if self.indexes is not None else tuple(range(1, len(self.bands) + 1))


def _metres(value: Any) -> Any:
    """A number of metres above 0, also from the text of a catalogue; other text is the name of a field."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 < value < math.inf):
        raise ValueError(f"must be metres above 0 or the name of a field, found {value!r}")
    return value


class SceneConfig(Frozen):
    """One labelled scene.

    Attributes:
        scene: Raster of the imagery.
        labels: Raster of class ids, or polygons (GeoPackage, GeoParquet, …) in any CRS. With a vector file without
            features the whole scene is ``outside``.
        attribute: Field of the polygons with the name or number of a class; None if all are ``class_name``.
        class_name: Class of all polygons.
        buffer_m: Metres on the ground by which points and lines are widened to areas: the radius of a point, half the
            width of a line. A number, or a field with a number for each.
        outside: Class outside all polygons, or "ignore".
        labelled_area: Polygons, in any CRS, outside which labels are ignored; None for the whole scene.
        corrections: Polygons saved by ``geoseg view``; they replace the labels, which may be a predicted map.
        corrected_only: Labels outside the corrections are ignored.
        min_confidence: Labels are a map of ``geoseg predict --confidence``, and what it is less sure of is ignored,
            0 … 1.
        crs: CRS of a scene with a transform but no CRS, as EPSG code or WKT; None for the file's.
    """

    scene: Source
    labels: Source
    attribute: str | None = None
    class_name: str | None = None
    buffer_m: Annotated[float | str | None, BeforeValidator(_metres)] = None
    outside: str | None = None
    labelled_area: Source | None = None
    corrections: Source | None = None
    corrected_only: bool = False
    min_confidence: float | None = Field(default=None, gt=0, le=1)
    crs: str | None = None

    @model_validator(mode="after")
    def _one_source_of_class(self) -> Self:
        if self.attribute is not None and self.class_name is not None:
            raise ValueError("give attribute or class_name, not both")
        if self.corrected_only and self.corrections is None:
            raise ValueError("corrected_only needs corrections")
        return self

    @property
    def is_part_labelled(self) -> bool:
        """Whether labels are ignored in a part of the scene."""
        is_bounded = self.labelled_area is not None or self.min_confidence is not None
        return is_bounded or self.corrected_only or self.outside == "ignore"


class SplitConfig(Frozen):
    """How scenes are cut into blocks, some of which validate.

    Attributes:
        block: Side of a block, px; at least that of a training window and of a validation window.
        val_share: Share of the blocks that validate.
        buffer: Strip around validation blocks that no training window may touch, px.
    """

    block: int = Field(default=1024, ge=32, multiple_of=32)
    val_share: float = Field(default=0.2, gt=0, lt=1)
    buffer: int = Field(default=64, ge=0)


class DataConfig(Frozen):
    """Labelled scenes: either ``train`` and ``val``, or ``scenes`` that ``split`` cuts into blocks for both.

    Attributes:
        root: Folder that paths of scenes and labels are relative to.
        train: Scenes to train on.
        val: Scenes to validate on.
        scenes: Scenes to cut into blocks.
        split: How they are cut.
        leakage: Whether training and validation scenes that overlap or touch are refused, or only reported.
        first_label: Number of the first class in labels, rasters or fields of polygons; smaller ones are ignored. 1
            for ADE20K.
    """

    root: Path | None = None
    train: tuple[SceneConfig, ...] = ()
    val: tuple[SceneConfig, ...] = ()
    scenes: tuple[SceneConfig, ...] = ()
    split: SplitConfig | None = None
    leakage: Literal["refuse", "warn"] = "refuse"
    first_label: int = Field(default=0, ge=0, le=255)

    @model_validator(mode="after")
    def _one_way_of_splitting(self) -> Self:
        by_scene, by_block = bool(self.train or self.val), bool(self.scenes or self.split)
        if by_scene and by_block:
            raise ValueError("give train and val, or scenes and split, not both")
        if by_block and not (self.scenes and self.split):
            raise ValueError("scenes and split belong together: give both")
        for key in ("train", "val"):
            if not by_block and not getattr(self, key):
                raise ValueError(f"{key} names no scene: give train and val, or scenes and split")
        return self

    def entries(self, split: str) -> tuple[SceneConfig, ...]:
        """The scenes of a split ("train", "val"); all of them if they are cut into blocks."""
        if self.split is not None:
            return self.scenes
        return self.train if split == "train" else self.val


class AugmentConfig(Frozen, allow_inf_nan=False):
    """Random changes of the training windows; see `geoseg.data.augment`.

    Attributes:
        scale: Range of the zoom; 0.5 shows twice the ground at half the detail.
        scale_sampling: Whether zooms are drawn uniformly by ratio ("log") or by difference ("uniform").
        base_zoom: Zoom that ``scale`` is relative to; 1.12 brings windows of 800 px to 896 px.
        base_size: Longer and shorter side, px, to which whole images are fitted before they are zoomed; None for none.
            For photographs: mmsegmentation's base scale.
        dihedral: The eight flips and quarter turns; ground seen from above has no up.
        horizontal_flip: Flip left to right only, for pictures that have an up.
        distortion: SegNeXt's own photometric distortion; red, green and blue in 8 bit only. The following changes are
            made as well: the paper's recipe has brightness, contrast, hue and saturation 0.
        brightness: Largest shift of all bands, share of each band's spread (two standard deviations).
        contrast: Largest share by which values move away from the window's mean, or towards it.
        band_gain: Largest share by which each band changes on its own.
        hue: Largest turn of the hue, degrees; red, green and blue in 8 bit only.
        saturation: Largest change of the saturation in [0, 255]; red, green and blue in 8 bit only.
        noise: Largest standard deviation of added noise, share of each band's spread.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    scale_sampling: Literal["log", "uniform"] = "log"
    base_zoom: float = Field(default=1.0, gt=0)
    base_size: tuple[int, int] | None = None
    dihedral: bool = True
    horizontal_flip: bool = False
    distortion: bool = False
    brightness: float = Field(default=0.2, ge=0, le=1)
    contrast: float = Field(default=0.2, ge=0, le=1)
    hue: float = Field(default=10, ge=0, le=90)
    saturation: float = Field(default=30, ge=0, le=255)
    band_gain: float = Field(default=0.0, ge=0, le=0.5)
    noise: float = Field(default=0.0, ge=0, le=0.5)

    @model_validator(mode="after")
    def _range_of_scale(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be a range of positive numbers, found {list(self.scale)}")
        if self.base_size is not None and min(self.base_size) < 1:
            raise ValueError(f"base_size must be 1 px or more, found {list(self.base_size)}")
        return self


class LossTerm(Frozen, allow_inf_nan=False):
    """One term of the loss; see `geoseg.network.losses`."""

    name: Literal["cross_entropy", "ohem", "dice", "lovasz", "focal"] = "cross_entropy"
    weight: float = Field(default=1.0, gt=0)


class RunConfig(Frozen, allow_inf_nan=False):
    """The recipe; the defaults are SegNeXt's for ADE20K, from ImageNet weights.

    Attributes:
        iterations: Optimizer steps.
        batch_size: Windows per device and forward pass; a step has batch_size × accumulate × devices of them.
        accumulate: Forward passes per step.
        size: Side of the training windows, px.
        draw: Whether scenes are drawn in proportion to their pixels, or equally often.
        class_shares: Share of the windows around a class: "balanced" for equal shares, or a share for some classes, the
            other windows lying anywhere. None for all windows anywhere.
        align_blocks: Start windows where blocks of the file start, if these are at most half a window, so that fewer
            are decoded.
        cache_mb: Decoded blocks cached by each reading process, MB.
        max_class_share: A window whose commonest class exceeds this share is redrawn, at most ten times; 1 for never.
        learning_rate: Peak learning rate of the encoder.
        decoder_lr_factor: Learning rate of everything else over the encoder's.
        weight_decay: AdamW's, except for norms.
        warmup_iterations: Length of the linear warm-up.
        poly_power: Power of the polynomial decay to 0.
        precision: Lightning's precision: "32-true", "bf16-mixed", "16-mixed"; None for bf16 on a GPU that has it.
        workers: Processes that read windows; 0 reads in the main process.
        loss: Terms of the loss.
        class_weights: Weight of each class in cross_entropy, ohem and focal: "balanced" for those that
            `geoseg stats` suggests, or one number per class.
        ema: Decay per step of a moving average of the weights, which is then validated and saved; None for none.
        measure_precision: At the end, on a CPU that multiplies bfloat16, record its accuracy on the validation scenes;
            see `geoseg.prediction.precision`.
        patience: Validations without a better mIoU after which training ends; None for never.
        sync_norm: Synchronise batch norms over all GPUs.
        checkpoint_every: Iterations between the checkpoints for ``--resume``.
        val_every: Iterations between validations, besides the one after the last iteration; None for 1000, or a quarter
            of a shorter run.
        compile: Compile the network with torch.compile.
    """

    iterations: int = Field(default=160_000, ge=1)
    batch_size: int = Field(default=16, ge=1)
    accumulate: int = Field(default=1, ge=1)
    size: int = Field(default=512, ge=32, multiple_of=32)
    max_class_share: float = Field(default=0.75, gt=0, le=1)
    draw: Literal["pixels", "scenes"] = "pixels"
    class_shares: Literal["balanced"] | dict[str, float] | None = None
    align_blocks: bool = True
    cache_mb: int = Field(default=64, ge=0)
    learning_rate: float = Field(default=6e-5, gt=0)
    decoder_lr_factor: float = Field(default=10, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_iterations: int = Field(default=1500, ge=0)
    poly_power: float = Field(default=1.0, ge=0)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] | None = None
    workers: int = Field(default=2, ge=0)
    loss: tuple[LossTerm, ...] = Field(default=(LossTerm(),), min_length=1)
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    ema: float | None = Field(default=None, gt=0, lt=1)
    measure_precision: bool = True
    patience: int | None = Field(default=None, ge=1)
    sync_norm: bool = True
    checkpoint_every: int = Field(default=500, ge=1)
    val_every: int | None = Field(default=None, ge=1)
    compile: bool = False

    @model_validator(mode="after")
    def _shares_and_weights(self) -> Self:
        shares = self.class_shares.values() if isinstance(self.class_shares, dict) else ()
        if min(shares, default=1) <= 0 or sum(shares) > 1 + 1e-9:
            raise ValueError("class_shares must be above 0 and add up to 1 at most")
        if isinstance(self.class_weights, tuple) and min(self.class_weights, default=0) < 0:
            raise ValueError("class_weights must be 0 or more")
        return self

    @property
    def validation_interval(self) -> int:
        """Iterations between validations."""
        return min(self.iterations, self.val_every or (1000 if self.iterations > 1000 else -(-self.iterations // 4)))


class TrainConfig(Frozen):
    """One complete experiment."""

    name: str = Field(min_length=1)
    output: Path
    seed: int = Field(default=0, ge=0, lt=2**32)
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

    @property
    def largest_window(self) -> int:
        """Side of the largest window of a scene, px; 0 if images are fitted to a size."""
        if self.augment.base_size is not None:
            return 0
        zoom = self.augment.base_zoom * self.augment.scale[0]
        return max(round(self.train.size / zoom), self.window.size)

    @model_validator(mode="after")
    def _class_names_known(self) -> Self:
        names = self.class_table.names
        for entry in (*self.data.train, *self.data.val, *self.data.scenes):
            for key, allowed in (("class_name", names), ("outside", (*names, "ignore"))):
                value = getattr(entry, key)
                if value is not None and value not in allowed:
                    raise ConfigError(
                        f"{key} {value!r} of {entry.labels} is none of {', '.join(allowed)}",
                        hint=f"{key}: {nearest_name(value, allowed)}",
                    )
        shares, weights = self.train.class_shares, self.train.class_weights
        for name in shares if isinstance(shares, dict) else ():
            if name not in names:
                message = f"class {name!r} of train.class_shares is none of {', '.join(names)}"
                raise ConfigError(message, hint=f"did you mean {nearest_name(name, names)}?")
        if isinstance(weights, tuple) and len(weights) != len(names):
            raise ConfigError(
                f"train.class_weights has {count(len(weights), 'entry', 'entries')} for {len(names)} classes",
                hint=f"give one number for each of {', '.join(names)}, or train.class_weights=balanced",
            )
        return self

    @model_validator(mode="after")
    def _blocks_hold_windows(self) -> Self:
        split, largest = self.data.split, self.largest_window
        if split is not None and split.block < largest:
            raise ConfigError(
                f"data.split.block {split.block} is smaller than the largest window of {largest} px "
                "(train.size over the smallest zoom, or window.size)",
                hint=f"data.split.block={round_up(largest, 32)}",
            )
        return self
