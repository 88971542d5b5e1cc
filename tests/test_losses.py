from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from geoseg.config.settings import LossTerm
from geoseg.errors import ConfigError
from geoseg.network.losses import LOSSES, OHEM_MIN_KEPT, SummedLoss, cross_entropy, dice, focal, lovasz, ohem
from geoseg.network.metrics import Scores
from support.processes import fresh_processes

WEIGHTED = ("cross_entropy", "ohem", "focal")
CLASSES = 4
Floats = npt.NDArray[np.float64]


def batch(seed: int = 0, *, images: int = 2, size: int = 6, ignored: float = 0.3) -> tuple[Tensor, Tensor]:
    """Logits in float64 that favour the true class, and labels of which some are 255."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (images, size, size), generator=generator)
    logits = 2 * torch.randn(images, CLASSES, size, size, generator=generator, dtype=torch.float64)
    logits = logits.scatter_add(1, labels[:, None], torch.full((images, 1, size, size), 2.0, dtype=torch.float64))
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return logits, labels


def hard(labels: Tensor) -> Tensor:
    """Logits whose probabilities are 0 and 1."""
    return 1e4 * torch.nn.functional.one_hot(labels, CLASSES).movedim(-1, 1).double()


# --- from the papers, pixel by pixel


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(0))
    return np.asarray(powers / powers.sum(0))


def all_pixels(logits: Tensor, labels: Tensor) -> list[tuple[Floats, int]]:
    return list(chain.from_iterable(pixels_of(logits, labels)))


def pixels_of(logits: Tensor, labels: Tensor) -> list[list[tuple[Floats, int]]]:
    """Per image, the probabilities (K,) and the class of each labelled pixel."""
    return [
        [
            (softmax(image[:, r, c]), int(truth[r, c]))
            for r in range(truth.shape[0])
            for c in range(truth.shape[1])
            if truth[r, c] != 255
        ]
        for image, truth in zip(logits.numpy(), labels.numpy(), strict=True)
    ]


def plain_mean(pixels: list[tuple[Floats, int]], weights: Floats, loss: Callable[[float], float]) -> float:
    terms = [weights[c] * loss(float(p[c])) for p, c in pixels]
    return sum(terms) / sum(weights[c] for _, c in pixels)


def plain_cross_entropy(logits: Tensor, labels: Tensor, weights: Floats) -> float:
    return plain_mean(all_pixels(logits, labels), weights, lambda p: -np.log(p))


def plain_focal(logits: Tensor, labels: Tensor, weights: Floats) -> float:
    return plain_mean(all_pixels(logits, labels), weights, lambda p: -((1 - p) ** 2) * np.log(p))


def plain_ohem(logits: Tensor, labels: Tensor, weights: Floats) -> float:
    kept = []
    for image in pixels_of(logits, labels):
        ranked = sorted(image, key=lambda pixel: pixel[0][pixel[1]])
        least = int(np.ceil(OHEM_MIN_KEPT * len(ranked)))
        kept += [pixel for n, pixel in enumerate(ranked) if n < least or pixel[0][pixel[1]] < 0.7]
    return plain_mean(kept, weights, lambda p: -np.log(p))


def plain_dice(logits: Tensor, labels: Tensor, weights: Floats) -> float:
    pixels = all_pixels(logits, labels)
    scores = []
    for k in {c for _, c in pixels}:
        hits = sum(p[k] for p, c in pixels if c == k)
        scores.append(2 * hits / (sum(p[k] for p, _ in pixels) + sum(c == k for _, c in pixels)))
    return 1 - float(np.mean(scores))


def jaccard_loss(truth: set[int], wrong: set[int]) -> float:
    """1 - IoU of a class whose pixels are ``truth``, when the pixels ``wrong`` are mapped wrong."""
    return len(wrong) / len(truth | wrong)


def plain_lovasz(logits: Tensor, labels: Tensor, weights: Floats) -> float:
    """The Lovász extension by its definition: set function values along the pixels sorted by their errors."""
    images = []
    for image in pixels_of(logits, labels):
        losses = []
        for k in {c for _, c in image}:
            truth = {n for n, (_, c) in enumerate(image) if c == k}
            errors = [1 - p[k] if c == k else p[k] for p, c in image]
            order = np.argsort(errors)[::-1].tolist()
            loss, wrong = 0.0, set[int]()
            for n in order:
                before = jaccard_loss(truth, wrong)
                wrong.add(n)
                loss += errors[n] * (jaccard_loss(truth, wrong) - before)
            losses.append(loss)
        if losses:
            images.append(np.mean(losses))
    return float(np.mean(images))


PLAIN: dict[str, Callable[[Tensor, Tensor, Floats], float]] = {
    "cross_entropy": plain_cross_entropy,
    "ohem": plain_ohem,
    "dice": plain_dice,
    "lovasz": plain_lovasz,
    "focal": plain_focal,
}


def test_every_loss_has_a_plain_one_to_be_compared_with() -> None:
    assert set(PLAIN) == set(LOSSES)
    assert set(LossTerm.model_fields["name"].annotation.__args__) == set(LOSSES)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("ignored", [0.0, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_losses_are_those_of_the_papers(name: str, ignored: float, seed: int) -> None:
    logits, labels = batch(seed, images=3, ignored=ignored)
    labels[1][labels[1] == 2] = 0  # a class that one image lacks
    labels[labels == 3] = 255  # and one that all lack
    for weights in (None, torch.tensor([1.0, 0.25, 3.0, 0.5])):
        if weights is not None and name not in WEIGHTED:
            continue
        plain = PLAIN[name](logits, labels, np.ones(CLASSES) if weights is None else weights.double().numpy())
        assert LOSSES[name](logits, labels, weights).item() == pytest.approx(plain, rel=1e-9), weights


@given(st.integers(0, 2**31), st.floats(0, 0.9), st.integers(1, 6))
def test_it_is_the_mean_over_labelled_pixels(seed: int, ignored: float, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, classes, 5, 4, generator=generator)
    labels = torch.randint(0, classes, (2, 5, 4), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    labels[0, 0, 0] = 0
    log_probabilities = logits - logits.logsumexp(1, keepdim=True)
    kept = [
        -log_probabilities[n, labels[n, r, c], r, c]
        for n in range(2)
        for r in range(5)
        for c in range(4)
        if labels[n, r, c] != 255
    ]
    torch.testing.assert_close(cross_entropy(logits, labels), torch.stack(kept).mean())


def test_weighted_cross_entropy_is_torchs() -> None:
    logits, labels = batch()
    weights = torch.tensor([0.5, 0.0, 2.0, 1.0], dtype=torch.float64)
    wanted = torch.nn.functional.cross_entropy(logits, labels, weights, ignore_index=255)
    torch.testing.assert_close(cross_entropy(logits, labels, weights), wanted)


# --- what is known of each


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_prediction_costs_nothing(name: str) -> None:
    labels = batch()[1]
    labels[labels == 255] = 0
    assert LOSSES[name](hard(labels), labels, None).item() == pytest.approx(0, abs=1e-12)


@given(st.integers(0, 2**31), st.integers(1, CLASSES))
def test_of_hard_predictions_dice_is_f1_and_lovasz_is_iou(seed: int, present: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, present, (1, 5, 5), generator=generator)
    found = torch.randint(0, present, (1, 5, 5), generator=generator)
    counted = torch.rand(labels.shape, generator=generator) < 0.8
    counted[0, 0, 0] = True
    matrix = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    np.add.at(matrix, (labels[counted].numpy(), found[counted].numpy()), 1)
    true = matrix.sum(1) > 0
    ignored = labels.masked_fill(~counted, 255)
    assert dice(hard(found), ignored).item() == pytest.approx(1 - Scores(matrix).f1[true].mean())
    assert lovasz(hard(found), ignored).item() == pytest.approx(1 - Scores(matrix).iou[true].mean())


def test_lovasz_is_the_mean_over_images_with_a_label() -> None:
    logits, labels = batch(images=3)
    labels[1] = 255
    alone = [lovasz(logits[n : n + 1], labels[n : n + 1]) for n in (0, 2)]
    torch.testing.assert_close(lovasz(logits, labels), torch.stack(alone).mean())


def test_focal_without_focus_would_be_cross_entropy_and_is_less() -> None:
    logits, labels = batch()
    assert focal(logits, labels) < cross_entropy(logits, labels)
    sure, unsure = 4 * logits, 0 * logits  # p = 1/4: (3/4)² of the cross-entropy
    torch.testing.assert_close(focal(unsure, labels), 9 / 16 * cross_entropy(unsure, labels))
    assert focal(sure, labels) / cross_entropy(sure, labels) > focal(logits, labels) / cross_entropy(logits, labels)


def test_ohem_takes_the_hard_pixels_of_each_image() -> None:
    logits, labels = batch(images=2, size=16)
    logits.requires_grad_()
    ohem(logits, labels).backward()
    assert logits.grad is not None
    probability = logits.detach().softmax(1).gather(1, labels.masked_fill(labels == 255, 0)[:, None])[:, 0]
    took_part = logits.grad.abs().sum(1) > 0
    assert torch.equal(took_part, (probability < 0.7) & (labels != 255))
    # Where nothing is hard, the least share is kept
    easy = (10 * hard(labels.masked_fill(labels == 255, 0)) / 1e4 + 0.1 * torch.rand_like(logits)).requires_grad_()
    ohem(easy, labels).backward()
    assert easy.grad is not None
    kept = ((easy.grad.abs().sum(1) > 0) & (labels != 255)).flatten(1).sum(1)
    labelled = (labels != 255).flatten(1).sum(1)
    assert torch.equal(kept, (labelled * OHEM_MIN_KEPT).ceil().long())


def test_ohem_of_an_image_does_not_depend_on_its_neighbours() -> None:
    logits, labels = batch(images=2, size=16)
    logits[1] *= 0.1  # all hard
    gradients = []
    for images in (slice(0, 1), slice(0, 2)):
        part = logits[images].clone().requires_grad_()
        ohem(part, labels[images]).backward()
        assert part.grad is not None
        gradients.append(part.grad[0].abs().sum(0) > 0)
    assert torch.equal(*gradients)


# --- ignored pixels, precision, gradients


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_change_nothing(name: str) -> None:
    logits, labels = batch(size=8, ignored=0.2)
    alone = LOSSES[name](logits[..., :4], labels[..., :4], None)
    labels[..., 4:] = 255
    torch.testing.assert_close(LOSSES[name](logits, labels, None), alone)
    logits[..., 4:] = 100 * torch.randn(logits[..., 4:].shape).double()
    logits.requires_grad_()
    loss = LOSSES[name](logits, labels, None)
    loss.backward()
    torch.testing.assert_close(loss, alone)
    assert logits.grad is not None and logits.grad[..., :4].any()
    assert not logits.grad.movedim(1, -1)[labels == 255].any()


@pytest.mark.parametrize("name", LOSSES)
def test_without_a_label_it_is_zero_with_a_zero_gradient(name: str) -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = LOSSES[name](logits, torch.full((1, 4, 4), 255, dtype=torch.uint8), None)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_enormous_logits_keep_the_gradient_finite(name: str, size: float) -> None:
    labels = batch()[1]
    logits = (size * torch.sign(torch.randn(2, CLASSES, 6, 6))).requires_grad_()
    LOSSES[name](logits, labels, None).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_summed_in_float32(name: str, dtype: torch.dtype) -> None:
    logits = torch.randn(1, 3, 300, 300).to(dtype)
    labels = torch.randint(0, 3, (1, 300, 300))
    loss = LOSSES[name](logits, labels, None)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LOSSES[name](logits.float(), labels, None))
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_no_bit(name: str) -> None:
    logits, labels = batch(size=20)
    logits = logits.bfloat16().float()
    loss = SummedLoss([(name, 1.0)], classes=CLASSES, weights=[1, 2, 3, 4])
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(logits, labels)
        halves = loss(logits.bfloat16(), labels)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(logits, labels)) and torch.equal(found, halves)


@pytest.mark.parametrize("name", LOSSES)
def test_byte_labels_do(name: str) -> None:
    logits, labels = batch()
    assert torch.equal(LOSSES[name](logits, labels.to(torch.uint8), None), LOSSES[name](logits, labels, None))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_slopes(name: str) -> None:
    logits, labels = batch(size=3)
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: LOSSES[name](x, labels, weights), logits.requires_grad_(), eps=1e-7, atol=1e-6
    )


# --- sums


def test_a_sum_adds_up_and_weighs_classes() -> None:
    logits, labels = batch()
    weights = torch.tensor([1.0, 0.5, 2.0, 4.0])
    terms = [("cross_entropy", 0.5), ("dice", 2.0), ("lovasz", 1.0)]
    loss = SummedLoss(terms, classes=CLASSES, weights=weights.tolist())
    wanted = 0.5 * cross_entropy(logits, labels, weights) + 2 * dice(logits, labels) + lovasz(logits, labels)
    torch.testing.assert_close(loss(logits, labels), wanted)
    assert loss.state_dict() == {}  # a checkpoint does not depend on it


def test_class_weights_must_fit_the_classes() -> None:
    for weights in ([1.0], [0.0, 0.0]):
        with pytest.raises(ConfigError, match="for 2 classes"):
            SummedLoss([("cross_entropy", 1.0)], classes=2, weights=weights)


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_can_be_learned_from(name: str) -> None:
    torch.manual_seed(0)
    labels = batch(size=12)[1]
    logits = nn.Parameter(0.01 * torch.randn(2, CLASSES, 12, 12))
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        LOSSES[name](logits, labels, None).backward()
        optimizer.step()
    right = logits.argmax(1) == labels
    assert right[labels != 255].float().mean() > 0.95


# --- across processes

SUM = (("cross_entropy", 0.7), ("dice", 1.3), ("lovasz", 0.4))
KINDS: list[tuple[tuple[tuple[str, float], ...], bool]] = [
    *((((name, 1.0),), False) for name in LOSSES),
    *((((name, 1.0),), True) for name in WEIGHTED),
    (SUM, True),
]
CLASS_WEIGHTS = [1.0, 0.3, 2.0, 0.7]


def shared_batches() -> dict[str, tuple[Tensor, Tensor]]:
    """Eight images for two processes: labelled alike, unequally, in one half alone, and nowhere."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(8, 3, 10, 10, generator=generator)
    labels = batch(7, images=8, size=10, ignored=0.1)[1]
    unequal, half = labels.clone(), labels.clone()
    unequal[4:, 1:] = 255
    unequal[5] = 255
    unequal[:4][unequal[:4] == 3] = 255  # a class that only the second process has
    half[4:] = 255
    cases = {"alike": labels, "unequal": unequal, "half": half, "nothing": torch.full_like(labels, 255)}
    return {name: (images, of_case) for name, of_case in cases.items()}


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, CLASSES, 1))


def losses_and_gradients(model: nn.Module, part: slice) -> dict[tuple[str, int], tuple[Tensor, list[Tensor]]]:
    results = {}
    for case, (images, labels) in shared_batches().items():
        for kind, (terms, weighted) in enumerate(KINDS):
            loss = SummedLoss(terms, classes=CLASSES, weights=CLASS_WEIGHTS if weighted else None)
            model.zero_grad()
            value = loss(model(images[part]), labels[part])
            value.backward()
            gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            results[case, kind] = value.detach(), gradients
    return results


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        model: Any = DistributedDataParallel(network())
        torch.save(losses_and_gradients(model, slice(4 * rank, 4 * rank + 4)), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_of_four_are_one_of_eight(tmp_path: Path) -> None:
    """Loss and DDP's gradients, whatever share of the labels each process has."""
    processes = [fresh_processes().Process(target=work, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    apart = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = losses_and_gradients(copy.deepcopy(network()), slice(0, 8))
    assert len(whole) == 4 * len(KINDS)
    for key, (loss, gradients) in whole.items():
        mean = torch.stack([of_rank[key][0] for of_rank in apart]).mean()
        torch.testing.assert_close(mean, loss, rtol=1e-5, atol=1e-7, msg=f"{key}")
        assert (loss > 0) == (key[0] != "nothing")
        for of_rank in apart:
            assert len(of_rank[key][1]) == len(gradients)
            for found, wanted in zip(of_rank[key][1], gradients, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6, msg=f"{key}")
        assert any(g.any() for g in gradients) == (key[0] != "nothing")
