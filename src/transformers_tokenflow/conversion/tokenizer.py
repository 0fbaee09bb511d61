# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Official image tokenizers: their names and layouts, and those of [`TokenFlowModel`]."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from ..autoencoder_tokenflow import attention_levels
from ..configuration_tokenflow import TokenFlowConfig
from ..modeling_tokenflow import TokenFlowModel
from .checkpoints import StateDict
from .layouts import ConvertedStateDict, Layout, Renames, shapes_of
from .tokenizer_config import clip_fields, infer_config

# Not weights: a record of recently used indices, and the constants of the input normalisation (in the config here).
DROPPED = ("quantize.codebook_used", "scaling_layer.shift", "scaling_layer.scale")

DECODER_LAYER = r"semantic_decoder\.encoder\.layers\.(\d+)\."
TOWER_LAYER = r"semantic_encoder\.model\.encoder\.layers\.(\d+)\."

# Names here, as beginnings, to official ones. Where the layouts differ, see `TokenizerLayout`.
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


def _block_renames(config: TokenFlowConfig) -> list[tuple[str, str]]:
    """The pixel encoder's and decoder's blocks, which are one flat list here."""
    num_levels = len(config.pixel_channel_multipliers)
    attention = attention_levels(config)

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


class TokenizerLayout(Layout):
    """Linear layers in place of 1×1 convolutions, other packings of queries, keys and values."""

    def official_keys(self, name: str) -> list[str]:
        key = self.renamed(name)
        if not name.startswith("pixel_"):
            return [key]
        key = key.replace(".shortcut.", ".nin_shortcut.").replace(".out_proj.", ".proj_out.")
        return [key.replace(".qkv.", f".{part}.") for part in "qkv"] if ".qkv." in key else [key]

    def arrange(self, name: str, keys: list[str], tensors: list[torch.Tensor]) -> torch.Tensor:
        is_matrix = len(self.shapes[name]) == 2
        tensors = [tensor.flatten(1) if tensor.dim() == 4 and is_matrix else tensor for tensor in tensors]
        if len(tensors) > 1:
            return torch.cat(tensors)
        key = keys[0]
        if name.endswith(".k_proj.bias") and key.endswith(".q_bias"):
            return torch.zeros_like(tensors[0])
        if (match := re.search(r"\.([qkv])_proj\.", name)) and (".in_proj_" in key or key.endswith(".qkv.weight")):
            return tensors[0].chunk(3)["qkv".index(match[1])]
        return tensors[0]


def tokenizer_layout(config: TokenFlowConfig) -> TokenizerLayout:
    """The layout of an official tokenizer."""
    with torch.device("meta"):
        model = TokenFlowModel(config)
    renames = [*TOWER_RENAMES[config.semantic_config.model_type], *_block_renames(config), *COMMON_RENAMES]
    return TokenizerLayout(shapes_of(model), renames, DROPPED)


def convert_state_dict(state_dict: StateDict, config: TokenFlowConfig) -> dict[str, torch.Tensor]:
    """
    Official keys and layouts to those of [`TokenFlowModel`].

    Raises:
        ValueError: keys are missing, left over, or of another shape than the configuration says; it lists them.
    """
    return ConvertedStateDict(state_dict, tokenizer_layout(config)).copied()


def convert_clip_tower(state_dict: StateDict) -> dict[str, torch.Tensor]:
    """
    The vision tower of an original CLIP or of open_clip, under its bare keys, to those of `CLIPVisionModel`.

    The projection, which the vision model of transformers does not have, is left out.

    Raises:
        ValueError: keys are missing, left over, or of another shape than expected; it lists them.
    """
    official = {f"encoder_vqkd.{key}": tensor for key, tensor in state_dict.items() if key != "proj"}
    fields = {**clip_fields(official)["semantic_config"], "num_attention_heads": 1}
    with torch.device("meta"):
        model = CLIPVisionModel(CLIPVisionConfig(**fields))
    prefix = "semantic_encoder.model."
    shapes = {f"{prefix}{name}": shape for name, shape in shapes_of(model).items()}
    converted = ConvertedStateDict(official, TokenizerLayout(shapes, TOWER_RENAMES["clip_vision_model"])).copied()
    return {name.removeprefix(prefix): tensor for name, tensor in converted.items()}


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
