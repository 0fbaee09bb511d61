# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The commands `tokenflow evaluate ...`."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import test_cli
from huggingface_hub import ModelCard
from PIL import Image
from tiny_models import tiny_model, tiny_text_to_image, tiny_understanding_with_processor

pytest.importorskip("torchmetrics")
pytest.importorskip("open_clip")
from transformers_tokenflow import TokenFlowImageProcessor  # noqa: E402
from transformers_tokenflow.commands import (  # noqa: E402
    evaluate_generation,
    evaluate_reconstruction,
    evaluate_understanding,
)
from transformers_tokenflow.evaluation import EvaluationError, parts  # noqa: E402
from transformers_tokenflow.evaluation.understanding import SHORT_ANSWER  # noqa: E402

ROOT = Path(__file__).parents[1]
TEACHER = ROOT / "hub_cards" / "tokenflow-tiny-teacher"

run, succeed, fail = (partial(of, "evaluate") for of in (test_cli.run, test_cli.succeed, test_cli.fail))


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch):
    """As without network: nothing is downloaded by a test."""

    def refuse(device):
        raise EvaluationError("no weights here")

    monkeypatch.setattr(evaluate_reconstruction, "inception_distance", refuse)
    monkeypatch.setattr(evaluate_reconstruction, "perceptual_similarity", refuse)
    monkeypatch.setattr(evaluate_generation, "RewardJudge", refuse)
    monkeypatch.setattr(parts, "SECONDS_BETWEEN_FLUSHES", 0.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tokenizer"
    tiny_model().save_pretrained(path)
    TokenFlowImageProcessor(size={"shortest_edge": 32}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "generator"
    for part in tiny_text_to_image():
        part.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def talker(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "talker"
    for part in tiny_understanding_with_processor():
        part.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Five pictures, and one that can't be read."""
    root = tmp_path_factory.mktemp("photos")
    randomness = np.random.default_rng(0)
    for number in range(5):
        coarse = Image.fromarray(randomness.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        coarse.resize((40, 40), Image.Resampling.BICUBIC).save(root / f"{number}.png")
    (root / "broken.png").write_bytes(b"no picture")
    return root


class TestReconstruction:
    def test_results(self, tokenizer, photos, tmp_path):
        output = tmp_path / "out.json"
        result = succeed("reconstruction", "--data", photos, "--model", tokenizer, "--output", output)
        assert "rfid is by CLIP tokenflow-tiny-teacher" in result.stdout
        assert "lpips was not measured: no weights here" in result.stderr and "broken.png" in result.stderr
        report = read(output)
        assert list(report["metrics"]) == ["rfid", "psnr", "ssim", "ssim_official", "codebook_utilization"]
        assert report["pictures"] == 5 and list(report["codebook_utilization_per_scale"]) == ["1", "2", "4"]
        assert report["description"]["data"]["pictures"] == 6 and report["description"]["model"]["weights"]
        assert report["description"]["settings"]["preprocessing"]["size"] == {"shortest_edge": 32}
        assert (tmp_path / "out.clusters.png").read_bytes().startswith(b"\x89PNG")
        rows = [json.loads(line) for line in (tmp_path / "out.records.jsonl").read_text().splitlines()]
        assert np.mean([row["psnr"] for row in rows if "psnr" in row]) == pytest.approx(report["metrics"]["psnr"])
        assert [row["name"] for row in rows if "unreadable" in row] == [f"{photos.as_posix()}/broken.png"]

    def test_a_picture_of_the_plots_name_stays(self, tokenizer, photos, tmp_path):
        own, plot = tmp_path / "out.png", tmp_path / "out.clusters.png"
        for path in (own, plot):
            shutil.copy(photos / "0.png", path)
        arguments = ["reconstruction", "--data", own, "--model", tokenizer, "--output", tmp_path / "out.json"]
        message = fail(*arguments)
        assert "out.clusters.png exists without the mark of tokenflow's pictures, and would be overwritten" in message
        assert plot.read_bytes() == (photos / "0.png").read_bytes() and not list(tmp_path.glob("*.json*"))
        plot.unlink()
        for _ in range(2):  # what the command itself has written it may write again
            succeed(*arguments)
            (tmp_path / "out.json").unlink()
        assert own.read_bytes() == (photos / "0.png").read_bytes()

    def test_its_own_plot_is_not_measured(self, tokenizer, photos, tmp_path):
        folder = tmp_path / "photos"
        shutil.copytree(photos, folder)
        for name in ("one", "two"):
            options = ["--model", tokenizer, "--output", folder / f"{name}.json"]
            succeed("reconstruction", "--data", folder, *options)
        one, two = read(folder / "one.json"), read(folder / "two.json")
        assert two["description"]["data"] == one["description"]["data"] and two["metrics"] == one["metrics"]

    def test_the_same_whatever_the_batches(self, tokenizer, photos, tmp_path):
        reports = []
        for size in (1, 4):
            output = tmp_path / f"{size}.json"
            options = ["--model", tokenizer, "--output", output, "--batch-size", size, "--features", TEACHER]
            succeed("reconstruction", "--data", photos, *options)
            reports.append(read(output))
        assert reports[0]["metrics"] == pytest.approx(reports[1]["metrics"], rel=1e-3)
        assert reports[0]["cluster_sizes"] == reports[1]["cluster_sizes"]

    def test_a_killed_run_goes_on(self, tokenizer, photos, tmp_path, monkeypatch):
        output, seen = tmp_path / "out.json", []
        update = evaluate_reconstruction.ReconstructionMeasures.update

        def killed(self, names, pixel_values):
            if len(seen) == 3:
                raise KeyboardInterrupt
            seen.extend(names)
            return update(self, names, pixel_values)

        arguments = ["reconstruction", "--data", photos, "--model", tokenizer, "--batch-size", 1]
        monkeypatch.setattr(evaluate_reconstruction.ReconstructionMeasures, "update", killed)
        assert run(*arguments, "--output", output).exit_code == 130
        assert not output.exists() and len(seen) == 3
        monkeypatch.setattr(evaluate_reconstruction.ReconstructionMeasures, "update", update)
        succeed(*arguments, "--output", output)
        succeed(*arguments, "--output", tmp_path / "whole.json")
        assert read(output)["metrics"] == pytest.approx(read(tmp_path / "whole.json")["metrics"], rel=1e-4)
        assert read(output)["cluster_sizes"] == read(tmp_path / "whole.json")["cluster_sizes"]
        before = output.stat().st_mtime_ns
        assert json.loads(succeed(*arguments, "--output", output, "--json").stdout) == read(output)
        assert output.stat().st_mtime_ns == before

    def test_changed_pictures_are_evaluated_again(self, tokenizer, tmp_path):
        output, picture = tmp_path / "out.json", tmp_path / "pictures" / "one.png"
        arguments = ["reconstruction", "--data", picture.parent, "--model", tokenizer, "--output", output]
        picture.parent.mkdir()
        results = []
        for color in ("red", "white"):
            Image.new("RGB", (40, 40), color).save(picture)
            succeed(*arguments)
            results.append(read(output))
        assert results[0]["description"]["data"]["names"] == results[1]["description"]["data"]["names"]
        assert results[0]["metrics"]["psnr"] != results[1]["metrics"]["psnr"]

    def test_dataset(self, tokenizer, photos, tmp_path):
        rows = datasets.Dataset.from_dict({"photo": [str(photos / f"{number}.png") for number in range(5)]})
        rows.cast_column("photo", datasets.Image()).to_parquet(tmp_path / "test-0.parquet")
        output = tmp_path / "out.json"
        options = ["--model", tokenizer, "--output", output, "--column", "photo", "--limit", 4]
        succeed("reconstruction", "--data", tmp_path, "--split", "test", *options)
        report = read(output)
        assert report["pictures"] == 4 and report["description"]["data"]["split"] == "test"

    def test_card(self, tokenizer, photos, tmp_path):
        card = tmp_path / "card"
        card.mkdir()
        options = ["--model", tokenizer, "--output", tmp_path / "out.json", "--update-card", card]
        result = succeed("reconstruction", "--data", photos, *options)
        assert "has them, too" in result.stdout
        values = {r.metric_type: r.metric_value for r in ModelCard.load(card / "README.md").data.eval_results}
        assert values["psnr"] == pytest.approx(read(tmp_path / "out.json")["metrics"]["psnr"], abs=1e-3)

    def test_without_any_features(self, tokenizer, photos, tmp_path, monkeypatch):
        monkeypatch.setattr(evaluate_reconstruction, "DEFAULT_SCORER", tmp_path / "nothing")
        succeed("reconstruction", "--data", photos, "--model", tokenizer, "--output", tmp_path / "out.json")
        report = read(tmp_path / "out.json")
        assert "rfid" not in report["metrics"] and report["not_measured"]["rfid"] == "no weights here"

    def test_one_picture(self, tokenizer, photos, tmp_path):
        arguments = ["reconstruction", "--data", photos / "0.png", "--model", tokenizer]
        result = succeed(*arguments, "--output", tmp_path / "out.json")
        assert "rfid was not measured: it takes at least two pictures" in result.stderr
        report = read(tmp_path / "out.json")
        assert "rfid" not in report["metrics"] and set(report["not_measured"]) == {"rfid", "lpips"}

    def test_mistakes(self, tokenizer, photos, tmp_path):
        def message(*data: object) -> str:
            return fail("reconstruction", "--model", tokenizer, "--output", tmp_path / "out.json", *data)

        assert "there is no someone/photos; a dataset of the Hub takes --split" in message("--data", "someone/photos")
        assert "there are no pictures" in message("--data", tokenizer)
        assert "no picture of" in message("--data", photos / "broken.png")
        assert "--split takes one dataset" in message("--data", photos, "--data", photos, "--split", "test")
        assert "can't be loaded" in message("--data", tmp_path / "nothing", "--split", "test")
        assert "no weights here" in message("--data", photos, "--features", "inception")
        assert "the scorer no-such-clip can't be loaded" in message("--data", photos, "--features", "no-such-clip")
        assert "out.json.parts holds an unfinished evaluation of something else" in message("--data", photos)
        other = tmp_path / "other.json"
        arguments = ["reconstruction", "--data", photos, "--model", tokenizer, "--output", other]
        assert run(*arguments, "--update-card", tmp_path / "nothing").exit_code == 2 and not other.exists()

    def test_needs_the_extra(self, photos, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers_tokenflow.commands.evaluate_reconstruction", None)
        assert "pip install 'transformers-tokenflow[eval]'" in fail("reconstruction", "--data", photos)


class TestGeneration:
    @pytest.fixture
    def prompts(self, tmp_path) -> Path:
        rows = [{"tag": "x", "prompt": prompt} for prompt in ("sun", "moon", "owl")]
        path = tmp_path / "evaluation_metadata.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    def test_geneval(self, generator, prompts, tmp_path):
        folder = tmp_path / "out"
        options = ["--output", folder, "--num-images", 2, "--seed", 5, "--top-k", "7", "--guidance-scale", 2]
        arguments = ["generation", "--prompts", prompts, "--model", generator, *options]
        result = succeed(*arguments)
        assert "image_reward was not measured" in result.stderr
        assert sorted(path.name for path in folder.iterdir()) == ["00000", "00001", "00002"]
        assert read(folder / "00001" / "metadata.jsonl") == {"tag": "x", "prompt": "moon"}
        assert len(list((folder / "00001" / "samples").iterdir())) == 2
        report = read(tmp_path / "out.json")
        assert set(report["metrics"]) == {"clip_score", "clip_accuracy"} and report["prompts"] == 3
        settings = report["description"]["settings"]
        assert (settings["seed"], settings["num_images"], settings["top_k"]) == (5, 2, 7)
        assert settings["networks"] == {"clip": "tokenflow-tiny-teacher"}

        # Judged anew by another name of the same CLIP: the pictures stay.
        before = (folder / "00001" / "samples" / "0000.png").stat().st_mtime_ns
        succeed(*arguments, "--scorer", f"local-dir:{TEACHER}")
        assert (folder / "00001" / "samples" / "0000.png").stat().st_mtime_ns == before
        again = read(tmp_path / "out.json")
        assert again["metrics"] == report["metrics"] and again["description"] != report["description"]
        assert "settings.seed: 5 there, 6 now" in fail(*arguments, "--seed", 6)

    def test_dpg_bench(self, generator, tmp_path):
        (tmp_path / "prompts").mkdir()
        for name, text in (("part_1", "a sun"), ("part_2", "a moon")):
            (tmp_path / "prompts" / f"{name}.txt").write_text(text)
        options = ["--model", generator, "--output", tmp_path / "out"]
        succeed("generation", "--prompts", tmp_path / "prompts", *options)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["part_1.png", "part_2.png"]
        assert Image.open(tmp_path / "out" / "part_1.png").size == (64, 64)

    def test_mistakes(self, generator, prompts, tmp_path):
        arguments = ["generation", "--prompts", prompts, "--model", generator, "--output", tmp_path / "out"]
        assert "top_k must hold whole numbers" in fail(*arguments, "--top-k", "-1")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine.txt").write_text("")
        assert "holds files of another origin" in fail(*arguments, "--output", tmp_path / "full")
        (tmp_path / "empty").mkdir()
        assert "there are no prompts" in fail(*arguments, "--prompts", tmp_path / "empty")
        assert run(*arguments, "--prompts", tmp_path / "nothing").exit_code == 2


class TestUnderstanding:
    @pytest.fixture
    def questions(self, tmp_path) -> Path:
        columns = {
            "image": [Image.new("RGB", (32, 32), color) for color in ("red", "blue", "lime")],
            "question": ["is it red?", "is it red?", "what is it?"],
            "answers": [["yes"], ["no", "no"], ["green", "lime"]],
        }
        rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        rows.to_parquet(tmp_path / "questions.parquet")
        return tmp_path / "questions.parquet"

    def test_results(self, talker, questions, tmp_path):
        output = tmp_path / "out.json"
        options = ["--model", talker, "--output", output, "--prompt", "q {question}", "--max-new-tokens", 3]
        succeed("understanding", "--data", questions, *options, "--batch-size", 2)
        report = read(output)
        assert report["questions"] == 3 and {"exact_match", "vqa_accuracy", "yes_f1"} <= set(report["metrics"])
        assert report["description"]["settings"]["prompt"] == "q {question}"
        rows = [json.loads(line) for line in (tmp_path / "out.records.jsonl").read_text().splitlines()]
        assert [row["answers"] for row in rows] == [["yes"], ["no", "no"], ["green", "lime"]]
        assert all(isinstance(row["prediction"], str) for row in rows)

    def test_one_row_that_can_not_be_read(self, talker, questions, tmp_path):
        rows = datasets.Dataset.from_parquet(str(questions), cache_dir=str(tmp_path / "cache"))
        rows = datasets.Dataset.from_list([*rows, {"image": None, "question": "what?", "answers": None}], rows.features)
        rows.to_parquet(tmp_path / "more.parquet")
        options = ["--model", talker, "--output", tmp_path / "out.json", "--max-new-tokens", 3]
        result = succeed("understanding", "--data", tmp_path / "more.parquet", *options)
        assert read(tmp_path / "out.json")["description"]["settings"]["prompt"] == SHORT_ANSWER
        assert "left out 1 question that could not be read:\n  00000003: the row has no picture" in result.stderr
        assert read(tmp_path / "out.json")["questions"] == 3

    def test_mistakes(self, talker, tokenizer, questions, tmp_path, monkeypatch):
        arguments = ["understanding", "--data", questions, "--model", talker, "--output", tmp_path / "out.json"]
        assert "must say where the {question} goes" in fail(*arguments, "--prompt", "what?")
        assert "has no column photo" in fail(*arguments, "--image", "photo")
        assert 'Unknown split "test"' in fail(*arguments, "--split", "test")
        assert "can't be loaded as an image-text-to-text model" in fail(*arguments, "--model", tokenizer)
        monkeypatch.setattr(evaluate_understanding, "DEFAULT_MODEL", tmp_path / "nothing")
        assert "pass --model" in fail("understanding", "--data", questions)


def test_results_lie_beside_the_folder_one_is_in(tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("sun")
    (tmp_path / "here").mkdir()
    (tmp_path / "here.json").write_text("mine")
    monkeypatch.chdir(tmp_path / "here")
    message = fail("generation", "--prompts", "../prompts.txt", "--output", ".", "--model", tmp_path / "nothing")
    assert f"{tmp_path}/here.json holds no results" in message


@pytest.mark.parametrize(
    ("evaluation", "data", "output"),
    [
        ("reconstruction", "--data", "mine.json"),
        ("generation", "--prompts", "mine"),
        ("understanding", "--data", "mine.json"),
    ],
)
def test_data_are_not_overwritten(evaluation, data, output, tmp_path):
    """Before any model is loaded: there is none."""
    mine = tmp_path / "mine.json"
    mine.write_text('[{"question": "what?"}]')
    message = fail(evaluation, data, mine, "--output", tmp_path / output, "--model", tmp_path / "nothing")
    assert "mine.json holds no results of an evaluation, and would be overwritten: write elsewhere" in message
    assert mine.read_text() == '[{"question": "what?"}]'


class TestTwoProcesses:
    """As `accelerate launch` starts them."""

    def run(self, folder: Path, *arguments: object) -> None:
        (folder / "run.py").write_text("from transformers_tokenflow.cli import app; app()")
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command = [*launch, folder / "run.py", "evaluate", *arguments, "--device", "cpu"]
        nowhere = {"TORCH_HOME": str(folder), "https_proxy": "http://127.0.0.1:9"}  # no weights, as above
        environment = {**os.environ, **nowhere, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("the results are in") == 1

    def test_draw_the_same_pictures(self, generator, tmp_path):
        (tmp_path / "prompts.txt").write_text("sun\nmoon\nowl\nred apple\nhouse")
        arguments = ["generation", "--prompts", tmp_path / "prompts.txt", "--model", generator, "--num-images", 1]
        self.run(tmp_path, *arguments, "--output", tmp_path / "two")
        succeed(*arguments, "--device", "cpu", "--output", tmp_path / "one")
        two, one = read(tmp_path / "two.json"), read(tmp_path / "one.json")
        assert (two["processes"], one["processes"]) == (2, 1)
        assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-4) and two["prompts"] == 5
        for number in range(5):
            path = Path(f"{number:05d}") / "samples" / "0000.png"
            assert (tmp_path / "two" / path).read_bytes() == (tmp_path / "one" / path).read_bytes()

    def test_measure_the_same(self, tokenizer, photos, tmp_path):
        arguments = ["reconstruction", "--data", photos, "--model", tokenizer, "--features", TEACHER]
        self.run(tmp_path, *arguments, "--output", tmp_path / "two.json")
        succeed(*arguments, "--device", "cpu", "--output", tmp_path / "one.json")
        two, one = read(tmp_path / "two.json"), read(tmp_path / "one.json")
        assert two["processes"] == 2 and two["pictures"] == 5 and two["unreadable"] == one["unreadable"]
        assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
        assert two["cluster_sizes"] == one["cluster_sizes"]
