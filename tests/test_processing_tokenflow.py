# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The processor: the prompt format, what it refuses, and saving it."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_model, tiny_processor, tiny_text_to_image, tiny_text_tokenizer
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.processing_utils import ProcessingKwargs

from transformers_tokenflow import TokenFlowImageProcessor, TokenFlowProcessor
from transformers_tokenflow.processing_tokenflow import TEXT_OPTIONS, TokenFlowProcessorKwargs

BOS, PAD = 1, 61


@pytest.fixture
def processor() -> TokenFlowProcessor:
    return tiny_processor()


@pytest.fixture
def warnings(caplog):
    """Messages of the processor's logger, which transformers keeps from the root logger."""
    logger = logging.getLogger("transformers_tokenflow.processing_tokenflow")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def photo(width: int = 40, height: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def plain(processor: TokenFlowProcessor, text: str) -> list[int]:
    return processor.tokenizer(text, add_special_tokens=False).input_ids


class TestPrompts:
    def test_begins_with_bos_and_ends_with_the_images_start(self, processor):
        row = processor(text="a red apple").input_ids[0]
        assert row == [BOS, *plain(processor, "a red apple"), *plain(processor, "<img>")]

    def test_pads_to_the_longest_on_the_left(self, processor):
        inputs = processor(text=["a red apple", "sun"], return_tensors="pt")
        assert inputs.input_ids.dtype == inputs.attention_mask.dtype == torch.int64
        short, mask = inputs.input_ids[1], inputs.attention_mask[1]
        alone = processor(text="sun", return_tensors="pt").input_ids[0]
        assert torch.equal(short[mask == 1], alone)
        assert torch.equal(mask, torch.arange(len(mask)) >= len(mask) - len(alone))
        assert (short[mask == 0] == PAD).all() and inputs.attention_mask[0].all()

    def test_padding_side_of_the_tokenizer_does_not_matter(self):
        right = TokenFlowProcessor(TokenFlowImageProcessor(), tiny_text_tokenizer(padding_side="right"))
        assert right(text=["a red apple", "sun"]).attention_mask[1][0] == 0
        assert right(text=["a red apple", "sun"], padding_side="right").attention_mask[1][-1] == 0

    def test_empty_text(self, processor):
        assert processor(text="").input_ids == [[BOS, *plain(processor, "<img>")]]

    def test_a_text_spells_no_special_tokens(self, processor):
        text = "</s> <s> [pad] <unk> x</s>"
        row = processor(text=text).input_ids[0]
        assert not {0, BOS, 2, PAD} & set(row[1:])
        assert processor.tokenizer.decode(row[1:]).replace(" ", "").startswith(text.replace(" ", ""))
        # and other users of the tokenizer notice nothing
        assert processor.tokenizer("</s>", add_special_tokens=False).input_ids[-1] == 2

    def test_pad_token_is_added_where_there_is_none(self):
        tokenizer = tiny_text_tokenizer()
        assert tokenizer.pad_token is None and len(tokenizer) == PAD
        processor = TokenFlowProcessor(TokenFlowImageProcessor(), tokenizer)
        assert processor.tokenizer.pad_token == "[PAD]" and processor.tokenizer.pad_token_id == PAD

    def test_pad_token_is_kept(self):
        processor = TokenFlowProcessor(TokenFlowImageProcessor(), tiny_text_tokenizer(pad_token="</s>"))
        assert processor.tokenizer.pad_token_id == 2 and len(processor.tokenizer) == PAD

    def test_tokenizer_without_bos_and_with_eos(self):
        tokenizer = tiny_text_tokenizer()
        tokenizer.bos_token = None
        processor = TokenFlowProcessor(TokenFlowImageProcessor(), tokenizer)
        assert processor(text="ab").input_ids == [[*plain(processor, "ab"), *plain(processor, "<img>")]]

    def test_another_image_start(self):
        processor = tiny_processor(image_start="(")
        assert processor(text="ab").input_ids[0][-2:] == plain(processor, "(")


class TestTruncation:
    def test_long_texts_are_cut_at_the_end_with_a_warning(self, warnings):
        processor = tiny_processor(max_prompt_length=6)
        row = processor(text="abcdefgh").input_ids[0]
        assert row == [BOS, *plain(processor, "abcdefgh")[:5], *plain(processor, "<img>")]
        assert "10 tokens is cut to the first 6: 'abcdefgh'" in warnings.text

    def test_fitting_texts_are_left_alone(self, warnings):
        processor = tiny_processor(max_prompt_length=6)
        assert processor(text="abcd").input_ids[0] == [BOS, *plain(processor, "abcd"), *plain(processor, "<img>")]
        assert not warnings.text

    def test_max_length_counts_the_images_start(self, processor):
        row = processor(text="ab" * 20, max_length=20).input_ids[0]
        assert len(row) == 20 and row[-6:] == plain(processor, "<img>")
        with pytest.raises(ValueError, match="leave room for a text before 6 tokens; got 6"):
            processor(text="ab", max_length=6)

    def test_megabytes_are_cut_unread(self, processor, monkeypatch):
        lengths = []
        encode = TokenFlowProcessor._encode
        monkeypatch.setattr(
            TokenFlowProcessor, "_encode", lambda self, texts: lengths.extend(map(len, texts)) or encode(self, texts)
        )
        text = "a red apple " * 100_000
        assert processor(text=text).input_ids == processor(text=text[:1000]).input_ids
        assert max(lengths) == 128 * 64

    def test_no_truncation(self, processor):
        assert len(processor(text="ab" * 200, truncation=False).input_ids[0]) == 408

    def test_official_length(self, processor):
        assert processor(text="ab" * 200, padding="max_length", return_tensors="pt").input_ids.shape == (1, 128 + 6)


class TestMergedOptions:
    """What transformers' own tests of processors ask for."""

    def test_flat_and_nested(self, processor):
        flat = processor(text="ab", images=photo(), padding="max_length", max_length=30, size={"shortest_edge": 16})
        nested = processor(
            text="ab",
            images=photo(),
            text_kwargs={"padding": "max_length", "max_length": 30},
            images_kwargs={"size": {"shortest_edge": 16}},
        )
        assert flat.input_ids == nested.input_ids and len(flat.input_ids[0]) == 30
        assert flat.pixel_values[0].shape == nested.pixel_values[0].shape == (3, 16, 16)

    def test_given_twice(self, processor):
        with pytest.raises(ValueError, match="passed two times"):
            processor(text="ab", max_length=30, text_kwargs={"max_length": 20})

    def test_options_of_the_tokenizer_are_kept(self):
        tokenizer = tiny_text_tokenizer(max_length=57, padding="max_length")
        processor = TokenFlowProcessor(TokenFlowImageProcessor(), tokenizer)
        assert processor(text="ab", return_tensors="pt").input_ids.shape == (1, 57)
        assert processor(text="ab", return_tensors="pt", max_length=40).input_ids.shape == (1, 40)

    def test_options_of_a_call_stay_there(self, processor):
        before = processor.to_dict()
        processor(images=photo(), size={"shortest_edge": 16}, do_normalize=False)
        assert processor.to_dict() == before

    @pytest.mark.parametrize("options", [{"add_special_tokens": False}, {"text_kwargs": {"is_split_into_words": True}}])
    def test_options_that_would_break_the_format(self, processor, options):
        with pytest.raises(ValueError, match="prompts are made one way"):
            processor(text="ab", **options)

    def test_padding(self, processor):
        assert [len(row) for row in processor(text=["a", "abc"], padding=False).input_ids] == [9, 11]
        assert processor(text="a", pad_to_multiple_of=8, return_tensors="np").input_ids.shape == (1, 16)
        assert "attention_mask" not in processor(text="a", return_attention_mask=False)

    def test_names_do_not_overlap(self):
        """No argument of a call is an attribute, none of the constructor's an option."""
        call = {"images", "text"}
        options = {*TokenFlowProcessorKwargs.__annotations__, *ProcessingKwargs.__annotations__, *TEXT_OPTIONS}
        constructor = {"image_start", "max_prompt_length", "negative_prompt"}
        assert not any(hasattr(TokenFlowProcessor, name) for name in call | constructor)
        assert not (call | constructor) & options
        assert TokenFlowProcessor.valid_processor_kwargs.__name__ == "TokenFlowProcessorKwargs"


class TestPictures:
    def test_names_of_the_inputs(self, processor):
        inputs = processor(text=["ab", "c"], images=[photo(), photo(60, 40)], return_tensors="pt")
        assert list(inputs) == processor.model_input_names == ["input_ids", "attention_mask", "pixel_values"]
        assert inputs.pixel_values.shape == (2, 3, 32, 32)

    def test_pictures_alone(self, processor):
        inputs = processor(images=photo(), return_tensors="pt")
        expected = processor.image_processor(photo(), return_tensors="pt").pixel_values
        assert list(inputs) == ["pixel_values"] and torch.equal(inputs.pixel_values, expected)

    def test_pictures_come_first(self, processor):
        """As in every processor of transformers."""
        assert list(processor(photo())) == ["pixel_values"]

    def test_texts_and_pictures_are_pairs(self, processor):
        with pytest.raises(ValueError, match="got 2 texts and 1 pictures"):
            processor(text=["a", "b"], images=photo())

    @pytest.mark.parametrize("name", ["postprocess", "post_process_image"])
    def test_postprocess(self, processor, name):
        pixels = torch.rand(2, 3, 8, 8) * 2 - 1
        (first, _) = getattr(processor, name)(pixels)
        assert first == processor.image_processor.postprocess(pixels)[0]
        assert getattr(processor, name)(pixels, output_type="pt").shape == (2, 3, 8, 8)


class TestMistakes:
    @pytest.mark.parametrize("text", [3, ["a", None], ["a", b"b"], [["a"]], {"a": 1}])
    def test_no_strings(self, processor, text):
        with pytest.raises(ValueError, match="must be a string or a list of strings"):
            processor(text=text)

    def test_half_a_character(self, processor):
        with pytest.raises(ValueError, match=r"must be Unicode; got half a character at 2 of 'an\\ud83d'"):
            processor(text=["fine", "an\ud83d"])

    def test_nothing(self, processor):
        with pytest.raises(ValueError, match="at least one string"):
            processor(text=[])
        with pytest.raises(ValueError, match="text, images or both"):
            processor()

    def test_components(self):
        with pytest.raises(TypeError, match="image_processor"):
            TokenFlowProcessor(tiny_text_tokenizer(), TokenFlowImageProcessor())
        with pytest.raises(ValueError, match="max_prompt_length must be at least 1; got 0"):
            tiny_processor(max_prompt_length=0)


class TestSaving:
    def test_round_trip(self, tmp_path):
        model, _ = tiny_text_to_image()
        processor = tiny_processor(image_start="<i>", max_prompt_length=20, negative_prompt="blurry")
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        loaded = AutoProcessor.from_pretrained(tmp_path)
        assert type(loaded) is TokenFlowProcessor
        assert loaded.to_dict() == processor.to_dict()
        assert (loaded.image_start, loaded.max_prompt_length, loaded.negative_prompt) == ("<i>", 20, "blurry")
        assert loaded.tokenizer.pad_token_id == PAD
        assert loaded(text=["a red apple", "sun </s>"]) == processor(text=["a red apple", "sun </s>"])
        assert json.loads((tmp_path / "processor_config.json").read_text())["negative_prompt"] == "blurry"

    def test_its_parts_load_alone(self, tmp_path):
        model, processor = tiny_text_to_image()
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        assert type(AutoImageProcessor.from_pretrained(tmp_path)) is TokenFlowImageProcessor
        assert AutoTokenizer.from_pretrained(tmp_path).pad_token_id == PAD

    def test_alone_in_its_folder(self, processor, tmp_path):
        processor.save_pretrained(tmp_path)
        assert TokenFlowProcessor.from_pretrained(tmp_path, max_prompt_length=9).max_prompt_length == 9

    def test_chat_template_has_a_file_of_its_own(self, tmp_path):
        tiny_processor(chat_template="{{ messages }}").save_pretrained(tmp_path)
        assert (tmp_path / "chat_template.jinja").read_text() == "{{ messages }}"
        assert TokenFlowProcessor.from_pretrained(tmp_path).chat_template == "{{ messages }}"

    def test_image_tokenizers_need_no_text_tokenizer(self, tmp_path):
        """Registered for them too, `AutoProcessor` would ask for one."""
        tiny_model().save_pretrained(tmp_path)
        TokenFlowImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path)
        assert type(AutoProcessor.from_pretrained(tmp_path)) is TokenFlowImageProcessor
