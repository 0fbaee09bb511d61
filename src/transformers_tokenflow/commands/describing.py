# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What a model says about pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..answering import answer_conversations, ask
from ..configuration_tokenflow import TokenFlowUnderstandingConfig
from ..modeling_tokenflow_understanding import TokenFlowForConditionalGeneration
from . import CommandError, one_line
from .loading import CHECKOUT, check_model_type, find_device, load_model, load_processor, name_or_default
from .pictures import PictureBatch, PictureFile, find_pictures, read_batches, refuse_no_pictures

DEFAULT_MODEL = CHECKOUT / "hub_cards" / "tokenflow-tiny-understanding"
# Where neither the user nor the checkpoint says how long an answer may be; the pipeline's default, too.
MAX_NEW_TOKENS = 256


@dataclass
class Describer:
    """An understanding model that is ready to work."""

    name: str
    model: TokenFlowForConditionalGeneration
    processor: Any


def load_describer(name: str | None = None, device: str = "auto", dtype: str = "float32") -> Describer:
    """
    Load an understanding model and its processor.

    Args:
        name: a folder or a repository of the Hub; by default the small model of the checkout.
        device: as torch names it, or `"auto"` for the best there is.
        dtype: as torch names it.

    Raises:
        CommandError: there is no such model, it is no TokenFlow understanding model, its processor takes no
            conversations, or the device can't be used.
    """
    logging.disable_progress_bar()
    target = find_device(device)
    name = name_or_default(name, DEFAULT_MODEL)
    check_model_type(name, TokenFlowUnderstandingConfig, "understanding model")
    model: Any = load_model(name, getattr(torch, dtype), TokenFlowForConditionalGeneration)
    processor = load_processor(name)
    for attribute in ("image_token", "chat_template"):
        if getattr(processor, attribute, None) is None:
            raise CommandError(f"the processor of {name} takes no conversations: it has no {attribute}")
    return Describer(name, model.to(target).eval(), processor)


def answer_settings(
    max_new_tokens: int | None = None, temperature: float | None = None, seed: int | None = None
) -> dict[str, Any]:
    """What `generate` takes of a user's wishes; the checkpoint decides the rest. A temperature of 0 draws nothing."""
    if seed is not None:
        torch.manual_seed(seed)
    settings: dict[str, Any] = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    if temperature is not None:
        settings |= {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    return settings


def describe_pictures(
    sources: list[Path], describer: Describer, question: str | None, batch_size: int, **settings: Any
) -> Iterator[tuple[dict[str, str], dict[str, str], int]]:
    """
    Ask the same about each of some picture files and folders of them, batch by batch.

    Args:
        sources: files and folders.
        describer: the model.
        question: what to ask; by default what its processor says.
        batch_size: pictures at a time.
        settings: of `generate`.

    Returns:
        For every batch the answers and the reasons why pictures of it can't be read, both by path, and the number of
        all pictures.

    Raises:
        CommandError: there are no pictures, or the model refuses them or a setting.
    """
    pictures = [PictureFile(path) for path in find_pictures(sources)]
    refuse_no_pictures(pictures, sources)
    for batch in read_batches(pictures, describer.processor.image_processor, batch_size):
        yield answer(batch, describer, question, settings), batch.failures, len(pictures)


def answer(batch: PictureBatch, describer: Describer, question: str | None, settings: dict[str, Any]) -> dict[str, str]:
    """The answers to a question about each picture of a batch, by path."""
    if not batch.pictures:
        return {}
    try:
        with torch.inference_mode():
            codes = describer.model.model.tokenizer.encode(batch.pixel_values().to(describer.model.device)).codes
    except ValueError as error:
        raise CommandError(f"{describer.name} can't answer: {one_line(error)}") from error
    texts = describe_codes(codes, describer, question, **settings)
    return {picture.path: text for picture, text in zip(batch.pictures, texts, strict=True)}


def describe_codes(
    codes: torch.Tensor, describer: Describer, question: str | None = None, **settings: Any
) -> list[str]:
    """
    Ask the same about pictures of which there are codes, such as those that a generator draws with the same tokenizer.

    Args:
        codes: (B, L), all scales.
        describer, question, settings: as of `describe_pictures`.

    Returns:
        The answers.

    Raises:
        CommandError: the model refuses the codes or a setting.
    """
    model, processor = describer.model, describer.processor
    conversations = [ask(row, question or processor.default_question) for row in codes]
    if model.generation_config.max_new_tokens is None:
        settings = {"max_new_tokens": MAX_NEW_TOKENS, **settings}
    try:
        return answer_conversations(model, processor, conversations, **settings)
    except ValueError as error:
        raise CommandError(f"{describer.name} can't answer: {one_line(error)}") from error
