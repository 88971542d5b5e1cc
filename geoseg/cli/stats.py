"""``geoseg stats``: what the labelled scenes of a configuration hold."""

from __future__ import annotations

from typing import Annotated

import typer

from geoseg.cli import options


def stats(
    config: options.Config,
    overrides: options.Overrides = None,
    split: Annotated[str, typer.Option("--split", help="Scenes of the configuration: train or val.")] = "train",
) -> None:
    """Count classes, bands and nodata of the labelled scenes, and suggest class weights."""
    from geoseg.config import load_config
    from geoseg.stats import scene_stats

    for line in scene_stats(load_config(config, overrides or []), split=split).lines():
        typer.echo(line)
