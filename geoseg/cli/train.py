"""``geoseg train``: a configuration to a model folder."""

from dataclasses import replace
from typing import Annotated

import typer

from geoseg.cli.options import Config, Overrides, with_options
from geoseg.options import TrainOptions


@with_options
def train(
    ctx: typer.Context,
    config: Config,
    options: TrainOptions,
    overrides: Overrides = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check the data and print the plan of the run, and train nothing.")
    ] = False,
) -> None:
    """Train a model on scenes and labels.

    Prints the model folder at the end. torchrun and SLURM's srun set the number of processes themselves.
    """
    from geoseg.config import load_config
    from geoseg.programs.early import check_training

    settings = load_config(config, overrides or [])
    check_training(settings, options, check=check)
    from geoseg.programs.train import check as run_check
    from geoseg.programs.train import train as run_training
    from geoseg.training.failures import RunStopped
    from geoseg.training.processes import PeerEnded, find_place

    if check:
        preview = run_check(settings, options)
        typer.echo("\n".join(preview.lines()))
        raise typer.Exit(0 if preview.is_fine else 2)
    place = find_place()
    is_first = place is None or place.rank == 0
    try:
        model = run_training(settings, replace(options, progress=ctx.obj.progress and is_first))
    except PeerEnded as error:
        # the process that failed prints the reason
        raise typer.Exit(error.exit_code) from error
    except RunStopped as error:
        if is_first:
            typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from error
    if is_first:
        typer.echo(model)
