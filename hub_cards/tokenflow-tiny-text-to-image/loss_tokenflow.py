# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Cross-entropy over a large vocabulary without copies of its scores in fp32."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Scores to take at a time (fp32: 2 MB), which stay in the processor's cache.
CHUNK = 2**19


def cross_entropy(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    What `F.cross_entropy(scores.float(), targets)` gives; its gradient, the first alone, has the scores' dtype.

    Torch holds the scores in fp32, their logarithms and gradients at a time; here nothing but the gradient is as large
    as the scores. `F.linear_cross_entropy` of torch 2.14, which holds neither, is up to six times slower than torch's.

    Args:
        scores: (T, K) floating point.
        targets: (T,) long, -100 where none is to be learned.

    Returns:
        () fp32: the mean over what is to be learned, NaN if there is nothing.
    """
    # Compilation makes one computation of it by itself; functorch's transforms know torch's functions alone.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return F.cross_entropy(scores.float(), targets)
    return _CrossEntropy.apply(scores, targets)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        places = targets.clamp(min=0)[:, None]
        is_learned = (targets >= 0)[:, None]
        best = scores.amax(dim=1, keepdim=True).float()
        sums = [shifted.exp_().sum(dim=1, keepdim=True) for _, shifted in shifted_chunks(scores, best)]
        norms = best + torch.cat(sums).log_()
        losses = (norms - scores.gather(1, places).float()).masked_fill(~is_learned, 0.0)
        ctx.save_for_backward(scores, places, norms, is_learned)
        return losses.sum() / is_learned.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        scores, places, norms, is_learned = ctx.saved_tensors
        weights = is_learned * (gradient / is_learned.sum())
        result = torch.empty_like(scores)
        for rows, shifted in shifted_chunks(scores, norms):
            probabilities = shifted.exp_().scatter_add_(1, places[rows], torch.full_like(norms[rows], -1.0))
            result[rows] = probabilities.mul_(weights[rows])
        return result, None


def shifted_chunks(scores: torch.Tensor, shifts: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Scores (T, K) less a shift (T, 1) each, some rows at a time, in fp32 and always in the same place in memory."""
    num_rows = max(1, CHUNK // scores.shape[1])
    shape = (min(num_rows, len(scores)), scores.shape[1])
    room = torch.empty(shape, dtype=torch.float32, device=scores.device)
    for start in range(0, len(scores), num_rows):
        rows = slice(start, min(start + num_rows, len(scores)))
        yield rows, room[: rows.stop - start].copy_(scores[rows]).sub_(shifts[rows])


__all__ = ["cross_entropy"]
