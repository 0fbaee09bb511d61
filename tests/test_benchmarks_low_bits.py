# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks of weights of 8 and 4 bits, and of a compiled generator."""

import pytest
import torch
from tiny_models import tiny_text_to_image
from torch import nn
from transformers.utils import is_torchao_available

from benchmarks import compilation, low_bits

needs_torchao = pytest.mark.skipif(not is_torchao_available(), reason="torchao is not installed")


@needs_torchao
def test_bytes_of_quantised_weights_are_counted():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = nn.Linear(64, 96, bias=False)
    assert low_bits.num_bytes(layer) == 4 * 64 * 96
    quantize_(layer, Int8WeightOnlyConfig())
    assert 64 * 96 < low_bits.num_bytes(layer) < 1.2 * 64 * 96


@needs_torchao
def test_layers():
    rows = low_bits.measure_layer(torch.bfloat16, 1, (64, 96))
    assert [row.what for row in rows[::2]] == ["1 token, beside bfloat16", "256 tokens, beside bfloat16"]
    assert {row.model for row in rows} == {"layer 64 → 96, int8 by torchao", "layer 64 → 96, int4 by torchao"}


def test_rows():
    models = {"bfloat16": nn.Linear(4, 4), "int8": nn.Linear(2, 2)}
    rows = low_bits.rows_of(
        "m", models, {"bfloat16": 98.0, "int8": 49.0}, "answers", {"bfloat16": 1.0, "int8": 3.0}, "one"
    )
    assert [row.ratio for row in rows] == pytest.approx([0.5, 24 / 80, 3.0])
    assert rows[0].model == "m, int8" and rows[0].what == "answers, beside bfloat16's"


def test_pictures_and_questions_are_there():
    assert len(low_bits.PICTURES) == 8 and len(set(low_bits.QUESTIONS)) == 6


def test_without_a_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(low_bits, "configurations", dict)
    with pytest.raises(SystemExit, match="low-bits"):
        low_bits.main(quick=True)


@pytest.mark.slow
@needs_torchao
def test_all_of_it(tmp_path):
    low_bits.main(quick=True, output=tmp_path / "results.json")
    assert "nf4 by bitsandbytes" in (tmp_path / "results.json").read_text()


def test_a_compiled_generator_draws_the_same(monkeypatch):
    model, compiled = tiny_text_to_image()[0], tiny_text_to_image()[0]
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compilation, "compile_layers", lambda model: model.model.compile(backend=count, dynamic=False))
    torch.compiler.reset()
    rows = compilation.measure("tiny", model, compiled, 1)
    torch.compiler.reset()
    assert rows[-1].ratio == 1.0
    # Those of the prompt and of three scales, at most once more each, when lengths in the cache turn out to change.
    assert 1 <= len(graphs) <= 8
