"""Weights that others trained, made into folders that geoseg, SMP and timm load: ``geoseg weights``."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg
from torch import nn

from geoseg.class_tables import KNOWN, distinct_colors, numbered_classes, read_class_table
from geoseg.classes import NODATA, ClassTable, class_entries
from geoseg.contract import DEFAULT_SCALE, Band, ClassEntry, Contract, WindowSettings
from geoseg.errors import ConfigError, ModelError, OutputError
from geoseg.files import new_folder, writing
from geoseg.models import RECIPES
from geoseg.models.checkpoints import Checkpoint, read_checkpoint
from geoseg.network.model_folder import save_model
from geoseg.network.stored_model import CONFIG_FILE, WEIGHTS_FILE
from geoseg.options import AnyPath
from geoseg.paper.recognition import (
    NORM_GROUPS,
    Design,
    build_encoder,
    build_segnext,
    class_notes,
    find_rank,
    recognize,
)
from geoseg.pretrained import LICENCE, PRETRAINED, fetch
from geoseg.programs.early import check_import

log = logging.getLogger(__name__)

IMAGENET = (("red", 0.485, 0.229), ("green", 0.456, 0.224), ("blue", 0.406, 0.225))
"""Mean and standard deviation in [0, 1] of what every published SegNeXt was trained on."""

_WRITE_HINT = "free some space or choose another folder with -o"


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What was found and what was written."""

    folder: Path
    facts: tuple[tuple[str, str], ...]  # names and texts for people

    def lines(self) -> list[str]:
        """The report for people."""
        rows = [*self.facts, ("folder", str(self.folder))]
        width = max(len(name) for name, _ in rows)
        return [f"{name:<{width}}  {text}" for name, text in rows]


def import_weights(
    checkpoint: AnyPath,
    output: AnyPath,
    *,
    classes: AnyPath | None = None,
    nmf_rank: int | None = None,
    norm_groups: int = NORM_GROUPS,
    overwrite: bool = False,
    progress: bool = False,
) -> ImportReport:
    """Make a folder of a checkpoint of SegNeXt or MSCAN that another program wrote.

    A segmentation checkpoint becomes a model folder for geoseg, for red, green and blue bytes normalised as for
    ImageNet. An ImageNet checkpoint becomes weights that timm and SMP start a training from.

    The checkpoint is a file (`read_checkpoint`), or a name of ``geoseg weights list``, which is downloaded where it is
    not here. Without a file of classes (`read_class_table`) they have the names in the checkpoint's own notes, else
    those of the known data set with as many, else numbers. For the rank see `find_rank`.

    Raises:
        ModelError: A file that is no whole checkpoint of SegNeXt or MSCAN, or one that holds code.
        ConfigError: Classes of another number, or a setting that the checkpoint needs or does not take.
        OutputError: The folder exists, holds other files, or cannot be written.
    """
    output = Path(output)
    check_import(checkpoint, output, classes=classes, overwrite=overwrite)
    if str(checkpoint) in PRETRAINED and not Path(checkpoint).exists():
        checkpoint = fetch(PRETRAINED[str(checkpoint)], progress=progress)
    found = read_checkpoint(checkpoint)
    if output.resolve() in found.path.resolve().parents:
        raise OutputError(f"{found.path} lies in the output {output}", hint="choose another folder with -o")
    design, tensors = recognize(found.tensors, found.path)
    found = replace(found, tensors=tensors)
    log.info("%s: %s, %s", found.path, design.name, design.layout)
    facts = [("checkpoint", f"{found.path}, SHA-256 {found.sha256[:16]}…"), ("layout", design.layout)]
    if design.width is not None:
        facts += _import_segnext(found, design, output, classes, nmf_rank, norm_groups)
    elif classes is not None or nmf_rank is not None or norm_groups != NORM_GROUPS:
        raise ConfigError(
            f"{found.path} is an ImageNet checkpoint, without a decoder or classes of a map",
            hint="leave out --classes, --nmf-rank and --norm-groups",
        )
    else:
        facts += _import_encoder(found, design, output)
    return ImportReport(output, (*facts, ("licence", LICENCE)))


def _import_segnext(
    found: Checkpoint, design: Design, output: Path, classes: AnyPath | None, nmf_rank: int | None, norm_groups: int
) -> list[tuple[str, str]]:
    rank, why = find_rank(design, found.path, asked=nmf_rank)
    log.info("rank of the factorization %s, %s", rank, why)
    table, source = _class_table(found, design.classes, classes)
    network = build_segnext(design, found.tensors, found.path, rank=rank, norm_groups=norm_groups)
    contract = Contract(
        name=output.name,
        bands=tuple(Band(name=name, mean=mean, std=std) for name, mean, std in IMAGENET),
        dtype="uint8",
        scale=DEFAULT_SCALE["uint8"],
        gsd_m=None,
        classes=tuple(ClassEntry.model_validate(entry) for entry in class_entries(table)),
        window=WindowSettings(size=512, overlap=128),
        training={
            "checkpoint": found.path.name,
            "sha256": found.sha256,
            "layout": design.layout,
            "network": design.name,
            "nmf_rank": f"{rank}, {why}",
            "classes": source,
            "licence": LICENCE,
        },
    )
    with writing(output, SafetensorError, hint=_WRITE_HINT):
        save_model(output, network, contract)
    recipe = RECIPES[f"tu-{design.encoder}"]
    usual = {"decoder_channels": recipe.decoder_channels, "nmf_rank": recipe.nmf_rank, "norm_groups": NORM_GROUPS}
    options = {"decoder_channels": design.width, "nmf_rank": rank, "norm_groups": norm_groups}
    unusual = {key: value for key, value in options.items() if value != usual[key]}
    return [
        ("network", f"{design.name}, {design.classes} classes, {_count(network)} parameters"),
        ("NMF rank", f"{rank}, {why}"),
        ("classes", source),
        ("train", f"{_settings(design, **unusual)} model.start_from={output}"),
    ]


def _class_table(found: Checkpoint, count: int, classes: AnyPath | None) -> tuple[ClassTable, str]:
    """Classes of a checkpoint's logits and where they come from."""
    if count > NODATA:
        raise ModelError(
            f"{found.path} has {count} classes, at most {NODATA} fit an 8-bit map", hint="geoseg weights list"
        )
    if classes is not None:
        table = read_class_table(classes)
        if len(table) != count:
            raise ConfigError(
                f"{classes} lists {len(table)} classes, but {found.path} has {count}",
                hint="list the classes that it was trained with, in its order",
            )
        return table, f"{count}, of {Path(classes).name}"
    names, palette = class_notes(found.notes)
    if names is not None and len(names) == count:
        return ClassTable.from_names(names, palette or distinct_colors(count)), f"{count}, as in the file"
    for name, table in KNOWN.items():
        if len(table) == count:
            return table, f"{count}, taken for {name}'s by their number; --classes FILE for others"
    return numbered_classes(count), f"{count}, of unknown names; --classes FILE names them"


def _import_encoder(found: Checkpoint, design: Design, output: Path) -> list[tuple[str, str]]:
    network = build_encoder(design, found.tensors, found.path)
    with writing(output, SafetensorError, hint=_WRITE_HINT), new_folder(output) as scratch:
        save_file(network.state_dict(), scratch / WEIGHTS_FILE, metadata={"format": "pt"})
        text = json.dumps(_timm_config(design, found), indent=2, ensure_ascii=False)
        (scratch / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    source = {"pretrained_cfg_overlay.file": str((output / WEIGHTS_FILE).resolve())}
    return [
        ("network", f"{design.name}, {design.classes or 'no'} classes, {_count(network)} parameters"),
        ("train", f"model.encoder_weights=imagenet {_settings(design, **source)}"),
    ]


def _timm_config(design: Design, found: Checkpoint) -> dict[str, Any]:
    """``config.json`` as timm writes it to the hub and reads it from a folder."""
    default = get_pretrained_cfg(design.encoder)
    assert default is not None, "MSCAN registers one of each size"
    config = default.to_dict(remove_source=True)  # type: ignore[no-untyped-call]
    config |= {"num_classes": design.classes, "description": f"from {found.path.name}, SHA-256 {found.sha256}"}
    name = config.pop("architecture", design.encoder)
    options = {"model_args": design.encoder_options} if design.encoder_options else {}
    return {
        "architecture": name,
        "num_classes": design.classes,
        "num_features": design.embed_dims[-1],
        "global_pool": "avg",
        **options,
        "pretrained_cfg": config,
    }


def _settings(design: Design, **options: Any) -> str:
    """Settings of a training that builds the same encoder, with the options given."""
    options = {key: list(value) for key, value in design.encoder_options.items()} | options
    texts = {
        key: value if isinstance(value, str) else json.dumps(value).replace(" ", "") for key, value in options.items()
    }
    return " ".join([f"model.encoder=tu-{design.encoder}", *(f"model.options.{k}={v}" for k, v in texts.items())])


def _count(network: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()):,}"
