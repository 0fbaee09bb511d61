# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Official TokenFlow checkpoints to folders of this package. Every key is accounted for, or the conversion fails."""

import argparse
import math
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from .configuration_tokenflow import OPENAI_MEAN, OPENAI_STD, TokenFlowConfig
from .modeling_tokenflow import TokenFlowModel

StateDict = Mapping[str, torch.Tensor]
Renames = list[tuple[str, str]]

CONTAINER_KEYS = ("ema", "model", "state_dict")

# Not weights: a record of recently used indices, and the constants of the input normalisation (in the config here).
DROPPED = {"quantize.codebook_used", "scaling_layer.shift", "scaling_layer.scale"}

DECODER_LAYER = r"semantic_decoder\.encoder\.layers\.(\d+)\."
TOWER_LAYER = r"semantic_encoder\.model\.encoder\.layers\.(\d+)\."

# Names here, as beginnings, to official ones. Where the layouts differ, see `_arrange`.
COMMON_RENAMES: Renames = [
    (r"quantizer\.codebook\.semantic", "quantize.embedding_vqkd.weight"),
    (r"quantizer\.codebook\.pixel", "quantize.embedding_vqgan.weight"),
    (r"semantic_encoder\.projection\.", "encode_task_layer."),
    (r"semantic_decoder\.projection\.", "decode_task_layer."),
    (r"semantic_decoder\.class_token", "decoder_vqkd.cls_token"),
    (r"semantic_decoder\.position_embedding", "decoder_vqkd.pos_embed"),
    (r"semantic_decoder\.in_proj\.", "decoder_vqkd.patch_embed.proj."),
    (r"semantic_decoder\.norm\.", "decoder_vqkd.fc_norm."),
    (DECODER_LAYER + r"layer_norm", r"decoder_vqkd.blocks.\1.norm"),
    (DECODER_LAYER + r"mlp\.", r"decoder_vqkd.blocks.\1.mlp."),
    (DECODER_LAYER + r"self_attn\.out_proj\.", r"decoder_vqkd.blocks.\1.attn.proj."),
    (DECODER_LAYER + r"self_attn\.[qkv]_proj\.weight", r"decoder_vqkd.blocks.\1.attn.qkv.weight"),
    (DECODER_LAYER + r"self_attn\.v_proj\.bias", r"decoder_vqkd.blocks.\1.attn.v_bias"),
    # There is no key bias, which would add the same to all scores of a query: it becomes zeros like the query's.
    (DECODER_LAYER + r"self_attn\.[qk]_proj\.bias", r"decoder_vqkd.blocks.\1.attn.q_bias"),
    (r"pixel_encoder\.projection\.", "quant_conv."),
    (r"pixel_decoder\.projection\.", "post_quant_conv."),
    (r"pixel_(en|de)coder\.", r"\1coder."),
]
TOWER_RENAMES: dict[str, Renames] = {
    "clip_vision_model": [  # in the layout of the original CLIP
        (r"semantic_encoder\.model\.embeddings\.class_embedding", "encoder_vqkd.class_embedding"),
        (r"semantic_encoder\.model\.embeddings\.position_embedding\.weight", "encoder_vqkd.positional_embedding"),
        (r"semantic_encoder\.model\.embeddings\.patch_embedding\.", "encoder_vqkd.conv1."),
        (r"semantic_encoder\.model\.pre_layrnorm\.", "encoder_vqkd.ln_pre."),
        (r"semantic_encoder\.model\.post_layernorm\.", "encoder_vqkd.ln_post."),
        (TOWER_LAYER + r"layer_norm", r"encoder_vqkd.transformer.resblocks.\1.ln_"),
        (TOWER_LAYER + r"mlp\.fc1\.", r"encoder_vqkd.transformer.resblocks.\1.mlp.c_fc."),
        (TOWER_LAYER + r"mlp\.fc2\.", r"encoder_vqkd.transformer.resblocks.\1.mlp.c_proj."),
        (TOWER_LAYER + r"self_attn\.[qkv]_proj\.", r"encoder_vqkd.transformer.resblocks.\1.attn.in_proj_"),
        (TOWER_LAYER + r"self_attn\.", r"encoder_vqkd.transformer.resblocks.\1.attn."),
    ],
    "siglip_vision_model": [(r"semantic_encoder\.model\.", "encoder_vqkd.vision_model.")],  # transformers' own
    "timm_wrapper": [(r"semantic_encoder\.model\.timm_model\.", "encoder_vqkd.")],  # timm's own
}


def load_official_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """
    Read an official `.pt` container, or a safetensors file with the same keys, without running code from it.

    Raises:
        ValueError: the file is no checkpoint of tensors, or would need code to be run to be read.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Training scripts store their arguments beside the weights: a Namespace, which holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            container = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
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
    return TokenFlowConfig.from_fields(_merged(fields, overrides))


def _merged(fields: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(fields)
    for name, value in overrides.items():
        known = fields.get(name)
        merged[name] = _merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return merged


def _count(state_dict: StateDict, pattern: str) -> int:
    """One more than the largest number that the pattern's group matches; 0 without a match."""
    return 1 + max((int(match[1]) for key in state_dict if (match := re.match(pattern, key))), default=-1)


def _pixel_fields(state_dict: StateDict) -> dict[str, Any]:
    channels = state_dict["encoder.conv_in.weight"].shape[0]
    levels = range(_count(state_dict, r"encoder\.conv_blocks\.(\d+)\."))
    widths = [state_dict[f"encoder.conv_blocks.{index}.res.0.conv2.weight"].shape[0] for index in levels]
    multipliers = [width // channels for width in widths] or [1]
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
    return {
        "hidden_size": state_dict["decoder_vqkd.cls_token"].shape[-1],
        "intermediate_size": state_dict["decoder_vqkd.blocks.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _count(state_dict, r"decoder_vqkd\.blocks\.(\d+)\."),
        "image_size": math.isqrt(state_dict["decoder_vqkd.pos_embed"].shape[1]),
    }


def _semantic_fields(state_dict: StateDict) -> dict[str, Any]:
    if "encoder_vqkd.class_embedding" in state_dict:
        return _clip_fields(state_dict)
    if "encoder_vqkd.vision_model.embeddings.patch_embedding.weight" in state_dict:
        return _siglip_fields(state_dict)
    if "encoder_vqkd.patch_embed.backbone.stem.conv1.weight" in state_dict:
        return _vitamin_fields(state_dict)
    raise ValueError("this is no official TokenFlow tokenizer, which would have a CLIP, SigLIP or ViTamin")


def _scales(grid: int, scales: list[int]) -> list[int]:
    """The released scales, ending at a grid."""
    return [scale for scale in scales if scale < grid] + [grid]


def _clip_fields(state_dict: StateDict) -> dict[str, Any]:
    width, _, patch_size, _ = state_dict["encoder_vqkd.conv1.weight"].shape
    grid = math.isqrt(state_dict["encoder_vqkd.positional_embedding"].shape[0])
    return {
        "image_size": grid * patch_size,
        "scales": _scales(grid, [1, 2, 4, 6, 8, 10, 12, 14]),
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
    grid = math.isqrt(state_dict[f"{prefix}.embeddings.position_embedding.weight"].shape[0])
    size = 384 if 384 // patch_size == grid else grid * patch_size
    return {
        "image_size": size,
        "scales": _scales(grid, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22]),
        "semantic_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": width,
            "intermediate_size": state_dict[f"{prefix}.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": _count(state_dict, r"encoder_vqkd\.vision_model\.encoder\.layers\.(\d+)\."),
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
                "depth": _count(state_dict, r"encoder_vqkd\.blocks\.(\d+)\."),
                "num_heads": VITAMIN_HEADS.get(width, max(1, width // 64)),
                # timm truncates width * ratio, which may lie just below the whole number
                "mlp_ratio": ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf),
                "pos_embed": "none",
                "final_norm": False,
                "embed_cfg": {
                    "stem_width": state_dict[f"{stem}.stem.conv1.weight"].shape[0],
                    "embed_dim": [*(state_dict[f"{stage}.0.conv3_1x1.weight"].shape[0] for stage in stages), width],
                    "depths": [*(_count(state_dict, rf"{re.escape(stage)}\.(\d+)\.") for stage in stages), 1],
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


def _block_renames(config: TokenFlowConfig) -> Renames:
    """The pixel encoder's and decoder's blocks, which are one flat list here."""
    num_levels = len(config.pixel_channel_multipliers)
    attention = {range(num_levels)[index] for index in config.pixel_attention_levels}

    def levels(order: Iterable[int], num_blocks: int, resample: str) -> list[str]:
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
        (rf"pixel_{part}\.blocks\.{index}\.", f"{part}.{name}.")
        for part, names in (("encoder", encoder), ("decoder", decoder))
        for index, name in enumerate(names)
    ]


def _official_keys(name: str, renames: list[tuple[re.Pattern, str]]) -> list[str]:
    """The official keys that a parameter is made of: one, but for the joint q, k and v of the pixels' attention."""
    for pattern, target in renames:
        if match := pattern.match(name):
            key = match.expand(target) + name[match.end() :]
            break
    else:
        return [name]
    if not name.startswith("pixel_"):
        return [key]
    key = key.replace(".shortcut.", ".nin_shortcut.").replace(".out_proj.", ".proj_out.")
    return [key.replace(".qkv.", f".{part}.") for part in "qkv"] if ".qkv." in key else [key]


def _arrange(name: str, key: str, tensors: list[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    """Official tensors in the layout they have here: linear instead of 1×1 convolutions, other packings of q, k, v."""
    tensors = [tensor.flatten(1) if tensor.dim() == 4 and len(shape) == 2 else tensor for tensor in tensors]
    if len(tensors) > 1:
        return torch.cat(tensors)
    if name.endswith(".k_proj.bias") and key.endswith(".q_bias"):
        return torch.zeros_like(tensors[0])
    if (match := re.search(r"\.([qkv])_proj\.", name)) and (".in_proj_" in key or key.endswith(".qkv.weight")):
        tensors = [tensors[0].chunk(3)["qkv".index(match[1])]]
    # A copy: training the model must not change the caller's tensors, nor need the file that they are mapped from.
    return tensors[0].clone()


def convert_state_dict(state_dict: StateDict, config: TokenFlowConfig) -> dict[str, torch.Tensor]:
    """
    Official keys and layouts to those of [`TokenFlowModel`].

    Raises:
        ValueError: keys are missing, left over, or of another shape than the configuration says; it lists them.
    """
    with torch.device("meta"):
        model = TokenFlowModel(config)
    renames = TOWER_RENAMES[config.semantic_config.model_type] + _block_renames(config) + COMMON_RENAMES
    return _pull(state_dict, {name: value.shape for name, value in model.state_dict().items()}, renames)


def convert_clip_tower(state_dict: StateDict) -> dict[str, torch.Tensor]:
    """
    The vision tower of an original CLIP or of open_clip, under its bare keys, to those of `CLIPVisionModel`.

    The projection, which the vision model of transformers does not have, is left out.

    Raises:
        ValueError: keys are missing, left over, or of another shape than expected; it lists them.
    """
    official = {f"encoder_vqkd.{key}": tensor for key, tensor in state_dict.items() if key != "proj"}
    fields = {**_clip_fields(official)["semantic_config"], "num_attention_heads": 1}
    with torch.device("meta"):
        model = CLIPVisionModel(CLIPVisionConfig(**fields))
    prefix = "semantic_encoder.model."
    shapes = {f"{prefix}{name}": value.shape for name, value in model.state_dict().items()}
    converted = _pull(official, shapes, TOWER_RENAMES["clip_vision_model"])
    return {name.removeprefix(prefix): tensor for name, tensor in converted.items()}


def _pull(state_dict: StateDict, shapes: dict[str, torch.Size], renames: Renames) -> dict[str, torch.Tensor]:
    """For every name here its tensor; every official key must be used."""
    compiled = [(re.compile(pattern), target) for pattern, target in renames]
    converted: dict[str, torch.Tensor] = {}
    used: set[str] = set(DROPPED)
    problems: set[str] = set()
    for name, shape in shapes.items():
        keys = _official_keys(name, compiled)
        used.update(keys)
        problems.update(f"missing {key}" for key in keys if key not in state_dict)
        tensors = [state_dict[key] for key in keys if key in state_dict]
        if len(tensors) < len(keys):
            continue
        try:
            converted[name] = _arrange(name, keys[0], tensors, shape)
            fits = converted[name].shape == shape
        except RuntimeError:  # parts that can't be joined
            fits = False
        if not fits:
            got = ", ".join(f"{key} of shape {tuple(state_dict[key].shape)}" for key in keys)
            problems.add(f"{got} can't become {name} of shape {tuple(shape)}")
    problems.update(f"left over {key}" for key in state_dict if key not in used)
    if problems:
        raise ValueError(f"the checkpoint does not fit, {len(problems)} problems: {'; '.join(sorted(problems))}")
    return converted


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
    return TokenFlowModel.from_pretrained(None, config=config, state_dict=converted).eval()
