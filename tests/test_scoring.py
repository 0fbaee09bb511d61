# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Scores of an open_clip model: the small teacher."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel

pytest.importorskip("open_clip")
import open_clip  # noqa: E402

from transformers_tokenflow import OpenClipScorer, scoring  # noqa: E402

CARDS = Path(__file__).parents[1] / "hub_cards"
TEACHER = CARDS / "tokenflow-tiny-teacher"


@pytest.fixture(scope="module")
def scorer() -> OpenClipScorer:
    return OpenClipScorer(f"local-dir:{TEACHER}")


def heart() -> Image.Image:
    picture = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((10, 14, 33, 37), fill="red")
    draw.ellipse((31, 14, 54, 37), fill="red")
    draw.polygon([(12, 32), (52, 32), (32, 56)], fill="red")
    return picture


def circle(color: str) -> Image.Image:
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).ellipse((6, 6, 58, 58), fill=color)
    return picture


def test_score_is_the_cosine_that_the_clip_was_trained_on(scorer):
    """The mean of the teacher's projected features is its embedding of the picture."""
    model = open_clip.create_model(f"local-dir:{TEACHER}").eval()
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        embeddings = model.encode_image(pixels, normalize=True)
        model.visual.output_tokens = True
        features = model.visual(pixels)[1] @ model.visual.proj
        texts = model.encode_text(scorer.tokenizer(["a red apple", "sun"]), normalize=True)
    torch.testing.assert_close(scorer(features, ["a red apple", "sun"]), (embeddings * texts).sum(dim=-1))


def test_a_picture_goes_with_its_name(scorer):
    """Through the small tokenizer: the features are those that its semantic half remembers."""
    tokenizer = AutoModel.from_pretrained(CARDS / "tokenflow-tiny")
    processor = AutoImageProcessor.from_pretrained(CARDS / "tokenflow-tiny")
    pictures = {"red heart": heart(), "blue circle": circle("dodgerblue"), "green circle": circle("limegreen")}
    inputs = processor(images=list(pictures.values()), return_tensors="pt")
    with torch.no_grad():
        features = tokenizer.decode(tokenizer.encode(**inputs).codes).semantic_features
    for picture, name in zip(features, pictures, strict=True):
        names = [name, *(other for other in [*pictures, "bicycle", "violin", "pizza"] if other != name)]
        scores = scorer(picture.expand(len(names), -1, -1), names)
        assert scores.argmax() == 0, dict(zip(names, scores.tolist(), strict=True))


def test_embeddings(scorer):
    embeddings = scorer.embed(["sun", "moon", "sun"])
    assert embeddings.shape == (3, 128) and embeddings.dtype == torch.float32
    assert torch.equal(embeddings[0], embeddings[2]) and not torch.equal(embeddings[0], embeddings[1])
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(3))


def test_texts_are_embedded_once(monkeypatch):
    scorer, calls = OpenClipScorer(str(TEACHER)), []
    encode = scorer.model.encode_text
    monkeypatch.setattr(
        scorer.model, "encode_text", lambda ids, **options: calls.append(len(ids)) or encode(ids, **options)
    )
    monkeypatch.setattr(scoring, "CACHE_SIZE", 2)
    scorer.embed(["a", "b", "a"])
    scorer.embed(["b", "c"])
    scorer.embed(["b", "c"])
    assert calls == [2, 1] and list(scorer._embeddings) == ["b", "c"]
    assert scorer.embed(["a", "b", "c", "d"]).shape == (4, 128)


class TestPictures:
    def test_are_normalised_as_the_clip_wants_them(self):
        scorer = OpenClipScorer(str(TEACHER))
        scorer.model.visual.image_mean, scorer.model.visual.image_std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
        pixels = torch.rand(2, 3, 64, 64) * 2 - 1
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
        with torch.no_grad():
            expected = scorer.model.encode_image(((pixels + 1) / 2 - mean) / std)
        torch.testing.assert_close(scorer.embed_pictures(pixels), expected)
        torch.testing.assert_close(scorer.embed_pictures(pixels.half()), expected, atol=0.02, rtol=0)

    def test_are_resized(self, scorer):
        large = torch.nn.functional.interpolate(torch.rand(1, 3, 64, 64) * 2 - 1, 128, mode="nearest")
        small = torch.nn.functional.interpolate(large, 64, mode="bicubic", antialias=True).clamp(-1, 1)
        torch.testing.assert_close(scorer.embed_pictures(large), scorer.embed_pictures(small), atol=1e-3, rtol=1e-3)

    def test_go_with_their_names(self, scorer):
        texts = scorer.embed(["red heart", "violin", "rocket"])
        pixels = torch.from_numpy(np.array(heart())).permute(2, 0, 1)[None] / 127.5 - 1
        assert (F.normalize(scorer.embed_pictures(pixels), dim=-1) @ texts.T).argmax() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_of_half_precision(scorer, dtype):
    features = torch.randn(2, 4, 128)
    scores = scorer(features.to(dtype), ["a", "b"])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, scorer(features, ["a", "b"]), atol=0.02, rtol=0)
    assert torch.equal(scorer(features * 9, ["a", "b"]).argsort(), scorer(features, ["a", "b"]).argsort())


def test_mistakes(scorer):
    with pytest.raises(ValueError, match="of 1 pictures, as many as prompts; got \\(2, 4, 128\\)"):
        scorer(torch.zeros(2, 4, 128), ["a"])
    with pytest.raises(ValueError, match="features of width 12, but this CLIP 128: score with the teacher"):
        scorer(torch.ones(1, 4, 12), ["a"])
    with pytest.raises(RuntimeError):
        OpenClipScorer("no-such-model")


def test_normalised_scores_of_no_features(scorer):
    assert scorer(torch.zeros(1, 4, 128), ["a"]).item() == 0 and F.normalize(torch.zeros(1, 3)).sum() == 0
