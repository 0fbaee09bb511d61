# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The small generator's training data: rows, captions, colours, text tokenizer."""

from collections import Counter

import datasets
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import tiny_model
from transformers import AutoTokenizer

from training.prepare_captions import (
    IMAGE_START,
    SPECIAL,
    main,
    main_colours,
    make_text_tokenizer,
    name_colour,
    select_rows,
    with_article,
    write_captions,
)
from transformers_tokenflow import TokenFlowImageProcessor, TokenFlowProcessor

CAPTIONS = ["red apple", "a red apple, noto style", "an owl", "flag: japan", "piñata"]


def emoji(rows: list[tuple[str, str, str]]) -> datasets.Dataset:
    """Rows of (name, base name, style) with pictures, as `training.prepare_emoji` writes them."""
    features = {
        "image": datasets.Image(),
        **{name: datasets.Value("string") for name in ("name", "base_name", "style", "category")},
    }
    columns = {
        "image": [Image.new("RGB", (32, 32), (200, 20, 20)) for _ in rows],
        "name": [row[0] for row in rows],
        "base_name": [row[1] for row in rows],
        "style": [row[2] for row in rows],
        "category": ["objects"] * len(rows),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_base_names_and_one_variant_of_each_are_kept():
    rows = [("wave", "wave", "noto"), ("owl", "owl", "twemoji"), ("sunset", "sunset", "photo"), ("cat", "cat", "stamp")]
    rows += [(f"wave: {tone}", "wave", style) for tone in ("light", "dark") for style in ("noto", "openmoji")]
    selected = select_rows(emoji(rows))
    assert "photo" not in selected["style"] and "stamp" not in selected["style"]
    assert Counter(zip(selected["base_name"], selected["style"], strict=True)) == {
        ("wave", "noto"): 2,
        ("owl", "twemoji"): 1,
        ("wave", "openmoji"): 1,
    }
    assert selected["name"] == select_rows(emoji(rows))["name"]


def test_plain_names_are_most_frequent():
    captions = write_captions("red apple", "twemoji", "food-drink", ["red", "green"])
    counts = Counter(captions)
    assert counts.most_common(1)[0][0] == "red apple" and counts["red apple"] > 3 * counts.most_common(2)[1][1]
    assert {"a red apple", "a red apple, twemoji style", "red apple in the style of twemoji"} <= counts.keys()
    assert {"twemoji emoji of red apple", "red apple, food-drink", "a mostly red red apple"} <= counts.keys()
    assert "red apple, red and green" in counts
    assert not any("mostly" in caption for caption in write_captions("owl", "noto", "animals", []))


@pytest.mark.parametrize(
    "name, expected", [("owl", "an owl"), ("red apple", "a red apple"), ("1st place", "1st place"), ("", "")]
)
def test_articles(name, expected):
    assert with_article(name) == expected


@pytest.mark.parametrize(
    "colour, name",
    [
        ((220, 30, 30), "red"),
        ((255, 140, 0), "orange"),
        ((255, 220, 50), "yellow"),
        ((40, 160, 60), "green"),
        ((30, 90, 220), "blue"),
        ((140, 50, 200), "purple"),
        ((255, 160, 180), "pink"),
        ((110, 70, 40), "brown"),
        ((10, 10, 10), "black"),
        ((250, 250, 250), "white"),
        ((128, 128, 130), "grey"),
    ],
)
def test_colours_have_their_everyday_names(colour, name):
    assert name_colour(*colour) == name


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_every_colour_has_a_name(colour):
    assert name_colour(*colour).isalpha()


def test_main_colours_leave_the_background_out():
    picture = Image.new("RGB", (64, 64), "white")
    assert main_colours(picture) == []
    picture.paste((220, 30, 30), (0, 0, 30, 30))
    assert main_colours(picture) == ["red"]
    picture.paste((30, 90, 220), (0, 0, 15, 30))
    picture.paste((220, 30, 30), (15, 0, 50, 30))
    assert main_colours(picture) == ["red", "blue"]


@pytest.fixture
def text_tokenizer(tmp_path):
    make_text_tokenizer(CAPTIONS).save_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def test_image_start_is_one_token_and_words_are_words(text_tokenizer):
    assert len(text_tokenizer(IMAGE_START, add_special_tokens=False).input_ids) == 1
    ids = text_tokenizer("A Red apple").input_ids
    assert text_tokenizer.convert_ids_to_tokens(ids) == ["[BOS]", "a", "red", "apple"]
    assert text_tokenizer.unk_token_id not in text_tokenizer("Unseen words, spelt <out> [PAD] & so on!").input_ids
    assert text_tokenizer.pad_token_id is not None and text_tokenizer.padding_side == "left"


@given(
    words=st.lists(st.sampled_from([*SPECIAL.values(), "apple", "[", "]"]), max_size=6), glue=st.sampled_from(["", " "])
)
def test_special_tokens_that_a_user_types_stay_text(words, glue):
    tokenizer = make_text_tokenizer(CAPTIONS)
    special = set(tokenizer.convert_tokens_to_ids(list(SPECIAL.values())))
    assert not special & set(tokenizer(glue.join(words), add_special_tokens=False).input_ids)


def test_same_tokenizer_every_time_and_no_larger_than_asked():
    vocabularies = [make_text_tokenizer(order, 145).get_vocab() for order in (CAPTIONS, CAPTIONS[::-1])]
    assert vocabularies[0] == vocabularies[1] and len(vocabularies[0]) == 145


def test_prompts_of_the_processor_fit(text_tokenizer):
    processor = TokenFlowProcessor(TokenFlowImageProcessor(size={"shortest_edge": 32}), text_tokenizer)
    prompts = processor(text=["a red apple", ""], return_tensors="pt")
    tokens = [text_tokenizer.convert_ids_to_tokens(row) for row in prompts.input_ids]
    assert tokens == [["[BOS]", "a", "red", "apple", "<img>"], ["[PAD]", "[PAD]", "[PAD]", "[BOS]", "<img>"]]


def test_codes_and_captions_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tiny_model().save_pretrained(tmp_path / "tokenizer")
    TokenFlowImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / "tokenizer")
    for split in ("train", "heldout_pairs"):
        rows = emoji([("red apple", "red apple", style) for style in ("noto", "twemoji", "photo")])
        (tmp_path / "data").mkdir(exist_ok=True)
        rows.to_parquet(tmp_path / "data" / f"{split}-00000.parquet")
    splits = "".join(f"  - {{split: {name}, path: {name}-*.parquet}}\n" for name in ("train", "heldout_pairs"))
    (tmp_path / "data" / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n")
    for _ in range(2):
        main(tmp_path / "data", tmp_path / "out", str(tmp_path / "tokenizer"))
    table = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert [row["style"] for row in table] == ["noto", "twemoji"]
    assert all(len(row["codes"]) == 21 and row["text"][0] == "red apple" for row in table)
    assert "a mostly red red apple" in table[0]["text"]
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out" / "text-tokenizer")("red apple").input_ids) == 3
