# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The process that loads a folder as where this package is not installed, on every Python."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model

from transformers_tokenflow import TokenFlowImageProcessor
from transformers_tokenflow.publishing import check_loading, loading


@pytest.fixture
def folder(tmp_path) -> Path:
    """A tokenizer in two files of weights."""
    tiny_model().save_pretrained(tmp_path / "model", max_shard_size="100kB")
    TokenFlowImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_modules_beside_the_script_are_not_found(tmp_path, monkeypatch):
    for name in ("beside", "installed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "transformers.py").write_text(f"raise SystemExit('found {name}')\n")
    monkeypatch.setattr(loading, "SCRIPT", shutil.copy(loading.SCRIPT, tmp_path / "beside"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))
    assert check_loading(tmp_path) == ["the model can't be loaded by its remote code: found installed"]


@pytest.mark.timeout(900)
def test_loading_in_a_clean_process(folder):
    assert check_loading(folder) == []
    weights = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    tensors = load_file(weights)
    first, second = sorted(tensors)[:2]
    renamed = {"unknown.weight": tensors.pop(first), second: torch.zeros(3)}
    save_file({**tensors, **renamed}, weights, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(f'"{first}"', '"unknown.weight"'))
    assert check_loading(folder) == [
        f"the files lack 1 tensor of the model, such as {first}",
        f"the files hold 1 tensor of another shape than the model's, such as {second}",
        "the files hold 1 tensor that the model has not, such as unknown.weight",
    ]


@pytest.mark.timeout(900)
def test_code_that_fails_in_a_clean_process(folder):
    path = folder / "modeling_tokenflow.py"
    path.write_text(path.read_text() + "\nfrom transformers_tokenflow import TokenFlowConfig\n")
    (problem,) = check_loading(folder)
    assert problem.startswith("the model can't be loaded by its remote code: ") and "transformers_tokenflow" in problem
