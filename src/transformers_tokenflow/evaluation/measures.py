# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Numbers about reconstructions: how near they come to their pictures, and what they use of the codebook."""

from collections.abc import Sequence
from typing import Any

import torch

# SSIM's constants are relative to this range. The official evaluation names the range of [-1, 1], while its pictures
# lie in [0, 1], which makes its SSIM larger.
OFFICIAL_DATA_RANGE = 2.0


def psnr(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of pictures (B, 3, H, W) in [0, 1] -> (B,); infinite where they are equal."""
    return -10 * (prediction - target).square().flatten(1).mean(dim=1).log10()


def ssim(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Gaussian window, data range 1) of pictures (B, 3, H, W) in [0, 1] -> (B,)"""
    from torchmetrics.functional.image import structural_similarity_index_measure

    return structural_similarity_index_measure(prediction, target, data_range=1.0, reduction="none").reshape(-1)  # type: ignore[union-attr]


def official_ssim(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """As the official evaluation calls scikit-image (uniform 7 × 7 window, data range 2): the same, on the CPU."""
    from skimage.metrics import structural_similarity

    options: dict[str, Any] = {"channel_axis": 0, "data_range": OFFICIAL_DATA_RANGE}
    pairs = zip(prediction.cpu().numpy(), target.cpu().numpy(), strict=True)
    return torch.tensor([structural_similarity(real, fake, **options) for fake, real in pairs])


class CodebookUse:
    """
    How often each entry of the codebook is used at each scale.

    Args:
        scales: S sides of token maps, coarse first.
        codebook_size: K.
        counts: (S, K) long, to go on from; by default nothing has been used.
    """

    def __init__(self, scales: Sequence[int], codebook_size: int, counts: torch.Tensor | None = None) -> None:
        self.scales = list(scales)
        self.counts = torch.zeros(len(self.scales), codebook_size, dtype=torch.long) if counts is None else counts

    def update(self, codes_per_scale: Sequence[torch.Tensor]) -> None:
        """Count codes: for each scale a tensor of any shape."""
        for row, codes in zip(self.counts, codes_per_scale, strict=True):
            row += torch.bincount(codes.flatten().cpu(), minlength=len(row))

    def cluster_sizes(self) -> torch.Tensor:
        """How many tokens of all scales each entry stands for: (K,)"""
        return self.counts.sum(dim=0)

    def utilization(self) -> float:
        """Share of the entries that were used at all."""
        return (self.cluster_sizes() > 0).float().mean().item()

    def utilization_per_scale(self) -> dict[int, float]:
        """Share of the entries that each scale used, of as many as its tokens could have used."""
        used, tokens = (self.counts > 0).sum(dim=1), self.counts.sum(dim=1).clamp(max=self.counts.shape[1])
        shares = zip(used.tolist(), tokens.tolist(), strict=True)
        return {scale: used / max(tokens, 1) for scale, (used, tokens) in zip(self.scales, shares, strict=True)}
