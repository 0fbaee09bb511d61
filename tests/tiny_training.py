# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""
Training runs so small that a test can repeat them. Run as a script, one that may kill itself:

    python tiny_training.py OUTPUT_DIR KILL_AT_STEP '{"max_steps": 20}'
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from tiny_models import TOWER, tiny_model
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, TrainerCallback

from transformers_tokenflow.image_processing_tokenflow import TokenFlowImageProcessor
from transformers_tokenflow.trainers import Teacher, TokenFlowTrainer, TokenFlowTrainingArguments
from transformers_tokenflow.trainers.data import PictureDataset, PictureTransform
from transformers_tokenflow.trainers.recipe import last_checkpoint
from transformers_tokenflow.trainers.teachers import TransformersTower

EVERYTHING: dict[str, Any] = {
    "max_steps": 20,
    "save_strategy": "steps",
    "save_steps": 10,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 2,
    "perceptual_loss": "teacher",
    "adversarial_weight": 0.5,
    "adversarial_start_step": 3,
    "scale_dropout": 0.5,
    "ema_decay": 0.9,
    "codebook_initialization": "kmeans",
    "codebook_restart_steps": 4,
    "warmup_steps": 5,
}


def gradient_pictures(count: int, size: int = 40, seed: int = 0) -> list[PIL.Image.Image]:
    """Colour gradients in random directions: different from each other, and easy to learn."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j][..., None]
    pictures = [(rng.random(3) * x + rng.random(3) * y) / 2 for _ in range(count)]
    return [PIL.Image.fromarray((255 * picture).astype(np.uint8)) for picture in pictures]


def picture_dataset(count: int = 16, train: bool = True, seed: int = 0) -> PictureDataset:
    """Pictures in memory, for models of 32 pixels."""
    features = datasets.Features({"image": datasets.Image()})
    dataset = datasets.Dataset.from_dict({"image": gradient_pictures(count, seed=seed)}, features=features)
    return PictureDataset(dataset, PictureTransform(32, train=train))


def tiny_teacher() -> Teacher:
    """A CLIP with random weights, like the semantic encoder of `tiny_model("clip")`."""
    torch.manual_seed(1)
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**TOWER, projection_dim=12))
    return Teacher(TransformersTower(model, -1), 32, [0.5] * 3, [0.25] * 3)


def tiny_arguments(output_dir: Path | str, **changes: Any) -> TokenFlowTrainingArguments:
    """Arguments of four steps of the reconstruction, distillation and quantiser losses alone."""
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "perceptual_loss": "none",
        "adversarial_weight": 0.0,
        "scale_dropout": 0.0,
        "discriminator_channels": 4,
        "codebook_initialization_batches": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **changes,
    }
    return TokenFlowTrainingArguments(output_dir=str(output_dir), **settings)


def tiny_trainer(
    output_dir: Path | str, model: Any = None, teacher: Any = tiny_teacher, pictures: int = 16, **changes: Any
) -> TokenFlowTrainer:
    """A trainer of `tiny_model("clip")`, or of another model, with a teacher unless it is None."""
    return TokenFlowTrainer(
        model=model or tiny_model("clip"),
        args=tiny_arguments(output_dir, **changes),
        teacher=teacher and teacher(),
        train_dataset=picture_dataset(pictures),
        eval_dataset=picture_dataset(5, train=False, seed=1),
        processing_class=TokenFlowImageProcessor(size={"height": 32, "width": 32}),
    )


class KillAtStep(TrainerCallback):
    """Ends the process as a crash or a preemption would: no handler runs, no file is flushed."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer = tiny_trainer(sys.argv[1], **json.loads(sys.argv[3]))
    trainer.add_callback(KillAtStep(int(sys.argv[2])))
    trainer.train(resume_from_checkpoint=last_checkpoint(sys.argv[1]))
    trainer.save_model()
