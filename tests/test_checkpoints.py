"""Checkpoints of other programs: read without running them, recognised, fitted strictly, and in timm."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import inspect
import json
import os
import pickle
import sys
import types
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import geoseg.models
from geoseg.class_tables import KNOWN, distinct_colors, numbered_classes, read_class_table
from geoseg.errors import ConfigError, GeosegError, ModelError
from geoseg.models.checkpoints import read_checkpoint
from geoseg.network.model_folder import build_network
from geoseg.paper.recognition import BASES, Design, build_encoder, build_segnext, class_notes, find_rank, recognize
from geoseg.pretrained import PRETRAINED, Pretrained, check_digest, fetch, sha256_of

GOLDEN = Path(__file__).parent / "golden"
SIZES = ("tiny", "small", "base", "large")
ENCODER: dict[str, Any] = {"embed_dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}


@cache
def golden() -> dict[str, npt.NDArray[Any]]:
    with np.load(GOLDEN / "tiny_reference.npz") as file:
        return dict(file)


def official(*, bases: bool = True) -> dict[str, Tensor]:
    """State dict of the golden network, in the official names."""
    state = {k.removeprefix("sd/"): torch.from_numpy(v) for k, v in golden().items() if k.startswith("sd/")}
    return state | ({BASES: torch.from_numpy(golden()["bases"])} if bases else {})


def later(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same in the names of mmsegmentation 1.x."""
    return {key.replace("mlp.dwconv.dwconv.", "mlp.dwconv."): value for key, value in state.items()}


def imagenet(*, official_names: bool = True, classes: int = 1000, seed: int = 0) -> dict[str, Tensor]:
    """An ImageNet checkpoint of a small MSCAN with random weights and statistics."""
    torch.manual_seed(seed)
    network = timm.create_model("mscan_tiny", num_classes=classes, **ENCODER)
    state: dict[str, Tensor] = {
        key: value + 0.1 * torch.rand_like(value) if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    if official_names:
        state = {key.replace("mlp.dwconv.", "mlp.dwconv.dwconv."): value for key, value in state.items()}
    return state


def saved(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


# --- reading


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.num_batches_tracked": torch.tensor(7)}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin", ".PTH"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_bare_and_wrapped_state_dicts_are_read(suffix: str, wrapper: str | None, tmp_path: Path) -> None:
    content = STATE if wrapper is None else {wrapper: STATE, "epoch": 3, "optimizer": {"lr": 0.1}}
    found = read_checkpoint(saved(tmp_path / f"a{suffix}", content))
    same(found.tensors, STATE)
    assert found.sha256 == hashlib.sha256(found.path.read_bytes()).hexdigest()


def test_files_of_an_older_torch_are_read(tmp_path: Path) -> None:
    same(read_checkpoint(saved(tmp_path / "a.pth", STATE, _use_new_zipfile_serialization=False)).tensors, STATE)


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    same(read_checkpoint(tmp_path / "a.safetensors").tensors, STATE)


HISTORY_BUFFER = """
import numpy as np

class HistoryBuffer:
    def __init__(self):
        self._log_history = np.array([1.5, 2.5])
        self._statistics_methods = {"mean": HistoryBuffer.mean}

    def mean(self):
        raise AssertionError("called while a checkpoint was read")

    def __setstate__(self, state):
        raise AssertionError("made while a checkpoint was read")
"""


@pytest.fixture
def mmengine_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as mmengine saves it, whose pickle names mmengine's log buffer, its methods, and numpy."""
    names = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
    with monkeypatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, types.ModuleType(name))
        module = sys.modules[names[-1]]
        exec(HISTORY_BUFFER, module.__dict__)
        path = saved(
            tmp_path / "iter_160000.pth",
            {
                "meta": {
                    "seed": np.int64(3),
                    "best": np.float64(0.4),
                    "dataset_meta": {"classes": ("wall", "sky"), "palette": [[120, 120, 120], [6, 230, 230]]},
                },
                "state_dict": later(official()),
                "message_hub": {"log_scalars": {"loss": module.HistoryBuffer()}, "runtime_info": {"iter": np.ones(2)}},
                "optimizer": {"state": {}, "param_groups": [{"lr": 6e-5}]},
                "param_schedulers": [{"last_step": 160_000}],
            },
        )
    with zipfile.ZipFile(path) as archive:
        pickled = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    for name in ("mmengine.logging.history_buffer\nHistoryBuffer", "__builtin__\ngetattr", "multiarray\nscalar"):
        assert name.encode() in pickled
    return path


def test_mmengines_log_stays_out_of_the_way(mmengine_file: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    found = read_checkpoint(mmengine_file)
    same(found.tensors, later(official()))
    assert class_notes(found.notes) == (("wall", "sky"), ((120, 120, 120), (6, 230, 230)))
    assert set(torch.serialization.get_safe_globals()) == before
    assert "mmengine" not in sys.modules


@pytest.mark.parametrize(
    ("meta", "names", "palette"),
    [
        ({"CLASSES": ("a", "b"), "PALETTE": [[1, 2, 3], [4, 5, 6]]}, ("a", "b"), ((1, 2, 3), (4, 5, 6))),
        ({"CLASSES": ["a", "b"], "PALETTE": None}, ("a", "b"), None),
        ({"CLASSES": ["a", "b"], "PALETTE": [[1, 2, 3]]}, ("a", "b"), None),
        ({"CLASSES": ["a", "b"], "PALETTE": [[1, 2, 3], [4, 5, 600]]}, ("a", "b"), None),
        ({"CLASSES": ["a", "a"]}, None, None),
        ({"CLASSES": [1, 2]}, None, None),
        ({"CLASSES": None}, None, None),
        ({"dataset_meta": "ade20k"}, None, None),
        ("notes", None, None),
    ],
)
def test_class_names_come_from_the_files_own_notes(
    meta: object, names: object, palette: object, tmp_path: Path
) -> None:
    found = read_checkpoint(saved(tmp_path / "a.pth", {"state_dict": STATE, "meta": meta}))
    assert class_notes(found.notes) == (names, palette)


class Runs:
    """Pickles as a call of a function of the standard library."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, exec, os.rename, Path.touch], ids=lambda f: f.__name__)
@pytest.mark.parametrize("wrap", ["archive", "old", "pickle"])
def test_code_in_a_pickle_is_refused_and_leaves_no_trace(
    function: Callable[..., object], wrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("victim").touch()
    arguments = {"system": ["touch trace"], "rename": ["victim", "trace"], "touch": [Path("trace")]}
    evil = Runs(function, *arguments.get(function.__name__, ["open('trace', 'w').close()"]))
    content = {"state_dict": STATE, "meta": evil}
    if wrap == "pickle":
        Path("evil.pth").write_bytes(pickle.dumps(evil, protocol=2))
    else:
        saved(Path("evil.pth"), content, _use_new_zipfile_serialization=wrap == "archive")
    with pytest.raises(ModelError, match=r"evil\.pth asks for \S+, which is code"):
        read_checkpoint("evil.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.pth", "victim"]


def test_the_code_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "evil.pth", {"state_dict": STATE, "meta": Runs(os.getcwd)})
    with pytest.raises(ModelError, match=f"asks for {os.getcwd.__module__}.getcwd,"):
        read_checkpoint(path)


def test_globals_trusted_elsewhere_are_not_trusted_here(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"state_dict": STATE, "meta": types.SimpleNamespace(a=1)})
    with torch.serialization.safe_globals([types.SimpleNamespace]):
        before = set(torch.serialization.get_safe_globals())
        torch.load(path, weights_only=True)
        with pytest.raises(ModelError, match=r"asks for types\.SimpleNamespace"):
            read_checkpoint(path)
        assert set(torch.serialization.get_safe_globals()) == before


def test_a_pickle_of_a_later_protocol_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Runs(os.getcwd), protocol=5))
    with pytest.raises(ModelError, match="cannot be read as a checkpoint: Unsupported operand"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("old", [False, True], ids=["archive", "old"])
def test_a_file_cut_anywhere_is_refused(old: bool, tmp_path: Path) -> None:
    whole = saved(tmp_path / "a.pth", STATE, _use_new_zipfile_serialization=not old).read_bytes()
    for length in {*range(0, 60, 7), *range(60, len(whole), 97), len(whole) - 1}:
        (tmp_path / "a.pth").write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"a\.pth (is truncated|cannot be read)"):
            read_checkpoint(tmp_path / "a.pth")


def test_a_changed_byte_of_an_archive_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"a": torch.full((64,), 3.0)})
    whole = path.read_bytes()
    place = whole.index(torch.full((64,), 3.0).numpy().tobytes())
    path.write_bytes(whole[:place] + b"\x7f" + whole[place + 1 :])
    with pytest.raises(ModelError, match=r"a\.pth is truncated or damaged: .*data/0"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pth", b"", "cannot be read"),
        ("a.pth", b"some text about weights", "cannot be read"),
        ("a.pth", b"PK\x03\x04 and no more", "its end is missing"),
        ("a.safetensors", b"", "cannot be read"),
        ("a.safetensors", b"some text about weights", "cannot be read"),
        ("a.onnx", b"", r"unknown suffix \.onnx"),
        ("a", b"", r"unknown suffix \(none\)"),
    ],
)
def test_what_is_no_checkpoint_is_refused(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=said) as refusal:
        read_checkpoint(tmp_path / name)
    assert str(tmp_path / name) in str(refusal.value) and refusal.value.hint


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {},
        {"epoch": 3},
        {"state_dict": {"a": 3}},
        {1: torch.zeros(1)},
        {"a": torch.zeros(2).to_sparse()},
        {"a": torch.empty(2, device="meta")},
        {"a": torch.zeros(2, dtype=torch.complex64)},
    ],
)
def test_what_is_no_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no state dict"):
        read_checkpoint(saved(tmp_path / "a.pth", content))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        read_checkpoint(tmp_path / "a.pth")
    with pytest.raises(ModelError, match="is a folder"):
        read_checkpoint(tmp_path)


# --- digests


def test_a_digest_in_the_name_is_compared(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", STATE)
    right = path.rename(tmp_path / f"a-{sha256_of(path)[:16]}.pth")
    same(read_checkpoint(right).tensors, STATE)
    right.write_bytes(right.read_bytes()[:-1])
    with pytest.raises(ModelError, match="is truncated or altered: its SHA-256 begins with"):
        read_checkpoint(right)


@pytest.mark.parametrize(
    ("name", "compared"),
    [
        ("a-0123abcd.pth", True),
        ("a-0123abcd.safetensors", True),
        (PRETRAINED["segnext_small_ade20k"].file, True),  # …-43013668.pth: decimal digits, but known to be a digest
        ("a-20230227.pth", False),
        ("a-0123abc.pth", False),
        ("a_0123abcd.pth", False),
        ("segnext-tiny.pth", False),
    ],
)
def test_which_names_carry_a_digest(name: str, compared: bool) -> None:
    if compared:
        with pytest.raises(ModelError, match="its name says"):
            check_digest(Path(name), "f" * 64)
    else:
        check_digest(Path(name), "f" * 64)


def test_published_files_are_listed_with_their_digests() -> None:
    digests = {name: entry.sha256 for name, entry in PRETRAINED.items()}
    assert digests == {
        "mscan_tiny": "119e8c9f",
        "mscan_small": "f33ccdf2",
        "mscan_base": "3ab7d230",
        "mscan_large": "cef260d4",
        "segnext_tiny_ade20k": "05bd8466",
        "segnext_small_ade20k": "43013668",
        "segnext_base_ade20k": "b6f6c70c",
        "segnext_large_ade20k": "19b14b63",
    }
    assert PRETRAINED["segnext_tiny_ade20k"].url == (
        "https://download.openmmlab.com/mmsegmentation/v0.5/segnext/segnext_mscan-t_1x16_512x512_adamw_160k_ade20k/"
        "segnext_mscan-t_1x16_512x512_adamw_160k_ade20k_20230210_140244-05bd8466.pth"
    )
    assert PRETRAINED["mscan_base"].url.endswith("/v0.5/pretrain/segnext/mscan_b_20230227-3ab7d230.pth")


# --- recognising


@cache
def keys() -> dict[str, dict[str, list[int]]]:
    with gzip.open(GOLDEN / "official_keys.json.gz") as file:
        found: dict[str, dict[str, list[int]]] = json.load(file)
    return found


def hollow(size: str, *, classes: int = 16) -> dict[str, Tensor]:
    """Official state dict of a size of the paper, without storage."""
    state = {key: torch.empty(shape, device="meta") for key, shape in keys()[size].items()}
    for key in ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias"):
        state[key] = torch.empty((classes, *state[key].shape[1:]), device="meta")
    return state


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.model."])
def test_every_size_is_recognised_in_every_layout(size: str, prefix: str) -> None:
    ranks = {"tiny": (16, 16), "small": (16, 16), "base": (64, 16), "large": (64, 16)}[size]
    for names, rank in zip((dict, later), ranks, strict=True):
        state = names(hollow(size, classes=19))
        design, stripped = recognize({prefix + key: value for key, value in state.items()}, "a.pth")
        assert (design.size, design.classes, design.name) == (size, 19, f"SegNeXt-{size[0].upper()}")
        assert design.official == (names is dict)
        assert stripped.keys() == state.keys()
        assert find_rank(design, "a.pth")[0] == rank
        assert (design.encoder, design.encoder_options) == (f"mscan_{size}", {})


@pytest.mark.parametrize("size", SIZES)
def test_every_size_fits_strictly(size: str) -> None:
    design, state = recognize(hollow(size, classes=150), "a.pth")
    network = build_segnext(design, state, "a.pth", rank=find_rank(design, "a.pth")[0])
    assert network.segmentation_head.out_channels == 150
    assert network.config["encoder_name"] == f"tu-mscan_{size}"
    assert network.config["nmf_rank"] == {"base": 64, "large": 64}.get(size, 16)
    assert (
        sum(p.numel() for p in network.parameters())
        == {
            "tiny": 4_263_414,
            "small": 13_932_886,
            "base": 27_636_310,
            "large": 48_926_550,
        }[size]
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("names", [dict, later], ids=["official", "later"])
def test_imagenet_checkpoints_of_every_size_fit_strictly(size: str, names: Any) -> None:
    state = names({k.removeprefix("backbone."): v for k, v in hollow(size).items() if k.startswith("backbone.")})
    width = state["norm4.weight"].shape[0]
    state |= {"head.weight": torch.empty(1000, width, device="meta"), "head.bias": torch.empty(1000, device="meta")}
    design, state = recognize(state, "a.pth")
    assert (design.name, design.classes, design.width) == (f"MSCAN-{size[0].upper()}", 1000, None)
    assert build_encoder(design, state, "a.pth").head.out_features == 1000


def a_design(size: str, *, is_official: bool, rank: int | None = None) -> Design:
    design, _ = recognize(hollow(size) if is_official else later(hollow(size)), "a.pth")
    return Design(design.embed_dims, design.depths, design.mlp_ratios, is_official, design.classes, design.width, rank)


@pytest.mark.parametrize(
    ("size", "is_official", "in_file", "asked", "rank", "why"),
    [
        ("tiny", True, None, None, 16, "every T and S"),
        ("small", False, None, None, 16, "every T and S"),
        ("base", True, None, None, 64, "the official repository's B and L"),
        ("large", False, None, None, 16, "mmsegmentation 1.x"),
        ("base", False, 24, None, 24, "the file's bases"),
        ("base", False, None, 64, 64, "as requested"),
        ("large", True, None, 16, 16, "as requested"),
        ("tiny", True, 16, 16, 16, "as requested"),
        ("tiny", True, 16, 8, 8, "bases of rank 16 are left out"),
    ],
)
def test_the_rank_and_why(
    size: str, is_official: bool, in_file: int | None, asked: int | None, rank: int, why: str
) -> None:
    found, reason = find_rank(a_design(size, is_official=is_official, rank=in_file), "a.pth", asked=asked)
    assert found == rank
    assert why in reason


def test_the_rank_of_another_network_must_be_said() -> None:
    design, _ = recognize(official(bases=False), "a.pth")
    assert design.size is None
    with pytest.raises(ConfigError, match=r"a\.pth is a SegNeXt of channels 8 16 24 32, depths 1 1 2 1, decoder 32"):
        find_rank(design, "a.pth")
    with pytest.raises(ConfigError, match="--nmf-rank 0 is below 1"):
        find_rank(design, "a.pth", asked=0)


def test_groups_that_do_not_divide_the_width_must_be_said() -> None:
    design, state = recognize(official(), "a.pth")
    with pytest.raises(ConfigError, match="has 32 channels, which 24 groups do not divide"):
        build_segnext(design, state, "a.pth", rank=8, norm_groups=24)


@pytest.mark.parametrize("names", [dict, later], ids=["official", "later"])
@torch.no_grad()
def test_the_imported_network_equals_the_official_code(names: Any) -> None:
    design, state = recognize(names(official()), "a.pth")
    rank, _ = find_rank(design, "a.pth")
    network = build_segnext(design, state, "a.pth", rank=rank, norm_groups=8)
    assert rank == 8 and not network.training
    logits = network(torch.from_numpy(golden()["input"]))
    np.testing.assert_allclose(logits.numpy(), golden()["out/logits"], rtol=1e-4, atol=1e-5)


def test_bases_of_another_rank_are_initialised_afresh() -> None:
    design, state = recognize(official(), "a.pth")
    found = build_segnext(design, state, "a.pth", rank=4, norm_groups=8).decoder.hamburger.ham.bases
    fresh = build_segnext(*recognize(official(bases=False), "a.pth"), "a.pth", rank=4, norm_groups=8)
    assert found.shape == (1, 32, 4) and not found.is_meta
    assert torch.equal(found, fresh.decoder.hamburger.ham.bases)


def test_half_precision_becomes_float32() -> None:
    halves = {key: value.half() if value.is_floating_point() else value for key, value in official().items()}
    network = build_segnext(*recognize(halves, "a.pth"), "a.pth", rank=8, norm_groups=8)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


NAMES = "backbone.block2.0.mlp.dwconv.dwconv.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("backbone.norm3.bias"), r"it lacks backbone\.norm3\.bias$"),
        (lambda s: s.pop(NAMES), r"it lacks backbone\.block2\.0\.mlp\.dwconv\.dwconv\.weight$"),
        (lambda s: [s.pop(k) for k in list(s) if "block1.0.norm" in k], r"block1\.0\.norm1\.weight and 9 more$"),
        (
            lambda s: s.update({"auxiliary_head.a": torch.zeros(1)}),
            r"has auxiliary_head\.a, which the network does not have",
        ),
        (lambda s: s.update({f"ema.{i}": torch.zeros(1) for i in range(3)}), r"has ema\.0 and 2 more"),
        (lambda s: s.update({"decode_head.align.gn.weight": torch.zeros(7)}), r"of shape \(7,\) instead of \(32,\)"),
        (lambda s: s.pop("decode_head.conv_seg.weight"), r"lacks decode_head\.conv_seg\.weight"),
        (lambda s: s.pop("decode_head.conv_seg.bias"), r"lacks decode_head\.conv_seg\.bias"),
        (lambda s: s.pop("backbone.patch_embed1.proj.0.weight"), r"lacks backbone\.patch_embed1\.proj\.0\.weight"),
        (lambda s: s.pop("backbone.block3.0.mlp.fc1.weight"), r"lacks backbone\.block3\.0\.mlp\.fc1\.weight"),
        (lambda s: [s.pop(k) for k in list(s) if "block3.0." in k], r"lacks backbone\.block3\.0\."),
        (
            lambda s: s.update({BASES: torch.zeros(2, 32, 8)}),
            r"ham\.bases of shape \(2, 32, 8\) instead of \(1, 32, 8\)",
        ),
        (lambda s: s.update({BASES: torch.zeros(3)}), r"ham\.bases of shape \(3,\)"),
        (lambda s: s.update({"decode_head.conv_seg.bias": torch.zeros(6).int()}), r"conv_seg\.bias of int32"),
    ],
)
def test_what_does_not_fit_is_named(change: Callable[[dict[str, Tensor]], object], said: str) -> None:
    state = official()
    change(state)
    with pytest.raises(ModelError, match=said) as refusal:
        design, state = recognize(state, "a.pth")
        build_segnext(design, state, "a.pth", rank=8, norm_groups=8)
    assert str(refusal.value).startswith("a.pth ")


def test_names_are_those_of_the_file() -> None:
    state = later(official())
    del state["backbone.block2.0.mlp.dwconv.weight"]
    design, state = recognize(state, "a.pth")
    with pytest.raises(ModelError, match=r"it lacks backbone\.block2\.0\.mlp\.dwconv\.weight$"):
        build_segnext(design, state, "a.pth", rank=8, norm_groups=8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("norm4.bias"), r"lacks norm4\.bias"),
        (lambda s: s.pop("head.bias"), r"lacks head\.bias"),
        (lambda s: s.update({"fc.weight": torch.zeros(1)}), r"has fc\.weight"),
    ],
)
def test_an_imagenet_checkpoint_must_fit_too(change: Callable[[dict[str, Tensor]], object], said: str) -> None:
    state = imagenet()
    change(state)
    design, state = recognize(state, "a.pth")
    with pytest.raises(ModelError, match=said):
        build_encoder(design, state, "a.pth")


def test_an_encoder_without_a_head_is_one() -> None:
    state = {key: value for key, value in imagenet().items() if not key.startswith("head.")}
    design, state = recognize(state, "a.pth")
    assert design.classes == 0
    assert isinstance(build_encoder(design, state, "a.pth").head, nn.Identity)


@pytest.mark.parametrize(
    "state",
    [
        {"conv1.weight": torch.zeros(64, 3, 7, 7)},
        {"backbone.layers.0.weight": torch.zeros(1), "decode_head.conv_seg.weight": torch.zeros(3, 8, 1, 1)},
        # VAN, MSCAN's predecessor
        {"patch_embed1.proj.weight": torch.zeros(1), "block1.0.attn.spatial_gating_unit.conv0.weight": torch.zeros(1)},
        {"encoder.model.model.block1.0.attn.spatial_gating_unit.conv0_1.weight": torch.zeros(1)},
    ],
)
def test_another_network_is_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(ModelError, match=r"a\.pth is the checkpoint of another network: .*the first is '"):
        recognize(state, "a.pth")


def test_other_imagery_is_refused() -> None:
    state = official()
    state["backbone.patch_embed1.proj.0.weight"] = torch.zeros(4, 4, 3, 3)
    with pytest.raises(ModelError, match="takes 4 bands, and does not say which"):
        recognize(state, "a.pth")


# --- in timm and SMP


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch.hub, and no network, whatever this machine has."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def published(monkeypatch: pytest.MonkeyPatch, folder: Path, content: object) -> Path:
    """Put a file into a folder as if it were the published encoder mscan_tiny."""
    path = saved(folder / "small.pth", content)
    digest = sha256_of(path)[:16]
    entry = Pretrained("mscan_tiny", "", f"https://download.openmmlab.com/mscan_t-{digest}.pth", is_encoder=True)
    monkeypatch.setitem(PRETRAINED, "mscan_tiny", entry)
    return path.rename(folder / entry.file)


def test_timm_lists_the_sizes_as_pretrained() -> None:
    assert set(timm.list_models("mscan_*", pretrained=True)) >= {f"mscan_{size}" for size in SIZES}
    for size in SIZES:
        assert timm.get_pretrained_cfg(f"mscan_{size}").url == PRETRAINED[f"mscan_{size}"].url


@pytest.mark.parametrize("official_names", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
@torch.no_grad()
def test_timm_takes_the_file(official_names: bool, wrapped: bool, tmp_path: Path) -> None:
    state = imagenet(official_names=official_names)
    parallel = {"state_dict": {f"module.{key}": value for key, value in state.items()}, "args": argparse.Namespace(a=1)}
    path = saved(tmp_path / "mscan_t.pth", parallel if wrapped else state)
    network = timm.create_model("mscan_tiny", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **ENCODER)
    same(dict(network.state_dict()), imagenet(official_names=False))
    by_hand = build_encoder(*recognize(state, path), path)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network.eval()(x), by_hand(x))


@pytest.mark.parametrize("bands", [1, 3, 4, 8])
@pytest.mark.parametrize("through", ["timm", "smp", "geoseg"])
@torch.no_grad()
def test_the_stem_is_adapted_to_other_bands(bands: int, through: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "mscan_t.pth", imagenet())
    source: dict[str, Any] = {"pretrained_cfg_overlay": {"file": str(path)}}
    if through == "timm":
        encoder = timm.create_model("mscan_tiny", pretrained=True, in_chans=bands, **source, **ENCODER)
    elif through == "smp":
        encoder = smp.create_model(
            "segnext", "tu-mscan_tiny", encoder_weights=True, in_channels=bands, classes=2, **source, **ENCODER
        ).encoder.model.model
    else:
        network: Any = build_network(
            "segnext", "tu-mscan_tiny", encoder_weights="imagenet", in_channels=bands, classes=2, **source, **ENCODER
        )
        encoder = network.encoder.model.model
    wanted = imagenet(official_names=False)
    stem = "patch_embed1.proj.0.weight"
    red_green_blue = wanted.pop(stem)
    if bands == 1:
        adapted = red_green_blue.sum(1, keepdim=True)  # a grey pixel does what three equal ones did
    else:
        adapted = torch.stack([red_green_blue[:, i % 3] for i in range(bands)], dim=1) * 3 / bands
    state = dict(encoder.state_dict())
    torch.testing.assert_close(state.pop(stem), adapted)
    same({k: v for k, v in state.items() if k[:5] != "head."}, {k: v for k, v in wanted.items() if k[:5] != "head."})


def test_another_number_of_classes_gets_a_fresh_head(tmp_path: Path) -> None:
    path = saved(tmp_path / "mscan_t.pth", imagenet())
    overlay = {"file": str(path)}
    network = timm.create_model("mscan_tiny", pretrained=True, num_classes=7, pretrained_cfg_overlay=overlay, **ENCODER)
    wanted = imagenet(official_names=False)
    found = dict(network.state_dict())
    assert found.pop("head.weight").shape == (7, 32) and found.pop("head.bias").shape == (7,)
    same(found, {key: value for key, value in wanted.items() if not key.startswith("head.")})


@pytest.mark.parametrize("architecture", ["unet", "fpn"])
def test_other_decoders_take_the_pretrained_encoder(architecture: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "mscan_t.pth", imagenet())
    network: Any = build_network(
        architecture,
        "tu-mscan_tiny",
        encoder_weights="imagenet",
        in_channels=3,
        classes=2,
        pretrained_cfg_overlay={"file": str(path)},
        **ENCODER,
    )
    stem = network.encoder.model.model.patch_embed1.proj[0].weight
    assert torch.equal(stem, imagenet()["patch_embed1.proj.0.weight"])


def test_a_file_for_other_bands_fits_those_alone(tmp_path: Path) -> None:
    state = imagenet()
    stem = "patch_embed1.proj.0.weight"
    state[stem] = torch.rand(4, 5, 3, 3)
    overlay = {"file": str(saved(tmp_path / "mscan_t.pth", state))}
    network = timm.create_model("mscan_tiny", pretrained=True, in_chans=5, pretrained_cfg_overlay=overlay, **ENCODER)
    assert torch.equal(network.state_dict()[stem], state[stem])
    with pytest.raises(ModelError, match="takes 5 bands, the network 4"):
        timm.create_model("mscan_tiny", pretrained=True, in_chans=4, pretrained_cfg_overlay=overlay, **ENCODER)


@pytest.mark.parametrize("features_only", [True, False])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("norm1.bias"), r"lacks norm1\.bias"),
        (lambda s: s.pop("patch_embed1.proj.0.weight"), r"lacks patch_embed1\.proj\.0\.weight"),
        (lambda s: s.update({"fc.weight": torch.zeros(1)}), r"has fc\.weight, which the network does not have"),
        (lambda s: s.update({"norm1.bias": torch.zeros(3)}), r"has norm1\.bias of shape \(3,\) instead of \(8,\)"),
    ],
)
def test_timm_is_strict_about_the_encoder(
    features_only: bool, change: Callable[[dict[str, Tensor]], object], said: str, tmp_path: Path
) -> None:
    state = imagenet()
    change(state)
    overlay = {"file": str(saved(tmp_path / "mscan_t.pth", state))}
    with pytest.raises(ModelError, match=said):
        timm.create_model(
            "mscan_tiny", pretrained=True, pretrained_cfg_overlay=overlay, features_only=features_only, **ENCODER
        )


def test_a_head_that_is_missing_is_missed_where_one_is_wanted(tmp_path: Path) -> None:
    state = {key: value for key, value in imagenet().items() if not key.startswith("head.")}
    options: dict[str, Any] = {
        "pretrained": True,
        "pretrained_cfg_overlay": {"file": str(saved(tmp_path / "mscan_t.pth", state))},
        **ENCODER,
    }
    with pytest.raises(ModelError, match=r"lacks head\.weight"):
        timm.create_model("mscan_tiny", **options)
    for fine in ({"num_classes": 0}, {"num_classes": 7}, {"features_only": True}):
        network = timm.create_model("mscan_tiny", **options, **fine)
        inner = getattr(network, "model", network)
        assert torch.equal(inner.norm1.weight, state["norm1.weight"])


def spoilt(path: Path, kind: str) -> Path:
    if kind == "missing":
        return path
    if kind == "code":
        return saved(path, {"state_dict": imagenet(), "meta": Runs(os.getcwd)})
    if kind == "altered":
        return saved(path.with_name("mscan_t-0123abcd.pth"), imagenet())
    whole = saved(path, imagenet(), _use_new_zipfile_serialization=kind != "old").read_bytes()
    path.write_bytes(b"" if kind == "empty" else whole[:3000])
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "cut", "old", "code", "altered"])
def test_a_file_that_timm_cannot_load_is_one_clear_error(kind: str, tmp_path: Path) -> None:
    path = spoilt(tmp_path / "mscan_t.pth", kind)
    with pytest.raises(ModelError) as refusal:
        timm.create_model("mscan_tiny", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **ENCODER)
    assert "\n" not in str(refusal.value) and refusal.value.hint
    with pytest.raises(GeosegError):
        build_network(
            "segnext",
            "tu-mscan_tiny",
            encoder_weights="imagenet",
            in_channels=3,
            classes=2,
            pretrained_cfg_overlay={"file": str(path)},
            **ENCODER,
        )


def test_without_a_network_the_error_says_where_to_put_the_file(hub: Path) -> None:
    entry = PRETRAINED["mscan_tiny"]
    with pytest.raises(ModelError) as refusal:
        timm.create_model("mscan_tiny", pretrained=True)
    for words in (
        str(hub / entry.file),
        entry.url,
        "put the file there",
        "pretrained_cfg_overlay=dict(file=…)",
        "train with model.encoder_weights=null",
    ):
        assert words in str(refusal.value)
    assert str(refusal.value.hint).endswith(f"-o {hub / entry.file} {entry.url}")
    assert list(hub.iterdir()) == []


def test_missing_weights_of_other_encoders_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="weights imagenet of encoder resnet18 are not on this disk") as refusal:
        build_network("unet", "resnet18", encoder_weights="imagenet", in_channels=3, classes=2)
    assert "\n" not in str(refusal.value) and "model.encoder_weights=null" in str(refusal.value.hint)


def test_pretrained_weights_come_without_a_warning(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, hub, {"state_dict": imagenet()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network: Any = build_network(
            "segnext", "tu-mscan_tiny", encoder_weights="imagenet", in_channels=3, classes=2, **ENCODER
        )
    wanted = imagenet(official_names=False)
    assert torch.equal(network.encoder.model.model.norm1.weight, wanted["norm1.weight"])


def test_a_file_in_the_hub_folder_is_loaded_and_verified(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = published(monkeypatch, hub, {"state_dict": imagenet()})
    network = timm.create_model("mscan_tiny", pretrained=True, **ENCODER)
    same(dict(network.state_dict()), imagenet(official_names=False))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="is truncated or altered"):
        timm.create_model("mscan_tiny", pretrained=True, **ENCODER)


def test_the_folder_may_be_another(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    path = published(monkeypatch, tmp_path / "here", imagenet())
    assert fetch(PRETRAINED["mscan_tiny"], folder=tmp_path / "here") == path
    if "cache_dir" in inspect.signature(timm.create_model).parameters:  # timm 1.0.15 and later
        network = timm.create_model("mscan_tiny", pretrained=True, cache_dir=tmp_path / "here", **ENCODER)
        same(dict(network.state_dict()), imagenet(official_names=False))


def test_a_download_is_checked_and_kept(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.pth", STATE)
    good, bad = (
        Pretrained("a", "", f"{tmp_path.as_uri()}/a-{digest}.pth", is_encoder=False)
        for digest in (sha256_of(path)[:8], "0123abcd")
    )
    for entry in (good, bad):
        (tmp_path / entry.file).write_bytes(path.read_bytes())
    assert fetch(good).read_bytes() == path.read_bytes()
    with pytest.raises(ModelError, match="invalid hash"):
        fetch(bad)
    assert [file.name for file in hub.iterdir()] == [good.file]


def test_nothing_is_fetched_without_being_asked(hub: Path) -> None:
    assert timm.create_model("mscan_tiny", **ENCODER).num_classes == 1000
    state = imagenet(official_names=False)
    network = timm.create_model("mscan_tiny", pretrained=True, pretrained_cfg_overlay={"state_dict": state}, **ENCODER)
    same(dict(network.state_dict()), state)


# --- class tables


def test_names_alone_are_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("- grass\n- roof\n")
    table = read_class_table(tmp_path / "a.yaml")
    assert table.names == ("grass", "roof")
    assert table[0].color != table[1].color


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "- {name: grass, color: '#55aa33'}\n- {name: roof, color: '#cc3311'}\n"),
        ("config.yaml", "name: x\nclasses:\n- {name: grass, color: '#55aa33'}\n- {name: roof, color: '#cc3311'}\n"),
        (
            "a.json",
            '{"classes": [{"id": 1, "name": "roof", "color": [204, 51, 17]},'
            ' {"id": 0, "name": "grass", "color": [85, 170, 51]}]}',
        ),
        (
            "a.json",
            '{"ignore_index": 255, "classes": [{"name": "grass", "color": "#55aa33"},'
            ' {"name": "roof", "color": "#cc3311"}]}',
        ),
        ("a.json", '[\t{"name": "grass", "color": "#55aa33"}, {"name": "roof", "color": "#cc3311"}]'),
    ],
)
def test_the_forms_of_a_class_file(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    table = read_class_table(tmp_path / name)
    assert [(c.name, c.color) for c in table] == [("grass", (85, 170, 51)), ("roof", (204, 51, 17))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists no classes"),
        ("grass", "lists no classes"),
        ("classes: {}", "lists no classes"),
        ("names: [a]", "lists no classes"),
        ("- [a", "is not valid YAML or JSON"),
        ("- a\n- 3\n", "class 1 has no name, found 3"),
        ("- {color: '#55aa33'}", "class 0 has no name"),
        ("- {name: a, colour: red}", "class a has an unknown key colour"),
        ("- {name: a, color: red}", "class a has an invalid color: color 'red' is not of the form #rrggbb"),
        ("- {name: a, color: [1, 2]}", "neither #rrggbb nor three numbers"),
        ("- {name: a, color: [1, 2, 300]}", "is not three numbers in 0 … 255"),
        ("- {name: a, id: 1}", "class ids must be 0 … 0"),
        ("- {name: a, id: 0}\n- {name: b, id: 0}", "class ids must be 0 … 1"),
        ("- {name: a, id: x}", "which is not a number"),
        ("- a\n- a\n", "class names must differ"),
        ("- ' '", "has no name"),
    ],
)
def test_what_is_wrong_with_a_class_file_is_said(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said) as refusal:
        read_class_table(tmp_path / "a.yaml")
    assert str(tmp_path / "a.yaml") in str(refusal.value) and "a list of names" in str(refusal.value.hint)


def test_a_missing_class_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file of classes"):
        read_class_table(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_class_table(tmp_path)


def test_colours_differ_for_as_many_classes_as_a_map_holds() -> None:
    assert len(set(distinct_colors(255))) == 255
    assert distinct_colors(255)[:7] == distinct_colors(7)
    assert numbered_classes(3).names == ("class_0", "class_1", "class_2")


def test_known_tables() -> None:
    assert {name: len(table) for name, table in KNOWN.items()} == {
        "iSAID": 16,
        "Cityscapes": 19,
        "ADE20K": 150,
        "COCO-Stuff": 171,
        "Pascal-VOC": 21,
        "Pascal-Context": 60,
    }
    assert all(len({c.color for c in table}) == len(table) for table in KNOWN.values())
    assert (KNOWN["ADE20K"][20].name, KNOWN["ADE20K"][149].name) == ("car", "flag")
    assert (KNOWN["COCO-Stuff"][79].name, KNOWN["COCO-Stuff"][80].name) == ("toothbrush", "banner")
    assert (KNOWN["Pascal-VOC"][15].name, KNOWN["Pascal-Context"][14].name) == ("person", "car")
    assert KNOWN["iSAID"][14].name == "plane" and KNOWN["iSAID"][14].color == (0, 127, 255)
    assert KNOWN["Cityscapes"][13].name == "car" and KNOWN["Cityscapes"][13].color == (0, 0, 142)


def test_the_package_still_offers_the_plain_conversion() -> None:
    converted = geoseg.models.convert_official_state_dict(later(official()))
    assert converted.keys() == geoseg.models.convert_official_state_dict(official()).keys()
