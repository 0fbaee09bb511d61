# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""
Training runs of the understanding model so small that a test can repeat them. Run as a script, in two processes:

    torchrun --nproc_per_node 2 tiny_understanding_training.py OUTPUT_DIR '{"max_steps": 4}'
"""

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from tiny_models import tiny_text_tokenizer, tiny_understanding

from transformers_tokenflow import (
    TokenFlowImageProcessor,
    TokenFlowProcessor,
    UnderstandingTrainer,
    UnderstandingTrainingArguments,
    load_chat_template,
)

NAMES = ["apple", "owl", "car", "tree", "house", "moon", "fish", "cup"]
NUM_CODES, NUM_PLACES = 21, 16  # of a picture, and in a sequence


def tiny_chat_processor(template: str = "tiny", **options: Any) -> TokenFlowProcessor:
    """The processor of a tiny understanding model, with a text tokenizer of letters."""
    return TokenFlowProcessor(
        TokenFlowImageProcessor(size={"height": 32, "width": 32}),
        tiny_text_tokenizer(pad_token="<unk>"),
        chat_template=load_chat_template(template),
        image_token="<image>",
        num_image_tokens=NUM_PLACES,
        **options,
    )


def tiny_pair(template: str = "tiny", **fields: Any) -> tuple[Any, TokenFlowProcessor]:
    """A model with random weights and its processor."""
    processor = tiny_chat_processor(template)
    return tiny_understanding(image_token_id=processor.image_token_id, **fields), processor


def codes_of(name: str) -> list[int]:
    """The codes of a thing, always the same."""
    generator = torch.Generator().manual_seed(NAMES.index(name))
    return torch.randint(0, 48, (NUM_CODES,), generator=generator).tolist()


def question_rows(count: int = 16) -> datasets.Dataset:
    """Codes and questions, of which the answer to one is what the codes show."""
    names = [NAMES[index % len(NAMES)] for index in range(count)]
    questions = [
        [
            {"question": "what is it?", "answer": name},
            {"question": "is it a car?", "answer": "yes" if name == "car" else "no"},
            {"question": "can it fly?", "answer": "yes" if name == "owl" else "no"},
        ]
        for name in names
    ]
    return datasets.Dataset.from_dict({"codes": [codes_of(name) for name in names], "questions": questions})


def message_rows(count: int = 16, text_only: int = 4) -> datasets.Dataset:
    """Conversations of one turn each; every so many has no picture, 0: none."""
    names = [NAMES[index % len(NAMES)] for index in range(count)]
    has_picture = [not text_only or index % text_only for index in range(count)]
    messages = [
        [
            {"role": "user", "content": "what is it?" if seen else f"spell {name}"},
            {"role": "assistant", "content": name},
        ]
        for name, seen in zip(names, has_picture, strict=True)
    ]
    codes = [codes_of(name) if seen else None for name, seen in zip(names, has_picture, strict=True)]
    return datasets.Dataset.from_dict({"codes": codes, "messages": messages})


def divided_rows() -> datasets.Dataset:
    """The same in such an order that, of two processes with batches of two, one gets text alone, by turns."""
    return message_rows().select([0, 4, 1, 2, 3, 5, 8, 12, 6, 7, 9, 10, 11, 13, 14, 15])


def tiny_arguments(output_dir: Path | str, **changes: Any) -> UnderstandingTrainingArguments:
    """Arguments of four steps."""
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "logged_answers": 0,
        **changes,
    }
    return UnderstandingTrainingArguments(output_dir=str(output_dir), **settings)


def tiny_trainer(output_dir: Path | str, rows: Any = None, model: Any = None, **changes: Any) -> UnderstandingTrainer:
    """A trainer of a model with random weights on `message_rows`."""
    random_model, processor = tiny_pair()
    return UnderstandingTrainer(
        model=random_model if model is None else model,
        args=tiny_arguments(output_dir, **changes),
        train_dataset=message_rows() if rows is None else rows,
        eval_dataset=message_rows(5),
        processing_class=processor,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer = tiny_trainer(sys.argv[1], divided_rows(), **json.loads(sys.argv[2]))
    trainer.train()
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        weights = {name: tensor for name, tensor in trainer.bare_model().state_dict().items() if "projector" in name}
        torch.save({"losses": losses, "metrics": metrics, "weights": weights}, Path(sys.argv[1], "result.pt"))
