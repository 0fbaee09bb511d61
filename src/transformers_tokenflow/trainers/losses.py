# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Perceptual losses of the tokenizer's training."""

import torch
from torch import nn
from torch.nn import functional as F

from .teachers import Teacher

PERCEPTUAL_LOSSES = ("lpips", "teacher", "none")


class LpipsLoss(nn.Module):
    """LPIPS (arXiv 1801.03924) on VGG16, frozen and in evaluation mode."""

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
