# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Official understanding models to folders: every key, every file, and little memory."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_conversion import meta_state_dict
from test_conversion_text_to_image import measure_memory, save_sharded, with_layers, write_sparse
from test_parity_understanding import FLAVOURS, official_state_dict
from tiny_models import tiny_text_tokenizer
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from transformers_tokenflow import TokenFlowForConditionalGeneration, TokenFlowUnderstandingConfig
from transformers_tokenflow.cli import app
from transformers_tokenflow.commands import CommandError
from transformers_tokenflow.commands.conversion import convert_checkpoint
from transformers_tokenflow.conversion import (
    ConvertedStateDict,
    convert_understanding,
    infer_picture_options,
    infer_understanding_config,
    understanding_layout,
    with_tokenizer,
    writing,
)
from transformers_tokenflow.conversion.understanding import OFFICIAL_TOKENIZER

FIXTURES = Path(__file__).parent / "fixtures"
TINY = json.loads((FIXTURES / "understanding.json").read_text())
OFFICIAL = json.loads((FIXTURES / "official-keys" / "understanding-qwen2.5-14b.json").read_text())
OFFICIAL_TOKENIZER_KEYS = json.loads((FIXTURES / "official-keys" / "tokenizer-siglip.json").read_text())
HEADS = {"semantic_config": {"num_attention_heads": 4}, "semantic_decoder_config": {"num_attention_heads": 12}}
SETTINGS = [
    f"tokenizer_config.{name}.num_attention_heads={value['num_attention_heads']}" for name, value in HEADS.items()
]
OFFICIAL_CONFIG = {
    "model_type": "llava_qwen",
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000.0,
    "image_aspect_ratio": "pad",
}


@pytest.fixture(scope="module", params=FLAVOURS)
def state_dict(request: pytest.FixtureRequest) -> dict[str, torch.Tensor]:
    return official_state_dict(TINY, request.param)


def without_tokenizer(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state_dict.items() if not key.startswith(OFFICIAL_TOKENIZER)}


def tokenizer_of(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        key.removeprefix(OFFICIAL_TOKENIZER): value
        for key, value in state_dict.items()
        if key.startswith(OFFICIAL_TOKENIZER)
    }


# ---- The released model at full size ----


@pytest.mark.parametrize("inside", [True, False], ids=["with its tokenizer", "without"])
def test_every_official_key_finds_its_parameter(inside: bool):
    official = meta_state_dict(OFFICIAL["state_dict"])
    if not inside:
        tokenizer = meta_state_dict(OFFICIAL_TOKENIZER_KEYS["state_dict"])
        official = with_tokenizer(without_tokenizer(official), tokenizer)
    assert official.keys() == OFFICIAL["state_dict"].keys()
    config = infer_understanding_config(official)
    expected = TokenFlowUnderstandingConfig(tokenizer_config=config.tokenizer_config.to_dict())
    assert config.to_dict() == expected.to_dict()
    weights = ConvertedStateDict(official, understanding_layout(config))
    with torch.device("meta"):
        model = TokenFlowForConditionalGeneration(config)
    assert {name: spec.shape for name, spec in weights.specs.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    own = sum(spec.numel() for name, spec in weights.specs.items() if not name.startswith("model.tokenizer."))
    assert own == OFFICIAL["language_side"]["elements"]
    text = config.text_config
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"):
        assert getattr(text, name) == OFFICIAL["config"][name]
    for name in ("vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(text, name) == OFFICIAL["config"][name]
    assert text.rope_parameters["rope_theta"] == OFFICIAL["config"]["rope_theta"]
    assert config.tokenizer_config.scales == OFFICIAL["config"]["scales"]


# ---- Keys ----


@pytest.mark.parametrize("key", ["model.mm_projector.2.bias", "model.norm.weight", "lm_head.weight"])
def test_missing_keys_are_named(state_dict: Any, key: str):
    less = {name: value for name, value in state_dict.items() if name != key}
    with pytest.raises(ValueError, match=key):
        convert_understanding(less, OFFICIAL_CONFIG, tokenizer_config=HEADS)


def test_problems_are_listed(state_dict: Any):
    more = {**state_dict, "model.vision_tower.other": torch.zeros(1)}
    del more[f"{OFFICIAL_TOKENIZER}decoder.norm_out.bias"]
    with pytest.raises(ValueError, match="2 problems") as error:
        convert_understanding(more, OFFICIAL_CONFIG, tokenizer_config=HEADS)
    assert "left over model.vision_tower.other" in str(error.value)
    assert f"missing {OFFICIAL_TOKENIZER}decoder.norm_out.bias" in str(error.value)


def test_unknown_fields(state_dict: Any):
    for unknown in ({"text_config": {"rms_eps": 1.0}}, {"num_heads": 4}, {"tokenizer_config": {"scale": [1]}}):
        with pytest.raises(ValueError, match="has no fields"):
            infer_understanding_config(state_dict, OFFICIAL_CONFIG, **unknown)
    for wrong in ({"text_config": {"rms_norm_eps": "small"}}, {"image_token_id": "<image>"}):
        with pytest.raises(ValueError, match="TokenFlowUnderstandingConfig can't be made of these fields"):
            infer_understanding_config(state_dict, OFFICIAL_CONFIG, tokenizer_config=HEADS, **wrong)


def test_tied_heads(state_dict: Any):
    tied = {name: value for name, value in state_dict.items() if name != "lm_head.weight"}
    model = convert_understanding(tied, {**OFFICIAL_CONFIG, "tie_word_embeddings": True}, tokenizer_config=HEADS)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, state_dict["model.embed_tokens.weight"])


# ---- Folders ----


@pytest.fixture
def official(state_dict: Any, tmp_path: Path) -> Path:
    """A folder as the official one, in float16 and in shards."""
    folder = tmp_path / "official"
    folder.mkdir()
    save_sharded({key: value.half() for key, value in state_dict.items()}, folder, "safetensors")
    (folder / "config.json").write_text(json.dumps(OFFICIAL_CONFIG))
    text_tokenizer = tiny_text_tokenizer(padding_side="right")
    text_tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|image_pad|>"]})
    text_tokenizer.save_pretrained(folder)
    return folder


def options(*more: Any) -> list[str]:
    return [str(argument) for setting in SETTINGS for argument in ("--set", setting)] + [str(item) for item in more]


def test_folder_works_with_the_auto_classes(state_dict: Any, official: Path, tmp_path: Path):
    result = CliRunner().invoke(app, ["convert", str(official), str(tmp_path / "model"), *options()])
    assert result.exit_code == 0, result.output
    assert "an understanding model and its tokenizer of 384-pixel pictures" in result.output
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert isinstance(model, TokenFlowForConditionalGeneration) and model.dtype == torch.float16
    assert model.model.tokenizer.quantizer.codebook.pixel.dtype == torch.float32
    assert torch.equal(model.lm_head.weight, state_dict["lm_head.weight"].half())
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    assert processor.num_image_tokens == 729
    assert processor.image_token_id == model.config.image_token_id and processor.tokenizer.padding_side == "left"
    is_qwen = model.config.text_config.model_type == "qwen2"
    assert processor.image_token == ("<|image_pad|>" if is_qwen else "<image>")
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>" if is_qwen else "</s>")
    assert model.generation_config.eos_token_id == end
    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a cat"}]}]
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    picture = Image.new("RGB", (60, 20), "red")
    inputs = processor(images=[picture], text=prompt, return_tensors="pt")
    assert inputs["pixel_values"][0, :, 0, 0].tolist() == pytest.approx([127 / 127.5 - 1] * 3)
    answer = model.float().generate(**inputs, max_new_tokens=2, do_sample=False)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 2


def test_how_pictures_are_cut_to_size():
    padded, squashed = {"size": {"shortest_edge": 384}, "do_pad": True}, {"size": {"height": 384, "width": 384}}
    assert infer_picture_options({}, 384) == infer_picture_options({"image_aspect_ratio": "pad"}, 384) == padded
    for official in ({"hidden_size": 8}, {"image_aspect_ratio": None}, {"image_aspect_ratio": "square"}):
        assert infer_picture_options(official, 384) == squashed
    with pytest.raises(ValueError, match="not in parts, as image_aspect_ratio='anyres_max_9' has them"):
        infer_picture_options({"image_aspect_ratio": "anyres_max_9"}, 384)


@pytest.mark.parametrize("state_dict", [""], indirect=True)
def test_pictures_of_a_model_that_does_not_pad_are_squashed(official: Path, tmp_path: Path):
    (official / "config.json").write_text(json.dumps({**OFFICIAL_CONFIG, "image_aspect_ratio": None}))
    convert_checkpoint(official, tmp_path / "model", settings=SETTINGS)
    processor = AutoProcessor.from_pretrained(tmp_path / "model").image_processor
    assert dict(processor.size) == {"height": 384, "width": 384} and not processor.do_pad


def test_the_tokenizer_of_another_file(state_dict: Any, official: Path, tmp_path: Path):
    for path in official.glob("model*.safetensors*"):
        path.unlink()
    save_file(without_tokenizer(state_dict), official / "model.safetensors")
    torch.save({"model": tokenizer_of(state_dict)}, tmp_path / "tokenizer.pt")
    with pytest.raises(CommandError, match="lacks its image tokenizer: pass --tokenizer"):
        convert_checkpoint(official, tmp_path / "model", settings=SETTINGS)
    convert_checkpoint(official, tmp_path / "model", settings=SETTINGS, tokenizer=tmp_path / "tokenizer.pt")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    expected = convert_understanding(state_dict, OFFICIAL_CONFIG, tokenizer_config=HEADS).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    save_file(state_dict, official / "model.safetensors")
    with pytest.raises(CommandError, match="has its image tokenizer inside"):
        convert_checkpoint(official, tmp_path / "b", settings=SETTINGS, tokenizer=tmp_path / "tokenizer.pt")


def test_no_text_tokenizer(official: Path, tmp_path: Path):
    for path in official.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CommandError, match="no text tokenizer with .*: pass --text-tokenizer"):
        convert_checkpoint(official, tmp_path / "model", settings=SETTINGS)
    assert not (tmp_path / "model").exists()


# ---- Memory ----


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read as Linux gives it")
@pytest.mark.parametrize("state_dict", [""], indirect=True)
def test_conversion_takes_little_memory(state_dict: Any, official: Path):
    for path in official.glob("model*.safetensors*"):
        path.unlink()
    large = with_layers(state_dict, count=40, width=16384)
    assert sum(value.nbytes for value in large.values()) > 500e6
    save_sharded(large, official, "safetensors")
    more, _ = measure_memory(official, None, "40MB", SETTINGS)
    assert more < 200e6


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("state_dict", [""], indirect=True)
def test_the_released_size_in_less_than_4_gib(state_dict: Any, official: Path, tmp_path: Path):
    if shutil.disk_usage(tmp_path).free < 45e9:
        pytest.skip("needs 31 GB of disk, and some more to leave")
    for path in official.glob("model*.safetensors*"):
        path.unlink()
    (official / "config.json").unlink()
    # Zeros serve as weights, but not as deviations that pictures are divided by.
    constants = {key: torch.full(shape, 0.5) for key, shape in OFFICIAL["state_dict"].items() if "scaling_layer" in key}
    save_file(constants, official / "constants.safetensors")
    keys = [key for key in OFFICIAL["state_dict"] if key not in constants]
    parts = {f"model-{start + 1:05d}-of-00006.safetensors": keys[start::6] for start in range(6)}
    for name, part in parts.items():
        write_sparse({key: OFFICIAL["state_dict"][key] for key in part}, official / name)
    weight_map = {key: name for name, part in {**parts, "constants.safetensors": constants}.items() for key in part}
    (official / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    _, total = measure_memory(official, None, writing.SHARD_SIZE, [])
    assert total < 4 * 2**30
    shutil.rmtree(official.parent / "model")
