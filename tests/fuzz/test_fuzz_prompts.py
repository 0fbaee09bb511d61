# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Prompts from anywhere: text through and through, however long, whatever it spells."""

from pathlib import Path
from typing import Any

import pytest
from fuzzing import TEXTS, fuzz, fuzz_models
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import tiny_text_to_image
from transformers import AutoProcessor

from transformers_tokenflow import TextToImagePipeline, TokenFlowProcessor
from transformers_tokenflow.commands.contact_sheet import draw_grid
from transformers_tokenflow.commands.generation import Drawn
from transformers_tokenflow.commands.pictures import FileNames

SMALL_GENERATOR = Path(__file__).parents[2] / "hub_cards" / "tokenflow-tiny-text-to-image"
SPECIAL = ["<s>", "</s>", "<unk>", "[PAD]", "<pad>", "<img>", "</img>", "<image>", "<|im_end|>", "<vq_token_7>"]
# Texts with what looks like special tokens among what a user types.
PROMPTS = st.lists(st.one_of(TEXTS, st.sampled_from(SPECIAL)), max_size=6).map("".join)


@pytest.fixture(scope="module")
def painter() -> TextToImagePipeline:
    model, processor = tiny_text_to_image()
    return TextToImagePipeline(model=model, processor=processor, task="text-to-image", device="cpu")


@pytest.fixture(scope="module", params=["letters", "small generator"])
def processor(request: pytest.FixtureRequest) -> TokenFlowProcessor:
    return tiny_text_to_image()[1] if request.param == "letters" else AutoProcessor.from_pretrained(SMALL_GENERATOR)


def check_prompt(processor: TokenFlowProcessor, text: str) -> None:
    (row,) = processor(text=text)["input_ids"]
    tokenizer = processor.tokenizer
    start = tokenizer(processor.image_start, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert row[-len(start) :] == start
    assert len(row) <= processor.max_prompt_length + len(start)
    # What the vocabulary does not have becomes the unknown token, which nobody can type.
    forbidden = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert not forbidden & set(row[1:])


@fuzz
@given(text=PROMPTS)
def test_prompts(text: str, processor: TokenFlowProcessor):
    try:
        text.encode()
    except UnicodeEncodeError:
        with pytest.raises(ValueError, match="must be Unicode"):
            processor(text=text)
    else:
        check_prompt(processor, text)


@pytest.mark.parametrize("text", ["a" * 2_000_000, "ä \0" * 700_000, "<s></s>[PAD]" * 200_000, "\n" * 2_000_000])
def test_megabytes(text: str, processor: TokenFlowProcessor):
    check_prompt(processor, text)


@fuzz
@given(value=st.one_of(st.none(), st.integers(), st.binary(), st.lists(st.one_of(PROMPTS, st.none(), st.integers()))))
def test_what_is_no_text(value: Any, processor: TokenFlowProcessor):
    try:
        rows = processor(text=value)["input_ids"]
    except ValueError:
        return
    assert len(rows) == len(value) and all(isinstance(text, str) for text in value)


@fuzz_models
@given(text=PROMPTS.filter(str.isprintable))
def test_pictures_of_prompts(text: str, painter: TextToImagePipeline):
    codes = painter(text, seed=0, output_type="latent")
    assert codes.shape == (21,) and 0 <= codes.min() <= codes.max() < 48


@fuzz
@given(texts=st.lists(TEXTS, max_size=8))
def test_names_of_files_stay_in_their_folder(texts: list[str], tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    for names in (texts, [f"{Drawn(text, 3, None, None).file_name}.png" for text in texts]):
        given_names = FileNames(folder)
        paths = [given_names.path_for(name) for name in names]
        assert all(path.parent == folder and path.resolve().parent == folder.resolve() for path in paths)
        assert len({path.name.casefold() for path in paths}) == len(paths)
        assert all(path.suffix == ".png" and len(path.name.encode()) < 255 for path in paths)


@fuzz
@given(captions=st.lists(PROMPTS, min_size=1, max_size=3))
def test_captions(captions: list[str]):
    pictures = [Image.new("RGB", (64, 64))] * len(captions)
    assert draw_grid(pictures, captions).size > (64, 64)


@pytest.mark.parametrize("caption", ["x" * 1_000_000, "word " * 200_000, "\u200b" * 1_000_000])
def test_captions_of_megabytes(caption: str):
    assert draw_grid([Image.new("RGB", (64, 64))], [caption]).width > 64
