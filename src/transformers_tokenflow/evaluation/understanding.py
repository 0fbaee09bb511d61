# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Questions about pictures, answered by any image-text-to-text model of transformers."""

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from ..answering import Conversation, answer_conversations, ask
from ..commands import one_line
from . import EvaluationError
from .answers import score
from .data import load_rows
from .parts import UNREADABLE, Parts, Record, Sums, split_unreadable

# What LLaVA's evaluation asks for, so that answers are as short as those of the data.
SHORT_ANSWER = "{question}\nAnswer the question using a single word or phrase."
ANSWER_COLUMNS = ("answers", "answer")


class Answerer:
    """
    A model that answers in conversations about pictures, and its processor.

    Args:
        model: whatever `AutoModelForImageTextToText` loads.
        processor: with a chat template.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        self.model: Any = model.eval()
        self.processor: Any = processor

    @classmethod
    def from_pretrained(cls, name: str, device: torch.device, dtype: torch.dtype) -> "Answerer":
        """
        Load from a folder or a repository of the Hub.

        Raises:
            EvaluationError: it can't be loaded, or has no chat template.
        """
        try:
            model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
            processor = AutoProcessor.from_pretrained(name)
        except (OSError, ValueError, KeyError) as error:
            raise EvaluationError(f"{name} can't be loaded as an image-text-to-text model: {error}") from error
        if getattr(processor, "chat_template", None) is None:
            raise EvaluationError(f"the processor of {name} has no chat template")
        return cls(model.to(device), processor)

    def answer(self, conversations: Sequence[Conversation], **options: Any) -> list[str]:
        """
        Continue conversations, all at once.

        Args:
            conversations: B of them, as `apply_chat_template` takes them, with PIL images in them.
            options: of `generate`.

        Returns:
            B texts, without special tokens.
        """
        return answer_conversations(self.model, self.processor, conversations, **options)


def load_questions(
    source: str, config: str | None, split: str | None, columns: dict[str, str], limit: int | None = None
) -> datasets.Dataset:
    """
    Questions of anything that `load_rows` reads.

    Args:
        source, config, split, limit: as `load_rows` takes them.
        columns: the data's names of `image`, `question` and, if it is not answers or answer, of `answers`.

    Returns:
        Rows with the columns `image`, `question` and `answers`.

    Raises:
        EvaluationError: there is no such data or column.
    """
    rows = load_rows(source, config, split, [columns["image"], columns["question"]], limit)
    answers = columns.get("answers") or next((name for name in ANSWER_COLUMNS if name in rows.column_names), "answer")
    if answers not in rows.column_names:
        raise EvaluationError(f"{source} has no column {answers}; its columns are {', '.join(rows.column_names)}")
    wanted = {"image": columns["image"], "question": columns["question"], "answers": answers}
    rows = rows.select_columns(list(wanted.values()))
    rows = rows.rename_columns({column: name for name, column in wanted.items() if column != name})
    return rows.cast_column("image", datasets.Image())  # tables of text have paths


def read_answers(value: Any) -> list[str]:
    """
    The answers of a row: a text or number, a list of them, or a list of dictionaries with `answer` as VQAv2 has it.

    Raises:
        EvaluationError: there is none.
    """
    values = value if isinstance(value, (list, tuple)) else [value]
    texts = [str(item["answer"] if isinstance(item, dict) else item) for item in values if item is not None]
    if not texts:
        raise EvaluationError(f"a question has no answer: got {value!r}")
    return texts


def answer_questions(
    answerer: Answerer,
    rows: datasets.Dataset,
    parts: Parts,
    prompt: str,
    batch_size: int,
    max_new_tokens: int,
    advance: Callable[[int, int], None],
) -> None:
    """
    Answer this process's share of the questions, greedily; the record of one that can't be read has the reason.

    Args:
        answerer: the model.
        rows: with `image`, `question` and `answers`.
        parts: for the records.
        prompt: what is asked, with `{question}` in it.
        batch_size: questions at a time.
        max_new_tokens: how long an answer may get.
        advance: called with the number of questions that are done, and that of all of the share.
    """
    share = parts.share([f"{index:08d}" for index in range(len(rows))])
    for start in range(0, len(share), batch_size):
        names = share[start : start + batch_size]
        batch, unreadable = read_batch(rows, names)
        conversations = [ask(row["image"], prompt.replace("{question}", row["question"])) for row in batch.values()]
        options = {"do_sample": False, "max_new_tokens": max_new_tokens}
        predictions = answerer.answer(conversations, **options) if batch else []
        records: dict[str, Record] = {name: {UNREADABLE: reason} for name, reason in unreadable.items()}
        for (name, row), prediction in zip(batch.items(), predictions, strict=True):
            records[name] = {"question": row["question"], "answers": row["answers"], "prediction": prediction}
        parts.add(records)
        advance(start + len(names), len(share))


def read_batch(rows: datasets.Dataset, names: Sequence[str]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The rows of those numbers that hold what it takes, and why others don't."""
    batch, unreadable = {}, {}
    for name in names:
        try:
            batch[name] = read_question(rows, int(name))
        except Exception as error:  # PIL's readers raise errors of every kind
            unreadable[name] = one_line(error)
    return batch, unreadable


def read_question(rows: datasets.Dataset, index: int) -> dict[str, Any]:
    """
    A row with its answers as texts; whatever a damaged picture makes PIL raise comes through.

    Raises:
        EvaluationError: it lacks a picture, a question or an answer.
    """
    row = rows[index]
    if row["image"] is None:
        raise EvaluationError("the row has no picture")
    if not isinstance(row["question"], str):
        raise EvaluationError(f"the question is no text: got {row['question']!r}")
    return {**row, "answers": read_answers(row["answers"])}


def summarize(records: dict[str, Record], sums: Sums) -> dict[str, Any]:
    """
    The metrics of all answers, and why questions have none.

    Raises:
        EvaluationError: no question has one.
    """
    answered, unreadable = split_unreadable(records)
    if not answered:
        raise EvaluationError(f"none of the questions can be read: {next(iter(unreadable.values()))}")
    return {"metrics": score(answered), "questions": len(answered), "unreadable": unreadable}
