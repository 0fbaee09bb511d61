# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Data of the understanding model: all forms of rows, what is learned of them, cutting, drawing, batches, packing."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import gradient_pictures
from tiny_understanding_training import (
    NUM_PLACES,
    codes_of,
    message_rows,
    question_rows,
    tiny_chat_processor,
    tiny_pair,
)

from transformers_tokenflow import TokenFlowUnderstandingConfig
from transformers_tokenflow.trainers.conversation_batches import ConversationCollator, PackedDataset, pack
from transformers_tokenflow.trainers.conversation_data import IGNORED, QuestionDataset, conversations
from transformers_tokenflow.trainers.conversation_rows import read_messages

QUESTION, ANSWER = "what is it?", "an owl"
CHAT = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
LLAVA = [{"from": "human", "value": f"{QUESTION}\n<image>"}, {"from": "gpt", "value": ANSWER}]
PARTS = [
    {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": QUESTION}]},
    {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
]


@pytest.fixture(scope="module")
def pair() -> tuple[TokenFlowUnderstandingConfig, Any]:
    model, processor = tiny_pair()
    return model.config, processor


def rows_of(**columns: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns)


def read(pair: Any, rows: Any, **options: Any) -> Any:
    config, processor = pair
    return conversations(rows, processor, config, **options)


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value)


def learned(pair: Any, example: dict[str, Any]) -> str:
    """What the labels of an example spell."""
    labels = np.asarray(example["labels"])
    return pair[1].tokenizer.decode(labels[labels != IGNORED])


# ---- Forms of rows ----


def test_all_forms_of_rows_are_the_same_example(pair):
    codes = codes_of("owl")
    placed = [{"role": "user", "content": f"<image>\n{QUESTION}"}, CHAT[1]]
    forms = [
        rows_of(codes=[codes], messages=[CHAT]),
        rows_of(codes=[codes], messages=[placed]),
        rows_of(codes=[codes], messages=[PARTS]),
        rows_of(codes=[codes], conversations=[LLAVA]),
        rows_of(codes=[codes], questions=[[{"question": QUESTION, "answer": ANSWER, "kind": "name"}]]),
    ]
    examples = [read(pair, rows)[0] for rows in forms]
    for example in examples:
        assert_same(example, examples[0])
    assert learned(pair, examples[0]) == f"{ANSWER}</s>"
    assert examples[0]["image_codes"].tolist() == [codes]
    assert (examples[0]["input_ids"] == pair[0].image_token_id).sum() == NUM_PLACES


@pytest.mark.parametrize("template", ["tiny", "vicuna", "qwen2.5", "plain"])
@pytest.mark.parametrize("has_picture", [True, False])
def test_tokens_and_answers_are_the_processors(template, has_picture):
    model, processor = tiny_pair(template)
    picture, another = gradient_pictures(2)
    parts = [{"type": "image", "image": picture}, {"type": "image", "image": another}] if has_picture else []
    messages = [
        {"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "yes"},
    ]
    expected = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    plain = [
        {**message, "content": message["content"] if index else QUESTION} for index, message in enumerate(messages)
    ]
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        }
    )
    columns = {"images": [[picture, another] if has_picture else []], "messages": [plain]}
    example = read((model.config, processor), datasets.Dataset.from_dict(columns, features=features))[0]
    assert example["input_ids"].tolist() == expected["input_ids"][0].tolist()
    mask = torch.as_tensor(expected["assistant_masks"][0]).bool()
    assert example["labels"].tolist() == expected["input_ids"][0].masked_fill(~mask, IGNORED).tolist()
    assert mask.any() and mask.all() == (template == "plain" and not has_picture)
    if has_picture:
        np.testing.assert_array_equal(example["pixel_values"], expected["pixel_values"])
    else:
        assert "pixel_values" not in example


def test_every_answer_is_learned_and_nothing_else(pair):
    turns = [*CHAT, {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes"}]
    example = read(pair, rows_of(messages=[turns]))[0]
    assert learned(pair, example) == f"{ANSWER}</s> yes</s>"
    is_learned = example["labels"] != IGNORED
    assert (example["labels"][is_learned] == example["input_ids"][is_learned]).all()
    assert not is_learned[example["input_ids"] == pair[0].image_token_id].any()


def test_llava_file_with_pictures_in_a_folder(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "pictures").mkdir()
    picture = gradient_pictures(1)[0]
    picture.save(tmp_path / "pictures" / "owl.png")
    # As in the real file, ids are texts and numbers, and conversations without a picture have no such key.
    lines = [
        {"id": "1", "image": "pictures/owl.png", "conversations": LLAVA},
        {"id": 2, "conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "good day"}]},
    ]
    (tmp_path / "llava.json").write_text(json.dumps(lines))
    rows = datasets.load_dataset("json", data_files=str(tmp_path / "llava.json"), split="train")
    examples = read(pair, rows, image_folder=str(tmp_path))
    expected = pair[1].image_processor(images=[picture], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(examples[0]["pixel_values"], expected)
    assert examples[1].keys() == {"input_ids", "labels"} and learned(pair, examples[1]) == "good day</s>"
    assert examples.lengths == [len(examples[0]["input_ids"]), len(examples[1]["input_ids"])]


@pytest.mark.parametrize("column", ["image", "images"])
def test_texts_that_stand_for_no_picture(pair, tmp_path, column):
    gradient_pictures(1)[0].save(tmp_path / "owl.png")
    names = ["", "None", "none", "nan", "owl.png"]
    values = names if column == "image" else [[name, "", None] for name in names]
    examples = read(pair, rows_of(**{column: values}, messages=[CHAT] * 5), image_folder=str(tmp_path))
    assert ["pixel_values" in examples[index] for index in range(5)] == [False] * 4 + [True]
    assert examples[4]["pixel_values"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    "turns, pictures, message",
    [
        ("hello", 0, "a conversation is a list of messages"),
        (CHAT[:1], 0, "has no answer"),
        ([CHAT[0], {"role": "assistant", "content": ""}], 0, "has no answer"),
        ([{"role": "robot", "content": "x"}, CHAT[1]], 0, "a message has a role"),
        ([{"role": "user", "content": None}, CHAT[1]], 0, "a message has a role"),
        ([{"role": "user", "content": [{"type": "video"}]}, CHAT[1]], 0, "a part of a message"),
        (LLAVA, 2, "2 pictures, and 1 place "),
        (LLAVA, 0, "0 pictures, and 1 place "),
        (CHAT[1:], 1, "nothing is said by a user"),
        ([LLAVA[1], LLAVA[0]], 1, "has no answer"),
        ([LLAVA[1]], 0, "has no answer"),
        ([CHAT[0], {"role": "assistant", "content": "an <image>"}], 0, "<image> is a picture's place in a user's text"),
        ([{"role": "user", "content": [{"type": "text", "text": "<image>"}]}, CHAT[1]], 1, "and nowhere else"),
    ],
)
def test_what_is_no_conversation(turns, pictures, message):
    with pytest.raises(ValueError, match=message):
        read_messages(turns, "<image>", pictures)


def test_errors_name_the_row(pair, tmp_path):
    with pytest.raises(ValueError, match="row 1: the conversation has no answer"):
        read(pair, rows_of(messages=[CHAT, CHAT[:1]]))
    with pytest.raises(ValueError, match="row 1: expected 21 codes in every row; got 3"):
        read(pair, rows_of(codes=[codes_of("owl"), [1, 2, 3]], messages=[CHAT, CHAT]))
    with pytest.raises(ValueError, match="row 0: codes from 48 to 48 are no codes"):
        read(pair, rows_of(codes=[[48] * 21], questions=[[{"question": QUESTION, "answer": ANSWER}]]))[0]
    with pytest.raises(ValueError, match="row 0: the picture 'nowhere.png' can't be read"):
        read(pair, rows_of(image=["nowhere.png"], messages=[CHAT]))[0]
    broken = tmp_path / "broken.png"
    gradient_pictures(1)[0].save(broken)
    broken.write_bytes(broken.read_bytes()[:-40])
    with pytest.raises(ValueError, match="row 0: the picture '.*broken.png' can't be read: .*truncated"):
        read(pair, rows_of(image=[str(broken)], messages=[CHAT]))[0]
    with pytest.raises(ValueError, match="row 0: questions are a list"):
        read(pair, rows_of(questions=[["what?"]]))[0]
    with pytest.raises(ValueError, match="row 0: the conversation has no answer"):
        read(pair, rows_of(questions=[[], []]))[0]


@pytest.mark.parametrize(
    "odd, reason",
    [
        ([{"role": "system", "content": "be brief"}, *CHAT], "the chat template refuses"),
        ([CHAT[0], {"role": "assistant", "content": "an <image>"}], "<image> is a picture's place"),
    ],
)
def test_what_can_not_be_encoded_is_named_in_memory_and_skipped_in_a_stream(pair, caplog, odd, reason):
    rows = rows_of(messages=[CHAT, odd, CHAT])
    with pytest.raises(ValueError, match=f"row 1: .*{reason}"):
        read(pair, rows)
    stream = read(pair, rows.to_iterable_dataset())
    assert len(list(stream)) == 2 and "skipped row 1 of shard 0" in caplog.text and reason in caplog.text


def test_drawn_conversations_that_can_not_be_encoded_are_named(pair):
    rows = rows_of(questions=[[{"question": QUESTION, "answer": answer}] for answer in (ANSWER, "<image>")])
    with pytest.raises(ValueError, match="row 1: <image> is a picture's place"):
        read(pair, rows).__getitems__([0, 1])


def test_an_answer_before_the_first_question_is_not_learned():
    system = [{"from": "system", "value": "be brief"}]
    for opening in ([], system):
        with_opening = read_messages([*opening, {"from": "gpt", "value": "<image>"}, *LLAVA], "<image>", 1)
        assert with_opening == read_messages([*opening, *LLAVA], "<image>", 1)


@pytest.mark.parametrize("form", ["numpy", "torch", "pandas", "arrow"])
@pytest.mark.parametrize("rows", [message_rows(4), question_rows(4)], ids=["messages", "questions"])
def test_rows_of_any_format_are_the_same_examples(pair, rows, form):
    for example, expected in zip(read(pair, rows.with_format(form)), read(pair, rows), strict=True):
        assert_same(example, expected)
    stream = rows.to_iterable_dataset()
    for example, expected in zip(read(pair, stream.with_format(form)), read(pair, stream), strict=True):
        assert_same(example, expected)


def test_a_column_of_conversations_is_needed(pair):
    with pytest.raises(
        ValueError, match="expected one of the columns questions, messages, conversations; got codes, t"
    ):
        read(pair, rows_of(codes=[codes_of("owl")], text=["an owl"]))


def test_conversations_of_a_transform_are_refused(pair):
    with pytest.raises(ValueError, match="make them with `map`"):
        read(pair, message_rows().with_transform(lambda rows: rows))


def test_processor_and_model_belong_together(pair):
    config, processor = pair
    rows = rows_of(messages=[CHAT])
    other = tiny_chat_processor()
    other.num_image_tokens = 4
    with pytest.raises(ValueError, match="the processor puts 4 tokens of the id .* the model expects 16 of the id"):
        read((config, other), rows)
    other = tiny_chat_processor()
    other.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.raises(ValueError, match="marks no answers"):
        read((config, other), rows)


# ---- Cutting ----


def test_long_conversations_are_cut_at_their_end(pair):
    rows = rows_of(codes=[codes_of("owl")], messages=[[*CHAT, {"role": "user", "content": "a" * 50}, CHAT[1]]])
    whole = read(pair, rows)[0]
    for length in (len(whole["input_ids"]), 80, 61):
        example = read(pair, rows, max_length=length)[0]
        assert_same(
            {**example, "image_codes": 0},
            {name: whole[name][:length] for name in ("input_ids", "labels")} | {"image_codes": 0},
        )


def test_what_a_cut_leaves_nothing_of_is_skipped(pair, caplog):
    picture_end = len("▁user:▁") + NUM_PLACES
    rows = rows_of(
        codes=[codes_of("owl"), None],
        messages=[CHAT, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]],
    )
    for length in (picture_end - 1, picture_end, picture_end + 5):
        examples = read(pair, rows, max_length=length)
        assert len(examples) == 1 and learned(pair, examples[0]).startswith("b")
        assert "skipped 1 of 2 conversations" in caplog.text
    with pytest.raises(ValueError, match="none of 2 conversations has an answer within 8 tokens"):
        read(pair, rows, max_length=8)
    drawn = rows_of(codes=[codes_of("owl")], questions=[[{"question": QUESTION, "answer": ANSWER}]])
    with pytest.raises(ValueError, match="row 0: in 8 tokens there is no room for an answer"):
        read(pair, drawn, max_length=8)[0]


def test_pictures_after_the_cut_are_left_out(pair):
    first, second = gradient_pictures(2)
    turns = [
        {"role": "user", "content": "<image> a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "<image> c"},
        {"role": "assistant", "content": "d"},
    ]
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        }
    )
    rows = datasets.Dataset.from_dict({"images": [[first, second]], "messages": [turns]}, features=features)
    whole = read(pair, rows)[0]
    is_place = whole["input_ids"] == pair[0].image_token_id
    start_of_second = int(np.flatnonzero(is_place)[NUM_PLACES])
    cut = read(pair, rows, max_length=start_of_second)[0]
    assert len(cut["input_ids"]) == start_of_second and cut["pixel_values"].shape == (1, 3, 32, 32)
    np.testing.assert_array_equal(cut["pixel_values"], whole["pixel_values"][:1])
    with pytest.raises(ValueError, match="none of 1 conversation has an answer"):
        read(pair, rows, max_length=start_of_second + 3)


# ---- Drawn questions ----


def test_questions_are_drawn_anew_in_every_epoch_and_the_same_ones_again(pair):
    examples = read(pair, question_rows(), turns=2, seed=3)
    assert isinstance(examples, QuestionDataset) and len(examples) == 16
    first = [examples[index] for index in range(16)]
    for example, again in zip(first, examples.__getitems__(list(range(16))), strict=True):
        assert_same(again, example)
    spelled = [pair[1].tokenizer.decode(example["input_ids"]) for example in first]
    assert {text.count("user:") for text in spelled} == {2}
    assert len({text.split("assistant:")[0].split("user:")[1] for text in spelled}) > 1
    examples.set_epoch(1)
    other = [pair[1].tokenizer.decode(example["input_ids"]) for example in examples]
    assert sum(one != two for one, two in zip(spelled, other, strict=True)) > 8
    examples.set_epoch(0)
    assert_same(examples[5], first[5])
    assert_same(read(pair, question_rows(), turns=2, seed=3)[5], first[5])
    assert any(
        len(one["input_ids"]) != len(two["input_ids"]) or (one["input_ids"] != two["input_ids"]).any()
        for one, two in zip(first, read(pair, question_rows(), turns=2, seed=4), strict=True)
    )


def test_all_questions_where_there_are_few(pair):
    example = read(pair, question_rows(1), turns=9)[0]
    answers = learned(pair, example).split("</s>")
    assert sorted(answer.strip() for answer in answers) == ["", "apple", "no", "no"]


# ---- Streams ----


def test_a_stream_gives_the_same_and_skips_what_can_not_be_used(pair, tmp_path, caplog):
    picture = gradient_pictures(1)[0]
    picture.save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    rows = rows_of(image=["good.png", "bad.png", None], messages=[CHAT] * 3)
    stream = read(pair, rows.to_iterable_dataset(), image_folder=str(tmp_path))
    given = list(stream)
    assert len(given) == 2 and "skipped row 1" in caplog.text
    kept = read(pair, rows.select([0, 2]), image_folder=str(tmp_path))
    for example, expected in zip(given, kept, strict=True):
        present = {name: np.asarray(value) for name, value in example.items() if value is not None}
        assert_same({name: value.astype(expected[name].dtype) for name, value in present.items()}, expected)
    assert len(list(read(pair, rows.to_iterable_dataset(), image_folder=str(tmp_path), max_length=8))) == 0


def test_a_stream_of_questions(pair):
    stream = read(pair, question_rows(4).to_iterable_dataset(), turns=1)
    assert [np.asarray(example["image_codes"]).shape for example in stream] == [(1, 21)] * 4
    batch = ConversationCollator(0)(list(stream))
    assert batch["image_codes"].shape == (4, 21) and "pixel_values" not in batch


# ---- Batches ----


def test_batches_are_filled_up_on_the_right(pair):
    examples = read(pair, message_rows(4))
    batch = ConversationCollator(7, pad_to_multiple_of=32)([examples[index] for index in range(4)])
    longest = max(examples.lengths)
    assert (
        batch["input_ids"].shape
        == batch["labels"].shape
        == batch["attention_mask"].shape
        == (4, -(-longest // 32) * 32)
    )
    for index, length in enumerate(examples.lengths):
        assert batch["attention_mask"][index].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
        assert batch["input_ids"][index, :length].tolist() == examples[index]["input_ids"].tolist()
        assert (batch["input_ids"][index, length:] == 7).all() and (batch["labels"][index, length:] == IGNORED).all()
    assert batch["image_codes"].tolist() == [codes_of(name) for name in ("owl", "car", "tree")]
    alone = ConversationCollator(7)([examples[0]])
    assert alone.keys() == {"input_ids", "labels", "attention_mask"}


def test_an_example_needs_labels():
    with pytest.raises(ValueError, match="an example has input_ids and labels; got input_ids without"):
        ConversationCollator(0)([{"input_ids": [1, 2]}])


@given(st.lists(st.integers(1, 20), max_size=60))
def test_packing_loses_nothing_and_wastes_little(lengths):
    bins = pack(lengths, 20)
    assert sorted(index for row in bins for index in row) == list(range(len(lengths)))
    filled = [sum(lengths[index] for index in row) for row in bins]
    assert all(0 < total <= 20 for total in filled)
    # No two bins would have fitted into one, which is what makes it at most a half emptier than possible.
    assert sum(total <= 10 for total in filled) <= 1


def test_packed_rows_hold_whole_conversations(pair):
    examples = read(pair, message_rows(8), max_length=100)
    packed = PackedDataset(examples, 100)
    assert len(packed) < 8 and sum(packed.lengths) == sum(examples.lengths)
    seen = []
    for index, numbers in enumerate(packed.rows):
        row = packed[index]
        starts = [*np.flatnonzero(row["position_ids"] == 0), len(row["input_ids"])]
        assert len(row["input_ids"]) == packed.lengths[index] <= 100
        for number, start, end in zip(numbers, starts, starts[1:], strict=False):
            assert row["input_ids"][start:end].tolist() == examples[number]["input_ids"].tolist()
            assert row["labels"][start:end].tolist() == examples[number]["labels"].tolist()
            assert row["position_ids"][start:end].tolist() == list(range(end - start))
        seen += numbers
        codes = [examples[number]["image_codes"] for number in numbers if "image_codes" in examples[number]]
        if codes:
            np.testing.assert_array_equal(row["image_codes"], np.concatenate(codes))
    assert sorted(seen) == list(range(8))
    batch = ConversationCollator(0)([packed[index] for index in range(len(packed))])
    assert "attention_mask" not in batch and batch["position_ids"].shape == batch["input_ids"].shape
    for row, length in zip(batch["position_ids"], packed.lengths, strict=True):
        assert not row[length:].any()  # each token of padding begins a sequence of its own
    assert min(packed.lengths) < batch["position_ids"].shape[1]


def test_a_folder_of_pictures_beside_metadata(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = Path(tmp_path, "owls")
    folder.mkdir()
    picture = gradient_pictures(1)[0]
    picture.save(folder / "owl.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "owl.png", "messages": CHAT}))
    rows = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    example = read(pair, rows)[0]
    expected = pair[1].image_processor(images=[picture], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(example["pixel_values"], expected)
