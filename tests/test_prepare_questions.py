# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The small understanding model's training data: questions, varied pictures, codes, text tokenizer."""

import random
from collections import Counter

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_models import tiny_model
from transformers import AutoTokenizer

from training import prepare_questions
from training.prepare_questions import (
    MARKERS,
    SPLITS,
    VERSIONS,
    can_be_mirrored,
    encode_split,
    main,
    make_chat_tokenizer,
    make_rows,
    vary,
)
from training.questions import (
    COLOUR_QUESTIONS,
    NAME_QUESTIONS,
    YES_NO_QUESTIONS,
    Amounts,
    Emoji,
    NamePool,
    count_question,
    describe,
    write_questions,
)
from transformers_tokenflow import TokenFlowImageProcessor
from transformers_tokenflow.commands.tokenizers import load_tokenizer

AMOUNTS = Amounts(name=3, yes_no=4, other=1)
APPLE = Emoji("red apple", "red apple", "food-drink", "noto", ["red", "green"])
PEAR = Emoji("pear", "pear", "food-drink", "noto", [])
OWL = Emoji("owl", "owl", "animals-nature", "twemoji", [])


def emoji(name: str, category: str = "symbols") -> Emoji:
    return Emoji(name, name, category, "noto", [])


def ask(known: Emoji, others: list[Emoji], seed: int = 0, **options) -> list[dict]:
    return write_questions(known, NamePool([known, *others]), AMOUNTS, random.Random(seed), **options)


def rows(names: list[tuple[str, str, str]], category: str = "animals-nature") -> datasets.Dataset:
    """Rows of (name, base name, style), as `training.prepare_emoji` writes them: red on the left, blue on the right."""
    picture = Image.new("RGB", (32, 32), (200, 20, 20))
    picture.paste((20, 40, 220), (20, 0, 32, 32))
    columns = {
        "image": [picture] * len(names),
        **dict(zip(("name", "base_name", "style"), map(list, zip(*names, strict=True)), strict=True)),
        "category": [category] * len(names),
    }
    text = {name: datasets.Value("string") for name in ("name", "base_name", "style", "category")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features({"image": datasets.Image(), **text}))


def test_questions_of_every_kind_have_their_answers():
    turns = ask(APPLE, [PEAR, OWL])
    assert Counter(turn["kind"] for turn in turns) == {"name": 3, "category": 1, "style": 1, "colour": 1, "yes_no": 8}
    answers = {turn["kind"]: turn["answer"] for turn in turns if turn["kind"] != "yes_no"}
    assert answers == {"name": "red apple", "category": "food and drink", "style": "noto", "colour": "red"}
    names = [turn["question"] for turn in turns if turn["kind"] == "name"]
    assert len(set(names)) == 3 and set(names) <= set(NAME_QUESTIONS)


def test_no_question_about_a_colour_that_is_none():
    assert not any(turn["kind"] == "colour" for turn in ask(OWL, [PEAR]))


def test_yes_and_no_are_balanced_and_true_and_half_the_others_are_of_the_category():
    nearby, far = [emoji(f"fruit {i}", "food-drink") for i in range(5)], [emoji(f"thing {i}") for i in range(5)]
    turns = [turn for turn in ask(APPLE, nearby + far) if turn["kind"] == "yes_no"]
    assert Counter(turn["answer"] for turn in turns) == {"yes": 4, "no": 4}
    assert len({turn["question"] for turn in turns if turn["answer"] == "yes"}) == 4
    for turn in turns:
        assert ("a red apple" in turn["question"]) == (turn["answer"] == "yes")
    no = [turn["question"] for turn in turns if turn["answer"] == "no"]
    assert sum("fruit" in question for question in no) >= 2


def test_negatives_are_of_another_family():
    pool = NamePool([emoji("man running"), emoji("woman running"), emoji("owl")])
    drawn = {pool.draw(emoji("person running"), same, random.Random(i)) for i in range(9) for same in (True, False)}
    assert drawn == {"owl"}
    with pytest.raises(ValueError, match="two families.*man running"):
        NamePool([emoji("man running"), emoji("woman running")])


def test_first_wordings_for_evaluation():
    turns = ask(APPLE, [PEAR, OWL], first_wording=True)
    assert [turn["question"] for turn in turns if turn["kind"] == "colour"] == COLOUR_QUESTIONS[:1]
    assert [turn["question"] for turn in turns if turn["kind"] == "name"] == NAME_QUESTIONS[:3]


def test_the_same_questions_for_the_same_seed_and_others_for_another():
    others = [PEAR, OWL, emoji("rocket"), emoji("pizza")]
    assert ask(APPLE, others) == ask(APPLE, others) != ask(APPLE, others, seed=1)


@pytest.mark.parametrize(
    "name, category, expected",
    [
        ("family: man, woman, girl, boy", "people-body", ("how many people are there?", "4")),
        ("family: adult, child", "people-body", ("how many people are there?", "2")),
        ("men holding hands", "people-body", ("how many people are there?", "2")),
        ("couple with heart: man, man", "people-body", ("how many people are there?", "2")),
        ("kiss", "people-body", ("how many people are there?", "2")),
        ("woman astronaut", "people-body", ("how many people are there?", "1")),
        ("woman feeding baby", "people-body", None),
        ("person getting massage", "people-body", None),
        ("man's shoe", "objects", None),
        ("family", "people-body", None),
        ("kiss mark", "smileys-emotion", None),
        ("keycap: 10", "symbols", ("which number is on it?", "10")),
        ("keycap: #", "symbols", None),
        ("three o'clock", "travel-places", ("what time is it?", "three o'clock")),
        ("six-thirty", "travel-places", ("what time is it?", "six-thirty")),
        ("alarm clock", "travel-places", None),
        ("two hearts", "smileys-emotion", ("how many hearts are there?", "2")),
        ("light blue heart", "smileys-emotion", ("how many hearts are there?", "1")),
        ("smiling face with hearts", "smileys-emotion", None),
        ("anatomical heart", "people-body", None),
        ("two-hump camel", "animals-nature", ("how many humps are there?", "2")),
    ],
)
def test_counts_where_the_name_tells_them(name, category, expected):
    assert count_question(emoji(name, category)) == expected


@pytest.mark.parametrize(
    "name, phrase",
    [
        ("owl", "an owl"),
        ("flag: japan", "the flag of japan"),
        ("keycap: 3", "the keycap 3"),
        ("men wrestling", "men wrestling"),
        ("mending heart", "a mending heart"),
        ("1st place medal", "1st place medal"),
    ],
)
def test_names_within_questions(name, phrase):
    assert describe(name) == phrase


@pytest.mark.parametrize(
    "name, category, expected",
    [
        ("owl", "animals-nature", True),
        ("woman farmer: dark skin tone", "people-body", True),
        ("left-facing fist", "people-body", False),
        ("man walking", "people-body", False),
        ("women holding hands: light skin tone, dark skin tone", "people-body", False),
        ("waxing crescent moon", "travel-places", False),
        ("chart increasing", "objects", False),
        ("three o'clock", "travel-places", False),
        ("flag: italy", "flags", False),
        ("input latin letters", "symbols", False),
    ],
)
def test_what_can_be_mirrored(name, category, expected):
    assert can_be_mirrored(name, category) is expected


def test_varied_pictures_stay_over_white_and_are_mirrored():
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste((200, 40, 40), (4, 24, 24, 40))
    for seed in range(8):
        left, right = (np.asarray(vary(picture, mirrored, random.Random(seed))) for mirrored in (False, True))
        assert left.shape == (64, 64, 3) and left[:3, :3].min() == 255 == left[-3:, -3:].min()
        assert left[:, :32].min() < 100 and left[:, 36:].min() == 255
        assert right[:, 32:].min() < 100 and right[:, :28].min() == 255
        assert not np.array_equal(left, np.asarray(picture))
    assert np.array_equal(vary(picture, False, random.Random(1)), vary(picture, False, random.Random(1)))


def test_only_chosen_variants_of_the_training_split_come_in_versions():
    tones = [(f"wave: {tone}", "wave", "noto") for tone in ("light", "medium", "dark")]
    written = list(make_rows(rows([("owl", "owl", "noto"), *tones]), "train"))
    counts = Counter(row["name"] for row in written)
    assert counts["owl"] == VERSIONS and sorted(counts[name] for name, _, _ in tones) == [1, 1, VERSIONS]
    owls = [row for row in written if row["name"] == "owl"]
    assert [row["version"] for row in owls] == list(range(VERSIONS))
    assert len({row["image"]["bytes"] for row in owls}) == VERSIONS
    heldout = list(make_rows(rows([("owl", "owl", "noto"), *tones]), "heldout_pairs"))
    assert len(heldout) == 4
    assert Counter(turn["kind"] for turn in heldout[0]["questions"]) == {
        "name": 1,
        "category": 1,
        "style": 1,
        "colour": 1,
        "yes_no": 4,
    }


TEXTS = [
    "red apple",
    'a "no vacancy" button',
    "three o'clock",
    "woman: medium-dark skin tone, beard",
    "b button (blood type)",
    "what is it?",
]


def test_markers_are_single_tokens_and_texts_come_back(tmp_path):
    make_chat_tokenizer(TEXTS).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "USER: <image>\nwhat is it? ASSISTANT: red apple[EOS]"
    words = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)
    assert words == ["USER:", "<image>", "what", "is", "it", "?", "ASSISTANT:", "red", "apple", "[EOS]"]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer.padding_side == "left" and tokenizer.bos_token == "[BOS]"
    assert len(make_chat_tokenizer(TEXTS, 150)) == 150 and all(marker in tokenizer.get_vocab() for marker in MARKERS)


def test_everything_is_written_and_other_tokenizers_encode_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(prepare_questions, "ROWS_PER_GROUP", 4)
    for seed in (0, 1):
        tiny_model(seed=seed).save_pretrained(tmp_path / f"tokenizer-{seed}")
        TokenFlowImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / f"tokenizer-{seed}")
    (tmp_path / "data").mkdir()
    names = [(name, name, style) for name in ("owl", "fox") for style in ("noto", "photo")]
    for split in SPLITS:
        rows(names).to_parquet(tmp_path / "data" / f"{split}-00000.parquet")
    splits = "".join(f"  - {{split: {name}, path: {name}-*.parquet}}\n" for name in SPLITS)
    (tmp_path / "data" / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n")
    tables = []
    for _ in range(2):
        main(tmp_path / "data", tmp_path / "out", str(tmp_path / "tokenizer-0"))
        tables.append(pq.read_table(tmp_path / "out" / "train.parquet").to_pylist())
    assert tables[0] == tables[1] and len(tables[0]) == 2 * VERSIONS
    assert {row["style"] for row in tables[0]} == {"noto"} and all(len(row["codes"]) == 21 for row in tables[0])
    assert tables[0][0]["questions"][0].keys() == {"kind", "question", "answer"}
    assert {turn["question"] for turn in tables[0][0]["questions"] if turn["answer"] == "yes"} <= {
        wording.format("an owl") for wording in YES_NO_QUESTIONS
    }
    assert len(pq.read_table(tmp_path / "out" / "heldout_pairs.parquet")) == 2
    vocabulary = AutoTokenizer.from_pretrained(tmp_path / "out" / "text-tokenizer").get_vocab()
    assert {"owl", "fox", "animals", *MARKERS} <= vocabulary.keys()
    pictures, codes = tmp_path / "out" / "pictures" / "train.parquet", tmp_path / "other.parquet"
    encode_split(pictures, codes, load_tokenizer(str(tmp_path / "tokenizer-1"), "cpu"))
    other = pq.read_table(codes).to_pylist()
    assert [row["questions"] for row in other] == [row["questions"] for row in tables[0]]
    assert [row["codes"] for row in other] != [row["codes"] for row in tables[0]]
