# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Official TokenFlow checkpoints to folders of this package. Every key is accounted for, or the conversion fails."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .configuration_tokenflow import OPENAI_MEAN, OPENAI_STD, TokenFlowConfig
from .modeling_tokenflow import TokenFlowModel

StateDict = Mapping[str, torch.Tensor]

CONTAINER_KEYS = ("ema", "model", "state_dict")

# Not weights: a record of recently used indices, and the constants of the input normalisation (in the config here).
DROPPED = ("quantize.codebook_used", "scaling_layer.shift", "scaling_layer.scale")

RENAMES = [
    (r"quantize\.embedding_vqkd\.weight", r"quantizer.codebook.semantic"),
    (r"quantize\.embedding_vqgan\.weight", r"quantizer.codebook.pixel"),
    (r"quant_conv\.", r"pixel_encoder.projection."),
    (r"post_quant_conv\.", r"pixel_decoder.projection."),
    (r"encode_task_layer\.", r"semantic_encoder.projection."),
    (r"decode_task_layer\.", r"semantic_decoder.projection."),
    # CLIP, in the layout of the original code
    (r"encoder_vqkd\.class_embedding", r"semantic_encoder.model.embeddings.class_embedding"),
    (r"encoder_vqkd\.positional_embedding", r"semantic_encoder.model.embeddings.position_embedding.weight"),
    (r"encoder_vqkd\.conv1\.", r"semantic_encoder.model.embeddings.patch_embedding."),
    (r"encoder_vqkd\.ln_pre\.", r"semantic_encoder.model.pre_layrnorm."),
    (r"encoder_vqkd\.ln_post\.", r"semantic_encoder.model.post_layernorm."),
    (r"encoder_vqkd\.transformer\.resblocks\.(\d+)\.ln_([12])\.", r"semantic_encoder.model.encoder.layers.\1.layer_norm\2."),
    (r"encoder_vqkd\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"semantic_encoder.model.encoder.layers.\1.mlp.fc1."),
    (r"encoder_vqkd\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"semantic_encoder.model.encoder.layers.\1.mlp.fc2."),
    (r"encoder_vqkd\.transformer\.resblocks\.(\d+)\.attn\.", r"semantic_encoder.model.encoder.layers.\1.self_attn."),
    # SigLIP as in transformers, ViTamin as in timm
    (r"encoder_vqkd\.vision_model\.", r"semantic_encoder.model."),
    (r"encoder_vqkd\.(patch_embed|blocks)\.", r"semantic_encoder.model.timm_model.\1."),
    # Semantic decoder
    (r"decoder_vqkd\.cls_token", r"semantic_decoder.class_token"),
    (r"decoder_vqkd\.pos_embed", r"semantic_decoder.position_embedding"),
    (r"decoder_vqkd\.patch_embed\.proj\.", r"semantic_decoder.in_proj."),
    (r"decoder_vqkd\.fc_norm\.", r"semantic_decoder.norm."),
    (r"decoder_vqkd\.blocks\.(\d+)\.norm([12])\.", r"semantic_decoder.encoder.layers.\1.layer_norm\2."),
    (r"decoder_vqkd\.blocks\.(\d+)\.mlp\.", r"semantic_decoder.encoder.layers.\1.mlp."),
    (r"decoder_vqkd\.blocks\.(\d+)\.attn\.qkv\.weight", r"semantic_decoder.encoder.layers.\1.self_attn.in_proj_weight"),
    (r"decoder_vqkd\.blocks\.(\d+)\.attn\.([qv])_bias", r"semantic_decoder.encoder.layers.\1.self_attn.\2_proj.bias"),
    (r"decoder_vqkd\.blocks\.(\d+)\.attn\.proj\.", r"semantic_decoder.encoder.layers.\1.self_attn.out_proj."),
    # Pixel encoder and decoder
    (r"(en|de)coder\.(conv_in|norm_out|conv_out)\.", r"pixel_\1coder.\2."),
]


def load_official_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """
    Read an official `.pt` container, or a safetensors file with the same keys, without running code from it.

    Raises:
        ValueError: the file is no checkpoint of tensors, or would need code to be run to be read.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        container = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} can't be read as a checkpoint of plain tensors: {error}") from error
    for key in CONTAINER_KEYS:
        if isinstance(container, dict) and isinstance(container.get(key), dict):
            container = container[key]
            break
    if not isinstance(container, dict) or not all(isinstance(value, torch.Tensor) for value in container.values()):
        raise ValueError(f"{path} holds no state dict, neither bare nor under one of {', '.join(CONTAINER_KEYS)}")
    return container


def infer_config(state_dict: StateDict, **overrides: Any) -> TokenFlowConfig:
    """
    The configuration of an official tokenizer, read off its tensors.

    What shapes don't show (numbers of heads, scales, norm epsilons) is taken from the released variants.

    Args:
        state_dict: official keys to tensors; tensors on the meta device serve.
        overrides: fields of [`TokenFlowConfig`] to set; a nested configuration is updated with the fields given.

    Raises:
        ValueError: the keys are not those of an official TokenFlow tokenizer.
    """
    if "quantize.embedding_vqkd.weight" not in state_dict or "encoder.conv_in.weight" not in state_dict:
        raise ValueError("these are not the keys of an official TokenFlow tokenizer: no codebook or pixel encoder there")
    fields = {
        **_pixel_fields(state_dict),
        **_semantic_fields(state_dict),
        "codebook_size": state_dict["quantize.embedding_vqkd.weight"].shape[0],
        "semantic_codebook_dim": state_dict["quantize.embedding_vqkd.weight"].shape[1],
        "pixel_codebook_dim": state_dict["quantize.embedding_vqgan.weight"].shape[1],
        "teacher_hidden_size": state_dict["decode_task_layer.2.weight"].shape[0],
        "semantic_decoder_config": _semantic_decoder_fields(state_dict),
    }
    if fields["decoder_channels"] != fields["pixel_channels"]:  # the enhanced decoder comes with 256 pixels
        fields["image_size"], fields["scales"] = 256, [*fields["scales"], 16]
    for name, value in overrides.items():
        fields[name] = {**fields[name], **value} if isinstance(value, dict) else value
    return TokenFlowConfig(**fields)


def _count(state_dict: StateDict, pattern: str) -> int:
    """One more than the largest number that the pattern's group matches; 0 without a match."""
    return 1 + max((int(match[1]) for key in state_dict if (match := re.match(pattern, key))), default=-1)


def _pixel_fields(state_dict: StateDict) -> dict[str, Any]:
    channels = state_dict["encoder.conv_in.weight"].shape[0]
    levels = range(_count(state_dict, r"encoder\.conv_blocks\.(\d+)\."))
    widths = [state_dict[f"encoder.conv_blocks.{index}.res.0.conv2.weight"].shape[0] for index in levels]
    multipliers = [width // channels for width in widths]
    return {
        "pixel_channels": channels,
        "pixel_channel_multipliers": multipliers,
        "pixel_num_res_blocks": _count(state_dict, r"encoder\.conv_blocks\.0\.res\.(\d+)\."),
        "pixel_latent_channels": state_dict["encoder.conv_out.weight"].shape[0],
        "pixel_attention_levels": [i for i in levels if f"encoder.conv_blocks.{i}.attn.0.norm.weight" in state_dict],
        "decoder_channels": state_dict["decoder.conv_out.weight"].shape[1] // multipliers[0],
        "decoder_num_res_blocks": _count(state_dict, r"decoder\.conv_blocks\.0\.res\.(\d+)\.") - 1,
    }


def _semantic_decoder_fields(state_dict: StateDict) -> dict[str, Any]:
    width = state_dict["decoder_vqkd.cls_token"].shape[-1]
    return {
        "hidden_size": width,
        "intermediate_size": state_dict["decoder_vqkd.blocks.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _count(state_dict, r"decoder_vqkd\.blocks\.(\d+)\."),
        "num_attention_heads": 12,
        "image_size": int((state_dict["decoder_vqkd.pos_embed"].shape[1] - 1) ** 0.5),
        "patch_size": 1,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }


def _semantic_fields(state_dict: StateDict) -> dict[str, Any]:
    if "encoder_vqkd.class_embedding" in state_dict:
        return _clip_fields(state_dict)
    if "encoder_vqkd.vision_model.embeddings.patch_embedding.weight" in state_dict:
        return _siglip_fields(state_dict)
    if "encoder_vqkd.patch_embed.backbone.stem.conv1.weight" in state_dict:
        return _vitamin_fields(state_dict)
    raise ValueError("the semantic encoder is none of CLIP, SigLIP and ViTamin")


def _clip_fields(state_dict: StateDict) -> dict[str, Any]:
    width, _, patch_size, _ = state_dict["encoder_vqkd.conv1.weight"].shape
    grid = int((state_dict["encoder_vqkd.positional_embedding"].shape[0] - 1) ** 0.5)
    return {
        "image_size": grid * patch_size,
        "scales": [1, 2, 4, 6, 8, 10, 12, 14],
        "semantic_config": {
            "model_type": "clip_vision_model",
            "hidden_size": width,
            "intermediate_size": state_dict["encoder_vqkd.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": _count(state_dict, r"encoder_vqkd\.transformer\.resblocks\.(\d+)\."),
            "num_attention_heads": 12,
            "image_size": grid * patch_size,
            "patch_size": patch_size,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        "semantic_feature_layer": -1,
        "semantic_feature_norm": True,
        "semantic_image_mean": None,
        "semantic_image_std": None,
    }


def _siglip_fields(state_dict: StateDict) -> dict[str, Any]:
    prefix = "encoder_vqkd.vision_model"
    width, _, patch_size, _ = state_dict[f"{prefix}.embeddings.patch_embedding.weight"].shape
    return {
        "image_size": 384,
        "scales": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27],
        "semantic_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": width,
            "intermediate_size": state_dict[f"{prefix}.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": _count(state_dict, r"encoder_vqkd\.vision_model\.encoder\.layers\.(\d+)\."),
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": patch_size,
        },
        "semantic_feature_layer": -2,
        "semantic_feature_norm": False,
        **_normalization_fields(state_dict, [0.5] * 3, [0.5] * 3),
    }


# ViTamin's convolutional stem is chosen by name in timm; widths of its stem to that name.
VITAMIN_ARCHITECTURES = {
    64: "vitamin_small_224",
    128: "vitamin_base_224",
    160: "vitamin_large_256",
    192: "vitamin_xlarge_256",
}


def _vitamin_fields(state_dict: StateDict) -> dict[str, Any]:
    stem_width = state_dict["encoder_vqkd.patch_embed.backbone.stem.conv1.weight"].shape[0]
    if stem_width not in VITAMIN_ARCHITECTURES:
        raise ValueError(f"no ViTamin has a stem of width {stem_width}; known: {sorted(VITAMIN_ARCHITECTURES)}")
    width = state_dict["encoder_vqkd.blocks.0.norm1.weight"].shape[0]
    return {
        "image_size": 256,
        "scales": [1, 2, 4, 6, 8, 10, 12, 14, 16],
        "semantic_config": {
            "model_type": "timm_wrapper",
            "architecture": VITAMIN_ARCHITECTURES[stem_width],
            "do_pooling": False,
            "model_args": {
                "img_size": 256,
                "depth": _count(state_dict, r"encoder_vqkd\.blocks\.(\d+)\."),
                "mlp_ratio": state_dict["encoder_vqkd.blocks.0.mlp.w0.weight"].shape[0] / width,
                "pos_embed": "none",
                "final_norm": False,
            },
        },
        "semantic_feature_layer": -1,
        "semantic_feature_norm": False,
        **_normalization_fields(state_dict, OPENAI_MEAN, OPENAI_STD),
    }


def _normalization_fields(state_dict: StateDict, mean: list[float], std: list[float]) -> dict[str, Any]:
    """Mean and standard deviation of the encoder's input, from the checkpoint where its values are at hand."""
    shift, scale = state_dict.get("scaling_layer.shift"), state_dict.get("scaling_layer.scale")
    if shift is None or scale is None or shift.is_meta:
        return {"semantic_image_mean": mean, "semantic_image_std": std}
    return {"semantic_image_mean": shift.flatten().tolist(), "semantic_image_std": scale.flatten().tolist()}


def _block_renames(config: TokenFlowConfig) -> list[tuple[str, str]]:
    """The pixel encoder's and decoder's blocks, which are one flat list here."""
    num_levels = len(config.pixel_channel_multipliers)
    attention = {range(num_levels)[index] for index in config.pixel_attention_levels}

    def levels(order, num_blocks: int, resample: str) -> list[str]:
        names = []
        for position, level in enumerate(order):
            for block in range(num_blocks):
                names.append(f"conv_blocks.{position}.res.{block}")
                if level in attention:
                    names.append(f"conv_blocks.{position}.attn.{block}")
            if position < num_levels - 1:
                names.append(f"conv_blocks.{position}.{resample}")
        return names

    middle = [f"mid.{index}" for index in range(3)]
    encoder = levels(range(num_levels), config.pixel_num_res_blocks, "downsample") + middle
    decoder = middle + levels(reversed(range(num_levels)), config.decoder_num_res_blocks + 1, "upsample")
    return [
        (rf"{part}\.{re.escape(name)}\.", f"pixel_{part}.blocks.{index}.")
        for part, names in (("encoder", encoder), ("decoder", decoder))
        for index, name in enumerate(names)
    ]


def convert_state_dict(state_dict: StateDict, config: TokenFlowConfig) -> dict[str, torch.Tensor]:
    """
    Official keys and layouts to those of [`TokenFlowModel`].

    Raises:
        ValueError: an official key has no place here.
    """
    renames = [(re.compile(pattern), target) for pattern, target in RENAMES + _block_renames(config)]
    converted: dict[str, torch.Tensor] = {}
    unknown = []
    for key, tensor in state_dict.items():
        if key in DROPPED:
            continue
        name = _rename(key, renames)
        if name is None:
            unknown.append(key)
            continue
        converted[name] = tensor
    if unknown:
        raise ValueError(f"{len(unknown)} keys have no place in a TokenFlowModel: {', '.join(sorted(unknown))}")
    return _relayout(converted)


def _rename(key: str, renames: list[tuple[re.Pattern, str]]) -> str | None:
    for pattern, target in renames:
        if match := pattern.match(key):
            return match.expand(target) + key[match.end() :].replace("nin_shortcut", "shortcut")
    return None


def _relayout(converted: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Attention of pixels joins q, k and v in one matrix; attention of transformers keeps them apart."""
    result: dict[str, torch.Tensor] = {}
    for name, tensor in converted.items():
        if match := re.fullmatch(r"(pixel_.*)\.([qkv])\.(weight|bias)", name):
            if match[2] == "q":
                parts = [converted[f"{match[1]}.{part}.{match[3]}"].flatten(1) if tensor.dim() > 1
                         else converted[f"{match[1]}.{part}.{match[3]}"] for part in "qkv"]
                result[f"{match[1]}.qkv.{match[3]}"] = torch.cat(parts)
        elif match := re.fullmatch(r"(semantic_.*layers.*)\.in_proj_(weight|bias)", name):
            for part, value in zip("qkv", tensor.chunk(3)):
                result[f"{match[1]}.{part}_proj.{match[2]}"] = value.contiguous()
        elif name.endswith(".proj_out.weight") or name == "semantic_decoder.in_proj.weight":
            result[name.replace("proj_out", "out_proj")] = tensor.flatten(1)
        else:
            result[name.replace("proj_out", "out_proj")] = tensor
        if match := re.fullmatch(r"(semantic_decoder.*)\.q_proj\.bias", name):
            # The official decoder has no key bias: it would add the same to all scores of a query.
            result[f"{match[1]}.k_proj.bias"] = torch.zeros_like(tensor)
    return result


def check_keys(converted: StateDict, model: torch.nn.Module):
    """
    Raises:
        ValueError: a parameter is missing, left over or of another shape; the message lists them.
    """
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    problems = [f"missing {name}" for name in expected.keys() - converted.keys()]
    problems += [f"left over {name}" for name in converted.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(converted[name].shape)}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in converted and converted[name].shape != shape
    ]
    if problems:
        raise ValueError(f"the checkpoint does not fit: {'; '.join(sorted(problems))}")


def convert_tokenizer(state_dict: StateDict, **overrides: Any) -> TokenFlowModel:
    """
    An official tokenizer's state dict to a [`TokenFlowModel`] in evaluation mode, every key accounted for.

    Args:
        state_dict: official keys to tensors.
        overrides: fields of [`TokenFlowConfig`] that shapes don't show, as for `infer_config`.

    Raises:
        ValueError: keys are missing, left over, or don't have the shapes of the variant they belong to.
    """
    config = infer_config(state_dict, **overrides)
    converted = convert_state_dict(state_dict, config)
    with torch.device("meta"):
        model = TokenFlowModel(config)
    check_keys(converted, model)
    return TokenFlowModel.from_pretrained(None, config=config, state_dict=converted).eval()
