"""``geoseg train``: a configuration to a model folder."""

from __future__ import annotations

from typing import Annotated

import typer

from geoseg.cli import options


def train(
    ctx: typer.Context,
    config: options.Config,
    overrides: options.Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
) -> None:
    """Train a model on scenes and labels.

    Prints the model folder at the end.
    """
    from geoseg.config import load_config
    from geoseg.train import train as run

    settings = load_config(config, overrides or [])
    typer.echo(run(settings, resume=resume, overwrite=overwrite, device=device, progress=ctx.obj.progress))
