# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Models' folders from anywhere: a model, or a CommandError; never code that runs."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from fuzzing import changed, damaged, fuzz_models
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import tiny_model, tiny_text_to_image

from transformers_tokenflow import TokenFlowImageProcessor
from transformers_tokenflow.commands import CommandError
from transformers_tokenflow.commands.encoding import encode_pictures
from transformers_tokenflow.commands.generation import load_painter
from transformers_tokenflow.commands.tokenizers import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fuzzed") / "tokenizer"
    tiny_model().save_pretrained(path)
    TokenFlowImageProcessor(size={"shortest_edge": 32}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def generator_folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fuzzed") / "generator"
    for part in tiny_text_to_image():
        part.save_pretrained(path)
    return path


def fields_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def encode(folder: Path) -> None:
    """Load a tokenizer and encode a picture: codes, a reason why it can't be read, or a CommandError."""
    photo, output = folder / "photo.png", folder / "codes.parquet"
    Image.new("RGB", (40, 30), (200, 90, 10)).save(photo)
    output.unlink(missing_ok=True)
    try:
        tokenizer = load_tokenizer(str(folder))
        report = encode_pictures([photo], output, tokenizer, 1)
    except CommandError as error:
        assert "\n" not in str(error)
        return
    assert report.encoded + len(report.failures) == 1
    if report.encoded:
        (row,) = pq.read_table(output).to_pylist()
        assert len(row["codes"]) == tokenizer.model.config.num_image_tokens


@fuzz_models
@given(data=st.data(), name=st.sampled_from(["config.json", "preprocessor_config.json"]))
def test_settings_of_tokenizers(data: Any, name: str, tokenizer_folder: Path, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "changed-tokenizer"
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    fields = data.draw(changed(fields_of(tokenizer_folder / name)))
    (folder / name).write_text(json.dumps(fields))
    encode(folder)


@fuzz_models
@given(data=st.data(), name=st.sampled_from(["config.json", "preprocessor_config.json", "model.safetensors"]))
def test_damaged_files_of_tokenizers(data: Any, name: str, tokenizer_folder: Path, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "damaged-tokenizer"
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    (folder / name).write_bytes(data.draw(damaged([(tokenizer_folder / name).read_bytes()])))
    encode(folder)


GENERATORS_FILES = ["config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json"]


@fuzz_models
@given(data=st.data(), name=st.sampled_from(GENERATORS_FILES))
def test_settings_of_generators(data: Any, name: str, generator_folder: Path, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "changed-generator"
    shutil.copytree(generator_folder, folder, dirs_exist_ok=True)
    fields = data.draw(changed(fields_of(generator_folder / name)))
    (folder / name).write_text(json.dumps(fields))
    try:
        painter = load_painter(str(folder), "cpu")
    except CommandError:
        return
    try:
        codes = painter("a red apple", seed=0, output_type="latent")
    except (ValueError, TypeError):
        return
    assert codes.dtype == torch.int64 and codes.min() >= 0


@fuzz_models
@given(data=st.data(), name=st.sampled_from([*GENERATORS_FILES, "tokenizer.json"]))
def test_damaged_files_of_generators(data: Any, name: str, generator_folder: Path, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "damaged-generator"
    shutil.copytree(generator_folder, folder, dirs_exist_ok=True)
    (folder / name).write_bytes(data.draw(damaged([(generator_folder / name).read_bytes()])))
    with contextlib.suppress(CommandError):
        load_painter(str(folder), "cpu")
