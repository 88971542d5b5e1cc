"""``geoseg weights``: published weights, and model folders of checkpoints that other programs wrote."""

from pathlib import Path
from typing import Annotated

import typer

from geoseg.cli.options import GROUP, Command, Overwrite

app = typer.Typer(help="List and import published weights.", **GROUP)


@app.command("import", cls=Command)
def import_(
    ctx: typer.Context,
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help=".pth or .safetensors file, or a name of geoseg weights list."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write.")],
    classes: Annotated[
        Path | None,
        typer.Option("--classes", metavar="FILE", help="YAML or JSON list of the classes; if not given, as known."),
    ] = None,
    nmf_rank: Annotated[
        int | None,
        typer.Option("--nmf-rank", metavar="N", help="Rank of the factorization in training; recognised by default."),
    ] = None,
    norm_groups: Annotated[
        int, typer.Option("--norm-groups", metavar="N", min=1, help="Groups of the decoder's group norms.")
    ] = 32,
    overwrite: Overwrite = False,
) -> None:
    """Convert a checkpoint of SegNeXt to a model folder, or one of MSCAN to weights for timm.

    Reads files of the official repository and of mmsegmentation with any number of classes. No code in them is run;
    a missing or an additional tensor is an error.
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


@app.command("list", cls=Command)
def list_() -> None:
    """List published weights, where they are, and which of them are on this disk."""
    from geoseg.pretrained import list_weights

    typer.echo("\n".join(list_weights()))
