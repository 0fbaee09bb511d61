# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Next-scale generation written down plainly: one picture, no cache, no padding, the whole sequence at every pass."""

from dataclasses import dataclass, field

import torch

from transformers_tokenflow import TokenFlowForTextToImage
from transformers_tokenflow.sampling_tokenflow import sample


@dataclass
class Plain:
    """Settings by the names of `generate`, for one picture."""

    model: TokenFlowForTextToImage
    prompt: torch.Tensor  # (P,)
    negative_prompt: torch.Tensor | None = None  # (P',)
    guidance_scale: float = 0.0
    guidance_schedule: str = "linear"
    top_k: list[int] = field(default_factory=lambda: [1])
    top_p: list[float] = field(default_factory=lambda: [0.0])
    temperature: float = 1.0
    attend_to_refined: bool = False
    seed: int = 0
    codes: torch.Tensor | None = None  # (L,)
    keep_scales: int = 0
    redrawn: list[torch.Tensor] | None = None  # (s, s) bool per scale

    @torch.no_grad()
    def generate(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The picture's codes (L,), and the guided scores (s², K) of every pass."""
        quantizer, scales = self.model.tokenizer.quantizer, self.model.tokenizer.config.scales
        generator = torch.Generator().manual_seed(self.seed)
        given = quantizer.split_codes(self.codes[None]) if self.codes is not None else None
        features, seen, result, all_scores = None, [], [], []
        for index, side in enumerate(scales):
            num_passes = len(self.top_k) if index > 0 else 1
            codes, inputs = None, [features]
            if index < self.keep_scales:
                codes = given[index]
                if num_passes > 1:
                    inputs.append(quantizer.next_scale_features(features, codes))
            else:
                for number in range(num_passes):
                    if number > 0:
                        inputs.append(quantizer.next_scale_features(features, codes))
                    scores = self.scores(seen, inputs[-1], index)
                    codes = self.draw(scores, number, generator).view(1, side, side)
                    if self.redrawn is not None:
                        codes = torch.where(self.redrawn[index], codes, given[index])
                    all_scores.append(scores[0])
            seen.append(inputs[-1 if self.attend_to_refined else 0])
            result.append(codes.flatten())
            next_side = scales[index + 1] if index + 1 < len(scales) else None
            features = quantizer.next_scale_features(features, codes, next_side)
        return torch.cat(result), all_scores

    def draw(self, scores: torch.Tensor, number: int, generator: torch.Generator) -> torch.Tensor:
        """(1, T, K) -> (1, T)"""
        top_k, top_p = self.top_k[number], self.top_p[number]
        uniform = None if top_k == 1 else torch.rand(scores.shape[1], generator=generator)[None]
        return sample(scores, top_k, top_p, self.temperature, uniform)

    def scores(self, seen: list[torch.Tensor], features: torch.Tensor | None, index: int) -> torch.Tensor:
        """Guided scores of a scale, given the inputs of those before it: (1, s², K)"""
        inputs = [*seen[1:], features] if index > 0 else []
        conditional = self.predict(self.prompt, inputs)
        if self.guidance_scale == 0:
            return conditional
        num_scales = len(self.model.tokenizer.config.scales)
        share = 1 if self.guidance_schedule == "constant" else index / (num_scales - 1)
        weight = self.guidance_scale * share
        return (1 + weight) * conditional - weight * self.predict(self.negative_prompt, inputs)

    def predict(self, prompt: torch.Tensor, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Scores at the last of the inputs, or at the prompt's last token."""
        parts, kinds, start = [self.model.model.embed_prompt(prompt[None])], [torch.full_like(prompt, -1)], 1
        for index, features in enumerate(inputs):
            parts.append(self.model.model.embed_image(features.flatten(2).transpose(1, 2), start))
            kinds.append(torch.full((parts[-1].shape[1],), index))
            start += parts[-1].shape[1]
        embeds, kind = torch.cat(parts, dim=1), torch.cat(kinds)
        visible = kind[:, None] >= kind[None]
        visible[: len(prompt), : len(prompt)] = torch.ones(len(prompt), len(prompt)).tril().bool()
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None]
        hidden = self.model.model(embeds, attention_mask=mask).last_hidden_state
        return self.model.visual_head(hidden[:, -parts[-1].shape[1] if inputs else -1 :])
