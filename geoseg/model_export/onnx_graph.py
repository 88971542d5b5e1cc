"""The ONNX graph of a network: small, the same bytes every time, and readable by old runtimes.

torch's exporter writes it (``torch.export``; the deprecated TorchScript exporter has no single operation for GELU), and
afterwards what names this machine is removed, and what old runtimes refuse is replaced.
"""

import contextlib
import io
import warnings
from typing import Any

import torch
from torch import nn

from geoseg.errors import ConfigError, ModelError, in_one_line
from geoseg.model_export import check_opset
from geoseg.model_export.host import INPUT
from geoseg.options import ExportOptions
from geoseg.version import __version__

OPSET = ExportOptions().opset
"""The first with Gelu as one operation. A chain of five costs ONNX Runtime half as much time again, because its blocked
memory layout ends at every Erf."""

_DIMENSIONS = {0: "batch", 2: "height", 3: "width"}


def onnx_model(
    module: nn.Module,
    *,
    bands: int,
    size: tuple[int, int] | None = None,
    batch: int | None = 1,
    opset: int = OPSET,
    multiple: int = 1,
    output: str = "values",
) -> Any:
    """An ``onnx.ModelProto`` of a module in evaluation mode, on the CPU, that maps (N, B, H, W) float32 to (N, …).

    ``SerializeToString(deterministic=True)`` gives the same bytes for the same module, whatever the threads, random
    numbers or hash seed.

    Args:
        bands: B.
        size: H and W, px; None leaves them free. A fixed size runs a little faster and needs no arithmetic on shapes.
        batch: N; None leaves it free.
        opset: Version of ONNX's operations, one of `geoseg.model_export.OPSETS`.
        multiple: Free heights and widths are multiples of this, px; most of SMP's networks need their output stride.
        output: Name of the output; the input is called `geoseg.model_export.host.INPUT`.

    Raises:
        ConfigError: The packages onnx and onnxscript are not installed, or the opset is not supported.
        ModelError: torch cannot export the network, or only for a fixed size.
    """
    onnx = import_onnx()
    check_opset(opset)
    free = [axis for axis, fixed in ((0, batch), (2, size), (3, size)) if fixed is None]
    names = {axis: torch.export.Dim(_DIMENSIONS[axis]) for axis in free}
    shapes: dict[int, Any] = {axis: multiple * n if axis and multiple > 1 else n for axis, n in names.items()}
    height, width = size or (96, 160)  # free ones are different, and above 1 px at every stride
    sample = torch.zeros(batch or 2, bands, height, width)  # a batch of 1 would be written down as a constant
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),  # progress
            warnings.catch_warnings(action="ignore"),  # about the exporter itself
            torch.no_grad(),
        ):
            program = torch.onnx.export(
                module,
                (sample,),
                input_names=[INPUT],
                output_names=[output],
                opset_version=opset,
                dynamic_shapes=(shapes,) if shapes else None,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = error.__cause__ or error
        raise ModelError(
            f"this network cannot be written as ONNX: {in_one_line(reason, 300)}",
            hint="leave out --dynamic" if size is None else None,
        ) from error
    assert program is not None
    model = program.model_proto
    _remove_stacks(model)
    _to_single(onnx, model.graph)
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)  # rather than the newest
    model.producer_name, model.producer_version = "geoseg", __version__
    _name_dimensions(model, free)
    return model


def import_onnx() -> Any:
    """The package onnx; a `ConfigError` if it, or onnxscript, which torch's exporter needs, is not installed."""
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter writes with it
    except ImportError as error:
        raise ConfigError(
            f"writing ONNX needs the packages onnx and onnxscript: {error}", hint='pip install "geoseg[onnx]"'
        ) from error
    return onnx


def _remove_stacks(model: Any) -> None:
    """Remove the Python stack of every node, with paths of this machine."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del model.metadata_props[:]


def _to_single(onnx: Any, graph: Any) -> None:
    """float64 to float32, in place: ONNX Runtime 1.17, which Deepness pins, refuses a transposed float64 product."""
    double, single = onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT

    def convert(tensor: Any) -> None:
        if tensor.data_type == double:
            values = onnx.numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

    for tensor in graph.initializer:
        convert(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == double:
                attribute.i = single
            if attribute.HasField("t"):
                convert(attribute.t)
    for value in (*graph.value_info, *graph.output):
        if value.type.tensor_type.elem_type == double:
            value.type.tensor_type.elem_type = single


def _name_dimensions(model: Any, free: list[int]) -> None:
    """Give the free axes of the input, and the same axes of the output, plain names."""
    (given,), (made,) = model.graph.input, model.graph.output
    for axis in free:
        dimension = given.type.tensor_type.shape.dim[axis]
        derived, dimension.dim_param = dimension.dim_param, _DIMENSIONS[axis]
        for other in made.type.tensor_type.shape.dim:
            if other.dim_param == derived:
                other.dim_param = _DIMENSIONS[axis]
