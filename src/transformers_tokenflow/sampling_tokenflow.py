# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Choosing codes: filters, draws, and random generators that make a picture independent of its batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass
class Generators:
    """Sources of randomness: torch's own (neither), one for all pictures, or one for each."""

    shared: torch.Generator | None = None
    each: list[torch.Generator] | None = None

    def uniform(self, num_pictures: int, num_tokens: int, device: torch.device) -> torch.Tensor:
        """Numbers in [0, 1): (N, T) float32 on a device, wherever the generators are."""
        if self.each is not None:
            rows = [torch.rand(num_tokens, generator=source, device=source.device) for source in self.each]
            return torch.stack([row.to(device) for row in rows])
        source = self.shared
        return torch.rand(
            (num_pictures, num_tokens), generator=source, device=source.device if source is not None else device
        ).to(device)

    def select(self, rows: torch.Tensor) -> "Generators":
        """Those of some of the pictures: (M,) long."""
        return self if self.each is None else Generators(each=[self.each[row] for row in rows.tolist()])


def make_generators(
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    num_prompts: int,
    num_images: int,
) -> Generators:
    """
    The generators that a caller asks for.

    Args:
        seed: a number, of which picture i gets seed + i, or one per prompt, whose pictures count on from it.
        generator: one for all pictures, or one per picture.
        num_prompts: B.
        num_images: pictures per prompt.

    Raises:
        ValueError: both are given, or not as many as there are prompts or pictures.
    """
    if seed is None:
        if generator is None or isinstance(generator, torch.Generator):
            return Generators(shared=generator)
        if len(generator) != num_prompts * num_images:
            raise ValueError(
                f"expected a generator for each of {num_prompts * num_images} pictures; got {len(generator)}"
            )
        return Generators(each=list(generator))
    if generator is not None:
        raise ValueError("pass seed or generator, not both")
    if isinstance(seed, Sequence) or isinstance(seed, torch.Tensor):
        if len(seed) != num_prompts:
            raise ValueError(f"expected a seed for each of {num_prompts} prompts; got {len(seed)}")
        seeds = [int(first) + offset for first in seed for offset in range(num_images)]
    else:
        seeds = list(range(int(seed), int(seed) + num_prompts * num_images))
    return Generators(each=[torch.Generator().manual_seed(value) for value in seeds])


def more_generators(generators: Generators, count: int) -> Generators:
    """For `count` candidates of each picture: its own generator for the first, others that follow from it."""
    if generators.each is None or count == 1:
        return generators
    each = []
    for source in generators.each:
        copy = torch.Generator(source.device)
        copy.set_state(source.get_state())
        seeds = torch.randint(2**62, (count - 1,), generator=copy, device=copy.device).tolist()
        each += [source, *(torch.Generator(source.device).manual_seed(value) for value in seeds)]
    return Generators(each=each)


def sample(
    logits: torch.Tensor, top_k: int, top_p: float, temperature: float, uniform: torch.Tensor | None
) -> torch.Tensor:
    """
    Draw codes.

    Only as many scores are sorted as the filters leave: with `top_k` the rest is never looked at again.

    Args:
        logits: (N, T, K) fp32.
        top_k: how many of the best entries remain, more where several tie with the last; 0: all; 1: the best is taken.
        top_p: of those, the likeliest that together reach this share of the probability; 0: all.
        temperature: divides the scores.
        uniform: (N, T) numbers in [0, 1), which decide; not needed where `top_k` is 1.

    Returns:
        (N, T) long.
    """
    if top_k == 1:
        return logits.argmax(dim=-1)
    scores, entries = best_scores(logits, top_k, is_sorted=top_p > 0)
    probabilities = (scores / temperature).softmax(dim=-1)
    if 0 < top_p < 1:
        probabilities = probabilities.masked_fill(beyond_top_p(probabilities, top_p), 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    threshold = uniform[..., None] * cumulative[..., -1:]
    chosen = torch.searchsorted(cumulative, threshold, right=True).clamp(max=last_possible(probabilities))
    return chosen[..., 0] if entries is None else entries.gather(-1, chosen)[..., 0]


def best_scores(logits: torch.Tensor, top_k: int, is_sorted: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    The scores that `top_k` leaves, -inf at what is filled up, and their entries (None: as they stand).

    Args:
        logits: (N, T, K).
        top_k: 0 leaves all.
        is_sorted: whether they must come best first.
    """
    size = logits.shape[-1]
    if top_k == 0 or top_k >= size:
        return logits.sort(dim=-1, descending=True) if is_sorted else (logits, None)
    scores, entries = logits.topk(top_k + 1, dim=-1)
    worst = scores[..., -2:-1]
    if not (scores[..., -1:] == worst).any():
        return scores[..., :-1], entries[..., :-1]
    # Somewhere the next entry ties with the last one: such entries remain, however many they are.
    scores, entries = logits.topk(int((logits >= worst).sum(dim=-1).max()), dim=-1)
    return scores.masked_fill(scores < worst, -torch.inf), entries


def beyond_top_p(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """
    Which entries the filter drops: from the unlikeliest up, as long as they sum to no more than 1 - top_p.

    Args:
        probabilities: (..., k), best first.

    Returns:
        (..., k) bool, never true at the first.
    """
    tail = probabilities.flip(-1).cumsum(dim=-1).flip(-1)
    dropped = tail <= 1 - top_p
    dropped[..., 0] = False
    return dropped


def last_possible(probabilities: torch.Tensor) -> torch.Tensor:
    """Index of the last entry that is not impossible, where a draw may end by rounding: (..., k) -> (..., 1)"""
    size = probabilities.shape[-1]
    return size - 1 - (probabilities.flip(-1) > 0).int().argmax(dim=-1, keepdim=True)
