# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The pixel half of TokenFlow: VQGAN's convolutional encoder and decoder (arXiv 2012.09841)."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_tokenflow import TokenFlowConfig


def swish(hidden_states: torch.Tensor) -> torch.Tensor:
    """SiLU, in place where it can be: what a norm gave is needed by the backward pass and by nobody else."""
    return F.silu(hidden_states, inplace=not torch.is_grad_enabled())


class TokenFlowResidualBlock(GradientCheckpointingLayer):
    """norm, swish, 3×3, norm, swish, 3×3, plus a shortcut that is a 1×1 convolution where the widths differ."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(num_groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, h, w)"""
        residual = self.shortcut(hidden_states)
        hidden_states = self.conv1(swish(self.norm1(hidden_states)))
        hidden_states = self.conv2(swish(self.norm2(hidden_states)))
        return hidden_states + residual


class TokenFlowPixelAttention(nn.Module):
    """Self-attention with one head over all positions of a feature map."""

    def __init__(self, channels: int, num_groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, channels, eps=1e-6)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, C, h, w)"""
        tokens = self.norm(hidden_states).flatten(2).transpose(1, 2)
        query, key, value = self.qkv(tokens).unsqueeze(1).chunk(3, dim=-1)
        tokens = self.out_proj(F.scaled_dot_product_attention(query, key, value).squeeze(1))
        return hidden_states + tokens.transpose(1, 2).view_as(hidden_states)


class TokenFlowDownsample(nn.Module):
    """3×3 convolution of stride 2, padded on the right and below only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, C, h / 2, w / 2)"""
        return self.conv(F.pad(hidden_states, (0, 1, 0, 1)))


class TokenFlowUpsample(nn.Module):
    """Nearest ×2, then a 3×3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, C, 2h, 2w)"""
        return self.conv(F.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))


def level(in_channels: int, out_channels: int, num_blocks: int, attention: bool, num_groups: int) -> list[nn.Module]:
    """The residual blocks of one resolution, each followed by attention where asked for."""
    modules: list[nn.Module] = []
    for index in range(num_blocks):
        modules.append(TokenFlowResidualBlock(in_channels if index == 0 else out_channels, out_channels, num_groups))
        if attention:
            modules.append(TokenFlowPixelAttention(out_channels, num_groups))
    return modules


def middle(channels: int, num_groups: int) -> list[nn.Module]:
    """Block, attention, block: what stands between the lowest level and the latent."""
    return [
        TokenFlowResidualBlock(channels, channels, num_groups),
        TokenFlowPixelAttention(channels, num_groups),
        TokenFlowResidualBlock(channels, channels, num_groups),
    ]


class TokenFlowPixelEncoder(nn.Module):
    """Pixels to the features that the pixel codebook quantises."""

    def __init__(self, config: TokenFlowConfig):
        super().__init__()
        groups = config.norm_num_groups
        widths = [config.pixel_channels * multiplier for multiplier in config.pixel_channel_multipliers]
        with_attention = attention_levels(config)
        self.patch_size = config.pixel_patch_size
        self.conv_in = nn.Conv2d(3 * self.patch_size**2, config.pixel_channels, 3, padding=1)
        blocks: list[nn.Module] = []
        for index, (before, width) in enumerate(zip([config.pixel_channels, *widths], widths, strict=False)):
            blocks += level(before, width, config.pixel_num_res_blocks, index in with_attention, groups)
            if index < len(widths) - 1:
                blocks.append(TokenFlowDownsample(width))
        self.blocks = nn.ModuleList(blocks + middle(widths[-1], groups))
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.pixel_latent_channels, 3, padding=1)
        self.projection = nn.Conv2d(config.pixel_latent_channels, config.pixel_codebook_dim, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, grid · f, grid · f) in [-1, 1] -> (B, pixel_codebook_dim, grid, grid), f: `pixel_downsampling`"""
        hidden_states = self.conv_in(F.pixel_unshuffle(pixel_values, self.patch_size))
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.projection(self.conv_out(swish(self.norm_out(hidden_states))))


class TokenFlowPixelDecoder(nn.Module):
    """The pixel part of the quantised features back to pixels."""

    def __init__(self, config: TokenFlowConfig):
        super().__init__()
        groups = config.norm_num_groups
        widths = [config.decoder_channels * multiplier for multiplier in config.pixel_channel_multipliers]
        with_attention = attention_levels(config)
        self.patch_size = config.pixel_patch_size
        # Without a pixel codebook pixels are decoded from the semantic one (paper Table 5, first row).
        in_channels = config.pixel_codebook_dim or config.semantic_codebook_dim
        self.projection = nn.Conv2d(in_channels, config.pixel_latent_channels, 1)
        self.conv_in = nn.Conv2d(config.pixel_latent_channels, widths[-1], 3, padding=1)
        blocks = middle(widths[-1], groups)
        before = widths[-1]
        for index, width in reversed(list(enumerate(widths))):
            blocks += level(before, width, config.decoder_num_res_blocks + 1, index in with_attention, groups)
            if index > 0:
                blocks.append(TokenFlowUpsample(width))
            before = width
        self.blocks = nn.ModuleList(blocks)
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3 * self.patch_size**2, 3, padding=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, pixel_codebook_dim, grid, grid) -> (B, 3, grid · f, grid · f), unbounded"""
        hidden_states = self.conv_in(self.projection(features))
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return F.pixel_shuffle(self.conv_out(swish(self.norm_out(hidden_states))), self.patch_size)


def attention_levels(config: TokenFlowConfig) -> set[int]:
    """Indices of the levels with attention, negative ones counted from the lowest resolution."""
    levels = range(len(config.pixel_channel_multipliers))
    return {levels[index] for index in config.pixel_attention_levels}
