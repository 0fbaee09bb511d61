# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Where reconstructions and texts can be looked at while a model is trained."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torchvision.utils import make_grid, save_image
from transformers import TrainerCallback


def comparison(real: torch.Tensor, fake: torch.Tensor, count: int) -> torch.Tensor:
    """The first pictures of (B, 3, H, W) in [0, 1], in one row above their reconstructions: (3, h, w)."""
    return make_grid(torch.cat([real[:count], fake[:count]]).cpu(), nrow=min(count, len(real)))


def log_picture(
    name: str, picture: torch.Tensor, step: int, folder: Path, callbacks: Iterable[TrainerCallback] = ()
) -> None:
    """
    Write a picture (3, h, w) in [0, 1] as a PNG, and to the trackers among Trainer's callbacks that take pictures:
    TensorBoard, Weights & Biases, Trackio.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{step}.png"
    save_image(picture, path)
    for callback in callbacks:
        if getattr(callback, "tb_writer", None) is not None:
            callback.tb_writer.add_image(name, picture, step)
        for library in ("_wandb", "_trackio"):
            tracker = getattr(callback, library, None)
            if tracker is not None and callback._initialized:
                tracker.log({name: tracker.Image(str(path)), "train/global_step": step})


def log_text(name: str, text: str, step: int, folder: Path, callbacks: Iterable[TrainerCallback] = ()) -> None:
    """Write a text as a file, and to TensorBoard if it is among Trainer's callbacks."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-{step}.txt").write_text(f"{text}\n", encoding="utf-8")
    for callback in callbacks:
        if getattr(callback, "tb_writer", None) is not None:
            callback.tb_writer.add_text(name, text, step)
