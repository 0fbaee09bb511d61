# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The semantic half of TokenFlow: an encoder that starts as its teacher, and a decoder back to the teacher's space."""

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.models.siglip.modeling_siglip import SiglipEncoder, SiglipPreTrainedModel, SiglipVisionEmbeddings

from .configuration_tokenflow import TokenFlowConfig
from .quantization_tokenflow import to_map, to_tokens


def interpolate_positions(positions: torch.Tensor, grid: int) -> torch.Tensor:
    """
    Resize position embeddings to another square grid, leaving a class token's in place.

    The official models pass bicubic interpolation the factor (grid + 0.1) / old grid. That factor, unlike a target
    size, sets where the table is sampled, so it is kept.

    Args:
        positions: (1, [1 +] old_grid², width).
        grid: side of the new grid.

    Returns:
        (1, [1 +] grid², width)
    """
    old_grid = square_root(positions.shape[1])
    if old_grid == grid:
        return positions
    num_prefix = positions.shape[1] - old_grid * old_grid
    prefix, patches = positions[:, :num_prefix], positions[:, num_prefix:]
    patches = F.interpolate(to_map(patches, old_grid).float(), scale_factor=(grid + 0.1) / old_grid, mode="bicubic")
    return torch.cat([prefix, to_tokens(patches).to(prefix.dtype)], dim=1)


class TokenFlowCLIPVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's embeddings with positions interpolated as the official TokenFlow does."""

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return interpolate_positions(self.position_embedding(self.position_ids), height // self.patch_size)


class TokenFlowSiglipVisionEmbeddings(SiglipVisionEmbeddings):
    """SigLIP's embeddings with positions interpolated as the official TokenFlow does."""

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return interpolate_positions(self.position_embedding(self.position_ids), height // self.patch_size)


EMBEDDINGS = {
    "clip_vision_model": TokenFlowCLIPVisionEmbeddings,
    "siglip_vision_model": TokenFlowSiglipVisionEmbeddings,
}


class Fields(dict):
    """A dictionary, for JSON, whose entries are attributes as well, for timm."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


def make_vision_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """The vision model of a configuration, without a pooler, which nothing reads."""
    model_args = getattr(config, "model_args", None) or {}
    if "embed_cfg" in model_args:  # sizes of ViTamin's convolutional stem
        model_args["embed_cfg"] = Fields(model_args["embed_cfg"])
    options: dict[str, Any] = {}
    if config.model_type == "timm_wrapper":  # timm chooses its attention itself, and refuses what others are asked for
        options["attn_implementation"] = "sdpa"
    # A dtype that an earlier save left in the configuration must not make the tower differ from the rest.
    tower = AutoModel.from_config(config, dtype=torch.get_default_dtype(), **options)
    if config.model_type in EMBEDDINGS:
        tower.embeddings = EMBEDDINGS[config.model_type](config)
    if getattr(tower, "pooler", None) is not None:
        tower.pooler = None
    return tower


class TokenFlowSemanticEncoder(nn.Module):
    """A vision tower and a projection of its patch features to the semantic codebook's width."""

    def __init__(self, config: TokenFlowConfig):
        super().__init__()
        self.feature_norm = config.semantic_feature_norm
        self.image_mean = config.semantic_image_mean
        self.image_std = config.semantic_image_std
        self.model = make_vision_tower(config.semantic_config)
        self._no_split_modules = list(self.model._no_split_modules)
        # CLIP and SigLIP expose their parts: layers that are not read never run.
        self.is_layered = config.semantic_config.model_type in EMBEDDINGS
        self._check_feature_layer(config)
        if self.is_layered:
            self.num_layers = range(len(self.model.encoder.layers) + 1)[config.semantic_feature_layer]
        self.interpolates = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        width = hidden_size(self.model)
        self.projection = nn.Sequential(
            nn.Linear(width, width), nn.Tanh(), nn.Linear(width, config.semantic_codebook_dim)
        )
        self._freeze_unread()

    def _check_feature_layer(self, config: TokenFlowConfig) -> None:
        layer, model_type = config.semantic_feature_layer, config.semantic_config.model_type
        if not self.is_layered and (layer != -1 or self.feature_norm):
            raise ValueError(
                f"of a {model_type} only the last hidden state can be read: set semantic_feature_layer=-1 and "
                f"semantic_feature_norm=False; got {layer} and {self.feature_norm}"
            )
        if self.is_layered and not -len(self.model.encoder.layers) - 1 <= layer <= len(self.model.encoder.layers):
            raise ValueError(
                f"semantic_feature_layer={layer} is none of the {len(self.model.encoder.layers) + 1} hidden states"
            )

    def _freeze_unread(self) -> None:
        """Layers after the one that is read are kept for the checkpoint's sake but never run: they take no gradient."""
        if not self.is_layered:
            return
        unread = [*self.model.encoder.layers[self.num_layers :], getattr(self.model, "head", None)]
        if not self.feature_norm:
            unread.append(self.model.post_layernorm)
        for module in filter(None, unread):
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> "TokenFlowSemanticEncoder":
        # `from_pretrained` makes new parameters, which all take a gradient, and then calls this.
        super().train(mode)
        self._freeze_unread()
        return self

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, H) in [-1, 1] -> (B, semantic_codebook_dim, grid, grid)"""
        tokens = self.projection(self.features(pixel_values))
        return to_map(tokens, square_root(tokens.shape[1]))

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Patch features before the projection: (B, 3, H, H) in [-1, 1] -> (B, grid², width)."""
        pixel_values = self._normalize(pixel_values)
        if hasattr(self.model, "timm_model"):  # not through its wrapper, which asks an offloaded model for its device
            return drop_prefix_tokens(self.model.timm_model.forward_features(pixel_values))
        if not self.is_layered:
            kwargs = {"interpolate_pos_encoding": True} if self.interpolates else {}
            return drop_prefix_tokens(self.model(pixel_values, **kwargs).last_hidden_state)
        hidden_states = self.model.embeddings(pixel_values, interpolate_pos_encoding=True)
        if hasattr(self.model, "pre_layrnorm"):
            hidden_states = self.model.pre_layrnorm(hidden_states)
        for layer in self.model.encoder.layers[: self.num_layers]:
            hidden_states = layer(hidden_states, attention_mask=None)
        hidden_states = drop_prefix_tokens(hidden_states)
        return self.model.post_layernorm(hidden_states) if self.feature_norm else hidden_states

    def _normalize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.image_mean is None:
            return pixel_values
        mean = pixel_values.new_tensor(self.image_mean).view(-1, 1, 1)
        std = pixel_values.new_tensor(self.image_std).view(-1, 1, 1)
        return ((pixel_values + 1) / 2).clamp(0, 1).sub(mean).div(std)


class TokenFlowSemanticDecoder(SiglipPreTrainedModel):
    """Transformer blocks from the semantic part of the quantised features to the teacher's features."""

    def __init__(self, config: TokenFlowConfig):
        decoder = config.semantic_decoder_config
        super().__init__(decoder)
        self.initializer_range = config.initializer_range
        width = decoder.hidden_size
        self.in_proj = nn.Linear(config.semantic_codebook_dim, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + decoder.image_size**2, width))
        self.encoder = SiglipEncoder(decoder)
        self.norm = nn.LayerNorm(width, eps=decoder.layer_norm_eps)
        self.projection = nn.Sequential(
            nn.Linear(width, width), nn.Tanh(), nn.Linear(width, config.teacher_hidden_size)
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TokenFlowSemanticDecoder):
            init.trunc_normal_(module.class_token, std=self.initializer_range)
            init.trunc_normal_(module.position_embedding, std=self.initializer_range)

    @classmethod
    def is_custom_code(cls) -> bool:
        """Not in the sense meant, see `TokenFlowPreTrainedModel`."""
        return False

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, semantic_codebook_dim, grid, grid) -> (B, grid², teacher_hidden_size)"""
        grid = features.shape[-1]
        hidden_states = self.in_proj(to_tokens(features))
        class_tokens = self.class_token.expand(features.shape[0], -1, -1)  # `len` would fix the batch of an export
        hidden_states = torch.cat([class_tokens, hidden_states], dim=1)
        hidden_states = hidden_states + interpolate_positions(self.position_embedding, grid)
        hidden_states = self.encoder(hidden_states).last_hidden_state[:, 1:]
        return self.projection(self.norm(hidden_states))


def hidden_size(model: PreTrainedModel) -> int:
    """Width of a vision tower's features."""
    if hasattr(model, "timm_model"):
        return model.timm_model.num_features
    return model.config.hidden_size


def square_root(number: int) -> int:
    """Rounded down. `math.isqrt` takes no symbolic sizes, which compilation has for a second resolution."""
    return int(number**0.5)


def drop_prefix_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """Keep the square grid of patch tokens: (B, prefix + grid², D) -> (B, grid², D)."""
    num_patches = square_root(tokens.shape[1]) ** 2
    return tokens[:, tokens.shape[1] - num_patches :]
