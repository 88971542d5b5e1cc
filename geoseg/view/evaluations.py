"""Folders of ``geoseg evaluate``: their scenes and labels as layers, and their worst windows as a list."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geoseg.errors import SceneError, quoted
from geoseg.evaluation import SCORES_JSON
from geoseg.view.doubt import window_bounds
from geoseg.view.layers import Layer
from geoseg.windows import Window

Scores = dict[str, Any]


def read_scores(path: str) -> Scores | None:
    """The scores in a folder of ``geoseg evaluate``; None of anything else. A `SceneError` if they are damaged."""
    file = Path(path) / SCORES_JSON
    if not file.is_file():
        return None
    try:
        scores: Scores = json.loads(file.read_text(encoding="utf-8"))
        if not scores["files"]:
            raise KeyError("files")
    except (ValueError, KeyError, OSError) as error:
        raise SceneError(
            f"{file} does not name the scenes that were measured", hint="run geoseg evaluate again, with --overwrite"
        ) from error
    return scores


def named_files(names: Sequence[str]) -> tuple[list[str], list[Scores]]:
    """The files to open, those of evaluations in place of their folders, and the scores of these; see `read_scores`."""
    found: dict[str, None] = {}
    every = []
    for name in names:
        scores = read_scores(name)
        if scores is None:
            found[name] = None
            continue
        every.append(scores)
        for files in scores["files"].values():
            missing = next((path for path in files.values() if not Path(path).exists()), None)
            if missing is not None:
                raise SceneError(
                    f"{missing}, which {name} measured, is gone", hint=f"name what is there: geoseg view {quoted(name)}"
                )
            found.update(dict.fromkeys(files.values()))
    return list(found), every


def worst_windows(every: Sequence[Scores], layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """The worst windows of evaluations, as the page lists them."""
    by_path = {layer.path: layer for layer in layers}
    windows = []
    for scores in every:
        for case in scores["windows"]["worst"]:
            layer = by_path.get(scores["files"].get(case["scene"], {}).get("scene", ""))
            if layer is None or layer.raster is None:
                continue
            window = Window(*(int(case[key]) for key in ("row", "col", "height", "width")))
            note = f"{100 * case['error']:.0f} % wrong"
            bounds = window_bounds(layer.raster, window)
            windows.append({"kind": "Worst windows", "name": case["scene"], "note": note, "bounds": bounds})
    return windows
