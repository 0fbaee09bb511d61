# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The quantiser of TokenFlow: two codebooks behind one index, over a residual pyramid of scales (paper §3.1)."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput
from transformers.utils.generic import maybe_autocast

# Scores that the search holds at a time (fp32: 4 MB): enough for full matrix-product speed, little enough to stay in
# the processor's cache.
SEARCH_CHUNK = 2**20


@dataclass
class TokenFlowQuantizerOutput(ModelOutput):
    """
    Args:
        quantized (`torch.FloatTensor` of shape `(B, D, H, W)`):
            Sum of what the scales contribute, in the dtype of the features.
        codes (`torch.LongTensor` of shape `(B, L)`):
            Indices, coarse scale first, the rows of each scale flattened.
        codebook_loss, commitment_loss (`torch.FloatTensor` of shape `()`, *optional*, with `return_loss`):
            The two terms of Eq. 3, averaged over the scales, their weights included.
        entropy_loss (`torch.FloatTensor` of shape `()`, *optional*, with `return_loss`):
            Mean entropy of the assignments less the entropy of the mean assignment, its weight included; 0 by default.
    """

    quantized: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    codebook_loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    entropy_loss: torch.Tensor | None = None


@torch.no_grad()
def nearest_entries(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """
    Index of the entry with the largest inner product, which for normalised vectors is the nearest one.

    Chunks of queries bound the memory. Entries run along the first axis of a chunk's scores, so that the maximum over
    blocks of entries vectorises along the queries; the winner is then looked for inside its block alone. All chunks
    share one buffer: fresh memory for each would cost more than the products. Of equal entries the first wins.

    Args:
        queries: (N, D).
        keys: (K, D).

    Returns:
        (N,) long.
    """
    num_keys = len(keys)
    block = math.gcd(num_keys, 64)
    found = torch.empty(len(queries), dtype=torch.long, device=queries.device)
    chunk = max(1, SEARCH_CHUNK // num_keys)
    buffer = keys.new_empty(num_keys * min(chunk, len(queries)))
    for start in range(0, len(queries), chunk):
        part = queries[start : start + chunk]
        scores = torch.mm(keys, part.T, out=buffer[: num_keys * len(part)].view(num_keys, len(part)))
        scores = scores.view(num_keys // block, block, len(part))
        best_block = scores.amax(dim=1).argmax(dim=0)
        within = scores.gather(0, best_block.expand(1, block, -1))[0].argmax(dim=0)
        found[start : start + chunk] = best_block * block + within
    return found


class TokenFlowCodebook(nn.Module):
    """Semantic and pixel entries that share an index. Its output is the table of normalised entries."""

    def __init__(self, size: int, semantic_dim: int, pixel_dim: int):
        super().__init__()
        self.semantic = nn.Parameter(torch.empty(size, semantic_dim))
        self.pixel = nn.Parameter(torch.empty(size, pixel_dim))
        self._cache: tuple[list, list[torch.Tensor], torch.Tensor] | None = None

    def forward(self) -> torch.Tensor:
        """
        (K, semantic_dim + pixel_dim) in fp32, both parts of unit length. Kept between calls in evaluation.

        Raises:
            ValueError: in evaluation, entries are no finite numbers, of which a search would find nothing else.
        """
        parts = [self.semantic, self.pixel]
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or parts[0].is_inference():
            return self._entries()
        state = [(part.data_ptr(), part._version) for part in parts]
        if self._cache is None or self._cache[0] != state:
            # The parts are held as well: while they live, no other tensors can get their addresses.
            self._cache = (state, [part.detach() for part in parts], self._entries())
        return self._cache[-1]

    def _entries(self) -> torch.Tensor:
        parts = [F.normalize(part.float(), dim=-1, eps=1e-12) for part in (self.semantic, self.pixel)]
        entries = torch.cat(parts, dim=-1)
        is_checked = not (self.training or torch.compiler.is_compiling() or entries.is_meta)
        if is_checked and not entries.isfinite().all():
            raise ValueError("the codebook holds entries that are no finite numbers: its file must be damaged")
        return entries

    def train(self, mode: bool = True) -> "TokenFlowCodebook":
        """As of any module. What is written to `.data` goes unnoticed, so that a change of mode starts afresh."""
        self._cache = None
        return super().train(mode)

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_cache": None}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "TokenFlowCodebook":
        """As of any module, but entries are never made halves: `model.to(torch.bfloat16)` would blur what decides."""

        def apply(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            return tensor.to(result.device) if result.dtype in (torch.float16, torch.bfloat16) else result

        return super()._apply(apply, recurse)


class TokenFlowQuantizer(nn.Module):
    """
    Multi-scale residual quantisation with a shared index. It needs nothing else of this package.

    At every scale the residual is area-downsampled, each of its parts is normalised, the index that minimises
    `d_sem + distance_weight · d_pix` is looked up, and its normalised entries, resized bicubically to the final
    grid, are added to the result and subtracted from the residual.

    Args:
        scales: sides of the token maps, coarse first; `[16]` gives plain vector quantisation.
        codebook_size: K.
        semantic_dim, pixel_dim: widths of the two codebooks; 0 leaves one out.
        distance_weight: w_dis of paper §3.1.
        codebook_weight, commitment_weight: weights of the two terms of Eq. 3.
        entropy_weight: weight of the entropy term in training (0: not computed). It holds the N·K assignments.
    """

    def __init__(
        self,
        scales: Sequence[int],
        codebook_size: int,
        semantic_dim: int = 32,
        pixel_dim: int = 8,
        distance_weight: float = 1.0,
        codebook_weight: float = 1.0,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.0,
    ):
        super().__init__()
        self.scales = list(scales)
        self.dims = [semantic_dim, pixel_dim]
        self.distance_weight = distance_weight
        self.codebook_weight = codebook_weight
        self.commitment_weight = commitment_weight
        self.entropy_weight = entropy_weight
        self.codebook = TokenFlowCodebook(codebook_size, semantic_dim, pixel_dim)

    def forward(
        self, features: torch.Tensor, scales: Sequence[int] | None = None, return_loss: bool = True
    ) -> TokenFlowQuantizerOutput:
        """
        Quantise feature maps.

        Args:
            features: (B, D, H, H), semantic channels first. H is the final grid, also if `scales` ends before it.
            scales: in place of the quantiser's own.
            return_loss: whether to compute the losses, which only training needs.

        Returns:
            [`TokenFlowQuantizerOutput`], on the codebook's device. Gradients pass straight through to the normalised
            features.

        Raises:
            ValueError: the features have other channels, are not square, or are smaller than the last scale.
        """
        scales = scales or self.scales
        self._check_features(features, scales)
        with maybe_autocast(features.device.type, enabled=False):
            entries = self.codebook()
            residual = features.to(entries.device, torch.float32)
            quantized = torch.zeros_like(residual)
            codes, losses = [], []
            for scale in scales:
                normalized = self.normalize(F.adaptive_avg_pool2d(residual, scale))
                scale_codes = self.assign(normalized, entries)
                chosen = lookup(scale_codes, entries)
                if return_loss:
                    losses.append(self.losses(normalized, chosen, entries))
                if normalized.requires_grad:
                    chosen = normalized + (chosen - normalized).detach()
                contribution = resize(chosen, features.shape[-1])
                quantized = quantized + contribution
                residual = residual - contribution.detach()
                codes.append(scale_codes.flatten(1))
            means = torch.stack(losses).mean(dim=0) if return_loss else [None] * 3
        return TokenFlowQuantizerOutput(
            quantized=quantized.to(features.dtype),
            codes=torch.cat(codes, dim=1),
            codebook_loss=means[0],
            commitment_loss=means[1],
            entropy_loss=means[2],
        )

    def _check_features(self, features: torch.Tensor, scales: Sequence[int]) -> None:
        shape = tuple(features.shape)
        if len(shape) != 4 or shape[1] != sum(self.dims) or shape[2] != shape[3] or shape[3] < scales[-1]:
            raise ValueError(
                f"expected features of shape (batch, {sum(self.dims)}, grid, grid) with a grid of at least the last "
                f"scale, {scales[-1]}; got {shape}"
            )

    def normalize(self, features: torch.Tensor) -> torch.Tensor:
        """Bring the semantic and the pixel channels of (B, D, h, w) to unit length, each for itself."""
        return torch.cat([F.normalize(part, dim=1, eps=1e-12) for part in features.split(self.dims, dim=1)], dim=1)

    @torch.no_grad()
    def assign(self, normalized: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
        """The nearest entries: (B, D, h, w) normalised, (K, D) -> (B, h, w) long."""
        found = nearest_entries(self._queries(normalized), entries)
        return found.view(len(normalized), *normalized.shape[2:])

    def _queries(self, normalized: torch.Tensor) -> torch.Tensor:
        """
        What the entries are multiplied with: (B, D, h, w) -> (B·h·w, D).

        Between vectors of unit length d_sem + w · d_pix = const - 2 (sem · sem' + w · pix · pix').
        """
        weights = normalized.new_tensor([1.0] * self.dims[0] + [self.distance_weight] * self.dims[1])
        return normalized.permute(0, 2, 3, 1).flatten(0, 2) * weights

    def losses(self, normalized: torch.Tensor, chosen: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
        """(3,): codebook, commitment and entropy loss of one scale, weighted."""
        codebook = self.codebook_weight * F.mse_loss(chosen, normalized.detach())
        commitment = self.commitment_weight * F.mse_loss(normalized, chosen.detach())
        entropy = torch.zeros_like(codebook)
        if self.training and self.entropy_weight > 0:
            entropy = self.entropy_weight * self.assignment_entropy(normalized, entries)
        return torch.stack([codebook, commitment, entropy])

    def assignment_entropy(
        self, normalized: torch.Tensor, entries: torch.Tensor, temperature: float = 0.01
    ) -> torch.Tensor:
        """Mean entropy of the soft assignments less the entropy of their mean, on distances over `temperature`."""
        log_assignment = (self._queries(normalized) @ entries.T).mul(2 / temperature).log_softmax(dim=-1)
        assignment = log_assignment.exp()
        mean = self.mean_assignment(assignment.mean(dim=0))
        mean_entropy = -(assignment * log_assignment).sum(dim=-1).mean()
        return mean_entropy + (mean * mean.clamp_min(1e-20).log()).sum()

    @staticmethod
    def mean_assignment(mean: torch.Tensor) -> torch.Tensor:
        """(K,): by how much of a batch each entry is used. Trainers put the mean over all processes in its place."""
        return mean

    def split_codes(self, codes: torch.Tensor, scales: Sequence[int] | None = None) -> list[torch.Tensor]:
        """
        The token maps inside a code sequence that holds all scales, or the first few.

        Args:
            codes: (B, L) with L the tokens of whole coarse scales.

        Returns:
            One (B, s, s) view per scale.

        Raises:
            ValueError: `codes` is not two-dimensional, or ends inside a scale.
        """
        scales = scales or self.scales
        lengths = prefix_lengths(scales)
        if codes.dim() != 2 or codes.shape[1] not in lengths:
            raise ValueError(
                f"codes of shape {tuple(codes.shape)} are no batch of whole scales: "
                f"expected (batch, length) with a length among {lengths}"
            )
        present = scales[: lengths.index(codes.shape[1]) + 1]
        parts = codes.split([scale * scale for scale in present], dim=1)
        return [part.unflatten(1, (scale, scale)) for part, scale in zip(parts, present, strict=True)]

    def codes_to_features(self, codes: torch.Tensor, scales: Sequence[int] | None = None) -> torch.Tensor:
        """
        Features on the final grid after each scale.

        Args:
            codes: (B, L), all scales or the first few.
            scales: in place of the quantiser's own.

        Returns:
            (B, S, D, H, W) in fp32: [:, i] is the sum over the scales up to i; the last equals `quantized`.
        """
        grid = (scales or self.scales)[-1]
        entries = self.codebook()
        contributions = [resize(lookup(part, entries), grid) for part in self.split_codes(codes, scales)]
        sums = [contributions[0]]
        for contribution in contributions[1:]:
            sums.append(sums[-1] + contribution)
        return torch.stack(sums, dim=1)

    def next_scale_features(
        self, features: torch.Tensor | None, codes: torch.Tensor, next_scale: int | None = None
    ) -> torch.Tensor:
        """
        One step of next-scale generation: add a scale to the running features, resize them to the next scale.

        Unlike `codes_to_features`, which resizes every scale to the final grid at once, this is a chain of resizes,
        as the official generator was trained with.

        Args:
            features: (B, D, s, s), the running features at this scale; `None` at the first scale.
            codes: (B, s, s), this scale's codes.
            next_scale: side of the next scale; `None` leaves the features at this one.

        Returns:
            (B, D, next_scale, next_scale) in fp32.
        """
        chosen = lookup(codes, self.codebook())
        features = chosen if features is None else features + chosen
        return features if next_scale is None else resize(features, next_scale)

    def next_scale_inputs(
        self, codes: torch.Tensor, scales: Sequence[int] | None = None, drawn_codes: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        What a generator is fed when it predicts the second and every further scale (teacher forcing).

        Args:
            codes: (B, L), all scales or the first n.
            drawn_codes: (B, L), with which the features are those of refinement passes: a scale's own codes, of
                these, are added to what the scales of `codes` before it give.

        Returns:
            (B, L', D) in fp32: the running features resized to scales 1, 2, … (n if there is one), flattened row by
            row and concatenated.
        """
        scales = scales or self.scales
        own = self.split_codes(drawn_codes, scales)[1:] if drawn_codes is not None else [None] * len(scales)
        features, inputs = None, []
        for part, next_scale, drawn in zip(self.split_codes(codes, scales), scales[1:], own, strict=False):
            features = self.next_scale_features(features, part, next_scale)
            seen = features if drawn is None else self.next_scale_features(features, drawn)
            inputs.append(seen.flatten(2).transpose(1, 2))
        if not inputs:
            return codes.new_zeros((len(codes), 0, sum(self.dims)), dtype=torch.float32)
        return torch.cat(inputs, dim=1)


def lookup(codes: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """Entries of a token map, on the entries' device: (B, h, w), (K, D) -> (B, D, h, w)."""
    return F.embedding(codes.to(entries.device, torch.long), entries).permute(0, 3, 1, 2)


def resize(features: torch.Tensor, size: int) -> torch.Tensor:
    """Bicubic resize to a square: (B, D, h, h) -> (B, D, size, size)."""
    if features.shape[-1] == size:
        return features
    return F.interpolate(features, size=(size, size), mode="bicubic")


def prefix_lengths(scales: Sequence[int]) -> list[int]:
    """Lengths of code sequences that end with a scale."""
    return list(itertools.accumulate(scale * scale for scale in scales))
