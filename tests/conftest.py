"""Fixtures of all tests, hypothesis profiles, and what two workers of pytest-xdist share."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("support")

from support.scenes import MadeScene, MakeScene, write_scene  # noqa: E402

# Each worker has one core; set before torch and numba are imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is slow, whatever the code does: no deadline. For more examples: --hypothesis-profile=thorough
PATIENT: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=10, **PATIENT)
settings.register_profile("thorough", max_examples=150, **PATIENT)
settings.load_profile("quick")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two for the whole suite; chosen files start sooner without workers, and can be debugged."""
    return 2 if [*map(Path, config.args)] == [*map(Path, config.getini("testpaths"))] else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A long file without kernels of numba comes second, so that in a fresh clone one worker compiles for both."""
    first = items[0].path if items else None
    items.sort(key=lambda item: (item.path != first, item.path.name != "test_network_contract.py"))


LOG_LEVELS = {logger: logger.level for logger in (logging.getLogger(), logging.getLogger("geoseg"))}
"""As they are before any test."""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One user cache for all tests, both workers, and the programs they start: converted networks, histograms."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _compiled_once() -> Iterator[None]:
    """OpenVINO compiles a cached network once per process: it gives the same code again, and takes 0.2 s each time."""
    from geoseg.network.backends import openvino

    compiled = openvino.compiled
    kept: dict[tuple[Any, ...], Any] = {}

    def remembered(model: Any, shape: tuple[int, ...], request: Any) -> Any:
        settings = request.precision, request.threads, request.at_once
        key = (os.environ["XDG_CACHE_HOME"], model.key, shape, *settings)  # tests of the cache have one of their own
        if model.key is None or key not in kept:
            kept[key] = compiled(model, shape, request)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino, "compiled", remembered)
        yield


@pytest.fixture(autouse=True)
def unchanged_logging() -> Iterator[None]:
    """The command line sets up logging for the whole process; other tests must not see it."""
    _reset_logging()  # fixtures of a whole file run the command line, too
    yield
    _reset_logging()
    logging.captureWarnings(False)


def _reset_logging() -> None:
    root = logging.getLogger()
    # pytest's own handlers are subclasses.
    root.handlers[:] = [handler for handler in root.handlers if type(handler) is not logging.StreamHandler]
    for name in [name for name in root.manager.loggerDict if name.startswith("geoseg.")]:
        logging.getLogger(name).setLevel(logging.NOTSET)
    for logger, level in LOG_LEVELS.items():
        logger.setLevel(level)


@pytest.fixture
def make_scene(tmp_path: Path) -> MakeScene:
    """`write_scene` into the test's own folder, under a name of its own or the given ``name``."""
    made = iter(range(1000))

    def make(*, name: str | None = None, **options: Any) -> MadeScene:
        return write_scene(tmp_path / (name or f"scene{next(made)}.tif"), **options)

    return make


@pytest.fixture(scope="session")
def landscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generated scenes with labels, to train on; nobody writes there."""
    from support.training import write_scenes

    return write_scenes(tmp_path_factory.mktemp("landscapes"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real imagery; tests that take it carry the marker ``real_data``."""
    folder = Path(os.environ.get("GEOSEG_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (folder / "hot_buildings").is_dir():
        pytest.skip(f"no real imagery in {folder}: set GEOSEG_DATA to its folder")
    return folder
