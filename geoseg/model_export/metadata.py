"""What describes an ONNX file to others: metadata for the QGIS plugin Deepness, and a STAC item for catalogues."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from geoseg.contract import Contract
from geoseg.errors import ConfigError
from geoseg.model_export.host import BYTE, INPUT, Feed, Result, find_feed, scaled_statistics
from geoseg.network.stored_model import StoredModel
from geoseg.options import ExportOptions
from geoseg.version import __version__

# --- Deepness


def why_not(contract: Contract, result: Result) -> str | None:
    """Why the plugin would misread a file, or None."""
    if contract.dtype != "uint8":
        return f"the plugin divides pixels by 255, and the model takes {contract.dtype} imagery"
    if len(contract.classes) == 1:
        return "the plugin reads a single class as yes or no"
    if result != "probabilities":
        return f"the plugin needs probabilities, and the file gives {result}"
    return None


def deepness_entries(contract: Contract, options: ExportOptions, *, size: int, overlap: int) -> dict[str, str]:
    """Metadata that let the plugin run a file for uint8 imagery without manual settings: its keys, values as JSON.

    From the plugin's source (Apache-2.0), versions 0.6.3 to 0.7:

    - Values of ``metadata_props`` are JSON. Its documentation has the key ``tiles_size``, its code reads ``tile_size``.
    - It feeds ``(byte / 255 - standardization_mean) / standardization_std`` for any imagery, so it cannot run models
      for other than 8-bit imagery. Versions before 0.6 ignore the standardization.
    - It sets values below ``seg_thresh`` to 0 and takes the largest channel. Since even the threshold 0 turns negative
      logits into 0, it needs probabilities. It reads a single channel as a sigmoid.
    - It takes the tile's side from the input's shape, which must be fixed and square; the batch may be free.
    - ``resolution`` is in hundredths of a map unit, so cm for a ground metre. It is rounded to three digits, because
      the plugin resamples every tile if it differs from the layer's own, as the median of a training's scenes does.
    - It pins ONNX Runtime to 1.12.1 … 1.17.0.
    """
    mean, std = [0.0] * len(contract.bands), [1.0] * len(contract.bands)
    if not options.normalize:
        mean, std = scaled_statistics(contract, BYTE)
    values: dict[str, object] = {
        "model_type": "Segmentor",
        "class_names": {str(i): entry.name for i, entry in enumerate(contract.classes)},
        "tile_size": size,
        "tiles_size": size,
        "tiles_overlap": round(100 * overlap / size),
        "standardization_mean": mean,
        "standardization_std": std,
        "seg_thresh": 0.0,  # the largest probability decides
        "seg_small_segment": 0,  # no median filter
    }
    if contract.gsd_m is not None:
        values["resolution"] = float(f"{100 * contract.gsd_m:.3g}")
    return {key: json.dumps(value) for key, value in values.items()}


# --- STAC


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

    ``onnx_version`` is the first version of ONNX that has the file's operations, such as ``1.15.0``. pystac alone
    builds the item; nothing is fetched.

    References:
        Machine Learning Model extension, https://github.com/stac-extensions/mlm, version 1.4, which pystac writes.
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
        bbox=[-180.0, -90.0, 180.0, 90.0],  # geoseg does not know where a model applies, or when
        datetime=None,
        properties={
            "start_datetime": "1900-01-01T00:00:00Z",
            "end_datetime": "9999-12-31T23:59:59Z",
            "title": contract.name,
            "description": f"{', '.join(c.name for c in contract.classes)} from {contract.dtype} imagery "
            f"({', '.join(bands)}). Where and when it applies is not recorded.",
            **({"gsd": contract.gsd_m} if contract.gsd_m is not None else {}),
            "bands": [{"name": name, "data_type": contract.dtype} for name in bands],
        },
    )
    side = -1 if options.dynamic else size
    classes = [
        Classification.create(  # no title: the package stac-model, used for validation, does not have it
            value=i,
            name=re.sub(r"[^0-9A-Za-z_-]+", "_", c.name),
            description=c.name,
            color_hint=c.color.lstrip("#").upper(),
        )
        for i, c in enumerate(contract.classes)
    ]
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
        size=len(data),
        checksum="1220" + hashlib.sha256(data).hexdigest(),  # a multihash: SHA-256, 32 bytes
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


def _recipe(contract: Contract) -> dict[str, Any]:
    """How the model was trained: the numbers and texts in the contract's recipe."""
    recipe = contract.training.get("recipe")
    if not isinstance(recipe, dict):
        return {}
    plain = {key: value for key, value in recipe.items() if isinstance(value, int | float | str)}
    return {f"train_{key}": value for key, value in plain.items() if re.fullmatch(r"[0-9A-Za-z_.-]+", key)}
