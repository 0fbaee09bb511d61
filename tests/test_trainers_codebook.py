# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Codebooks from data."""

import pytest
import torch
from tiny_models import pictures, tiny_model
from tiny_training import picture_dataset, tiny_trainer
from torch.nn import functional as F

from transformers_tokenflow import TokenFlowModel
from transformers_tokenflow.trainers.codebook import (
    initialize_codebook,
    quantizer_inputs,
    residual_tokens,
    restart_unused_entries,
)


def real_pictures(count: int = 16) -> torch.Tensor:
    """(count, 3, 32, 32) in [-1, 1]"""
    return torch.stack([item["pixel_values"] for item in picture_dataset(count)])


@torch.no_grad()
def features_of(model: TokenFlowModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """(B, 12, 4, 4)"""
    return model.extract_features(pixel_values)


@torch.no_grad()
def quantization_error(model: TokenFlowModel, pixel_values: torch.Tensor) -> float:
    return model(pixel_values, return_loss=True).codebook_loss.item()


@pytest.mark.parametrize("kind", ["clip", "pixel", "semantic"])
def test_kmeans_lowers_the_error(kind):
    model, pixel_values = tiny_model(kind), real_pictures()
    before = quantization_error(model, pixel_values)
    initialize_codebook(model.quantizer, features_of(model, pixel_values).split(4), seed=0)
    assert quantization_error(model, pixel_values) < 0.7 * before
    for entries in model.quantizer.codebook.parameters():
        if entries.shape[1] > 0:
            torch.testing.assert_close(entries.norm(dim=1), torch.ones(48))
            assert entries.requires_grad


def test_kmeans_is_repeatable():
    codebooks = []
    for _ in range(2):
        model = tiny_model()
        initialize_codebook(model.quantizer, [features_of(model, real_pictures())], seed=3)
        codebooks.append(model.quantizer.codebook())
    assert torch.equal(*codebooks)


def test_too_few_tokens_for_kmeans():
    model = tiny_model()
    with pytest.raises(ValueError, match="48 entries needs at least as many tokens; .* give 42"):
        initialize_codebook(model.quantizer, [features_of(model, real_pictures(2))])


def test_what_is_quantised_is_seen_in_a_forward_pass():
    model, pixel_values = tiny_model(), real_pictures(2)
    assert torch.equal(quantizer_inputs(model, pixel_values), features_of(model, pixel_values))
    assert not model.quantizer._forward_pre_hooks


def test_residual_tokens_are_what_exact_quantisation_would_see():
    model = tiny_model(scales=[4])
    features = model.extract_features(pictures(model.config))
    expected = model.quantizer.normalize(features).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(residual_tokens(model.quantizer, features), expected)
    model = tiny_model()
    tokens = residual_tokens(model.quantizer, features)
    assert tokens.shape == (2 * (1 + 4 + 16), 12)
    for part in tokens.split([8, 4], dim=1):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(42))


def test_restart_moves_only_unused_entries():
    model, pixel_values = tiny_model(), real_pictures(8)
    used = torch.rand(48) < 0.5
    before = [entries.detach().clone() for entries in model.quantizer.codebook.parameters()]
    features = features_of(model, pixel_values)
    moved = restart_unused_entries(model.quantizer, used, features)
    assert moved == (~used).sum()
    tokens = residual_tokens(model.quantizer, features).split([8, 4], dim=1)
    for entries, old, candidates in zip(model.quantizer.codebook.parameters(), before, tokens, strict=True):
        assert torch.equal((entries != old).any(dim=1), ~used)
        nearest = torch.cdist(entries[~used], F.normalize(candidates, dim=1)).amin(dim=1)
        assert nearest.max() < 1e-3
    assert restart_unused_entries(model.quantizer, torch.ones(48, dtype=torch.bool), features) == 0


def test_restart_with_fewer_tokens_than_unused_entries():
    model = tiny_model()
    features = features_of(model, real_pictures(1))
    assert restart_unused_entries(model.quantizer, torch.zeros(48, dtype=torch.bool), features) == 21


def test_trainer_initialises_and_restarts_codebook_and_average_alike(tmp_path):
    trainer = tiny_trainer(
        tmp_path,
        ema_decay=0.9,
        codebook_initialization="kmeans",
        codebook_restart_steps=2,
        max_steps=8,
        learning_rate=0.0,
    )
    random_codebook = trainer.model.quantizer.codebook().detach().clone()
    trainer.initialize_codebook()
    codebooks = [model.quantizer.codebook for model in (trainer.model, trainer.averaged.module)]
    assert not torch.equal(codebooks[0](), random_codebook)
    assert torch.equal(codebooks[0](), codebooks[1]())
    moves = []
    restart = trainer._restart_codebook
    trainer._restart_codebook = lambda model: (moves.append(trainer.state.global_step + 1), restart(model))
    trainer.train()
    # The last interval moves nothing; the averaged model's entries move with the model's, not by and by.
    assert moves == [2, 4, 6]
    torch.testing.assert_close(codebooks[0](), codebooks[1]())


def test_a_codebook_in_training_is_not_clustered_again(tmp_path):
    trainer = tiny_trainer(tmp_path, codebook_initialization="kmeans", max_steps=1)
    clustered = []
    trainer.initialize_codebook = lambda: clustered.append(trainer.state.global_step)
    trainer.train()
    trainer.train()
    assert clustered == [0]
