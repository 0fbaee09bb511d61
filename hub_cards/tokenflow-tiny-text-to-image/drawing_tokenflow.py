# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Pictures that are drawn: what is kept of given ones, what is known of each so far, which candidates go on."""

import itertools
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from .cache_tokenflow import select_rows
from .sampling_tokenflow import Generators

# (first row, last row + 1, tokens of padding) of rows beside each other.
PaddingRuns = list[tuple[int, int, int]]


@dataclass
class Given:
    """Codes of a picture that are kept: whole coarse scales, and at the others what lies outside a mask."""

    codes: list[torch.Tensor]  # (N, s, s) per scale
    keep_scales: int
    redrawn: list[torch.Tensor] | None  # (N, s, s) bool per scale

    def spread(self, num_prompts: int, num_images: int, best_of: int) -> None:
        """
        One for all, one per prompt or one per picture -> one per candidate.

        Raises:
            ValueError: there are as many as none of these.
        """
        self.codes = [spread_over(part, num_prompts, num_images, best_of, "codes") for part in self.codes]
        if self.redrawn is not None:
            self.redrawn = [spread_over(part, num_prompts, num_images, best_of, "mask") for part in self.redrawn]

    def select(self, rows: torch.Tensor) -> None:
        """Keep some of the pictures."""
        self.codes = [part[rows] for part in self.codes]
        if self.redrawn is not None:
            self.redrawn = [part[rows] for part in self.redrawn]


@dataclass
class Drawing:
    """N pictures on their way. With guidance the cache has 2 N rows, the conditional ones first."""

    cache: Any
    attention_mask: torch.Tensor  # (rows, all positions): 0 at padding
    padding_runs: PaddingRuns | None  # of its rows, where padding is left out and not masked
    is_guided: bool
    generators: Generators
    prompt_index: torch.Tensor  # (N,) long
    given: Given | None
    codes: list[torch.Tensor]  # (N, s, s) of the finished scales
    features: torch.Tensor | None = None  # (N, D, s, s), running, at the current scale and before its codes

    @property
    def prefix(self) -> torch.Tensor:
        """The codes of all finished scales: (N, length)."""
        return torch.cat([part.flatten(1) for part in self.codes], dim=1)

    def select(self, rows: torch.Tensor) -> None:
        """Keep some of the pictures: (M,) long."""
        cache_rows = torch.cat([rows, rows + len(self.prompt_index)]) if self.is_guided else rows
        select_rows(self.cache, cache_rows)
        self.attention_mask = self.attention_mask[cache_rows]
        if self.padding_runs is not None:
            self.padding_runs = padding_runs(self.attention_mask)
        self.generators = self.generators.select(rows)
        self.prompt_index = self.prompt_index[rows]
        self.codes = [part[rows] for part in self.codes]
        self.features = self.features[rows.to(self.features.device)]
        if self.given is not None:
            self.given.select(rows)


def padding_runs(attention_mask: torch.Tensor) -> PaddingRuns:
    """The runs of rows that begin with as much padding: (R, T), 0 at padding."""
    counts = (attention_mask == 0).sum(dim=1).tolist()
    runs, start = [], 0
    for padding, rows in itertools.groupby(counts):
        end = start + len(list(rows))
        runs.append((start, end, padding))
        start = end
    return runs


def given_codes(tokenizer: Any, codes: Any, keep_scales: int | None, mask: Any, device: torch.device) -> Given | None:
    """
    What `generate` is to keep, see there, on a device.

    Raises:
        ValueError: nothing would be kept, or what is kept is missing, out of range, or of another shape.
    """
    scales, grid = tokenizer.config.scales, tokenizer.config.grid_size
    if codes is not None and keep_scales is None and mask is None:
        raise ValueError("nothing of `codes` would be kept: say what, by `keep_scales` or `mask`")
    keep_scales = whole_number("keep_scales", keep_scales or 0)
    if not 0 <= keep_scales <= len(scales):
        raise ValueError(f"keep_scales must lie between 0 and the {len(scales)} scales; got {keep_scales}")
    if codes is None:
        if keep_scales or mask is not None:
            raise ValueError("keep_scales and mask keep something of a picture: pass its `codes`")
        return None
    codes = torch.as_tensor(codes)
    tokenizer._check_codes(codes)
    parts = tokenizer.quantizer.split_codes(codes.to(device, torch.long))
    needed = keep_scales if mask is None else len(scales)
    if len(parts) < needed:
        raise ValueError(f"expected codes of at least {needed} scales, which are kept; got {tuple(codes.shape)}")
    if mask is None:
        return Given(parts, keep_scales, redrawn=None)
    mask = torch.as_tensor(mask)
    mask = mask[None] if mask.dim() == 2 else mask
    if mask.dim() != 3 or mask.shape[1:] != (grid, grid):
        raise ValueError(f"expected a mask of the last scale's grid, {grid}×{grid}; got {tuple(mask.shape)}")
    # On the CPU: not every device can take means over areas of several sizes.
    shares = [F.adaptive_avg_pool2d(mask[:, None].cpu().bool().float(), scale)[:, 0] for scale in scales]
    return Given(parts, keep_scales, [(share >= 0.5).to(device) for share in shares])


def spread_over(values: torch.Tensor, num_prompts: int, num_images: int, best_of: int, name: str) -> torch.Tensor:
    """One for all, one per prompt or one per picture -> one per candidate, along the first axis."""
    total = num_prompts * num_images
    if len(values) not in (1, num_prompts, total):
        raise ValueError(f"expected `{name}` for one, {num_prompts} or {total} pictures; got {len(values)}")
    return values.repeat_interleave(total // len(values) * best_of, dim=0)


def best_rows(scores: torch.Tensor, num_images: int, halve: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Of each picture's candidates the better half, or the best.

    Args:
        scores: (M,), a picture's candidates beside each other.
        num_images: of how many pictures they are.
        halve: whether half of them stay, rounded up.

    Returns:
        The rows that stay (M',) long, in their order, and their scores (M',).
    """
    candidates = scores.view(num_images, -1)
    count = (candidates.shape[1] + 1) // 2 if halve else 1
    chosen = candidates.topk(count, dim=1).indices.sort(dim=1).values
    rows = (chosen + torch.arange(num_images, device=chosen.device)[:, None] * candidates.shape[1]).flatten()
    return rows, scores[rows]


def whole_number(name: str, value: Any) -> int:
    """A setting that counts, or a ValueError that names it."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name} must be a whole number; got {value!r}") from error
