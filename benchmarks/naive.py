"""The quantiser as one writes it down first: the baseline of the benchmark, and a second opinion for the tests."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def squared_distances(vectors: Tensor, entries: Tensor) -> Tensor:
    """All pairwise squared distances: (N, D), (K, D) -> (N, K)."""
    return (vectors**2).sum(dim=1, keepdim=True) + (entries**2).sum(dim=1) - 2 * vectors @ entries.T


def naive_quantize(
    features: Tensor, semantic: Tensor, pixel: Tensor, scales: Sequence[int], distance_weight: float = 1.0
) -> tuple[Tensor, Tensor]:
    """
    Multi-scale residual quantisation with every distance and a one-hot matrix in memory.

    Args:
        features: (B, d_sem + d_pix, H, H).
        semantic, pixel: (K, d_sem) and (K, d_pix), the two codebooks.
        scales: sides of the token maps.
        distance_weight: of the pixel distance.

    Returns:
        (B, d_sem + d_pix, H, H) quantised features, (B, L) codes.
    """
    semantic, pixel = F.normalize(semantic, dim=1), F.normalize(pixel, dim=1)
    residual, quantized, codes = features, torch.zeros_like(features), []
    for scale in scales:
        small = F.interpolate(residual, size=(scale, scale), mode="area")
        tokens = small.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
        first = F.normalize(tokens[:, : semantic.shape[1]], dim=1)
        second = F.normalize(tokens[:, semantic.shape[1] :], dim=1)
        distances = squared_distances(first, semantic) + distance_weight * squared_distances(second, pixel)
        index = distances.argmin(dim=1)
        one_hot = torch.zeros_like(distances).scatter_(1, index[:, None], 1)
        chosen = torch.cat([one_hot @ semantic, one_hot @ pixel], dim=1)
        chosen = chosen.view(len(features), scale, scale, -1).permute(0, 3, 1, 2)
        contribution = F.interpolate(chosen, size=features.shape[-2:], mode="bicubic")
        quantized, residual = quantized + contribution, residual - contribution
        codes.append(index.view(len(features), -1))
    return quantized, torch.cat(codes, dim=1)
