# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The generator's data: captions drawn, cut and dropped; codes and pictures, in memory and streamed."""

import itertools
import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_config, tiny_processor
from tiny_text_to_image_training import code_rows
from tiny_training import gradient_pictures

from transformers_tokenflow.trainers.code_data import (
    CaptionTransform,
    CodeDataset,
    TextToImageCollator,
    captioned,
    first_sentence,
)
from transformers_tokenflow.trainers.data import PictureTransform

CONFIG = tiny_config()
PLAIN = CaptionTransform(train=False)
CAPTION = "A red apple. It lies on a table."


def share(transform: CaptionTransform, wanted: str, captions: Any = CAPTION, count: int = 4000) -> float:
    return sum(transform(captions, random.Random(seed)) == wanted for seed in range(count)) / count


def test_captions_are_dropped_and_cut_as_often_as_they_should():
    transform = CaptionTransform(text_dropout=0.1, first_sentence_probability=0.2)
    assert share(transform, "") == pytest.approx(0.1, abs=0.015)
    assert share(transform, "A red apple.") == pytest.approx(0.9 * 0.2, abs=0.02)
    assert share(transform, CAPTION) == pytest.approx(0.9 * 0.8, abs=0.02)
    assert share(CaptionTransform(), CAPTION) == 1.0
    assert share(CaptionTransform(1.0, 1.0), "") == 1.0
    assert share(CaptionTransform(1.0, 1.0, train=False), CAPTION) == 1.0


def test_one_of_several_captions_is_drawn_and_the_first_evaluated():
    captions = ["apple", "apple", "a fruit"]
    assert share(CaptionTransform(), "apple", captions) == pytest.approx(2 / 3, abs=0.03)
    assert share(PLAIN, "apple", captions) == 1.0


@pytest.mark.parametrize("captions", [None, []])
def test_no_caption_is_no_text(captions):
    assert CaptionTransform()(captions, random.Random(0)) == ""


@pytest.mark.parametrize("captions", [3, ["a", None], {"text": "a"}])
def test_captions_must_be_texts(captions):
    with pytest.raises(ValueError, match="a caption is a text, or a list of texts"):
        CaptionTransform()(captions, random.Random(0))


@pytest.mark.parametrize(
    "caption, expected",
    [
        (CAPTION, "A red apple."),
        ("Really? Yes.", "Really?"),
        ("no full stop", "no full stop"),
        ("v1.5 of it. More", "v1.5 of it."),
        ("  spaces. more", "spaces."),
        ("红苹果。在桌子上。", "红苹果。"),
        ("", ""),
    ],
)
def test_first_sentence(caption, expected):
    assert first_sentence(caption) == expected


@given(st.text(max_size=60))
def test_first_sentence_is_a_beginning_and_its_own_first_sentence(caption):
    cut = first_sentence(caption)
    assert caption.strip().startswith(cut) and first_sentence(cut) == cut
    assert bool(cut) == bool(caption.strip())


def test_codes_in_memory_are_small_and_exact():
    rows = code_rows(16)
    dataset = captioned(rows, CONFIG, PLAIN)
    assert isinstance(dataset, CodeDataset) and len(dataset) == 16
    assert dataset.codes.dtype == np.int16 and dataset.codes.tolist() == rows["codes"][:]
    assert dataset[3]["prompt"] == rows["text"][3][0]
    assert captioned(rows.select([5, 2]), CONFIG, PLAIN).codes.tolist() == [rows["codes"][5], rows["codes"][2]]
    large = tiny_config(codebook_size=2**16)
    assert captioned(rows, large, PLAIN).codes.dtype == np.int32


def test_same_prompts_for_same_seed_epoch_and_index():
    def prompts(seed: int, epoch: int) -> list[str]:
        dataset = captioned(code_rows(64), CONFIG, CaptionTransform(0.3, 0.5), seed=seed)
        dataset.set_epoch(epoch)
        return [dataset[index]["prompt"] for index in range(64)]

    assert prompts(0, 1) == prompts(0, 1)
    assert prompts(0, 1) != prompts(0, 2) and prompts(0, 1) != prompts(1, 1)


@pytest.mark.parametrize(
    "codes, message",
    [
        ([list(range(20))], r"expected 21 codes in every row; got \[20\]"),
        ([list(range(21)), []], "expected 21 codes"),
        ([[48] * 21], "codes from 48 to 48 are no codes of a codebook of 48"),
        ([[-1] * 21], "codes from -1"),
        ([[0.9] * 21], "codes must be whole numbers; got float64"),
    ],
)
def test_codes_of_another_tokenizer_are_refused(codes, message):
    rows = datasets.Dataset.from_dict({"codes": codes, "text": ["a"] * len(codes)})
    with pytest.raises(ValueError, match=message):
        captioned(rows, CONFIG, PLAIN)


def test_settings_of_pictures_mean_nothing_for_codes():
    for settings in ({"image_column": "image"}, {"transform": PictureTransform(32)}):
        with pytest.raises(ValueError, match="rows with codes are read by them"):
            captioned(code_rows(4), CONFIG, PLAIN, **settings)


@pytest.fixture
def picture_rows() -> datasets.Dataset:
    features = datasets.Features({"picture": datasets.Image(), "caption": datasets.Value("string")})
    columns = {"picture": gradient_pictures(4), "caption": ["one", "two", "three", "four"]}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("streaming", [False, True])
def test_pictures_and_their_columns(picture_rows, streaming):
    rows = picture_rows.to_iterable_dataset() if streaming else picture_rows
    examples = list(captioned(rows, CONFIG, PLAIN, text_column="caption", image_column="picture"))
    assert [example["prompt"] for example in examples] == ["one", "two", "three", "four"]
    transform = PictureTransform(32, train=False)
    for example, picture in zip(examples, gradient_pictures(4), strict=True):
        assert torch.equal(torch.as_tensor(example["pixel_values"]), transform(picture, random.Random(0)))
    with pytest.raises(ValueError, match="no column 'text'; its columns are picture, caption"):
        captioned(rows, CONFIG, PLAIN)
    with pytest.raises(ValueError, match="no column 'image'"):
        captioned(rows, CONFIG, PLAIN, text_column="caption")


@pytest.fixture
def shards(tmp_path: Path, monkeypatch) -> list[str]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for index in range(2):
        code_rows(16).select(range(index * 8, index * 8 + 8)).to_parquet(tmp_path / f"{index}.parquet")
    return [str(tmp_path / f"{index}.parquet") for index in range(2)]


def test_streamed_shards(shards):
    rows = datasets.load_dataset("parquet", data_files=shards, split="train", streaming=True)
    evaluated = list(captioned(rows, CONFIG, PLAIN))
    assert [list(example["codes"]) for example in evaluated] == code_rows(16)["codes"][:]

    def first(count: int, seed: int) -> list[tuple]:
        stream = captioned(rows, CONFIG, CaptionTransform(0.2), seed=seed, shuffle_buffer=4)
        return [(example["prompt"], tuple(example["codes"])) for example in itertools.islice(stream, count)]

    assert len(first(40, 0)) == 40  # without end
    assert first(20, 0) == first(20, 0) != first(20, 1)


@pytest.mark.parametrize("codes", [[1] * 20, [99] * 21])
def test_codes_of_a_stream_are_checked_too(codes):
    rows = datasets.Dataset.from_dict({"codes": [[1] * 21, codes], "text": ["a", "b"]})
    with pytest.raises(ValueError, match="expected 21 codes in every row; got 20|no codes of a codebook of 48"):
        list(captioned(rows.to_iterable_dataset(), CONFIG, PLAIN))


def test_broken_pictures_of_a_stream_are_skipped(caplog):
    features = datasets.Features({"image": datasets.Image(decode=False), "text": datasets.Value("string")})
    images = [{"bytes": b"no picture", "path": "a.png"}, datasets.Image().encode_example(gradient_pictures(1)[0])]
    rows = datasets.Dataset.from_dict({"image": images, "text": ["one", "two"]}, features=features)
    assert [example["prompt"] for example in captioned(rows.to_iterable_dataset(), CONFIG, PLAIN)] == ["two"]
    assert "skipped row 0 of shard 0: the picture a.png can't be read" in caplog.text
    with pytest.raises(ValueError, match="row 0: the picture a.png can't be read"):
        captioned(rows, CONFIG, PLAIN)[0]


def test_a_stream_whose_columns_are_not_known(picture_rows):
    rows = picture_rows.to_iterable_dataset().map(lambda row: {**row, "text": "a"})
    assert rows.column_names is None
    examples = list(captioned(rows, CONFIG, PLAIN, image_column="picture"))
    transform = PictureTransform(32, train=False)
    for example, picture in zip(examples, gradient_pictures(4), strict=True):
        assert torch.equal(torch.as_tensor(example["pixel_values"]), transform(picture, random.Random(0)))


@pytest.mark.parametrize("form", ["numpy", "torch", "pandas", "arrow"])
@pytest.mark.parametrize("source", ["codes", "pixel_values"])
def test_rows_of_any_format_are_the_same_examples(picture_rows, source, form):
    rows = code_rows(3)
    if source == "pixel_values":
        rows = picture_rows.rename_columns({"picture": "image", "caption": "text"})
    for plain in (rows, rows.to_iterable_dataset()):
        pairs = zip(*(captioned(each, CONFIG, PLAIN) for each in (plain, plain.with_format(form))), strict=True)
        for expected, example in pairs:
            assert example["prompt"] == expected["prompt"]
            np.testing.assert_array_equal(example[source], expected[source])


def test_batches():
    collate = TextToImageCollator(tiny_processor(), end_ids=[5, 2])
    dataset = captioned(code_rows(4), CONFIG, PLAIN)
    batch = collate([dataset[index] for index in range(4)])
    assert batch["labels"].dtype == torch.long and batch["labels"].tolist() == code_rows(4)["codes"][:]
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["end_ids"].tolist() == [[5, 2]] * 4
    pixels = TextToImageCollator(tiny_processor())([{"prompt": "", "pixel_values": torch.zeros(3, 32, 32)}] * 2)
    assert pixels["pixel_values"].shape == (2, 3, 32, 32) and pixels["attention_mask"].all()
    assert pixels.keys() == {"input_ids", "attention_mask", "pixel_values"}


@pytest.mark.parametrize("example", [{"text": "a", "codes": [1]}, {"prompt": "a", "image": 3}])
def test_examples_that_lack_something(example):
    with pytest.raises(ValueError, match="an example has prompt, and codes or pixel_values; got"):
        TextToImageCollator(tiny_processor())([example])
