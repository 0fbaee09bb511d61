# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The understanding model's half of the processor: texts with pictures in them."""

from collections.abc import Sequence
from copy import copy
from inspect import signature
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AddedToken
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessorMixin

from .push_tokenflow import TokenFlowPushMixin
from .quantization_tokenflow import as_codes

# transformers before 5.23 has to be told the kinds of options, and looks there for the defaults, not at the processor.
DEFAULTS_STAND_WITH_KINDS = (
    signature(ProcessorMixin._merge_kwargs).parameters["ModelProcessorKwargs"].default is not None
)


class ConversationProcessorMixin(TokenFlowPushMixin, ProcessorMixin):
    """
    Gives each picture of a text as many tokens as it has features.

    All pictures have the same number, which is known without looking at them, so codes serve as well as pixels. A text
    after a picture is tokenised as one of its own, which is how the official models learned.
    """

    def _set_up_conversations(self, image_token: str, num_image_tokens: int) -> None:
        """Let the text tokenizer have the tokens it needs, and see what it makes of a text after a picture."""
        if num_image_tokens < 1:
            raise ValueError(f"num_image_tokens must be at least 1; got {num_image_tokens}")
        self.image_token_id = name_image_token(self.tokenizer, image_token)
        self._after_picture = " " if lacks_space_after(self.tokenizer, image_token) else ""
        self.text_kwargs = {"padding": True}
        if self.tokenizer.pad_token is None:  # as officially; a new token would have no embedding
            self.tokenizer.pad_token = self.tokenizer.unk_token or self.tokenizer.eos_token
        self.tokenizer: Any = padding_to_the_left(self.tokenizer)

    def _converse(self, images: Any, text: Any, image_codes: Any, **kwargs: Any) -> BatchFeature:
        """What a call gives for conversations; see `TokenFlowProcessor.__call__`."""
        if images is not None and image_codes is not None:
            raise ValueError("pictures come as images or as image_codes; got both")
        pictures = self.image_processor._prepare_images_structure(images) if holds_something(images) else None
        codes = as_codes(image_codes) if holds_something(image_codes) else None
        inputs = super().__call__(images=pictures, text=text, image_codes=codes, **kwargs)
        if codes is not None and len(codes):
            options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)["text_kwargs"]
            inputs.update(BatchFeature({"image_codes": codes.tolist()}, tensor_type=options.get("return_tensors")))
        return inputs

    def validate_inputs(
        self, images: Any = None, text: list[str] | None = None, image_codes: torch.Tensor | None = None, **kwargs: Any
    ) -> None:
        """Raise a ValueError where texts have other than one `image_token` for each picture, or there is nothing."""
        if text is None and images is None and image_codes is None:
            raise ValueError("TokenFlowProcessor needs text, images or both; got neither")
        if text is None:
            return
        places = sum(sample.count(self.image_token) for sample in text)
        given = sum(len(pictures) for pictures in (images, image_codes) if pictures is not None)
        if places != given:
            raise ValueError(
                f"the number of {self.image_token} tokens in the prompts should be the same as the number of pictures; "
                f"got {places} tokens and {given} pictures"
            )

    def _process_images(self, images: Any, **kwargs: Any) -> tuple[BatchFeature, list[str]]:
        """Prepare pictures; what takes their places in texts does not depend on them."""
        return self.image_processor(images, **kwargs), []

    def get_text_with_replacements(
        self, text: list[str], *replacements: Any, **named: Any
    ) -> tuple[list[str], list[dict[str, Any]]]:
        """Texts with the places of all pictures, and where they are; see the base class."""
        places = [
            self.replace_image_token() + (self._after_picture if piece else "")
            for sample in text
            for piece in sample.split(self.image_token)[1:]
        ]
        return super().get_text_with_replacements(text, places)

    def _merge_kwargs(self, *args: Any, image_codes: Any = None, **kwargs: Any) -> dict[str, Any]:
        """The options of a call, by what they are for; codes are none."""
        kinds: Any = self.valid_processor_kwargs
        if DEFAULTS_STAND_WITH_KINDS:
            defaults = {"text_kwargs": self.text_kwargs}
            kinds = SimpleNamespace(__annotations__=kinds.__annotations__, _defaults=defaults)
        return super()._merge_kwargs(kinds, **kwargs)

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[tuple[int, int]] | None = None, **kwargs: Any
    ) -> MultiModalData:
        """How many tokens pictures of these sizes (height, width) take; for servers, which plan with it."""
        if image_sizes is None:
            return MultiModalData()
        return MultiModalData(
            num_image_tokens=[self.num_image_tokens] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )


def padding_to_the_left(tokenizer: Any) -> Any:
    """
    A tokenizer whose padding is to the left unless it was made with a side of its own.

    Generation needs that, also of pipelines, which pad batches themselves. The caller's tokenizer pads as it did.
    """
    if "padding_side" in tokenizer.init_kwargs:
        return tokenizer
    tokenizer = copy(tokenizer)
    tokenizer.padding_side = "left"
    tokenizer.init_kwargs = {**tokenizer.init_kwargs, "padding_side": "left"}  # or it would not be saved
    return tokenizer


def name_image_token(tokenizer: Any, token: str) -> int:
    """
    Make a token the tokenizer's `image_token`, by which chat templates call it, and add it if there is none like it.

    Returns:
        Its id.

    Raises:
        ValueError: the tokenizer takes it apart all the same.
    """
    if token not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=True)], special_tokens=True)
    if "image_token" not in tokenizer.SPECIAL_TOKENS_ATTRIBUTES:
        tokenizer.SPECIAL_TOKENS_ATTRIBUTES = [*tokenizer.SPECIAL_TOKENS_ATTRIBUTES, "image_token"]
    tokenizer.image_token = token
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(
            f"the text tokenizer must take {token!r} for one token, but makes {len(ids)} of it; does it split special "
            "tokens (split_special_tokens)?"
        )
    return ids[0]


def lacks_space_after(tokenizer: Any, token: str) -> bool:
    """Whether a text after the token lacks the space that the tokenizer, like Llama's, puts before a text."""
    alone, after, spaced = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", f"{token}a", f"{token} a")
    )
    return alone != after[1:] and alone == spaced[1:]


def holds_something(images: Any) -> bool:
    """Whether there is anything in (nested) lists of pictures."""
    if isinstance(images, (list, tuple)):
        return any(holds_something(item) for item in images)
    return images is not None


__all__ = ["ConversationProcessorMixin"]
