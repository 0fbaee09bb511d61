# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from tiny_models import needs_timm, pictures, tiny_config
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, CLIPVisionModel, SiglipVisionModel, ViTModel

from transformers_tokenflow import TokenFlowModel
from transformers_tokenflow.semantic_tokenflow import (
    Fields,
    TokenFlowSemanticDecoder,
    TokenFlowSemanticEncoder,
    drop_prefix_tokens,
    interpolate_positions,
)


@pytest.mark.parametrize("num_prefix", [0, 1])
@pytest.mark.parametrize(("old", "new"), [(14, 16), (4, 3), (5, 11)])
def test_positions_are_sampled_by_the_official_factor(num_prefix: int, old: int, new: int):
    positions = torch.randn(1, num_prefix + old * old, 6)
    table = positions[:, num_prefix:].reshape(1, old, old, 6).permute(0, 3, 1, 2)
    expected = F.interpolate(table, scale_factor=(new + 0.1) / old, mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
    resized = interpolate_positions(positions, new)
    assert resized.shape == (1, num_prefix + new * new, 6)
    assert torch.equal(resized[:, :num_prefix], positions[:, :num_prefix])
    assert torch.equal(resized[:, num_prefix:], expected)
    assert interpolate_positions(positions, old) is positions


def test_positions_keep_their_dtype():
    assert interpolate_positions(torch.randn(1, 17, 6, dtype=torch.bfloat16), 5).dtype == torch.bfloat16


@pytest.mark.parametrize("grid", [1, 2, 7, 16, 27])
@pytest.mark.parametrize("num_prefix", [0, 1])
def test_patch_tokens(grid: int, num_prefix: int):
    tokens = torch.randn(2, num_prefix + grid * grid, 3)
    patches = drop_prefix_tokens(tokens)
    assert torch.equal(patches, tokens[:, num_prefix:])


# ---- Encoder ----


@pytest.mark.parametrize("layer", [-1, -2, -3, 0, 1, 2])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_features_are_the_towers_hidden_states(kind: str, layer: int, norm: bool):
    config = tiny_config(
        kind,
        semantic_feature_layer=layer,
        semantic_feature_norm=norm,
        semantic_image_mean=None,
        semantic_image_std=None,
    )
    encoder = TokenFlowSemanticEncoder(config).eval()
    tower = (CLIPVisionModel if kind == "clip" else SiglipVisionModel)(config.semantic_config).eval()
    tower.load_state_dict(encoder.model.state_dict())
    pixel_values = pictures(config)
    with torch.no_grad():
        hidden = tower(pixel_values, output_hidden_states=True).hidden_states[layer]
        hidden = hidden[:, 1:] if kind == "clip" else hidden
        expected = tower.post_layernorm(hidden) if norm else hidden
        torch.testing.assert_close(encoder.features(pixel_values), expected)


def test_features_of_any_other_tower_are_its_last_hidden_state():
    config = tiny_config("vit")
    encoder = TokenFlowSemanticEncoder(config).eval()
    tower = ViTModel(config.semantic_config, add_pooling_layer=False).eval()
    tower.load_state_dict(encoder.model.state_dict())
    with torch.no_grad():
        expected = tower(pictures(config)).last_hidden_state[:, 1:]
        torch.testing.assert_close(encoder.features(pictures(config)), expected)


@needs_timm
def test_features_of_vitamin_are_timms():
    config = tiny_config("vitamin", semantic_image_mean=None, semantic_image_std=None)
    encoder = TokenFlowSemanticEncoder(config).eval()
    with torch.no_grad():
        expected = encoder.model.timm_model.forward_features(pictures(config))
        torch.testing.assert_close(encoder.features(pictures(config)), expected)
    trunk = encoder.model.timm_model
    assert isinstance(trunk.norm, nn.Identity) and isinstance(trunk.fc_norm, nn.Identity)
    assert trunk.pos_embed is None and trunk.cls_token is None
    stages = trunk.patch_embed.backbone.stages
    assert [len(stage) for stage in stages] == [1, 1] and len(trunk.blocks) == 2


def test_shape_and_projection():
    config = tiny_config("clip")
    encoder = TokenFlowSemanticEncoder(config)
    features = encoder.features(pictures(config))
    assert features.shape == (2, 16, 16)
    linear, _, out = encoder.projection
    expected = out(torch.tanh(linear(features))).transpose(1, 2).reshape(2, 8, 4, 4)
    torch.testing.assert_close(encoder(pictures(config)), expected)


def test_normalisation_is_the_official_one():
    config = tiny_config("siglip")
    encoder = TokenFlowSemanticEncoder(config)
    pixel_values = pictures(config) * 1.5  # some beyond [-1, 1]
    unit = ((pixel_values + 1) * 127.5).clamp(0, 255) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.semantic_image_mean, config.semantic_image_std))
    torch.testing.assert_close(encoder._normalize(pixel_values), (unit - mean) / std)
    assert TokenFlowSemanticEncoder(tiny_config("clip"))._normalize(pixel_values) is pixel_values


@pytest.mark.parametrize("kind", ["clip", "siglip", "vit"])
def test_other_resolutions(kind: str):
    config = tiny_config(kind)
    encoder = TokenFlowSemanticEncoder(config).eval()
    for size, grid in ((40, 5), (24, 3), (47, 5)):
        assert encoder(pictures(config, size=size)).shape == (2, 8, grid, grid)


@needs_timm
def test_vitamin_goes_with_any_attention():
    # timm's models know none of transformers' kinds of attention, and must not keep other parts from having them.
    model = TokenFlowModel._from_config(tiny_config("vitamin"), attn_implementation="flex_attention")
    assert model.semantic_encoder.model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "flex_attention"


@needs_timm
def test_other_resolutions_of_vitamin():
    config = tiny_config("vitamin")
    encoder = TokenFlowSemanticEncoder(config).eval()
    assert encoder(pictures(config, size=96)).shape == (2, 8, 6, 6)


def test_layers_after_the_one_read_never_run_and_take_no_gradient():
    encoder = TokenFlowSemanticEncoder(tiny_config("siglip"))
    layers = encoder.model.encoder.layers
    layers[2].forward = None
    encoder(pictures(tiny_config("siglip"))).sum().backward()
    frozen = {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad}
    assert frozen and all(name.startswith(("model.encoder.layers.2.", "model.head.", "model.post_")) for name in frozen)
    for parameter in encoder.parameters():
        assert parameter.requires_grad == (parameter.grad is not None)
        parameter.requires_grad_(True)
    encoder.train()
    assert {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad} == frozen


def test_what_was_frozen_by_hand_stays_frozen():
    encoder = TokenFlowSemanticEncoder(tiny_config("siglip")).requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in encoder.train().parameters())


def test_the_tower_keeps_the_configuration_object():
    config = tiny_config("clip")
    encoder = TokenFlowSemanticEncoder(config)
    assert encoder.model.config is config.semantic_config


def test_the_tower_has_no_pooler():
    assert TokenFlowSemanticEncoder(tiny_config("vit")).model.pooler is None


def test_a_dtype_left_in_the_sub_configuration_does_not_count():
    config = tiny_config("clip")
    config.semantic_config.dtype = torch.bfloat16
    assert {parameter.dtype for parameter in TokenFlowSemanticEncoder(config).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("clip", {"semantic_feature_layer": 3}),
        ("clip", {"semantic_feature_layer": -4}),
        ("vit", {"semantic_feature_layer": -2}),
        ("vit", {"semantic_feature_norm": True}),
    ],
)
def test_layers_that_can_not_be_read(kind: str, fields: dict):
    with pytest.raises(ValueError, match="semantic_feature_layer"):
        TokenFlowSemanticEncoder(tiny_config(kind, **fields))


def test_other_vision_models_of_transformers():
    semantic = {
        "model_type": "dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = tiny_config("vit", semantic_config=semantic)
    assert isinstance(TokenFlowSemanticEncoder(config).model, type(AutoModel.from_config(config.semantic_config)))
    assert TokenFlowSemanticEncoder(config)(pictures(config)).shape == (2, 8, 4, 4)


def test_fields_are_keys_and_attributes():
    fields = Fields(depth=3)
    assert fields.depth == fields["depth"] == 3 and fields == {"depth": 3}
    with pytest.raises(AttributeError, match="width"):
        _ = fields.width


# ---- Decoder ----


def test_decoder():
    config = tiny_config("clip")
    decoder = TokenFlowSemanticDecoder(config).eval()
    features = torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        hidden = decoder.in_proj(features.flatten(2).transpose(1, 2))
        hidden = torch.cat([decoder.class_token.expand(2, -1, -1), hidden], dim=1) + decoder.position_embedding
        for layer in decoder.encoder.layers:
            hidden = layer(hidden, attention_mask=None)
        linear, _, out = decoder.projection
        expected = out(torch.tanh(linear(decoder.norm(hidden[:, 1:]))))
        torch.testing.assert_close(decoder(features), expected)
    assert expected.shape == (2, 16, 12)
    assert decoder.config is config.semantic_decoder_config


def test_decoder_at_another_resolution():
    decoder = TokenFlowSemanticDecoder(tiny_config("clip"))
    assert decoder(torch.randn(2, 8, 6, 6)).shape == (2, 36, 12)
