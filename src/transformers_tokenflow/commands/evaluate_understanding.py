# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Asks a model questions about pictures."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..evaluation.data import describe_rows
from ..evaluation.parts import Parts
from ..evaluation.report import describe_model, evaluate, refuse_others, texts_digest
from ..evaluation.understanding import SHORT_ANSWER, Answerer, answer_questions, load_questions, summarize
from . import Advance, CommandError
from .describing import DEFAULT_MODEL
from .evaluation import processes
from .loading import find_device, name_or_default


def evaluate_understanding(
    model: str | None,
    data: str,
    output: Path,
    config: str | None,
    split: str | None,
    columns: dict[str, str],
    limit: int | None,
    prompt: str | None,
    max_new_tokens: int,
    device: str,
    dtype: str,
    batch_size: int,
    advance: Advance,
) -> dict[str, Any]:
    """
    Answer questions, and compare with what people answered.

    Args:
        model: folder or repository of anything that `AutoModelForImageTextToText` loads; by default the small model of
            the checkout.
        data: a table, folder or repository that `load_questions` reads.
        output: the JSON file.
        config, split, columns, limit: of the data, see `load_questions`.
        prompt: what is asked, with `{question}` in it; by default `SHORT_ANSWER`.
        max_new_tokens: how long an answer may get.
        device, dtype, batch_size: of the model.
        advance: is told how many questions are done, of how many.

    Returns:
        The results.

    Raises:
        CommandError: something that is needed is not here, or is not what it should be.
    """
    prompt = SHORT_ANSWER if prompt is None else prompt
    if "{question}" not in prompt:
        raise CommandError(f"the prompt must say where the {{question}} goes; got {prompt!r}")
    logging.disable_progress_bar()
    name = name_or_default(model, DEFAULT_MODEL)
    with processes(device) as state:
        refuse_others(output)
        with state.local_main_process_first():  # who downloads
            rows = load_questions(data, config, split, columns, limit)
        answerer = Answerer.from_pretrained(name, find_device(device), getattr(torch, dtype))
        texts = rows.select_columns(["question", "answers"])
        questions = [[row["question"], row["answers"]] for row in texts]
        description = {
            "evaluation": "understanding",
            "model": describe_model(name, answerer.model),
            "data": {
                **describe_rows(data, config, rows),
                "questions": texts_digest([json.dumps(questions, default=str)]),
            },
            "settings": {"prompt": prompt, "max_new_tokens": max_new_tokens, "columns": columns},
        }

        def work(parts: Parts) -> None:
            answer_questions(answerer, rows, parts, prompt, batch_size, max_new_tokens, advance)

        return evaluate(output, description, state, work, summarize)
