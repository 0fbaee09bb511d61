# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import IMAGE_TOKEN_ID, pictures, tiny_config, tiny_model, tiny_text_to_image, tiny_understanding
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from typer.testing import CliRunner

from training import what_it_takes
from training.what_it_takes import (
    Cost,
    Job,
    generator_cost,
    judge_flops,
    measure,
    on_meta,
    table,
    tokenizer_cost,
    understanding_cost,
)
from transformers_tokenflow import TokenFlowModel


def test_a_linear_layer_costs_what_can_be_written_down():
    layer = nn.Linear(8, 16, bias=False)
    inputs = torch.randn(4, 8)
    cost = measure(layer, lambda: layer(inputs).sum())
    # Forward, and the gradient of the weights; the inputs take none. What is kept are the inputs.
    assert (cost.forward_flops, cost.flops) == (2 * 4 * 8 * 16, 2 * 2 * 4 * 8 * 16)
    assert (cost.activation_bytes, cost.trained, cost.frozen) == (4 * 8 * 4, 128, 0)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_shapes_alone_cost_what_numbers_do(kind: str):
    def cost(model: TokenFlowModel, device: str) -> Cost:
        pixels = pictures(model.config, batch=1).to(device, torch.bfloat16)
        with sdpa_kernel(SDPBackend.MATH):  # whose arithmetic is counted on a processor, too
            return measure(model, lambda: model(pixels, return_loss=True).loss)

    real = cost(tiny_model(kind).to(torch.bfloat16).train(), "cpu")
    shapes = cost(on_meta(lambda: TokenFlowModel(tiny_config(kind))), "meta")
    assert (shapes.flops, shapes.forward_flops) == (real.flops, real.forward_flops)
    assert (shapes.trained, shapes.frozen) == (real.trained, real.frozen)
    # Norms keep a few numbers in another precision.
    assert shapes.activation_bytes == pytest.approx(real.activation_bytes, rel=0.01)


def test_language_models_cost_what_numbers_do():
    model, _ = tiny_text_to_image()
    config = model.config
    expected = generator_cost(config)
    model = model.to(torch.bfloat16).train()
    prompt = torch.zeros(1, what_it_takes.PROMPT_TOKENS, dtype=torch.long)
    codes = torch.zeros(1, config.tokenizer_config.num_image_tokens, dtype=torch.long)
    model.set_attn_implementation("eager")
    real = measure(model, lambda: model(prompt, labels=codes).loss)
    assert (expected.flops, expected.forward_flops) == (real.flops, real.forward_flops)
    assert expected.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert expected.frozen == expected.replicated == model.tokenizer.num_parameters()


def test_the_first_stage_trains_the_projector_alone():
    config = tiny_understanding().config
    assert config.image_token_id == IMAGE_TOKEN_ID
    first, second = understanding_cost(config, 1), understanding_cost(config, 2)
    assert first.forward_flops == second.forward_flops and first.flops < second.flops
    assert first.trained == sum(p.numel() for p in tiny_understanding().model.projector.parameters())
    assert first.trained + first.frozen == second.trained + second.frozen


def test_judges_are_part_of_a_tokenizers_step():
    model = on_meta(lambda: TokenFlowModel(tiny_config()))
    pixels = torch.empty(1, 3, 32, 32, device="meta", dtype=torch.bfloat16)
    alone = measure(model, lambda: model(pixels, return_loss=True).loss).flops
    assert tokenizer_cost(tiny_config()).flops > alone + judge_flops(32)


def test_hours_and_memory():
    cost = Cost(flops=3 * 10**12, forward_flops=10**12, activation_bytes=10**9, trained=10**9, frozen=10**8)
    assert cost.hours(samples=312 * 3600, gpus=2, gpu="a100", utilization=0.5) == pytest.approx(3)
    assert cost.hours(312 * 3600, 2, "a100", 0.5, checkpointing=True) == pytest.approx(4)
    assert cost.bytes_per_gpu(per_device_batch=4) == 16e9 + 0.4e9 + 4e9
    assert cost.bytes_per_gpu(per_device_batch=4, shards=8) == (16e9 + 0.4e9) / 8 + 4e9
    cost = replace(cost, replicated=5 * 10**7)
    assert cost.bytes_per_gpu(per_device_batch=4, shards=8) == (16e9 + 0.2e9) / 8 + 0.2e9 + 4e9


def test_the_page_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cost = Cost(3 * 10**12, 10**12, 10**9, 10**9, 10**8)
    jobs = [Job("one", lambda: cost, 312 * 3600, 4, "some"), Job("two", lambda: cost, 1e6, 4, "other", True)]
    monkeypatch.setattr(what_it_takes, "paper_jobs", lambda: jobs)
    app = what_it_takes.typer.Typer()
    app.command()(what_it_takes.main)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n")
    arguments = ["--gpus", "2", "--gpu", "a100", "--utilization", "0.5", "--output", str(page)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    text = page.read_text()
    assert text == f"before\n<!-- table -->\n{table(jobs, 2, 'a100', 0.5)}\n<!-- end of table -->\nafter\n"
    assert "| one | 1.00 + 0.10 G | 3.00 | 1.00 GB | 20 GB at 4 | 1.1 M: some | 3 |" in text
    assert "hours on 2 A100" in text
    for bad in (["--gpu", "abacus"], ["--utilization", "1.5"]):
        assert CliRunner().invoke(app, bad).exit_code == 2
