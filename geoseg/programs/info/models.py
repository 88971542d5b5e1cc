"""Facts about a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from geoseg.classes import format_color
from geoseg.contract import Contract, load_contract
from geoseg.network.stored_model import CONFIG_FILE, WEIGHTS_FILE
from geoseg.programs.info.words import Fact, file_size


def model_facts(folder: Path) -> list[Fact]:
    """Facts about a model folder.

    Raises:
        ModelError: No imagery contract, or a damaged one.
    """
    contract = load_contract(folder)
    facts = [("model", f"{contract.name}, in {folder}"), *_network_facts(folder)]
    facts += [("band", f"{b.name}: mean {b.mean:.4g}, standard deviation {b.std:.4g}") for b in contract.bands]
    facts += [
        ("pixels", f"{contract.dtype} × {contract.scale:.4g}, nodata {_contract_nodata(contract)}"),
        ("GSD", f"{contract.gsd_m:.4g} m" if contract.gsd_m else "any: trained without georeference"),
        ("windows", f"{contract.window.size} px that overlap by {contract.window.overlap} px"),
    ]
    facts += [
        (
            "class",
            f"{c.id} {c.name} {format_color(c.color)}{', background' if c.background else ''}"
            f"{', touching objects can be separated' if c.separate else ''}",
        )
        for c in contract.class_table
    ]
    return facts + [("training", f"{_words(key)}: {_text(value)}") for key, value in contract.training.items()]


def _network_facts(folder: Path) -> list[Fact]:
    config, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    facts = []
    if config.is_file():
        values = json.loads(config.read_text(encoding="utf-8"))
        words = [str(values[key]) for key in ("_model_class", "encoder_name") if values.get(key)]
        facts.append(("network", " with ".join(words) or "unnamed"))
    if weights.is_file():
        facts.append(("weights", f"{weights.name}{file_size(str(weights))}"))
    missing = [p.name for p in (config, weights) if not p.is_file()]
    return facts + [("warning", f"{name} is missing, so the model cannot be loaded") for name in missing]


def _contract_nodata(contract: Contract) -> str:
    return "as the file says" if contract.nodata == "file" else f"{contract.nodata:g}"


def _words(key: str) -> str:
    """A key of the training's record as people write it."""
    return key.replace("_", " ").replace("miou", "mIoU").replace("iou", "IoU")


def _text(value: Any) -> str:
    """A value of the training's record without Python's brackets; settings that were not given are left out."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items() if inner is not None)
    if isinstance(value, list):
        return ", ".join(f"({_text(inner)})" if isinstance(inner, dict) else _text(inner) for inner in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
