# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The command `tokenflow describe`."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import test_cli
import torch
from PIL import Image
from tiny_models import tiny_model, tiny_understanding_with_processor
from transformers import GenerationConfig, pipeline

from transformers_tokenflow.commands import describing
from transformers_tokenflow.commands.describing import answer_settings, load_describer

# Answers of random weights should be letters, and of a length.
GENERATION = {"max_new_tokens": 6, "suppress_tokens": [0, 1, 2, *range(61, 80)], "pad_token_id": 0}

run, fail = (partial(of, "describe") for of in (test_cli.run, test_cli.fail))


def succeed(*arguments: object) -> list[str]:
    """The lines that the command prints."""
    return test_cli.succeed("describe", *arguments).stdout.splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved understanding model."""
    path = tmp_path_factory.mktemp("models") / "understanding"
    model, processor = tiny_understanding_with_processor()
    model.generation_config = GenerationConfig(**GENERATION)
    processor.default_question = "what is it?"
    for part in (model, processor):
        part.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of three photos."""
    path = tmp_path_factory.mktemp("photos")
    for seed, name in enumerate(("a.png", "b [bold].png", "c.png")):
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / name)
    return path


@pytest.fixture(scope="module")
def expected(folder, photos):
    """What the pipeline says to a question about each photo."""
    talker = pipeline("image-text-to-text", model=str(folder), device="cpu")

    def ask(question: str) -> dict[str, str]:
        answers = {}
        for path in sorted(photos.iterdir()):
            content = [{"type": "image", "path": str(path)}, {"type": "text", "text": question}]
            (answer,) = talker(text=[{"role": "user", "content": content}], return_full_text=False)
            answers[path.name] = answer["generated_text"].strip()
        return answers

    return ask


class TestAnswers:
    def test_one_picture(self, folder, photos, expected):
        for question, arguments in (("what is it?", []), ("is it red?", ["--question", "is it red?"])):
            answer = expected(question)["a.png"]
            assert answer and succeed(photos / "a.png", "--model", folder, *arguments) == [answer]

    def test_several_pictures(self, folder, photos, expected):
        answers = expected("what is it?")
        lines = [f"{(photos / name).as_posix()}: {text}" for name, text in answers.items()]
        for size in (1, 2, 8):
            assert succeed(photos, "--model", folder, "--batch-size", size) == lines

    def test_lengths(self, folder, photos):
        (answer,) = succeed(photos / "a.png", "--model", folder, "--max-new-tokens", 2)
        assert len(answer) == 2

    def test_lengths_that_nobody_says(self, folder, photos, tmp_path, monkeypatch):
        shutil.copytree(folder, tmp_path / "model")
        short = GenerationConfig(**{**GENERATION, "max_new_tokens": None})
        short.save_pretrained(tmp_path / "model")
        monkeypatch.setattr(describing, "MAX_NEW_TOKENS", 9)
        (answer,) = succeed(photos / "a.png", "--model", tmp_path / "model")
        assert len(answer) == 9

    def test_drawn_words(self, folder, photos):
        arguments = [photos / "a.png", "--model", folder, "--max-new-tokens", 20]
        drawn = {seed: succeed(*arguments, "--temperature", 2, "--seed", seed) for seed in (0, 1)}
        assert drawn[0] == succeed(*arguments, "--temperature", 2, "--seed", 0) != drawn[1]
        assert succeed(*arguments, "--temperature", 0, "--seed", 0) == succeed(*arguments) != drawn[0]

    def test_settings(self):
        assert answer_settings() == {}
        assert answer_settings(5, 0.5) == {"max_new_tokens": 5, "do_sample": True, "temperature": 0.5}
        assert answer_settings(temperature=0) == {"do_sample": False}

    def test_the_default_model(self, folder, photos, tmp_path, monkeypatch):
        monkeypatch.setattr(describing, "DEFAULT_MODEL", tmp_path / "nothing")
        assert "pass --model" in fail(photos / "a.png")
        monkeypatch.setattr(describing, "DEFAULT_MODEL", folder)
        assert len(succeed(photos / "a.png", "--dtype", "bfloat16")) == 1
        assert load_describer(dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16


class TestMistakes:
    def test_pictures(self, folder, photos, tmp_path):
        (tmp_path / "broken.png").write_bytes(b"no picture")
        result = run(tmp_path, photos / "a.png", "--model", folder)
        assert (
            result.exit_code == 0
            and "left out 1 picture that could not be read:" in result.stderr
            and "broken.png" in result.stderr
        )
        assert len(result.stdout.splitlines()) == 1
        assert "no picture could be described" in fail(tmp_path, "--model", folder)
        (tmp_path / "empty").mkdir()
        assert "there are no pictures in" in fail(tmp_path / "empty", "--model", folder)
        assert run(tmp_path / "nothing.png", "--model", folder).exit_code == 2

    def test_models(self, folder, photos, tmp_path):
        picture = photos / "a.png"
        tiny_model().save_pretrained(tmp_path / "tokenizer")
        message = fail(picture, "--model", tmp_path / "tokenizer")
        assert "is no TokenFlow understanding model: its model type is 'tokenflow'" in message
        assert "there is no folder" in fail(picture, "--model", tmp_path / "nothing")
        shutil.copytree(folder, tmp_path / "model")
        (tmp_path / "model" / "chat_template.jinja").unlink()
        assert "takes no conversations: it has no chat_template" in fail(picture, "--model", tmp_path / "model")
        (tmp_path / "model" / "processor_config.json").unlink()
        assert "the processor of" in fail(picture, "--model", tmp_path / "model")

    def test_processors_of_other_models(self, folder, photos, tmp_path):
        shutil.copytree(folder, tmp_path / "model")
        _, processor = tiny_understanding_with_processor()
        processor.num_image_tokens = 3
        processor.save_pretrained(tmp_path / "model")
        message = fail(photos / "a.png", "--model", tmp_path / "model")
        assert "can't answer: the text has 3 image tokens, but the pictures given have 16 features" in message

    @pytest.mark.parametrize(
        "arguments", [["--max-new-tokens", 0], ["--temperature", -1], ["--seed", -1], ["--seed", 2**64]]
    )
    def test_usage(self, folder, photos, arguments):
        assert run(photos / "a.png", "--model", folder, *arguments).exit_code == 2
