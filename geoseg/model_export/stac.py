"""The STAC item of an exported model: bands, shapes, scaling and classes as the MLM extension describes them.

Catalogues find models by it, and hosts read what to feed. pystac alone builds it; nothing is fetched.

References:
    Machine Learning Model extension, https://github.com/stac-extensions/mlm, version 1.4 (the one that pystac writes).
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from geoseg.contract import Contract
from geoseg.errors import ConfigError
from geoseg.model_export.host import BYTE, INPUT, Feed, find_feed, scaled_statistics
from geoseg.network.stored_model import StoredModel
from geoseg.options import ExportOptions
from geoseg.version import __version__

_ANYWHERE = [-180.0, -90.0, 180.0, 90.0]
_ALWAYS = {"start_datetime": "1900-01-01T00:00:00Z", "end_datetime": "9999-12-31T23:59:59Z"}
_SHA256 = "1220"  # prefix of a multihash: SHA-256, 32 bytes


def import_pystac() -> Any:
    """The package pystac with the MLM extension; a `ConfigError` if it is not installed, or too old."""
    try:
        import pystac
        import pystac.extensions.mlm
    except ImportError as error:
        raise ConfigError(
            f"a STAC item needs the package pystac: {error}", hint='pip install "geoseg[stac]", or --no-stac'
        ) from error
    return pystac


def stac_item(
    model: StoredModel, file: Path, options: ExportOptions, *, size: int, overlap: int, onnx_version: str
) -> str:
    """The item as JSON text, to be written beside a model's ONNX file for windows of a size and overlap, px.

    ``onnx_version`` is the first version of ONNX that has the file's operations, such as ``1.15.0``.
    """
    pystac = import_pystac()
    from pystac.extensions import mlm
    from pystac.extensions.classification import Classification
    from pystac.extensions.file import FileExtension
    from pystac.extensions.raster import DataType

    contract, result = model.contract, options.result
    feed = find_feed(contract, normalize=options.normalize)
    bands = [band.name for band in contract.bands]
    item = pystac.Item(
        id=slug(contract.name),
        geometry={"type": "Polygon", "coordinates": [[[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]]]},
        bbox=_ANYWHERE,  # geoseg does not know where a model applies
        datetime=None,
        properties={
            **_ALWAYS,
            "title": contract.name,
            "description": f"{', '.join(c.name for c in contract.classes)} from {contract.dtype} imagery "
            f"({', '.join(bands)}). Where and when it applies is not recorded.",
            **({"gsd": contract.gsd_m} if contract.gsd_m is not None else {}),
            "bands": [{"name": name, "data_type": contract.dtype} for name in bands],
        },
    )
    side = -1 if options.dynamic else size
    classes = [Classification.create(**_class_entry(i, c.name, c.color)) for i, c in enumerate(contract.classes)]
    shape, order = ([-1, side, side], ["batch", "height", "width"])
    if result != "classes":
        shape, order = ([-1, len(classes), side, side], ["batch", "class", "height", "width"])
    given = mlm.ModelInput.create(
        name=INPUT,
        bands=bands,
        input=mlm.InputStructure.create(
            shape=[-1, len(bands), side, side],
            dim_order=["batch", "bands", "height", "width"],
            data_type=DataType.FLOAT32,
        ),
        description=feed,
    )
    # The specification has a list here; pystac 1.15 is typed for one object.
    given.properties["value_scaling"] = value_scaling(contract, feed) or None
    task = mlm.TaskType.SEMANTIC_SEGMENTATION
    mlm.MLMExtension.ext(item, add_if_missing=True).apply(
        name=slug(contract.name),
        architecture=type(model.network).__name__,
        tasks=[task],
        framework="ONNX",
        framework_version=onnx_version,
        total_parameters=sum(p.numel() for p in model.network.parameters()),
        input=[given],
        output=[
            mlm.ModelOutput.create(
                name=result,
                tasks=[task],
                result=mlm.ResultStructure.create(
                    shape=shape, dim_order=order, data_type=DataType.UINT8 if result == "classes" else DataType.FLOAT32
                ),
                description=f"{result} at the size of the input",
                classes=classes,
            )
        ],
        hyperparameters=mlm.Hyperparameters.create(
            window_size_px=size,
            window_overlap_px=overlap,
            onnx_opset=options.opset,
            geoseg_version=__version__,
            weights_digest=model.digest,
            **_recipe(contract),
        ),
    )
    del item.properties["mlm:pretrained_source"]  # null would say: trained from scratch
    asset = pystac.Asset(
        href=f"./{file.name}",
        title="ONNX file",
        media_type="application/octet-stream; framework=onnx",
        roles=["mlm:model", "mlm:weights"],
        extra_fields={"bands": [{"name": name} for name in bands]},  # STAC wants them here, MLM in the properties
    )
    item.add_asset("model", asset)
    mlm.AssetGeneralMLMExtension.ext(asset, add_if_missing=True).apply(artifact_type="onnx")
    data = file.read_bytes()
    FileExtension.ext(asset, add_if_missing=True).apply(
        size=len(data), checksum=_SHA256 + hashlib.sha256(data).hexdigest()
    )
    return json.dumps(item.to_dict(include_self_link=False, transform_hrefs=False), indent=2) + "\n"


def value_scaling(contract: Contract, feed: Feed) -> list[dict[str, Any]]:
    """What a host does to pixels before it feeds them, in MLM's terms: no entry, one for all bands, or one each."""
    if feed == "pixel / 255":
        return [{"type": "scale", "value": BYTE}]
    if feed == "pixel":
        return []
    statistics = zip(*scaled_statistics(contract, 1.0), strict=True)
    return [{"type": "z-score", "mean": mean, "stddev": std} for mean, std in statistics]


def slug(name: str) -> str:
    """A name reduced to letters, digits, ``_``, ``-`` and ``.``; it begins with a letter and ends with no mark."""
    words = re.sub(r"[^0-9A-Za-z_.-]+", "-", name).strip("-_.")
    return words if re.match(r"[A-Za-z]..", words) else f"model-{words or 'unnamed'}"


def _class_entry(value: int, name: str, color: str) -> dict[str, Any]:
    machine = re.sub(r"[^0-9A-Za-z_-]+", "_", name)
    # no title: the package stac-model, used for validation, does not have it
    return {"value": value, "name": machine, "description": name, "color_hint": color.lstrip("#").upper()}


def _recipe(contract: Contract) -> dict[str, Any]:
    """How the model was trained: the numbers and texts in the contract's recipe."""
    recipe = contract.training.get("recipe")
    if not isinstance(recipe, dict):
        return {}
    plain = {key: value for key, value in recipe.items() if isinstance(value, int | float | str)}
    return {f"train_{key}": value for key, value in plain.items() if re.fullmatch(r"[0-9A-Za-z_.-]+", key)}
