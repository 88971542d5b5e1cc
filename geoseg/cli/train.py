"""``geoseg train``: a configuration to a model folder."""

from __future__ import annotations

from typing import Annotated

import typer

from geoseg.cli import options


def train(
    ctx: typer.Context,
    config: options.Config,
    overrides: options.Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run's last checkpoint.")] = False,
    overwrite: options.Overwrite = False,
    check: Annotated[
        bool, typer.Option("--check", help="Check the data and print the plan of the run, and train nothing.")
    ] = False,
    device: options.Device = "auto",
    devices: Annotated[
        str, typer.Option("--devices", metavar="N|auto", help="Number of devices of this machine; auto takes all GPUs.")
    ] = "1",
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Number of machines; each runs this command.")] = 1,
) -> None:
    """Train a model on scenes and labels.

    Prints the model folder at the end. torchrun and SLURM's srun set the number of processes themselves.
    """
    from geoseg.config import load_config
    from geoseg.programs.early import check_training

    settings = load_config(config, overrides or [])
    check_training(settings, resume=resume, overwrite=overwrite, check=check, devices=devices)
    from geoseg.programs.train import check as look
    from geoseg.programs.train import train as run
    from geoseg.training.failures import RunStopped
    from geoseg.training.processes import PeerEnded, find_place

    if check:
        preview = look(settings, device=device, devices=devices, nodes=nodes)
        for line in preview.lines():
            typer.echo(line)
        raise typer.Exit(0 if preview.is_fine else 2)
    place = find_place()
    is_first = place is None or place.rank == 0
    try:
        model = run(
            settings,
            resume=resume,
            overwrite=overwrite,
            device=device,
            devices=devices,
            nodes=nodes,
            progress=ctx.obj.progress and is_first,
        )
    except PeerEnded as error:
        # The process that failed says why.
        raise typer.Exit(error.exit_code) from error
    except RunStopped as error:
        if is_first:
            typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from error
    if is_first:
        typer.echo(model)
