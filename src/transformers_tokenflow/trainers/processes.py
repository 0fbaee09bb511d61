# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What has to be the same in several processes as in one that had all their pictures: means within a loss."""

from typing import Any

import torch
from torch import distributed, nn


class _SumOverProcesses(torch.autograd.Function):
    """All processes' sum, from which the gradients of all come back, as each contributed to every other's loss."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


def process_count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def mean_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """
    The mean of what all processes have, any shape, of as many examples each.

    Gradients are those of the mean of all processes' losses, once these are averaged, as in data-parallel training.
    """
    count = process_count()
    return tensor if count == 1 else _SumOverProcesses.apply(tensor) / count


class ProcessesBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with the statistics of all processes' pictures; torch's SyncBatchNorm is for GPUs alone."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W), B the same in all processes"""
        if not self.training or process_count() == 1:
            return super().forward(pixel_values)
        mean = mean_over_processes(pixel_values.mean(dim=(0, 2, 3)))
        centered = pixel_values - mean[:, None, None]
        variance = mean_over_processes(centered.square().mean(dim=(0, 2, 3)))
        self._track(mean, variance, process_count() * pixel_values.numel() // len(mean))
        scale = self.weight * (variance + self.eps).rsqrt()
        return centered * scale[:, None, None] + self.bias[:, None, None]

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        """The running statistics, of which the variance is, as in torch, without bias."""
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)
