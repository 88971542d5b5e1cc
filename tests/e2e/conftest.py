"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from geoseg.contract import DType

from .commands import write_model


@pytest.fixture(autouse=True)
def unchanged_logging() -> Iterator[None]:
    """The command line sets up logging for the whole process; other tests must not see it."""
    root, ours = logging.getLogger(), logging.getLogger("geoseg")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])
    logging.captureWarnings(False)


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Model folders with random weights, one for each kind of imagery."""

    @cache
    def model(bands: int = 3, dtype: DType = "uint8", gsd_m: float | None = None) -> Path:
        folder = tmp_path_factory.mktemp("models") / f"{bands}-{dtype}"
        return write_model(folder, bands=bands, dtype=dtype, gsd_m=gsd_m)

    return model
