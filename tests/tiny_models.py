# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Tokenizers and generators so small that a test can build, train and save one in a blink."""

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import is_timm_available

from transformers_tokenflow import (
    TokenFlowConfig,
    TokenFlowForConditionalGeneration,
    TokenFlowForTextToImage,
    TokenFlowImageProcessor,
    TokenFlowModel,
    TokenFlowProcessor,
    TokenFlowTextToImageConfig,
    TokenFlowUnderstandingConfig,
    load_chat_template,
)

needs_timm = pytest.mark.skipif(not is_timm_available(), reason="timm is not installed")

PIXEL_FIELDS: dict[str, Any] = {
    "image_size": 32,
    "scales": [1, 2, 4],
    "codebook_size": 48,
    "semantic_codebook_dim": 8,
    "pixel_codebook_dim": 4,
    "pixel_channels": 8,
    "pixel_channel_multipliers": [1, 2],
    "pixel_num_res_blocks": 1,
    "pixel_latent_channels": 8,
    "pixel_patch_size": 4,
    "norm_num_groups": 4,
}
TRANSFORMER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWER = {**TRANSFORMER, "image_size": 32, "patch_size": 8}
LAST_HIDDEN_STATE = {"semantic_feature_layer": -1}
NORMALIZED = {"semantic_image_mean": [0.5, 0.4, 0.3], "semantic_image_std": [0.3, 0.4, 0.5]}
AS_THE_PIXELS = {"semantic_image_mean": None, "semantic_image_std": None}

KINDS: dict[str, dict[str, Any]] = {
    "clip": {
        "semantic_config": {"model_type": "clip_vision_model", **TOWER},
        "semantic_feature_norm": True,
        **LAST_HIDDEN_STATE,
        **AS_THE_PIXELS,
    },
    "siglip": {
        "semantic_config": {"model_type": "siglip_vision_model", **TOWER, "num_hidden_layers": 3},
        "semantic_feature_layer": -2,
        **NORMALIZED,
    },
    "vit": {"semantic_config": {"model_type": "vit", **TOWER}, **LAST_HIDDEN_STATE, **AS_THE_PIXELS},
    "vitamin": {
        "image_size": 64,
        "semantic_config": {
            "model_type": "timm_wrapper",
            "architecture": "vitamin_small_224",
            "do_pooling": False,
            "model_args": {
                "embed_dim": 16,
                "depth": 2,
                "num_heads": 2,
                "mlp_ratio": 1.5,
                "pos_embed": "none",
                "final_norm": False,
                "embed_cfg": {"stem_width": 8, "embed_dim": [8, 8, 16], "depths": [1, 1, 1]},
            },
        },
        **LAST_HIDDEN_STATE,
        **NORMALIZED,
    },
    "pixel": {"semantic_codebook_dim": 0},
    "semantic": {"pixel_codebook_dim": 0, "semantic_config": {"model_type": "vit", **TOWER}, **LAST_HIDDEN_STATE},
}
ALL_KINDS = [pytest.param(kind, marks=needs_timm) if kind == "vitamin" else kind for kind in KINDS]


def tiny_config(kind: str = "clip", **overrides: Any) -> TokenFlowConfig:
    """A configuration of one of `KINDS`, with fields changed."""
    decoder = {**TRANSFORMER, "image_size": 4}
    fields = {**PIXEL_FIELDS, "semantic_decoder_config": decoder, "teacher_hidden_size": 12, **KINDS[kind], **overrides}
    return TokenFlowConfig.from_fields(fields)


def tiny_model(kind: str = "clip", seed: int = 0, **overrides: Any) -> TokenFlowModel:
    """A model of one of `KINDS` with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return TokenFlowModel(tiny_config(kind, **overrides)).eval()


def pictures(config: TokenFlowConfig, batch: int = 2, seed: int = 0, size: int | None = None) -> torch.Tensor:
    """Random pictures (batch, 3, H, H) in [-1, 1], of the configuration's size by default."""
    size = size or config.image_size
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def teacher_features(config: TokenFlowConfig, batch: int = 2) -> torch.Tensor | None:
    """Random targets of the semantic decoder, or None where there is none."""
    if config.semantic_codebook_dim == 0:
        return None
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, config.grid_size**2, config.teacher_hidden_size, generator=generator)


SPECIAL_TOKENS = ["<unk>", "<s>", "</s>"]
LETTERS = "▁abcdefghijklmnopqrstuvwxyz0123456789<>/[](){}.,;:'-_!?&+*"
TEXT_FIELDS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
}


def tiny_text_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """A fast tokenizer of letters, without a token for padding: a space is put before each text, as by Llama's."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *LETTERS])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **options)


def tiny_processor(image_size: int = 32, **options: Any) -> TokenFlowProcessor:
    """The processor of a tiny generator, with a text tokenizer of letters."""
    return TokenFlowProcessor(
        TokenFlowImageProcessor(size={"shortest_edge": image_size}), tiny_text_tokenizer(), **options
    )


def tiny_text_to_image(
    kind: str = "clip", seed: int = 0, use_text_head: bool = True, **overrides: Any
) -> tuple[TokenFlowForTextToImage, TokenFlowProcessor]:
    """A generator with random weights, in evaluation mode, and its processor; fields of the text config changed."""
    tokenizer_config = tiny_config(kind)
    processor = tiny_processor(tokenizer_config.image_size)
    text = {**TEXT_FIELDS, "vocab_size": len(processor.tokenizer), "pad_token_id": processor.tokenizer.pad_token_id}
    config = TokenFlowTextToImageConfig(
        text_config={**text, **overrides}, tokenizer_config=tokenizer_config, use_text_head=use_text_head
    )
    torch.manual_seed(seed)
    return TokenFlowForTextToImage(config).eval(), processor


UNDERSTANDING_VOCABULARY = 80
IMAGE_TOKEN_ID = 79


def tiny_understanding(
    kind: str = "clip", seed: int = 0, text_type: str = "qwen2", **overrides: Any
) -> TokenFlowForConditionalGeneration:
    """An understanding model with random weights, in evaluation mode; fields of its configuration changed."""
    text = {**TEXT_FIELDS, "num_key_value_heads": 2, "vocab_size": UNDERSTANDING_VOCABULARY, "model_type": text_type}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text_config = {**text, **special, **overrides.pop("text_config", {})}
    fields = {"tokenizer_config": tiny_config(kind), "image_token_id": IMAGE_TOKEN_ID, **overrides}
    torch.manual_seed(seed)
    return TokenFlowForConditionalGeneration(TokenFlowUnderstandingConfig(text_config=text_config, **fields)).eval()


def tiny_conversation_processor(
    image_size: int = 32,
    num_image_tokens: int = 16,
    tokenizer: Any = None,
    chat_template: str = "vicuna",
    **options: Any,
) -> TokenFlowProcessor:
    """The processor of a tiny understanding model, by default with a text tokenizer of letters."""
    return TokenFlowProcessor(
        TokenFlowImageProcessor(size={"shortest_edge": image_size}),
        tiny_text_tokenizer() if tokenizer is None else tokenizer,
        chat_template=load_chat_template(chat_template),
        image_token="<image>",
        num_image_tokens=num_image_tokens,
        **options,
    )


def tiny_understanding_with_processor(
    kind: str = "clip", seed: int = 0, **overrides: Any
) -> tuple[TokenFlowForConditionalGeneration, TokenFlowProcessor]:
    """Both, made for each other."""
    tokenizer_config = tiny_config(kind)
    processor = tiny_conversation_processor(tokenizer_config.image_size, tokenizer_config.grid_size**2)
    return tiny_understanding(kind, seed, image_token_id=processor.image_token_id, **overrides), processor


def tiny_talker() -> tuple[TokenFlowForConditionalGeneration, TokenFlowProcessor]:
    """An understanding model and its processor whose answers, for all its random weights, have letters and spaces."""
    model, processor = tiny_understanding_with_processor()
    spoken = processor.tokenizer.convert_tokens_to_ids(["▁", "a", "b", "c"])
    model.generation_config.suppress_tokens = sorted(set(range(UNDERSTANDING_VOCABULARY)) - set(spoken))
    model.generation_config.no_repeat_ngram_size = 2
    return model, processor
