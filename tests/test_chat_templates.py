# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Conversation formats: letter for letter, token for token, and what of them is learned."""

import string
from typing import Any

import pytest
import torch
from jinja2.exceptions import TemplateError
from tiny_models import tiny_conversation_processor
from tokenizers import pre_tokenizers
from transformers import AddedToken, LlamaTokenizer, Qwen2Tokenizer

from transformers_tokenflow import TokenFlowProcessor, load_chat_template
from transformers_tokenflow.chat_templates import files

NAMES = ["plain", "qwen2.5", "tiny", "vicuna"]
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
QWEN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
QUESTION = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "An owl."}]}
TURNS = [QUESTION, ANSWER, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
LETTERS = [*string.ascii_letters, *string.digits, *string.punctuation]


def llama_tokenizer(legacy: bool) -> LlamaTokenizer:
    """A tokenizer like Vicuna's, of letters: a space before each text or, as legacy, before each part of it."""
    spaced = [f"▁{letter}" for letter in LETTERS]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS, *spaced]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [("▁", letter) for letter in LETTERS]
    return LlamaTokenizer(vocab=vocabulary, merges=merges, legacy=legacy, add_bos_token=True)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer like Qwen2.5's, of bytes."""
    tokens = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"Ġ{letter}" for letter in LETTERS)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[("Ġ", letter) for letter in LETTERS])
    markers = [AddedToken(token, normalized=False, special=True) for token in ("<|im_start|>", "<|im_end|>")]
    tokenizer.add_tokens(markers, special_tokens=True)
    return tokenizer


TOKENIZERS: dict[str, Any] = {
    "llama": lambda: llama_tokenizer(legacy=False),
    "llama-legacy": lambda: llama_tokenizer(legacy=True),
    "qwen": qwen_tokenizer,
}


def make_processor(tokenizer: str, chat_template: str = "vicuna") -> TokenFlowProcessor:
    """A processor whose pictures take three tokens."""
    return tiny_conversation_processor(8, 3, TOKENIZERS[tokenizer](), chat_template)


def render(name: str, messages: list[dict[str, Any]], **options: Any) -> str:
    return tiny_conversation_processor(chat_template=name).apply_chat_template(messages, **options)


def tokenize(processor: TokenFlowProcessor, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """A conversation's inputs, with codes for its pictures."""
    count = processor.apply_chat_template(messages).count("<image>")
    codes = {"image_codes": torch.zeros(count, 21, dtype=torch.long)}
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, processor_kwargs=codes, **options)


def learned(processor: TokenFlowProcessor, messages: list[dict[str, Any]]) -> list[str]:
    """The tokens that a model learns of a conversation."""
    inputs = tokenize(processor, messages, return_assistant_tokens_mask=True)
    ids, mask = inputs["input_ids"][0], inputs["assistant_masks"][0]
    return processor.tokenizer.convert_ids_to_tokens(
        [token for token, is_learned in zip(ids, mask, strict=True) if is_learned]
    )


class TestFormats:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("vicuna", f"{VICUNA}USER: <image>\nWhat is it? ASSISTANT: An owl.</s>USER: Sure? ASSISTANT: Yes.</s>"),
            (
                "qwen2.5",
                f"{QWEN}<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\nAn owl.<|im_end|>\n"
                "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n",
            ),
            ("plain", "<image>An owl.\nYes.\n"),
            ("tiny", "USER: <image>\nWhat is it? ASSISTANT: An owl.</s>USER: Sure? ASSISTANT: Yes.</s>"),
        ],
    )
    def test_conversations(self, name, expected):
        assert render(name, TURNS) == expected

    @pytest.mark.parametrize(
        ("name", "prompt"),
        [
            ("vicuna", f"{VICUNA}USER: <image>\nWhat is it? ASSISTANT:"),
            ("qwen2.5", f"{QWEN}<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"),
            ("plain", "<image>"),
            ("tiny", "USER: <image>\nWhat is it? ASSISTANT:"),
        ],
    )
    def test_prompts_are_how_conversations_begin(self, name, prompt):
        assert render(name, [QUESTION], add_generation_prompt=True) == prompt
        assert render(name, TURNS).startswith(prompt)

    @pytest.mark.parametrize(
        ("name", "start"),
        [("vicuna", "Be brief. USER: "), ("qwen2.5", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")],
    )
    def test_system_message_in_place_of_the_default(self, name, start):
        for content in ("Be brief.", [{"type": "text", "text": "Be brief."}]):
            assert render(name, [{"role": "system", "content": content}, *TURNS]).startswith(f"{start}<image>")

    @pytest.mark.parametrize("name", ["vicuna", "qwen2.5", "tiny"])
    def test_pictures_come_before_the_text_of_their_turn(self, name):
        parts = [
            {"type": "text", "text": "Compare "},
            {"type": "image"},
            {"type": "text", "text": "both"},
            {"type": "image"},
        ]
        assert "<image>\n<image>\nCompare both" in render(name, [{"role": "user", "content": parts}])
        assert "<image>\nas it stands" in render(name, [{"role": "user", "content": "<image>\nas it stands"}])

    def test_plain_leaves_questions_and_system_messages_out(self):
        """As officially: data for it have a question, with the picture before or after it."""
        system = {"role": "system", "content": "Be brief."}
        for content in ("Describe it.\n<image>", "<image>\nDescribe it.", QUESTION["content"]):
            assert render("plain", [system, {"role": "user", "content": content}, ANSWER]) == "<image>An owl.\n"

    @pytest.mark.parametrize("name", ["vicuna", "tiny"])
    def test_answers_keep_one_space(self, name):
        """What pipelines give back begins with the space that comes after the prompt."""
        answered = [QUESTION, {"role": "assistant", "content": " An owl."}, *TURNS[2:]]
        assert render(name, answered) == render(name, TURNS)

    @pytest.mark.parametrize("name", NAMES)
    def test_answers_can_be_continued(self, name):
        begun = [QUESTION, {"role": "assistant", "content": [{"type": "text", "text": "An o"}]}]
        assert render(name, TURNS[:2]).startswith(render(name, begun, continue_final_message=True))
        assert render(name, begun, continue_final_message=True).endswith("An o")

    @pytest.mark.parametrize("name", ["vicuna", "qwen2.5", "plain"])
    def test_other_image_tokens(self, name):
        image_processor, template = tiny_conversation_processor().image_processor, load_chat_template(name)
        places = {"image_token": "<|image_pad|>", "num_image_tokens": 3}
        processor = TokenFlowProcessor(image_processor, qwen_tokenizer(), template, **places)
        assert processor.apply_chat_template(TURNS) == render(name, TURNS).replace("<image>", "<|image_pad|>")


class TestTokens:
    @pytest.mark.parametrize("name", ["vicuna", "qwen2.5", "plain"])
    @pytest.mark.parametrize("tokenizer", TOKENIZERS)
    @pytest.mark.parametrize("pictures", [0, 1, 2])
    def test_are_the_official_ones(self, name, tokenizer, pictures):
        """The official code splits a prompt at the pictures, tokenises its pieces apart, and keeps one bos at most."""
        processor = make_processor(tokenizer, name)
        content = [{"type": "image"}] * pictures + [{"type": "text", "text": "What is it?"}]
        messages = [{"role": "user", "content": content}, *TURNS[1:]]
        expected: list[int] = []
        for index, piece in enumerate(processor.apply_chat_template(messages).split("<image>")):
            ids = processor.tokenizer(piece).input_ids
            if index and ids[:1] == [processor.tokenizer.bos_token_id]:
                ids = ids[1:]
            expected += [processor.image_token_id] * 3 * (index > 0) + ids
        assert tokenize(processor, messages)["input_ids"] == [expected]
        bos = processor.tokenizer.bos_token_id
        assert expected.count(bos) == (0 if tokenizer == "qwen" else 1)

    @pytest.mark.parametrize(("tokenizer", "first"), [("llama", "▁A"), ("llama-legacy", "▁A"), ("qwen", "A")])
    def test_a_text_after_a_picture_begins_like_any_other(self, tokenizer, first):
        processor = make_processor(tokenizer, "plain")
        two = {"role": "user", "content": [{"type": "image"}, {"type": "image"}]}
        tokens = [
            processor.tokenizer.convert_ids_to_tokens(tokenize(processor, messages)["input_ids"][0])
            for messages in ([two], [two, ANSWER])
        ]
        start = [] if tokenizer == "qwen" else ["<s>"]
        assert tokens[0] == [*start, *["<image>"] * 6]
        assert tokens[1][: len(tokens[0]) + 1] == [*tokens[0], first]

    def test_control_tokens_of_users_stay_text_where_asked_for(self):
        processor = make_processor("qwen", "qwen2.5")
        content = [{"type": "image"}, {"type": "text", "text": "a <image> b<|im_end|> c"}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=True,
            sanitize_control_tokens=True,
            processor_kwargs={"image_codes": torch.zeros(1, 21, dtype=torch.long)},
        )
        assert inputs["input_ids"][0].count(processor.image_token_id) == 3
        assert inputs["input_ids"][0].count(processor.tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2


class TestLearning:
    @pytest.mark.parametrize("tokenizer", ["llama", "llama-legacy"])
    def test_vicuna_answers_with_their_space_and_end(self, tokenizer):
        assert learned(make_processor(tokenizer), TURNS) == ["▁A", *"n", "▁o", *"wl.", "</s>", "▁Y", *"es.", "</s>"]

    def test_qwen_whole_turns(self):
        header = ["<|im_start|>", *"assistant", "Ċ"]
        expected = [*header, *"An", "Ġo", *"wl.", "<|im_end|>", "Ċ", *header, *"Yes.", "<|im_end|>", "Ċ"]
        assert learned(make_processor("qwen", "qwen2.5"), TURNS) == expected

    @pytest.mark.parametrize("tokenizer", ["llama", "llama-legacy"])
    def test_plain_captions_and_the_line_break(self, tokenizer):
        processor = make_processor(tokenizer, "plain")
        assert learned(processor, TURNS[:2]) == ["▁A", *"n", "▁o", *"wl.", "<0x0A>"]
        assert learned(make_processor("qwen", "plain"), TURNS[:2]) == [*"An", "Ġo", *"wl.", "Ċ"]

    def test_many_pictures_and_padding_do_not_shift_it(self):
        processor = make_processor("llama")
        two = {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What?"}]}
        batch = [[two, ANSWER, two, TURNS[3]], TURNS[2:]]
        for side in ("left", "right"):
            inputs = processor.apply_chat_template(
                batch,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                return_assistant_tokens_mask=True,
                processor_kwargs={"image_codes": torch.zeros(4, 21, dtype=torch.long), "padding_side": side},
            )
            for row, mask, messages in zip(inputs["input_ids"], inputs["assistant_masks"].bool(), batch, strict=True):
                assert processor.tokenizer.convert_ids_to_tokens(row[mask]) == learned(processor, messages)


class TestMistakes:
    def test_unknown_names(self):
        with pytest.raises(ValueError, match=r"plain, qwen2\.5, tiny, vicuna; got 'llama-3'"):
            load_chat_template("llama-3")
        assert {f"{name}.jinja" for name in NAMES} == {
            path.name for path in files("transformers_tokenflow.chat_templates").iterdir() if "jinja" in path.name
        }

    @pytest.mark.parametrize("name", ["vicuna", "qwen2.5", "tiny"])
    def test_roles(self, name):
        with pytest.raises(TemplateError, match="expected turns of user and assistant.*got tool"):
            render(name, [QUESTION, {"role": "tool", "content": "2"}])
        with pytest.raises(TemplateError, match="got system"):
            render(name, [QUESTION, {"role": "system", "content": "Be brief."}])

    def test_the_small_model_has_no_system_message(self):
        with pytest.raises(TemplateError, match="got system"):
            render("tiny", [{"role": "system", "content": "Be brief."}, QUESTION])

    @pytest.mark.parametrize("name", ["vicuna", "qwen2.5", "tiny"])
    def test_parts(self, name):
        with pytest.raises(TemplateError, match="expected parts of the type text or image; got audio"):
            render(name, [{"role": "user", "content": [{"type": "audio"}]}])


def test_saved_with_the_processor_in_a_file_of_its_own(tmp_path):
    make_processor("qwen", "qwen2.5").save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == load_chat_template("qwen2.5")
    loaded = TokenFlowProcessor.from_pretrained(tmp_path)
    assert loaded.apply_chat_template(TURNS) == render("qwen2.5", TURNS)
