"""Pretrained encoders come from the disk, or from a hub that answers; one that does not costs no time."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from geoseg.errors import ConfigError
from geoseg.network.model_folder import answers, build_network, from_disk_or_hub

NOWHERE = "http://127.0.0.1:9"


def unet(encoder: str, weights: str | None) -> Any:
    return build_network("unet", encoder, encoder_weights=weights, in_channels=3, classes=2)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of weights, and a hub that is not there."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    return tmp_path / "hub"


@pytest.fixture
def server() -> Iterator[str]:
    """A server that has nothing but answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_without_a_network_weights_are_refused_at_once(
    cache: Path, caplog: pytest.LogCaptureFixture, encoder: str
) -> None:
    start = time.perf_counter()
    with caplog.at_level(logging.WARNING), pytest.raises(ConfigError, match=f"{NOWHERE} does not respond") as caught:
        unet(encoder, "imagenet")
    assert time.perf_counter() - start < 10  # five retries take 23 s
    assert caplog.records == []
    assert f"imagenet of encoder {encoder} are not on this disk" in caught.value.message
    assert "model.encoder_weights=null" in str(caught.value.hint) and str(cache) in str(caught.value.hint)
    assert constants.HF_HUB_OFFLINE is False


def test_weights_on_the_disk_need_no_network(cache: Path) -> None:
    settings = smp.encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]
    folder = cache / f"models--{settings['repo_id'].replace('/', '--')}" / "snapshots" / settings["revision"]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    torch.manual_seed(3)
    weights = unet("resnet18", None).encoder.state_dict()
    save_file(
        {**weights, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, folder / "model.safetensors"
    )
    torch.manual_seed(4)
    found = unet("resnet18", "imagenet").encoder.state_dict()
    assert all(torch.equal(found[key], weights[key]) for key in weights)


def test_other_layers_ignore_where_weights_came_from(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", server)
    offline = []

    def load() -> torch.Tensor:
        drawn = torch.rand(3)
        offline.append(constants.HF_HUB_OFFLINE)
        if len(offline) == 1:
            raise LocalEntryNotFoundError("not here")
        return drawn

    torch.manual_seed(5)
    drawn = from_disk_or_hub(load)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert offline == [True, False]


def test_a_server_answers_with_anything_or_not_at_all(server: str) -> None:
    assert answers(server)
    assert not answers(NOWHERE)
    assert not answers("http://name.invalid")


def test_importing_the_augmentations_asks_no_server() -> None:
    """albumentations would look for a newer version of itself."""
    code = (
        "import urllib.request as u; u.OpenerDirector.open = lambda *a, **k: print('asked')\nimport geoseg.data.augment"
    )
    env = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert ran.stdout == ""
