# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Networks that look at pictures for a measure: FID's features and LPIPS, by torchmetrics."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from . import EvaluationError

if TYPE_CHECKING:
    from ..scoring import OpenClipScorer

INCEPTION_WIDTH = 2048
# The main process alone computes results, of the sums of all: torchmetrics would wait for the others.
ALONE: dict[str, Any] = {"sync_on_compute": False}


class ClipFeatures(nn.Module):
    """A CLIP's embeddings of pictures, as features for FID. Its pictures are bytes (B, 3, H, W)."""

    def __init__(self, scorer: "OpenClipScorer") -> None:
        super().__init__()
        self.scorer = scorer
        self.num_features = scorer.embed([""]).shape[1]

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 -> (B, d)"""
        return self.scorer.embed_pictures(pictures.float() / 127.5 - 1)


def inception_distance(device: torch.device) -> FrechetInceptionDistance:
    """
    FID with the features it is usually reported with: Inception v3 in torch-fidelity's port.

    Raises:
        EvaluationError: torch-fidelity is not installed, or its weights are neither here nor to be had.
    """
    try:
        return FrechetInceptionDistance(INCEPTION_WIDTH, **ALONE).to(device)
    except ModuleNotFoundError as error:
        raise EvaluationError("Inception's features take `pip install torch-fidelity`") from error
    except (OSError, RuntimeError) as error:  # the network, or a damaged file
        raise EvaluationError(f"Inception's weights are not here and can't be downloaded: {error}") from error


def clip_distance(scorer: "OpenClipScorer") -> FrechetInceptionDistance:
    """FID with the embeddings of a CLIP in place of Inception's features."""
    return FrechetInceptionDistance(ClipFeatures(scorer), **ALONE).to(scorer.device)


def perceptual_similarity(device: torch.device) -> LearnedPerceptualImagePatchSimilarity:
    """
    LPIPS by AlexNet, of pictures in [0, 1]; one value a picture.

    Raises:
        EvaluationError: torchvision's weights of AlexNet are neither here nor to be had.
    """
    try:
        metric = LearnedPerceptualImagePatchSimilarity("alex", reduction="none", normalize=True, **ALONE)
    except (OSError, RuntimeError) as error:  # the network, or a damaged file
        raise EvaluationError(f"AlexNet's weights are not here and can't be downloaded: {error}") from error
    return metric.to(device)
