# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The configuration of an official image tokenizer, read off its tensors."""

import math
import re
from typing import Any

from ..configuration_tokenflow import OPENAI_MEAN, OPENAI_STD, TokenFlowConfig, merge_fields
from .checkpoints import StateDict


def infer_config(state_dict: StateDict, **overrides: Any) -> TokenFlowConfig:
    """
    The configuration of an official tokenizer, read off its tensors.

    What shapes don't show (numbers of heads, scales, norm epsilons) is taken from the released variants.

    Args:
        state_dict: official keys to tensors; tensors on the meta device serve.
        overrides: fields of [`TokenFlowConfig`] to set; dictionaries are merged into those that were inferred.

    Raises:
        ValueError: the keys are not those of an official TokenFlow tokenizer, or a field is unknown.
    """
    try:
        fields = {
            **_pixel_fields(state_dict),
            **_semantic_fields(state_dict),
            "codebook_size": state_dict["quantize.embedding_vqkd.weight"].shape[0],
            "semantic_codebook_dim": state_dict["quantize.embedding_vqkd.weight"].shape[1],
            "pixel_codebook_dim": state_dict["quantize.embedding_vqgan.weight"].shape[1],
            "teacher_hidden_size": state_dict["decode_task_layer.2.weight"].shape[0],
            "semantic_decoder_config": _semantic_decoder_fields(state_dict),
        }
    except KeyError as error:
        raise ValueError(f"this is no official TokenFlow tokenizer, which would have {error.args[0]}") from error
    is_enhanced = fields["decoder_channels"] != fields["pixel_channels"]
    if is_enhanced and fields["image_size"] == 224:  # its positions are for 224 pixels, but it is meant for 256
        fields["image_size"], fields["scales"] = 256, [*fields["scales"], 16]
    return TokenFlowConfig.from_fields(merge_fields(fields, overrides))


def count_numbers(state_dict: StateDict, pattern: str) -> int:
    """One more than the largest number that the pattern's group matches; 0 without a match."""
    return 1 + max((int(match[1]) for key in state_dict if (match := re.match(pattern, key))), default=-1)


def _pixel_fields(state_dict: StateDict) -> dict[str, Any]:
    channels = state_dict["encoder.conv_in.weight"].shape[0]
    levels = range(count_numbers(state_dict, r"encoder\.conv_blocks\.(\d+)\."))
    widths = [state_dict[f"encoder.conv_blocks.{index}.res.0.conv2.weight"].shape[0] for index in levels]
    multipliers = [width // channels for width in widths] or [1]
    return {
        "pixel_channels": channels,
        "pixel_channel_multipliers": multipliers,
        "pixel_num_res_blocks": count_numbers(state_dict, r"encoder\.conv_blocks\.0\.res\.(\d+)\."),
        "pixel_latent_channels": state_dict["encoder.conv_out.weight"].shape[0],
        "pixel_attention_levels": [i for i in levels if f"encoder.conv_blocks.{i}.attn.0.norm.weight" in state_dict],
        "decoder_channels": state_dict["decoder.conv_out.weight"].shape[1] // multipliers[0],
        "decoder_num_res_blocks": count_numbers(state_dict, r"decoder\.conv_blocks\.0\.res\.(\d+)\.") - 1,
    }


def _semantic_decoder_fields(state_dict: StateDict) -> dict[str, Any]:
    return {
        "hidden_size": state_dict["decoder_vqkd.cls_token"].shape[-1],
        "intermediate_size": state_dict["decoder_vqkd.blocks.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count_numbers(state_dict, r"decoder_vqkd\.blocks\.(\d+)\."),
        "image_size": math.isqrt(state_dict["decoder_vqkd.pos_embed"].shape[1]),
    }


def _semantic_fields(state_dict: StateDict) -> dict[str, Any]:
    if "encoder_vqkd.class_embedding" in state_dict:
        return clip_fields(state_dict)
    if "encoder_vqkd.vision_model.embeddings.patch_embedding.weight" in state_dict:
        return _siglip_fields(state_dict)
    if "encoder_vqkd.patch_embed.backbone.stem.conv1.weight" in state_dict:
        return _vitamin_fields(state_dict)
    raise ValueError("this is no official TokenFlow tokenizer, which would have a CLIP, SigLIP or ViTamin")


def _scales(grid: int, scales: list[int]) -> list[int]:
    """The released scales, ending at a grid."""
    return [scale for scale in scales if scale < grid] + [grid]


def clip_fields(state_dict: StateDict) -> dict[str, Any]:
    """The fields of a tokenizer that hang on its CLIP."""
    width, _, patch_size, _ = state_dict["encoder_vqkd.conv1.weight"].shape
    grid = math.isqrt(state_dict["encoder_vqkd.positional_embedding"].shape[0])
    return {
        "image_size": grid * patch_size,
        "scales": _scales(grid, [1, 2, 4, 6, 8, 10, 12, 14]),
        "semantic_config": {
            "model_type": "clip_vision_model",
            "hidden_size": width,
            "intermediate_size": state_dict["encoder_vqkd.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": count_numbers(state_dict, r"encoder_vqkd\.transformer\.resblocks\.(\d+)\."),
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
    grid = math.isqrt(state_dict[f"{prefix}.embeddings.position_embedding.weight"].shape[0])
    size = 384 if 384 // patch_size == grid else grid * patch_size
    return {
        "image_size": size,
        "scales": _scales(grid, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22]),
        "semantic_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": width,
            "intermediate_size": state_dict[f"{prefix}.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": count_numbers(state_dict, r"encoder_vqkd\.vision_model\.encoder\.layers\.(\d+)\."),
            "num_attention_heads": 16,
            "image_size": size,
            "patch_size": patch_size,
            "vision_use_head": f"{prefix}.head.probe" in state_dict,
        },
        "semantic_feature_layer": -2,
        "semantic_feature_norm": False,
        **_normalization_fields(state_dict, [0.5] * 3, [0.5] * 3),
    }


VITAMIN_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}


def _vitamin_fields(state_dict: StateDict) -> dict[str, Any]:
    stem = "encoder_vqkd.patch_embed.backbone"
    stages = [f"{stem}.stages.{index}" for index in range(2)]
    width = state_dict["encoder_vqkd.blocks.0.norm1.weight"].shape[0]
    hidden = state_dict["encoder_vqkd.blocks.0.mlp.w0.weight"].shape[0]
    ratio = hidden / width
    return {
        "image_size": 256,
        "scales": _scales(16, [1, 2, 4, 6, 8, 10, 12, 14]),
        "semantic_config": {
            "model_type": "timm_wrapper",
            "architecture": "vitamin_xlarge_256",  # all ViTamins are this one with other numbers
            "do_pooling": False,
            "model_args": {
                "embed_dim": width,
                "depth": count_numbers(state_dict, r"encoder_vqkd\.blocks\.(\d+)\."),
                "num_heads": VITAMIN_HEADS.get(width, max(1, width // 64)),
                # timm truncates width * ratio, which may lie just below the whole number
                "mlp_ratio": ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf),
                "pos_embed": "none",
                "final_norm": False,
                "embed_cfg": {
                    "stem_width": state_dict[f"{stem}.stem.conv1.weight"].shape[0],
                    "embed_dim": [*(state_dict[f"{stage}.0.conv3_1x1.weight"].shape[0] for stage in stages), width],
                    "depths": [*(count_numbers(state_dict, rf"{re.escape(stage)}\.(\d+)\.") for stage in stages), 1],
                },
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
