"""The shipped tiny teacher: loads offline, embeds by its patches, and knows a few pictures."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

open_clip = pytest.importorskip("open_clip")

from training.retrieval import cross_style_retrieval_accuracy  # noqa: E402

ROOT = Path(__file__).parents[1]
TEACHER = ROOT / "hub_cards" / "tokenflow-tiny-teacher"
PICTURES = ROOT / "tests" / "fixtures" / "pictures"
NAMES = ["red apple", "rocket", "owl", "banana", "flag: france", "waving hand", "grinning face", "key", "sun", "car"]
needs_teacher = pytest.mark.skipif(
    not (TEACHER / "open_clip_model.safetensors").exists(), reason="the tiny teacher is not trained"
)


@pytest.fixture(scope="module")
def teacher() -> tuple:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{TEACHER}")
        return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{TEACHER}")


@needs_teacher
def test_weights_are_small() -> None:
    assert (TEACHER / "open_clip_model.safetensors").stat().st_size <= 4_000_000


@needs_teacher
def test_input_is_normalised_to_one(teacher: tuple) -> None:
    _, preprocess, _ = teacher
    white, black = (preprocess(Image.new("RGB", (64, 64), colour)) for colour in ("white", "black"))
    assert white.shape == (3, 64, 64)
    assert torch.all(white == 1.0) and torch.all(black == -1.0)


@needs_teacher
def test_embedding_is_the_mean_of_the_projected_patches(teacher: tuple) -> None:
    model, *_ = teacher
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        hidden = model.visual.transformer(model.visual._embeds(pictures))
        patches = model.visual.ln_post(hidden)[:, 1:] @ model.visual.proj
        embedding = model.encode_image(pictures)
    assert patches.shape == (2, 64, 128)
    torch.testing.assert_close(embedding, patches.mean(dim=1), atol=1e-5, rtol=1e-4)


@needs_teacher
def test_tokenizer_frames_and_pads_names(teacher: tuple) -> None:
    model, _, tokenizer = teacher
    text = tokenizer(["red apple", "Red Apple", "kiss: woman, man, medium-light skin tone, medium-dark skin tone"])
    assert text.shape == (3, 24)
    assert torch.equal(text[0], text[1]) and text[0, 0] == 2 and text[0, -1] == 0
    assert (text == model.text_eos_id).sum(dim=1).tolist() == [1, 1, 1]


@needs_teacher
@pytest.mark.parametrize("picture", ["red-apple-noto", "red-apple-openmoji", "rocket-twemoji", "owl-openmoji"])
def test_zero_shot_names_the_picture(teacher: tuple, picture: str) -> None:
    model, preprocess, tokenizer = teacher
    with Image.open(PICTURES / f"{picture}.png") as image, torch.no_grad():
        features = model.encode_image(preprocess(image)[None], normalize=True)
        names = model.encode_text(tokenizer(NAMES), normalize=True)
    assert NAMES[(features @ names.T).argmax()] == picture.rsplit("-", 1)[0].replace("-", " ")


@needs_teacher
def test_vision_tower_has_the_parts_of_transformers_clip(teacher: tuple) -> None:
    visual = teacher[0].visual
    assert visual.conv1.bias is None and visual.class_embedding.shape == (128,)
    assert visual.pool_type == "avg" and not visual.final_ln_after_pool
    assert visual.positional_embedding.shape == (65, 128) and visual.proj.shape == (128, 128)
    assert isinstance(visual.transformer.resblocks[0].mlp.gelu, torch.nn.GELU)


def test_retrieval_looks_only_at_other_styles() -> None:
    features = F.one_hot(torch.tensor([0, 0, 0, 1, 1, 2])).float()
    names = ["apple", "apple", "pear", "pear", "plum", "alone"]
    styles = ["noto", "twemoji", "noto", "twemoji", "noto", "noto"]
    assert cross_style_retrieval_accuracy(features, names, styles) == pytest.approx(2 / 4)
    assert cross_style_retrieval_accuracy(features[:2] * 5, names[:2], styles[:2]) == 1.0


def test_retrieval_reports_wrong_input() -> None:
    with pytest.raises(ValueError, match="equal counts"):
        cross_style_retrieval_accuracy(torch.eye(2), ["a"], ["noto", "twemoji"])
    with pytest.raises(ValueError, match="namesake"):
        cross_style_retrieval_accuracy(torch.eye(2), ["a", "b"], ["noto", "twemoji"])
