"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from geoseg.contract import DType
from support.model_folders import write_model


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Model folders with random weights, one for each kind of imagery."""

    @cache
    def model(bands: int = 3, dtype: DType = "uint8", gsd_m: float | None = None) -> Path:
        folder = tmp_path_factory.mktemp("models") / f"{bands}-{dtype}"
        return write_model(folder, bands=bands, dtype=dtype, gsd_m=gsd_m)

    return model
