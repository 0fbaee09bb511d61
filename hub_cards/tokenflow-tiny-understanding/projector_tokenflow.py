# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""From quantised features to a language model: what the generator and the understanding model share."""

import torch
from torch import nn
from torch.nn import functional as F


class TokenFlowProjector(nn.Module):
    """Two linear layers from quantised features to a language model's hidden size."""

    def __init__(self, in_features: int, hidden_size: int):
        super().__init__()
        self.linear_1 = nn.Linear(in_features, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., in_features) of any dtype -> (..., hidden_size)"""
        return self.linear_2(F.gelu(self.linear_1(features.to(self.linear_1.weight.dtype))))


__all__ = ["TokenFlowProjector"]
