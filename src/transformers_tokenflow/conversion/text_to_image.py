# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Official generators: a Llama with visual tokens in its vocabulary, and an image tokenizer in a file of its own."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import LlamaConfig

from ..configuration_tokenflow import (
    LLAMA_2_7B,
    ROTARY,
    TokenFlowTextToImageConfig,
    check_fields,
    make_config,
    merge_fields,
)
from ..modeling_tokenflow_text_to_image import TokenFlowForTextToImage
from .checkpoints import StateDict, joined
from .layouts import ConvertedStateDict, JointLayout, Layout, Renames, shapes_of
from .tokenizer import tokenizer_layout
from .tokenizer_config import count_numbers, infer_config

# Where the tokenizer is: it is so called here, and put beside the generator's official keys, which don't have it.
TOKENIZER = "tokenizer."

# Ids of the codebook's entries, which the training script stores. Here codes are not part of the text's vocabulary.
DROPPED = ("image_token_start", "image_token_end")

# Names here, as beginnings, to official ones; all else has Llama's.
RENAMES: Renames = [
    (r"model\.position_embedding\.weight", "model.pos_1LC"),
    (r"model\.scale_embedding\.", "model.lvl_embed."),
    (r"model\.projector\.linear_1\.", "model.mm_projector.0."),
    (r"model\.projector\.linear_2\.", "model.mm_projector.2."),
    (r"(model\.layers\.\d+\.self_attn)\.(query|key)_norm\.", r"\1.qknorm.\2_norm."),
    (r"(text|visual)_head\.", "lm_head."),
]
# What the configuration of an official folder knows that shapes don't show.
OFFICIAL_FIELDS = (
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "hidden_act",
    "max_position_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
LAYER = "model.layers.0."


def known_fields(official: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """What an official configuration, as transformers 4 or 5 writes it, says of some fields."""
    rotary = official.get("rope_parameters")
    if isinstance(rotary, dict):  # what 4 calls by these two names, which settings may change one by one
        scaling = {name: value for name, value in rotary.items() if name != "rope_theta"}
        theta = rotary.get("rope_theta", official.get("rope_theta"))
        official = {**official, "rope_theta": theta, "rope_scaling": scaling}
    return {name: official[name] for name in names if official.get(name) is not None}


def is_text_to_image(state_dict: StateDict) -> bool:
    """Whether these are the keys of a generator."""
    return "model.pos_1LC" in state_dict


class TextToImageLayout(Layout):
    """
    Text and visual tokens apart, whose rows are stored one after the other.

    The embedding's visual rows are left out: officially they are never read.
    """

    def arrange(self, name: str, keys: list[str], tensors: list[torch.Tensor]) -> torch.Tensor:
        if name not in ("model.embed_tokens.weight", "text_head.weight", "visual_head.weight"):
            return tensors[0]
        num_text = self.shapes["text_head.weight"][0]
        if len(tensors[0]) != num_text + self.shapes["visual_head.weight"][0]:
            return tensors[0]  # as it is, it does not fit
        return tensors[0][num_text:] if name == "visual_head.weight" else tensors[0][:num_text]


def text_to_image_layout(config: TokenFlowTextToImageConfig) -> Layout:
    """The layout of a state dict that `join_tokenizer` made."""
    with torch.device("meta"):
        model = TokenFlowForTextToImage(config)
    outer = TextToImageLayout(shapes_of(model), RENAMES, DROPPED)
    return JointLayout(outer, tokenizer_layout(model.tokenizer.config), TOKENIZER, TOKENIZER)


def infer_text_to_image_config(
    generator: StateDict, tokenizer: StateDict, official: Mapping[str, Any] | None = None, **overrides: Any
) -> TokenFlowTextToImageConfig:
    """
    The configuration of an official generator, read off its tensors, which show even the number of heads.

    Args:
        generator: official keys to tensors; tensors on the meta device serve.
        tokenizer: the official tokenizer's.
        official: the `config.json` of the generator's folder. What it does not say, or without it, is Llama 2's.
        overrides: fields of [`TokenFlowTextToImageConfig`] to set, of which `text_config` and `tokenizer_config` are
            dictionaries that are merged into what was inferred.

    Raises:
        ValueError: the keys are not those of an official generator and an official tokenizer, or a field is unknown.
    """
    text, image = (overrides.pop(name, None) or {} for name in ("text_config", "tokenizer_config"))
    check_fields(overrides, TokenFlowTextToImageConfig)
    check_fields(text, LlamaConfig, *ROTARY)
    tokenizer_config = infer_config(tokenizer, **image)
    try:
        fields = _text_fields(generator, tokenizer_config.codebook_size, official or {})
    except KeyError as error:
        raise ValueError(f"this is no official TokenFlow generator, which would have {error.args[0]}") from error
    text_config = {"model_type": "llama", **merge_fields(fields, text)}
    parts = {"text_config": text_config, "tokenizer_config": tokenizer_config.to_dict()}
    return make_config(TokenFlowTextToImageConfig, {**parts, **overrides})


def _text_fields(generator: StateDict, codebook_size: int, official: Mapping[str, Any]) -> dict[str, Any]:
    """The Llama's fields: sizes from the tensors, the rest from the official configuration or Llama 2's."""
    vocabulary, hidden_size = generator["lm_head.weight"].shape
    head_dim = generator[LAYER + "self_attn.qknorm.query_norm.weight"].shape[0]
    num_text = vocabulary - codebook_size
    known = known_fields(official, OFFICIAL_FIELDS)
    if not 0 <= known.get("pad_token_id", -1) < num_text:
        known["pad_token_id"] = num_text - 1  # [PAD] was added to Llama's vocabulary, before the visual tokens
    return {
        **LLAMA_2_7B,
        **known,
        "vocab_size": num_text,
        "hidden_size": hidden_size,
        "head_dim": head_dim,
        "intermediate_size": generator[LAYER + "mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": count_numbers(generator, r"model\.layers\.(\d+)\."),
        "num_attention_heads": generator[LAYER + "self_attn.q_proj.weight"].shape[0] // head_dim,
        "num_key_value_heads": generator[LAYER + "self_attn.k_proj.weight"].shape[0] // head_dim,
    }


def join_tokenizer(generator: StateDict, tokenizer: StateDict) -> StateDict:
    """Both in one, the tokenizer's keys behind `TOKENIZER`: what `text_to_image_layout` expects."""
    return joined(generator, tokenizer, TOKENIZER)


def convert_text_to_image(
    generator: StateDict, tokenizer: StateDict, official: Mapping[str, Any] | None = None, **overrides: Any
) -> TokenFlowForTextToImage:
    """
    An official generator and its tokenizer to a [`TokenFlowForTextToImage`] in evaluation mode.

    It is all in memory. `ConvertedStateDict` and `write_model` convert to a folder tensor by tensor.

    Args:
        generator, tokenizer: official keys to tensors.
        official, overrides: as for `infer_text_to_image_config`.

    Raises:
        ValueError: keys are missing, left over, or don't have the shapes of the model; it lists them.
    """
    config = infer_text_to_image_config(generator, tokenizer, official, **overrides)
    converted = ConvertedStateDict(join_tokenizer(generator, tokenizer), text_to_image_layout(config)).copied()
    return TokenFlowForTextToImage.from_pretrained(None, config=config, state_dict=converted).eval()
