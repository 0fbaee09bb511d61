# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Codes and settings from anywhere: a picture, or a ValueError."""

from typing import Any

import pytest
import torch
from fuzzing import NUMBERS, VALUES, fuzz, fuzz_models
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model, tiny_text_to_image

from transformers_tokenflow import TokenFlowForTextToImage, TokenFlowModel

SCALES, LENGTHS, SIZE = [1, 2, 4], [1, 5, 21], 48
NEGATIVE = torch.tensor([[6, 18, 31]])
DTYPES = [torch.int64, torch.int32, torch.uint8, torch.int8, torch.bool, torch.float32, torch.float16, torch.complex64]


@st.composite
def tensors(draw: Any, shapes: st.SearchStrategy | None = None) -> torch.Tensor:
    """Of any shape and dtype; often one of codes, with values in the codebook or just outside."""
    likely = st.tuples(st.integers(0, 3), st.sampled_from([*LENGTHS, 0, 2, 22]))
    shape = draw(shapes or st.one_of(likely, st.lists(st.integers(0, 5), max_size=4)))
    low, high = draw(st.sampled_from([(0, SIZE), (0, 2), (-1, SIZE), (0, SIZE + 1), (-(2**31), 2**31)]))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    values = torch.randint(low, high, tuple(shape), generator=seed)
    dtype = draw(st.sampled_from([torch.int64, *DTYPES]))
    return (values != 0) if dtype == torch.bool else values.to(dtype)


@pytest.fixture(scope="module")
def tokenizer() -> TokenFlowModel:
    return tiny_model()


@pytest.fixture(scope="module")
def generator() -> TokenFlowForTextToImage:
    return tiny_text_to_image()[0]


@torch.no_grad()
@fuzz
@given(codes=tensors())
def test_decoding(codes: torch.Tensor, tokenizer: TokenFlowModel):
    try:
        pixel_values = tokenizer.decode(codes).pixel_values
    except ValueError:
        return
    assert pixel_values.shape == (len(codes), 3, 32, 32) and pixel_values.isfinite().all()
    assert codes.shape[1] in LENGTHS and codes.min() >= 0 and codes.max() < SIZE


@torch.no_grad()
@fuzz
@given(
    pixel_values=tensors(st.lists(st.sampled_from([0, 1, 2, 3, 16, 32, 33, 40]), min_size=4, max_size=4)),
    scales=st.one_of(st.none(), st.lists(st.integers(-1, 6), max_size=4)),
)
def test_encoding(pixel_values: torch.Tensor, scales: list[int] | None, tokenizer: TokenFlowModel):
    try:
        codes = tokenizer.encode(pixel_values, scales=scales).codes
    except ValueError:
        return
    assert codes.shape == (len(pixel_values), sum(scale**2 for scale in scales or SCALES))
    assert codes.numel() == 0 or 0 <= codes.min() <= codes.max() < SIZE


def some_or(likely: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(likely, st.lists(likely, max_size=3), NUMBERS, VALUES)


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "top_k": some_or(st.integers(0, 60)),
        "top_p": some_or(st.floats(0, 1)),
        "temperature": some_or(st.floats(0, 3)),
        "guidance_scale": some_or(st.floats(0, 9)),
        "guidance_schedule": st.one_of(st.sampled_from(["linear", "constant"]), VALUES),
        "do_sample": st.one_of(st.booleans(), VALUES),
        "seed": some_or(st.integers(0, 2**63)),
        "num_images_per_prompt": st.one_of(st.integers(-1, 3), st.floats(), st.none()),
        "keep_scales": st.one_of(st.integers(-1, 4), VALUES),
        "codes": tensors(),
        "mask": tensors(st.lists(st.sampled_from([0, 1, 2, 4]), max_size=3)),
        "cache_implementation": st.one_of(st.sampled_from(["dynamic", "static"]), VALUES),
        "num_beams": NUMBERS,
    },
)


@fuzz_models
@given(settings=SETTINGS)
def test_drawing(settings: dict[str, Any], generator: TokenFlowForTextToImage):
    prompt = torch.tensor([[5, 9, 14, 31]])
    try:
        codes = generator.generate(prompt, negative_prompt_ids=NEGATIVE, **settings).codes
    except (ValueError, TypeError):
        return
    assert codes.shape == (settings.get("num_images_per_prompt", 1), 21)
    assert 0 <= codes.min() <= codes.max() < SIZE


@torch.no_grad()
@fuzz_models
@given(codes=st.one_of(st.none(), tensors()), labels=st.one_of(st.none(), tensors()), mask=tensors())
def test_teacher_forcing(
    codes: torch.Tensor | None, labels: torch.Tensor | None, mask: torch.Tensor, generator: TokenFlowForTextToImage
):
    prompts = torch.tensor([[5, 9, 14, 31], [0, 0, 7, 31]])
    for attention_mask in (None, mask):
        try:
            logits = generator(prompts, attention_mask, codes=codes, labels=labels).logits
        except ValueError:
            continue
        assert logits.shape[::2] == (2, SIZE) and logits.isfinite().all()
