# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""An official checkpoint to a folder that works with the Auto classes, with or without this package."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..card_tokenflow import make_model_card
from ..chat_templates import load_chat_template
from ..configuration_tokenflow import TokenFlowConfig
from ..conversion import (
    Checkpoint,
    ConvertedStateDict,
    check_target,
    folder_written_whole,
    holds_text_tokenizer,
    holds_tokenizer,
    infer_config,
    infer_picture_options,
    infer_text_to_image_config,
    infer_understanding_config,
    is_text_to_image,
    is_understanding,
    join_tokenizer,
    load_text_tokenizer,
    open_checkpoint,
    read_official_config,
    text_to_image_layout,
    tokenizer_layout,
    understanding_layout,
    with_tokenizer,
    write_model,
)
from ..conversion.checkpoints import FOLDER_FILES
from ..modeling_tokenflow import TokenFlowModel
from ..modeling_tokenflow_text_to_image import TokenFlowForTextToImage
from ..modeling_tokenflow_understanding import TokenFlowForConditionalGeneration
from ..processing_tokenflow import OFFICIAL_NEGATIVE_PROMPT, TokenFlowProcessor
from ..push_tokenflow import CARD
from . import Advance, CommandError, one_line
from .settings import nest, read_settings
from .tokenizers import make_processor

WHAT = {
    "tokenflow": "a tokenizer",
    "tokenflow_text_to_image": "a generator and its tokenizer",
    "tokenflow_understanding": "an understanding model and its tokenizer",
}
# Of official understanding models, by the language model: the format of conversations, the token that stands for a
# picture, and the one that ends an answer. Vicuna has none for pictures; it is given one without an embedding.
CONVERSATIONS = {"qwen2": ("qwen2.5", "<|image_pad|>", "<|im_end|>"), "llama": ("vicuna", "<image>", "</s>")}


@dataclass
class Plan:
    """A model that is found complete and ready to be written."""

    model_class: type[PreTrainedModel]
    config: Any
    weights: ConvertedStateDict
    processor: Any


@dataclass
class Converted:
    """What was written."""

    config: PreTrainedConfig
    num_parameters: int


def convert_checkpoint(
    checkpoint: Path,
    folder: Path,
    dtype: str | None = None,
    settings: Iterable[str] = (),
    tokenizer: Path | None = None,
    text_tokenizer: str | None = None,
    advance: Advance | None = None,
) -> Converted:
    """
    Convert an official tokenizer, generator or understanding model: writes model, processor, code and card, or nothing.

    Tensors go from file to file one after the other: a large model takes little memory. The processor prepares
    pictures as the official evaluation does, and prompts and conversations as the official scripts.

    Args:
        checkpoint: an official `.pt` file, a safetensors file with the same keys, or a folder of either in shards.
        folder: is made; it may exist if it is empty.
        dtype: of the saved weights, but for the codebooks, which stay in float32, since codes hang on small
            differences. By default the checkpoint's own.
        settings: of the configuration that shapes don't show, such as `"semantic_config.num_attention_heads=16"`.
        tokenizer: the official tokenizer's file, for a generator, or an understanding model that lacks it.
        text_tokenizer: of either of them, the folder or repository, if it is not in the checkpoint's folder.
        advance: is called with the bytes written and the bytes in all.

    Raises:
        CommandError: the files are no such checkpoint, a tokenizer is missing or not needed, or the folder exists.
    """
    logging.disable_progress_bar()
    overrides = nest(read_settings(settings))
    try:
        check_target(folder)
        plan = plan_conversion(checkpoint, tokenizer, text_tokenizer, overrides)
        check_grid(getattr(plan.config, "tokenizer_config", plan.config))
        with folder_written_whole(folder) as temporary:
            write_model(
                temporary,
                plan.model_class,
                plan.config,
                plan.weights,
                getattr(torch, dtype) if dtype is not None else None,
                advance,
            )
            plan.processor.save_pretrained(temporary)
            parameters = sum(spec.numel() for spec in plan.weights.specs.values())
            card = make_model_card(plan.config, folder.resolve().name, parameters)
            (temporary / CARD).write_text(str(card), encoding="utf-8")
    except (ValueError, OSError, SafetensorError) as error:
        raise CommandError(f"{checkpoint} can't be converted: {one_line(error)}") from error
    return Converted(plan.config, parameters)


def plan_conversion(
    checkpoint: Path, tokenizer: Path | None, text_tokenizer: str | None, overrides: dict[str, Any]
) -> Plan:
    """The conversion of whatever model the checkpoint is."""
    if what := WHAT.get(read_official_config(checkpoint).get("model_type", "")):
        raise CommandError(f"{checkpoint} needs no conversion: it is {what} of this package, ready to be loaded")
    source = open_checkpoint(checkpoint)
    if is_text_to_image(source):
        return plan_generator(source, checkpoint, tokenizer, text_tokenizer, overrides)
    if is_understanding(source):
        return plan_understanding(source, checkpoint, tokenizer, text_tokenizer, overrides)
    if tokenizer is not None or text_tokenizer is not None:
        raise CommandError(f"{checkpoint} is an image tokenizer, and takes no --tokenizer or --text-tokenizer")
    return plan_tokenizer(source, overrides)


def plan_tokenizer(source: Checkpoint, overrides: dict[str, Any]) -> Plan:
    """The conversion of an image tokenizer."""
    config = infer_config(source, **overrides)
    weights = ConvertedStateDict(source, tokenizer_layout(config))
    return Plan(TokenFlowModel, config, weights, picture_processor(config.image_size))


def plan_generator(
    source: Checkpoint, path: Path, tokenizer: Path | None, text_tokenizer: str | None, overrides: dict[str, Any]
) -> Plan:
    """The conversion of a generator with its two tokenizers."""
    if tokenizer is None:
        raise CommandError(
            f"{path} is a generator, whose checkpoint lacks the image tokenizer: pass --tokenizer with its file, "
            "tokenflow_clipb_32k_enhanced.pt"
        )
    text_tokenizer = find_text_tokenizer(path, text_tokenizer)
    image = open_tokenizer(tokenizer, overrides)
    config = infer_text_to_image_config(source, image, official_fields(path), **overrides)
    text = load_text_tokenizer(text_tokenizer, config.text_config.vocab_size)
    config.text_config.pad_token_id = text.pad_token_id
    weights = ConvertedStateDict(join_tokenizer(source, image), text_to_image_layout(config))
    processor = TokenFlowProcessor(
        picture_processor(config.tokenizer_config.image_size), text, negative_prompt=OFFICIAL_NEGATIVE_PROMPT
    )
    return Plan(TokenFlowForTextToImage, config, weights, processor)


def plan_understanding(
    source: Checkpoint, path: Path, tokenizer: Path | None, text_tokenizer: str | None, overrides: dict[str, Any]
) -> Plan:
    """The conversion of an understanding model, with its image tokenizer or that of a file of its own."""
    if holds_tokenizer(source) and tokenizer is not None:
        raise CommandError(f"{path} has its image tokenizer inside, and takes no --tokenizer")
    if not holds_tokenizer(source) and tokenizer is None:
        raise CommandError(f"{path} lacks its image tokenizer: pass --tokenizer with its file, tokenflow_siglip_32k.pt")
    text_tokenizer = find_text_tokenizer(path, text_tokenizer)
    whole = source if tokenizer is None else with_tokenizer(source, open_tokenizer(tokenizer, overrides))
    official = official_fields(path)
    config = infer_understanding_config(whole, official, **overrides)
    conversation, image_token, end = CONVERSATIONS[config.text_config.model_type]
    processor = TokenFlowProcessor(
        make_processor(**infer_picture_options(official, config.tokenizer_config.image_size)),
        load_text_tokenizer(text_tokenizer, config.text_config.vocab_size, pad_token=None),
        chat_template=load_chat_template(conversation),
        image_token=image_token,
        num_image_tokens=config.num_image_features,
    )
    config.image_token_id = processor.image_token_id
    config.text_config.pad_token_id = processor.tokenizer.pad_token_id
    config.text_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids(end)
    weights = ConvertedStateDict(whole, understanding_layout(config))
    return Plan(TokenFlowForConditionalGeneration, config, weights, processor)


def open_tokenizer(path: Path, overrides: dict[str, Any]) -> Checkpoint:
    """The checkpoint that --tokenizer names; a CommandError where it is no official one of a tokenizer."""
    if what := WHAT.get(read_official_config(path).get("model_type", "")):
        raise CommandError(
            f"--tokenizer takes an official checkpoint; {path} is {what} of this package, converted already"
        )
    try:
        image = open_checkpoint(path)
        if is_text_to_image(image):
            raise ValueError("it is a generator")
        infer_config(image, **(overrides.get("tokenizer_config") or {}))
    except (ValueError, OSError, SafetensorError) as error:
        raise CommandError(f"--tokenizer takes an image tokenizer, not {path}: {one_line(error)}") from error
    return image


def check_grid(config: TokenFlowConfig) -> None:
    """Raise a ValueError where pictures of the configuration's size don't fit the encoders, or the grid the scales."""
    size = config.image_size
    with torch.device("meta"):
        model = TokenFlowModel(config).eval()
        try:
            model.quantize(torch.empty(1, 3, size, size))
        except (RuntimeError, TypeError) as error:  # the size is smaller than a patch, or beyond any memory
            raise ValueError(f"the model can't read pictures of {size} pixels: {str(error).splitlines()[0]}") from error


def find_text_tokenizer(path: Path, given: str | None) -> str:
    """
    The folder or repository of a model's text tokenizer: the one given, or its own folder.

    Raises:
        CommandError: none is given, and the folder has none.
    """
    folder = official_folder_of(path)
    if given is None and (folder is None or not holds_text_tokenizer(folder)):
        raise CommandError(
            f"there is no text tokenizer with {path}: pass --text-tokenizer with a folder or a repository of the Hub"
        )
    return given or str(folder)


def official_fields(path: Path) -> dict[str, Any]:
    """The configuration beside an official checkpoint; empty if there is none."""
    folder = official_folder_of(path)
    return read_official_config(folder) if folder is not None else {}


def official_folder_of(path: Path) -> Path | None:
    """The folder of a model in the official form that a checkpoint is, or lies in."""
    if path.is_dir():
        return path
    return path.parent if path.name in FOLDER_FILES else None


def picture_processor(size: int) -> Any:
    """Prepares pictures as the official evaluation does."""
    return make_processor(size={"shortest_edge": size}, do_halve=True)
