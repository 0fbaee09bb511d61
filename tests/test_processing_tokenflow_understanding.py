# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The processor with an image token: pictures in texts, alone and in batches, and the pipeline that uses it."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import (
    tiny_conversation_processor,
    tiny_processor,
    tiny_text_tokenizer,
    tiny_understanding_with_processor,
)
from transformers import AutoModelForImageTextToText, AutoProcessor, TextIteratorStreamer, pipeline

from transformers_tokenflow import TokenFlowForConditionalGeneration, TokenFlowImageProcessor, TokenFlowProcessor

PLACES = 16
PIXELS_PER_SIDE = 32
# Of a model with random weights, whose answers should be letters.
ANSWER = {"max_new_tokens": 8, "suppress_tokens": [0, 1, 2, *range(61, 80)]}


@pytest.fixture
def processor() -> TokenFlowProcessor:
    return tiny_conversation_processor()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with its processor."""
    path = tmp_path_factory.mktemp("understanding")
    for part in tiny_understanding_with_processor():
        part.save_pretrained(path)
    return path


def photo(seed: int = 0, width: int = 40, height: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def question(*images: Any, text: str = "what is it?") -> list[dict[str, Any]]:
    """A conversation of one turn."""
    pictures = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]


def plain(processor: TokenFlowProcessor, text: str) -> list[int]:
    return processor.tokenizer(text).input_ids


class TestPlaces:
    def test_a_picture_takes_as_many_tokens_as_it_has_features(self, processor):
        inputs = processor(images=photo(), text="ab <image> c", return_tensors="pt")
        places = (inputs.input_ids[0] == processor.image_token_id).nonzero().flatten()
        assert len(places) == PLACES and places[-1] - places[0] == PLACES - 1
        assert inputs.pixel_values.shape == (1, 3, PIXELS_PER_SIDE, PIXELS_PER_SIDE)
        assert processor.tokenizer.convert_ids_to_tokens(processor.image_token_id) == "<image>"

    def test_pictures_go_anywhere_in_a_batch(self, processor):
        first, second, third = (photo(seed) for seed in range(3))
        texts = ["no picture", "<image><image> two", "and <image>"]
        nested = processor(images=[[], [first, second], [third]], text=texts, return_tensors="pt")
        assert (nested.input_ids == processor.image_token_id).sum(1).tolist() == [0, 2 * PLACES, PLACES]
        expected = processor.image_processor([first, second, third], return_tensors="pt").pixel_values
        assert torch.equal(nested.pixel_values, expected)
        flat = processor(images=[first, second, third], text=texts, return_tensors="pt")
        assert all(torch.equal(flat[name], nested[name]) for name in nested)

    def test_texts_alone(self, processor):
        for images in (None, [], [[]], [[], []]):
            inputs = processor(images=images, text=["ab", "abc"])
            assert set(inputs) == {"input_ids", "attention_mask"}

    def test_pictures_alone(self, processor):
        inputs = processor(photo(), return_tensors="pt")
        assert list(inputs) == ["pixel_values"]
        assert torch.equal(inputs.pixel_values, processor.image_processor(photo(), return_tensors="pt").pixel_values)

    @pytest.mark.parametrize("image", ["array", "gray", "tensor", "path"])
    def test_pictures_of_any_kind(self, processor, image, tmp_path):
        photo().save(tmp_path / "photo.png")
        kinds = {
            "array": np.asarray(photo()),
            "gray": np.asarray(photo().convert("L")),
            "tensor": torch.tensor(np.asarray(photo())).permute(2, 0, 1),
            "path": tmp_path / "photo.png",
        }
        inputs = processor(images=[kinds[image]], text="<image>", return_tensors="pt")
        expected = processor.image_processor(kinds[image], return_tensors="pt").pixel_values
        assert torch.equal(inputs.pixel_values, expected)

    def test_a_batch_of_arrays(self, processor):
        batch = torch.stack([torch.tensor(np.asarray(photo(seed))).permute(2, 0, 1) for seed in range(2)])
        assert len(processor(images=batch, text=["<image>", "a <image>"]).pixel_values) == 2

    def test_numbers_for_servers(self, processor):
        sizes = [(10, 10), (300, 20), (1, 1)]
        numbers = processor._get_num_multimodal_tokens(image_sizes=sizes)
        assert numbers.num_image_tokens == [PLACES] * 3 and numbers.num_image_patches == [1] * 3
        inputs = processor(images=photo(), text="ab <image>", return_mm_token_type_ids=True)
        assert sum(inputs["mm_token_type_ids"][0]) == PLACES
        assert processor._get_num_multimodal_tokens().num_image_tokens is None


class TestCodes:
    def test_stand_in_for_pictures(self, processor):
        codes = torch.arange(42).view(2, 21)
        inputs = processor(text=["<image>", "<image> b"], image_codes=codes, return_tensors="pt")
        pictures = processor(text=["<image>", "<image> b"], images=[photo(), photo()], return_tensors="pt")
        assert torch.equal(inputs.input_ids, pictures.input_ids)
        assert list(inputs) == ["input_ids", "attention_mask", "image_codes"]
        assert torch.equal(inputs.image_codes, codes)

    @pytest.mark.parametrize(
        "form",
        [
            lambda codes: codes.int(),
            lambda codes: codes.numpy(),
            lambda codes: codes.tolist(),
            list,
            lambda codes: [row.numpy() for row in codes],
        ],
    )
    def test_of_any_form(self, processor, form):
        codes = torch.arange(42).view(2, 21)
        given = processor(text="<image> <image>", image_codes=form(codes), return_tensors="pt").image_codes
        assert torch.equal(given, codes) and given.dtype == torch.long

    @pytest.mark.parametrize("text", [["<image> a", "<image>"], None])
    def test_are_given_as_the_rest(self, processor, text):
        codes = torch.arange(42).view(2, 21)
        assert processor(text=text, image_codes=codes).image_codes == codes.tolist()
        for options in ({"return_tensors": "np"}, {"text_kwargs": {"return_tensors": "np"}}):
            given = processor(text=text, image_codes=codes, **options).image_codes
            assert isinstance(given, np.ndarray) and given.tolist() == codes.tolist()

    def test_of_one_picture(self, processor):
        assert processor(text="<image>", image_codes=torch.arange(21)).image_codes == [list(range(21))]
        assert processor(text="<image>", image_codes=list(range(21))).image_codes == [list(range(21))]
        for none in ([], torch.empty(0, 21, dtype=torch.long)):
            assert list(processor(text="ab", image_codes=none)) == ["input_ids", "attention_mask"]

    @pytest.mark.parametrize(
        "codes",
        [torch.zeros(1, 21), torch.zeros(1, 2, 3, dtype=torch.long), [[1, 2], [3]], ["a"], 3, np.zeros((1, 3), bool)],
    )
    def test_that_are_none(self, processor, codes):
        with pytest.raises(ValueError, match=r"image_codes must be whole numbers \(num_images, L\)"):
            processor(text="<image>", image_codes=codes)

    def test_are_read_like_the_pictures(self):
        model, processor = tiny_understanding_with_processor()
        pixels = processor(images=[photo(), photo(1)], return_tensors="pt").pixel_values
        codes = model.model.tokenizer.encode(pixels).codes
        text = ["what? <image>", "<image> is it?"]
        with torch.no_grad():
            by_codes = model(**processor(text=text, image_codes=codes, return_tensors="pt")).logits
            by_pixels = model(**processor(text=text, images=[photo(), photo(1)], return_tensors="pt")).logits
        assert torch.allclose(by_codes, by_pixels, atol=1e-4)


class TestOptions:
    """What transformers' own tests of processors ask for, and a few more."""

    def test_padding_is_on_the_left(self, processor):
        inputs = processor(text=["<image> longer", "<image>"], images=[photo(), photo()], return_tensors="pt")
        assert inputs.attention_mask[1, 0] == 0 and inputs.attention_mask[:, -1].all()
        right = processor(text=["abc", "a"], padding_side="right", return_tensors="pt")
        assert right.attention_mask[1].tolist()[-1] == 0

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_the_tokenizers_own_side_stays(self, side, tmp_path):
        """Pipelines go by the tokenizer's side."""
        tiny_conversation_processor().save_pretrained(tmp_path)
        tokenizer = tiny_text_tokenizer(padding_side=side)
        for processor in (
            tiny_conversation_processor(tokenizer=tokenizer),
            TokenFlowProcessor.from_pretrained(tmp_path, padding_side=side),
        ):
            processor.save_pretrained(tmp_path / "again")
            for each in (processor, TokenFlowProcessor.from_pretrained(tmp_path / "again")):
                assert each.tokenizer.padding_side == side
                assert each(text=["abc", "a"]).attention_mask[1][0 if side == "left" else -1] == 0

    def test_without_a_side_of_its_own_a_tokenizer_is_not_changed(self, tmp_path):
        tokenizer = tiny_text_tokenizer()
        processor = tiny_conversation_processor(tokenizer=tokenizer)
        assert tokenizer.padding_side == "right" and "padding_side" not in tokenizer.init_kwargs
        processor(text=["abc", "a"], padding_side="right")
        processor.save_pretrained(tmp_path)
        for each in (processor, TokenFlowProcessor.from_pretrained(tmp_path)):
            assert each(text=["abc", "a"]).attention_mask[1][0] == 0 and each.tokenizer.padding_side == "left"

    def test_no_token_is_made_up_for_padding(self, processor):
        """It would have no embedding."""
        assert processor.tokenizer.pad_token == "<unk>" and processor(text=["abc", "a"]).input_ids[1][0] == 0
        tokenizer = tiny_text_tokenizer()
        tokenizer.unk_token = None
        assert tiny_conversation_processor(tokenizer=tokenizer).tokenizer.pad_token == "</s>"
        tokenizer = tiny_text_tokenizer(pad_token="a")
        assert tiny_conversation_processor(tokenizer=tokenizer).tokenizer.pad_token == "a"

    def test_flat_and_nested(self, processor):
        flat = processor(text="<image>", images=photo(), padding="max_length", max_length=30, do_normalize=False)
        nested = processor(
            text="<image>",
            images=photo(),
            text_kwargs={"padding": "max_length", "max_length": 30},
            images_kwargs={"do_normalize": False},
        )
        assert flat.input_ids == nested.input_ids and len(flat.input_ids[0]) == 30
        assert torch.equal(flat.pixel_values[0], nested.pixel_values[0]) and flat.pixel_values[0].min() >= 0
        with pytest.raises(ValueError, match="passed two times"):
            processor(text="ab", max_length=30, text_kwargs={"max_length": 20})

    def test_names_of_the_inputs(self, processor):
        inputs = processor(text="<image>", images=photo())
        assert set(inputs) == set(processor.model_input_names) == {"input_ids", "attention_mask", "pixel_values"}

    def test_nothing_is_cut_unless_asked_for(self, processor):
        assert len(processor(text="ab" * 500).input_ids[0]) == len(plain(processor, "ab" * 500))
        assert len(processor(text="ab" * 500, truncation=True, max_length=20).input_ids[0]) == 20

    def test_pictures_are_never_cut(self, processor):
        with pytest.raises(ValueError, match=r"Mismatch in `image` token count.*Got ids=\[15\] and text=\[16\]"):
            processor(text="<image> ab", images=photo(), truncation=True, max_length=PLACES - 1)
        inputs = processor(text="<image> abcd", images=photo(), truncation=True, max_length=PLACES + 2)
        assert inputs.input_ids[0].count(processor.image_token_id) == PLACES

    def test_answers_of_a_model(self, processor):
        ids = plain(processor, "an owl") + [processor.tokenizer.eos_token_id]
        assert processor.post_process_image_text_to_text(torch.tensor([ids])) == ["an owl"]
        assert processor.batch_decode([ids], skip_special_tokens=True) == ["an owl"]


class TestConversations:
    def test_pictures_of_messages(self, processor):
        batch = [question(photo(), photo(1)), question(), question(photo(2))]
        inputs = processor.apply_chat_template(
            batch, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        texts = processor.apply_chat_template(batch, add_generation_prompt=True)
        assert [text.count("<image>") for text in texts] == [2, 0, 1]
        expected = processor(text=texts, images=[photo(), photo(1), photo(2)], return_tensors="pt")
        assert set(inputs) == set(expected) and all(torch.equal(inputs[name], expected[name]) for name in expected)

    def test_paths(self, processor, tmp_path):
        photo().save(tmp_path / "photo.png")
        for key in ("url", "path", "image"):
            messages = [{"role": "user", "content": [{"type": "image", key: str(tmp_path / "photo.png")}]}]
            inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
            expected = processor(images=photo(), return_tensors="pt").pixel_values
            assert torch.equal(inputs.pixel_values, expected), key


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "count"), [("<image>", 0), ("<image>", 2), ("ab", 1), (["<image>", "<image> <image>"], 2)]
    )
    def test_pictures_and_places_do_not_match(self, processor, text, count):
        places = "".join(text).count("<image>")
        message = f"number of <image> tokens .* got {places} tokens and {count} pictures"
        with pytest.raises(ValueError, match=message):
            processor(text=text, images=[photo()] * count)
        with pytest.raises(ValueError, match=message):
            processor(text=text, image_codes=[[0] * 21] * count)

    @pytest.mark.parametrize("image", [None, 3, {"image": photo()}, b"bytes"])
    def test_no_pictures(self, processor, image):
        with pytest.raises(TypeError, match=f"A picture is a PIL image.*got an object of type {type(image).__name__}"):
            processor(text="<image> <image>", images=[photo(), image])

    @pytest.mark.parametrize("text", [3, ["a", None], [["a"]], []])
    def test_no_texts(self, processor, text):
        with pytest.raises(ValueError, match="text must"):
            processor(text=text)

    def test_nothing(self, processor):
        for images in (None, [], [[]]):
            with pytest.raises(ValueError, match="needs text, images or both; got neither"):
                processor(images=images)

    def test_pictures_and_codes(self, processor):
        with pytest.raises(ValueError, match="images or as image_codes; got both"):
            processor(text="<image>", images=photo(), image_codes=[[0]])
        with pytest.raises(ValueError, match="image_codes are for the understanding model"):
            tiny_processor()(text="ab", image_codes=[[0]])

    def test_arguments_that_go_together(self):
        parts = TokenFlowImageProcessor(), tiny_text_tokenizer()
        with pytest.raises(ValueError, match="go together.*got '<image>' and None"):
            TokenFlowProcessor(*parts, image_token="<image>")
        with pytest.raises(ValueError, match="go together.*got None and 16"):
            TokenFlowProcessor(*parts, num_image_tokens=16)
        with pytest.raises(ValueError, match="num_image_tokens must be at least 1; got 0"):
            tiny_conversation_processor(num_image_tokens=0)

    def test_tokenizers_that_split_the_token(self):
        with pytest.raises(ValueError, match=r"'<image>' for one token, but makes 8 of it.*split_special_tokens"):
            tiny_conversation_processor(tokenizer=tiny_text_tokenizer(split_special_tokens=True))


class TestSaving:
    def test_round_trip(self, tmp_path, processor):
        processor = tiny_conversation_processor(default_question="what is it?")
        processor.save_pretrained(tmp_path)
        loaded = TokenFlowProcessor.from_pretrained(tmp_path)
        assert loaded.to_dict() == processor.to_dict()
        assert (loaded.image_token, loaded.num_image_tokens, loaded.default_question) == ("<image>", 16, "what is it?")
        assert len(loaded.tokenizer) == len(processor.tokenizer) and loaded.image_token_id == processor.image_token_id
        assert loaded.chat_template == processor.chat_template
        text, images = ["what <image> is it?", "ab"], [photo()]
        assert loaded(text=text, images=images).input_ids == processor(text=text, images=images).input_ids
        fields = json.loads((tmp_path / "processor_config.json").read_text())
        assert "chat_template" not in fields and fields["image_token"] == "<image>"

    def test_a_tokenizer_that_has_the_token_keeps_it(self):
        tokenizer = tiny_text_tokenizer()
        tokenizer.add_tokens(["<image>"])
        length = len(tokenizer)
        for _ in range(2):
            processor = tiny_conversation_processor(tokenizer=tokenizer)
            assert len(tokenizer) == length and processor.image_token_id == length - 1
        assert tokenizer.image_token == "<image>" and tokenizer.SPECIAL_TOKENS_ATTRIBUTES.count("image_token") == 1

    def test_auto_classes(self, folder):
        assert type(AutoProcessor.from_pretrained(folder)) is TokenFlowProcessor
        assert type(AutoModelForImageTextToText.from_pretrained(folder)) is TokenFlowForConditionalGeneration


@pytest.fixture(scope="module")
def talker(folder):
    return pipeline("image-text-to-text", model=str(folder), device="cpu")


class TestPipeline:
    def expected(self, talker, messages) -> str:
        """What the parts make of a conversation."""
        inputs = talker.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        output = talker.model.generate(**inputs, **ANSWER)[0, inputs.input_ids.shape[1] :]
        return talker.processor.decode(output, skip_special_tokens=True)

    def test_conversations(self, talker):
        messages = question(photo(), text="what is it? be brief.")
        (answer,) = talker(text=messages, generate_kwargs=ANSWER)
        expected = self.expected(talker, messages)
        assert len(expected) == 8 and answer["generated_text"] == [
            *messages,
            {"role": "assistant", "content": expected},
        ]
        (answer,) = talker(text=messages, generate_kwargs=ANSWER, return_full_text=False)
        assert answer["generated_text"] == expected

    def test_batches(self, talker):
        conversations = [question(photo()), question(photo(1), photo(2), text="and these?")]
        options = {"generate_kwargs": ANSWER, "return_full_text": False}
        together = talker(text=conversations, batch_size=2, **options)
        alone = [talker(text=messages, **options) for messages in conversations]
        assert together == alone

    def test_texts_with_a_place(self, talker):
        (answer,) = talker(images=photo(), text="USER: <image>\nwhat? ASSISTANT:", max_new_tokens=3)
        assert answer["generated_text"].startswith("USER: <image>\nwhat? ASSISTANT:")

    def test_streaming(self, talker):
        streamer = TextIteratorStreamer(talker.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        talker(text=question(photo()), generate_kwargs={"streamer": streamer, **ANSWER})
        assert "".join(streamer) == self.expected(talker, question(photo()))

    def test_pixels_in_the_models_dtype(self, folder):
        talker = pipeline("image-text-to-text", model=str(folder), device="cpu", dtype=torch.bfloat16)
        assert talker(text=question(photo()), max_new_tokens=2)[0]["generated_text"][-1]["role"] == "assistant"
