# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Draws against their plain definition, and where their numbers come from."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import GenerationConfig

from transformers_tokenflow.generation_tokenflow import default_generation_config
from transformers_tokenflow.sampling_tokenflow import (
    Generators,
    Sampling,
    largest,
    make_generators,
    more_generators,
    plain_seeds,
    sample,
)

SEEDS = st.integers(0, 2**16)
ALMOST_ONE = 1 - 2**-24


def make_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


def plain_probabilities(logits: torch.Tensor, top_k: int, top_p: float, temperature: float = 1.0) -> torch.Tensor:
    """Everything sorted, in double precision: (K,) scores -> (K,), 0 where a filter drops an entry."""
    scores = logits.double()
    if top_k:
        worst = scores.sort(descending=True).values[min(top_k, len(scores)) - 1]
        scores = scores.masked_fill(scores < worst, -torch.inf)
    probabilities = (scores / temperature).softmax(dim=0)
    if 0 < top_p < 1:
        ascending, order = probabilities.sort()
        dropped = ascending.cumsum(dim=0) <= 1 - top_p
        dropped[-1] = False
        probabilities = probabilities.masked_fill(probabilities < ascending[~dropped].min(), 0)
    return probabilities / probabilities.sum()


def plain_draw(probabilities: torch.Tensor, uniform: float) -> int:
    """The first entry up to which the probabilities sum to more than the number."""
    return int((probabilities.cumsum(dim=0) > uniform).int().argmax())


def draws(logits: torch.Tensor, count: int, **settings: Any) -> torch.Tensor:
    """Codes (count,) at evenly spaced numbers in [0, 1), from scores (K,)."""
    uniform = (torch.arange(count) / count)[None]
    return sample(logits.expand(1, count, -1), **settings, uniform=uniform)[0]


def kept(logits: torch.Tensor, top_k: int, top_p: float) -> list[int]:
    return draws(logits, 4096, top_k=top_k, top_p=top_p, temperature=1.0).unique().tolist()


# ---- Filters and draws ----


@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 40),
    st.integers(0, 45),
    st.sampled_from([0.0, 0.05, 0.37, 0.8, 0.93, 1.0]),
    st.sampled_from([0.3, 1.0, 2.5]),
    SEEDS,
)
def test_draws_are_the_plain_ones(
    batch: int, tokens: int, size: int, top_k: int, top_p: float, temperature: float, seed: int
):
    logits = make_logits(batch, tokens, size, seed=seed)
    uniform = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(seed))
    codes = sample(logits, top_k, top_p, temperature, uniform)
    assert codes.shape == (batch, tokens) and codes.dtype == torch.long
    for index in torch.cartesian_prod(torch.arange(batch), torch.arange(tokens)).tolist():
        row = tuple(index)
        probabilities = plain_probabilities(logits[row], top_k, top_p, temperature)
        limits = probabilities.cumsum(dim=0)
        if top_k != 1 and (limits - uniform[row]).abs().min() < 1e-5:
            continue  # rounding decides
        assert codes[row] == plain_draw(probabilities, float(uniform[row]))


@given(st.sampled_from([4096, 4095, 1200, 130, 70]), st.integers(1, 1300), st.booleans(), SEEDS)
def test_the_largest_of_many(size: int, count: int, has_ties: bool, seed: int):
    logits = make_logits(2, 3, size, seed=seed)
    logits = logits.bfloat16().float() if has_ties else logits
    count = min(count, size)
    values, entries = largest(logits, count)
    assert torch.equal(values, logits.topk(count).values)
    assert torch.equal(values, logits.gather(-1, entries))
    assert all(len(row.unique()) == count for row in entries.flatten(0, 1))


@pytest.mark.parametrize("kind", ["distinct", "bf16", "all equal"])
@pytest.mark.parametrize("top_k", [1, 2, 100, 900, 4095, 4096])
def test_draws_from_many_entries_are_the_plain_ones(top_k: int, kind: str):
    logits = make_logits(1, 6, 4096)
    logits = {"distinct": logits, "bf16": logits.bfloat16().float(), "all equal": torch.zeros_like(logits)}[kind]
    uniform = (torch.arange(6) / 6)[None]
    codes = sample(logits, top_k, 0.9, 1.0, uniform)
    for token in range(6):
        probabilities = plain_probabilities(logits[0, token], top_k, 0.9)
        if top_k == 1:
            assert codes[0, token] == logits[0, token].argmax()
        elif (probabilities.cumsum(0) - uniform[0, token]).abs().min() > 1e-5:
            assert codes[0, token] == plain_draw(probabilities, float(uniform[0, token]))


@given(st.integers(1, 60), SEEDS)
def test_zero_switches_a_filter_off(size: int, seed: int):
    logits, uniform = make_logits(2, 3, size, seed=seed), torch.rand(2, 3)
    expected = sample(logits, 0, 0.0, 1.0, uniform)
    for top_k, top_p in ((0, 1.0), (size, 0.0), (size + 7, 1.0)):
        if top_k != 1:
            assert torch.equal(sample(logits, top_k, top_p, 1.0, uniform), expected)
    distribution = logits.double().softmax(dim=-1)
    for row in ((0, 0), (1, 2)):
        if (distribution[row].cumsum(0) - uniform[row]).abs().min() > 1e-5:
            assert expected[row] == plain_draw(distribution[row], float(uniform[row]))


@given(SEEDS)
def test_one_takes_the_best(seed: int):
    logits = make_logits(2, 5, 30, seed=seed)
    best = logits.argmax(dim=-1)
    for top_p in (0.0, 0.5, 1.0):
        assert torch.equal(sample(logits, 1, top_p, 0.1, None), best)
    assert torch.equal(sample(logits, 0, 1e-6, 1.0, torch.full((2, 5), ALMOST_ONE)), best)


@pytest.mark.parametrize("top_k", [0, 1, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers(top_k: int, value: float):
    logits = make_logits(1, 4, 9)
    logits[0, 2, 5] = value
    with pytest.raises(ValueError, match="scores are no finite numbers"):
        sample(logits, top_k, 0.5, 1.0, torch.rand(1, 4))


def test_entries_that_tie_with_the_last_one_remain():
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 0.0])
    assert kept(logits, top_k=2, top_p=0.0) == [1, 2, 3, 4]
    assert kept(logits, top_k=4, top_p=0.0) == [1, 2, 3, 4]
    assert kept(logits, top_k=5, top_p=0.0) == [0, 1, 2, 3, 4]
    assert kept(logits, top_k=0, top_p=0.0) == [0, 1, 2, 3, 4, 5]


def test_the_likeliest_entries_remain():
    logits = torch.tensor([0.1, 0.5, 0.06, 0.3, 0.04]).log()
    for top_p, expected in (
        (0.4, [1]),
        (0.55, [1, 3]),
        (0.85, [0, 1, 3]),
        (0.95, [0, 1, 2, 3]),
        (0.99, [0, 1, 2, 3, 4]),
    ):
        assert kept(logits, top_k=0, top_p=top_p) == kept(logits, top_k=5, top_p=top_p) == expected
    assert kept(logits, top_k=3, top_p=0.7) == [1, 3]  # of what the first filter leaves: 5/9, 3/9, 1/9
    halves = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    assert kept(halves, top_k=0, top_p=0.5) == [0]  # a tail of exactly 1 - top_p goes, as officially
    ties = torch.tensor([0.2, 0.4, 0.2, 0.2]).log()
    assert kept(ties, top_k=0, top_p=0.5) == kept(ties, top_k=3, top_p=0.5) == [0, 1, 2, 3]


@given(st.integers(2, 20), st.sampled_from([0.0, 0.6]), SEEDS)
def test_ties_make_no_difference_between_alone_and_in_a_batch(top_k: int, top_p: float, seed: int):
    """Scores in half precision tie all the time."""
    logits = make_logits(3, 4, 200, seed=seed).mul(4).round().div(8)
    uniform = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed))
    together = sample(logits, top_k, top_p, 1.0, uniform)
    for picture in range(3):
        for token in range(4):
            row = (slice(picture, picture + 1), slice(token, token + 1))
            assert sample(logits[row], top_k, top_p, 1.0, uniform[row]) == together[row]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (7, 0.0), (0, 0.7), (7, 0.7)])
def test_codes_grow_with_the_number(top_k: int, top_p: float):
    codes = draws(make_logits(50) / 3, 1000, top_k=top_k, top_p=top_p, temperature=1.0)
    assert (codes.diff() >= 0).all() and codes.unique().numel() > 2


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (5, 0.0), (0, 0.8), (6, 0.8)])
def test_frequencies_are_the_probabilities(top_k: int, top_p: float):
    logits, count = make_logits(12) / 3, 20000
    uniform = Generators(shared=torch.Generator().manual_seed(0)).uniform(1, count, torch.device("cpu"))
    codes = sample(logits.expand(1, count, -1), top_k, top_p, 1.0, uniform)
    probabilities = plain_probabilities(logits, top_k, top_p)
    found = torch.bincount(codes[0], minlength=12)
    possible = probabilities > 0
    assert not found[~possible].any()
    assert chisquare(found[possible].numpy(), (probabilities[possible] * count).numpy()).pvalue > 0.01


@given(st.sampled_from([0, 3, 8]), st.sampled_from([0.0, 0.9]), st.sampled_from([0.0, ALMOST_ONE, 1.0]), SEEDS)
def test_the_impossible_is_never_drawn(top_k: int, top_p: float, number: float, seed: int):
    logits = make_logits(1, 6, 8, seed=seed)
    logits[..., 0] = logits[..., -1] = -torch.inf
    logits[..., 1] = -200  # a probability that underflows
    codes = sample(logits, top_k, top_p, 1.0, torch.full((1, 6), number))
    assert ((codes >= 2) & (codes <= 6)).all()


def test_temperature_divides_the_scores():
    logits, uniform = make_logits(2, 50, 30), torch.rand(2, 50)
    for top_k, top_p in ((0, 0.0), (9, 0.8)):
        expected = sample(logits / 0.5, top_k, top_p, 1.0, uniform)
        assert torch.equal(sample(logits, top_k, top_p, 0.5, uniform), expected)
    assert torch.equal(sample(logits, 0, 0.0, 1e-4, uniform), logits.argmax(dim=-1))


def test_scores_are_left_as_they_are():
    logits = make_logits(2, 3, 30)
    before = logits.clone()
    sample(logits, 5, 0.5, 0.7, torch.rand(2, 3))
    assert torch.equal(logits, before)


# ---- Generators ----


def numbers(generators: Generators, num_pictures: int, num_tokens: int = 5) -> torch.Tensor:
    uniform = generators.uniform(num_pictures, num_tokens, torch.device("cpu"))
    assert uniform.shape == (num_pictures, num_tokens) and uniform.dtype == torch.float32
    return uniform


def seeded(*seeds: int) -> torch.Tensor:
    return numbers(Generators(each=[torch.Generator().manual_seed(seed) for seed in seeds]), len(seeds))


def test_seeds():
    assert torch.equal(numbers(make_generators(7, None, 2, 3), 6), seeded(7, 8, 9, 10, 11, 12))
    assert torch.equal(numbers(make_generators([7, 50], None, 2, 3), 6), seeded(7, 8, 9, 50, 51, 52))
    assert torch.equal(numbers(make_generators((7, 50), None, 2, 1), 2), seeded(7, 50))
    assert torch.equal(numbers(make_generators(torch.tensor([7, 50]), None, 2, 1), 2), seeded(7, 50))


def test_generators():
    each = [torch.Generator().manual_seed(seed) for seed in (3, 1)]
    assert torch.equal(numbers(make_generators(None, each, 1, 2), 2), seeded(3, 1))
    shared = make_generators(None, torch.Generator().manual_seed(3), 1, 2)
    assert torch.equal(numbers(shared, 2), torch.rand(2, 5, generator=torch.Generator().manual_seed(3)))
    torch.manual_seed(4)
    expected = torch.rand(2, 5)
    torch.manual_seed(4)
    assert torch.equal(numbers(make_generators(None, None, 1, 2), 2), expected)


@pytest.mark.parametrize("generator", [0, [1], "cpu"])
def test_no_generators(generator: Any):
    with pytest.raises(ValueError, match="expected a torch.Generator, or one for each picture; got"):
        make_generators(None, generator, 1, 1)


def test_pictures_draw_their_own_numbers_over_time():
    alone = [make_generators(seed, None, 1, 1) for seed in (5, 6)]
    together = make_generators(5, None, 2, 1)
    for num_tokens in (1, 4, 9):
        expected = torch.cat([numbers(source, 1, num_tokens) for source in alone])
        assert torch.equal(numbers(together, 2, num_tokens), expected)


def test_some_of_the_pictures():
    generators = make_generators(0, None, 4, 1)
    assert torch.equal(numbers(generators.select(torch.tensor([3, 1])), 2), seeded(3, 1))
    shared = make_generators(None, torch.Generator(), 4, 1)
    assert shared.select(torch.tensor([3, 1])) is shared


def test_candidates_have_generators_that_follow_from_the_first():
    expected = seeded(7, 8)
    several = [numbers(more_generators(make_generators(7, None, 2, 1), 3), 6) for _ in range(2)]
    assert torch.equal(*several)
    assert torch.equal(several[0][::3], expected)
    assert len({tuple(row) for row in several[0].tolist()}) == 6
    more = numbers(more_generators(make_generators(7, None, 2, 1), 4), 8)
    assert torch.equal(more.view(2, 4, -1)[:, :3].flatten(0, 1), several[0])
    one = make_generators(7, None, 2, 1)
    assert more_generators(one, 1) is one
    shared = make_generators(None, None, 2, 1)
    assert more_generators(shared, 3) is shared


def test_seeds_leave_torchs_generator_alone():
    before = torch.get_rng_state()
    numbers(more_generators(make_generators(7, None, 2, 1), 3), 6)
    assert torch.equal(torch.get_rng_state(), before)


def test_wrong_numbers_of_seeds_and_generators():
    with pytest.raises(ValueError, match="each of 2 prompts; got 3"):
        make_generators([1, 2, 3], None, 2, 3)
    with pytest.raises(ValueError, match="each of 6 pictures; got 2"):
        make_generators(None, [torch.Generator()] * 2, 2, 3)
    with pytest.raises(ValueError, match="not both"):
        make_generators(1, torch.Generator(), 2, 3)


# ---- Settings ----


def settings(**overrides: Any) -> Sampling:
    values = {**default_generation_config().to_dict(), **overrides}
    return Sampling.from_config(GenerationConfig(**values))


def test_default_settings_are_the_papers():
    sampling = settings()
    assert (sampling.top_k, sampling.top_p) == ([1200, 100, 1], [0.8, 0.8, 0.0])
    assert (sampling.guidance_scale, sampling.temperature, sampling.attend_to_refined) == (7.5, 1.0, False)


def test_a_number_counts_for_every_pass():
    sampling = settings(top_k=5)
    assert (sampling.top_k, sampling.top_p) == ([5, 5, 5], [0.8, 0.8, 0.0])
    sampling = settings(top_k=[9, 1], top_p=0.5)
    assert (sampling.top_k, sampling.top_p) == ([9, 1], [0.5, 0.5])
    sampling = settings(top_k=0, top_p=0)
    assert (sampling.top_k, sampling.top_p) == ([0], [0])
    sampling = settings(top_k=[5], top_p=[0.5])
    assert (sampling.top_k, sampling.top_p) == ([5], [0.5])


def test_greedy_settings():
    assert settings(do_sample=False).top_k == [1, 1, 1]


def test_guidance_over_the_scales():
    assert [settings().guidance(index, 4) for index in range(4)] == [0.0, 2.5, 5.0, 7.5]
    constant = settings(guidance_schedule="constant", guidance_scale=3)
    assert [constant.guidance(index, 4) for index in range(4)] == [3.0] * 4
    assert settings().guidance(0, 1) == 7.5
    assert settings(guidance_scale=None).guidance_scale == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"top_k": [5, 1]}, r"entry per pass each; got \[5, 1\] and \[0.8, 0.8, 0.0\]"),
        ({"top_k": [], "top_p": []}, "entry per pass"),
        ({"top_k": [5, -1, 1]}, "top_k must hold whole numbers"),
        ({"top_k": -1}, "top_k must hold whole numbers"),
        ({"top_k": [5, 2.0, 1]}, "top_k must hold whole numbers"),
        ({"top_p": [0.5, 1.5, 0.0]}, r"top_p must lie in \[0, 1\]"),
        ({"top_p": [0.5, -0.1, 0.0]}, r"top_p must lie in \[0, 1\]"),
        ({"top_p": [0.5, float("nan"), 0.0]}, r"top_p must lie in \[0, 1\]"),
        ({"guidance_scale": -1.0}, "guidance_scale must be from 0 to 10,000"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be from 0 to 10,000"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be from 0 to 10,000"),
        ({"guidance_schedule": "cosine"}, "'linear' or 'constant'; got 'cosine'"),
    ],
)
def test_impossible_settings(overrides: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        settings(**overrides)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_numbers_of_any_library(kind: Any):
    config = default_generation_config()
    config.top_k, config.top_p = kind([1200, 100]), kind([0.5, 0.25])
    found = Sampling.from_config(config)
    assert found.top_k == [1200, 100] and found.top_p == [0.5, 0.25]
    logits, uniform = make_logits(1, 3, 4096), torch.rand(1, 3)
    assert torch.equal(sample(logits, np.int64(100), 0.5, 1.0, uniform), sample(logits, 100, 0.5, 1.0, uniform))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_impossible_temperatures(temperature: float):
    config = default_generation_config()
    config.temperature = temperature  # which its constructor refuses in words of its own
    with pytest.raises(ValueError, match="temperature must be above 0"):
        Sampling.from_config(config)


@pytest.mark.parametrize(("top_k", "top_p"), [([5], [0.5, 0.0]), ([5, 1], [0.5]), ([], 0.5), ([5, 1], [])])
def test_lists_are_of_one_length(top_k: Any, top_p: Any):
    config = default_generation_config()
    config.top_k, config.top_p = top_k, top_p
    with pytest.raises(ValueError, match="an entry per pass each.*A number counts for every pass"):
        Sampling.from_config(config)


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (3, 3),
        (np.int64(3), 3),
        (torch.tensor(3), 3),
        (range(3, 5), [3, 4]),
        (np.array([3, 4]), [3, 4]),
        (torch.tensor([3, 4]), [3, 4]),
        ((3, np.int32(4)), [3, 4]),
        (2**63, 2**63),
        (None, None),
    ],
)
def test_seeds_of_all_kinds(seed: Any, expected: Any):
    assert plain_seeds(seed) == expected
    assert {type(value) for value in (expected if isinstance(expected, list) else [expected])} <= {int, type(None)}


@pytest.mark.parametrize("seed", [0.5, "seven", [1, None], [[1]], torch.tensor([0.5])])
def test_no_seeds(seed: Any):
    with pytest.raises(ValueError, match="a seed is a whole number"):
        plain_seeds(seed)
