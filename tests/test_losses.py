from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoseg.losses import cross_entropy


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


def test_ignored_pixels_change_nothing() -> None:
    logits = torch.randn(1, 3, 8, 8)
    labels = torch.randint(0, 3, (1, 8, 8))
    alone = cross_entropy(logits[..., :4], labels[..., :4])
    labels[..., 4:] = 255
    torch.testing.assert_close(cross_entropy(logits, labels), alone)
    logits[..., 4:] = torch.randn(1, 3, 8, 4) * 100
    torch.testing.assert_close(cross_entropy(logits, labels), alone)


def test_without_a_label_it_is_zero_with_a_zero_gradient() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 4, 4), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(1, 3, 300, 300).to(dtype)
    labels = torch.randint(0, 3, (1, 300, 300))
    loss = cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy(logits.float(), labels))
    assert torch.isfinite(loss)


def test_byte_labels_do() -> None:
    logits = torch.randn(1, 3, 4, 4)
    labels = torch.randint(0, 3, (1, 4, 4))
    assert cross_entropy(logits, labels.to(torch.uint8)) == cross_entropy(logits, labels)
