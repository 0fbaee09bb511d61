# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Teachers of open_clip and transformers: what they show the semantic decoder, and what the encoder starts from."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import TOWER, needs_timm, pictures, tiny_model
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from transformers_tokenflow.trainers.teachers import initialize_semantic_encoder, load_teacher

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}


def save_open_clip(folder: Path, **changes) -> str:
    """A folder that open_clip loads, with random weights; returns its name for `load_teacher`."""
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8, "mlp_ratio": 2.0}
    config = {"embed_dim": 12, "quick_gelu": True, "vision_cfg": vision, "text_cfg": TEXT, **changes}
    folder.mkdir()
    description = {"model_cfg": config, "preprocess_cfg": {"size": 32, "mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(description))
    model = open_clip.create_model(f"local-dir:{folder}")
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def save_transformers(folder: Path, model) -> str:
    """A folder that transformers loads, with the model's weights and an image processor."""
    model.save_pretrained(folder)
    processor = SiglipImageProcessorPil if "siglip" in model.config.model_type else CLIPImageProcessorPil
    processor(image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return str(folder)


def normalized(pixel_values: torch.Tensor) -> torch.Tensor:
    """[-1, 1] to what a teacher is shown."""
    return ((pixel_values + 1) / 2 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@torch.no_grad()
def test_open_clip_target_is_the_projected_patch_tokens(tmp_path):
    teacher = load_teacher(save_open_clip(tmp_path / "clip"))
    visual, pixel_values = teacher.tower.visual, pictures(tiny_model().config)
    hidden = visual.transformer(visual._embeds(normalized(pixel_values)))
    expected = visual.ln_post(hidden)[:, 1:] @ visual.proj
    assert expected.shape == (2, 16, 12)
    torch.testing.assert_close(teacher(pixel_values), expected)


@torch.no_grad()
def test_transformers_clip_target_is_the_projected_patch_tokens(tmp_path):
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**TOWER, projection_dim=12))
    teacher = load_teacher(save_transformers(tmp_path / "clip", model), library="transformers")
    pixel_values = pictures(tiny_model().config)
    hidden = model.eval()(normalized(pixel_values)).last_hidden_state
    expected = model.visual_projection(model.vision_model.post_layernorm(hidden))[:, 1:]
    torch.testing.assert_close(teacher(pixel_values), expected)


@torch.no_grad()
@pytest.mark.parametrize("whole", [True, False])
def test_siglip_target_is_the_last_layer_but_one(tmp_path, whole):
    vision = SiglipVisionConfig(**{**TOWER, "num_hidden_layers": 3})
    text = {**{k: v for k, v in TOWER.items() if "size" not in k}, "hidden_size": 16, "intermediate_size": 16}
    model = (
        SiglipModel(SiglipConfig(vision_config=vision, text_config={**text, "vocab_size": 16}))
        if whole
        else SiglipVisionModel(vision)
    )
    teacher = load_teacher(save_transformers(tmp_path / "siglip", model), library="transformers")
    tower, pixel_values = (model.vision_model if whole else model).eval(), pictures(tiny_model("siglip").config)
    hidden = tower.embeddings(normalized(pixel_values))
    for layer in tower.encoder.layers[:2]:
        hidden = layer(hidden, attention_mask=None)
    torch.testing.assert_close(teacher(pixel_values), hidden)
    model = tiny_model("siglip", teacher_hidden_size=16, semantic_image_mean=MEAN, semantic_image_std=STD)
    initialize_semantic_encoder(model, teacher)
    torch.testing.assert_close(
        model.semantic_encoder.features(pixel_values), teacher(pixel_values), atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_semantic_encoder_starts_as_the_open_clip_teacher(tmp_path):
    teacher = load_teacher(save_open_clip(tmp_path / "clip"))
    model = tiny_model("clip", semantic_image_mean=MEAN, semantic_image_std=STD)
    pixel_values = pictures(model.config)
    initialize_semantic_encoder(model, teacher)
    tokens = model.semantic_encoder.features(pixel_values)
    torch.testing.assert_close(tokens @ teacher.tower.visual.proj, teacher(pixel_values), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_semantic_encoder_starts_as_the_transformers_teacher(tmp_path):
    source = CLIPVisionModelWithProjection(CLIPVisionConfig(**TOWER, projection_dim=12))
    teacher = load_teacher(save_transformers(tmp_path / "clip", source), library="transformers")
    model = tiny_model("clip", semantic_image_mean=MEAN, semantic_image_std=STD)
    pixel_values = pictures(model.config)
    initialize_semantic_encoder(model, teacher)
    tokens = source.visual_projection(model.semantic_encoder.features(pixel_values))
    torch.testing.assert_close(tokens, teacher(pixel_values), atol=1e-5, rtol=1e-5)


@needs_timm
@torch.no_grad()
def test_vitamin_of_open_clip(tmp_path, monkeypatch):
    import timm

    model = tiny_model("vitamin", teacher_hidden_size=16, semantic_image_mean=MEAN, semantic_image_std=STD)
    small = model.config.semantic_config.model_args

    def create_small(name, pretrained=False, create=timm.create_model, **options):
        assert name == "vitamin_xlarge_256"  # too large for a test
        return create("vitamin_small_224", pretrained=pretrained, **{**small, **options, "img_size": 64})

    monkeypatch.setattr(timm, "create_model", create_small)
    vision = {"timm_model_name": "vitamin_xlarge_256", "timm_pool": "", "timm_proj": "linear", "image_size": 64}
    teacher = load_teacher(save_open_clip(tmp_path / "vitamin", vision_cfg=vision, custom_text=True))
    pixel_values = pictures(model.config)
    initialize_semantic_encoder(model, teacher)
    tokens = teacher(pixel_values)
    assert tokens.shape == (2, 16, 16)
    torch.testing.assert_close(model.semantic_encoder.features(pixel_values), tokens, atol=1e-5, rtol=1e-5)


def test_teacher_is_frozen_and_lets_gradients_reach_the_pictures(tmp_path):
    teacher = load_teacher(save_open_clip(tmp_path / "clip")).train()
    assert not any(module.training for module in teacher.modules())
    pixel_values = pictures(tiny_model().config).requires_grad_()
    teacher(pixel_values).square().sum().backward()
    assert pixel_values.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_pictures_of_another_size_are_resized(tmp_path):
    teacher = load_teacher(save_open_clip(tmp_path / "clip"))
    pixel_values = pictures(tiny_model().config, size=48)
    expected = teacher(F.interpolate(pixel_values, size=(32, 32), mode="bicubic"))
    torch.testing.assert_close(teacher(pixel_values), expected)


def test_another_architecture_is_refused(tmp_path):
    teacher = load_teacher(save_open_clip(tmp_path / "clip"))
    wider = {**TOWER, "model_type": "clip_vision_model", "hidden_size": 32}
    with pytest.raises(ValueError, match="the teacher has no such weights for the semantic encoder: "):
        initialize_semantic_encoder(tiny_model("clip", semantic_config=wider), teacher)
    for field, value, message in (
        ("num_attention_heads", 4, "has 2 attention heads"),
        ("hidden_act", "gelu", "quick_gelu"),
    ):
        other = {**TOWER, "model_type": "clip_vision_model", field: value}
        with pytest.raises(ValueError, match=message):
            initialize_semantic_encoder(tiny_model("clip", semantic_config=other), teacher)


def test_random_teachers_are_refused(tmp_path):
    pytest.importorskip("open_clip")
    name = save_open_clip(tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_model.safetensors").unlink()
    with pytest.raises(RuntimeError, match="could not be loaded"):
        load_teacher(name)
    with pytest.raises(RuntimeError, match="could not be loaded"):
        load_teacher("ViT-S-16")
    with pytest.raises(RuntimeError, match="not found"):
        load_teacher("ViT-of-nobody", pretrained="openai")
    bare = save_transformers(tmp_path / "bare", CLIPVisionModel(CLIPVisionConfig(**TOWER)))
    with pytest.raises(ValueError, match="lacks weights of its teacher: visual_projection.weight"):
        load_teacher(bare, library="transformers")
    with pytest.raises(ValueError, match="unknown library of teachers 'keras'"):
        load_teacher("anything", library="keras")
