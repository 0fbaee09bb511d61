# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What a Trainer does with a stream: shares it out, keeps with every checkpoint how far it is read, and counts."""

import json
from collections.abc import Callable
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from .card import CardTrainer
from .streams import ExampleStream

POSITION = "stream_position"


class PositionedCollator:
    """
    Collates with another collator, and adds how far the stream was read for the batch, as `stream_position`.

    Args:
        collate: the collator, which gives a dictionary.
        stream: where the examples come from; in a worker, the worker's.
    """

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]], stream: ExampleStream) -> None:
        self.collate, self.stream = collate, stream

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        return {**self.collate(examples), POSITION: self.stream.position()}


class StreamProgress:
    """
    How far a stream is used, which is less than what is read of it ahead.

    Args:
        stream: the stream.
        resume: whether what is loaded counts, or the stream begins anew.
    """

    def __init__(self, stream: ExampleStream, resume: bool = True) -> None:
        self.stream, self.resume = stream, resume
        self.own: dict[int, dict[str, Any]] = {}

    def use(self, position: str) -> None:
        """A batch with this position is trained on next."""
        progress = json.loads(position)
        self.own[progress.pop("reader")] = progress

    def skipped(self) -> int:
        """How many rows the readers of this process have skipped since training began."""
        starts = {number: self.stream.starts[number] for number in self.stream.own_readers}
        return sum(progress["skipped"] for progress in (starts | self.own).values())

    def state_dict(self) -> dict[str, Any]:
        """The state of all processes' readers; every process calls it."""
        everything: dict[int, dict[str, Any]] = {}
        for own in gather_object([self.own]):
            everything.update(own)
        return self.stream.state_dict(everything)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        if self.resume:
            self.stream.load_state_dict(state)
            self.own = {}


class StreamTrainer(CardTrainer):
    """
    A Trainer that goes on with an [`ExampleStream`] right where a checkpoint was written, in whatever number of
    processes and workers, and logs how many rows it has skipped as `skipped_rows`.

    Every process reads its own share, with its workers; of a stream that is evaluated it reads all, and takes every
    n-th batch. Other datasets are Trainer's matter, once what is given has been made the trainer's examples.

    Args:
        args, kwargs: of `transformers.Trainer`.
    """

    train_dataset: Any
    eval_dataset: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.train_dataset = self._examples(self.train_dataset, train=True)
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: self._examples(part) for name, part in self.eval_dataset.items()}
        else:
            self.eval_dataset = self._examples(self.eval_dataset)
        self.progress: StreamProgress | None = None
        if isinstance(self.train_dataset, ExampleStream):
            training = self.args
            self.train_dataset.share_out(training.world_size, training.process_index, training.dataloader_num_workers)
            self.progress = StreamProgress(self.train_dataset, resume=not training.ignore_data_skip)
        self._resumed_from: str | None = None

    def _examples(self, dataset: Any, train: bool = False) -> Any:
        """Examples of rows, where a trainer takes these; of anything else, a dataset's name or None, what it is."""
        return dataset

    def get_train_dataloader(self) -> DataLoader:
        """As Trainer's, but of a stream, this process' share: accelerate would share it out once more."""
        if self.progress is None:
            return super().get_train_dataloader()
        args, stream = self.args, self.progress.stream
        loader = DataLoader(
            stream,
            batch_size=self._train_batch_size,
            collate_fn=PositionedCollator(self.data_collator, stream),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )
        return prepare_data_loader(
            loader, args.device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As Trainer's, of anything that the trainer can be made with."""
        return super().get_eval_dataloader(self._examples(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As Trainer's, of anything that the trainer can be made with."""
        return super().get_test_dataloader(self._examples(test_dataset))

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> DataLoader:
        """As Trainer's, but every process reads a stream: the main one can't dispatch batches of unlike lengths."""
        if isinstance(dataset, ExampleStream):
            self.accelerator.dataloader_config.dispatch_batches = False
        return super()._get_dataloader(dataset, *args, **kwargs)

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """As Trainer's, but there are no batches to skip where the stream goes on by itself."""
        epochs, batches = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial
        )
        if self.progress is None:
            return epochs, batches
        self._resumed_from = checkpoint
        return epochs, 0

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """As Trainer's, and notes how far the stream is used."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            if self.progress is not None:
                self.progress.use(batch.pop(POSITION))
        if self._resumed_from is not None:
            # Once more: the loader has drawn a seed, which it does not where training is not interrupted.
            self._load_rng_state(self._resumed_from)
            self._resumed_from = None
        return batches, num_items

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds how many rows of a stream were skipped, in all processes since training began."""
        if "loss" in logs and self.progress is not None:
            skipped = torch.tensor(self.progress.skipped(), device=self.args.device)
            logs["skipped_rows"] = int(self.accelerator.reduce(skipped, "sum").item())
        super().log(logs, *args, **kwargs)

    def stateful_parts(self) -> dict[str, Any]:
        """What is part of every checkpoint beside Trainer's own, by name."""
        return {"stream": self.progress} if self.progress is not None else {}
