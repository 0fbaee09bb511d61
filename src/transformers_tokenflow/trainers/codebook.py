# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Codebooks from data: k-means before training, and new entries in place of unused ones during it."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

from ..quantization_tokenflow import TokenFlowQuantizer, pool, resize, to_tokens
from .sharding import reshard


@torch.no_grad()
def residual_tokens(quantizer: TokenFlowQuantizer, features: torch.Tensor) -> torch.Tensor:
    """
    The normalised vectors that the scales would quantise if every scale were quantised without error.

    Args:
        features: (B, D, H, H).

    Returns:
        (B · L, D)
    """
    residual, tokens = features.float(), []
    for scale in quantizer.scales:
        normalized = quantizer.normalize(pool(residual, scale))
        tokens.append(to_tokens(normalized).flatten(0, 1))
        residual = residual - resize(normalized, features.shape[-1])
    return torch.cat(tokens)


@torch.no_grad()
def quantizer_inputs(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    What a tokenizer quantises of pictures: (B, 3, H, H) in [-1, 1] -> (B, D, h, h).

    It takes a whole forward pass, since weights that are sharded are gathered in no other call.
    """
    seen: list[torch.Tensor] = []
    hook = model.quantizer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        model(pixel_values)
    finally:
        hook.remove()
        reshard(model)
    return seen[0]


@torch.no_grad()
def initialize_codebook(quantizer: TokenFlowQuantizer, features: Iterable[torch.Tensor], seed: int = 0) -> None:
    """
    Set both codebooks to the k-means centres of data, clustered jointly so that the index stays shared.

    Args:
        quantizer: the tokenizer's.
        features: batches (B, D, h, h) of `quantizer_inputs`; they should give several times `codebook_size` tokens.
        seed: of the clustering.

    Raises:
        ValueError: there are fewer tokens than entries.
    """
    from sklearn.cluster import MiniBatchKMeans

    tokens = torch.cat([residual_tokens(quantizer, batch).cpu() for batch in features])
    num_entries = len(quantizer.codebook.semantic)
    if len(tokens) < num_entries:
        raise ValueError(
            f"k-means of {num_entries} entries needs at least as many tokens; the pictures that it sees give "
            f"{len(tokens)}: show it more (codebook_initialization_batches, per_device_train_batch_size, the data), or "
            "leave codebook_initialization at random"
        )
    # Euclidean distance of vectors scaled by the root of a weight is the weighted distance.
    scaling = torch.ones(tokens.shape[1])
    scaling[quantizer.dims[0] :] = max(quantizer.distance_weight, 1e-6) ** 0.5
    clustering = MiniBatchKMeans(
        num_entries, init="random", n_init=1, batch_size=4 * num_entries, max_iter=10, random_state=seed
    )
    centers = torch.from_numpy(clustering.fit((tokens * scaling).numpy()).cluster_centers_) / scaling
    set_entries(quantizer, torch.arange(num_entries), centers)


@torch.no_grad()
def restart_unused_entries(quantizer: TokenFlowQuantizer, used: torch.Tensor, features: torch.Tensor) -> int:
    """
    Move entries that no picture used to vectors of the current pictures, drawn from torch's global generator.

    Args:
        quantizer: the tokenizer's.
        used: (K,) bool.
        features: (B, D, h, h) of `quantizer_inputs`.

    Returns:
        How many entries were moved.
    """
    unused = (~used).nonzero().squeeze(1)
    if len(unused) == 0:
        return 0
    tokens = residual_tokens(quantizer, features)
    # Drawn on the CPU, whose generator a checkpoint restores, and without replacement as far as the tokens go.
    order = torch.randperm(len(tokens))[: len(unused)].to(tokens.device)
    unused = unused[torch.randperm(len(unused))[: len(order)].to(unused.device)]
    set_entries(quantizer, unused, tokens[order])
    return len(unused)


@torch.no_grad()
def set_entries(quantizer: TokenFlowQuantizer, index: torch.Tensor, vectors: torch.Tensor) -> None:
    """Overwrite the entries (N,) by (N, d_sem + d_pix), each part normalised."""
    parts = vectors.split(quantizer.dims, dim=1)
    for entries, part in zip((quantizer.codebook.semantic, quantizer.codebook.pixel), parts, strict=True):
        entries[index.to(entries.device)] = F.normalize(part, dim=-1).to(entries)
