# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
import copy
import pickle
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from transformers_tokenflow import TokenFlowQuantizer, quantization_tokenflow
from transformers_tokenflow.quantization_tokenflow import (
    TokenFlowCodebook,
    coupling_matrix,
    lifting_matrix,
    nearest_entries,
    pooling_matrix,
    prefix_lengths,
    resize,
    to_tokens,
)

SEEDS = st.integers(0, 2**16)
SCALES = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(sorted)


def make_quantizer(
    scales: list[int], size: int = 37, dims: tuple[int, int] = (5, 3), seed: int = 0, **kwargs: float
) -> TokenFlowQuantizer:
    quantizer = TokenFlowQuantizer(scales, size, *dims, **kwargs)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for entries in quantizer.codebook.parameters():
            entries.copy_(torch.randn(entries.shape, generator=generator))
    return quantizer.eval()


def make_features(batch: int, grid: int, dim: int = 8, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, dim, grid, grid, generator=torch.Generator().manual_seed(seed))


def squared_distances(quantizer: TokenFlowQuantizer, normalized: torch.Tensor) -> torch.Tensor:
    """d_sem + w · d_pix between every vector and every entry, in double precision: (B, h, w, K)."""
    vectors = normalized.permute(0, 2, 3, 1).double().split(quantizer.dims, dim=-1)
    entries = quantizer.codebook().detach().double().split(quantizer.dims, dim=-1)
    distances = [(v.unsqueeze(-2) - e).square().sum(-1) for v, e in zip(vectors, entries, strict=True)]
    return distances[0] + quantizer.distance_weight * distances[1]


# ---- The search ----


@given(
    st.integers(1, 150),
    st.integers(1, 300),
    st.integers(1, 6),
    st.sampled_from([1, 64, 1000, 2**23]),
    st.integers(1, 3),
    SEEDS,
)
def test_search_equals_brute_force_and_the_first_of_equals_wins(
    num_queries: int, num_keys: int, dim: int, chunk: int, largest: int, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    # Small integers: products are exact, and there are many ties.
    queries, keys = (
        torch.randint(-largest, largest + 1, (n, dim), generator=generator).float() for n in (num_queries, num_keys)
    )
    with mock.patch.object(quantization_tokenflow, "SEARCH_CHUNK", chunk):
        found = nearest_entries(queries, keys)
    scores = queries @ keys.T
    first = (scores == scores.amax(dim=1, keepdim=True)).int().argmax(dim=1)
    assert torch.equal(found, first)


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 200),
    st.sampled_from([(5, 3), (4, 0), (0, 4), (1, 1)]),
    st.floats(0, 4),
    SEEDS,
)
def test_codes_minimise_the_weighted_distance(
    batch: int, side: int, size: int, dims: tuple[int, int], weight: float, seed: int
):
    quantizer = make_quantizer([side], size, dims, seed, distance_weight=weight)
    normalized = quantizer.normalize(make_features(batch, side, sum(dims), seed + 1))
    distances = squared_distances(quantizer, normalized)
    found = quantizer.assign(to_tokens(normalized), quantizer.codebook()).unflatten(1, (side, side))
    chosen = distances.gather(-1, found.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(chosen, distances.amin(-1), atol=1e-5, rtol=0)


def test_the_weight_decides_between_the_codebooks():
    vectors = {"semantic": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "pixel": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}
    features = torch.tensor([1.0, 0.2, 1.0, 0.2]).view(1, 4, 1, 1)  # nearest to the first semantic, second pixel entry
    for weight, expected in ((0.5, 0), (2.0, 1)):
        quantizer = TokenFlowQuantizer([1], 2, 2, 2, distance_weight=weight).eval()
        quantizer.codebook.load_state_dict(vectors)
        assert quantizer(features).codes.item() == expected


def test_memory_of_the_search_is_bounded():
    sizes = []
    original = torch.mm

    def record(keys: torch.Tensor, queries: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        sizes.append(out.numel())
        return original(keys, queries, out=out)

    with (
        mock.patch.object(quantization_tokenflow, "CPU_SEARCH_CHUNK", 4096),
        mock.patch.object(torch, "mm", record),
    ):
        nearest_entries(torch.randn(1000, 4), torch.randn(96, 4))
    assert len(sizes) > 1 and max(sizes) <= 4096


# ---- Codes and features ----


@given(SCALES, st.integers(1, 3), SEEDS)
def test_codes_give_the_quantized_features_bit_for_bit(scales: list[int], batch: int, seed: int):
    quantizer = make_quantizer(scales, seed=seed)
    with torch.no_grad():
        output = quantizer(make_features(batch, scales[-1], seed=seed))
        features = quantizer.codes_to_features(output.codes)
    assert output.codes.shape == (batch, sum(scale**2 for scale in scales)) and output.codes.dtype == torch.long
    assert features.shape == (batch, len(scales), 8, scales[-1], scales[-1])
    assert torch.equal(features[:, -1], output.quantized)


@given(SCALES, SEEDS)
def test_a_prefix_gives_the_accumulated_features(scales: list[int], seed: int):
    quantizer = make_quantizer(scales, seed=seed)
    with torch.no_grad():
        codes = quantizer(make_features(2, scales[-1], seed=seed)).codes
        features = quantizer.codes_to_features(codes)
        for count, length in enumerate(prefix_lengths(scales), start=1):
            assert torch.equal(quantizer.codes_to_features(codes[:, :length]), features[:, :count])


@given(SCALES, SEEDS)
def test_a_batch_equals_its_items(scales: list[int], seed: int):
    quantizer = make_quantizer(scales, seed=seed)
    features = make_features(3, scales[-1], seed=seed)
    with torch.no_grad():
        together = quantizer(features).codes
        apart = torch.cat([quantizer(feature[None]).codes for feature in features])
    assert torch.equal(together, apart)


@given(SCALES, SEEDS)
def test_residual_pyramid(scales: list[int], seed: int):
    """The definition, step by step: area down, nearest entries, bicubic up, subtract."""
    quantizer = make_quantizer(scales, seed=seed)
    features = make_features(2, scales[-1], seed=seed)
    with torch.no_grad():
        output = quantizer(features)
        residual = features
        for codes in quantizer.split_codes(output.codes):
            side = codes.shape[-1]
            normalized = quantizer.normalize(F.interpolate(residual, size=side, mode="area"))
            distances = squared_distances(quantizer, normalized)
            chosen = distances.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
            torch.testing.assert_close(chosen, distances.amin(-1), atol=1e-5, rtol=0)
            residual = residual - resize(quantizer.codebook()[codes].permute(0, 3, 1, 2), scales[-1])
    torch.testing.assert_close(features - output.quantized, residual, atol=1e-5, rtol=0)


def test_one_scale_is_plain_vector_quantisation_and_stable():
    quantizer = make_quantizer([16])
    with torch.no_grad():
        first = quantizer(make_features(2, 16))
        again = quantizer(first.quantized)
    assert first.codes.shape == (2, 256)
    assert torch.equal(first.codes, again.codes) and torch.equal(first.quantized, again.quantized)


def test_entries_are_normalised_apart():
    quantizer = make_quantizer([3])
    with torch.no_grad():
        semantic, pixel = quantizer(make_features(2, 3)).quantized.split([5, 3], dim=1)
    torch.testing.assert_close(semantic.norm(dim=1), torch.ones(2, 3, 3))
    torch.testing.assert_close(pixel.norm(dim=1), torch.ones(2, 3, 3))


@pytest.mark.parametrize("dims", [(6, 0), (0, 6)])
def test_a_single_codebook(dims: tuple[int, int]):
    quantizer = make_quantizer([1, 3], dims=dims).train()
    features = make_features(2, 3, dim=6).requires_grad_()
    output = quantizer(features)
    (output.quantized.sum() + output.codebook_loss + output.commitment_loss).backward()
    assert features.grad.isfinite().all()
    used = quantizer.codebook.semantic if dims[0] else quantizer.codebook.pixel
    assert used.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_dtype(dtype: torch.dtype):
    quantizer = make_quantizer([1, 2])
    features = make_features(1, 2).to(dtype)
    with torch.no_grad():
        output, expected = quantizer(features), quantizer(features.float())
    assert output.quantized.dtype == dtype and torch.equal(output.codes, expected.codes)


def test_codes_of_any_integer_dtype():
    quantizer = make_quantizer([1, 2])
    codes = torch.tensor([[0, 1, 2, 3, 36]])
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(quantizer.codes_to_features(codes.to(dtype)), quantizer.codes_to_features(codes))


def test_autocast_changes_nothing():
    quantizer = make_quantizer([1, 2, 4], size=300).train()
    quantizer.entropy_weight = 0.1
    features = make_features(4, 4)
    expected = quantizer(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(features)
    for name, value in expected.items():
        assert torch.equal(output[name], value), name


def test_shapes_without_values():
    with torch.device("meta"):
        quantizer = TokenFlowQuantizer([1, 2, 4], 32, 5, 3).eval()
        output = quantizer(torch.empty(2, 8, 4, 4))
    assert output.codes.shape == (2, 21) and output.quantized.shape == (2, 8, 4, 4)


# ---- Scales ----


@given(st.sampled_from([[1, 4], [2, 4], [4], [1, 2, 4]]), SEEDS)
def test_scales_can_be_left_out(scales: list[int], seed: int):
    quantizer, smaller = make_quantizer([1, 2, 3, 4], seed=seed), make_quantizer(scales, seed=seed)
    features = make_features(2, 4, seed=seed)
    with torch.no_grad():
        output, expected = quantizer(features, scales=scales), smaller(features)
        assert torch.equal(output.codes, expected.codes) and torch.equal(output.quantized, expected.quantized)
        assert torch.equal(quantizer.codes_to_features(output.codes, scales=scales)[:, -1], output.quantized)


def test_scales_can_end_before_the_grid():
    quantizer = make_quantizer([1, 2, 4])
    output = quantizer(make_features(2, 4), scales=[1, 2])
    assert output.codes.shape == (2, 5) and output.quantized.shape == (2, 8, 4, 4)


def test_losses_are_averaged_over_the_scales_used():
    quantizer = make_quantizer([1, 2, 4], commitment_weight=0.5)
    features = make_features(2, 4)
    output = quantizer(features, scales=[1, 4])
    residual, losses = features, []
    for codes in quantizer.split_codes(output.codes, [1, 4]):
        chosen = quantizer.codebook()[codes].permute(0, 3, 1, 2)
        losses.append(F.mse_loss(quantizer.normalize(F.adaptive_avg_pool2d(residual, codes.shape[-1])), chosen))
        residual = residual - resize(chosen, 4)
    torch.testing.assert_close(output.codebook_loss, sum(losses) / 2)
    torch.testing.assert_close(output.commitment_loss, 0.5 * sum(losses) / 2)
    assert output.entropy_loss == 0


# ---- Next-scale inputs ----


@given(SCALES, SEEDS)
def test_next_scale_inputs_are_the_steps(scales: list[int], seed: int):
    quantizer = make_quantizer(scales, seed=seed)
    with torch.no_grad():
        codes = quantizer(make_features(2, scales[-1], seed=seed)).codes
        inputs = quantizer.next_scale_inputs(codes)
        assert inputs.shape == (2, sum(scale**2 for scale in scales[1:]), 8) and inputs.dtype == torch.float32
        features, start = None, 0
        for part, scale in zip(quantizer.split_codes(codes), scales[1:], strict=False):
            features = quantizer.next_scale_features(features, part, scale)
            step = inputs[:, start : start + scale**2]
            assert torch.equal(features.flatten(2).transpose(1, 2), step)
            start += scale**2
        # A prefix gives the inputs up to the scale after it.
        for count, length in enumerate(prefix_lengths(scales), start=1):
            known = sum(scale**2 for scale in scales[1 : count + 1])
            assert torch.equal(quantizer.next_scale_inputs(codes[:, :length]), inputs[:, :known])


@given(SCALES, SEEDS)
def test_inputs_of_refinement_passes_have_the_scales_own_codes_added(scales: list[int], seed: int):
    quantizer = make_quantizer(scales, seed=seed)
    with torch.no_grad():
        codes, drawn = (quantizer(make_features(2, scales[-1], seed=seed + offset)).codes for offset in (0, 1))
        added = quantizer.next_scale_inputs(codes, drawn_codes=drawn) - quantizer.next_scale_inputs(codes)
        expected = quantizer.codebook()[drawn[:, scales[0] ** 2 :]]
    torch.testing.assert_close(added, expected, atol=1e-5, rtol=1e-5)


@given(st.integers(1, 8), st.integers(1, 8), SEEDS)
def test_the_chain_of_two_scales_ends_at_the_decoded_features(first: int, second: int, seed: int):
    scales = sorted([first, second])
    quantizer = make_quantizer(scales, seed=seed)
    with torch.no_grad():
        codes = quantizer(make_features(2, scales[-1], seed=seed)).codes
        expected = quantizer.codes_to_features(codes)
        parts = quantizer.split_codes(codes)
        features = quantizer.next_scale_features(None, parts[0], scales[1])
        assert torch.equal(features, expected[:, 0])
        assert torch.equal(quantizer.next_scale_features(features, parts[1]), expected[:, 1])


@given(SCALES, SEEDS)
def test_the_chain_keeps_the_first_scale_exactly(scales: list[int], seed: int):
    """A 1 × 1 map stays constant however often it is resized, so that there chain and decoding agree."""
    scales = [1, *scales]
    quantizer = make_quantizer(scales, seed=seed)
    codes = torch.randint(37, (2, 1))
    with torch.no_grad():
        features = quantizer.next_scale_features(None, codes[:, :, None], scales[1])
        for scale in scales[2:]:
            features = resize(features, scale)
        expected = quantizer.codes_to_features(codes)[:, -1]
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


# ---- Errors ----


@pytest.mark.parametrize("shape", [(2, 0), (2, 2), (2, 4), (2, 6), (2, 22), (21,), (), (2, 3, 7)])
def test_codes_that_are_no_whole_scales(shape: tuple[int, ...]):
    quantizer = make_quantizer([1, 2, 4])
    for method in (quantizer.split_codes, quantizer.codes_to_features, quantizer.next_scale_inputs):
        with pytest.raises(ValueError, match=r"\[1, 5, 21\]"):
            method(torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("shape", [(2, 7, 4, 4), (2, 8, 4, 5), (2, 8, 3, 3), (8, 4, 4)])
def test_features_that_do_not_fit(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="expected features of shape"):
        make_quantizer([1, 2, 4])(torch.zeros(shape))


@pytest.mark.parametrize("scales", [[], [0, 4], [2, 1, 4]])
def test_scales_that_do_not_ascend(scales: list[int]):
    with pytest.raises(ValueError, match="scales are positive sides in ascending order"):
        make_quantizer([1, 2, 4])(make_features(2, 4), scales=scales)
    with pytest.raises(ValueError, match="scales are positive sides in ascending order"):
        make_quantizer(scales)
    quantizer = make_quantizer([1, 2, 4])
    codes = torch.zeros(2, sum(scale * scale for scale in scales), dtype=torch.long)
    for method in (quantizer.split_codes, quantizer.codes_to_features, quantizer.next_scale_inputs):
        with pytest.raises(ValueError, match="scales are positive sides in ascending order"):
            method(codes, scales)


@pytest.mark.parametrize("scales", [[1.0, 2.0, 4.0], np.array([1, 2, 4]), torch.tensor([1, 2, 4]), 4])
def test_scales_that_are_no_list_of_whole_numbers(scales: Any):
    with pytest.raises(ValueError, match="scales are a list of whole numbers; got"):
        make_quantizer([1, 2, 4])(make_features(2, 4), scales=scales)
    with pytest.raises(ValueError, match="scales are a list of whole numbers; got"):
        make_quantizer(scales)


# ---- Gradients ----


@given(SCALES, SEEDS)
def test_gradients_pass_straight_through_the_normalised_features(scales: list[int], seed: int):
    quantizer = make_quantizer(scales, seed=seed)
    features = make_features(2, scales[-1], seed=seed).requires_grad_()
    weights = make_features(2, scales[-1], seed=seed + 1)
    output = quantizer(features)
    (gradient,) = torch.autograd.grad((output.quantized * weights).sum(), features)

    # The same with what is carried from scale to scale held constant: a sum of linear maps of normalised features.
    carried, total = torch.zeros_like(weights), 0.0
    for codes in quantizer.split_codes(output.codes):
        normalized = quantizer.normalize(F.adaptive_avg_pool2d(features - carried, codes.shape[-1]))
        total = total + (resize(normalized, scales[-1]) * weights).sum()
        carried = carried + resize(quantizer.codebook()[codes].permute(0, 3, 1, 2), scales[-1]).detach()
    (expected,) = torch.autograd.grad(total, features)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)


def test_each_loss_reaches_its_side_alone():
    quantizer = make_quantizer([1, 2, 4]).train()
    features = make_features(2, 4).requires_grad_()
    output = quantizer(features)
    sources = [features, quantizer.codebook.semantic, quantizer.codebook.pixel]

    def reached(loss: torch.Tensor) -> list[bool]:
        gradients = torch.autograd.grad(loss, sources, retain_graph=True, allow_unused=True)
        return [gradient is not None and bool(gradient.any()) for gradient in gradients]

    assert reached(output.codebook_loss) == [False, True, True]
    assert reached(output.commitment_loss) == [True, False, False]


def test_backward_keeps_no_scores():
    size, grid, batch = 1024, 8, 4
    quantizer = make_quantizer([1, grid], size).train()
    features = make_features(batch, grid).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.untyped_storage().nbytes() // 4) or tensor, lambda t: t
    ):
        output = quantizer(features)
        (output.quantized.sum() + output.codebook_loss + output.commitment_loss).backward()
    assert kept and max(kept) <= max(features.numel(), size * 8)
    assert max(kept) < batch * grid * grid * size / 16


@given(st.floats(0, 3), SEEDS)
def test_entropy_is_the_straightforward_formulation(weight: float, seed: int):
    quantizer = make_quantizer([2], size=11, seed=seed, distance_weight=weight, entropy_weight=0.3)
    features = make_features(2, 2, seed=seed)
    assert quantizer(features).entropy_loss == 0  # nothing to train in evaluation
    assignment = (-squared_distances(quantizer, quantizer.normalize(features)) / 0.01).softmax(-1).flatten(0, 2)
    mean_entropy = -(assignment * assignment.clamp_min(1e-300).log()).sum(-1).mean()
    mean = assignment.mean(0)
    entropy_of_mean = -(mean * mean.clamp_min(1e-300).log()).sum()
    expected = 0.3 * (mean_entropy - entropy_of_mean)
    torch.testing.assert_close(
        quantizer.train()(features).entropy_loss, expected.float(), atol=1e-4, rtol=1e-3, check_dtype=False
    )


def test_entropy_has_gradients():
    quantizer = make_quantizer([1, 2], entropy_weight=0.1).train()
    features = make_features(2, 2).requires_grad_()
    quantizer(features).entropy_loss.backward()
    gradients = [features.grad, *(entries.grad for entries in quantizer.codebook.parameters())]
    assert all(gradient.isfinite().all() for gradient in gradients) and gradients[0].abs().sum() > 0


# ---- The table of normalised entries ----


def fresh_table(codebook: TokenFlowCodebook) -> torch.Tensor:
    parts = [F.normalize(part.detach().float(), dim=-1) for part in (codebook.semantic, codebook.pixel)]
    return torch.cat(parts, dim=-1)


def optimizer_step(codebook: TokenFlowCodebook):
    optimizer = torch.optim.SGD(codebook.parameters(), lr=1.0)
    with torch.enable_grad():
        codebook().square().sum().backward()
        codebook().mul(torch.arange(8.0)).sum().backward()
    optimizer.step()


def averaged_weights(codebook: TokenFlowCodebook):
    averaged = AveragedModel(codebook, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    averaged.module = codebook
    averaged.n_averaged.fill_(1)
    averaged.update_parameters(make_quantizer([1], seed=5).codebook)


CHANGES: dict[str, Callable[[TokenFlowCodebook], object]] = {
    "load_state_dict": lambda codebook: codebook.load_state_dict(make_quantizer([1], seed=5).codebook.state_dict()),
    "assigned": lambda codebook: codebook.load_state_dict(
        make_quantizer([1], seed=5).codebook.state_dict(), assign=True
    ),
    "optimizer": optimizer_step,
    "average": averaged_weights,
    "in place": lambda codebook: codebook.pixel.mul_(torch.arange(3.0) - 1),
    "one row": lambda codebook: codebook.semantic.__setitem__(3, torch.ones(5)),
    "half precision": lambda codebook: setattr(codebook.semantic, "data", codebook.semantic.data.to(torch.bfloat16)),
    "data and mode": lambda codebook: (codebook.pixel.data.neg_(), codebook.train(), codebook.eval()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_table_follows_the_entries(change: str):
    codebook = make_quantizer([1]).codebook
    with torch.no_grad():
        before = codebook()
        assert codebook() is before
        assert torch.equal(before, fresh_table(codebook))
        CHANGES[change](codebook)
        after = codebook()
        assert torch.equal(after, fresh_table(codebook))
        assert not torch.equal(after, before)
        assert codebook() is after


@pytest.mark.parametrize(
    "change", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.to("cpu").bfloat16()]
)
def test_entries_are_never_made_halves(change: Callable):
    """Where `.to` casts a model, as pipelines do, small differences must decide codes as before."""
    quantizer = make_quantizer([1, 2])
    entries = quantizer.codebook.semantic.clone()
    change(quantizer)
    assert quantizer.codebook.semantic.dtype == torch.float32 and torch.equal(quantizer.codebook.semantic, entries)
    assert quantizer.double().codebook.semantic.dtype == torch.float64
    assert quantizer.to("meta").codebook.semantic.is_meta
    assert quantizer.to_empty(device="cpu").codebook.semantic.device.type == "cpu"


def test_entries_of_a_model_made_in_half_precision_are_none():
    torch.set_default_dtype(torch.bfloat16)
    try:
        quantizer = make_quantizer([1, 2])
    finally:
        torch.set_default_dtype(torch.float32)
    assert {entries.dtype for entries in quantizer.codebook.parameters()} == {torch.float32}


def test_the_table_is_not_kept_in_training_nor_with_gradients():
    codebook = make_quantizer([1]).codebook
    assert codebook() is not codebook() and codebook().requires_grad
    with torch.no_grad():
        codebook.train()
        assert codebook() is not codebook()


def test_the_table_survives_inference_mode():
    quantizer = make_quantizer([1, 2])
    features = make_features(1, 2)
    with torch.inference_mode():
        expected = quantizer(features).codes
    with torch.no_grad():
        assert torch.equal(quantizer(features).codes, expected)
    quantizer(features.requires_grad_()).commitment_loss.backward()
    with torch.inference_mode():
        assert torch.equal(make_quantizer([1, 2])(features).codes, expected)


def test_what_is_written_behind_torchs_back_counts():
    """As averaged weights are put in a model's place, by diffusers and others."""
    quantizer, features = make_quantizer([1, 2]).eval(), make_features(1, 2)
    with torch.no_grad():
        before = quantizer(features).codes
        for part in quantizer.codebook.parameters():
            part.data.copy_(part.data.flip(0))
        assert torch.equal(quantizer(features).codes, len(quantizer.codebook.pixel) - 1 - before)


def test_frozen_entries_are_normalised_once_also_with_gradients():
    quantizer, features = make_quantizer([1, 2, 3]).eval().requires_grad_(False), make_features(1, 3)
    with mock.patch.object(quantizer.codebook, "_entries", wraps=quantizer.codebook._entries) as made:
        codes = quantizer(features.requires_grad_()).codes
        quantizer.next_scale_inputs(codes)
    assert made.call_count == 1


def test_entries_learn_from_the_quantisers_losses_alone_whatever_is_frozen():
    quantizer, features = make_quantizer([1, 2]), make_features(1, 2)
    assert not quantizer(features).quantized.requires_grad
    quantizer(features).codebook_loss.backward()
    assert quantizer.codebook.pixel.grad.abs().sum() > 0


def test_a_new_quantiser_has_entries():
    torch.manual_seed(0)
    quantizer = TokenFlowQuantizer([1, 2, 4], 512)
    output = quantizer(torch.randn(2, 40, 4, 4))
    assert output.codebook_loss.isfinite() and len(output.codes.unique()) > 20


def test_the_quantised_features_are_contiguous():
    assert make_quantizer([1, 2])(make_features(2, 2)).quantized.is_contiguous()


def test_one_scale_needs_no_coupling():
    with mock.patch.object(quantization_tokenflow, "coupling_matrix", side_effect=AssertionError):
        make_quantizer([4])(make_features(1, 4))


def test_what_an_export_traces_is_not_kept():
    quantizer, features = make_quantizer([1, 2, 5]).eval(), make_features(1, 5)
    for matrix in (pooling_matrix, coupling_matrix, lifting_matrix):
        matrix.__closure__[0].cell_contents.cache_clear()

    class Codes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.quantizer = quantizer

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.quantizer(features, return_loss=False).codes

    exported = torch.export.export(Codes(), (features,))
    assert type(pooling_matrix((1, 2, 5), 5, features.device)) is torch.Tensor
    assert torch.equal(exported.module()(features), quantizer(features).codes)


def test_compiled_once_for_all_numbers_of_pictures():
    torch.compiler.reset()
    quantizer = make_quantizer([1, 2]).eval()
    compiled = torch.compile(quantizer, backend="eager", fullgraph=True)
    with torch.no_grad(), mock.patch.object(torch._dynamo.config, "recompile_limit", 2):
        for number in range(1, 7):
            features = make_features(number, 2)
            assert torch.equal(compiled(features).codes, quantizer(features).codes)
    torch.compiler.reset()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_entries_that_are_no_numbers(value: float):
    """A search would find them wherever they are; in training it is the loss that tells."""
    quantizer, features = make_quantizer([1, 2]).eval(), make_features(1, 2)
    with torch.no_grad():
        quantizer.codebook.pixel[3, 1] = value
    with pytest.raises(ValueError, match="codebook holds entries that are no finite numbers"):
        quantizer(features)
    with torch.no_grad(), pytest.raises(ValueError, match="no finite numbers"):
        quantizer.codes_to_features(torch.zeros(1, 5, dtype=torch.long))
    assert quantizer.train()(features).codes.shape == (1, 5)


def test_copies_and_pickles_leave_the_table_behind():
    codebook = make_quantizer([1]).codebook
    with torch.inference_mode():
        codebook()
    for other in (copy.deepcopy(codebook), pickle.loads(pickle.dumps(codebook))):
        assert other._cache is None
        with torch.no_grad():
            assert torch.equal(other(), fresh_table(codebook))
    assert codebook.state_dict().keys() == {"semantic", "pixel"}
