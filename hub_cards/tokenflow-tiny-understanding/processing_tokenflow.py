# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The processor: prompts, and pictures, to a model's inputs, and a model's pixels to pictures."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.nn import functional as F
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput, PILImageResampling
from transformers.processing_utils import ProcessingKwargs, TextKwargs, Unpack
from transformers.utils import logging

from .conversation_tokenflow import ConversationProcessorMixin
from .image_reading_tokenflow import open_picture

logger = logging.get_logger(__name__)

# What a call does with text is fixed, by the format that models are trained on, but for these.
TEXT_OPTIONS = {
    "max_length",
    "pad_to_multiple_of",
    "padding",
    "padding_side",
    "return_attention_mask",
    "return_tensors",
    "truncation",
    "verbose",
}
# More than tokens have on average: what lies beyond is cut unread, since there may be megabytes of it.
CHARACTERS_PER_TOKEN = 64
OFFICIAL_NEGATIVE_PROMPT = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, "
    "low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)


class TokenFlowProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """What a call takes, for texts and for pictures."""

    _defaults = {}  # type: ignore[var-annotated, misc]  # of transformers before 5.23; they are set on the processor


class TokenFlowProcessor(ConversationProcessorMixin):
    r"""
    Makes prompts or conversations of texts, and prepares pictures.

    The generator's makes prompts, which end where an image begins: the token that begins a sequence, the text, and the
    tokens of `image_start`, with padding to the left. A text is text through and through: what looks like a special
    token in it does not become one.

    With an `image_token` it is the understanding model's. Then texts are taken as they stand, and have that token
    wherever a picture belongs: `apply_chat_template` makes such texts of conversations. Padding is to the left here,
    too, unless the tokenizer was made with a `padding_side`.

    Args:
        image_processor (`TokenFlowImageProcessor`):
            Prepares pictures, and makes pictures of pixels.
        tokenizer (`PreTrainedTokenizerBase`):
            Of text. If it has no token for padding, `[PAD]` is added to it, as officially. For conversations that is
            its unknown token, or the one that ends a sequence.
        chat_template (`str`, *optional*):
            For conversations.
        image_start (`str`, defaults to `"<img>"`):
            Text after which the image begins.
        max_prompt_length (`int`, defaults to 128):
            Tokens of a text, with the one that begins the sequence. What is longer is cut at its end, with a warning.
        negative_prompt (`str`, defaults to `""`):
            What the pipelines lead away from unless they are told otherwise.
        image_token (`str`, *optional*):
            Stands for a picture in the understanding model's texts. If the text tokenizer has no such token, it is
            added.
        num_image_tokens (`int`, *optional*):
            How many tokens a picture takes: the `num_image_features` of the model's configuration.
        default_question (`str`, defaults to `"What is in this picture?"`):
            What `tokenflow describe` asks unless it is told otherwise.

    Raises:
        ValueError: `image_token` comes without `num_image_tokens`, or the latter alone; or `max_prompt_length` or
            `num_image_tokens` is below 1; or the tokenizer does not take `image_token` for one token.
    """

    valid_processor_kwargs = TokenFlowProcessorKwargs
    text_kwargs: TextKwargs = {"padding": True, "padding_side": "left", "truncation": True}

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        chat_template: str | None = None,
        image_start: str = "<img>",
        max_prompt_length: int = 128,
        negative_prompt: str = "",
        image_token: str | None = None,
        num_image_tokens: int | None = None,
        default_question: str = "What is in this picture?",
    ):
        if (image_token is None) != (num_image_tokens is None):
            raise ValueError(
                "image_token and num_image_tokens go together, for the understanding model; got "
                f"{image_token!r} and {num_image_tokens}"
            )
        if max_prompt_length < 1:
            raise ValueError(f"max_prompt_length must be at least 1; got {max_prompt_length}")
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_start = image_start
        self.max_prompt_length = max_prompt_length
        self.negative_prompt = negative_prompt
        self.image_token = image_token
        self.num_image_tokens = num_image_tokens
        self.default_question = default_question
        if image_token is not None:
            self._set_up_conversations(image_token, num_image_tokens)
        if tokenizer.pad_token is None:
            tokenizer.add_special_tokens({"pad_token": "[PAD]"})

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call with text and pictures gives."""
        if self.image_token is not None:
            return super().model_input_names
        return ["input_ids", "attention_mask", *self.image_processor.model_input_names]

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        image_codes: Any = None,
        **kwargs: Unpack[TokenFlowProcessorKwargs],
    ) -> BatchFeature:
        r"""
        Prepare texts, pictures, or both.

        Args:
            images: pictures in any form that [`TokenFlowImageProcessor`] takes. To prompts they belong one by one; in
                conversations they take the places of `image_token`, in order, wherever in the batch, and lists may be
                nested as texts are: `[[], [first, second]]`.
            text: a text, or a list of texts. An empty one is fine.
            image_codes: in conversations, codes (num_images, L) of pictures in place of `images`; they are passed on.
            kwargs: for pictures, the image processor's options. For texts `return_tensors`, `padding` (by default to
                the longest prompt), `padding_side`, `pad_to_multiple_of`, `truncation` (False cuts nothing off),
                `max_length` (of a whole prompt, the image's start included) and `return_attention_mask`. For
                conversations, which are not truncated unless asked for, all of a text tokenizer's. Options may also
                come as `text_kwargs` and `images_kwargs`.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` (B, P) of texts, `pixel_values` (num_images, 3, H, W)
            of pictures or their `image_codes`.

        Raises:
            ValueError: neither is given, a text is no string, there are none, or not as many as pictures, truncation
                would cut a picture's tokens, or an option does not exist for text.
            TypeError: a picture is none.
        """
        if self.image_token is not None:
            return self._converse(images, None if text is None else as_texts(text), image_codes, **kwargs)
        if image_codes is not None:
            raise ValueError("image_codes are for the understanding model, whose processor has an image_token")
        if images is None and text is None:
            raise ValueError("TokenFlowProcessor needs text, images or both; got neither")
        check_text_options(kwargs)
        options = self._merge_kwargs(
            tokenizer_init_kwargs={k: v for k, v in self.tokenizer.init_kwargs.items() if k != "padding_side"}, **kwargs
        )
        data: dict[str, Any] = {}
        if text is not None:
            data.update(self._make_prompts(as_texts(text), **options["text_kwargs"]))
        if images is not None:
            data.update(self.image_processor(images, **options["images_kwargs"]))
        if text is not None and images is not None and len(data["input_ids"]) != len(data["pixel_values"]):
            raise ValueError(
                f"a text and a picture make a pair; got {len(data['input_ids'])} texts and "
                f"{len(data['pixel_values'])} pictures"
            )
        return BatchFeature(data, tensor_type=options["text_kwargs"].get("return_tensors"))

    def to_dict(self) -> dict[str, Any]:
        """All fields. They name the code, which saving writes along, whether or not this one has been saved before."""
        return {**super().to_dict(), "auto_map": {"AutoProcessor": "processing_tokenflow.TokenFlowProcessor"}}

    def replace_image_token(self, image_inputs: Any = None, image_idx: int = 0, **kwargs: Any) -> str:
        """What takes a picture's place in a text."""
        return self.image_token * self.num_image_tokens

    def _make_prompts(
        self,
        texts: list[str],
        truncation: Any = True,
        max_length: int | None = None,
        return_tensors: Any = None,
        verbose: bool = True,
        **options: Any,
    ) -> dict[str, list[list[int]]]:
        """Prompts as ids and masks, padded."""
        start = self._encode([self.image_start])[0]
        limit = self.max_prompt_length if max_length is None else max_length - len(start)
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        is_cut = bool(truncation) and truncation != "do_not_truncate"
        if is_cut and limit < 1:
            raise ValueError(f"max_length must leave room for a text before {len(start)} tokens; got {max_length}")
        longest = limit * CHARACTERS_PER_TOKEN if is_cut else None
        rows = [bos + row for row in self._encode([text[:longest] for text in texts])]
        if is_cut:
            for text, row in zip(texts, rows, strict=True):
                if len(row) > limit:
                    logger.warning(f"a prompt of {len(row)} tokens is cut to the first {limit}: {shorten(text)!r}")
            rows = [row[:limit] for row in rows]
        return self.tokenizer.pad(
            {"input_ids": [row + start for row in rows]},
            max_length=self.max_prompt_length + len(start) if max_length is None else max_length,
            verbose=False,
            **options,
        )

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Tokens of texts, without special ones even where a text spells them."""
        options: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True, "truncation": False}
        return self.tokenizer(texts, padding=False, verbose=False, **options)["input_ids"]

    def prepare_generation(
        self, text: str | list[str], negative_prompt: str | list[str | None] | None = None
    ) -> BatchFeature:
        """
        What `generate` needs of texts.

        Args:
            text: B texts, or one.
            negative_prompt: what guidance leads away from: one text for all, or B of them; for None, also among them,
                the processor's.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` (B, P), `negative_prompt_ids` and
            `negative_attention_mask` (1 or B, P').

        Raises:
            ValueError: a text is no string, or there are other than 1 or B negative ones.
        """
        texts = as_texts(text)
        given = negative_prompt if isinstance(negative_prompt, (list, tuple)) else [negative_prompt]
        if given and all(part is None for part in given):
            given = given[:1]
        negative = as_texts([self.negative_prompt if part is None else part for part in given])
        if len(negative) not in (1, len(texts)):
            raise ValueError(f"expected one negative prompt, or one for each of {len(texts)}; got {len(negative)}")
        prompts, negative_prompts = (self(text=part, return_tensors="pt") for part in (texts, negative))
        return BatchFeature(
            {
                **prompts,
                "negative_prompt_ids": negative_prompts["input_ids"],
                "negative_attention_mask": negative_prompts["attention_mask"],
            }
        )

    def prepare_mask(self, mask: Any, grid_size: int) -> torch.Tensor:
        """
        Masks of pictures as masks of their tokens.

        Args:
            mask: where a picture is drawn anew: white, true or 1. A picture, a path, or an array (H, W), of any size:
                it is cut to size as a picture of its size would be; where a picture is transparent nothing is drawn.
                One of the grid's own size is taken as it is. Or several of them: a list, or an array (B, H, W) or
                (B, 1, H, W).
            grid_size: side of the last scale's map of tokens.

        Returns:
            (number of masks, grid, grid) bool, true at tokens of which at least half is to be drawn.

        Raises:
            ValueError: a mask has no such token.
        """
        masks = [self._mask_tokens(item, grid_size) for item in separate_masks(mask)]
        if not all(part.any() for part in masks):
            raise ValueError("a mask is true, or white, where to draw; got one that is nowhere so for half a token")
        return torch.stack(masks)

    def _mask_tokens(self, mask: Any, grid_size: int) -> torch.Tensor:
        """One mask -> (grid, grid) bool"""
        if isinstance(mask, (np.ndarray, torch.Tensor)) and mask.ndim == 3 and mask.shape[0] == 1:
            mask = mask[0]
        if isinstance(mask, (np.ndarray, torch.Tensor)) and mask.ndim == 2:
            values = torch.as_tensor(mask)
            if values.shape == (grid_size, grid_size):
                return is_white(values)
            mask = is_white(values)
        if isinstance(mask, (str, os.PathLike)):
            mask = open_picture(mask)
        if isinstance(mask, PIL.Image.Image) and mask.has_transparency_data:
            mask = PIL.Image.alpha_composite(PIL.Image.new("RGBA", mask.size, "black"), mask.convert("RGBA"))
        exact = {"do_normalize": False, "do_rescale": True, "rescale_factor": 1 / 255, "do_convert_rgb": True}
        nearest = {"resample": PILImageResampling.NEAREST, "return_tensors": "pt"}
        values = self.image_processor(images=mask, **exact, **nearest)["pixel_values"].mean(dim=1, keepdim=True)
        return F.adaptive_avg_pool2d((values >= 0.5).float(), grid_size)[0, 0] >= 0.5

    def postprocess(self, pixel_values: Any, output_type: str = "pil") -> Any:
        """Turn the model's pixels (B, 3, H, W) in [-1, 1] into pictures; see the image processor's `postprocess`."""
        return self.image_processor.postprocess(pixel_values, output_type=output_type)

    def post_process_image(self, pixel_values: Any, output_type: str = "pil") -> Any:
        """The same as `postprocess`."""
        return self.postprocess(pixel_values, output_type)


def separate_masks(mask: Any) -> list[Any]:
    """The masks of a list or of an array (B, H, W), (B, 1, H, W) or (B, H, W, channels), or the only one there is."""
    if isinstance(mask, (np.ndarray, torch.Tensor)):
        is_picture = mask.ndim == 3 and mask.shape[2] in (1, 3, 4) and mask.shape[1] != mask.shape[2]
        return [mask] if mask.ndim < 3 or is_picture else list(mask)
    return list(mask) if isinstance(mask, (list, tuple)) else [mask]


def check_text_options(kwargs: dict[str, Any]) -> None:
    """Raise a ValueError for options of text tokenizers that would have to be left undone."""
    given = {*kwargs, *(kwargs.get("text_kwargs") or {})}
    if unknown := sorted(given & TextKwargs.__annotations__.keys() - TEXT_OPTIONS):
        raise ValueError(f"prompts are made one way, which {', '.join(unknown)} can't change")


def as_texts(text: str | list[str]) -> list[str]:
    """
    A text or texts as a list.

    Raises:
        ValueError: there are none, or one is no string, or none that can be written.
    """
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, Sequence) or not all(isinstance(item, str) for item in texts):
        raise ValueError(f"text must be a string or a list of strings; got {shorten(repr(text))}")
    if not texts:
        raise ValueError("text must hold at least one string; got an empty list")
    for item in texts:
        try:
            item.encode()
        except UnicodeEncodeError as error:
            what = f"half a character at {error.start} of {shorten(repr(item))}"
            raise ValueError(f"text must be Unicode; got {what}") from error
    return list(texts)


def is_white(values: torch.Tensor) -> torch.Tensor:
    """Which values of a mask are nearer to white, whether that is true, 1 or 255: bool of the same shape."""
    return values > (0.5 if values.max() <= 1 else 127.5)


def shorten(text: str) -> str:
    """The beginning of a text, for a message."""
    return text if len(text) <= 60 else f"{text[:60]}..."


__all__ = ["TokenFlowProcessor"]
