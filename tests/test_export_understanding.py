# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The small understanding model's folder: weights, processor, code, card."""

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from safetensors.torch import load_file
from tiny_models import tiny_understanding
from tiny_questions import NAMES, make_processor, make_rows, write_data
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from training import evaluate_understanding, export_understanding
from training.evaluate_understanding import MAX_NEW_TOKENS
from training.export_tiny import save_sheet
from training.export_understanding import ask_about, choose_pictures, main
from training.prepare_questions import IMAGE_TOKEN

RATE = {"accuracy": 0.875, "standard_error": 0.021, "most_frequent_answer": 0.25, "questions": 20, "pictures": 10}
NAME_RATES = {
    "pictures": 10,
    "model": RATE,
    "teacher": RATE | {"accuracy": 0.5},
    "ratio_to_teacher": {"ratio": 1.75, "standard_error": 0.1},
}
RESULTS = {
    "names": {"names": 4390, "all": NAME_RATES, "without_skin_tones": NAME_RATES},
    "heldout_pairs": dict.fromkeys(("name", "yes_no", "category", "style", "colour", "count"), RATE),
    "heldout_names": dict.fromkeys(("category", "yes_no", "style", "colour"), RATE),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run's folder with a model of random weights, beside its data."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_data(tmp_path / "data")
    processor = make_processor()
    tokenizer = processor.tokenizer
    model = tiny_understanding(
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        text_config={"vocab_size": len(tokenizer), "tie_word_embeddings": True},
    )
    model.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id], pad_token_id=0)
    folder = tmp_path / "run"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "checkpoint-7").mkdir()
    state = {"global_step": 7, "train_batch_size": 4}
    (folder / "checkpoint-7" / "trainer_state.json").write_text(json.dumps(state))
    return folder


def test_the_folder_has_the_model_in_half_its_size_and_its_card(run, tmp_path):
    folder = tmp_path / "card"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(RESULTS))
    main(run, folder, tmp_path / "data", hours=1.5, evaluated=False)
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert "model.language_model.embed_tokens.weight" in weights and "lm_head.weight" not in weights
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert model.dtype == torch.float32 and processor.num_image_tokens == model.config.num_image_features
    assert model.generation_config.max_new_tokens == MAX_NEW_TOKENS and processor.chat_template
    assert (folder / "modeling_tokenflow_understanding.py").exists() and (folder / "pictures.png").exists()
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-sa-4.0\n")
    assert "| all | 10 | 87.5 ± 2.1 % | 50.0 ± 2.1 % | 175 ± 10 % |\n" in card
    assert "| category | 87.5 ± 2.1 % | 25.0 % | 20 |\n" in card
    assert "and with\nit once more, from there, 7 of 4, 1.5 hours on one CPU core in all:" in card


def test_measures_what_was_saved(run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_understanding, "name_with_teacher", lambda *_: np.array([1.0, 0.0]))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(export_understanding, "write_card", lambda *_, **__: None)
    main(run, tmp_path / "card", tmp_path / "data")
    results = json.loads((tmp_path / "card" / "results.json").read_text())
    assert results["names"]["all"]["teacher"]["accuracy"] == 0.5


def test_a_sheet_has_a_place_for_every_picture(tmp_path):
    colors = [["red", "lime"], ["blue", "white"], ["black", "yellow"]]
    save_sheet([[Image.new("RGB", (3, 2), color) for color in row] for row in colors], tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    assert sheet.size == (2 * 2 * 3, 2 * 3 * 2)
    for top, row in enumerate(colors):
        for left, color in enumerate(row):
            corners = [(6 * left, 4 * top), (6 * left + 5, 4 * top + 3)]
            assert [sheet.getpixel(corner) for corner in corners] == [ImageColor.getrgb(color)] * 2


def test_pictures_are_chosen_by_their_place_and_have_no_skin_tones():
    rows = make_rows([*NAMES, "cat", "dog"])
    assert choose_pictures(rows, 2)["name"][:] == ["owl", "red apple"]
    assert choose_pictures(rows, 10)["name"][:] == ["owl", "fox", "red apple", "cat", "dog"]


def test_the_card_asks_whether_a_picture_is_the_one_before():
    questions = ask_about(make_rows(["owl", "fox"]))
    assert [question.question for question in questions if question.question.startswith("is it")] == [
        "is it a fox?",
        "is it an owl?",
    ]
    assert [question.picture for question in questions] == [0] * 4 + [1] * 4
