"""The Ray executor on several nodes on this machine: the same bytes as in this process, also when a node dies."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from geoseg.errors import ConfigError, DeviceError
from geoseg.prediction.executors import find_executor
from geoseg.programs.predict import predict
from support.executors import OPTIONS, ExecutorContract, map_files
from support.model_folders import write_model
from support.scenes import write_scene

# Read when Ray is imported: a cluster on the loopback needs no token, and none is to be left in the home folder.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ray = pytest.importorskip("ray", reason="Ray is not installed")

from ray.cluster_utils import Cluster  # noqa: E402

from geoseg.prediction.executors.ray import Crew, plan_crew  # noqa: E402

NODE: dict[str, Any] = {"node_ip_address": "127.0.0.1", "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that does no work, as on Kubernetes, and two nodes of one processor."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **NODE})
    for _ in range(2):
        made.add_node(num_cpus=1, **NODE)
    yield made
    made.shutdown()


@pytest.fixture
def address(cluster: Cluster) -> str:
    """Of the cluster. Ray takes the usual spellings of the loopback for the address that other machines know."""
    return str(cluster.address).replace("127.0.0.1", "LOCALHOST")


class TestRay(ExecutorContract):
    unreadable = r"cannot be read in rows .* \(on node .*\); \d of 4 bands are kept"
    planned = ("executor   ray, 1 window at once", "it depends on the cluster")

    @pytest.fixture
    def where(self, address: str) -> Iterator[dict[str, Any]]:
        yield {"executor": "ray", "address": address}
        assert not ray.is_initialized()

    def test_a_node_that_dies_takes_nothing_with_it(
        self, place: Path, cluster: Cluster, where: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        doomed = cluster.add_node(num_cpus=1, **NODE)
        parts = place / ".survived.tif.parts"

        def kill() -> None:
            while not list(parts.glob("*.tif")):
                time.sleep(0.02)
            cluster.remove_node(doomed, allow_graceful=False)

        scenes = [place / "top.tif", place / "bottom.tif"]
        many = OPTIONS | {"overlap": 96}  # so many windows that the node dies at work
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        with caplog.at_level(logging.WARNING, "geoseg"):
            predict(scenes, place / "model", place / "survived.tif", **many, **where)
        killer.join(10)
        assert not killer.is_alive()
        assert "a worker died; a new one gets" in caplog.text
        assert not list(place.glob(".*"))
        predict(scenes, place / "model", place / "long.tif", **many)
        assert map_files(place, "survived") == map_files(place, "long")


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    scene = write_scene(tmp_path / "scene.tif").path
    with pytest.raises(ConfigError, match=r"no Ray cluster can be reached at 127\.0\.0\.1:1:") as caught:
        predict(scene, tmp_path / "model", tmp_path / "map.tif", executor="ray", address="127.0.0.1:1", device="cpu")
    assert "ray start --head" in str(caught.value.hint)
    assert {p.name for p in tmp_path.iterdir()} == {"model", "scene.tif"}


# --- without a cluster


@pytest.mark.parametrize(
    ("nodes", "device", "crew"),
    [
        ([{"CPU": 2.0}], "auto", Crew(1, 2, 0)),
        ([{"CPU": 64.0}, {"CPU": 64.0}], "auto", Crew(8, 16, 0)),
        ([{}, {"CPU": 0.0}, {"CPU": 8.0}, {"CPU": 17.0}], "auto", Crew(3, 8, 0)),
        ([{"CPU": 32.0, "GPU": 4.0}], "auto", Crew(4, 8, 1)),
        ([{"CPU": 32.0, "GPU": 4.0}], "cuda", Crew(4, 8, 1)),
        ([{"CPU": 32.0, "GPU": 4.0}], "cpu", Crew(2, 16, 0)),
        ([{"CPU": 96.0}, {"CPU": 96.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}], "auto", Crew(3, 4, 1)),
        ([{"GPU": 1.0}], "auto", Crew(1, 0, 1)),
    ],
)
def test_a_worker_per_gpu_or_per_sixteen_processors(nodes: list[dict[str, float]], device: str, crew: Crew) -> None:
    assert plan_crew(nodes, device) == crew
    for node in nodes:  # one shape of worker fits every node that has what it needs
        if node.get("GPU", 0) >= crew.gpus and node.get("CPU", 0) >= 1:
            assert node["CPU"] >= crew.cpus


@pytest.mark.parametrize(
    ("nodes", "device", "complaint"),
    [
        ([{"CPU": 4.0}], "cuda", "has no GPU"),
        ([{"CPU": 4.0, "GPU": 1.0}], "cuda:0", "Ray assigns"),
        ([{"CPU": 0.0}], "auto", "neither processors nor GPUs"),
        ([], "cpu", "neither processors nor GPUs"),
    ],
)
def test_a_device_that_no_node_has_is_refused(nodes: list[dict[str, float]], device: str, complaint: str) -> None:
    with pytest.raises(DeviceError, match=complaint):
        plan_crew(nodes, device)


def test_without_ray_the_hint_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "geoseg.prediction.executors.ray")
    with pytest.raises(ConfigError, match="needs Ray") as caught:
        find_executor("ray")
    assert caught.value.hint == 'pip install "geoseg[ray]"'


def test_an_address_needs_the_executor(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    scene = write_scene(tmp_path / "scene.tif").path
    with pytest.raises(ConfigError, match="but the executor is in-process") as caught:
        predict(scene, tmp_path / "model", tmp_path / "map.tif", address="head:6379")
    assert caught.value.hint == "--executor ray --address head:6379"
