"""Checks of paths, names, models and configurations, which the command line makes before it loads torch and GDAL.

The programs behind the verbs make the same checks, and those that need an open file. Each raises a `GeosegError`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING

from geoseg.classes import nearest_name
from geoseg.errors import ConfigError, OutputError, SceneError
from geoseg.evaluation import FILES
from geoseg.files import check_folder, check_output, check_output_folder, name_outputs, output_pattern
from geoseg.model_export import check_opset, check_suffix
from geoseg.options import (
    CONTACT_SHARE,
    AnyPath,
    EvaluateOptions,
    ExportOptions,
    PolygonRules,
    PredictOptions,
    TrainOptions,
)
from geoseg.paths import MAP_SUFFIXES, exists, input_path, is_map, scene_names
from geoseg.polygons import check_without_polygons, class_rules
from geoseg.pretrained import PRETRAINED, check_source
from geoseg.tiling.plan import window_of
from geoseg.words import first_lines

if TYPE_CHECKING:  # pydantic and yaml, which not every verb needs
    from geoseg.config.settings import SceneConfig, TrainConfig
    from geoseg.contract import Contract

VECTOR_SUFFIXES = (".gpkg", ".fgb", ".parquet", ".geojson", ".geojsonl", ".ndjson", ".shp", ".pmtiles")
"""Those of `geoseg.export.EXPORTERS` (a test compares them)."""

DEMO_FILES = {
    "imagery": "scene.tif",
    "truth, raster": "truth.tif",
    "truth, polygons": "truth.gpkg",
    "class map": "landcover.tif",
    "polygons": "landcover.gpkg",
    "polygons, WGS84": "landcover.geojson",
    "picture": "overlay.png",
}
"""What ``geoseg demo`` writes, by what it is."""

ARCHITECTURES = (
    *("deeplabv3", "deeplabv3plus", "dpt", "fpn", "linknet", "manet", "pan", "pspnet", "segformer", "segnext", "unet"),
    *("unetplusplus", "upernet"),
)
"""Those of SMP and ours (a test compares them)."""

SEGNEXT_OPTIONS = (
    *("decoder_channels", "nmf_rank", "drop_path_rate", "norm_groups", "decoder_dropout", "decoder", "stage1"),
    *("context", "embed_dims", "depths", "mlp_ratios", "branches", "channel_mixing", "attention"),
)
"""What ``model.options`` may hold for SegNeXt with MSCAN (a test compares them)."""

_MOST_NAMED = 20


def check_kind(output: Path, options: PredictOptions) -> None:
    """Refuse an output of an unknown kind, and layers or rules that it cannot have."""
    _check_suffix(output, (*MAP_SUFFIXES, *VECTOR_SUFFIXES))
    if is_map(output):
        check_without_polygons(options.rules)
    elif options.layers.probabilities or options.layers.disagreement:
        raise ConfigError("probabilities and disagreement are rasters", hint="write them beside a map: -o MAP.tif")


def check_prediction(scenes: Sequence[AnyPath], model: AnyPath, output: str, options: PredictOptions) -> bool:
    """Check what ``geoseg predict`` can tell from names alone.

    Returns:
        Whether each scene gets an output of its own.
    """
    pattern = output_pattern(output)
    path = Path(output) if pattern is None else pattern
    check_kind(path, options)
    names = scene_names(scenes)
    if pattern is None:
        # An existing output may be an interrupted run's own.
        is_ours = path.with_name(f".{path.name}.parts").exists()
        check_output(path, overwrite=options.running.overwrite or is_ours, inputs=names, styled=True)
        check_scenes(names)
    else:
        name_outputs(pattern, names)
        if all(_is_missing(name) for name in names):
            check_scenes(names)
    aoi = options.imagery.aoi
    if aoi is not None and _is_missing(aoi):
        raise SceneError(f"no such area of interest: {aoi}", hint="check the path after --aoi")
    contract = _contract(model)
    window_of(options.tiling, contract.window)
    if not is_map(path):
        class_rules(options.rules, contract.class_table)
    return pattern is not None


def check_vectorizing(
    class_map: AnyPath, output: Path, *, rules: PolygonRules, classes: AnyPath | None, overwrite: bool
) -> None:
    """Check what ``geoseg vectorize`` can tell from names alone."""
    _check_maps([class_map], output, VECTOR_SUFFIXES, overwrite=overwrite)
    if classes is not None:
        from geoseg.class_tables import read_class_table

        known = replace(rules, separate=(), contact_share=CONTACT_SHARE)  # the map says what can be separated
        class_rules(known, read_class_table(classes))


def check_comparing(
    maps: Sequence[AnyPath],
    output: Path | None,
    *,
    rules: PolygonRules,
    evaluations: Sequence[AnyPath],
    classes: AnyPath | None,
    overwrite: bool,
) -> None:
    """Check what ``geoseg compare`` can tell from names and options alone."""
    _check_maps(maps, output, (*MAP_SUFFIXES, *VECTOR_SUFFIXES), overwrite=overwrite)
    if output is None or is_map(output):
        check_without_polygons(rules)
    if len(evaluations) > 2:
        raise ConfigError(
            f"found {len(evaluations)} evaluations, expected one, or two: of the earlier map and of the later one"
        )
    if rules.separate:
        raise ConfigError("--separate has no effect on changes, whose contacts are not known", hint="leave it out")
    if classes is not None:
        from geoseg.class_tables import read_class_table

        read_class_table(classes)


def _check_maps(maps: Sequence[AnyPath], output: Path | None, suffixes: Sequence[str], *, overwrite: bool) -> None:
    """Check an output, if any, and that the class maps it is made from exist."""
    if output is not None:
        _check_suffix(output, suffixes)
        check_output(output, overwrite=overwrite, inputs=maps, styled=True)
    for path in maps:
        if _is_missing(path):
            raise SceneError(f"no such class map: {path}", hint="check the path")


def check_training(config: TrainConfig, options: TrainOptions, *, check: bool) -> None:
    """Check what ``geoseg train`` can tell without reading data or building a network.

    The run folder is not checked in processes that torchrun or SLURM started, since the first one may have made it.
    Nor with ``check``, which lists missing files with all other problems.
    """
    architecture, encoder = config.model.architecture, config.model.encoder
    if architecture.lower() not in ARCHITECTURES:
        raise ConfigError(f"model.architecture {architecture!r} is unknown", hint=f"known: {', '.join(ARCHITECTURES)}")
    ours = [f"tu-{name}" for name, entry in PRETRAINED.items() if entry.is_encoder]
    if encoder.startswith("tu-mscan") and encoder.partition(".")[0] not in ours:
        raise ConfigError(f"model.encoder {encoder!r} is unknown", hint=f"SegNeXt's encoders: {', '.join(ours)}")
    if architecture == "segnext" and encoder.startswith("tu-mscan"):
        for name in config.model.options.keys() - set(SEGNEXT_OPTIONS):
            # timm takes more options, so only what looks like a typo is refused
            if near := difflib.get_close_matches(name, SEGNEXT_OPTIONS, n=1, cutoff=0.75):
                raise ConfigError(f"model.options has an unknown key {name}", hint=f"did you mean {near[0]}?")
    if config.model.start_from is not None:
        _contract(config.model.start_from)
    if check or "RANK" in os.environ or "SLURM_PROCID" in os.environ:
        return
    checkpoint = config.output / "checkpoints" / "last.ckpt"
    if not options.resume:
        check_new_run(config.output, overwrite=options.overwrite)
        check_folder(config.output, hint="choose another output=…")
    elif not checkpoint.is_file():
        raise ConfigError(f"nothing to resume: {checkpoint} does not exist", hint="leave out --resume")
    entries = [entry for split in ("train", "val") for entry in config.data.entries(split)]
    if all(_missing(entry) for entry in entries):  # else the check of the data lists them with all other errors
        check_files(config, ("train", "val"))


def check_new_run(run: Path, *, overwrite: bool) -> None:
    """Refuse a run folder that exists."""
    if not run.exists():
        return
    if not overwrite:
        raise OutputError(
            f"run folder {run} exists", hint="add --resume to continue, --overwrite to start again, or output=OTHER"
        )
    if not (run / "config.yaml").exists():
        raise OutputError(
            f"{run} exists and is not a run folder, so it is not replaced", hint="choose another output=…"
        )


def check_evaluation(model: AnyPath, config: TrainConfig, output: Path, options: EvaluateOptions) -> None:
    """Check what ``geoseg evaluate`` can tell without loading the model."""
    measures, network = options.measures, options.network
    if measures.protocol != "scene":
        given = {
            "size": options.tiling.size,
            "overlap": options.tiling.overlap,
            "batch-size": network.batch_size,
            "objects": measures.objects or None,
            "within": measures.within_m,
            "maps": options.maps or None,
            "backend": None if network.backend == "auto" else network.backend,
            "precision": None if network.precision == "auto" else network.precision,
        }
        for name, value in given.items():
            if value is not None:
                raise ConfigError(
                    f"--{name} has no effect with --protocol {measures.protocol}, which sets windows and precision "
                    "itself and counts pixels only",
                    hint=f"leave out --{name}, or --protocol",
                )
    if output.is_dir():
        for name in FILES:
            check_output(output / name, overwrite=options.overwrite)
    else:
        check_folder(output)
    contract = _contract(model)
    names = contract.class_table.names
    if config.class_table.names != names:
        raise ConfigError(
            f"the model has the classes {', '.join(names)}, the configuration {', '.join(config.class_table.names)}",
            hint="evaluate with a configuration of the same classes",
        )
    for name in measures.objects:
        if name not in names:
            raise ConfigError(
                f"class {name!r} of --objects is not one of {', '.join(names)}",
                hint=f"--objects {nearest_name(name, names)}",
            )
    window_of(options.tiling, contract.window)


def check_export(model: AnyPath, output: Path, options: ExportOptions, *, overwrite: bool) -> None:
    """Check what ``geoseg export`` can tell without loading the model."""
    check_suffix(output)
    check_opset(options.opset)
    check_output(output, overwrite=overwrite)
    window_of(options, _contract(model).window)


def check_import(checkpoint: AnyPath, output: Path, *, classes: AnyPath | None, overwrite: bool) -> None:
    """Check what ``geoseg weights import`` can tell without reading the checkpoint."""
    from geoseg.class_tables import read_class_table
    from geoseg.contract import MODEL_FILES

    check_source(checkpoint)
    check_output_folder(output, overwrite=overwrite, ours=MODEL_FILES, writer="geoseg weights import")
    if classes is not None:
        read_class_table(classes)


def check_demo(output: Path, *, overwrite: bool) -> None:
    """Check what ``geoseg demo`` can tell from names alone."""
    existing = [name for name in DEMO_FILES.values() if (output / name).exists()]
    if existing and not overwrite:
        raise OutputError(f"{output / existing[0]} exists", hint="add --overwrite, or choose another folder with -o")
    if output.exists() and not output.is_dir():
        raise OutputError(f"output {output} is a file", hint="name a folder with -o")
    check_folder(output)


def check_scenes(scenes: Iterable[AnyPath]) -> None:
    """Refuse missing scenes, all in one message; names that only GDAL can look up are left to it."""
    missing = [fspath(scene) for scene in scenes if _is_missing(scene)]
    if missing:
        texts = [f"no such scene: {path}" for path in missing]
        raise SceneError("; ".join(first_lines(texts, _MOST_NAMED)), hint="check the path")


def check_files(config: TrainConfig, splits: Iterable[str]) -> None:
    """Refuse missing scenes, labels and labelled areas of a configuration, all in one message."""
    entries = dict.fromkeys(entry for split in splits for entry in config.data.entries(split))
    missing = [text for entry in entries for text in _missing(entry)]
    if missing:
        raise ConfigError(
            "; ".join(first_lines(missing, _MOST_NAMED)), hint="check data.root and the path in the configuration"
        )


def _missing(entry: SceneConfig) -> list[str]:
    files = {
        "scene": entry.scene,
        "labels": entry.labels,
        "labelled area": entry.labelled_area,
        "corrections": entry.corrections,
    }
    return [f"no such {what}: {path}" for what, path in files.items() if path is not None and _is_missing(path)]


def _is_missing(path: AnyPath) -> bool:
    return bool(fspath(path)) and not exists(input_path(path))


def _check_suffix(output: Path, known: Sequence[str]) -> None:
    suffix = output.suffix.lower()
    if suffix not in known:
        raise OutputError(
            f"output {output} has the unknown suffix {suffix or '(none)'}",
            hint=f"known: {', '.join(s for s in known if s != '.tiff')}",
        )


def _contract(model: AnyPath) -> Contract:
    from geoseg.contract import find_model, load_contract

    return load_contract(find_model(model))
