# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Official understanding models: a Qwen2.5 or Vicuna with a projector, and the image tokenizer as its vision tower."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING

from ..configuration_tokenflow import (
    QWEN_2_5_14B,
    ROTARY,
    TokenFlowUnderstandingConfig,
    check_fields,
    make_config,
    merge_fields,
)
from ..modeling_tokenflow_understanding import TokenFlowForConditionalGeneration
from .checkpoints import StateDict, joined
from .layouts import ConvertedStateDict, JointLayout, Layout, Renames, shapes_of
from .text_to_image import LAYER, is_text_to_image, known_fields
from .text_to_image import OFFICIAL_FIELDS as GENERATOR_FIELDS
from .tokenizer import tokenizer_layout
from .tokenizer_config import count_numbers, infer_config

TOKENIZER = "model.tokenizer."
OFFICIAL_TOKENIZER = "model.vision_tower.vision_tower."
RENAMES: Renames = [
    (r"model\.language_model\.", "model."),
    (r"model\.projector\.linear_1\.", "model.mm_projector.0."),
    (r"model\.projector\.linear_2\.", "model.mm_projector.2."),
]
VICUNA_13B = {
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# What the configuration of an official folder knows that shapes don't show.
OFFICIAL_FIELDS = ("num_attention_heads", *GENERATOR_FIELDS, "tie_word_embeddings")
# Of Qwen2.5 and Vicuna alike.
HEAD_DIM = 128


def is_understanding(state_dict: StateDict) -> bool:
    """Whether these are the keys of an understanding model."""
    return "model.mm_projector.0.weight" in state_dict and not is_text_to_image(state_dict)


def holds_tokenizer(state_dict: StateDict) -> bool:
    """Whether an understanding model's keys have the image tokenizer among them, which may be left out."""
    return any(key.startswith(OFFICIAL_TOKENIZER) for key in state_dict)


def with_tokenizer(model: StateDict, tokenizer: StateDict) -> StateDict:
    """Both in one, the tokenizer's keys where official checkpoints have them."""
    return joined(model, tokenizer, OFFICIAL_TOKENIZER)


def understanding_layout(config: TokenFlowUnderstandingConfig) -> Layout:
    """The layout of an official understanding model with its tokenizer."""
    with torch.device("meta"):
        model = TokenFlowForConditionalGeneration(config)
    shapes = shapes_of(model)
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    outer = Layout(shapes, RENAMES, ("lm_head.weight",) if config.tie_word_embeddings else ())
    return JointLayout(outer, tokenizer_layout(model.model.tokenizer.config), TOKENIZER, OFFICIAL_TOKENIZER)


def infer_understanding_config(
    state_dict: StateDict, official: Mapping[str, Any] | None = None, **overrides: Any
) -> TokenFlowUnderstandingConfig:
    """
    The configuration of an official understanding model, read off its tensors.

    Args:
        state_dict: official keys to tensors, the tokenizer's among them; tensors on the meta device serve.
        official: the `config.json` of its folder. What it does not say, or without it, is Qwen2.5's or Vicuna's,
            whichever the tensors show it is.
        overrides: fields of [`TokenFlowUnderstandingConfig`] to set, of which `text_config` and `tokenizer_config` are
            dictionaries that are merged into what was inferred.

    Raises:
        ValueError: the keys are not those of an official understanding model, or a field is unknown.
    """
    text, image = (overrides.pop(name, None) or {} for name in ("text_config", "tokenizer_config"))
    check_fields(overrides, TokenFlowUnderstandingConfig)
    tower = {
        key.removeprefix(OFFICIAL_TOKENIZER): tensor
        for key, tensor in state_dict.items()
        if key.startswith(OFFICIAL_TOKENIZER)
    }
    tokenizer_config = infer_config(tower, **image)
    try:
        fields = _text_fields(state_dict, official or {})
    except KeyError as error:
        raise ValueError(
            f"this is no official TokenFlow understanding model, which would have {error.args[0]}"
        ) from error
    check_fields(text, CONFIG_MAPPING[fields["model_type"]], *ROTARY)
    text_config = merge_fields(fields, text)
    # Without an embedding of its own unless the text tokenizer knows such a token, as Qwen2.5's does.
    image_token_id = TokenFlowUnderstandingConfig.image_token_id
    if text_config["vocab_size"] <= image_token_id:
        image_token_id = text_config["vocab_size"]
    parts = {"text_config": text_config, "tokenizer_config": tokenizer_config.to_dict()}
    return make_config(TokenFlowUnderstandingConfig, {**parts, "image_token_id": image_token_id, **overrides})


def infer_picture_options(official: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """
    The options of an image processor that cuts pictures to size as an official understanding model does.

    Args:
        official: the `config.json` of its folder. Without it pictures are padded, as the released models'.
        image_size: of the tokenizer.

    Raises:
        ValueError: the model reads a picture in parts.
    """
    ratio = official.get("image_aspect_ratio") if official else "pad"
    if "anyres" in str(ratio):
        raise ValueError(f"pictures are read as a whole, and not in parts, as image_aspect_ratio={ratio!r} has them")
    if ratio == "pad":
        return {"size": {"shortest_edge": image_size}, "do_pad": True}
    return {"size": {"height": image_size, "width": image_size}}


def _text_fields(state_dict: StateDict, official: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes from the tensors, the rest from the official configuration or the original's."""
    vocab_size, hidden_size = state_dict["model.embed_tokens.weight"].shape
    is_qwen = LAYER + "self_attn.q_proj.bias" in state_dict
    known = known_fields(official, OFFICIAL_FIELDS)
    query_size = state_dict[LAYER + "self_attn.q_proj.weight"].shape[0]
    num_heads = known.get("num_attention_heads", max(1, query_size // HEAD_DIM))
    fields = {"model_type": "qwen2" if is_qwen else "llama", **(QWEN_2_5_14B if is_qwen else VICUNA_13B), **known}
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if isinstance(fields[name], int) and fields[name] >= vocab_size:
            fields[name] = None  # the original's, which a smaller vocabulary does not have
    return {
        **fields,
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": state_dict[LAYER + "mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": count_numbers(state_dict, r"model\.layers\.(\d+)\."),
        "num_attention_heads": num_heads,
        "num_key_value_heads": state_dict[LAYER + "self_attn.k_proj.weight"].shape[0] // (query_size // num_heads),
    }


def convert_understanding(
    state_dict: StateDict, official: Mapping[str, Any] | None = None, **overrides: Any
) -> TokenFlowForConditionalGeneration:
    """
    An official understanding model to a [`TokenFlowForConditionalGeneration`] in evaluation mode.

    It is all in memory. `ConvertedStateDict` and `write_model` convert to a folder tensor by tensor.

    Args:
        state_dict: official keys to tensors, the tokenizer's among them, see `with_tokenizer`.
        official, overrides: as for `infer_understanding_config`.

    Raises:
        ValueError: keys are missing, left over, or don't have the shapes of the model; it lists them.
    """
    config = infer_understanding_config(state_dict, official, **overrides)
    converted = ConvertedStateDict(state_dict, understanding_layout(config)).copied()
    return TokenFlowForConditionalGeneration.from_pretrained(None, config=config, state_dict=converted).eval()
