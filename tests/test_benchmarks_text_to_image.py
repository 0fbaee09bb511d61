# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The benchmark's baseline is a second opinion on generation, and its arithmetic one on what the cache saves."""

import pytest
import torch
from tiny_models import tiny_text_to_image

from benchmarks.naive_text_to_image import naive_generate, sorting_sample
from benchmarks.text_to_image import Case, Clock, benchmark_passes, counted_flops, least_flops
from transformers_tokenflow.sampling_tokenflow import sample


@pytest.fixture(scope="module")
def case() -> Case:
    model, _ = tiny_text_to_image()
    torch.manual_seed(0)
    return Case(model, torch.randint(3, 60, (1, 7)), torch.randint(3, 60, (1, 9)))


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("guidance_scale", [7.5, 0.0])
def test_without_a_cache_all_is_the_same(case: Case, passes: int, guidance_scale: float):
    greedy = {"guidance_scale": guidance_scale, "top_k": [1] * passes, "top_p": [0.0] * passes}
    naive = case.generate_naively(**greedy, prompt_length=12)
    assert torch.equal(case.generate(**greedy), naive)


def test_several_prompts(case: Case):
    torch.manual_seed(1)
    prompt_ids, negative_ids = torch.randint(3, 60, (3, 5)), torch.randint(3, 60, (3, 8))
    greedy = {"guidance_scale": 3.0, "top_k": [1, 1], "top_p": [0.0, 0.0]}
    naive = naive_generate(case.model, prompt_ids, negative_ids, **greedy, prompt_length=10)
    assert torch.equal(case.model.generate(prompt_ids, negative_prompt_ids=negative_ids, **greedy).codes, naive)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (5, 0.0), (0, 0.5), (12, 0.7), (1, 0.9)])
def test_sorting_everything_draws_from_the_same_entries(top_k: int, top_p: float):
    logits = torch.randn(1, 1, 30, generator=torch.Generator().manual_seed(top_k)).expand(-1, 4000, -1).contiguous()
    naive = sorting_sample(logits, top_k, top_p)[0].bincount(minlength=30)
    ours = sample(logits, top_k, top_p, 1.0, torch.rand(1, 4000))[0].bincount(minlength=30)
    assert ((naive > 20) <= (ours > 0)).all() and ((ours > 20) <= (naive > 0)).all()
    assert ((naive - ours).abs() < 6 * (naive + ours + 1).sqrt()).all()


def test_little_more_arithmetic_than_needed(case: Case):
    assert 1.0 <= counted_flops(case) / least_flops(case) < 1.1


def test_passes_are_timed(case: Case):
    clock = Clock()
    case.generate(streamer=clock)
    assert len(clock.durations()) == 1 + 3 * (len(case.model.tokenizer.config.scales) - 1)
    rows = benchmark_passes(case, 1, peak=1e12)
    assert [row["scale"] for row in rows] == case.model.tokenizer.config.scales[1:]
    assert all(0 < row["peak_fraction"] < 1 for row in rows)
