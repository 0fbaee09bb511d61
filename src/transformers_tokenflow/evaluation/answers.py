# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Whether answers are right: exactly, by how many people gave them, nearly (numbers), and of yes or no."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import f1_score, recall_score

# An answer that three people gave counts in full (VQA, Antol et al. 2015, Eq. of §4).
FULL_AGREEMENT = 3
# Numbers are right within a twentieth (ChartQA's relaxed accuracy).
NUMBER_TOLERANCE = 0.05
NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
ARTICLES = {"a", "an", "the"}
YES_NO = ("yes", "no")


def normalize(answer: str) -> str:
    """
    An answer without what tells nothing: capitals, punctuation (but for points and commas in numbers), articles
    beside other words.

    Numbers up to ten become digits, and apostrophes go, so that `don't` and `dont` are one.
    """
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", answer.casefold().replace("'", "").replace("’", ""))
    text = re.sub(r"[.,:](?!\d)|(?<!\d)[,:]", " ", text)
    text = re.sub(r"[^\w.,:%$€£+\-/]", " ", text)
    words = [str(NUMBER_WORDS.index(word)) if word in NUMBER_WORDS else word for word in text.split()]
    return " ".join([word for word in words if word not in ARTICLES] or words)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """
    The share of agreement with people: 1 if three of the others said so, averaged over who is left out.

    Args:
        prediction: an answer.
        answers: of people, in the benchmark's case ten; where there are fewer than four all the others must agree, and
            a single answer must be met.
    """
    given, known = normalize(prediction), [normalize(answer) for answer in answers]
    if len(known) == 1:
        return float(given == known[0])
    enough = min(FULL_AGREEMENT, len(known) - 1)
    matches = [answer == given for answer in known]
    return float(np.mean([min(1.0, (sum(matches) - own) / enough) for own in matches]))


def is_exact(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the answer is one of those given, but for what tells nothing."""
    return normalize(prediction) in {normalize(answer) for answer in answers}


def is_near(prediction: str, answers: Sequence[str]) -> bool:
    """The same, where a number may be off by a twentieth."""
    if is_exact(prediction, answers):
        return True
    given = read_number(prediction)
    known = [number for number in map(read_number, answers) if number is not None]
    return given is not None and any(abs(given - number) <= NUMBER_TOLERANCE * abs(number) for number in known)


def read_number(answer: str) -> float | None:
    """The number that an answer is, maybe with a currency or per cent; None for others."""
    text = normalize(answer).strip("$€£ ").removesuffix("%").strip()
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def yes_or_no(answer: str) -> str | None:
    """The first word, if it is yes or no."""
    first = re.match(r"\W*(\w+)", answer.casefold())
    return first[1] if first is not None and first[1] in YES_NO else None


def score(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """
    The metrics of answered questions.

    Args:
        records: each with `prediction`, a text, and `answers`, a list of texts.

    Returns:
        `exact_match`, `vqa_accuracy` and `relaxed_accuracy` of all; and of those questions whose answer is yes or no,
        if there are any, `yes_no_accuracy`, `yes_no_balanced_accuracy` (the mean of that of both answers: always saying
        yes gives a half), `yes_f1` and `yes_ratio`.
    """
    pairs = [(record["prediction"], record["answers"]) for record in records]
    metrics: dict[str, list[float]] = {
        "exact_match": [is_exact(prediction, answers) for prediction, answers in pairs],
        "vqa_accuracy": [vqa_accuracy(prediction, answers) for prediction, answers in pairs],
        "relaxed_accuracy": [is_near(prediction, answers) for prediction, answers in pairs],
    }
    return {name: float(np.mean(values)) for name, values in metrics.items()} | score_yes_no(pairs)


def score_yes_no(pairs: Sequence[tuple[str, Sequence[str]]]) -> dict[str, float]:
    """The metrics of the questions that are mostly answered by yes or no; an answer that is neither is wrong."""
    expected: list[str] = []
    given: list[str] = []
    for prediction, answers in pairs:
        truth = Counter(normalize(answer) for answer in answers).most_common(1)[0][0]
        if truth in YES_NO:
            expected.append(truth)
            given.append(yes_or_no(prediction) or "neither")
    if not expected:
        return {}
    present = sorted(set(expected))
    return {
        "yes_no_accuracy": float(np.mean([truth == answer for truth, answer in zip(expected, given, strict=True)])),
        "yes_no_balanced_accuracy": float(
            recall_score(expected, given, labels=present, average="macro", zero_division=0)
        ),
        "yes_f1": float(f1_score(expected, given, labels=["yes"], average="macro", zero_division=0)),
        "yes_ratio": given.count("yes") / len(given),
    }
