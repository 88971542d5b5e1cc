"""``geoseg evaluate``: how well a model maps labelled scenes it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geoseg.cli import options


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model folder, or the name of a model that is shipped.")
    ],
    config: options.Config,
    overrides: options.Overrides = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the numbers and the confusion matrix.")
    ] = Path("evaluation"),
    split: Annotated[str, typer.Option("--split", help="Scenes of the configuration to measure on.")] = "val",
    size: options.Size = None,
    overlap: options.Overlap = None,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    backend: options.Backend = "auto",
    precision: options.Precision = "auto",
    overwrite: options.Overwrite = False,
) -> None:
    """Measure a model on labelled scenes.

    IoU, F1 and accuracy per class over whole stitched scenes, and the confusion matrix as CSV and PNG.
    """
    from geoseg.config import load_config
    from geoseg.evaluate import evaluate as run

    evaluation = run(
        model,
        load_config(config, overrides or []),
        output=output,
        split=split,
        size=size,
        overlap=overlap,
        batch_size=batch_size,
        device=device,
        backend=backend,
        precision=precision,
        overwrite=overwrite,
    )
    for line in evaluation.lines():
        typer.echo(line)
