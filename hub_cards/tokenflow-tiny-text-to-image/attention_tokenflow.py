# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Attention by matrix products, for processors on which torch's kernel gains nothing from bf16."""

from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import repeat_kv

# Torch's kernel has bf16 products of its own for AMX; with those of AVX-512 alone it takes as long as in fp32.
PREFERS_PRODUCTS = torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
# Scores to hold at a time (bf16: 32 MB): torch's kernel, which holds none, does what needs more.
MOST_SCORES = 2**24


def prefers_products(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether products are faster than torch's kernel, for (B, heads, T, head_dim) and (B, key heads, S, head_dim)."""
    if not PREFERS_PRODUCTS or query.device.type != "cpu":
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    return dtype == torch.bfloat16 and query.shape[:-1].numel() * key.shape[-2] <= MOST_SCORES


def product_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    Attention as transformers' attention interface has it, without dropout.

    Args:
        module: whose attention it is.
        query: (B, heads, T, head_dim).
        key, value: (B, key heads, S, head_dim).
        attention_mask: broadcasts to (B, heads, T, S): true at what is seen, or numbers that are added to scores. None
            shows all.
        scaling: of the scores.

    Returns:
        (B, T, heads, head_dim), and no weights.
    """
    key, value = (repeat_kv(part, query.shape[1] // key.shape[1]) for part in (key, value))
    scores = torch.matmul(query * scaling, key.transpose(-1, -2))
    if attention_mask is not None:
        scores += as_numbers(attention_mask, scores.dtype)
    return torch.matmul(scores.softmax(dim=-1), value).transpose(1, 2).contiguous(), None


def as_numbers(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores: the least number where a mask of truth values hides a key, not -inf, nor ever NaN."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
