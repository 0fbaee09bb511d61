# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Figures of the small understanding model: what counts as right, errors, the teacher as the yardstick."""

import json
import math
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from tiny_models import tiny_understanding
from tiny_questions import NAMES, make_processor, make_rows, write_data

from training import evaluate_understanding
from training.evaluate_understanding import (
    ASKED,
    Answerer,
    Question,
    compare,
    judge_names,
    main,
    measure,
    normalize,
    rate,
    read_names,
    read_questions,
    summarize,
)
from training.prepare_questions import IMAGE_TOKEN
from transformers_tokenflow import TokenFlowForConditionalGeneration, TokenFlowProcessor
from transformers_tokenflow.answering import ask


def question(answer: str, given: str, picture: int = 0, kind: str = "name") -> Question:
    return Question(picture, kind, "what is it?", answer, given)


def tiny_model(processor: TokenFlowProcessor) -> TokenFlowForConditionalGeneration:
    """A model for the processor, with random weights."""
    tokenizer = processor.tokenizer
    return tiny_understanding(
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        text_config={
            "vocab_size": len(tokenizer),
            "eos_token_id": tokenizer.eos_token_id,
            # So large that pictures and questions make a difference.
            "initializer_range": 0.5,
            "tie_word_embeddings": False,
        },
    )


class Parrot:
    """Answers every question with what it was taught, whatever the picture, and counts what it is asked at a time."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, processor: TokenFlowProcessor, answers: dict[str, str]) -> None:
        self.processor, self.answers, self.batches = processor, answers, []

    def eval(self) -> "Parrot":
        return self

    def generate(self, input_ids: torch.Tensor, pixel_values: torch.Tensor, **options) -> torch.Tensor:
        assert options["do_sample"] is False and len(pixel_values) == len(input_ids)
        self.batches.append(len(input_ids))
        prompts = self.processor.batch_decode(input_ids)
        assert all(prompt.count(IMAGE_TOKEN) == 16 and prompt.endswith("ASSISTANT:") for prompt in prompts)
        answers = [next(self.answers[known] for known in self.answers if known in prompt) for prompt in prompts]
        ids = self.processor.tokenizer(
            [answer + "[EOS]" for answer in answers], add_special_tokens=False, padding=True, padding_side="right"
        )
        return torch.cat([input_ids, torch.tensor(ids.input_ids)], dim=1)

    def __call__(self, input_ids: torch.Tensor, logits_to_keep: int, **options) -> SimpleNamespace:
        """Finds all tokens equally likely."""
        return SimpleNamespace(logits=torch.zeros(len(input_ids), logits_to_keep, len(self.processor.tokenizer)))


@pytest.mark.parametrize(
    "given, is_right",
    [("A red apple", True), ("red  apple", True), ("the red apple", True), ("apple", False), ("red apple pie", False)],
)
def test_articles_and_capitals_do_not_count(given, is_right):
    assert question("red apple", given).is_right is is_right


def test_spaces_around_signs_do_not_count_but_signs_do():
    assert normalize("woman: medium-dark") == normalize("woman : medium - dark")
    assert normalize("keycap: #") != normalize("keycap: *")
    assert normalize("three o'clock") == normalize("three o ' clock")


def test_errors_are_those_of_pictures():
    questions = [question("yes", given, picture) for picture in range(4) for given in ("yes", "yes")]
    questions += [question("no", "yes", picture) for picture in range(4) for _ in range(2)]
    result = summarize(questions)
    assert result == {
        "accuracy": 0.5,
        "standard_error": 0.0,
        "questions": 16,
        "pictures": 4,
        "most_frequent_answer": 0.5,
    }
    assert rate([1.0, 0.0, 1.0, 0.0]) == {"accuracy": 0.5, "standard_error": round((1 / 3) ** 0.5 / 2, 4)}
    assert rate([1.0])["standard_error"] == 0.0


def test_ratio_and_its_error():
    own, yardstick = np.array([1.0, 0.0, 1.0, 0.0] * 100), np.array([1.0, 1.0, 0.0, 0.0] * 100)
    assert compare(own, yardstick)["ratio"] == 1.0 and 0.05 < compare(own, yardstick)["standard_error"] < 0.1
    assert compare(yardstick, yardstick) == {"ratio": 1.0, "standard_error": 0.0}
    assert np.isnan(compare(own, np.zeros(400))["ratio"])


def test_answers_come_back_in_order_whatever_the_batch():
    processor = make_processor()
    parrot = Parrot(processor, {"is it a fox?": "no", "is it an owl?": "yes", "what is it?": "a red apple"})
    rows = make_rows(NAMES)
    asked = read_questions(rows, ("name", "yes_no"))
    assert [turn.kind for turn in asked] == ["name", "yes_no", "yes_no"] * 4
    answered = Answerer(parrot, processor, batch_size=5).answer(asked, rows["image"][:])
    assert parrot.batches == [5, 5, 2]
    assert [turn.given for turn in answered] == ["a red apple", "yes", "no"] * 4
    assert [turn.question for turn in answered] == [turn.question for turn in asked]
    assert [turn.is_right for turn in answered if turn.kind == "name"] == [False, False, False, True]


def test_a_model_answers_the_same_alone_and_in_batches():
    processor = make_processor()
    rows = make_rows(NAMES)
    model = tiny_model(processor)
    asked = read_questions(rows, ("name", "yes_no"))
    alone, together = (Answerer(model, processor, size).answer(asked, rows["image"][:]) for size in (1, 12))
    assert [turn.given for turn in alone] == [turn.given for turn in together]
    assert len({turn.given for turn in alone}) > 4


def test_surprise_is_the_models_own_loss_of_the_answer():
    processor = make_processor()
    model = tiny_model(processor)
    answerer = Answerer(model, processor, batch_size=3)
    rows = make_rows(NAMES)
    asked = read_questions(rows, ("name",))
    values = answerer.surprise(asked, rows["image"][:])
    for turn, value in zip(asked, values, strict=True):
        picture = rows["image"][turn.picture]
        prompt = processor.apply_chat_template(ask(picture, turn.question), add_generation_prompt=True)
        inputs = processor(text=[f"{prompt} {turn.answer}[EOS]"], images=[picture], return_tensors="pt")
        count = len(processor.tokenizer(f" {turn.answer}[EOS]", add_special_tokens=False).input_ids)
        labels = inputs["input_ids"].clone()
        labels[:, :-count] = -100
        with torch.no_grad():
            assert value == pytest.approx(count * model(**inputs, labels=labels).loss.item(), rel=1e-3)


def test_names_are_judged_beside_the_teacher(monkeypatch):
    rows = make_rows(NAMES)
    monkeypatch.setattr(evaluate_understanding, "name_with_teacher", lambda *_: np.array([1.0, 0.0, 1.0, 0.0]))
    answered = [question(name, name if name != "fox" else "owl", index) for index, name in enumerate(NAMES)]
    results = judge_names(answered, rows, "teacher", NAMES)
    assert results["names"] == 4 and results["all"]["pictures"] == 4
    assert results["all"]["model"]["accuracy"] == 0.75 and results["all"]["teacher"]["accuracy"] == 0.5
    assert results["all"]["ratio_to_teacher"]["ratio"] == 1.5
    plain = results["without_skin_tones"]
    assert plain["pictures"] == 3 and plain["teacher"]["accuracy"] == plain["model"]["accuracy"] == 0.6667


def test_the_teacher_names_by_the_nearest_of_all_names(monkeypatch):
    images, texts = torch.eye(4)[[0, 1, 2, 2]], torch.eye(4)
    monkeypatch.setattr(evaluate_understanding, "image_features", lambda *_: images)
    monkeypatch.setattr(evaluate_understanding, "text_features", lambda *_: texts)
    monkeypatch.setattr(
        evaluate_understanding.open_clip, "create_model_and_transforms", lambda _: (torch.nn.Identity(),)
    )
    monkeypatch.setattr(evaluate_understanding.open_clip, "get_tokenizer", lambda _: None)
    hits = evaluate_understanding.name_with_teacher("teacher", make_rows(NAMES), NAMES)
    assert hits.tolist() == [1.0, 1.0, 1.0, 0.0]


def test_each_split_is_asked_what_can_be_known(monkeypatch):
    monkeypatch.setattr(evaluate_understanding, "name_with_teacher", lambda *_: np.array([1.0, 0.0, 1.0, 0.0]))
    processor = make_processor()
    parrot = Parrot(processor, {"is it a fox?": "no", "is it an owl?": "no", "what is it?": "fox"})
    results = measure(Answerer(parrot, processor), {split: make_rows(NAMES) for split in ASKED}, "teacher", NAMES)
    assert results["heldout_pairs"].keys() == {"name", "yes_no", "category"}
    assert results["heldout_names"].keys() == {"category", "yes_no"}
    assert results["heldout_pairs"]["yes_no"]["accuracy"] == 0.625
    assert results["names"]["all"]["model"]["accuracy"] == 0.25
    tokens = sum(len(processor.tokenizer(name, add_special_tokens=False).input_ids) + 1 for name in NAMES)
    expected = tokens / len(NAMES) * math.log(len(processor.tokenizer))
    assert results["names"]["nats"]["mean"] == pytest.approx(expected, rel=1e-3)


def test_main_writes_all_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(evaluate_understanding, "name_with_teacher", lambda *_: np.array([1.0, 0.0]))
    monkeypatch.setattr(evaluate_understanding, "MAX_NEW_TOKENS", 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    write_data(tmp_path / "data")
    assert read_names(tmp_path / "data") == sorted(NAMES)
    processor = make_processor()
    tiny_model(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    main(tmp_path / "model", tmp_path / "data")
    results = json.loads((tmp_path / "model" / "results.json").read_text())
    assert results["names"]["names"] == 4 and results["heldout_pairs"]["yes_no"]["questions"] == 4
