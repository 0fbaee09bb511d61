# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Folders whose code is not this package's: with the package installed it is never run."""

import json
import shutil
from pathlib import Path

import pytest
from test_cli import fail, succeed
from tiny_models import tiny_model, tiny_text_to_image
from tiny_training import gradient_pictures
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, pipeline

from transformers_tokenflow import TokenFlowForTextToImage, TokenFlowImageProcessor, TokenFlowModel, TokenFlowProcessor
from transformers_tokenflow.commands import CommandError
from transformers_tokenflow.commands.generation import load_painter
from transformers_tokenflow.commands.tokenizers import load_tokenizer
from transformers_tokenflow.conversion import load_text_tokenizer


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Path]:
    """Saved models with their code."""
    folder = tmp_path_factory.mktemp("sound")
    for part in (tiny_model(), TokenFlowImageProcessor(size={"shortest_edge": 32})):
        part.save_pretrained(folder / "tokenizer")
    for part in tiny_text_to_image():
        part.save_pretrained(folder / "generator")
    return {path.name: path for path in folder.iterdir()}


def spoil(folder: Path) -> Path:
    """Have every module of a folder make a file where it is imported; gives that file."""
    marker = folder / "ran"
    modules = list(folder.glob("*.py"))
    assert len(modules) > 8
    for module in modules:
        module.write_text(f"open({str(marker)!r}, 'w').close()\n{module.read_text()}")
    return marker


@pytest.fixture
def tokenizer(sound: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(sound["tokenizer"], tmp_path / "tokenizer")


@pytest.fixture
def generator(sound: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(sound["generator"], tmp_path / "generator")


@pytest.mark.parametrize("trusted", [None, False, True])
def test_the_packages_own_code_is_used(trusted: bool | None, tokenizer: Path, generator: Path):
    markers = [spoil(tokenizer), spoil(generator)]
    options = {} if trusted is None else {"trust_remote_code": trusted}
    assert type(AutoModel.from_pretrained(tokenizer, **options)) is TokenFlowModel
    assert type(AutoImageProcessor.from_pretrained(tokenizer, **options)) is TokenFlowImageProcessor
    assert type(AutoModel.from_pretrained(generator, **options)) is TokenFlowForTextToImage
    assert type(AutoProcessor.from_pretrained(generator, **options)) is TokenFlowProcessor
    assert not any(marker.exists() for marker in markers)


def test_pipelines_and_commands(tokenizer: Path, generator: Path, tmp_path: Path):
    markers = [spoil(tokenizer), spoil(generator)]
    gradient_pictures(1)[0].save(tmp_path / "a.png")
    pipeline("text-to-image", model=str(generator))("a red apple", seed=0)
    succeed("encode", tmp_path / "a.png", tmp_path / "c.parquet", "--model", tokenizer)
    succeed("decode", tmp_path / "c.parquet", tmp_path / "out", "--model", tokenizer)
    succeed("generate", "a red apple", "--model", generator, "--output", tmp_path / "drawn")
    assert not any(marker.exists() for marker in markers)


EVIL = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import *
class Evil{base}({base}): pass
"""


@pytest.mark.parametrize(
    ("file", "key", "auto", "base"),
    [
        ("preprocessor_config.json", "image_processor_type", "AutoImageProcessor", "CLIPImageProcessor"),
        ("config.json", "architectures", "AutoModel", "CLIPVisionModel"),
    ],
)
def test_classes_of_other_names(file: str, key: str, auto: str, base: str, tokenizer: Path):
    """Commands don't ask whether to trust them: they don't."""
    marker = tokenizer / "ran"
    (tokenizer / "evil.py").write_text(EVIL.format(marker=str(marker), base=base))
    fields = json.loads((tokenizer / file).read_text())
    fields[key] = f"Evil{base}"
    fields["auto_map"] = {auto: f"evil.Evil{base}"}
    (tokenizer / file).write_text(json.dumps(fields))
    try:
        load_tokenizer(str(tokenizer))
    except CommandError as error:
        assert "image processor" in str(error)
    assert not marker.exists()


@pytest.mark.parametrize("file", ["processor_config.json", "tokenizer_config.json", "config.json"])
def test_processors_of_other_names(file: str, generator: Path):
    marker = generator / "ran"
    (generator / "evil.py").write_text(EVIL.format(marker=str(marker), base="PreTrainedTokenizerFast"))
    fields = json.loads((generator / file).read_text())
    name = "EvilPreTrainedTokenizerFast"
    fields |= {"processor_class": name, "tokenizer_class": name}
    fields["auto_map"] = {"AutoProcessor": f"evil.{name}", "AutoTokenizer": [None, f"evil.{name}"]}
    (generator / file).write_text(json.dumps(fields))
    try:
        load_painter(str(generator))
    except CommandError as error:
        assert "processor" in str(error)
    assert not marker.exists()


def test_text_tokenizers_of_official_models(generator: Path):
    marker = generator / "ran"
    (generator / "evil.py").write_text(EVIL.format(marker=str(marker), base="PreTrainedTokenizerFast"))
    path = generator / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    fields |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}}
    path.write_text(json.dumps(fields))
    try:
        load_text_tokenizer(str(generator), 100)
    except ValueError as error:
        assert str(generator) in str(error)
    assert not marker.exists()


def test_another_models_image_processor(tokenizer: Path, tmp_path: Path):
    path = tokenizer / "preprocessor_config.json"
    path.write_text(json.dumps({"image_processor_type": "CLIPImageProcessor"}))
    gradient_pictures(1)[0].save(tmp_path / "a.png")
    message = fail("encode", tmp_path / "a.png", tmp_path / "c.parquet", "--model", tokenizer)
    assert "is none of TokenFlow's: it is a CLIPImageProcessor" in message


def test_an_image_processor_of_enormous_pictures(tokenizer: Path, tmp_path: Path):
    TokenFlowImageProcessor(size={"shortest_edge": 60_000}).save_pretrained(tokenizer)
    gradient_pictures(1)[0].save(tmp_path / "a.png")
    message = fail("encode", tmp_path / "a.png", tmp_path / "c.parquet", "--model", tokenizer)
    assert "makes pictures of 60000 pixels, of which the model takes 32" in message


def test_an_image_processor_without_sizes_in_pixels(tokenizer: Path, tmp_path: Path):
    path = tokenizer / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": [None, []]}))
    gradient_pictures(1)[0].save(tmp_path / "a.png")
    message = fail("encode", tmp_path / "a.png", tmp_path / "c.parquet", "--model", tokenizer)
    assert "needs sizes in whole pixels; got {'width': []}" in message
