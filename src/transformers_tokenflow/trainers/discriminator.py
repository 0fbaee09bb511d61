# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The PatchGAN discriminator (arXiv 1611.07004) with the hinge loss, as VQGAN and TokenFlow train with."""

import torch
from torch import nn
from torch.nn import functional as F


class PatchDiscriminator(nn.Module):
    """
    Convolutions that judge overlapping patches of a picture.

    Args:
        channels: width of the first layer; the following ones double it, up to eight times.
        num_layers: layers of stride 2 (official: 3). Two more of stride 1 follow.
    """

    def __init__(self, channels: int = 64, num_layers: int = 3):
        super().__init__()
        widths = [channels * min(2**index, 8) for index in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for index, (before, width) in enumerate(zip(widths, widths[1:]), start=1):
            stride = 2 if index < num_layers else 1
            layers += [
                nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.apply(self._init_weights)

    @staticmethod
    def _init_weights(module: nn.Module):
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 1, h, w): large where a patch looks real"""
        return self.layers(pixel_values)


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Hinge loss, half for the real and half for the reconstructed pictures' judgements."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: torch.Tensor) -> torch.Tensor:
    """What the decoder minimises: the negated mean judgement of its pictures."""
    return -fake.mean()
