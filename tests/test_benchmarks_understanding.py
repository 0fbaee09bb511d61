# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from tiny_models import tiny_understanding

from benchmarks.measuring import count_flops
from benchmarks.understanding import QUESTION_TOKENS, answer_rows, make_case, make_twin, measure


@pytest.fixture(scope="module")
def case():
    model = tiny_understanding(text_config={"eos_token_id": None})
    return make_case(model.config, model)


def test_both_read_as_many_tokens(case):
    assert case.input_ids.shape == (1, 16 + QUESTION_TOKENS)
    features = case.twins["llava"].get_image_features(pixel_values=case.pixel_values).pooler_output
    assert torch.cat(features).shape[0] == case.model.config.num_image_features
    own, other = (
        {name: value.shape for name, value in model.model.language_model.state_dict().items()}
        for model in (case.model, case.twins["llava"])
    )
    assert own == other


def test_the_twin_has_the_semantic_encoder_as_its_tower(case):
    tower = case.model.model.tokenizer.semantic_encoder.model
    assert make_twin(case.model.config).model.vision_tower.config.hidden_size == tower.config.hidden_size


def test_answers_of_codes_are_those_of_pixels(case):
    pixels, codes, llava = (case.answer(of, 3) for of in ("pixels", "codes", "llava"))
    assert torch.equal(pixels, codes)
    assert pixels.shape == llava.shape == (1, 16 + QUESTION_TOKENS + 3)


def test_measure(case):
    found = measure(case, repeats=1)
    assert set(found["first_token_seconds"]) == {"pixels", "codes", "llava", "larger_llava"}
    assert found["first_token_beside_llava"] > 0 and found["codes_beside_pixels"] > 0
    rows = answer_rows("m", found)
    assert [row.what.split(",")[0] for row in rows] == ["first token"] * 3 + ["a further token"]
    assert rows[0].ratio == pytest.approx(found["first_token_beside_llava"])
    assert rows[1].ratio == pytest.approx(found["first_token_beside_larger_llava"])


def test_the_larger_twin_has_the_arithmetic_of_both_encoders(case):
    encoder = case.model.model.tokenizer.encode
    towers = (case.twins[name].model.vision_tower for name in ("llava", "larger_llava"))
    small, large = (count_flops(lambda tower=tower: tower(case.pixel_values)) for tower in towers)
    assert small < large and large / count_flops(lambda: encoder(case.pixel_values)) == pytest.approx(1, abs=0.1)
