# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
import copy

import pytest
import torch
from tiny_models import tiny_model, tiny_understanding
from torch import nn

from transformers_tokenflow.trainers.optimizers import MuonWithAdamW, layer_matrices


class Layered(nn.Module):
    """A table, two layers with a matrix and a bias each, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(7, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.head = nn.Linear(6, 7)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed_tokens(ids)
        for layer in self.layers:
            hidden = hidden + layer(hidden).tanh()
        return self.head(hidden)


def groups(model: nn.Module) -> list[dict]:
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim == 1]
    return [
        {"params": decayed, "lr": 0.02, "weight_decay": 0.1},
        {"params": others, "lr": 0.02, "weight_decay": 0.0},
    ]


def make(model: nn.Module) -> MuonWithAdamW:
    return MuonWithAdamW(groups(model), layer_matrices(model), betas=(0.9, 0.95))


def train(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int) -> None:
    ids = torch.arange(7)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(ids), ids)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()


def test_only_matrices_of_layers():
    model = Layered()
    assert layer_matrices(model) == {layer.weight for layer in model.layers}
    understanding = tiny_understanding()
    names = {name for name, p in understanding.named_parameters() if p in layer_matrices(understanding)}
    assert len(names) == 2 * 7 and all(name.startswith("model.language_model.layers.") for name in names)


def test_each_does_its_part():
    model = Layered()
    twin = copy.deepcopy(model)
    train(model, [make(model)], 3)
    matrices = [layer.weight for layer in twin.layers]
    rest = [p for p in twin.parameters() if all(p is not matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim == 2], "weight_decay": 0.1},
            {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=0.02,
        betas=(0.9, 0.95),
    )
    train(twin, [muon, adamw], 3)
    for own, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own, expected)


def test_a_schedule_reaches_both():
    model = Layered()
    optimizer = make(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    train(model, [optimizer], 1)
    schedule.step()
    rates = {group["lr"] for part in (optimizer.muon, optimizer.adamw) for group in part.param_groups}
    assert rates == {0.01}
    optimizer.load_state_dict(optimizer.state_dict())
    schedule.step()
    assert {group["lr"] for part in (optimizer.muon, optimizer.adamw) for group in part.param_groups} == {0.005}


def test_resumed_equals_uninterrupted():
    whole = Layered()
    train(whole, [make(whole)], 6)
    first = Layered()
    optimizer = make(first)
    train(first, [optimizer], 3)
    state = copy.deepcopy(optimizer.state_dict())
    second = Layered()
    second.load_state_dict(first.state_dict())
    resumed = make(second)
    resumed.load_state_dict(state)
    train(second, [resumed], 3)
    for own, expected in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(own, expected)


def test_nothing_for_muon():
    model = tiny_model("pixel")
    with pytest.raises(ValueError, match="needs matrices in layers"):
        MuonWithAdamW([{"params": list(model.parameters()), "lr": 0.1, "weight_decay": 0.0}], layer_matrices(model))
