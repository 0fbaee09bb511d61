# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Training runs of the generator so small that a test can repeat them."""

from pathlib import Path
from typing import Any

import datasets
import torch
from tiny_models import tiny_text_to_image

from transformers_tokenflow.trainers import TextToImageTrainer, TextToImageTrainingArguments

NAMES = ["apple", "owl", "car", "tree", "house", "moon", "fish", "cup"]


def code_rows(count: int = 16, codebook_size: int = 48, num_codes: int = 21) -> datasets.Dataset:
    """Captions and codes in which a name always has the same ones."""
    codes = torch.randint(0, codebook_size, (len(NAMES), num_codes), generator=torch.Generator().manual_seed(0))
    index = [row % len(NAMES) for row in range(count)]
    texts = [[NAMES[row], f"a {NAMES[row]}. It is drawn."] for row in index]
    return datasets.Dataset.from_dict({"codes": [codes[row].tolist() for row in index], "text": texts})


def tiny_arguments(output_dir: Path | str, **changes: Any) -> TextToImageTrainingArguments:
    """Arguments of four steps."""
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **changes,
    }
    return TextToImageTrainingArguments(output_dir=str(output_dir), **settings)


def tiny_trainer(output_dir: Path | str, rows: Any = None, use_text_head: bool = False, **changes: Any) -> Any:
    """A trainer of a generator with random weights."""
    model, processor = tiny_text_to_image(use_text_head=use_text_head)
    return TextToImageTrainer(
        model=model,
        args=tiny_arguments(output_dir, **changes),
        train_dataset=code_rows() if rows is None else rows,
        eval_dataset=code_rows(5),
        processing_class=processor,
    )
