# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The quantiser of TokenFlow: two codebooks behind one index, over a residual pyramid of scales (paper §3.1)."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput
from transformers.utils.generic import maybe_autocast

# Scores that the search holds at a time. On a CPU (fp32: 4 MB) enough for full matrix-product speed, little enough to
# stay in its cache; elsewhere (64 MB) enough to keep the device busy.
CPU_SEARCH_CHUNK, SEARCH_CHUNK = 2**20, 2**24


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
    share one buffer: fresh memory for each would cost more than the products. Of equal entries the first wins. (`max`
    gives indices as `argmax` does, several times faster.) A compiled search holds all scores: a loop would be unrolled
    for each number of queries.

    Args:
        queries: (N, D).
        keys: (K, D).

    Returns:
        (N,) long.
    """
    if torch.compiler.is_compiling():
        return (queries @ keys.T).max(dim=1).indices
    num_keys = len(keys)
    block = math.gcd(num_keys, 64)
    found = torch.empty(len(queries), dtype=torch.long, device=queries.device)
    chunk = max(1, (CPU_SEARCH_CHUNK if keys.device.type == "cpu" else SEARCH_CHUNK) // num_keys)
    columns = torch.arange(min(chunk, len(queries)), device=queries.device)
    buffer = keys.new_empty(num_keys * min(chunk, len(queries)))
    for start in range(0, len(queries), chunk):
        part = queries[start : start + chunk]
        scores = torch.mm(keys, part.T, out=buffer[: num_keys * len(part)].view(num_keys, len(part)))
        scores = scores.view(num_keys // block, block, len(part))
        best_block = scores.amax(dim=1).max(dim=0).indices
        within = scores[best_block, :, columns[: len(part)]].max(dim=1).indices
        found[start : start + chunk] = best_block * block + within
    return found


class TokenFlowCodebook(nn.Module):
    """Semantic and pixel entries that share an index. Its output is the table of normalised entries."""

    def __init__(self, size: int, semantic_dim: int, pixel_dim: int):
        super().__init__()
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)  # also in a model made in half precision
        self.semantic = nn.Parameter(torch.empty(size, semantic_dim, dtype=dtype))
        self.pixel = nn.Parameter(torch.empty(size, pixel_dim, dtype=dtype))
        self._cache: tuple[list[torch.Tensor], torch.Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Entries as random directions."""
        for part in (self.semantic, self.pixel):
            nn.init.uniform_(part, -1.0, 1.0)

    def forward(self, codes: torch.Tensor | None = None) -> torch.Tensor:
        """
        (K, semantic_dim + pixel_dim) in fp32, both parts of unit length. Kept between calls in evaluation.

        Args:
            codes: (...) long, of which alone the entries are given, (..., semantic_dim + pixel_dim): for a few, less
                work than to see that what is kept is still true.

        Raises:
            ValueError: in evaluation, entries are no finite numbers, of which a search would find nothing else.
        """
        parts = [self.semantic, self.pixel]
        if codes is not None:
            return unit_parts([F.embedding(codes.to(part.device, torch.long), part).float() for part in parts])
        is_trained = self.training or (torch.is_grad_enabled() and any(part.requires_grad for part in parts))
        if is_trained or torch.compiler.is_compiling() or parts[0].is_inference() or parts[0].is_meta:
            return self._entries()
        if self._cache is None or not all(map(is_same, self._cache[0], parts)):
            with torch.inference_mode(False), torch.no_grad():
                self._cache = ([part.clone() for part in parts], self._entries())
        return self._cache[1]

    def _entries(self) -> torch.Tensor:
        entries = unit_parts([self.semantic.float(), self.pixel.float()])
        is_checked = not (self.training or torch.compiler.is_compiling() or entries.is_meta)
        if is_checked and not entries.isfinite().all():
            raise ValueError("the codebook holds entries that are no finite numbers: its file must be damaged")
        return entries

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_cache": None}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "TokenFlowCodebook":
        """As of any module, but entries are never made halves: `model.to(torch.bfloat16)` would blur what decides."""

        def apply(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            return tensor.to(result.device) if result.dtype in (torch.float16, torch.bfloat16) else result

        return super()._apply(apply, recurse)


def unit_parts(parts: Sequence[torch.Tensor], dim: int = -1) -> torch.Tensor:
    """Semantic and pixel channels along a dimension, brought to unit length each for itself, and joined."""
    return torch.cat([F.normalize(part, dim=dim, eps=1e-12) for part in parts], dim=dim)


def is_same(kept: torch.Tensor, part: torch.Tensor) -> bool:
    """Whether a parameter is what it was. Its values tell: of what is written to `.data` torch counts no version."""
    return kept.device == part.device and torch.equal(kept, part)


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
        check_scales(scales)
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
            ValueError: the features have other channels, are not square, or are smaller than the last scale; or the
                scales do not ascend.
        """
        scales = self.scales if scales is None else scales
        self._check_features(features, scales)
        grid = features.shape[-1]
        with maybe_autocast(features.device.type, enabled=False):
            entries = self.codebook()
            features_on_grid = to_tokens(features.to(entries.device, torch.float32))
            pooled = pooling_matrix(tuple(scales), grid, entries.device) @ features_on_grid
            codes, residual = self._decide(pooled.detach(), entries, scales, grid)
            chosen = F.embedding(codes, entries)
            losses: list[torch.Tensor] | list[None] = [None] * 3
            if return_loss or pooled.requires_grad:
                # What was decided is a constant beside the features that gradients go to.
                normalized = self.normalize(residual + (pooled - pooled.detach()), dim=2)
                if return_loss:
                    losses = self.losses(normalized, chosen, entries, scales)
                # Entries learn from the quantiser's losses alone, also from features without a gradient.
                chosen = normalized + (chosen - normalized).detach() if pooled.requires_grad else chosen.detach()
            parts = chosen.split([scale * scale for scale in scales], dim=1)
            contributions = (lift(part, scale, grid) for part, scale in zip(parts, scales, strict=True))
            quantized = functools.reduce(torch.add, contributions)
        quantized = to_map(quantized, grid).to(features.dtype).contiguous()
        return TokenFlowQuantizerOutput(quantized, codes, *losses)

    @torch.no_grad()
    def _decide(
        self, residual: torch.Tensor, entries: torch.Tensor, scales: Sequence[int], grid: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The codes of all scales, coarse first.

        Pooling is linear, so that all scales are pooled at once, and what a scale contributes is taken from those after
        it alone, without a residual on the final grid.

        Args:
            residual: (B, L, D), the features pooled to every scale.
            entries: (K, D).
            scales: sides of the token maps.
            grid: side of the features.

        Returns:
            Codes (B, L), and the residual that each of them stands for (B, L, D).
        """
        coupling = coupling_matrix(tuple(scales), grid, residual.device) if len(scales) > 1 else None
        residual, codes, start = residual.clone(), [], 0
        for end in prefix_lengths(scales):
            codes.append(self.assign(self.normalize(residual[:, start:end], dim=2), entries))
            if end < residual.shape[1]:
                residual[:, end:] -= coupling[end:, start:end] @ F.embedding(codes[-1], entries)
            start = end
        return torch.cat(codes, dim=1), residual

    def _check_features(self, features: torch.Tensor, scales: Sequence[int]) -> None:
        check_scales(scales)
        shape = tuple(features.shape)
        if len(shape) != 4 or shape[1] != sum(self.dims) or shape[2] != shape[3] or shape[3] < scales[-1]:
            raise ValueError(
                f"expected features of shape (batch, {sum(self.dims)}, grid, grid) with a grid of at least the last "
                f"scale, {scales[-1]}; got {shape}"
            )

    def normalize(self, features: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """Bring the semantic and the pixel channels, by default of (B, D, h, w), to unit length, each for itself."""
        return unit_parts(features.split(self.dims, dim=dim), dim)

    @torch.no_grad()
    def assign(self, normalized: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
        """The nearest entries: (B, N, D) normalised, (K, D) -> (B, N) long."""
        return nearest_entries(self._queries(normalized), entries).view(normalized.shape[:2])

    def _queries(self, normalized: torch.Tensor) -> torch.Tensor:
        """
        What the entries are multiplied with: (B, N, D) -> (B·N, D).

        Between vectors of unit length d_sem + w · d_pix = const - 2 (sem · sem' + w · pix · pix').
        """
        weights = normalized.new_tensor([1.0] * self.dims[0] + [self.distance_weight] * self.dims[1])
        return normalized.flatten(0, 1) * weights

    def losses(
        self, normalized: torch.Tensor, chosen: torch.Tensor, entries: torch.Tensor, scales: Sequence[int]
    ) -> list[torch.Tensor]:
        """
        Codebook, commitment and entropy loss, weighted means over the scales.

        Args:
            normalized: (B, L, D).
            chosen: (B, L, D), their entries.
            entries: (K, D).
            scales: sides of the token maps.
        """
        sizes = [scale * scale for scale in scales]

        def mean(distances: torch.Tensor) -> torch.Tensor:
            means = [part.mean() for part in distances.mean(dim=(0, 2)).split(sizes)]
            return torch.stack(means).mean()

        codebook = self.codebook_weight * mean((chosen - normalized.detach()).square())
        commitment = self.commitment_weight * mean((normalized - chosen.detach()).square())
        entropy = torch.zeros_like(codebook)
        if self.training and self.entropy_weight > 0:
            parts = [self.assignment_entropy(part, entries) for part in normalized.split(sizes, dim=1)]
            entropy = self.entropy_weight * torch.stack(parts).mean()
        return [codebook, commitment, entropy]

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
        scales = self.scales if scales is None else scales
        check_scales(scales)
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

        Raises:
            ValueError: `codes` is not two-dimensional, or ends inside a scale; or the scales are no ascending sides.
        """
        parts = self.split_codes(codes, scales)
        grid = (self.scales if scales is None else scales)[-1]
        entries = self.codebook()
        contributions = (resize(lookup(part, entries), grid) for part in parts)
        return torch.stack(list(itertools.accumulate(contributions)), dim=1)

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
        chosen = self.codebook(codes).permute(0, 3, 1, 2)
        features = chosen if features is None else features + chosen
        return features if next_scale is None else resize(features, next_scale)

    def next_scale_inputs(
        self, codes: torch.Tensor, scales: Sequence[int] | None = None, drawn_codes: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        What a generator is fed when it predicts the second and every further scale (teacher forcing).

        Args:
            codes: (B, L), all scales or the first n.
            scales: in place of the quantiser's own.
            drawn_codes: (B, L), with which the features are those of refinement passes: a scale's own codes, of
                these, are added to what the scales of `codes` before it give.

        Returns:
            (B, L', D) in fp32: the running features resized to scales 1, 2, … (n if there is one), flattened row by
            row and concatenated.

        Raises:
            ValueError: the codes are not two-dimensional, or end inside a scale; or the scales are no ascending sides.
        """
        scales = self.scales if scales is None else scales
        own = self.split_codes(drawn_codes, scales)[1:] if drawn_codes is not None else [None] * len(scales)
        features, inputs = None, []
        for part, next_scale, drawn in zip(self.split_codes(codes, scales), scales[1:], own, strict=False):
            features = self.next_scale_features(features, part, next_scale)
            seen = features if drawn is None else self.next_scale_features(features, drawn)
            inputs.append(to_tokens(seen))
        if not inputs:
            return codes.new_zeros((len(codes), 0, sum(self.dims)), dtype=torch.float32)
        return torch.cat(inputs, dim=1)


def check_scales(scales: Sequence[int]) -> None:
    """Raise a ValueError for sides of token maps that can't be."""
    if not isinstance(scales, Sequence) or any(isinstance(scale, float) for scale in scales):
        raise ValueError(f"scales are a list of whole numbers; got {scales!r}")
    # `sorted` takes no symbolic sizes, which compilation has for a second resolution.
    if not scales or scales[0] < 1 or any(first > second for first, second in itertools.pairwise(scales)):
        raise ValueError(f"scales are positive sides in ascending order, coarse first; got {scales}")


def as_codes(image_codes: Any) -> torch.Tensor:
    """
    Codes of pictures as a tensor.

    Args:
        image_codes: (num_images, L), or (L,) of one picture: a tensor, an array or lists.

    Returns:
        (num_images, L) long.

    Raises:
        ValueError: they have another shape, or are no whole numbers.
    """
    try:
        is_list = isinstance(image_codes, (list, tuple))
        codes = torch.stack([torch.as_tensor(row) for row in image_codes]) if is_list else torch.as_tensor(image_codes)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"image_codes must be whole numbers (num_images, L): {error}") from error
    codes = codes[None] if codes.ndim == 1 else codes
    if codes.ndim != 2 or codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise ValueError(f"image_codes must be whole numbers (num_images, L); got {codes.dtype} {tuple(codes.shape)}")
    return codes.long()


def lookup(codes: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """Entries of a token map, on the entries' device: (B, h, w), (K, D) -> (B, D, h, w)."""
    return F.embedding(codes.to(entries.device, torch.long), entries).permute(0, 3, 1, 2)


def to_tokens(features: torch.Tensor) -> torch.Tensor:
    """Row by row: (B, D, h, h) -> (B, h², D)"""
    return features.flatten(2).transpose(1, 2)


def to_map(tokens: torch.Tensor, side: int) -> torch.Tensor:
    """(B, side², D) -> (B, D, side, side), channels last in memory."""
    return tokens.transpose(1, 2).unflatten(2, (side, side))


# ---- Resizing: maps of tokens are so small that matrix products are many times faster than torch's loops ----


def resize(features: torch.Tensor, size: int) -> torch.Tensor:
    """Bicubic resize to a square: (B, D, h, h) -> (B, D, size, size) in fp32."""
    if features.shape[-1] == size:
        return features
    with maybe_autocast(features.device.type, enabled=False):
        return to_map(lift(to_tokens(features.float()), features.shape[-1], size), size)


def lift(tokens: torch.Tensor, side: int, size: int) -> torch.Tensor:
    """The same of tokens, without a change of type: (B, side², D) -> (B, size², D)."""
    return tokens if side == size else lifting_matrix(side, size, tokens.device) @ tokens


def pool(features: torch.Tensor, size: int) -> torch.Tensor:
    """Means over areas, a smaller square of them: (B, D, h, h) -> (B, D, size, size) in fp32."""
    with maybe_autocast(features.device.type, enabled=False):
        matrix = pooling_matrix((size,), features.shape[-1], features.device)
        return to_map(matrix @ to_tokens(features.float()), size)


def cached_matrix(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """For a device, made once, on the CPU in fp64, whatever mode or type the caller computes in."""

    @functools.lru_cache(maxsize=128)
    def kept(scales: int | tuple[int, ...], grid: int, device: torch.device) -> torch.Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return make(scales, grid).float().contiguous().to(device)

    @functools.wraps(make)
    def matrix(scales: int | tuple[int, ...], grid: int, device: torch.device) -> torch.Tensor:
        # Tracing makes it anew: a traced tensor has no values, and would be kept for all calls to come.
        return (kept.__wrapped__ if torch.compiler.is_compiling() else kept)(scales, grid, device)

    return matrix


def unit_maps(side: int) -> torch.Tensor:
    """(side², 1, side, side): by what a linear map makes of these it is known."""
    return torch.eye(side * side, dtype=torch.float64, device="cpu").view(-1, 1, side, side)


def lifted(scale: int, grid: int) -> torch.Tensor:
    """A bicubic resize of a scale's unit maps to a grid: (scale², 1, grid, grid)."""
    return F.interpolate(unit_maps(scale), size=(grid, grid), mode="bicubic")


def area_means(maps: torch.Tensor, scales: tuple[int, ...]) -> torch.Tensor:
    """The means over areas that maps have at all scales: (N, 1, grid, grid) -> (L, N)"""
    return torch.cat([F.adaptive_avg_pool2d(maps, scale).flatten(1).T for scale in scales])


@cached_matrix
def lifting_matrix(scale: int, grid: int) -> torch.Tensor:
    """A resize of a scale's tokens to a grid's: (grid², scale²)."""
    return lifted(scale, grid).flatten(1).T


@cached_matrix
def pooling_matrix(scales: tuple[int, ...], grid: int) -> torch.Tensor:
    """A grid's tokens to those of all scales: (L, grid²)."""
    return area_means(unit_maps(grid), scales)


@cached_matrix
def coupling_matrix(scales: tuple[int, ...], grid: int) -> torch.Tensor:
    """What each scale but the last, lifted to the grid, gives to the means at all: (L, L - tokens of the last)."""
    return area_means(torch.cat([lifted(scale, grid) for scale in scales[:-1]]), scales)


def prefix_lengths(scales: Sequence[int]) -> list[int]:
    """Lengths of code sequences that end with a scale."""
    return list(itertools.accumulate(scale * scale for scale in scales))
