"""The ONNX graph of a network: small, the same bytes every time, and without what only new runtimes can run.

torch's exporter writes it (``torch.export``, not the deprecated TorchScript one, which knows neither GELU as one
operation nor ``Tensor.mT``). Three things are put right afterwards:

- Every node carries the Python stack it came from, with the paths of this machine. That goes.
- float64 becomes float32. ONNX Runtime 1.17, which the QGIS plugin Deepness pins, refuses a transposed float64 product.
- The version of the file format is the lowest that holds the operations, and not the newest there is.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from geoseg.errors import ConfigError, ModelError, in_one_line
from geoseg.options import ExportOptions
from geoseg.version import __version__

OPSET = ExportOptions().opset
"""First with Gelu as one operation. As a chain of five it costs ONNX Runtime a half more time: 0.12 s instead of 0.08 s
for SegNeXt-T at 512², because its own blocked layout ends at every Erf."""

OPSETS = range(18, 24)
"""What torch's exporter writes without converting versions."""

INPUT, OUTPUT = "pixels", "values"
_DIMENSIONS = {0: "batch", 2: "height", 3: "width"}
_SAMPLE = (96, 160)
"""Height and width to trace with where they are free: unlike each other, and above 1 px at every stride."""


def onnx_bytes(
    module: nn.Module,
    *,
    bands: int,
    size: tuple[int, int] | None = None,
    batch: int | None = 1,
    opset: int = OPSET,
    multiple: int = 1,
    names: tuple[str, str] = (INPUT, OUTPUT),
) -> bytes:
    """The ONNX file of a module that maps (N, B, H, W) float32 to (N, …).

    The same bytes for the same module: threads, random numbers and the order of a hash play no part.

    Args:
        module: In evaluation mode, on the CPU.
        bands: B.
        size: H and W, px; None leaves them free. Fixed shapes run a little faster, and leave no arithmetic on shapes
            in the graph.
        batch: N; None leaves it free.
        opset: Version of ONNX's operations, one of `OPSETS`.
        multiple: Free heights and widths are multiples of this, px; most networks of SMP want their output stride.
        names: Of the input and the output.

    Raises:
        ConfigError: The packages onnx and onnxscript are not installed, or there is no such opset.
        ModelError: The network does something that torch cannot export, or needs a fixed size.
    """
    model = onnx_model(module, bands=bands, size=size, batch=batch, opset=opset, multiple=multiple, names=names)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def onnx_model(
    module: nn.Module,
    *,
    bands: int,
    size: tuple[int, int] | None = None,
    batch: int | None = 1,
    opset: int = OPSET,
    multiple: int = 1,
    names: tuple[str, str] = (INPUT, OUTPUT),
) -> Any:
    """`onnx_bytes` as an ``onnx.ModelProto``, to add metadata to."""
    onnx = import_onnx()
    check_opset(opset)
    free = [axis for axis, fixed in ((0, batch), (2, size), (3, size)) if fixed is None]
    shapes = {axis: _dimension(axis, multiple) for axis in free}
    height, width = size or _SAMPLE
    sample = torch.zeros(batch or 2, bands, height, width)  # a batch of 1 would be taken for always 1
    try:
        with _in_silence(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (sample,),
                input_names=[names[0]],
                output_names=[names[1]],
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
    _tidy(onnx, model)
    _name_dimensions(model, free)
    return model


def import_onnx() -> Any:
    """The package onnx, once it is known that its partner is there too.

    Raises:
        ConfigError: One of them is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter writes with it
    except ImportError as error:
        raise ConfigError(
            f"writing ONNX needs the packages onnx and onnxscript: {error}", hint='pip install "geoseg[onnx]"'
        ) from error
    return onnx


def check_opset(opset: int) -> None:
    """Whether the exporter can write an opset.

    Raises:
        ConfigError: It cannot.
    """
    if opset not in OPSETS:
        raise ConfigError(f"opset {opset} is not in {OPSETS[0]} … {OPSETS[-1]}", hint=f"--opset {OPSET}")


def _dimension(axis: int, multiple: int) -> Any:
    one = torch.export.Dim(_DIMENSIONS[axis])
    return one if axis == 0 or multiple == 1 else multiple * one


@contextlib.contextmanager
def _in_silence() -> Iterator[None]:
    """Without the exporter's progress on stdout and its warnings about itself."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        yield


def _tidy(onnx: Any, model: Any) -> None:
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del model.metadata_props[:]
    _to_single(onnx, graph)
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    model.producer_name, model.producer_version = "geoseg", __version__


def _to_single(onnx: Any, graph: Any) -> None:
    """float64 to float32, in place: constants, casts and the types of values."""
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
    """Plain names for the free axes of the input, and of an output of the same size."""
    (given,), (made,) = model.graph.input, model.graph.output
    for axis in free:
        dimension = given.type.tensor_type.shape.dim[axis]
        derived, dimension.dim_param = dimension.dim_param, _DIMENSIONS[axis]
        for other in made.type.tensor_type.shape.dim:
            if other.dim_param == derived:
                other.dim_param = _DIMENSIONS[axis]
