# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Trainers of language models under DeepSpeed's ZeRO, on CPUs: `pip install deepspeed einops` to run these."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
from faults import needs_fork
from launched import run_launched
from safetensors.torch import load_file
from test_accelerate_configs import launch_environment
from test_trainers_distributed import (
    KINDS,
    OTHERS,
    assert_close_tensors,
    assert_same_adapters,
    assert_same_results,
    results,
    run,
)

pytestmark = [
    needs_fork,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]


@pytest.fixture(params=[2, 3])
def stage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """What `accelerate launch` sets for a file of training/accelerate, but for bf16, which would blur comparisons."""
    for name, value in launch_environment(f"zero{request.param}").items():
        if name not in os.environ:
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    return request.param


def run_alone(kind: str, folder: Path, **changes: Any) -> None:
    """Without DeepSpeed, in a process of its own."""

    def alone() -> None:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"
        run(kind, folder, per_device_train_batch_size=4, **changes)

    run_launched(alone, 1)


@pytest.mark.parametrize("kind", OTHERS)
def test_two_processes_equal_one(kind: str, stage: int, tmp_path: Path):
    """In what is logged, and in the model that is saved, which loads as any other."""
    run_alone(kind, tmp_path / "one")
    run_launched(lambda: run(kind, tmp_path / "two", per_device_train_batch_size=2), 2)
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert two["is_deepspeed"] and not one["is_deepspeed"]
    assert_same_results(two, one)
    loaded = KINDS[kind][1].from_pretrained(tmp_path / "two").state_dict()
    assert_close_tensors(loaded, load_file(tmp_path / "one" / "model.safetensors"))


@pytest.mark.parametrize("kind", OTHERS)
def test_adapters_equal_those_of_one_process(kind: str, stage: int, tmp_path: Path):
    run_alone(kind, tmp_path / "one", lora_rank=2)
    run_launched(lambda: run(kind, tmp_path / "two", per_device_train_batch_size=2, lora_rank=2), 2)
    assert_same_results(results(tmp_path / "two"), results(tmp_path / "one"))
    assert_same_adapters(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("kind", OTHERS)
def test_resumed(kind: str, stage: int, tmp_path: Path):
    run_alone(kind, tmp_path / "one")
    changes = {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 2}
    run_launched(lambda: run(kind, tmp_path / "parts", max_steps=2, **changes), 2)
    run_launched(lambda: run(kind, tmp_path / "parts", **changes), 2)
    assert_same_results(results(tmp_path / "parts"), results(tmp_path / "one"), first_step=2)
