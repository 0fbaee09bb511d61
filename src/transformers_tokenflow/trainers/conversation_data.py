# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Conversations about pictures as tokens and labels, the same ones for the same seed and epoch."""

import random
import re
from copy import copy
from dataclasses import dataclass
from typing import Any

import datasets
import jinja2
import numpy as np
from transformers.utils import logging

from ..commands import counted
from ..configuration_tokenflow import TokenFlowUnderstandingConfig
from .conversation_rows import Messages, RowReader, count_places, naming_row, undecoded
from .data import SeededDataset, column_names, has_transform, plain_rows
from .streams import ExampleStream, Unusable, unusable_if_broken

logger = logging.get_logger(__name__)

IGNORED = -100
PICTURES = ("image_codes", "pixel_values")
Example = dict[str, np.ndarray]
# Token ids with one for each picture, and whether they are of an answer, both (T,).
Tokens = tuple[np.ndarray, np.ndarray]


class ConversationEncoder:
    """
    Conversations to tokens and labels, by the processor's chat template.

    Args:
        processor: the understanding model's.
        config: of the model.
        max_length: tokens after which a conversation is cut, those of pictures included.

    Raises:
        ValueError: the chat template does not mark answers, or processor and model have different tokens for pictures.
    """

    def __init__(self, processor: Any, config: TokenFlowUnderstandingConfig, max_length: int) -> None:
        self.image_token_id, self.num_image_tokens = config.image_token_id, config.num_image_features
        self.max_length = max_length
        given = processor.tokenizer.convert_tokens_to_ids(processor.image_token), processor.num_image_tokens
        if given != (self.image_token_id, self.num_image_tokens):
            raise ValueError(
                f"the processor puts {given[1]} tokens of the id {given[0]} in a picture's place, and the model "
                f"expects {self.num_image_tokens} of the id {self.image_token_id}"
            )
        if not re.search(r"\{%-?\s*generation\s*-?%\}", processor.chat_template or ""):
            raise ValueError("the processor's chat template marks no answers: it has no {% generation %} block")
        # One token for each picture takes less time; `example` makes them as many as there are.
        self.processor = copy(processor)
        self.processor.num_image_tokens = 1

    def encode(self, conversations: list[Messages]) -> list[Tokens]:
        """
        The tokens of each conversation, uncut.

        Raises:
            ValueError: the chat template refuses one.
        """
        options: dict[str, Any] = {"padding": False}
        if places := sum(count_places(messages) for messages in conversations):
            options["image_codes"] = np.zeros((places, 1), dtype=np.int64)
        try:
            encoded = self.processor.apply_chat_template(
                conversations,
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
                processor_kwargs=options,
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refuses the conversation: {error}") from error
        pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        return [(np.array(ids, dtype=np.int32), np.array(mask, dtype=bool)) for ids, mask in pairs]

    def encode_named(self, conversations: list[Messages], indices: list[int]) -> list[Tokens]:
        """The same of rows with these numbers, of which an error says the one."""
        try:
            return self.encode(conversations)
        except ValueError:
            for index, messages in zip(indices, conversations, strict=True):
                with naming_row(index):
                    self.encode([messages])
            raise

    def cut(self, tokens: Tokens) -> Tokens | None:
        """Tokens within the maximal length; None if that cuts through a picture, or leaves nothing of an answer."""
        ids, answers = tokens
        sizes = self.sizes(ids)
        ends = sizes.cumsum()
        count = int(np.searchsorted(ends, self.max_length, side="right"))
        is_cut_through = count < len(ids) and ends[count] - sizes[count] < self.max_length
        # Nothing predicts the first token.
        return None if is_cut_through or not answers[1:count].any() else (ids[:count], answers[:count])

    def sizes(self, ids: np.ndarray) -> np.ndarray:
        """How many tokens of a sequence each of those of `encode` stands for."""
        return np.where(ids == self.image_token_id, self.num_image_tokens, 1)

    def count_pictures(self, ids: np.ndarray) -> int:
        """How many pictures there are among tokens of `encode`."""
        return int((ids == self.image_token_id).sum())

    def example(self, tokens: Tokens, pictures: dict[str, np.ndarray]) -> Example:
        """`input_ids` and `labels` (T,), and the pictures."""
        sizes = self.sizes(tokens[0])
        ids, answers = (np.repeat(part, sizes) for part in tokens)
        return {"input_ids": ids, "labels": np.where(answers, ids, IGNORED), **pictures}


def encode_rows(
    columns: dict[str, list], indices: list[int], reader: RowReader, encoder: ConversationEncoder
) -> dict[str, list]:
    """Columns of those conversations that fit: `row`, `ids` and `answers`, and their `length` with whole pictures."""
    messages = []
    for index, *values in zip(indices, *columns.values(), strict=True):
        with naming_row(index):
            messages.append(reader.messages(dict(zip(columns, values, strict=True))))
    encoded: dict[str, list] = {"row": [], "ids": [], "answers": [], "length": []}
    for index, tokens in zip(indices, encoder.encode_named(messages, indices), strict=True):
        if (kept := encoder.cut(tokens)) is not None:
            for name, value in zip(encoded, (index, *kept, encoder.sizes(kept[0]).sum()), strict=True):
                encoded[name].append(value)
    return encoded


class BaseConversationDataset(SeededDataset):
    """
    Conversations of a `datasets.Dataset`, as `input_ids` and `labels` (T,), and `image_codes` (1, L) or `pixel_values`
    (n, 3, H, H) of those with pictures.

    Args:
        dataset: the rows, see [`conversations`].
        reader: of their columns.
        encoder: makes tokens of them.
        seed: of what is drawn.
    """

    def __init__(
        self, dataset: datasets.Dataset, reader: RowReader, encoder: ConversationEncoder, seed: int = 0
    ) -> None:
        super().__init__(seed)
        self.rows = undecoded(dataset.select_columns(reader.columns))
        self.reader, self.encoder = reader, encoder

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Example]:
        """Several examples, which at once take less time."""
        raise NotImplementedError

    def _example(self, index: int, tokens: Tokens, row: dict[str, Any]) -> Example:
        with naming_row(index):
            return self.encoder.example(tokens, self.reader.pictures(row, self.encoder.count_pictures(tokens[0])))


class ConversationDataset(BaseConversationDataset):
    """
    Conversations that are the same in every epoch. They are tokenised once, to where `datasets` keeps the rows.

    Raises:
        ValueError: a row is no conversation, or no row has an answer within the maximal length.
    """

    def __init__(
        self, dataset: datasets.Dataset, reader: RowReader, encoder: ConversationEncoder, seed: int = 0
    ) -> None:
        super().__init__(dataset, reader, encoder, seed)
        encoded = self.rows.map(
            encode_rows,
            batched=True,
            with_indices=True,
            remove_columns=self.rows.column_names,
            fn_kwargs={"reader": reader, "encoder": encoder},
        )
        if skipped := len(self.rows) - len(encoded):
            logger.warning(
                f"skipped {skipped} of {len(self.rows)} conversations: cut to {encoder.max_length} tokens they end "
                "within a picture, or before an answer"
            )
        if len(encoded) == 0:
            raise ValueError(
                f"none of {counted(len(self.rows), 'conversation')} has an answer within {encoder.max_length} tokens"
            )
        self.lengths: list[int] = encoded["length"][:]
        self.encoded = encoded.with_format("numpy")

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitems__(self, indices: list[int]) -> list[Example]:
        columns = self.encoded[indices]
        numbers = columns["row"].tolist()
        tokens = zip(columns["ids"], columns["answers"], strict=True)
        return [self._example(*each) for each in zip(numbers, tokens, self.rows.__getitems__(numbers), strict=True)]


class QuestionDataset(BaseConversationDataset):
    """
    Conversations of questions that are drawn in every epoch, and tokenised when they are.

    Raises:
        ValueError: when an example is read whose row has no questions, or whose conversation does not fit.
    """

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> list[Example]:
        rows, messages = self.rows.__getitems__(indices), []
        for index, row in zip(indices, rows, strict=True):
            with naming_row(index):
                messages.append(self.reader.messages(row, self.generator(index)))
        examples = []
        for index, tokens, row in zip(indices, self.encoder.encode_named(messages, indices), rows, strict=True):
            if (kept := self.encoder.cut(tokens)) is None:
                raise ValueError(f"row {index}: in {self.encoder.max_length} tokens there is no room for an answer")
            examples.append(self._example(index, kept, row))
        return examples


@dataclass(frozen=True)
class ConversationExample:
    """Makes an example of a row of a stream, whose pictures are not decoded."""

    reader: RowReader
    encoder: ConversationEncoder

    def __call__(self, row: dict[str, Any], generator: random.Random) -> Example:
        self.reader.count(row)  # other than a broken row, codes of another tokenizer are no exception
        try:
            (tokens,) = self.encoder.encode([self.reader.messages(row, generator)])
        except ValueError as error:
            raise Unusable(str(error)) from error
        kept = self.encoder.cut(tokens)
        if kept is None:
            raise Unusable(f"in {self.encoder.max_length} tokens there is no room for an answer")
        with unusable_if_broken("its pictures can't be read"):
            pictures = self.reader.pictures(row, self.encoder.count_pictures(kept[0]))
        return self.encoder.example(kept, pictures)


def conversations(
    dataset: datasets.Dataset | datasets.IterableDataset,
    processor: Any,
    config: TokenFlowUnderstandingConfig,
    max_length: int = 2048,
    turns: int = 4,
    seed: int = 0,
    image_folder: str = ".",
    shuffle_buffer: int = 0,
) -> BaseConversationDataset | ExampleStream:
    """
    Examples for [`UnderstandingTrainer`] from rows of conversations.

    What is said is in one of the columns `messages` (chat format, with texts or parts as content), `conversations`
    (LLaVA's format), and `questions` (a list of dictionaries with `question` and `answer`, of which some are drawn in
    every epoch). Pictures are in `codes`, those of one picture; or in `image` or `images`, pictures or their paths. A
    row may have none.

    Args:
        dataset: the rows, in memory or streamed; of a stream those that can't be used are skipped, see
            [`ExampleStream`].
        processor: of the model, which makes text of conversations.
        config: of the model.
        max_length: tokens after which conversations are cut, those of pictures included.
        turns: how many `questions` are drawn.
        seed: of what is drawn.
        image_folder: where paths of pictures begin.
        shuffle_buffer: rows among which a stream is shuffled, without end, for training; 0: it is read once, in order.

    Raises:
        ValueError: a column is missing, a row can't be used, or the processor does not fit the model.
    """
    if has_transform(dataset):
        raise ValueError(
            "rows of `with_transform` are no conversations: make them with `map`, or make input_ids of them"
        )
    dataset = plain_rows(dataset)
    columns = column_names(dataset)
    tokenizer_config: Any = config.tokenizer_config
    reader = RowReader(columns, tokenizer_config, processor.image_processor, processor.image_token, turns, image_folder)
    encoder = ConversationEncoder(processor, config, max_length)
    if isinstance(dataset, datasets.IterableDataset):
        dataset = undecoded(dataset.select_columns(reader.columns))
        make_example = ConversationExample(reader, encoder)
        return ExampleStream(dataset, make_example, seed, max(1, shuffle_buffer), train=shuffle_buffer > 0)
    return (QuestionDataset if reader.is_drawn else ConversationDataset)(dataset, reader, encoder, seed)
