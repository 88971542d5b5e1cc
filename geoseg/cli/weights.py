"""``geoseg weights``: published weights, and model folders of checkpoints that other programs wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geoseg.cli import options

app = typer.Typer(
    help="Weights that others trained: list them, import them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("import")
def import_(
    ctx: typer.Context,
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help=".pth or .safetensors file, or a name of geoseg weights list."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write.")],
    classes: Annotated[
        Path | None,
        typer.Option("--classes", metavar="FILE", help="YAML or JSON list of the classes.", show_default="as known"),
    ] = None,
    nmf_rank: Annotated[
        int | None,
        typer.Option(
            "--nmf-rank", metavar="N", help="Rank of the factorization in training.", show_default="by the layout"
        ),
    ] = None,
    norm_groups: Annotated[
        int, typer.Option("--norm-groups", metavar="N", min=1, help="Groups of the decoder's group norms.")
    ] = 32,
    overwrite: options.Overwrite = False,
) -> None:
    """Make a model folder of a checkpoint of SegNeXt, or weights for timm of one of MSCAN.

    Takes files of the official repository and of mmsegmentation, whatever their number of classes. Nothing in them is
    run, and a tensor that is missing or one too many is an error.
    """
    from geoseg.programs.early import check_import

    check_import(checkpoint, output, classes=classes, overwrite=overwrite)
    from geoseg.programs.import_weights import import_weights

    report = import_weights(
        checkpoint,
        output,
        classes=classes,
        nmf_rank=nmf_rank,
        norm_groups=norm_groups,
        overwrite=overwrite,
        progress=ctx.obj.progress,
    )
    ctx.obj.report(report.lines(), output)


@app.command("list")
def list_() -> None:
    """Say which weights are published, where, and which of them are on this disk."""
    from geoseg.pretrained import list_weights

    for line in list_weights():
        typer.echo(line)
