# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Frozen vision encoders whose features the semantic codebook distils."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, CLIPVisionModelWithProjection, PreTrainedModel

from ..conversion import convert_clip_tower
from ..modeling_tokenflow import TokenFlowModel
from ..semantic_tokenflow import drop_prefix_tokens


class Teacher(nn.Module):
    """
    A frozen vision tower that sees pictures as its own preprocessing would show them.

    Args:
        tower: called with pictures (B, 3, H, H), gives patch features (B, N, d_teacher).
        image_size: side the pictures are resized to.
        image_mean, image_std: of pixels in [0, 1].
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, tower: nn.Module, image_size: int, image_mean: list[float], image_std: list[float]) -> None:
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)
        self.image_size = image_size
        self.register_buffer("mean", torch.tensor(image_mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(image_std).view(-1, 1, 1))

    def train(self, mode: bool = True) -> "Teacher":
        return super().train(False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, H) in [-1, 1] -> (B, N, d_teacher). Gradients reach the pictures, never the weights."""
        if pixel_values.shape[-1] != self.image_size:
            pixel_values = F.interpolate(pixel_values, size=(self.image_size,) * 2, mode="bicubic")
        pixel_values = (pixel_values + 1) / 2
        return self.tower((pixel_values - self.mean) / self.std)


class OpenClipTower(nn.Module):
    """Patch features of an open_clip model: of its own ViT after the last norm and the projection, of timm's as is."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        self.is_timm = hasattr(visual, "trunk")
        if not self.is_timm:
            visual.output_tokens = True

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.is_timm:
            return drop_prefix_tokens(self.visual.trunk.forward_features(pixel_values))
        _, tokens = self.visual(pixel_values)
        return tokens if self.visual.proj is None else tokens @ self.visual.proj


class TransformersTower(nn.Module):
    """Patch features of a CLIP or SigLIP of transformers."""

    def __init__(self, model: nn.Module, feature_layer: int) -> None:
        super().__init__()
        self.model: Any = model
        self.feature_layer = feature_layer

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        output = self.model(pixel_values, output_hidden_states=True)
        tokens = drop_prefix_tokens(output.hidden_states[self.feature_layer])
        if not hasattr(self.model, "visual_projection"):
            return tokens
        return self.model.visual_projection(self.model.vision_model.post_layernorm(tokens))


def load_teacher(
    name: str, library: str = "open_clip", pretrained: str | None = None, feature_layer: int | None = None
) -> Teacher:
    """
    Load a teacher.

    Args:
        name: for `open_clip` a model name or `local-dir:FOLDER`; for `transformers` a repository or folder.
        library: `"open_clip"` or `"transformers"`.
        pretrained: open_clip's tag, or a local file with weights.
        feature_layer: hidden state that is read (transformers): by default the last of CLIP, which is then
            projected, and the last but one of SigLIP.

    Raises:
        ValueError: unknown library, or a model without a vision tower.
        RuntimeError: open_clip has no weights of that name.
    """
    if library == "open_clip":
        return _load_open_clip(name, pretrained)
    if library == "transformers":
        return _load_transformers(name, feature_layer)
    raise ValueError(f"unknown library of teachers {library!r}: expected 'open_clip' or 'transformers'")


def _load_open_clip(name: str, pretrained: str | None) -> Teacher:
    import open_clip

    # Without weights open_clip would only warn, and the teacher be random.
    model = open_clip.create_model(name, pretrained=pretrained, require_pretrained=True)
    size = model.visual.image_size
    size = size if isinstance(size, int) else size[0]
    return Teacher(OpenClipTower(model.visual), size, list(model.visual.image_mean), list(model.visual.image_std))


def _load_transformers(name: str, feature_layer: int | None) -> Teacher:
    from transformers import AutoImageProcessor

    config = AutoConfig.from_pretrained(name)
    is_clip = config.model_type in ("clip", "clip_vision_model")
    model_class = CLIPVisionModelWithProjection if is_clip else AutoModel
    model, loading = model_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    if loading["missing_keys"]:
        raise ValueError(f"{name} lacks weights of its teacher: {', '.join(sorted(loading['missing_keys'])[:8])}")
    if not is_clip:
        model = getattr(model, "vision_model", model)
    processor = AutoImageProcessor.from_pretrained(name)
    layer = feature_layer if feature_layer is not None else (-1 if is_clip else -2)
    return Teacher(TransformersTower(model, layer), model.config.image_size, processor.image_mean, processor.image_std)


def initialize_semantic_encoder(model: TokenFlowModel, teacher: Teacher) -> None:
    """
    Start the semantic encoder from the teacher's weights (paper §3.2, Table 5).

    Raises:
        ValueError: the two have different architectures.
    """
    target: Any = model.semantic_encoder.model
    tower: Any = teacher.tower
    if isinstance(tower, OpenClipTower) and not tower.is_timm:
        weights: dict[str, Any] = convert_clip_tower(tower.visual.state_dict())
        block = tower.visual.transformer.resblocks[0]
        is_quick = type(block.mlp.gelu).__name__ == "QuickGELU"
        _check_block(target, block.attn.num_heads, "quick_gelu" if is_quick else "gelu")
    elif isinstance(tower, OpenClipTower):
        weights = {f"timm_model.{name}": tensor for name, tensor in tower.visual.trunk.state_dict().items()}
    else:
        source = getattr(tower.model, "vision_model", tower.model)
        weights = source.state_dict()
        _check_block(target, source.config.num_attention_heads, source.config.hidden_act)
    expected = target.state_dict()
    unfit = [name for name, tensor in expected.items() if name not in weights or weights[name].shape != tensor.shape]
    if unfit:
        raise ValueError(f"the teacher has no such weights for the semantic encoder: {', '.join(unfit[:8])}")
    target.load_state_dict({name: weights[name] for name in expected})


def _check_block(target: PreTrainedModel, num_heads: int, activation: str) -> None:
    """Compare what the weights' shapes don't show."""
    got = target.config.num_attention_heads, target.config.hidden_act
    if got != (num_heads, activation):
        raise ValueError(
            f"the teacher has {num_heads} attention heads and {activation}, the semantic encoder {got[0]} and {got[1]}"
        )
