# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Scores of drawn pictures, by which `best_of` chooses. It needs open_clip, and is no part of saved models."""

from collections import OrderedDict
from pathlib import Path

import open_clip
import torch
from torch.nn import functional as F

# Texts whose embeddings are kept: those of the prompts that are being drawn are asked for at every pruned scale.
CACHE_SIZE = 1024


class OpenClipScorer:
    """
    How well pictures go with their prompts, seen by the CLIP that taught the image tokenizer.

    The tokenizer decodes the teacher's features from codes, so that no picture need be made to be looked at: the score
    is the cosine of their mean with the text's embedding. For CLIPs that pool otherwise this only approximates their
    own score.

        scorer = OpenClipScorer("local-dir:hub_cards/tokenflow-tiny-teacher")
        picture = painter("a red apple", best_of=8, scorer=scorer)

    Args:
        model: as `open_clip.create_model_and_transforms` names it; a path as `local-dir:PATH`, or plainly as one.
        pretrained: the tag of its weights, for architectures of open_clip.
        device: where texts are embedded.

    Raises:
        RuntimeError: open_clip has no such model or no weights of it.
    """

    def __init__(self, model: str, pretrained: str | None = None, device: str | torch.device = "cpu"):
        name = f"local-dir:{model}" if Path(model).is_dir() else model
        # Without weights open_clip would only warn, and scores mean nothing.
        self.model = open_clip.create_model(name, pretrained, device=device, require_pretrained=True).eval()
        self.tokenizer = open_clip.get_tokenizer(name)
        self.device = torch.device(device)
        self._embeddings: OrderedDict[str, torch.Tensor] = OrderedDict()

    @torch.no_grad()
    def __call__(self, semantic_features: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """
        Score pictures.

        Args:
            semantic_features: (M, N, d_teacher), as the tokenizer decodes them.
            prompts: M texts.

        Returns:
            (M,) cosines, in fp32 and on the features' device.

        Raises:
            ValueError: the features are another CLIP's, or there are not as many prompts.
        """
        if semantic_features.dim() != 3 or len(semantic_features) != len(prompts):
            raise ValueError(
                f"expected semantic features (M, N, d_teacher) of {len(prompts)} pictures, as many as prompts; got "
                f"{tuple(semantic_features.shape)}"
            )
        pictures = F.normalize(semantic_features.float().mean(dim=1), dim=-1)
        texts = self.embed(prompts).to(pictures.device)
        if pictures.shape[1] != texts.shape[1]:
            raise ValueError(
                f"the tokenizer's teacher has features of width {pictures.shape[1]}, but this CLIP {texts.shape[1]}: "
                "score with the teacher"
            )
        return (pictures * texts).sum(dim=-1)

    @torch.no_grad()
    def embed(self, texts: list[str]) -> torch.Tensor:
        """Embeddings of M texts, of unit length: (M, d) in fp32."""
        new = [text for text in dict.fromkeys(texts) if text not in self._embeddings]
        if new:
            ids = self.tokenizer(new).to(self.device)
            embeddings = self.model.encode_text(ids, normalize=True).float()
            self._embeddings.update(zip(new, embeddings, strict=True))
        result = torch.stack([self._embeddings[text] for text in texts])
        while len(self._embeddings) > CACHE_SIZE:
            self._embeddings.popitem(last=False)
        return result

    @torch.no_grad()
    def embed_pictures(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Embeddings of finished pictures, by the CLIP's own image tower.

        Args:
            pixel_values: (B, 3, H, H) in [-1, 1]; another size than the CLIP's is resized.

        Returns:
            (B, d) in fp32, as the tower gives them: not of unit length.
        """
        visual = self.model.visual
        size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
        pictures = (pixel_values.to(self.device, torch.float32).clamp(-1, 1) + 1) / 2
        if pictures.shape[-1] != size:
            pictures = F.interpolate(pictures, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (pictures.new_tensor(value).view(-1, 1, 1) for value in (visual.image_mean, visual.image_std))
        return self.model.encode_image((pictures - mean) / std).float()


__all__ = ["OpenClipScorer"]
