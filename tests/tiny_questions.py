# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Data of the small understanding model with a handful of pictures."""

from pathlib import Path

import datasets
from PIL import Image

from training.prepare_photos import encode_png
from training.prepare_questions import FEATURES, IMAGE_TOKEN, SPLITS, make_chat_tokenizer
from transformers_tokenflow import TokenFlowImageProcessor, TokenFlowProcessor
from transformers_tokenflow.chat_templates import load_chat_template

NAMES = ["owl", "owl: dark skin tone", "fox", "red apple"]
TEXTS = [*NAMES, "what is it?", "is it an owl?", "is it a fox?", "yes", "no", "animals and nature", "noto"]


def make_rows(names: list[str], size: int = 32) -> datasets.Dataset:
    """Rows of names, as `training.prepare_questions` writes them; half of the yes-or-no questions are about foxes."""
    pictures = [Image.new("RGB", (size, size), (40 * index, 20, 20)) for index in range(len(names))]
    rows = [
        {
            "image": {"bytes": encode_png(picture), "path": None},
            "name": name,
            "base_name": name.split(":")[0],
            "style": "noto",
            "category": "animals-nature",
            "version": 0,
            "questions": [
                {"kind": "name", "question": "what is it?", "answer": name},
                {"kind": "category", "question": "what is it?", "answer": "animals and nature"},
                {"kind": "yes_no", "question": "is it an owl?", "answer": "yes" if "owl" in name else "no"},
                {"kind": "yes_no", "question": "is it a fox?", "answer": "yes" if "fox" in name else "no"},
            ],
        }
        for picture, name in zip(pictures, names, strict=True)
    ]
    return datasets.Dataset.from_list(rows, features=FEATURES)


def write_data(folder: Path, size: int = 32) -> None:
    """Pictures of all splits and a text tokenizer, as `training.prepare_questions` writes them: two are held out."""
    (folder / "pictures").mkdir(parents=True)
    for split, names in zip(SPLITS, (NAMES, NAMES[:2], NAMES[2:]), strict=True):
        make_rows(names, size).to_parquet(folder / "pictures" / f"{split}.parquet")
    make_chat_tokenizer(TEXTS).save_pretrained(folder / "text-tokenizer")


def make_processor() -> TokenFlowProcessor:
    """Of models whose pictures of 32 pixels take 16 tokens."""
    return TokenFlowProcessor(
        TokenFlowImageProcessor(size={"shortest_edge": 32}),
        make_chat_tokenizer(TEXTS),
        chat_template=load_chat_template("tiny"),
        image_token=IMAGE_TOKEN,
        num_image_tokens=16,
    )
