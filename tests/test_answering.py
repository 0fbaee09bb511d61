# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Questions about pictures or their codes, in batches; `test_evaluation_understanding.py` has other models' answers."""

import pytest
import torch
from PIL import Image
from tiny_models import tiny_understanding_with_processor

from transformers_tokenflow.answering import answer_conversations, ask, read_conversations

QUESTIONS = ["what is this?", "a far longer question about it, is it not?", "hm"]
OPTIONS = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def talker():
    return tiny_understanding_with_processor(text_config={"initializer_range": 0.5})


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (40, 40), color) for color in ("red", "blue", "lime")]


def test_codes_are_answered_as_their_pictures(talker, pictures):
    model, processor = talker
    codes = model.model.tokenizer.encode(processor(images=pictures, return_tensors="pt")["pixel_values"]).codes
    of_pictures, of_codes = (
        answer_conversations(model, processor, list(map(ask, asked, QUESTIONS)), **OPTIONS)
        for asked in (pictures, codes)
    )
    assert of_pictures == of_codes and len(set(of_codes)) > 1


def test_prompts_end_where_an_answer_begins(talker, pictures):
    model, processor = talker
    conversations = list(map(ask, pictures, QUESTIONS))
    inputs = read_conversations(model, processor, conversations)
    assert all(text.endswith("assistant:") for text in processor.batch_decode(inputs["input_ids"]))
    answered = [[*conversation, {"role": "assistant", "content": "no"}] for conversation in conversations]
    whole = read_conversations(model, processor, answered, add_generation_prompt=False)
    assert all(text.endswith("no</s>") for text in processor.batch_decode(whole["input_ids"]))
    assert torch.equal(inputs["pixel_values"], whole["pixel_values"])


def test_pictures_and_codes_do_not_mix(talker, pictures):
    with pytest.raises(ValueError, match="as images or as image_codes; got both"):
        read_conversations(*talker, [ask(pictures[0], "what?"), ask(torch.zeros(21, dtype=torch.long), "what?")])
