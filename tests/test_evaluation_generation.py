# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Prompts and folders of benchmarks, drawing them, and judging the pictures."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_text_to_image

pytest.importorskip("torchmetrics")
pytest.importorskip("open_clip")
from accelerate import PartialState  # noqa: E402

from transformers_tokenflow.evaluation import EvaluationError  # noqa: E402
from transformers_tokenflow.evaluation.benchmarks import Prompt, picture_folder, read_prompts, tile  # noqa: E402
from transformers_tokenflow.evaluation.generation import (  # noqa: E402
    ClipJudge,
    RewardJudge,
    agreement,
    draw,
    draw_and_judge,
    summarize,
)
from transformers_tokenflow.evaluation.parts import Parts  # noqa: E402
from transformers_tokenflow.pipeline_tokenflow import TextToImagePipeline  # noqa: E402
from transformers_tokenflow.scoring import OpenClipScorer  # noqa: E402

CARDS = Path(__file__).parents[1] / "hub_cards"
FIXTURES = Path(__file__).parent / "fixtures" / "pictures"


@pytest.fixture(scope="module")
def painter() -> TextToImagePipeline:
    model, processor = tiny_text_to_image()
    return TextToImagePipeline(model=model, processor=processor, task="text-to-image", device=torch.device("cpu"))


@pytest.fixture(scope="module")
def scorer() -> OpenClipScorer:
    return OpenClipScorer(str(CARDS / "tokenflow-tiny-teacher"))


def plain(*colors: str, size: int = 8) -> list[Image.Image]:
    return [Image.new("RGB", (size, size), color) for color in colors]


COLORS = ("red", "lime", "blue", "white")


class TestPrompts:
    def test_geneval(self, tmp_path):
        rows = [{"tag": "counting", "include": [{"class": "sun", "count": 2}], "prompt": "two suns"}, {"prompt": "é"}]
        (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
        prompts = read_prompts(tmp_path / "m.jsonl")
        assert prompts == [Prompt("00000", "two suns", rows[0]), Prompt("00001", "é", rows[1])]

    def test_dpg_bench(self, tmp_path):
        (tmp_path / "b_2.txt").write_text("a red\n sun. \n")
        (tmp_path / "a_1.txt").write_text("moon")
        (tmp_path / "notes.md").write_text("no prompt")
        assert read_prompts(tmp_path) == [Prompt("a_1", "moon"), Prompt("b_2", "a red sun.")]

    def test_lines(self, tmp_path):
        for name in ("p.txt", "p"):
            (tmp_path / name).write_text("sun\n\n moon \n")
            assert [(p.name, p.text, p.metadata) for p in read_prompts(tmp_path / name)] == [
                ("00000", "sun", {"prompt": "sun"}),
                ("00001", "moon", {"prompt": "moon"}),
            ]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.jsonl", "{", "can't be read"),
            ("a.jsonl", '{"text": "sun"}', "every line needs a prompt; got"),
            ("a.jsonl", '{"prompt": " "}', "is empty: 00000"),
            ("a.txt", "\n", "there are no prompts"),
            ("a.json", '["sun"]', r"must end in \.txt or \.jsonl, or have no suffix; got \.json"),
            ("a.txt", b"\xff\xfe\xfd", "can't be read"),
        ],
    )
    def test_mistakes(self, tmp_path, name, content, message):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
        with pytest.raises(EvaluationError, match=message):
            read_prompts(path)


class TestFolders:
    def test_geneval(self, tmp_path):
        folder = picture_folder(tmp_path / "m.jsonl", tmp_path / "out", 4)
        prompt = Prompt("00003", "a sun", {"prompt": "a sun", "tag": "x"})
        assert not folder.is_done(prompt)
        folder.write(prompt, plain(*COLORS))
        root = tmp_path / "out" / "00003"
        assert sorted(path.name for path in (root / "samples").iterdir()) == [f"{i:04d}.png" for i in range(4)]
        assert json.loads((root / "metadata.jsonl").read_text()) == prompt.metadata
        assert Image.open(root / "grid.png").size == (16, 16)
        assert folder.is_done(prompt) and [path.name for path in (tmp_path / "out").iterdir()] == ["00003"]
        assert [np.asarray(p)[0, 0].tolist() for p in folder.read(prompt)] == [
            [255, 0, 0],
            [0, 255, 0],
            [0, 0, 255],
            [255, 255, 255],
        ]
        (root / "samples" / "0002.png").unlink()
        assert not folder.is_done(prompt)
        folder.write(prompt, plain(*COLORS))
        assert folder.is_done(prompt)

    def test_dpg_bench(self, tmp_path):
        (tmp_path / "prompts").mkdir()
        folder = picture_folder(tmp_path / "prompts", tmp_path / "out", 4)
        prompt = Prompt("part_1.2", "a sun")
        folder.write(prompt, plain(*COLORS))
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["part_1.2.png"] and folder.is_done(prompt)
        square = np.asarray(Image.open(tmp_path / "out" / "part_1.2.png"))
        # Left to right, then down, without gaps.
        assert square.shape == (16, 16, 3)
        assert square[0, 7].tolist() == [255, 0, 0] and square[0, 8].tolist() == [0, 255, 0]
        assert square[8, 0].tolist() == [0, 0, 255] and square[15, 15].tolist() == [255, 255, 255]
        assert [np.asarray(picture).tolist() for picture in folder.read(prompt)] == [
            np.asarray(picture).tolist() for picture in plain(*COLORS)
        ]
        with pytest.raises(EvaluationError, match="takes 4 pictures of each prompt; got 2"):
            picture_folder(tmp_path / "prompts", tmp_path / "out", 2)

    def test_tiles(self):
        assert tile(plain("red")).size == (8, 8)
        assert tile(plain(*COLORS[:3])).size == (16, 16)


class TestDrawing:
    def test_pictures_are_the_pipelines(self, painter):
        drawn = list(draw(painter, ["sun", "moon", "sun"], [3, 4, 9], 2, top_k=5))
        for picture, prompt, seed in zip(drawn, ["sun", "moon", "sun"], [3, 4, 9], strict=True):
            assert np.array_equal(np.asarray(picture), np.asarray(painter(prompt, seed=seed, top_k=5)))
        codes = list(draw(painter, ["moon"], [4], 2, "latent", top_k=5))
        assert np.array_equal(np.asarray(painter.decode(codes[0][None])[0]), np.asarray(drawn[1]))

    def test_mistakes(self, painter):
        with pytest.raises(EvaluationError, match="top_k"):
            list(draw(painter, ["sun"], [0], 1, top_k=[-1]))

    def test_what_is_there_is_not_drawn_again(self, painter, tmp_path, monkeypatch):
        prompts = [Prompt(f"{i:05d}", text, {"prompt": text}) for i, text in enumerate(["sun", "moon", "owl"])]
        asked = []

        def judge(text, pictures):
            asked.append(text)
            return {"value": [float(np.asarray(picture).mean()) for picture in pictures]}

        def run(folder: str) -> dict:
            parts = Parts(tmp_path / f"{folder}.parts", {}, PartialState(cpu=True))
            target = picture_folder(tmp_path / "m.jsonl", tmp_path / folder, 2)
            draw_and_judge(painter, prompts, target, [judge], parts, 10, 3, lambda *state: None)
            records, _ = parts.collect()
            parts.close()
            return records

        whole = run("whole")
        assert asked == ["sun", "moon", "owl"]
        target = picture_folder(tmp_path / "m.jsonl", tmp_path / "whole", 2)
        # Picture j of prompt i has the seed 10 + 2 i + j.
        for prompt, seeds in zip(prompts, ([10, 11], [12, 13], [14, 15]), strict=True):
            for picture, seed in zip(target.read(prompt), seeds, strict=True):
                assert np.array_equal(np.asarray(picture), np.asarray(painter(prompt.text, seed=seed)))

        (tmp_path / "half" / "00001").parent.mkdir()
        (tmp_path / "whole" / "00001").rename(tmp_path / "half" / "00001")
        before = (tmp_path / "half" / "00001" / "samples" / "0000.png").stat().st_mtime_ns
        assert run("half") == whole
        assert (tmp_path / "half" / "00001" / "samples" / "0000.png").stat().st_mtime_ns == before
        asked.clear()
        assert run("half") == whole and asked == []


class TestJudges:
    def test_agreement(self):
        texts = torch.eye(3)
        pictures = torch.tensor([[0.8, 0.6, 0.0], [0.6, 0.8, 0.0]])
        is_nearest, cosines = agreement(pictures, texts, torch.tensor([[0, 1, 2], [0, 1, 2]]))
        assert is_nearest.tolist() == [True, False] and cosines.tolist() == pytest.approx([0.8, 0.6])
        # Among fewer candidates the second finds its own, too.
        assert agreement(pictures, texts, torch.tensor([[0, 2], [0, 2]]))[0].all()

    def test_a_clip_knows_its_names(self, scorer):
        prompts = ["rocket", "owl", "red apple", "owl", "sunflower"]
        judge = ClipJudge(scorer, prompts)
        assert len(judge.texts) == 4
        for name, prompt in {"owl-openmoji": "owl", "rocket-twemoji": "rocket", "red-apple-noto": "red apple"}.items():
            picture = Image.open(FIXTURES / f"{name}.png").convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
            record = judge(prompt, [picture, picture])
            assert record["is_nearest"] == [True, True] and record["cosine"][0] > 0.4, name
            larger = judge(prompt, [picture.resize((200, 200))])
            assert larger["cosine"][0] == pytest.approx(record["cosine"][0], abs=0.1)
            assert judge("sunflower", [picture])["is_nearest"] == [False]

    def test_reward(self, monkeypatch):
        model = SimpleNamespace(score=lambda prompt, picture: len(prompt) + picture.width)
        module = SimpleNamespace(load=lambda name, device: model)
        monkeypatch.setitem(sys.modules, "ImageReward", module)
        assert RewardJudge(torch.device("cpu"))("sun", plain("red")) == {"image_reward": [11.0]}
        monkeypatch.setitem(sys.modules, "ImageReward", None)
        with pytest.raises(EvaluationError, match="ImageReward can't be imported"):
            RewardJudge(torch.device("cpu"))

    def test_summary(self):
        records = {
            "a": {"cosine": [0.5, -0.1], "is_nearest": [True, False], "image_reward": [1.0, 2.0]},
            "b": {"cosine": [0.3, 0.1], "is_nearest": [True, True], "image_reward": [0.0, 1.0]},
        }
        assert summarize(records, {}) == {
            "metrics": {"clip_score": pytest.approx(22.5), "clip_accuracy": 0.75, "image_reward": 1.0},
            "prompts": 2,
        }
