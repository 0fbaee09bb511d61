# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Answers to questions about pictures, by any image-text-to-text model of transformers and its processor."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature

Conversation = list[dict[str, Any]]


def ask(picture: Any, question: str) -> Conversation:
    """A conversation of one question about one picture: a PIL image, or its codes (L,) for a model that reads them."""
    kind = "codes" if isinstance(picture, torch.Tensor) else "image"
    return [{"role": "user", "content": [{"type": "image", kind: picture}, {"type": "text", "text": question}]}]


def read_conversations(
    model: Any, processor: Any, conversations: Sequence[Conversation], add_generation_prompt: bool = True
) -> BatchFeature:
    """
    What a model takes of conversations.

    Args:
        model: of the type and on the device that the inputs are for.
        processor: with a chat template.
        conversations: B of them, as `apply_chat_template` takes them, with their pictures; or with codes of all
            pictures, as [`ask`] puts them there.
        add_generation_prompt: whether an answer is to follow.

    Returns:
        Tensors, of texts with padding to the left, so that what is generated follows what is asked.
    """
    contents = [message["content"] for conversation in conversations for message in conversation]
    codes = [part["codes"] for content in contents for part in content if "codes" in part]
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    return processor.apply_chat_template(
        list(conversations),
        add_generation_prompt=add_generation_prompt,
        tokenize=True,
        return_dict=True,
        processor_kwargs={**options, "image_codes": torch.stack(codes)} if codes else options,
    ).to(model.device, model.dtype)


@torch.inference_mode()
def answer_conversations(
    model: Any, processor: Any, conversations: Sequence[Conversation], **options: Any
) -> list[str]:
    """
    Continue conversations, all at once.

    Args:
        model: whatever `AutoModelForImageTextToText` loads.
        processor, conversations: as of [`read_conversations`].
        options: of `generate`.

    Returns:
        B texts, without special tokens.
    """
    inputs = read_conversations(model, processor, conversations)
    output = model.generate(**inputs, **options)
    texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]
