# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Rows of the understanding model's data, in all forms that they come in, as messages with pictures."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ..commands import counted
from ..configuration_tokenflow import TokenFlowConfig
from .code_data import one_row

Messages = list[dict[str, Any]]

# Columns that hold what is said, of which a row has one.
TEXT_COLUMNS = ("questions", "messages", "conversations")
# Columns that hold pictures; codes come first, since they need not be encoded.
PICTURE_COLUMNS = ("codes", "image", "images")
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
PLACE = {"type": "image"}
# What public data have in a picture's place where there is none.
NO_PICTURE = ("", "None", "none", "nan")


@contextmanager
def naming_row(index: int) -> Iterator[None]:
    """Says in a ValueError which row it comes from."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"row {index}: {error}") from error


def read_messages(turns: Any, image_token: str, num_pictures: int) -> Messages:
    """
    A conversation as chat templates take it, with a place for every picture.

    Args:
        turns: messages with `role` and `content`, a text or parts of the types `text` and `image`; or LLaVA's, with
            `from` and `value`, whose answers before the first question are left out, as officially. In texts of users,
            `image_token` is a picture's place: it comes before the text, as officially. Where there are no places at
            all, all are before the user's first text.
        image_token: what stands for a picture in a text.
        num_pictures: how many there are.

    Raises:
        ValueError: it is no conversation, has no answer, or another number of places than of pictures.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"a conversation is a list of messages; got {turns!r:.200}")
    messages = [read_message(turn, image_token) for turn in without_opening(turns)]
    if not any(message["role"] == "assistant" and message["content"] for message in messages):
        raise ValueError(f"the conversation has no answer: {turns!r:.200}")
    places = count_places(messages)
    if places == 0 and num_pictures > 0:
        first = next((message for message in messages if message["role"] == "user"), None)
        if first is None:
            raise ValueError(f"nothing is said by a user, before which pictures could be: {turns!r:.200}")
        first["content"] = [PLACE] * num_pictures + as_parts(first["content"])
    elif places != num_pictures:
        raise ValueError(f"{counted(num_pictures, 'picture')}, and {counted(places, 'place')} for them: {turns!r:.200}")
    return messages


def without_opening(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """LLaVA's turns without answers to no question, with which some of its conversations begin; others as they are."""
    roles = [ROLES.get(turn.get("from")) for turn in turns]
    start = roles.index("user") if "user" in roles else len(turns)
    return [turn for place, turn in enumerate(turns) if place >= start or roles[place] != "assistant"]


def read_message(turn: dict[str, Any], image_token: str) -> dict[str, Any]:
    """One of the messages of `read_messages`: `role` and `content`."""
    role = ROLES.get(turn.get("role") or turn.get("from"))
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    if role is None or not isinstance(content, str | list):
        raise ValueError(f"a message has a role ({', '.join(ROLES)}) and content, text or parts; got {turn!r:.200}")
    if isinstance(content, str):
        places = content.count(image_token) if role == "user" else 0
        if places:
            content = [PLACE] * places + as_parts(content.replace(image_token, "").strip())
    else:
        content = [read_part(part) for part in content]
    if any(image_token in part.get("text", "") for part in as_parts(content)):
        raise ValueError(f"{image_token} is a picture's place in a user's text, and nowhere else; got {turn!r:.200}")
    return {"role": role, "content": content}


def read_part(part: Any) -> dict[str, str]:
    """One of the parts of a message, without the empty fields that columns of `datasets` fill up with."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "image":
        return PLACE
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    raise ValueError(f"a part of a message has the type text and a text, or the type image; got {part!r:.200}")


def as_parts(content: str | list) -> list[dict[str, str]]:
    """A message's content as parts."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def count_places(messages: Messages) -> int:
    """How many places for pictures there are."""
    return sum(message["content"].count(PLACE) for message in messages if isinstance(message["content"], list))


def draw_turns(questions: Any, count: int, generator: random.Random) -> Messages:
    """
    A conversation of so many questions, or of all if there are fewer, in random order.

    Raises:
        ValueError: they are not dictionaries with `question` and `answer`.
    """
    if not isinstance(questions, list) or not all(
        isinstance(turn, dict) and isinstance(turn.get("question"), str) and isinstance(turn.get("answer"), str)
        for turn in questions
    ):
        raise ValueError(f"questions are a list of dictionaries with question and answer; got {questions!r:.200}")
    drawn = generator.sample(questions, min(count, len(questions)))
    return [
        {"role": role, "content": turn[key]}
        for turn in drawn
        for role, key in (("user", "question"), ("assistant", "answer"))
    ]


class RowReader:
    """
    Reads rows: what is said, and their pictures.

    Args:
        columns: names of the rows' columns.
        config: of the image tokenizer that codes must come from.
        image_processor: of pictures.
        image_token: what stands for a picture in a text.
        turns: how many of a row's `questions` are drawn.
        image_folder: where paths of pictures begin.

    Raises:
        ValueError: there is no column of conversations.
    """

    def __init__(
        self,
        columns: list[str],
        config: TokenFlowConfig,
        image_processor: Any,
        image_token: str,
        turns: int,
        image_folder: str | Path = ".",
    ) -> None:
        self.text_column = next((name for name in TEXT_COLUMNS if name in columns), None)
        self.picture_column = next((name for name in PICTURE_COLUMNS if name in columns), None)
        if self.text_column is None:
            raise ValueError(f"expected one of the columns {', '.join(TEXT_COLUMNS)}; got {', '.join(columns)}")
        self.config, self.image_processor, self.image_folder = config, image_processor, Path(image_folder)
        self.image_token, self.turns = image_token, turns

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return [name for name in (self.text_column, self.picture_column) if name is not None]

    @property
    def is_drawn(self) -> bool:
        """Whether rows are another conversation in every epoch."""
        return self.text_column == "questions"

    def messages(self, row: dict[str, Any], generator: random.Random | None = None) -> Messages:
        """
        What is said in a row, of which questions are drawn with the generator; see `read_messages`, `draw_turns`.

        Raises:
            ValueError: it is no conversation, or does not fit its pictures.
        """
        turns = row[self.text_column]
        if self.is_drawn:
            turns = draw_turns(turns, self.turns, generator)
        return read_messages(turns, self.image_token, self.count(row))

    def count(self, row: dict[str, Any]) -> int:
        """
        How many pictures a row has.

        Raises:
            ValueError: they are no codes of the tokenizer.
        """
        if self.picture_column != "codes":
            return len(self._given(row))
        codes = row["codes"]
        if codes is None or len(codes) == 0:
            return 0
        one_row(codes, self.config)
        return 1

    def pictures(self, row: dict[str, Any], count: int) -> dict[str, np.ndarray]:
        """
        The first pictures of a row: `image_codes` (1, L) or `pixel_values` (count, 3, H, H), or nothing.

        Raises:
            ValueError: they are no codes of the tokenizer, or no pictures.
        """
        if count == 0:
            return {}
        if self.picture_column == "codes":
            return {"image_codes": one_row(row["codes"], self.config)[None].astype(np.int64)}
        pictures = [self._open(picture) for picture in self._given(row)[:count]]
        return {"pixel_values": np.asarray(self.image_processor(images=pictures, return_tensors="np")["pixel_values"])}

    def _given(self, row: dict[str, Any]) -> list[Any]:
        """What a row has of pictures, without what stands for none."""
        value = row[self.picture_column] if self.picture_column is not None else None
        values = value if isinstance(value, list) else [value]
        return [each for each in values if each is not None and not (isinstance(each, str) and each in NO_PICTURE)]

    def _open(self, picture: Any) -> Image.Image:
        if isinstance(picture, Image.Image):
            return picture
        try:
            if isinstance(picture, dict):
                return datasets.Image().decode_example(picture)
            opened = Image.open(self.image_folder / picture)
            opened.load()  # now, while it is known which it is
            return opened
        except Exception as error:  # Pillow's readers raise whatever a broken file makes them
            raise ValueError(f"the picture {picture!r:.200} can't be read: {error}") from error


def undecoded(dataset: Any) -> Any:
    """Rows whose pictures are not decoded when they are read, as far as their columns are known."""
    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            dataset = dataset.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return dataset
