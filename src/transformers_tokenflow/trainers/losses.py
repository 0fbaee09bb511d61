# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Losses of the tokenizer's training that pictures are compared by."""

import torch
from torch import nn
from torch.nn import functional as F

from .teachers import Teacher

PERCEPTUAL_LOSSES = ("lpips", "teacher", "none")
PIXEL_LOSSES = ("mse", "psnr")
# Of the mean squared error in [-1, 1]: about 60 dB, so that a picture without error has a finite gradient.
PSNR_FLOOR = 4e-6


def negative_psnr(reconstruction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    Minus the mean over pictures of their peak signal-to-noise ratio in dB: two batches (B, 3, H, W) in [-1, 1] -> ()

    The mean squared error minds the hardest pictures most; here a picture counts by its ratio, whatever its error.
    """
    errors = (reconstruction - pixel_values).square().mean(dim=(1, 2, 3))
    return 10 * ((errors + PSNR_FLOOR) / 4).log10().mean()


class LpipsLoss(nn.Module):
    """
    LPIPS (arXiv 1801.03924) on VGG16, frozen and in evaluation mode.

    Raises:
        RuntimeError: lpips is not installed, or VGG16's weights can't be had.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            import lpips

            self.model = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)
        except Exception as error:
            raise RuntimeError(
                "perceptual_loss='lpips' needs the package lpips and torchvision's VGG16 weights, which could not be "
                f"loaded ({error}). Put them into torch's hub cache, or choose perceptual_loss='teacher' or 'none'."
            ) from error

    def train(self, mode: bool = True) -> "LpipsLoss":
        return super().train(False)

    def forward(self, reconstruction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Two batches (B, 3, H, W) in [-1, 1] -> mean distance."""
        return self.model(reconstruction, pixel_values).mean()


class TeacherLoss(nn.Module):
    """Mean over patches of one minus the cosine of the teacher's features of the two pictures."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, reconstruction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Two batches (B, 3, H, W) in [-1, 1] -> mean distance."""
        with torch.no_grad():
            target = self.teacher(pixel_values)
        return (1 - F.cosine_similarity(self.teacher(reconstruction), target, dim=-1)).mean()


def make_perceptual_loss(name: str, teacher: Teacher | None) -> nn.Module | None:
    """
    Raises:
        ValueError: unknown name, or `"teacher"` without one.
        RuntimeError: the backbone's weights can't be had.
    """
    if name == "none":
        return None
    if name == "lpips":
        return LpipsLoss()
    if name == "teacher":
        if teacher is None:
            raise ValueError("perceptual_loss='teacher' needs a teacher")
        return TeacherLoss(teacher)
    raise ValueError(f"unknown perceptual loss {name!r}: expected one of {', '.join(PERCEPTUAL_LOSSES)}")
