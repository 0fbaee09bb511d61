# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from tiny_models import pictures, tiny_config
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from transformers_tokenflow.autoencoder_tokenflow import (
    TokenFlowDownsample,
    TokenFlowPixelAttention,
    TokenFlowPixelDecoder,
    TokenFlowPixelEncoder,
    TokenFlowResidualBlock,
    TokenFlowUpsample,
    swish,
)


def kinds(module: nn.Module) -> list[str]:
    """The blocks by name, in the order in which they run."""
    return [type(block).__name__.removeprefix("TokenFlow").removeprefix("Pixel") for block in module.blocks]


@pytest.mark.parametrize("multipliers", [[1], [1, 2], [1, 1, 2, 4]])
@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_shapes(multipliers: list[int], patch_size: int):
    config = tiny_config(pixel_channel_multipliers=multipliers, pixel_patch_size=patch_size)
    side = 4 * config.pixel_downsampling
    features = TokenFlowPixelEncoder(config)(torch.zeros(2, 3, side, side))
    assert features.shape == (2, config.pixel_codebook_dim, 4, 4)
    assert TokenFlowPixelDecoder(config)(features).shape == (2, 3, side, side)


def test_order_of_the_blocks():
    config = tiny_config(pixel_num_res_blocks=2, pixel_channel_multipliers=[1, 2, 4])
    middle = ["ResidualBlock", "Attention", "ResidualBlock"]
    lowest = ["ResidualBlock", "Attention"]
    encoder = TokenFlowPixelEncoder(config)
    level = ["ResidualBlock"] * 2 + ["Downsample"]
    assert kinds(encoder) == level * 2 + lowest * 2 + middle
    decoder = TokenFlowPixelDecoder(config)
    level = ["ResidualBlock"] * 3
    assert kinds(decoder) == middle + lowest * 3 + ["Upsample", *level, "Upsample", *level]
    widths = [block.conv2.out_channels for block in encoder.blocks if isinstance(block, TokenFlowResidualBlock)]
    assert widths == [8, 8, 16, 16, 32, 32, 32, 32]
    widths = [block.conv2.out_channels for block in decoder.blocks if isinstance(block, TokenFlowResidualBlock)]
    assert widths == [32, 32, 32, 32, 32, 16, 16, 16, 8, 8, 8]


@pytest.mark.parametrize(("levels", "expected"), [([], 1), ([-1], 2), ([0, 1, 2], 4), ([1, -2], 2)])
def test_attention_at_the_levels_asked_for(levels: list[int], expected: int):
    config = tiny_config(pixel_channel_multipliers=[1, 1, 1], pixel_attention_levels=levels)
    assert kinds(TokenFlowPixelEncoder(config)).count("Attention") == expected


def test_enhanced_decoder():
    config = tiny_config(decoder_channels=16, decoder_num_res_blocks=3)
    assert TokenFlowPixelEncoder(config).conv_in.out_channels == 8
    decoder = TokenFlowPixelDecoder(config)
    assert decoder.conv_out.in_channels == 16
    assert kinds(decoder).count("ResidualBlock") == 2 + 2 * (3 + 1)


def test_residual_block():
    block = TokenFlowResidualBlock(8, 16, 4)
    assert isinstance(block, GradientCheckpointingLayer)
    inputs = torch.randn(2, 8, 5, 5)
    hidden = block.conv1(F.silu(F.group_norm(inputs, 4, block.norm1.weight, block.norm1.bias, 1e-6)))
    hidden = block.conv2(F.silu(F.group_norm(hidden, 4, block.norm2.weight, block.norm2.bias, 1e-6)))
    torch.testing.assert_close(block(inputs), block.shortcut(inputs) + hidden)
    assert isinstance(TokenFlowResidualBlock(8, 8, 4).shortcut, nn.Identity)


def test_attention_is_one_head_over_all_positions():
    attention = TokenFlowPixelAttention(8, 4)
    inputs = torch.randn(2, 8, 3, 3)
    query, key, value = attention.qkv(attention.norm(inputs).flatten(2).transpose(1, 2)).chunk(3, dim=-1)
    weights = (query @ key.transpose(1, 2) * 8**-0.5).softmax(dim=-1)
    expected = inputs + attention.out_proj(weights @ value).transpose(1, 2).reshape(2, 8, 3, 3)
    torch.testing.assert_close(attention(inputs), expected)


def test_downsampling_pads_below_and_on_the_right():
    downsample = TokenFlowDownsample(2)
    inputs = torch.randn(1, 2, 4, 4)
    padded = torch.zeros(1, 2, 5, 5)
    padded[:, :, :4, :4] = inputs
    expected = F.conv2d(padded, downsample.conv.weight, downsample.conv.bias, stride=2)
    torch.testing.assert_close(downsample(inputs), expected)
    assert expected.shape[-1] == 2


def test_upsampling_repeats_pixels():
    upsample = TokenFlowUpsample(2)
    inputs = torch.randn(1, 2, 3, 3)
    repeated = inputs.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(upsample(inputs), upsample.conv(repeated))


def test_swish_leaves_its_input_alone_where_the_backward_pass_needs_it():
    inputs = torch.randn(10)
    kept = inputs.clone()
    torch.testing.assert_close(swish(inputs), F.silu(kept))
    assert torch.equal(inputs, kept)
    with torch.no_grad():
        torch.testing.assert_close(swish(inputs), F.silu(kept))


def test_inference_equals_training_and_leaves_the_pictures_alone():
    config = tiny_config()
    encoder, decoder = TokenFlowPixelEncoder(config), TokenFlowPixelDecoder(config)
    pixel_values = pictures(config)
    kept = pixel_values.clone()
    expected = encoder(pixel_values)
    with torch.no_grad():
        features = encoder(pixel_values)
        torch.testing.assert_close(features, expected)
        kept_features = features.clone()
        decoded = decoder(features)
        assert torch.equal(features, kept_features)
    torch.testing.assert_close(decoded, decoder(features))
    assert torch.equal(pixel_values, kept)
