# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Attention by matrix products, for processors on which torch's kernel gains nothing from bf16."""

import itertools
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import repeat_kv

# Torch's kernel has bf16 products of its own for AMX; with those of AVX-512 alone it takes as long as in fp32.
PREFERS_PRODUCTS = torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
# Of a row, whatever the batch, for the same seed gives the same picture; and to keep for a backward pass (bf16: 32 MB).
# With more torch's kernel, which holds none, is taken.
MOST_SCORES_OF_ROW, MOST_SCORES = 2**23, 2**24
# Scores that are made at a time (bf16: 4 MB), at least of a row, so that they stay in the processor's cache.
SCORES_CHUNK = 2**21

is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def prefers_products(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether products are faster than torch's kernel, for (B, heads, T, head_dim) and (B, key heads, S, head_dim)."""
    if not PREFERS_PRODUCTS or query.device.type != "cpu" or is_exporting():
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    of_row = query.shape[1] * query.shape[2] * key.shape[2]
    # The backward pass keeps the scores of all rows.
    is_small = of_row <= MOST_SCORES_OF_ROW and not (torch.is_grad_enabled() and len(query) * of_row > MOST_SCORES)
    return dtype == torch.bfloat16 and is_small


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
    num_rows = max(1, SCORES_CHUNK // (query.shape[1] * query.shape[2] * key.shape[2]))
    has_row_masks = attention_mask is not None and len(attention_mask) > 1
    masks = attention_mask.split(num_rows) if has_row_masks else itertools.repeat(attention_mask)
    # Unlike slices', the backward pass of `split` joins gradients once.
    parts = zip(query.split(num_rows), key.split(num_rows), value.split(num_rows), masks, strict=False)
    outputs = [attended(*part, scaling=scaling) for part in parts]
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return output.transpose(1, 2).contiguous(), None


def attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """The same with all scores in memory: (B, heads, T, head_dim)."""
    scores = torch.matmul(query * scaling, key.transpose(-1, -2))
    if mask is not None:
        scores += as_numbers(mask, scores.dtype)  # in the scores' dtype, which autocast may choose
    return torch.matmul(scores.softmax(dim=-1), value)


def as_numbers(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores: at keys that are hidden the least number, not -inf, so that no row is ever NaN."""
    least = torch.finfo(dtype).min
    if mask.dtype != torch.bool:
        return mask.clamp(min=least).to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, least)
