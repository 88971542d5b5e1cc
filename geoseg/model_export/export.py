"""A model folder to an ONNX file and its STAC item: the program behind ``geoseg export``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from geoseg.errors import ConfigError, ModelError
from geoseg.files import atomic_output, check_output
from geoseg.model_export import check_suffix
from geoseg.model_export.host import INPUT, Agreement, HostModel, check_file, find_feed
from geoseg.model_export.metadata import deepness_entries, import_pystac, stac_item, why_not
from geoseg.model_export.onnx_graph import import_onnx, onnx_model
from geoseg.network.folding import deployed
from geoseg.network.model_folder import load_model
from geoseg.options import AnyPath, ExportOptions
from geoseg.tiling.plan import window_of
from geoseg.version import __version__
from geoseg.windows import round_up


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written."""

    path: Path  # the ONNX file
    item: Path | None  # the STAC item
    agreement: Agreement | None  # how it compares with torch; None if ONNX Runtime is not installed
    facts: Mapping[str, str]  # everything for people, by name

    def lines(self) -> list[str]:
        """The facts, one a line."""
        return [f"{name:<10}{fact}" for name, fact in self.facts.items()]


def export_model(
    name: AnyPath,
    output: AnyPath,
    options: ExportOptions = ExportOptions(),
    *,
    overwrite: bool = False,
) -> ExportReport:
    """Write a model as an ONNX file, checked against torch, and a STAC item beside it.

    The file holds the network in its inference form, upsampled to full resolution, with a free batch. Its metadata
    have the keys of the QGIS plugin Deepness, if that can run the file, and ours: ``geoseg_input``, ``geoseg_output``,
    ``geoseg_contract``, ``geoseg_version`` and ``geoseg_weights``, all as JSON.

    Args:
        name: Model folder, or the name of a shipped model.
        output: The ``.onnx`` to write; the item has the same name with ``.json``.
        options: What the file takes and gives.
        overwrite: Replace existing files.

    Raises:
        ModelError: No such model, a network that ONNX cannot hold, or a file whose result is not torch's.
        ConfigError: A size or overlap off the grid, an unsupported opset, or a package that is not installed.
        OutputError: Another suffix, the output or its item exists, or its folder cannot be written.
    """
    path = Path(output)
    check_suffix(path)
    check_output(path, overwrite=overwrite)
    onnx = import_onnx()
    item: Path | None = None
    if options.stac is not False:
        try:
            import_pystac()
            item = check_output(path.with_suffix(".json"), overwrite=overwrite)
        except ConfigError:
            if options.stac:
                raise
    model = load_model(name)
    contract, network = model.contract, model.network
    size, overlap = window_of(options, contract.window)
    feed, result = find_feed(contract, normalize=options.normalize), options.result
    # what heights and widths must be multiples of, px
    divisible = getattr(network, "requires_divisible_input_shape", False)
    multiple = int(network.encoder.output_stride) if divisible else 1  # type: ignore[union-attr, arg-type]
    graph = onnx_model(
        HostModel(deployed(network), contract, feed=feed, result=result).eval(),
        bands=len(contract.bands),
        size=None if options.dynamic else (size, size),
        batch=None,
        opset=options.opset,
        multiple=multiple,
        output=result,
    )
    misread = why_not(contract, result)
    entries = {} if misread else deepness_entries(contract, options, size=size, overlap=overlap)
    if misread is None and options.dynamic:
        misread = "it needs a fixed size, so leave out --dynamic"
    own = {
        "geoseg_input": json.dumps(feed),
        "geoseg_output": json.dumps(result),
        "geoseg_contract": contract.model_dump_json(),
        "geoseg_version": json.dumps(__version__),
        "geoseg_weights": json.dumps(model.digest),
    }
    onnx.helper.set_model_props(graph, entries | own)
    with atomic_output(path) as scratch:
        scratch.write_bytes(graph.SerializeToString(deterministic=True))
        try:
            onnx.checker.check_model(str(scratch), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ModelError(f"the ONNX file of {model.folder} is invalid: {error}") from error
        sizes = [(size, size)]
        if options.dynamic:
            sizes = [(round_up(h, multiple), round_up(w, multiple)) for h, w in ((97, 133), (256, 256))]
        agreement = check_file(scratch, model, feed=feed, result=result, sizes=sizes)
        if item is not None:
            # First release of ONNX with the opset; the table's rows are (release, format, opset, …).
            release = next(row[0] for row in onnx.helper.VERSION_TABLE if row[2] >= options.opset)
            version = release if release.count(".") == 2 else f"{release}.0"
            text = stac_item(model, scratch, options, size=size, overlap=overlap, onnx_version=version)
            (scratch.parent / item.name).write_text(text, encoding="utf-8")
    shape = ", ".join(str(axis.dim_param or axis.dim_value) for axis in graph.graph.input[0].type.tensor_type.shape.dim)
    nodes, megabytes = len(graph.graph.node), path.stat().st_size / 1e6
    facts = {
        "model": f"{path}: {megabytes:.1f} MB, {nodes} operations of opset {options.opset}",
        "input": f"{INPUT} ({shape}) float32: {feed}; {', '.join(band.name for band in contract.bands)}",
        "output": f"{result} at the size of the input",
        "check": str(agreement or "not checked: onnxruntime is not installed"),
        "Deepness": f"no: {misread}" if misread else "runs it as it is",
        "item": str(item or "none"),
    }
    return ExportReport(path, item, agreement, facts)
