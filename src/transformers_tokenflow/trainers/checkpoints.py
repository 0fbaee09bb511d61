# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Folders of checkpoints: which are whole, what they come from, and what the package's trainers add to them."""

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME

from ..commands import one_line

EXTRA_STATE_NAME = "tokenflow_trainer.pt"
# What of a configuration says how it was saved, and what Trainer sets in it.
NO_SETTINGS = {"_name_or_path", "architectures", "auto_map", "dtype", "transformers_version"}
NO_SETTINGS |= {"bos_token_id", "eos_token_id", "pad_token_id", "use_cache"}


def check_configuration(config: PreTrainedConfig, checkpoint: str) -> None:
    """
    Raises:
        ValueError: the model of a checkpoint, if it is no adapters, had another configuration.
    """
    if Path(checkpoint, CONFIG_NAME).is_file():
        own, other = (
            json.loads(each.to_json_string(use_diff=False))
            for each in (config, type(config).from_pretrained(checkpoint))
        )
        if names := different_fields(own, other):
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise ValueError(
                f"{checkpoint} comes from a model with other settings ({', '.join(names[:5])}{more}): choose another "
                "output_dir to train with these"
            )


def different_fields(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of what makes two configurations different models."""
    names = []
    for name in sorted((one.keys() | other.keys()) - NO_SETTINGS):
        values = one.get(name), other.get(name)
        if all(isinstance(value, dict) for value in values):
            names += different_fields(*values, prefix=f"{prefix}{name}.")
        elif values[0] != values[1]:
            names.append(f"{prefix}{name}")
    return names


def read_extra_state(checkpoint: str) -> dict[str, Any]:
    """
    What [`BaseTrainer`] adds to a checkpoint, on the CPU.

    Raises:
        ValueError: the folder has none, as with `save_only_model`.
        OSError: it is damaged.
    """
    path = Path(checkpoint, EXTRA_STATE_NAME)
    if not path.is_file():
        raise ValueError(f"{checkpoint} has no {EXTRA_STATE_NAME}: it is no full checkpoint of this trainer")
    with damage_named(path):
        return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def damage_named(checkpoint: str | Path | None) -> Iterator[None]:
    """Say in an OSError what can't be loaded, which the errors of damaged files don't."""
    try:
        yield
    except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise OSError(f"{checkpoint} can't be loaded: {one_line(error)}") from error


def last_checkpoint(folder: str | Path) -> str | None:
    """The last checkpoint of a run that was written to its end, which comes with Trainer's state."""
    states = Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")
    checkpoints = sorted((path.parent for path in states), key=step_of, reverse=True)
    return next((str(path) for path in checkpoints if is_whole(path)), None)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: Trainer's state, which comes last, is there and is JSON."""
    try:
        json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return True


def step_of(checkpoint: str | Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(Path(checkpoint).name.rpartition("-")[2])


def steps_made(checkpoint: str) -> int:
    """How many steps a checkpoint comes after, whatever its folder is named."""
    return TrainerState.load_from_json(Path(checkpoint, TRAINER_STATE_NAME)).global_step
