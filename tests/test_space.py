# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
import importlib.util
import re
import threading
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from PIL import Image
from tiny_models import tiny_model, tiny_talker, tiny_text_to_image

from transformers_tokenflow import TextToImagePipeline, TokenFlowImageProcessor
from transformers_tokenflow.commands import CommandError
from transformers_tokenflow.commands.describing import Describer
from transformers_tokenflow.commands.tokenizers import Tokenizer

SPACE = Path(__file__).parents[1] / "hub_cards" / "space"


@pytest.fixture(scope="module")
def tabs() -> ModuleType:
    """The Space's functions, as a module."""
    spec = importlib.util.spec_from_file_location("space_tabs", SPACE / "tabs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def painter() -> TextToImagePipeline:
    model, processor = tiny_text_to_image()
    return TextToImagePipeline(model=model, processor=processor, task="text-to-image")


@pytest.fixture(scope="module")
def describer() -> Describer:
    return Describer("tiny", *tiny_talker())


def tiny_tokenizer(kind: str = "clip") -> Tokenizer:
    processor = TokenFlowImageProcessor(size={"shortest_edge": 32})
    return Tokenizer("tiny", tiny_model(kind), processor, torch.device("cpu"))


class TestUploads:
    def test_a_picture(self, tabs):
        assert tabs.read_upload(str(SPACE / "pictures" / "cat-photo.jpg")).size == (256, 256)

    def test_no_picture(self, tabs, tmp_path):
        path = tmp_path / "notes.png"
        path.write_text("no picture")
        with pytest.raises(CommandError, match="choose a picture first"):
            tabs.read_upload(None)
        with pytest.raises(CommandError, match="is no picture") as caught:
            tabs.read_upload(str(path))
        assert str(tmp_path) not in str(caught.value)

    def test_a_damaged_picture(self, tabs, tmp_path):
        path = tmp_path / "half.png"
        path.write_bytes((SPACE / "pictures" / "butterfly-noto.png").read_bytes()[:2000])
        with pytest.raises(CommandError, match="can't be read"):
            tabs.read_upload(str(path))

    def test_a_large_picture_is_refused_before_it_is_decoded(self, tabs, tmp_path, monkeypatch):
        path = tmp_path / "large.png"
        Image.new("1", (8000, 6000)).save(path)
        monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it was decoded"))
        with pytest.raises(CommandError, match="8000×6000 pixels; at most 40 million"):
            tabs.read_upload(str(path))


class TestTokens:
    def test_every_prefix_is_what_its_codes_decode_to(self, tabs):
        tokenizer = tiny_tokenizer()
        picture = Image.open(SPACE / "pictures" / "cat-photo.jpg")
        encoded = tabs.encode(picture, tokenizer)
        pixel_values = tokenizer.processor(images=picture, return_tensors="pt").pixel_values
        codes = tokenizer.model.encode(pixel_values).codes
        for prefix, length in zip(encoded.prefixes, [1, 5, 21], strict=True):
            (expected,) = tokenizer.processor.postprocess(tokenizer.model.decode(codes[:, :length]).pixel_values)
            assert prefix.resize((32, 32), Image.Resampling.NEAREST).tobytes() == expected.tobytes()
        assert encoded.original.size == encoded.prefixes[-1].size == (320, 320)

    def test_facts(self, tabs):
        facts = tabs.encode(Image.new("RGB", (50, 40), "red"), tiny_tokenizer()).facts
        assert [re.search(r"(\d+) of 21 tokens, (\d+) bytes", line).groups() for line in facts] == [
            ("1", "1"), ("5", "4"), ("21", "16"),
        ]  # fmt: skip
        assert all(re.search(r"PSNR \d+\.\d dB", line) for line in facts)

    @pytest.mark.parametrize(("kind", "codebooks"), [("clip", 2), ("pixel", 1)])
    def test_a_map_for_each_codebook(self, tabs, kind, codebooks):
        maps = tabs.encode(Image.new("RGB", (32, 32), "red"), tiny_tokenizer(kind)).maps
        assert len(maps) == 3
        assert all(len(scale) == codebooks and scale[0].size == (320, 320) for scale in maps)


class TestDrawing:
    SETTINGS = {"guidance_scale": 2.0, "top_k": "20, 1", "top_p": "0.8, 0"}

    def test_the_picture_grows_into_the_pipeline_s(self, tabs, painter):
        steps = list(tabs.draw(painter, " an owl ", 3, **self.SETTINGS))
        assert [len(pictures) for pictures in steps] == [1, 2, 3]
        assert [name for _, name in steps[-1]] == ["1×1", "2×2", "4×4"]
        expected = painter("an owl", seed=3, guidance_scale=2.0, top_k=[20, 1], top_p=[0.8, 0.0])
        assert steps[-1][-1][0].resize((32, 32), Image.Resampling.NEAREST).tobytes() == expected.tobytes()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"prompt": "  "}, "what to draw"),
            ({"top_k": "many"}, "top-k takes numbers .* got 'many'"),
            ({"top_k": ",".join("1" * 9)}, "8 numbers, one for each pass"),
            ({"top_p": "2"}, r"top_p must lie in \[0, 1\]"),
            ({"top_k": "20,1", "top_p": "0.1,0.2,0.3"}, "need an entry per pass"),
        ],
    )
    def test_mistakes(self, tabs, painter, change, message):
        with pytest.raises(CommandError, match=message):
            list(tabs.draw(painter, **{"prompt": "an owl", "seed": 0, **self.SETTINGS, **change}))

    def test_stops_when_nobody_looks_any_more(self, tabs, painter):
        threads = threading.active_count()
        drawing = tabs.draw(painter, "an owl", 0, **self.SETTINGS)
        next(drawing)
        drawing.close()
        assert threading.active_count() == threads


class TestAnswers:
    PICTURE = Image.new("RGB", (32, 32), "red")

    def test_grows_into_the_whole_answer(self, tabs, describer):
        said = list(tabs.answer(describer, self.PICTURE, "what is it", 12))
        assert len(set(said)) > 1 and all(
            longer.startswith(shorter) for shorter, longer in zip(said, said[1:], strict=False)
        )
        model, processor = describer.model, describer.processor
        content = [{"type": "image"}, {"type": "text", "text": "what is it"}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=[prompt], images=[self.PICTURE], return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
        assert said[-1] == processor.decode(output, skip_special_tokens=True).strip()

    def test_asks_the_default_question(self, tabs, describer, monkeypatch):
        asked = []
        template = describer.processor.apply_chat_template
        monkeypatch.setattr(
            describer.processor, "apply_chat_template", lambda chat, **kw: asked.append(chat) or template(chat, **kw)
        )
        list(tabs.answer(describer, self.PICTURE, " ", 1))
        assert asked[0][0]["content"][1]["text"] == describer.processor.default_question

    def test_a_question_that_the_model_refuses(self, tabs, describer):
        with pytest.raises(CommandError, match="the number of <image> tokens"):
            list(tabs.answer(describer, self.PICTURE, "what is <image>", 1))

    def test_stops_when_nobody_reads_any_more(self, tabs, describer):
        answer = tabs.answer(describer, self.PICTURE, "what is it", 100_000)
        next(answer)
        answer.close()  # waits for the thread


class TestFollow:
    def test_other_errors_come_through(self, tabs):
        def work(stopped):
            raise RuntimeError("broken")

        with pytest.raises(RuntimeError, match="broken"):
            list(tabs.follow(work, iter(()), lambda: None))


class TestCard:
    def test_metadata(self):
        _, metadata, text = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        fields = yaml.safe_load(metadata)
        assert fields["sdk"] == "gradio" and (SPACE / fields["app_file"]).is_file()
        assert len(fields["short_description"]) <= 60
        constraints = (SPACE.parents[1] / "constraints-space.txt").read_text(encoding="utf-8")
        assert f"gradio=={fields['sdk_version']}\n" in constraints
        assert all((SPACE / link).exists() for link in re.findall(r"\]\((?!http)([^)]+)\)", text))
