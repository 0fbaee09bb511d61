# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Captions with codes or pictures for the generator's training, the same ones for the same seed and epoch."""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch

from ..configuration_tokenflow import TokenFlowConfig
from .data import (
    PictureTransform,
    SeededDataset,
    column_names,
    plain_rows,
    read_picture,
    read_streamed_picture,
    undecoded_column,
)
from .streams import SHUFFLE_BUFFER, ExampleStream

END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


class CaptionTransform:
    """
    One caption of a picture's: drawn, now and then cut to its first sentence or left out (paper §3.3).

    Args:
        text_dropout: probability of no text at all, from which guidance learns the unconditional scores.
        first_sentence_probability: probability of the first sentence alone, of captions that are not left out.
        train: whether anything is random; if not, it is the first caption as it stands.
    """

    def __init__(self, text_dropout: float = 0.0, first_sentence_probability: float = 0.0, train: bool = True) -> None:
        self.text_dropout, self.first_sentence_probability = text_dropout, first_sentence_probability
        self.train = train

    def __call__(self, captions: str | Sequence[str] | None, generator: random.Random) -> str:
        """
        Raises:
            ValueError: the captions are neither text nor a list of texts.
        """
        captions = [captions] if isinstance(captions, str) else captions or [""]
        if not isinstance(captions, Sequence) or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"a caption is a text, or a list of texts of which one is drawn; got {captions!r}")
        if not self.train:
            return captions[0]
        caption = generator.choice(captions)
        if generator.random() < self.text_dropout:
            return ""
        return first_sentence(caption) if generator.random() < self.first_sentence_probability else caption


def first_sentence(caption: str) -> str:
    """What comes before the first full stop, question or exclamation mark that ends a sentence, and the mark."""
    return END_OF_SENTENCE.split(caption.strip(), maxsplit=1)[0]


class CodeDataset(SeededDataset):
    """
    Captions and codes of a `datasets.Dataset`, as `prompt` and `codes` (L,).

    The codes are held in memory, in 16 bits where they fit.

    Args:
        dataset: with a column `codes` of lists of integers, as `tokenflow encode` writes.
        captions: what is done to the captions.
        config: of the tokenizer that the codes must come from.
        seed: of what is random.
        text_column: that holds a text, or a list of texts.

    Raises:
        ValueError: rows do not have one code per token, or codes that the codebook does not have.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        captions: CaptionTransform,
        config: TokenFlowConfig,
        seed: int = 0,
        text_column: str = "text",
    ) -> None:
        super().__init__(seed)
        self.captions = captions
        self.codes = read_codes(dataset, config)
        self.texts = list(dataset[text_column])

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"prompt": self.captions(self.texts[index], self.generator(index)), "codes": self.codes[index]}


def read_codes(dataset: datasets.Dataset, config: TokenFlowConfig) -> np.ndarray:
    """The column `codes` as one array (N, L), checked, int16 where the codebook allows."""
    dtype = np.int16 if config.codebook_size <= 2**15 else np.int32
    codes = np.empty((len(dataset), config.num_image_tokens), dtype)
    start = 0
    for batch in dataset.select_columns("codes").with_format("arrow").iter(10_000):
        column = batch["codes"].combine_chunks()
        lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
        if lengths.tolist() != [config.num_image_tokens]:
            raise ValueError(f"expected {config.num_image_tokens} codes in every row; got {lengths.tolist()}")
        values = column.flatten().to_numpy(zero_copy_only=False)
        check_codes(values, config)
        codes[start : start + len(column)] = values.reshape(len(column), -1)
        start += len(column)
    return codes


def check_codes(codes: np.ndarray, config: TokenFlowConfig) -> None:
    """
    Raises:
        ValueError: they are no whole numbers, or there are codes that the codebook does not have.
    """
    if not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes must be whole numbers; got {codes.dtype}")
    if codes.size and not 0 <= codes.min() <= codes.max() < config.codebook_size:
        raise ValueError(
            f"codes from {codes.min()} to {codes.max()} are no codes of a codebook of {config.codebook_size}"
        )


class CaptionedPictureDataset(SeededDataset):
    """
    Captions and pictures of a `datasets.Dataset`, as `prompt` and `pixel_values` (3, H, H), which the model encodes.

    Args:
        dataset: with a column of pictures.
        captions: what is done to the captions.
        transform: what is done to the pictures.
        seed: of what is random.
        text_column, image_column: where they are.

    Raises:
        ValueError: when a picture is read that is broken.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        captions: CaptionTransform,
        transform: PictureTransform,
        seed: int = 0,
        text_column: str = "text",
        image_column: str = "image",
    ) -> None:
        super().__init__(seed)
        self.dataset = undecoded_column(dataset, image_column)
        self.captions, self.transform = captions, transform
        self.text_column, self.image_column = text_column, image_column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, generator = self.dataset[index], self.generator(index)
        prompt = self.captions(row[self.text_column], generator)
        pixel_values = read_picture(row[self.image_column], index, self.transform, generator)
        return {"prompt": prompt, "pixel_values": pixel_values}


def captioned(
    dataset: datasets.Dataset | datasets.IterableDataset,
    config: TokenFlowConfig,
    captions: CaptionTransform,
    transform: PictureTransform | None = None,
    seed: int = 0,
    text_column: str = "text",
    image_column: str | None = None,
    shuffle_buffer: int = SHUFFLE_BUFFER,
) -> SeededDataset | ExampleStream:
    """
    Examples for [`TextToImageTrainer`] from rows with captions and `codes`, or pictures if there is no such column.

    A stream is, for training, shuffled and without end, and pictures that can't be read are skipped, see
    [`ExampleStream`].

    Args:
        dataset: the rows, in memory or streamed.
        config: of the tokenizer.
        captions: what is done to the captions.
        transform: what is done to pictures; by default the centre is cut out.
        seed: of shuffling and of what is random.
        text_column: that holds a text, or a list of texts of which one is drawn.
        image_column: that holds pictures; by default `image`.
        shuffle_buffer: rows among which a stream is shuffled.

    Raises:
        ValueError: a column is missing, the codes are not the tokenizer's, or settings of pictures are given for codes.
    """
    dataset = plain_rows(dataset)
    columns = column_names(dataset)
    source = "codes" if "codes" in columns else image_column or "image"
    if source == "codes" and (transform or image_column):
        raise ValueError("rows with codes are read by them: leave transform and image_column out, or remove the column")
    transform = transform or PictureTransform(config.image_size, train=False)
    for name in (text_column, source):
        if name not in columns:
            raise ValueError(f"the dataset has no column {name!r}; its columns are {', '.join(columns)}")
    if isinstance(dataset, datasets.IterableDataset):
        if source != "codes":
            dataset = undecoded_column(dataset, source)
        make_example = CaptionedExample(config, captions, transform, text_column, source)
        dataset = dataset.select_columns([text_column, source])
        return ExampleStream(dataset, make_example, seed, shuffle_buffer, captions.train)
    if source == "codes":
        return CodeDataset(dataset, captions, config, seed, text_column)
    return CaptionedPictureDataset(dataset, captions, transform, seed, text_column, source)


@dataclass(frozen=True)
class CaptionedExample:
    """Makes an example of a row of a stream, whose `source` is `codes`, or pictures, not decoded where that can be."""

    config: TokenFlowConfig
    captions: CaptionTransform
    transform: PictureTransform
    text_column: str
    source: str

    def __call__(self, row: dict[str, Any], generator: random.Random) -> dict[str, Any]:
        prompt, value = self.captions(row[self.text_column], generator), row[self.source]
        if self.source == "codes":
            return {"prompt": prompt, "codes": one_row(value, self.config)}
        return {"prompt": prompt, "pixel_values": read_streamed_picture(value, self.transform, generator)}


def one_row(codes: Iterable[int], config: TokenFlowConfig) -> np.ndarray:
    """The codes of one picture (L,), checked."""
    array = np.asarray(codes)
    if array.shape != (config.num_image_tokens,):
        raise ValueError(f"expected {config.num_image_tokens} codes in every row; got {len(array)}")
    check_codes(array, config)
    return array


@dataclass
class TextToImageCollator:
    """
    Examples with `prompt` and `codes` or `pixel_values` to a batch: `input_ids` and `attention_mask` (B, P), and
    `labels` (B, L) or `pixel_values` (B, 3, H, H); with `end_ids` those too, (B, E).

    Args:
        processor: makes prompts of texts.
        end_ids: tokens that follow the image and are learned with it, for models with a text head.
    """

    processor: Any
    end_ids: Sequence[int] | None = None

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Raises:
            ValueError: an example lacks a prompt, or both codes and a picture.
        """
        keys = examples[0].keys()
        if "prompt" not in keys or not keys & {"codes", "pixel_values"}:
            raise ValueError(f"an example has prompt, and codes or pixel_values; got {', '.join(keys)}")
        prompts = self.processor(text=[example["prompt"] for example in examples], return_tensors="pt")
        batch = {name: prompts[name] for name in ("input_ids", "attention_mask")}
        if "codes" in keys:
            codes = np.stack([np.asarray(example["codes"]) for example in examples])
            batch["labels"] = torch.from_numpy(codes).long()
        else:
            batch["pixel_values"] = torch.stack([torch.as_tensor(example["pixel_values"]) for example in examples])
        if self.end_ids is not None:
            batch["end_ids"] = torch.tensor(self.end_ids).expand(len(examples), -1)
        return batch
