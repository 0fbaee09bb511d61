# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Attention by products against torch's kernel, and when the generator takes it."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_text_to_image
from torch import nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import eager_attention_forward

from transformers_tokenflow import attention_tokenflow, modeling_tokenflow_text_to_image
from transformers_tokenflow.attention_tokenflow import prefers_products, product_attention_forward

HEAD_DIM, SCALING = 8, 0.3
CODES = torch.arange(21)[None] % 24


def states(heads: int, key_heads: int, num_queries: int, num_keys: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries, keys and values, (2, heads, T, head_dim) each."""
    shapes = [(heads, num_queries), (key_heads, num_keys), (key_heads, num_keys)]
    return [torch.randn(2, *shape, HEAD_DIM).to(dtype).requires_grad_() for shape in shapes]


def outputs_and_gradients(
    parts: list[torch.Tensor], mask: torch.Tensor | None, by_products: bool
) -> list[torch.Tensor]:
    """Attention (2, T, heads, head_dim), and what its sum of squares gives to queries, keys and values."""
    if by_products:
        output, weights = product_attention_forward(nn.Module(), *parts, attention_mask=mask, scaling=SCALING)
        assert weights is None and output.is_contiguous()
    else:
        output = F.scaled_dot_product_attention(*parts, attn_mask=mask, scale=SCALING, enable_gqa=True).transpose(1, 2)
    return [output, *torch.autograd.grad(output.square().sum(), parts)]


@given(
    st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    st.integers(1, 9),
    st.integers(0, 9),
    st.sampled_from(["none", "bool", "rows", "numbers"]),
    st.integers(0, 2**16),
)
def test_products_are_attention(heads: tuple[int, int], num_queries: int, num_cached: int, kind: str, seed: int):
    torch.manual_seed(seed)
    num_keys = num_queries + num_cached
    parts = states(*heads, num_queries, num_keys, torch.float32)
    mask = torch.rand(2, 1, 1 if kind == "rows" else num_queries, num_keys) < 0.7
    mask[..., 0] = True
    masks = {"none": None, "numbers": torch.where(mask, 0.5, -torch.inf)}
    before = [part.clone() for part in parts]
    found, expected = (outputs_and_gradients(parts, masks.get(kind, mask), way) for way in (True, False))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts, before, rtol=0, atol=0)


def test_queries_that_see_nothing_stay_finite():
    parts = states(2, 2, 3, 3, torch.bfloat16)
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool).tril(diagonal=-1)
    assert all(part.isfinite().all() for part in outputs_and_gradients(parts, mask, True))


def test_half_precision_rounds_as_transformers_eager_attention_does():
    torch.manual_seed(0)
    parts = states(4, 2, 36, 80, torch.bfloat16)
    query, key, value = parts
    mask = torch.rand(2, 1, 36, 80) < 0.7
    exact = outputs_and_gradients([part.double().detach().requires_grad_() for part in parts], mask, False)[0]
    found = outputs_and_gradients(parts, mask, True)[0]
    module = nn.Module()
    module.num_key_value_groups = 2
    numbers = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf).bfloat16()
    eager = eager_attention_forward(module, query, key, value, numbers, scaling=SCALING)[0]
    assert 0 < (found - exact).norm() < 1.2 * (eager - exact).norm()


# ---- Which is taken ----


@pytest.mark.parametrize(
    ("change", "is_taken"),
    [
        ({}, True),
        ({"dtype": torch.float32}, False),
        ({"dtype": torch.float16}, False),
        ({"device": "meta"}, False),
        ({"most_of_row": 4 * 3 * 5 - 1}, False),
        ({"most": 2 * 4 * 3 * 5 - 1, "trains": True}, False),
        ({"most": 2 * 4 * 3 * 5 - 1}, True),
        ({"has": False}, False),
    ],
)
def test_products_where_they_are_faster(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], is_taken: bool):
    monkeypatch.setattr(attention_tokenflow, "PREFERS_PRODUCTS", change.get("has", True))
    monkeypatch.setattr(attention_tokenflow, "MOST_SCORES_OF_ROW", change.get("most_of_row", 4 * 3 * 5))
    monkeypatch.setattr(attention_tokenflow, "MOST_SCORES", change.get("most", 2 * 4 * 3 * 5))
    options = {"dtype": change.get("dtype", torch.bfloat16), "device": change.get("device", "cpu")}
    query, key = torch.empty(2, 4, 3, 8, **options), torch.empty(2, 2, 5, 8, **options)
    with torch.set_grad_enabled(change.get("trains", False)):
        assert prefers_products(query, key) is is_taken


def test_autocast_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention_tokenflow, "PREFERS_PRODUCTS", True)
    query = torch.empty(1, 1, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert prefers_products(query, query)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_few_rows_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch, rows: int):
    parts = states(4, 2, 3, 5, torch.float32)
    mask = torch.ones(rows, 1, 3, 5).bernoulli(0.7).bool()
    expected = outputs_and_gradients(parts, mask, True)
    monkeypatch.setattr(attention_tokenflow, "SCORES_CHUNK", 1)
    torch.testing.assert_close(outputs_and_gradients(parts, mask, True), expected)


@pytest.mark.parametrize("is_autocast", [False, True])
@pytest.mark.parametrize("kind", ["bool", "numbers"])
def test_hidden_keys_are_never_infinitely_far(kind: str, is_autocast: bool):
    """A mask of fp32's least number is -inf in bf16, by which a row that sees nothing would be NaN."""
    parts = states(2, 2, 3, 3, torch.float32 if is_autocast else torch.bfloat16)
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool).tril(diagonal=-1)
    if kind == "numbers":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        output = product_attention_forward(nn.Module(), *parts, attention_mask=mask, scaling=SCALING)[0]
    assert output.dtype == torch.bfloat16 and output.isfinite().all()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the queries that products are taken for, on a processor that prefers them."""
    shapes: list[tuple[int, ...]] = []

    def record(module: nn.Module, query: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        shapes.append(tuple(query.shape))
        return product_attention_forward(module, query, *args, **kwargs)

    monkeypatch.setattr(attention_tokenflow, "PREFERS_PRODUCTS", True)
    monkeypatch.setattr(modeling_tokenflow_text_to_image, "product_attention_forward", record)
    return shapes


def scores(**options: Any) -> torch.Tensor:
    """Of all codes, teacher forced, of a prompt that has padding."""
    attention = options.pop("attention", "sdpa")
    model = tiny_text_to_image(**options)[0].to(torch.bfloat16)
    model.set_attn_implementation(attention)
    ids, mask = torch.tensor([[9, 3, 4, 5]]), torch.tensor([[0, 1, 1, 1]])
    with torch.no_grad():
        return model(ids, attention_mask=mask, codes=CODES).logits


def test_the_generator_in_bf16_takes_products(calls: list[tuple[int, ...]]):
    found = scores()
    assert calls and {shape[2] for shape in calls} == {23}
    count = len(calls)
    torch.testing.assert_close(found, scores(attention="eager"), rtol=0.05, atol=0.05)
    assert len(calls) == count


def test_attentions_that_are_asked_for_are_left_to_transformers(calls: list[tuple[int, ...]]):
    model = tiny_text_to_image()[0].to(torch.bfloat16)
    model(torch.tensor([[9, 3]]), codes=CODES, output_attentions=True)
    assert not calls


def test_a_dynamic_prompt_is_exported(calls: list[tuple[int, ...]]):
    model = tiny_text_to_image()[0].to(torch.bfloat16)

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
            return self.model(ids, codes=codes).logits

    shapes = {"ids": {1: torch.export.Dim("prompt", min=3, max=64)}, "codes": {}}
    program = torch.export.export(Scores(), (torch.tensor([[9, 3, 4, 5]]), CODES), dynamic_shapes=shapes, strict=False)
    ids = torch.tensor([[9, 3, 4, 5, 6, 7]])
    torch.testing.assert_close(program.module()(ids, CODES), Scores()(ids, CODES), rtol=0.05, atol=0.05)


def test_dropout_is_left_to_torch(calls: list[tuple[int, ...]]):
    model = tiny_text_to_image(attention_dropout=0.5)[0].train().to(torch.bfloat16)
    model(torch.tensor([[9, 3]]), labels=CODES).loss.backward()
    assert not calls


def test_prompts_without_padding_are_left_to_torch(calls: list[tuple[int, ...]]):
    model = tiny_text_to_image()[0].to(torch.bfloat16)
    prompt = torch.tensor([[9, 3, 4]])
    drawn = model.generate(prompt, guidance_scale=0.0, seed=0).codes
    assert drawn.shape == (1, 21) and {shape[2] for shape in calls} == {4, 16}
