"""``geoseg export``: a model as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geoseg.cli import options
from geoseg.options import Windows


def export(
    ctx: typer.Context,
    model: options.ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="ONNX file to write, as model.onnx.")],
    size: options.Size = None,
    overlap: options.Overlap = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Take windows of any size; QGIS Deepness wants a fixed one.")
    ] = False,
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize/--no-normalize", help="Put the normalisation into the file, or leave it to the host."
        ),
    ] = True,
    softmax: Annotated[bool, typer.Option("--softmax/--no-softmax", help="Give probabilities, or logits.")] = True,
    argmax: Annotated[bool, typer.Option("--argmax", help="Give class ids instead of probabilities.")] = False,
    opset: Annotated[
        int | None, typer.Option("--opset", metavar="N", help="Version of ONNX's operations.", show_default="20")
    ] = None,
    stac: Annotated[
        bool | None,
        typer.Option(
            "--stac/--no-stac",
            help="Describe the model in OUT.json, a STAC item.",
            show_default="where pystac is there",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a model as ONNX.

    For QGIS (plugin Deepness), ONNX Runtime and others, checked against torch. A STAC item beside it describes it.
    """
    from geoseg.programs.early import check_export

    check_export(model, output, Windows(size=size, overlap=overlap), opset=opset, overwrite=overwrite)
    from geoseg.model_export.export import ExportOptions, export_model
    from geoseg.model_export.onnx_graph import OPSET

    how = ExportOptions(
        size=size,
        overlap=overlap,
        dynamic=dynamic,
        normalize=normalize,
        softmax=softmax,
        argmax=argmax,
        opset=OPSET if opset is None else opset,
        stac=stac,
    )
    report = export_model(model, output, how, overwrite=overwrite)
    ctx.obj.report(report.lines(), report.path)
