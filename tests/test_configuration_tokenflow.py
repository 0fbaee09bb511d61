# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_models import ALL_KINDS, tiny_config
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, SiglipVisionConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from transformers_tokenflow import TokenFlowConfig, TokenFlowTextToImageConfig, TokenFlowUnderstandingConfig
from transformers_tokenflow.configuration_tokenflow import PRESETS, TokenFlowSemanticDecoderConfig


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture) -> Callable[[], str]:
    """What was logged so far, by the package or by transformers, whose messages do not reach pytest."""
    return lambda: caplog.text + capfd.readouterr().err


# ---- What ConfigTester of transformers asks of a composite configuration ----


def test_no_arguments_and_no_log_line(logged: Callable[[], str]):
    config = TokenFlowConfig()
    assert logged() == ""
    assert config.model_type == "tokenflow"
    assert isinstance(config.semantic_config, SiglipVisionConfig)
    assert isinstance(config.semantic_decoder_config, TokenFlowSemanticDecoderConfig)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_json_round_trips(kind: str, tmp_path: Path, logged: Callable[[], str]):
    config = tiny_config(kind)
    assert TokenFlowConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert json.loads(config.to_json_string())["scales"] == [1, 2, 4]
    config.to_json_file(tmp_path / "config.json")
    assert TokenFlowConfig.from_json_file(tmp_path / "config.json").to_dict() == config.to_dict()
    config.save_pretrained(tmp_path / "folder" / "inner")
    assert TokenFlowConfig.from_pretrained(tmp_path / "folder" / "inner").to_dict() == config.to_dict()
    loaded = TokenFlowConfig.from_pretrained(tmp_path / "folder", subfolder="inner")
    assert loaded.to_dict() == config.to_dict()
    assert type(AutoConfig.from_pretrained(tmp_path / "folder" / "inner")) is TokenFlowConfig
    loaded.save_pretrained(tmp_path / "again")
    assert TokenFlowConfig.from_pretrained(tmp_path / "again").to_dict() == config.to_dict()
    assert logged() == ""


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_sub_configurations_load_from_the_composite(kind: str, tmp_path: Path):
    config = tiny_config(kind)
    config.save_pretrained(tmp_path)
    for name, sub_class in TokenFlowConfig.sub_configs.items():
        part = getattr(config, name)
        sub_class = type(part) if sub_class is AutoConfig else sub_class
        assert sub_class.from_pretrained(tmp_path).to_dict() == part.to_dict()


@pytest.mark.parametrize("kind", ["clip", "siglip", "vit"])
def test_one_key_of_a_sub_configuration_can_be_changed(kind: str, tmp_path: Path):
    config = tiny_config(kind)
    config.save_pretrained(tmp_path)
    for name in TokenFlowConfig.sub_configs:
        changed = TokenFlowConfig.from_pretrained(tmp_path, **{name: {"hidden_size": 24}})
        expected = config.to_dict()
        expected[name]["hidden_size"] = 24
        assert changed.to_dict() == expected
    assert TokenFlowConfig.from_pretrained(tmp_path, codebook_size=7).codebook_size == 7


def test_sub_configurations_are_kept_as_objects():
    semantic, decoder = CLIPVisionConfig(), TokenFlowSemanticDecoderConfig(image_size=14)
    config = TokenFlowConfig(semantic_config=semantic, semantic_decoder_config=decoder)
    assert config.semantic_config is semantic and config.semantic_decoder_config is decoder


def test_common_arguments(logged: Callable[[], str]):
    config = TokenFlowConfig(
        return_dict=False,
        output_hidden_states=True,
        output_attentions=True,
        torch_dtype="float16",
        num_labels=3,
        id2label={0: "a", 1: "b", 2: "c"},
        label2id={"a": 0, "b": 1, "c": 2},
        architectures=["TokenFlowModel"],
        name_or_path="somewhere",
        attn_implementation="eager",
        chunk_size_feed_forward=0,
        auto_map={"AutoModel": "modeling_tokenflow.TokenFlowModel"},
        custom_pipelines={},
        transformers_version="5.23.0",
        pad_token_id=0,
        use_cache=False,
        tie_word_embeddings=False,
        something_of_ones_own=1,
    )
    assert not config.return_dict and config.dtype == torch.float16 and config.num_labels == 3
    assert config.semantic_config._attn_implementation == config.semantic_decoder_config._attn_implementation == "eager"
    assert config.something_of_ones_own == 1
    assert logged() == ""


# ---- Values ----


def test_derived_values():
    config = tiny_config(scales=(1, 2, 4), decoder_channels=16)
    assert config.scales == [1, 2, 4]
    assert (config.grid_size, config.num_image_tokens, config.quantized_dim) == (4, 21, 12)
    assert config.pixel_downsampling == 4 * 2
    assert (config.decoder_channels, config.decoder_num_res_blocks) == (16, config.pixel_num_res_blocks)
    assert tiny_config().decoder_channels == tiny_config().pixel_channels


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scales", []),
        ("scales", [0, 1]),
        ("scales", [4, 2]),
        ("image_size", 0),
        ("codebook_size", 0),
        ("pixel_channels", -8),
        ("pixel_num_res_blocks", 0),
        ("pixel_patch_size", 0),
        ("pixel_latent_channels", 0),
        ("teacher_hidden_size", 0),
        ("decoder_channels", 0),
        ("decoder_num_res_blocks", 0),
        ("decoder_num_res_blocks", 10**9),
        ("pixel_num_res_blocks", 1001),
        ("semantic_codebook_dim", -1),
        ("distance_weight", -0.5),
        ("codebook_weight", float("nan")),
        ("commitment_weight", -1.0),
        ("entropy_weight", -1.0),
        ("norm_num_groups", 0),
        ("norm_num_groups", 3),
        ("pixel_channel_multipliers", []),
        ("pixel_channel_multipliers", [1, 0]),
        ("pixel_attention_levels", [2]),
        ("pixel_attention_levels", [-3]),
        ("semantic_image_mean", [0.5, 0.5, 0.5]),
    ],
)
def test_impossible_values(field: str, value: object):
    with pytest.raises(ValueError, match=field):
        tiny_config("clip", **{field: value})


@pytest.mark.parametrize(
    ("mean", "std"),
    [([0.5] * 3, None), ([0.5], [0.5]), ([0.5] * 3, [0.5, 0.5]), ([0.5] * 3, [0.5, 0.0, 0.5])],
)
def test_impossible_normalisation(mean: list[float], std: list[float] | None):
    with pytest.raises(ValueError, match="hold three numbers each, with no standard deviation of 0"):
        tiny_config(semantic_image_mean=mean, semantic_image_std=std)


def test_depths_without_bounds_are_refused_before_anything_is_built():
    message = "`num_hidden_layers` must be at most 1000; got 1000000"
    deep = {"num_hidden_layers": 10**6}
    for fields in ({"semantic_config": {"model_type": "clip_vision_model", **deep}}, {"semantic_decoder_config": deep}):
        with pytest.raises(ValueError, match=message):
            TokenFlowConfig(**fields)
    for config_class in (TokenFlowTextToImageConfig, TokenFlowUnderstandingConfig):
        with pytest.raises(ValueError, match=message):
            config_class(text_config=deep)


def test_a_codebook_is_needed():
    with pytest.raises(ValueError, match="pixel_codebook_dim"):
        tiny_config(semantic_codebook_dim=0, pixel_codebook_dim=0)


@pytest.mark.parametrize(
    ("config_class", "field", "value"),
    [
        (TokenFlowConfig, "scales", 8),
        (TokenFlowConfig, "scales", [1, 2.7, 14]),
        (TokenFlowConfig, "image_size", "256"),
        (TokenFlowConfig, "codebook_size", 1.5),
        (TokenFlowConfig, "distance_weight", "1.0"),
        (TokenFlowConfig, "semantic_config", "clip_vision_model"),
        (TokenFlowConfig, "semantic_feature_layer", "last"),
        (TokenFlowConfig, "semantic_feature_norm", "no"),
        (TokenFlowConfig, "semantic_image_mean", ["0.5", "0.5", "0.5"]),
        (TokenFlowConfig, "initializer_range", None),
        (TokenFlowSemanticDecoderConfig, "image_size", "27"),
        (TokenFlowTextToImageConfig, "qk_norm_eps", "1e-6"),
        (TokenFlowTextToImageConfig, "use_text_head", "no"),
        (TokenFlowTextToImageConfig, "tokenizer_config", "tokenflow-b"),
        (TokenFlowUnderstandingConfig, "image_token_id", "<image>"),
        (TokenFlowUnderstandingConfig, "feature_strategy", None),
        (TokenFlowUnderstandingConfig, "tie_word_embeddings", "false"),
    ],
)
def test_values_of_another_type(config_class: Any, field: str, value: object):
    with pytest.raises(StrictDataclassError, match=f"'{field}'"):
        config_class(**{field: value})
    if config_class is TokenFlowConfig:
        with pytest.raises(ValueError, match=f"'{field}'"):
            TokenFlowConfig.from_preset("tokenflow-b", **{field: value})


def test_whole_numbers_do_for_fractions_and_tuples_for_lists():
    weights = {"distance_weight": 2, "entropy_weight": 1, "initializer_range": 1}
    config = tiny_config(scales=(1, 2, 4), semantic_image_mean=[0, 0.5, 1], semantic_image_std=(1, 1, 0.5), **weights)
    assert config.distance_weight == 2 and config.semantic_image_mean == [0, 0.5, 1]
    assert tiny_generator_config(qk_norm_eps=1).qk_norm_eps == 1


CARDS = sorted((Path(__file__).parents[1] / "hub_cards").glob("*/config.json"))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_published_configurations_load(path: Path, logged: Callable[[], str]):
    fields = json.loads(path.read_text())
    assert CONFIG_MAPPING[fields["model_type"]].from_dict(fields).model_type == fields["model_type"]
    assert "did you mean" not in logged()


def test_slips_of_the_pen(logged: Callable[[], str]):
    TokenFlowConfig(code_book_size=8)
    assert "is no field of TokenFlowConfig and does nothing; did you mean `codebook_size`" in logged()
    TokenFlowTextToImageConfig(use_text_haed=False)
    assert "is no field of TokenFlowTextToImageConfig and does nothing; did you mean `use_text_head`" in logged()
    TokenFlowUnderstandingConfig(feature_stratgy="all_scales")
    assert "is no field of TokenFlowUnderstandingConfig and does nothing; did you mean `feature_strategy`" in logged()
    TokenFlowUnderstandingConfig(vision_config=tiny_config())
    assert "vision_config" not in logged()
    with pytest.raises(ValueError, match="code_book_size"):
        TokenFlowConfig.from_preset("tokenflow-b", code_book_size=8)
    with pytest.raises(ValueError, match="code_book_size"):
        TokenFlowConfig.from_fields({"code_book_size": 8})


# ---- Presets ----


@pytest.mark.parametrize(
    ("name", "image_size", "tokens", "grid"),
    [
        ("tokenflow-b", 224, 561, 14),
        ("tokenflow-b-256-enhanced", 256, 817, 16),
        ("tokenflow-l", 256, 817, 16),
        ("tokenflow-l-paper", 256, 826, 16),
        ("tokenflow-xl", 384, 2227, 27),
    ],
)
def test_presets(name: str, image_size: int, tokens: int, grid: int):
    config = TokenFlowConfig.from_preset(name)
    assert (config.image_size, config.num_image_tokens, config.grid_size) == (image_size, tokens, grid)
    assert config.semantic_decoder_config.num_attention_heads == 12
    assert config.semantic_decoder_config.hidden_act == "gelu"


def test_every_preset_is_tested_and_the_default_is_the_largest():
    assert len(PRESETS) == 5
    assert TokenFlowConfig().to_dict() == TokenFlowConfig.from_preset("tokenflow-xl").to_dict()


def test_presets_can_be_changed_without_changing_each_other():
    before = TokenFlowConfig.from_preset("tokenflow-l").to_dict()
    config = TokenFlowConfig.from_preset("tokenflow-l", codebook_size=64, attn_implementation="eager")
    assert config.codebook_size == 64 and config._attn_implementation == "eager"
    config.semantic_config.model_args["depth"] = 2
    config.scales.append(20)
    assert TokenFlowConfig.from_preset("tokenflow-l").to_dict() == before
    with pytest.raises(ValueError, match="tokenflow-xl"):
        TokenFlowConfig.from_preset("tokenflow-xxl")


def test_presets_keep_the_rest_of_what_is_changed_in_part():
    fields = {"num_hidden_layers": 6}
    config = TokenFlowConfig.from_preset("tokenflow-b", semantic_config=fields, semantic_decoder_config=fields)
    expected = TokenFlowConfig.from_preset("tokenflow-b").to_dict()
    expected["semantic_config"]["num_hidden_layers"] = expected["semantic_decoder_config"]["num_hidden_layers"] = 6
    assert config.to_dict() == expected
    config = TokenFlowConfig.from_preset("tokenflow-l", semantic_config={"model_args": {"depth": 2}})
    assert config.semantic_config.architecture == "vitamin_xlarge_256"
    assert config.semantic_config.model_args == {"final_norm": False, "pos_embed": "none", "depth": 2}
    other = {"model_type": "siglip_vision_model", "num_hidden_layers": 6}
    semantic = TokenFlowConfig.from_preset("tokenflow-b", semantic_config=other).semantic_config
    assert semantic.to_dict() == SiglipVisionConfig(num_hidden_layers=6).to_dict()


# ---- The generator's ----


def tiny_generator_config(**overrides: Any) -> TokenFlowTextToImageConfig:
    text = {"model_type": "llama", "vocab_size": 60, "hidden_size": 32, "num_attention_heads": 4, "pad_token_id": 0}
    fields = {"text_config": text, "tokenizer_config": tiny_config("vit"), "qk_norm_eps": 1e-5, "use_text_head": False}
    return TokenFlowTextToImageConfig(**{**fields, **overrides})


def test_generator_no_arguments_and_no_log_line(logged: Callable[[], str]):
    config = TokenFlowTextToImageConfig()
    assert logged() == ""
    text, tokenizer = config.text_config, config.tokenizer_config
    assert isinstance(text, LlamaConfig) and config.get_text_config() is text
    assert (text.vocab_size, text.hidden_size, text.num_hidden_layers) == (32001, 4096, 32)
    assert tokenizer.to_dict() == TokenFlowConfig.from_preset("tokenflow-b-256-enhanced").to_dict()
    assert (config.qk_norm_eps, config.use_text_head, config.tie_word_embeddings) == (1e-6, True, False)


def test_generator_json_round_trips(tmp_path: Path, logged: Callable[[], str]):
    config = tiny_generator_config()
    assert TokenFlowTextToImageConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    config.to_json_file(tmp_path / "config.json")
    assert TokenFlowTextToImageConfig.from_json_file(tmp_path / "config.json").to_dict() == config.to_dict()
    config.save_pretrained(tmp_path / "folder" / "inner")
    loaded = TokenFlowTextToImageConfig.from_pretrained(tmp_path / "folder", subfolder="inner")
    assert loaded.to_dict() == config.to_dict()
    assert type(AutoConfig.from_pretrained(tmp_path / "folder" / "inner")) is TokenFlowTextToImageConfig
    loaded.save_pretrained(tmp_path / "again")
    assert TokenFlowTextToImageConfig.from_pretrained(tmp_path / "again").to_dict() == config.to_dict()
    assert (loaded.qk_norm_eps, loaded.use_text_head) == (1e-5, False)
    assert type(loaded.tokenizer_config.semantic_config).model_type == "vit"
    assert logged() == ""


def test_generator_sub_configurations_load_from_the_composite(tmp_path: Path, logged: Callable[[], str]):
    config = tiny_generator_config()
    config.save_pretrained(tmp_path)
    for name, sub_class in (("text_config", LlamaConfig), ("tokenizer_config", TokenFlowConfig)):
        assert sub_class.from_pretrained(tmp_path).to_dict() == getattr(config, name).to_dict()
    assert logged() == ""


def test_generator_one_key_of_a_sub_configuration_can_be_changed(tmp_path: Path):
    config = tiny_generator_config()
    config.save_pretrained(tmp_path)
    for name, key in (("text_config", "vocab_size"), ("tokenizer_config", "codebook_size")):
        expected = config.to_dict()
        expected[name][key] = 20
        assert TokenFlowTextToImageConfig.from_pretrained(tmp_path, **{name: {key: 20}}).to_dict() == expected
    assert TokenFlowTextToImageConfig.from_pretrained(tmp_path, use_text_head=True).use_text_head


def test_generator_sub_configurations_are_kept_as_objects():
    text, tokenizer = LlamaConfig(), tiny_config()
    config = TokenFlowTextToImageConfig(text_config=text, tokenizer_config=tokenizer)
    assert config.text_config is text and config.tokenizer_config is tokenizer
    assert TokenFlowTextToImageConfig(text_config={"hidden_size": 64}).text_config.model_type == "llama"


def test_generator_common_arguments(logged: Callable[[], str]):
    config = tiny_generator_config(
        return_dict=False,
        output_hidden_states=True,
        dtype="float16",
        num_labels=3,
        architectures=["TokenFlowForTextToImage"],
        attn_implementation={"text_config": "eager", "tokenizer_config": "sdpa"},
        auto_map={"AutoModel": "modeling_tokenflow_text_to_image.TokenFlowForTextToImage"},
        pad_token_id=0,
        something_of_ones_own=1,
    )
    assert not config.return_dict and config.dtype == torch.float16 and config.something_of_ones_own == 1
    assert config.text_config._attn_implementation == "eager"
    assert config.tokenizer_config._attn_implementation == "sdpa"
    assert config.tokenizer_config.semantic_config._attn_implementation == "sdpa"
    assert logged() == ""


def test_generator_names_its_pipeline_only_in_what_is_saved():
    """transformers asks to trust remote code wherever the key is, so local configurations go without."""
    config = tiny_generator_config()
    assert "text-to-image" in config.to_dict()["custom_pipelines"]
    for other in (config, TokenFlowTextToImageConfig.from_dict(config.to_dict())):
        assert not hasattr(other, "custom_pipelines")


def test_generator_scales_begin_with_one_token():
    for scales in ([4], [2, 4]):
        with pytest.raises(ValueError, match=r"must begin with 1.*got \[" + str(scales[0])):
            tiny_generator_config(tokenizer_config=tiny_config(scales=scales))
    assert tiny_generator_config(tokenizer_config=tiny_config(scales=[1, 1, 3])).tokenizer_config.num_image_tokens == 11


def test_generator_positions_hold_an_image():
    with pytest.raises(ValueError, match="a prompt and the image's 21 tokens; got 22"):
        tiny_generator_config(text_config={"max_position_embeddings": 22})
    assert tiny_generator_config(text_config={"max_position_embeddings": 23})


# ---- Optional packages ----


def test_optional_packages_are_not_needed():
    code = """
import sys
for name in ("torchvision", "diffusers", "datasets", "accelerate", "sklearn", "skimage", "lpips", "typer"):
    sys.modules[name] = None
from tiny_models import pictures, tiny_model
for kind in ("clip", "siglip", "vit", "pixel"):
    model = tiny_model(kind)
    model(pictures(model.config))
assert not {"timm", "open_clip"} & sys.modules.keys()
print("done")
"""
    folder = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder.parent / "src"), str(folder)])}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=250, env=environment, check=False
    )
    assert result.stdout.strip() == "done", result.stderr


def test_the_decoders_type_is_nobody_elses():
    assert TokenFlowSemanticDecoderConfig.model_type not in CONFIG_MAPPING


@pytest.mark.parametrize(
    ("config_class", "other"),
    [
        (TokenFlowConfig, CLIPVisionConfig()),
        (TokenFlowTextToImageConfig, tiny_config()),
        (TokenFlowUnderstandingConfig, tiny_config()),
        (TokenFlowUnderstandingConfig, TokenFlowTextToImageConfig(tokenizer_config=tiny_config())),
    ],
)
def test_another_models_fields_are_refused(config_class: Any, other: Any, tmp_path: Path):
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{config_class.__name__} is of .* got that of a '{other.model_type}' model"):
        config_class.from_pretrained(tmp_path)
