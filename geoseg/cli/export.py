"""``geoseg export``: a model as a file for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from geoseg.cli.options import ModelArgument, Overwrite, with_options
from geoseg.options import ExportOptions


@with_options
def export(
    ctx: typer.Context,
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="ONNX file to write, as model.onnx.")],
    options: ExportOptions,
    overwrite: Overwrite = False,
) -> None:
    """Write a model as ONNX.

    For QGIS (plugin Deepness), ONNX Runtime and others; the file is checked against torch. A STAC item beside it
    describes the model.
    """
    from geoseg.programs.early import check_export

    check_export(model, output, options, overwrite=overwrite)
    from geoseg.model_export.export import export_model

    report = export_model(model, output, options, overwrite=overwrite)
    ctx.obj.report(report.lines(), report.path)
