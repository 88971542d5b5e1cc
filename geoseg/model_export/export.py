"""A model folder to an ONNX file and its STAC item: the program behind ``geoseg export``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from geoseg.contract import Contract
from geoseg.errors import ConfigError, ModelError, OutputError
from geoseg.files import atomic_output, check_output
from geoseg.model_export.check import Agreement, check_file
from geoseg.model_export.deepness import deepness_entries, why_not
from geoseg.model_export.host import Feed, HostModel, Result, find_feed
from geoseg.model_export.onnx_graph import check_opset, import_onnx, onnx_model
from geoseg.model_export.stac import import_pystac, stac_item
from geoseg.network.folding import deployed
from geoseg.network.model_folder import load_model
from geoseg.options import ExportOptions
from geoseg.tiling.plan import window_of
from geoseg.version import __version__
from geoseg.windows import round_up

INPUT = "pixels"
SUFFIX = ".onnx"

_FREE_SIZES = [(97, 133), (256, 256)]
"""Windows that a file of any size is checked with, px."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written.

    Attributes:
        path: The ONNX file.
        item: The STAC item, or None.
        nodes: Operations of the graph.
        opset: Version of the operations.
        feed: What the file takes.
        result: What it gives.
        shape: Of the input, axes as numbers or names.
        bands: Names of its channels.
        deepness: Why Deepness cannot run it, or None where it can.
        agreement: How it compares with torch, or None where ONNX Runtime is not installed.
    """

    path: Path
    item: Path | None
    nodes: int
    opset: int
    feed: Feed
    result: Result
    shape: tuple[int | str, ...]
    bands: tuple[str, ...]
    deepness: str | None
    agreement: Agreement | None

    def lines(self) -> list[str]:
        """The report for people, a fact a line."""
        checked = "not checked: onnxruntime is not installed"
        if self.agreement is not None:
            checked = (
                f"ONNX Runtime {self.agreement.runtime} against torch: largest difference "
                f"{self.agreement.difference:.1e}, same class on {self.agreement.agreement:.3%} of the pixels"
            )
        megabytes = self.path.stat().st_size / 1e6
        return [
            f"model     {self.path}: {megabytes:.1f} MB, {self.nodes} operations of opset {self.opset}",
            f"input     {INPUT} ({', '.join(map(str, self.shape))}) float32: {self.feed}; {', '.join(self.bands)}",
            f"output    {self.result} at the size of the input",
            f"check     {checked}",
            f"Deepness  {'no: ' + self.deepness if self.deepness else 'runs it as it is'}",
            f"item      {self.item or 'none'}",
        ]


def export_model(
    model: str | PathLike[str],
    output: str | PathLike[str],
    options: ExportOptions = ExportOptions(),
    *,
    overwrite: bool = False,
) -> ExportReport:
    """Write a model as an ONNX file, checked against torch, and a STAC item beside it.

    The file holds the network in its inference form, upsampled to full resolution, with a free batch. Its metadata
    are the keys of the QGIS plugin Deepness, where it can run the file, and ours: ``geoseg_input``,
    ``geoseg_output``, ``geoseg_contract``, ``geoseg_version`` and ``geoseg_weights``, all as JSON.

    Args:
        model: Model folder, or the name of a shipped model.
        output: The ``.onnx`` to write; the item gets its name with ``.json``.
        options: What the file takes and gives.
        overwrite: Replace files that exist.

    Raises:
        ModelError: No such model, a network that ONNX cannot hold, or a file that gives something else than torch.
        ConfigError: A size or overlap off the grid, an unknown opset, or a package that is not installed.
        OutputError: Another suffix, the output or its item exists, or its folder cannot be written.
    """
    path = Path(output)
    if path.suffix.lower() != SUFFIX:
        raise OutputError(
            f"output {path} has the suffix {path.suffix or '(none)'}, expected {SUFFIX}", hint=f"-o {path.stem}{SUFFIX}"
        )
    check_output(path, overwrite=overwrite)
    onnx = import_onnx()
    check_opset(options.opset)
    item = path.with_suffix(".json") if _wants_item(options.stac) else None
    if item is not None:
        check_output(item, overwrite=overwrite)
    trained = load_model(model)
    contract = trained.contract
    size, overlap = window_of(options, contract.window)
    feed, result = find_feed(contract, normalize=options.normalize), options.result
    multiple = _multiple(trained.network)
    host = HostModel(deployed(trained.network), contract, feed=feed, result=result).eval()
    graph = onnx_model(
        host,
        bands=len(contract.bands),
        size=None if options.dynamic else (size, size),
        batch=None,
        opset=options.opset,
        multiple=multiple,
        names=(INPUT, result),
    )
    misread = why_not(contract, result)
    entries = {} if misread else deepness_entries(contract, feed, size=size, overlap=overlap)
    if misread is None and options.dynamic:
        misread = "it wants a fixed size, so leave out --dynamic"
    onnx.helper.set_model_props(graph, entries | _own_entries(contract, feed, result, trained.digest))
    with atomic_output(path) as scratch:
        scratch.write_bytes(graph.SerializeToString(deterministic=True))
        try:
            onnx.checker.check_model(str(scratch), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ModelError(f"the ONNX file of {trained.folder} is not sound: {error}") from error
        sizes = [(round_up(h, multiple), round_up(w, multiple)) for h, w in _FREE_SIZES]
        agreement = check_file(
            scratch, trained, feed=feed, result=result, sizes=sizes if options.dynamic else [(size, size)]
        )
        if item is not None:
            text = stac_item(
                trained,
                scratch,
                feed=feed,
                result=result,
                names=(INPUT, result),
                size=size,
                overlap=overlap,
                dynamic=options.dynamic,
                opset=options.opset,
                onnx_version=_onnx_version(onnx, options.opset),
            )
            (scratch.parent / item.name).write_text(text, encoding="utf-8")
    return ExportReport(
        path=path,
        item=item,
        nodes=len(graph.graph.node),
        opset=options.opset,
        feed=feed,
        result=result,
        shape=tuple(axis.dim_param or axis.dim_value for axis in graph.graph.input[0].type.tensor_type.shape.dim),
        bands=tuple(band.name for band in contract.bands),
        deepness=misread,
        agreement=agreement,
    )


def _wants_item(asked: bool | None) -> bool:
    if asked is False:
        return False
    try:
        import_pystac()
    except ConfigError:
        if asked:
            raise
        return False
    return True


def _multiple(network: Any) -> int:
    """What heights and widths must be multiples of, px."""
    if not getattr(network, "requires_divisible_input_shape", False):
        return 1
    return int(network.encoder.output_stride)


def _own_entries(contract: Contract, feed: Feed, result: Result, digest: str) -> dict[str, str]:
    return {
        "geoseg_input": json.dumps(feed),
        "geoseg_output": json.dumps(result),
        "geoseg_contract": contract.model_dump_json(),
        "geoseg_version": json.dumps(__version__),
        "geoseg_weights": json.dumps(digest),
    }


def _onnx_version(onnx: Any, opset: int) -> str:
    """First release of ONNX with an opset, as ``1.15.0``; the table's rows are (release, format, opset, …)."""
    release: str = next(row[0] for row in onnx.helper.VERSION_TABLE if row[2] >= opset)
    return release if release.count(".") == 2 else f"{release}.0"
