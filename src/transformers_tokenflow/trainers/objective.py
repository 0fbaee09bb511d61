# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The model's side of the tokenizer's objective (paper §3.2, Eq. 4)."""

from collections.abc import Sequence

import torch
from torch import nn

from ..modeling_tokenflow import TokenFlowOutput
from .arguments import TokenFlowTrainingArguments
from .discriminator import Adversary
from .losses import make_perceptual_loss, negative_psnr
from .processes import mean_over_processes
from .teachers import Teacher

MODEL_LOSSES = ("pixel_loss", "codebook_loss", "commitment_loss", "entropy_loss", "semantic_loss")


class Objective:
    """
    Everything that the model minimises.

    Args:
        args: the weights.
        teacher: whose features the semantic decoder reconstructs; None: no distillation.
        adversary: judges the reconstructions; None: no adversarial loss.

    Raises:
        ValueError: an unknown perceptual loss, or the teacher's without a teacher.
        RuntimeError: the perceptual loss's weights can't be had.
    """

    def __init__(self, args: TokenFlowTrainingArguments, teacher: Teacher | None, adversary: Adversary | None) -> None:
        self.args = args
        self.teacher = teacher.to(args.device) if teacher is not None else None
        perceptual = make_perceptual_loss(args.perceptual_loss, teacher) if args.perceptual_loss_weight > 0 else None
        self.perceptual_loss = perceptual.to(args.device) if perceptual is not None else None
        self.adversary = adversary

    def losses(
        self,
        model: nn.Module,
        pixel_values: torch.Tensor,
        scales: Sequence[int] | None = None,
        is_adversarial: bool = False,
    ) -> tuple[dict[str, torch.Tensor], TokenFlowOutput]:
        """
        The parts by name, unweighted but for the quantiser's.

        Args:
            model: the tokenizer.
            pixel_values: (B, 3, H, H) in [-1, 1].
            scales: in place of the model's.
            is_adversarial: whether the reconstructions are judged.
        """
        teacher_features = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher_features = self.teacher(pixel_values)
        output = model(pixel_values=pixel_values, teacher_features=teacher_features, scales=scales, return_loss=True)
        losses = {name: output[name] for name in MODEL_LOSSES if output.get(name) is not None}
        if self.args.pixel_loss == "psnr":
            losses["pixel_loss"] = negative_psnr(output.pixel_values.float(), pixel_values)
        if self.perceptual_loss is not None:
            losses["perceptual_loss"] = self.perceptual_loss(output.pixel_values.float(), pixel_values)
        if is_adversarial:
            losses["adversarial_loss"] = self.adversary.generator_loss(output.pixel_values)
        return losses, output

    def weigh(self, losses: dict[str, torch.Tensor], last_layer: torch.Tensor) -> torch.Tensor:
        """
        The weighted sum.

        Args:
            losses: what `losses` gives.
            last_layer: the weight of the decoder's last layer, for the adaptive adversarial weight.
        """
        args = self.args
        weights = {
            "pixel_loss": args.pixel_loss_weight,
            "semantic_loss": args.semantic_loss_weight,
            "perceptual_loss": args.perceptual_loss_weight,
            "adversarial_loss": args.adversarial_weight,
        }
        weighted = {name: weights.get(name, 1.0) * loss for name, loss in losses.items()}
        if "adversarial_loss" in losses and args.adaptive_adversarial_weight:
            reconstruction = weighted["pixel_loss"] + weighted.get("perceptual_loss", 0.0)
            weighted["adversarial_loss"] *= gradient_ratio(reconstruction, losses["adversarial_loss"], last_layer)
        return torch.stack(list(weighted.values())).sum()


def gradient_ratio(reconstruction: torch.Tensor, adversarial: torch.Tensor, last_layer: torch.Tensor) -> torch.Tensor:
    """VQGAN's adaptive weight: how many times larger the one loss's gradient at the last layer is than the other's."""
    gradients = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (reconstruction, adversarial)]
    norms = [mean_over_processes(gradient).norm() for gradient in gradients]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
