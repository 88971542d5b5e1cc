"""``geoseg stats``: classes, bands and nodata of the labelled scenes of a configuration."""

from typing import Annotated

import typer

from geoseg.cli.options import Config, Overrides
from geoseg.options import Split


def stats(
    config: Config,
    overrides: Overrides = None,
    split: Annotated[Split, typer.Option("--split", help="Scenes of the configuration to count.")] = "train",
) -> None:
    """Count classes and bands of labelled scenes.

    Also nodata; and suggests class weights, means and standard deviations for the configuration.
    """
    from geoseg.config import load_config
    from geoseg.programs.early import check_files

    settings = load_config(config, overrides or [])
    check_files(settings, [split])
    from geoseg.programs.stats import scene_stats

    typer.echo("\n".join(scene_stats(settings, split=split).lines()))
