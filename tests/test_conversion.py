# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
import argparse
import json
import os
import pickle
import zipfile
from pathlib import Path

import PIL.Image
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import needs_timm
from transformers import CLIPVisionConfig, CLIPVisionModel

from transformers_tokenflow import TokenFlowConfig, TokenFlowModel
from transformers_tokenflow.commands.conversion import check_grid
from transformers_tokenflow.conversion import (
    convert_clip_tower,
    convert_state_dict,
    convert_tokenizer,
    infer_config,
    load_official_state_dict,
)

FIXTURES = Path(__file__).parent / "fixtures"
OFFICIAL = {path.stem: path for path in sorted((FIXTURES / "official-keys").glob("tokenizer-*.json"))}
PRESETS = {
    "tokenizer-clip-base": "tokenflow-b",
    "tokenizer-clip-enhanced": "tokenflow-b-256-enhanced",
    "tokenizer-vitamin": "tokenflow-l",
    "tokenizer-siglip": "tokenflow-xl",
}
VARIANTS = [pytest.param(name, marks=needs_timm) if "vitamin" in name else name for name in OFFICIAL]
TINY = FIXTURES / "tokenizer-clip-224.json"
HEADS = {"semantic_config": {"num_attention_heads": 4}, "semantic_decoder_config": {"num_attention_heads": 4}}


def meta_state_dict(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.fixture
def tiny() -> dict[str, torch.Tensor]:
    """A complete official state dict of a tiny CLIP variant, on the meta device."""
    return meta_state_dict(json.loads(TINY.read_text())["state_dict"])


# ---- The released variants at full size ----


@pytest.mark.parametrize("name", VARIANTS)
def test_every_official_key_finds_its_parameter(name: str):
    official = json.loads(OFFICIAL[name].read_text())
    state_dict = meta_state_dict(official["state_dict"])
    inferred = infer_config(state_dict)
    converted = convert_state_dict(state_dict, inferred)
    preset = TokenFlowConfig.from_preset(PRESETS[name])
    with torch.device("meta"):
        model = TokenFlowModel(preset)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in converted.items()} == shapes
    zero_key_biases = 3 * preset.semantic_decoder_config.hidden_size
    assert model.num_parameters() == official["parameters"] + zero_key_biases

    def comparable(config: TokenFlowConfig) -> dict:
        # The attention levels are counted from either end, ViTamin's sizes are spelled out or left to timm.
        fields = config.to_dict()
        fields["pixel_attention_levels"] = [level % 5 for level in fields["pixel_attention_levels"]]
        return {**fields, "semantic_config": {**fields["semantic_config"], "model_args": None}}

    assert comparable(inferred) == comparable(preset)
    check_grid(inferred)


def test_the_papers_large_variant_has_one_more_scale():
    preset = TokenFlowConfig.from_preset("tokenflow-l-paper")
    assert preset.scales == sorted([*TokenFlowConfig.from_preset("tokenflow-l").scales, 3])


# ---- Other sizes ----


@needs_timm
def test_vitamin_of_any_size():
    fixture = json.loads((FIXTURES / "tokenizer-vitamin-256.json").read_text())
    # 331 / 160 is one of the ratios that floating point truncates to one less.
    sizes = {64: 48, 128: 96, 256: 192, 512: 384, 384: 160, 1152: 480, 768: 331}
    shapes = {}
    for key, shape in fixture["state_dict"].items():
        if key.startswith("encoder_vqkd.blocks.") and int(key.split(".")[2]) > 2:
            continue
        is_encoder = key.startswith(("encoder_vqkd.", "encode_task_layer."))
        shapes[key] = [sizes.get(size, size) for size in shape] if is_encoder else shape
    heads = {"semantic_config": {"model_args": {"num_heads": 5}}}
    config = infer_config(meta_state_dict(shapes), **heads)
    assert config.semantic_config.model_args["depth"] == 3
    assert config.semantic_config.model_args["num_heads"] == 5
    convert_state_dict(meta_state_dict(shapes), config)


def test_clip_of_any_size(tiny: dict[str, torch.Tensor]):
    tiny["encoder_vqkd.positional_embedding"] = torch.empty(1 + 8 * 8, 64, device="meta")
    tiny["decoder_vqkd.pos_embed"] = torch.empty(1, 1 + 8 * 8, 64, device="meta")
    config = infer_config(tiny, **HEADS)
    assert (config.image_size, config.scales, config.codebook_size) == (128, [1, 2, 4, 6, 8], 512)
    convert_state_dict(tiny, config)


def test_overrides_are_merged(tiny: dict[str, torch.Tensor]):
    config = infer_config(tiny, scales=[14], **HEADS)
    assert config.scales == [14]
    assert config.semantic_config.num_attention_heads == 4
    assert config.semantic_config.hidden_size == 64
    with pytest.raises(ValueError, match="codebook_dim"):
        infer_config(tiny, codebook_dim=8)
    for name in ("semantic_config", "semantic_decoder_config"):
        with pytest.raises(ValueError, match="has no fields num_atention_heads"):
            infer_config(tiny, **{**HEADS, name: {"num_atention_heads": 4}})
    with pytest.raises(ValueError, match="can't be made of these fields: .*num_attention_heads"):
        infer_config(tiny, **{**HEADS, "semantic_config": {"num_attention_heads": "four"}})


def test_converted_weights_are_the_models_own():
    fixture = json.loads(TINY.read_text())
    state_dict = {key: torch.randn(shape) for key, shape in fixture["state_dict"].items()}
    before = {key: value.clone() for key, value in state_dict.items()}
    model = convert_tokenizer(state_dict, **HEADS)
    assert not model.training
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(state_dict[key], before[key]) for key in before)


def test_a_converted_model_survives_saving(tmp_path: Path):
    fixture = json.loads(TINY.read_text())
    state_dict = {key: torch.randn(shape) / 10 for key, shape in fixture["state_dict"].items()}
    model = convert_tokenizer(state_dict, **HEADS)
    model.save_pretrained(tmp_path)
    loaded = TokenFlowModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


def test_packed_attention_is_unpacked():
    fixture = json.loads(TINY.read_text())
    state_dict = {key: torch.randn(shape) for key, shape in fixture["state_dict"].items()}
    converted = convert_state_dict(state_dict, infer_config(state_dict, **HEADS))
    key = state_dict["decoder_vqkd.blocks.1.attn.qkv.weight"][64:128]
    assert torch.equal(converted["semantic_decoder.encoder.layers.1.self_attn.k_proj.weight"], key)
    assert converted["semantic_decoder.encoder.layers.1.self_attn.k_proj.bias"].count_nonzero() == 0
    value = state_dict["encoder_vqkd.transformer.resblocks.0.attn.in_proj_bias"][128:]
    assert torch.equal(converted["semantic_encoder.model.encoder.layers.0.self_attn.v_proj.bias"], value)
    joint = [state_dict[f"decoder.mid.1.{part}.weight"][:, :, 0, 0] for part in "qkv"]
    assert torch.equal(converted["pixel_decoder.blocks.1.qkv.weight"], torch.cat(joint))


def test_clip_tower_of_the_original_layout():
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    shapes = {
        "class_embedding": (32,),
        "positional_embedding": (17, 32),
        "proj": (32, 12),
        "conv1.weight": (32, 3, 8, 8),
    }
    for norm in ("ln_pre", "ln_post", *(f"transformer.resblocks.{i}.ln_{j}" for i in range(2) for j in (1, 2))):
        shapes |= {f"{norm}.weight": (32,), f"{norm}.bias": (32,)}
    for i in range(2):
        block = f"transformer.resblocks.{i}"
        shapes |= {f"{block}.attn.in_proj_weight": (96, 32), f"{block}.attn.in_proj_bias": (96,)}
        for name, rows, columns in (("attn.out_proj", 32, 32), ("mlp.c_fc", 48, 32), ("mlp.c_proj", 32, 48)):
            shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (rows,)}
    state_dict = {key: torch.randn(shape) for key, shape in shapes.items()}
    missing, unexpected = CLIPVisionModel(config).load_state_dict(convert_clip_tower(state_dict), strict=True)
    assert not missing and not unexpected
    del state_dict["ln_post.bias"]
    with pytest.raises(ValueError, match="ln_post.bias"):
        convert_clip_tower(state_dict)


# ---- What does not fit ----


@pytest.mark.parametrize(
    "key",
    [
        "encoder_vqkd.ln_post.bias",
        "encoder.conv_in.weight",
        "encoder.conv_in.bias",
        "encoder.mid.1.k.weight",
        "encoder.mid.1.q.weight",
        "decoder.conv_blocks.1.res.0.norm1.weight",
        "decoder_vqkd.blocks.0.attn.q_bias",
        "decoder_vqkd.blocks.2.attn.qkv.weight",
        "decode_task_layer.2.weight",
        "quantize.embedding_vqgan.weight",
        "post_quant_conv.bias",
    ],
)
def test_missing_keys_are_named(tiny: dict[str, torch.Tensor], key: str):
    del tiny[key]
    with pytest.raises(ValueError, match=key):
        convert_tokenizer(tiny, **HEADS)


def test_all_problems_are_listed(tiny: dict[str, torch.Tensor]):
    del tiny["encoder.norm_out.weight"], tiny["decoder.norm_out.bias"]
    tiny["encoder_vqkd.proj"] = torch.empty(64, 32, device="meta")
    tiny["quant_conv.weight"] = torch.empty(8, 128, 1, 1, device="meta")
    with pytest.raises(ValueError) as error:
        convert_tokenizer(tiny, **HEADS)
    for part in ("missing encoder.norm_out.weight", "missing decoder.norm_out.bias", "left over encoder_vqkd.proj"):
        assert part in str(error.value)
    assert "quant_conv.weight of shape (8, 128, 1, 1)" in str(error.value)


@pytest.mark.parametrize("key", ["encoder.mid.1.k.weight", "decoder_vqkd.blocks.0.attn.qkv.weight"])
def test_wrong_shapes_inside_joint_matrices_are_named(tiny: dict[str, torch.Tensor], key: str):
    tiny[key] = torch.empty([size + 1 for size in tiny[key].shape], device="meta")
    with pytest.raises(ValueError, match=key):
        convert_tokenizer(tiny, **HEADS)


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="no official TokenFlow tokenizer"):
        infer_config({"model.embed_tokens.weight": torch.zeros(2, 2)})


# ---- Files ----


@pytest.mark.parametrize("container", ["ema", "model", "state_dict", None])
@pytest.mark.parametrize("zipped", [True, False])
def test_containers(tmp_path: Path, container: str | None, zipped: bool):
    state_dict = {"weight": torch.arange(3.0)}
    path = tmp_path / "official.pt"
    content = state_dict if container is None else {container: state_dict, "steps": 7}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = load_official_state_dict(path)
    assert loaded.keys() == state_dict.keys() and torch.equal(loaded["weight"], state_dict["weight"])


def test_averaged_weights_come_first(tmp_path: Path):
    parts = {name: {"weight": torch.full((2,), float(i))} for i, name in enumerate(["state_dict", "model", "ema"])}
    torch.save(parts, tmp_path / "official.pt")
    assert load_official_state_dict(tmp_path / "official.pt")["weight"].tolist() == [2.0, 2.0]
    parts["ema"] = {}  # of a run without averaging
    torch.save(parts, tmp_path / "official.pt")
    assert load_official_state_dict(str(tmp_path / "official.pt"))["weight"].tolist() == [1.0, 1.0]


def test_training_arguments_beside_the_weights(tmp_path: Path):
    content = {"model": {"weight": torch.ones(2)}, "args": argparse.Namespace(lr=1e-4, name="run"), "steps": 3}
    torch.save(content, tmp_path / "official.pt")
    assert load_official_state_dict(tmp_path / "official.pt")["weight"].tolist() == [1.0, 1.0]


def test_safetensors(tmp_path: Path):
    save_file({"weight": torch.arange(3.0)}, tmp_path / "official.safetensors")
    assert load_official_state_dict(tmp_path / "official.safetensors")["weight"].tolist() == [0.0, 1.0, 2.0]


class Malicious:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False, None])
def test_code_is_refused_and_not_run(tmp_path: Path, zipped: bool | None):
    path, target = tmp_path / "official.pt", tmp_path / "made-by-the-checkpoint"
    content = {"model": {"weight": torch.ones(2)}, "args": Malicious(target)}
    if zipped is None:
        path.write_bytes(pickle.dumps(content["args"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    why = "or a damaged one" if zipped is None else r"it holds \S+, which would need code to be run$"
    with pytest.raises(ValueError, match=f"can't be read as .*{why}"):
        load_official_state_dict(path)
    assert not target.exists()


@pytest.mark.parametrize("content", [{"model": {"weight": "text"}}, [1, 2], {"steps": 3}])
def test_files_without_weights_are_refused(tmp_path: Path, content: object):
    torch.save(content, tmp_path / "official.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_official_state_dict(tmp_path / "official.pt")


@pytest.mark.parametrize("name", ["photo.png", "notes.txt", "empty.pt", "other.zip", "cut.pt", "notes.safetensors"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(b"" if name == "empty.pt" else b"no checkpoint at all")
    if name == "photo.png":
        PIL.Image.new("RGB", (8, 8)).save(path)
    elif name == "other.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("notes.txt", "no tensors")
    elif name == "cut.pt":
        torch.save({"weight": torch.ones(9)}, path)
        path.write_bytes(path.read_bytes()[:-99])
    with pytest.raises(ValueError, match=f"{name} can't be read as .* or a damaged one") as error:
        load_official_state_dict(path)
    assert "weights_only" not in str(error.value)  # torch's advice to let the file run code


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        load_official_state_dict(tmp_path / "absent.pt")
