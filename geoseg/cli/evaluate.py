"""``geoseg evaluate``: how well a model maps labelled scenes it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from geoseg.cli import options

BOUNDARY_PX, WINDOWS = 3, 8  # what geoseg.evaluation says, without loading it (a test compares them)


def evaluate(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model folder, or the name of a model that is shipped.")
    ],
    config: options.Config,
    overrides: options.Overrides = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the numbers and the report.")
    ] = Path("evaluation"),
    split: Annotated[
        str,
        typer.Option(
            "--split",
            metavar="val|train",
            callback=options.one_of("split", ("val", "train")),
            help="Scenes of the configuration to measure on.",
        ),
    ] = "val",
    protocol: Annotated[
        str,
        typer.Option(
            "--protocol",
            metavar="|".join(options.PROTOCOLS),
            callback=options.one_of("protocol", options.PROTOCOLS),
            help="Stitched scenes, or the patches or pictures of published numbers.",
        ),
    ] = "scene",
    ms_flip: Annotated[
        bool, typer.Option("--ms-flip", help="Six scales, each also flipped: the paper's multi-scale testing.")
    ] = False,
    objects: Annotated[
        list[str] | None,
        typer.Option(
            "--objects",
            metavar="CLASS",
            help="Count regions of this class alone as objects; repeatable.",
            show_default="all but the background",
        ),
    ] = None,
    boundary: Annotated[
        int, typer.Option("--boundary", metavar="PX", min=1, help="Width of the strips along borders.")
    ] = BOUNDARY_PX,
    windows: Annotated[
        int, typer.Option("--windows", metavar="N", min=0, help="Show so many of the worst windows, and of the best.")
    ] = WINDOWS,
    size: options.Size = None,
    overlap: options.Overlap = None,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    backend: options.Backend = "auto",
    precision: options.Precision = "auto",
    overwrite: options.Overwrite = False,
) -> None:
    """Measure a model on labelled scenes.

    Scores of pixels, borders, objects, confidence and areas over whole stitched scenes, as tables and as report.html.
    """
    from geoseg.config import load_config
    from geoseg.evaluation import FILES
    from geoseg.programs.early import check_evaluation, check_files

    settings = load_config(config, overrides or [])
    how: dict[str, Any] = {
        "output": output,
        "protocol": protocol,
        "objects": objects or None,
        "size": size,
        "overlap": overlap,
        "batch_size": batch_size,
        "backend": backend,
        "precision": precision,
        "overwrite": overwrite,
    }
    check_evaluation(model, settings, files=FILES, **how)
    check_files(settings, [split])
    from geoseg.evaluation.tables import summary_lines
    from geoseg.programs.evaluate import evaluate as run

    evaluation = run(
        model,
        settings,
        split=split,
        ms_flip=ms_flip,
        boundary_px=boundary,
        windows=windows,
        device=device,
        progress=ctx.obj.progress,
        **how,
    )
    ctx.obj.report(summary_lines(evaluation), evaluation.folder)
