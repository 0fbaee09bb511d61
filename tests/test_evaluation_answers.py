# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Whether answers are right."""

import pytest

pytest.importorskip("sklearn")
from transformers_tokenflow.evaluation.answers import (  # noqa: E402
    is_exact,
    is_near,
    normalize,
    read_number,
    score,
    vqa_accuracy,
    yes_or_no,
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", "yes"),
        ("  The red Apple! ", "red apple"),
        ("two dogs", "2 dogs"),
        ("don't", "dont"),
        ("1,000.5 m", "1000.5 m"),
        ("3:45 pm.", "3:45 pm"),
        ("red, white, and blue", "red white and blue"),
        ("50%", "50%"),
        ("红色", "红色"),
        ("", ""),
        ("A", "a"),
        ("the.", "the"),
        (".5", ".5"),
    ],
)
def test_normalize(answer, expected):
    assert normalize(answer) == expected


@pytest.mark.parametrize(
    ("agreeing", "of", "expected"),
    [
        (10, 10, 1.0),
        (4, 10, 1.0),
        (3, 10, 0.9),  # in three of ten choices of nine there are but two left
        (2, 10, 0.6),
        (1, 10, 0.3),
        (0, 10, 0.0),
        (1, 1, 1.0),
        (0, 1, 0.0),
        (3, 3, 1.0),
        (2, 2, 1.0),
    ],
)
def test_vqa_accuracy(agreeing, of, expected):
    answers = ["Red."] * agreeing + [f"other {number}" for number in range(of - agreeing)]
    assert vqa_accuracy("red", answers) == pytest.approx(expected)


def test_exact_and_near():
    assert is_exact("the Cat.", ["dog", "cat"]) and not is_exact("cats", ["cat"])
    assert is_near("104", ["100"]) and is_near("95", ["100"]) and not is_near("106", ["100"])
    assert is_near("$1,020", ["1000"]) and is_near("51 %", ["50%"]) and is_near("-9.9", ["-10"])
    assert is_near("cat", ["cat"]) and not is_near("cat", ["5"]) and not is_near("5", ["cat"])
    assert is_near("0", ["0"]) and not is_near("0.01", ["0"])
    assert read_number("nan") is None and read_number("inf") is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Yes, it is.", "yes"), ("no", "no"), ("  'NO'", "no"), ("nothing", None), ("It is, yes", None), ("", None)],
)
def test_yes_or_no(answer, expected):
    assert yes_or_no(answer) == expected


def records(*rows: tuple[str, str]) -> list[dict]:
    return [{"prediction": prediction, "answers": [answer]} for prediction, answer in rows]


class TestScore:
    def test_open_questions(self):
        metrics = score(records(("red", "red"), ("98", "100"), ("dog", "cat"), ("yes", "owl")))
        assert metrics == {"exact_match": 0.25, "vqa_accuracy": 0.25, "relaxed_accuracy": 0.5}

    def test_always_saying_yes_gives_a_half(self):
        rows = [("Yes", "yes")] * 9 + [("Yes", "no")]
        metrics = score(records(*rows, ("two", "2")))
        assert metrics["yes_no_accuracy"] == 0.9
        assert metrics["yes_no_balanced_accuracy"] == 0.5
        assert metrics["yes_ratio"] == 1.0
        assert metrics["yes_f1"] == pytest.approx(2 * 9 / (2 * 9 + 1))

    def test_always_saying_no_finds_no_yes(self):
        metrics = score(records(("no", "no"), ("No.", "no")))
        assert metrics["yes_no_accuracy"] == metrics["yes_no_balanced_accuracy"] == 1.0
        assert metrics["yes_f1"] == metrics["yes_ratio"] == 0.0

    def test_what_is_neither_is_wrong(self):
        metrics = score(records(("maybe", "yes"), ("no", "no"), ("No way", "no"), ("yes", "yes")))
        assert metrics["yes_no_accuracy"] == 0.75 and metrics["yes_no_balanced_accuracy"] == 0.75

    def test_one_answer_alone(self):
        assert score(records(("yes", "yes"), ("no", "yes")))["yes_no_balanced_accuracy"] == 0.5

    def test_most_people_decide_whether_it_is_of_yes_or_no(self):
        metrics = score([{"prediction": "no", "answers": ["no", "no", "yes"]}])
        assert metrics["yes_no_accuracy"] == 1.0
