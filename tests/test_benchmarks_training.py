# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The straightforward step is a second opinion on the generator's loss; steps train; shares are shares."""

import pytest
import torch
from tiny_models import tiny_model, tiny_text_to_image, tiny_understanding

from benchmarks.naive_training import naive_loss, one_hot_inputs
from benchmarks.training import (
    GeneratorCase,
    Step,
    make_generator_case,
    measure_generator,
    measure_tokenizer,
    measure_understanding,
    share_of,
    tokenizer_step,
)
from benchmarks.understanding import make_case


@pytest.fixture
def case() -> GeneratorCase:
    return make_generator_case(tiny_text_to_image()[0], 3)


def test_the_straightforward_way_has_the_same_loss_and_gradients(case):
    whole = case.model(case.prompt_ids, labels=case.codes).loss  # with the text head, as the straightforward way
    whole.backward()
    expected = {name: part.grad.clone() for name, part in case.model.named_parameters() if part.grad is not None}
    case.model.zero_grad()
    naive = naive_loss(case.model, case.prompt_ids, case.codes, prompt_length=29)
    naive.backward()
    assert naive.item() == pytest.approx(whole.item(), rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(case.model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-6)


def test_one_hot_matrices_choose_the_same_entries(case):
    expected = case.model.tokenizer.quantizer.next_scale_inputs(case.codes)
    torch.testing.assert_close(one_hot_inputs(case.model, case.codes), expected)


def test_among_codes_alone_the_loss_is_smaller_and_the_text_head_is_back(case):
    assert case.loss() < case.naive_loss()
    assert case.model.text_head is not None


def test_a_step_trains(case):
    before = case.model.visual_head.weight.clone()
    step = Step([case.model], case.loss)
    step()
    assert not torch.equal(case.model.visual_head.weight, before)
    assert case.model.visual_head.weight.grad is None


def test_generator(case):
    rows = measure_generator("g", case, 1, torch.float32)
    assert [row.unit for row in rows] == ["s", "s"] and all(row.ratio > 0 for row in rows)


def test_tokenizer():
    quantizer, convolutions = measure_tokenizer("t", tiny_model("clip"), 2, 1)
    assert quantizer.ratio > 0 and 0 < convolutions.ratio < 1


def test_the_quantiser_leaves_no_gradients():
    model = tiny_model("clip")
    _, quantize = tokenizer_step(model, 2)
    quantize()
    assert all(part.grad is None for part in model.parameters())


def test_shares():
    matrix = torch.randn(200, 200)
    assert share_of(("aten::mm",), lambda: matrix @ matrix) > 0.1
    assert share_of(("aten::mkldnn_convolution",), lambda: matrix @ matrix) == 0


def test_understanding():
    model = tiny_understanding(text_config={"eos_token_id": None})
    rows = measure_understanding("u", make_case(model.config, model), 1, torch.float32)
    assert len(rows) == 2 and all(row.measured > 0 for row in rows)
