# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The PatchGAN discriminator (arXiv 1611.07004) with the hinge loss, as VQGAN and TokenFlow train with."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from .processes import ProcessesBatchNorm2d


class PatchDiscriminator(nn.Module):
    """
    Convolutions that judge overlapping patches of a picture.

    Args:
        channels: width of the first layer; the following ones double it, up to eight times.
        num_layers: layers of stride 2 (official: 3). Two more of stride 1 follow.
    """

    def __init__(self, channels: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        widths = [channels * min(2**index, 8) for index in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for index, (before, width) in enumerate(zip(widths, widths[1:], strict=False), start=1):
            stride = 2 if index < num_layers else 1
            layers += [
                nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False),
                ProcessesBatchNorm2d(width),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.apply(self._init_weights)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
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


class DiscriminatorLoss(nn.Module):
    """A discriminator's own loss of real and reconstructed pictures, as a module, for `DistributedDataParallel`."""

    def __init__(self, discriminator: nn.Module) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """Two batches (B, 3, H, W) in [-1, 1] -> ()"""
        return discriminator_loss(self.discriminator(real), self.discriminator(fake))


class Adversary:
    """
    A discriminator with an Adam of its own, which takes its step after the model's.

    accelerate neither prepares nor scales it, since fp16's loss scaler serves one optimizer: it stays in full
    precision and, with several processes, replicated, whatever becomes of the model.

    Args:
        discriminator: judges pictures (B, 3, H, W).
        device: where it runs.
        num_processes: over which its gradients are averaged.
        learning_rate, betas: of Adam.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        device: torch.device,
        num_processes: int,
        learning_rate: float,
        betas: tuple[float, float],
    ):
        self.discriminator = discriminator.to(device)
        self.device = device
        self.loss: nn.Module = DiscriminatorLoss(self.discriminator)
        if num_processes > 1:
            # Gradients are averaged here, the batch statistics of the norms by themselves.
            self.loss = DistributedDataParallel(self.loss, device_ids=None if device.type == "cpu" else [device])
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=learning_rate, betas=betas)

    def generator_loss(self, fake: torch.Tensor) -> torch.Tensor:
        """The reconstructions' adversarial loss, whose gradient leaves the discriminator alone."""
        self.discriminator.requires_grad_(False)
        with torch.autocast(self.device.type, enabled=False):
            loss = generator_loss(self.discriminator(fake.float()))
        self.discriminator.requires_grad_(True)
        return loss

    def backward(self, real: torch.Tensor, fake: torch.Tensor, weight: float) -> torch.Tensor:
        """Add the gradient of the discriminator's own loss, times the weight; returns the loss."""
        with torch.autocast(self.device.type, enabled=False):
            loss = self.loss(real.float(), fake.float())
        (weight * loss).backward()
        return loss.detach()

    def step(self, max_grad_norm: float) -> None:
        """Clip (0: not at all) and apply the gradient, unless it is not finite, as an overflow of fp16 makes it."""
        norm = nn.utils.clip_grad_norm_(self.discriminator.parameters(), max_grad_norm or math.inf)
        if norm.isfinite():
            self.optimizer.step()
        self.optimizer.zero_grad()
