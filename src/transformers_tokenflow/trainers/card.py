# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The card of a trained model, and what else its repository needs, in place of Trainer's own."""

import shutil
from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Trainer

from .. import __version__
from ..card_tokenflow import as_list, combine_cards, make_model_card
from ..commands import counted
from ..push_tokenflow import CARD, find_base_model, read_card, read_uploaded_card

# Names of what reads data, which say nothing of the data.
READERS = {"arrow", "csv", "generator", "imagefolder", "json", "pandas", "parquet", "text", "webdataset"}


class CardTrainer(Trainer):
    """A Trainer whose uploads have this package's card, and the model's code at all times."""

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """
        Write a card to the output folder that says what was trained, how, and on what, as far as is known.

        A card that somebody has written, there or in the repository, stays as it is.

        Args:
            language, license, tags: of the card.
            model_name: by default the repository's, or the folder's.
            finetuned_from: repository of the model that training started from; by default where it was loaded from.
            tasks: not used: the model says what it is for.
            dataset_tags: the data's repositories.
            dataset: the data's names.
            dataset_args: not used.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        repository = self.hub_model_id or model_name or folder.resolve().name
        model = self.accelerator.unwrap_model(self.model)
        card = make_model_card(
            model.config,
            repository,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            training=describe_training(self, as_list(dataset)),
            language=language,
            license=license,
            base_model=finetuned_from or find_base_model(model.config.name_or_path, repository),
            datasets=dataset_tags,
        )
        written = read_card(folder)
        if written is None and self.hub_model_id is not None:
            written = read_uploaded_card(self.hub_model_id, self.args.hub_revision, self.args.hub_token)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CARD).write_bytes(combine_cards(card, written, as_list(tags)).encode())

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As Trainer, which takes weights and configuration of a checkpoint along, but not the model's code."""
        if self.is_world_process_zero():
            for path in Path(checkpoint_folder).glob("*.py"):
                shutil.copy(path, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)


def describe_training(trainer: Trainer, data: list[str]) -> dict[str, str]:
    """
    What a trainer knows of its training, label to value.

    Args:
        trainer: of this package.
        data: names of the data, in place of what the dataset says of itself.
    """
    args: Any = trainer.args
    examples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    rows = {
        "trainer": type(trainer).__name__,
        "data": ", ".join(data) or describe_data(trainer.train_dataset),
        "steps": f"{trainer.state.global_step:,} of {counted(examples, 'example')}",
        "optimizer": f"{optimizer_name(trainer)}, weight decay {args.weight_decay:g}",
        "learning rate": f"{args.learning_rate:g}, {getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}",
        "precision": precision,
        "averaged weights": f"decay {args.ema_decay:g}" if args.ema_decay > 0 else "",
        "adapters": describe_adapters(trainer.accelerator.unwrap_model(trainer.model)),
        "trained parts": ", ".join(args.trainable_parts or ()),
        "seed": str(args.seed),
        "last figures": describe_figures(trainer.state.log_history),
        "software": f"transformers-tokenflow {__version__}, transformers {transformers.__version__}, "
        f"torch {torch.__version__}",
    }
    return {label: value for label, value in rows.items() if value}


def describe_adapters(model: Any) -> str:
    """Which LoRA adapters a model has, if it has any."""
    configs = getattr(model, "peft_config", {}).values()
    return ", ".join(f"LoRA of rank {config.r}" for config in configs if hasattr(config, "r"))


def optimizer_name(trainer: Trainer) -> str:
    """The class that was passed, or what the arguments name."""
    args: Any = trainer.args
    if trainer.optimizer_cls_and_kwargs is not None:
        return trainer.optimizer_cls_and_kwargs[0].__name__
    return "Muon and AdamW" if getattr(args, "muon", False) else getattr(args.optim, "value", args.optim)


def describe_data(dataset: Any) -> str:
    """The name that a dataset has, or what it wraps, and its number of examples; nothing where neither is known."""
    count = counted(len(dataset), "example") if isinstance(dataset, Sized) else ""
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    name = getattr(getattr(dataset, "info", None), "dataset_name", None)
    return ", ".join(part for part in ("" if name in READERS else name, count) if part)


def describe_figures(logs: list[dict[str, float]]) -> str:
    """The last loss of training, and what the last evaluation measured."""
    last: dict[str, float] = {}
    for log in logs:
        last |= {name: value for name, value in log.items() if is_figure(name)}
    return ", ".join(f"{name} {value:.4g}" for name, value in last.items())


def is_figure(name: str) -> bool:
    """Whether what is logged says how good a model is, and not how fast the machine."""
    return name == "loss" or (name.startswith("eval_") and not name.endswith(("_runtime", "_per_second")))
