"""``geoseg evaluate``: how well a model maps labelled scenes it was not trained on."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from geoseg.cli.options import Config, ModelArgument, Overrides, with_options
from geoseg.options import EvaluateOptions


@with_options
def evaluate(
    ctx: typer.Context,
    model: ModelArgument,
    config: Config,
    options: EvaluateOptions,
    overrides: Overrides = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the numbers and the report.")
    ] = Path("evaluation"),
) -> None:
    """Measure a model on labelled scenes.

    Scores of pixels, borders, objects, confidence and areas over whole stitched scenes, as tables and as report.html.
    """
    from geoseg.config import load_config
    from geoseg.programs.early import check_evaluation, check_files

    settings = load_config(config, overrides or [])
    check_evaluation(model, settings, output, options)
    check_files(settings, [options.measures.split])
    from geoseg.evaluation.tables import summary_lines
    from geoseg.programs.evaluate import evaluate as run

    evaluation = run(model, settings, output, replace(options, progress=ctx.obj.progress))
    ctx.obj.report(summary_lines(evaluation), evaluation.folder)
