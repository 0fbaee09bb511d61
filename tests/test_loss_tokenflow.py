# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Cross-entropy of scores against torch's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from transformers_tokenflow import loss_tokenflow
from transformers_tokenflow.loss_tokenflow import cross_entropy


def loss_and_gradient(function: object, scores: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The loss and what three times the loss gives to the scores."""
    scores = scores.clone().requires_grad_()
    loss = function(scores, targets)
    (3 * loss).backward()
    return loss.detach(), scores.grad


def plain(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(scores.float(), targets)


@given(st.integers(1, 9), st.integers(2, 12), st.integers(1, 40), st.floats(0.1, 100), st.integers(0, 2**16))
def test_it_is_torchs(length: int, size: int, chunk: int, scale: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(length, size, generator=generator) * scale
    targets = torch.randint(-1, size, (length,), generator=generator)
    targets = torch.where(targets < 0, -100, targets)
    targets[0] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_tokenflow, "CHUNK", chunk)
        found = loss_and_gradient(cross_entropy, scores, targets)
    torch.testing.assert_close(found, loss_and_gradient(plain, scores, targets), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype):
    scores = (torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) * 5).to(dtype)
    targets = torch.arange(50)
    loss, gradient = loss_and_gradient(cross_entropy, scores, targets)
    expected, expected_gradient = loss_and_gradient(plain, scores, targets)
    assert loss.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0.01, atol=1e-5)


def test_scores_stay_and_gradients_add_up():
    scores, targets = torch.randn(4, 6, requires_grad=True), torch.tensor([1, 5, 0, 2])
    before = scores.detach().clone()
    loss = cross_entropy(scores, targets)
    loss.backward(retain_graph=True)
    once = scores.grad.clone()
    loss.backward()
    assert torch.equal(scores, before)
    torch.testing.assert_close(scores.grad, 2 * once)


def test_nothing_to_learn_is_no_number():
    assert cross_entropy(torch.randn(3, 4), torch.full((3,), -100)).isnan()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers(value: float):
    scores = torch.randn(3, 4)
    scores[1, 2] = value
    assert not cross_entropy(scores, torch.tensor([0, 1, 2])).isfinite()


def test_the_default_dtype_has_no_part():
    scores, targets = torch.randn(5, 300), torch.arange(5)
    expected = loss_and_gradient(cross_entropy, scores, targets)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = loss_and_gradient(cross_entropy, scores, targets)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, expected))


def test_functional_transforms():
    scores, targets = torch.randn(4, 6), torch.tensor([1, 5, 0, 2])
    expected = loss_and_gradient(plain, scores, targets)[1] / 3
    torch.testing.assert_close(torch.func.grad(cross_entropy)(scores, targets), expected)


def test_it_is_compiled_as_torchs():
    scores, targets = torch.randn(5, 7), torch.tensor([1, 5, -100, 2, 6])
    found = loss_and_gradient(torch.compile(cross_entropy, backend="aot_eager", fullgraph=True), scores, targets)
    torch.testing.assert_close(found, loss_and_gradient(plain, scores, targets))
