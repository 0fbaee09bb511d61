# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The quantiser of TokenFlow: two codebooks behind one index, over a residual pyramid of scales (paper §3.1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

# Scores that the search holds at a time (fp32: 32 MB): large enough for full matrix-product speed, small enough for
# the cache and for memory, whatever the batch.
SEARCH_CHUNK = 2**23


@dataclass
class TokenFlowQuantizerOutput(ModelOutput):
    """
    Args:
        quantized (`torch.FloatTensor` of shape `(B, D, H, W)`):
            Sum of what the scales contribute, in the dtype of the features.
        codes (`torch.LongTensor` of shape `(B, L)`):
            Indices, coarse scale first, the rows of each scale flattened.
        codebook_loss, commitment_loss (`torch.FloatTensor` of shape `()`):
            The two terms of Eq. 3, averaged over the scales, their weights included.
        entropy_loss (`torch.FloatTensor` of shape `()`):
            Mean entropy of the assignments less the entropy of the mean assignment, its weight included; 0 by default.
    """

    quantized: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    codebook_loss: torch.FloatTensor | None = None
    commitment_loss: torch.FloatTensor | None = None
    entropy_loss: torch.FloatTensor | None = None


def nearest_entries(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """
    Index of the entry with the largest inner product, which for normalised vectors is the nearest one.

    Chunks of queries bound the memory. Entries run along the first axis of a chunk's scores, so that the maximum over
    blocks of entries vectorises along the queries; the winner is then looked for inside its block alone. Of equal
    entries the first wins.

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
    for start in range(0, len(queries), chunk):
        part = queries[start : start + chunk]
        scores = (keys @ part.T).view(num_keys // block, block, len(part))
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
        self._cached: tuple[tuple, torch.Tensor] | None = None

    def forward(self) -> torch.Tensor:
        """(K, semantic_dim + pixel_dim) in fp32, both parts of unit length. Kept between calls in evaluation."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or self.semantic.is_inference():
            return self._entries()
        state = tuple((part.data_ptr(), part._version, part.device) for part in (self.semantic, self.pixel))
        if self._cached is None or self._cached[0] != state:
            self._cached = (state, self._entries())
        return self._cached[1]

    def _entries(self) -> torch.Tensor:
        parts = (F.normalize(part.float(), dim=-1, eps=1e-12) for part in (self.semantic, self.pixel))
        return torch.cat(list(parts), dim=-1)


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

    def forward(self, features: torch.Tensor, scales: Sequence[int] | None = None) -> TokenFlowQuantizerOutput:
        """
        Quantise feature maps.

        Args:
            features: (B, D, H, W), semantic channels first. H × W is the final grid, also if `scales` ends before it.
            scales: in place of the quantiser's own.

        Returns:
            [`TokenFlowQuantizerOutput`]. Gradients pass straight through to the normalised features.
        """
        entries = self.codebook().to(features.device)
        residual = features.float()
        quantized = torch.zeros_like(residual)
        codes, losses = [], []
        scales = scales or self.scales
        for scale in scales:
            normalized = self.normalize(F.adaptive_avg_pool2d(residual, scale))
            scale_codes = self.assign(normalized, entries)
            chosen = lookup(scale_codes, entries)
            losses.append(self.losses(normalized, chosen, entries))
            if normalized.requires_grad:
                chosen = normalized + (chosen - normalized).detach()
            contribution = resize(chosen, features.shape[-1])
            quantized = quantized + contribution
            residual = residual - contribution.detach()
            codes.append(scale_codes.flatten(1))
        codebook_loss, commitment_loss, entropy_loss = torch.stack(losses).mean(dim=0)
        return TokenFlowQuantizerOutput(
            quantized=quantized.to(features.dtype),
            codes=torch.cat(codes, dim=1),
            codebook_loss=codebook_loss,
            commitment_loss=commitment_loss,
            entropy_loss=entropy_loss,
        )

    def normalize(self, features: torch.Tensor) -> torch.Tensor:
        """Bring the semantic and the pixel channels of (B, D, h, w) to unit length, each for itself."""
        return torch.cat([F.normalize(part, dim=1, eps=1e-12) for part in features.split(self.dims, dim=1)], dim=1)

    @torch.no_grad()
    def assign(self, normalized: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
        """The nearest entries: (B, D, h, w) normalised, (K, D) -> (B, h, w) long."""
        # Both sides have unit length, so d_sem + w · d_pix = const - 2 (sem · sem' + w · pix · pix').
        weights = entries.new_tensor([1.0] * self.dims[0] + [self.distance_weight] * self.dims[1])
        queries = normalized.permute(0, 2, 3, 1)
        with torch.autocast(normalized.device.type, enabled=False):
            found = nearest_entries((queries * weights).flatten(0, 2), entries.detach())
        return found.view(queries.shape[:3])

    def losses(self, normalized: torch.Tensor, chosen: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
        """(3,): codebook, commitment and entropy loss of one scale, weighted."""
        codebook = self.codebook_weight * F.mse_loss(chosen, normalized.detach())
        commitment = self.commitment_weight * F.mse_loss(normalized, chosen.detach())
        entropy = torch.zeros_like(codebook)
        if self.training and self.entropy_weight > 0:
            entropy = self.entropy_weight * self.assignment_entropy(normalized, entries)
        return torch.stack([codebook, commitment, entropy])

    def assignment_entropy(self, normalized: torch.Tensor, entries: torch.Tensor, temperature: float = 0.01):
        """Mean entropy of the soft assignments less the entropy of their mean, on distances over `temperature`."""
        weights = entries.new_tensor([1.0] * self.dims[0] + [self.distance_weight] * self.dims[1])
        queries = normalized.permute(0, 2, 3, 1).flatten(0, 2) * weights
        log_assignment = (queries @ entries.T).mul(2 / temperature).log_softmax(dim=-1)
        assignment = log_assignment.exp()
        mean = assignment.mean(dim=0)
        mean_entropy = -(assignment * log_assignment).sum(dim=-1).mean()
        return mean_entropy + (mean * mean.clamp_min(1e-20).log()).sum()

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
        maps: list[torch.Tensor] = []
        start, length = 0, codes.shape[-1]
        for scale in scales or self.scales:
            if start == length:
                break
            maps.append(codes[:, start : start + scale * scale])
            start += scale * scale
        if codes.dim() != 2 or not maps or start != length:
            raise ValueError(
                f"codes of shape {tuple(codes.shape)} are no batch of whole scales: "
                f"expected (batch, length) with a length among {prefix_lengths(scales or self.scales)}"
            )
        return [part.unflatten(1, (math.isqrt(part.shape[1]), -1)) for part in maps]

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
        entries = self.codebook().to(codes.device)
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
        chosen = lookup(codes, self.codebook().to(codes.device))
        features = chosen if features is None else features + chosen
        return features if next_scale is None else resize(features, next_scale)

    def next_scale_inputs(self, codes: torch.Tensor, scales: Sequence[int] | None = None) -> torch.Tensor:
        """
        What a generator is fed when it predicts the second and every further scale (teacher forcing).

        Args:
            codes: (B, L), all scales or the first n.

        Returns:
            (B, L', D) in fp32: the running features resized to scales 1, 2, … (n if there is one), flattened row by
            row and concatenated.
        """
        scales = scales or self.scales
        features, inputs = None, []
        for part, next_scale in zip(self.split_codes(codes, scales), scales[1:]):
            features = self.next_scale_features(features, part, next_scale)
            inputs.append(features.flatten(2).transpose(1, 2))
        if not inputs:
            return codes.new_zeros((len(codes), 0, sum(self.dims)), dtype=torch.float32)
        return torch.cat(inputs, dim=1)


def lookup(codes: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """Entries of a token map: (B, h, w), (K, D) -> (B, D, h, w)."""
    return F.embedding(codes, entries).permute(0, 3, 1, 2)


def resize(features: torch.Tensor, size: int) -> torch.Tensor:
    """Bicubic resize to a square: (B, D, h, h) -> (B, D, size, size)."""
    if features.shape[-1] == size:
        return features
    return F.interpolate(features, size=(size, size), mode="bicubic")


def prefix_lengths(scales: Sequence[int]) -> list[int]:
    """Lengths of code sequences that end with a scale."""
    lengths = [0]
    for scale in scales:
        lengths.append(lengths[-1] + scale * scale)
    return lengths[1:]
