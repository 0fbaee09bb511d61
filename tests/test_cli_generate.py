# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The command `tokenflow generate`."""

import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import test_cli
import torch
from PIL import Image
from rich.console import Console
from tiny_models import tiny_model, tiny_text_to_image
from transformers import pipeline

from tokenflow_cli import output
from transformers_tokenflow.commands import CommandError, generation
from transformers_tokenflow.commands.generation import Drawn, count_passes, draw_prompts, load_painter, load_scorer

TEACHER = Path(__file__).parents[1] / "hub_cards" / "tokenflow-tiny-teacher"

run, succeed, fail = (partial(of, "generate") for of in (test_cli.run, test_cli.succeed, test_cli.fail))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved generator."""
    path = tmp_path_factory.mktemp("models") / "generator"
    for part in tiny_text_to_image():
        part.save_pretrained(path)
    return path


def files(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir())


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


class TestPictures:
    def test_are_those_of_the_pipeline(self, folder, tmp_path):
        options = ["--top-k", "10,1", "--top-p", "0.9,0", "--guidance-scale", 2, "--temperature", 1.5]
        options += ["--negative-prompt", "blurry", "--num-images", 3, "--seed", 4, "--batch-size", 2]
        result = succeed("a red apple", "sun", "--model", folder, "--output", tmp_path / "out", *options)
        assert f"{tmp_path / 'out'} got 6 pictures; the first one's seed is 4" in result.stdout.replace("\n", "")
        assert files(tmp_path / "out") == [
            *(f"a-red-apple-{seed}.png" for seed in (4, 5, 6)),
            *(f"sun-{seed}.png" for seed in (7, 8, 9)),
        ]
        painter = pipeline("text-to-image", model=str(folder), device="cpu")
        settings = {"top_k": [10, 1], "top_p": [0.9, 0.0], "guidance_scale": 2.0, "temperature": 1.5}
        expected = painter("sun", seed=8, negative_prompt="blurry", **settings)
        assert (pixels(tmp_path / "out" / "sun-8.png") == np.asarray(expected)).all()

    def test_the_default_model(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(generation, "DEFAULT_MODEL", tmp_path / "nothing")
        assert "pass --model" in fail("sun", "--output", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        monkeypatch.setattr(generation, "DEFAULT_MODEL", folder)
        succeed("sun", "--output", tmp_path / "out", "--dtype", "bfloat16")

    def test_a_random_seed_is_told(self, folder, tmp_path):
        result = succeed("sun", "--model", folder, "--output", tmp_path)
        (name,) = files(tmp_path)
        assert f"seed is {Path(name).stem.removeprefix('sun-')}" in result.stdout.replace("\n", "")

    def test_sheets(self, folder, tmp_path):
        grid, sheet = tmp_path / "a" / "grid.png", tmp_path / "b" / "sheet.png"
        arguments = ["sun", "moon", "--model", folder, "--num-images", 3, "--seed", 0, "--output", tmp_path / "out"]
        succeed(*arguments, "--grid", grid, "--sheet", sheet)
        assert pixels(grid).shape == (2 * (128 + 36 + 8) + 8, 3 * (128 + 8) + 8, 3)
        drawn = pixels(sheet)
        assert drawn.shape[1] == 3 * (128 + 8) + 8
        # Bottom right stands the last picture, as it was saved but four times as large.
        last = np.kron(pixels(tmp_path / "out" / "moon-5.png"), np.ones((4, 4, 1), dtype=np.uint8))
        top = len(drawn) - (128 + 36 + 8)
        assert (drawn[top : top + 128, 2 * 136 + 8 : 2 * 136 + 136] == last).all()
        succeed(*arguments, "--steps-preview", tmp_path / "again.png")
        assert (pixels(tmp_path / "again.png") == drawn).all()

    def test_same_prompts_get_files_of_their_own(self, folder, tmp_path):
        succeed("a/b", "a b", "../a?b", "--model", folder, "--output", tmp_path / "out", "--seed", 0)
        assert files(tmp_path / "out") == ["a-b-0.png", "a-b-1.png", "a-b-2.png"]
        assert files(tmp_path) == ["out"]

    @pytest.mark.parametrize(
        ("prompt", "name"),
        [
            ("a red apple", "a-red-apple-3"),
            ("../../etc/passwd", "etc-passwd-3"),
            ("C:\\con.txt", "C-con-txt-3"),
            ("ein Äpfelchen, rot", "ein-Äpfelchen-rot-3"),
            ("红苹果", "红苹果-3"),
            ("\n\x00 !?", "picture-3"),
            ("", "picture-3"),
            ("word " * 100, "-".join(["word"] * 20) + "-3"),
        ],
    )
    def test_file_names(self, prompt, name):
        assert Drawn(prompt, 3, torch.zeros(1, 1), Image.new("RGB", (1, 1))).file_name == name


class TestProgress:
    def test_bar_counts_passes(self, folder):
        painter, seen = load_painter(str(folder), "cpu"), []
        settings = {"top_k": [5, 1], "top_p": [0.0, 0.0]}
        drawn = draw_prompts(painter, ["sun", "moon"], 3, 0, 2, lambda *state: seen.append(state), **settings)
        assert len(list(drawn)) == 6
        passes = 3 * (1 + 2 * 2)  # batches, passes of the scales 1, 2 and 4
        assert seen == [(done, passes) for done in range(1, passes + 1)]

    def test_candidates_count_as_pictures_of_a_batch(self, folder, monkeypatch):
        painter, asked = load_painter(str(folder), "cpu"), []
        generate = painter.model.generate
        monkeypatch.setattr(
            painter.model,
            "generate",
            lambda **kwargs: asked.append(len(kwargs["input_ids"])) or generate(**kwargs),
        )
        for best_of in (2, 9):
            settings = {"best_of": best_of, "scorer": lambda features, prompts: features.mean(dim=(1, 2))}
            assert len(list(draw_prompts(painter, ["sun"], 3, 0, 4, lambda *state: None, **settings))) == 3
        assert asked == [2, 1, 1, 1, 1]

    @pytest.mark.parametrize(
        ("settings", "passes"), [({}, 7), ({"top_k": 1}, 7), ({"top_k": 1, "top_p": 0.0}, 3), ({"top_k": [1] * 4}, 9)]
    )
    def test_count(self, folder, settings, passes):
        assert count_passes(load_painter(str(folder), "cpu"), settings) == passes

    def test_on_a_terminal(self, folder, tmp_path, monkeypatch):
        shown = io.StringIO()
        monkeypatch.setattr(output, "error_console", Console(file=shown, force_terminal=True, width=100))
        succeed("sun", "--model", folder, "--output", tmp_path)
        assert "drawing" in shown.getvalue() and "7/7" in shown.getvalue()


class TestBestOf:
    def test_the_best_is_kept(self, folder, tmp_path, monkeypatch):
        asked = []

        def scorer(features, prompts):
            asked.append(prompts)
            return features.mean(dim=(1, 2))

        monkeypatch.setattr(generation, "load_scorer", lambda name, device: asked.append((name, device.type)) or scorer)
        arguments = ["sun", "--model", folder, "--device", "cpu", "--seed", 1]
        succeed(*arguments, "--output", tmp_path / "best", "--best-of", 4, "--scorer", "some-clip")
        assert asked == [("some-clip", "cpu"), ["sun"] * 4]
        succeed(*arguments, "--output", tmp_path / "first")
        assert asked == [("some-clip", "cpu"), ["sun"] * 4]
        result = run("sun", "--model", folder, "--output", tmp_path, "--scorer", "some-clip")
        assert result.exit_code == 2 and "say by --best-of" in result.output

    def test_scorers(self, tmp_path, monkeypatch):
        pytest.importorskip("open_clip")
        device = torch.device("cpu")
        scores = [
            load_scorer(name, device)(torch.ones(1, 4, 128), ["a red apple"])
            for name in (None, str(TEACHER), f"local-dir:{TEACHER}")
        ]
        assert scores[0] == scores[1] == scores[2]
        with pytest.raises(CommandError, match="the scorer no-such/tag can't be loaded"):
            load_scorer("no-such/tag", device)
        monkeypatch.setattr(generation, "DEFAULT_SCORER", tmp_path / "nothing")
        with pytest.raises(CommandError, match="pass --scorer"):
            load_scorer(None, device)

    def test_another_models_teacher(self, folder, tmp_path):
        pytest.importorskip("open_clip")
        message = fail("sun", "--model", folder, "--output", tmp_path, "--best-of", 2)
        assert "features of width 12, but this CLIP 128" in message


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--top-k", "-1"], "top_k must hold whole numbers from 0"),
            (["--top-p", "1.5"], "top_p must lie in [0, 1]"),
            (["--top-k", "1,2"], "need an entry per pass"),
            (["--temperature", "0"], "temperature must be above 0"),
            (["--device", "nothing"], "the device 'nothing' can't be used"),
        ],
    )
    def test_settings(self, folder, tmp_path, arguments, message):
        assert message in fail("sun", "--model", folder, "--output", tmp_path, *arguments)

    @pytest.mark.parametrize(
        "arguments", [[], ["sun", "--top-k", "a,b"], ["sun", "--top-p", ""], ["sun", "--seed", "-1"]]
    )
    def test_usage(self, folder, arguments):
        assert run(*arguments, "--model", folder).exit_code == 2

    @pytest.mark.parametrize("option", ["--grid", "--sheet"])
    def test_names_of_sheets_are_checked_before_drawing(self, folder, tmp_path, option):
        result = run("sun", "--model", folder, "--output", tmp_path / "out", option, tmp_path / "all.jpgg")
        assert result.exit_code == 2 and "all.png" in result.output
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("option", ["--grid", "--sheet"])
    def test_sheets_do_not_overwrite_other_pictures(self, folder, tmp_path, option):
        Image.new("RGB", (8, 8)).save(tmp_path / "mine.png")
        arguments = ["sun", "--model", folder, "--output", tmp_path / "out", option, tmp_path / "mine.png"]
        assert "exists without the mark of tokenflow's pictures" in fail(*arguments)
        assert not (tmp_path / "out").exists()

    def test_seeds_that_torch_does_not_take(self, folder, tmp_path):
        arguments = ["sun", "--model", folder, "--output", tmp_path / "out", "--seed", 2**64 - 1]
        succeed(*arguments)
        message = fail(*arguments, "--num-images", 2)
        assert f"those of 2 pictures from {2**64 - 1} on don't" in message

    def test_models(self, folder, tmp_path):
        tiny_model().save_pretrained(tmp_path / "tokenizer")
        assert "is no TokenFlow generator: its model type is 'tokenflow'" in fail(
            "a", "--model", tmp_path / "tokenizer"
        )
        assert "there is no folder" in fail("a", "--model", tmp_path / "nothing")
        model, _ = tiny_text_to_image()
        model.save_pretrained(tmp_path / "no-processor")
        assert "the processor of" in fail("a", "--model", tmp_path / "no-processor")
