# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The processes that `accelerate launch` or `torchrun` started for one command."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from . import CommandError, one_line

if TYPE_CHECKING:
    from accelerate import PartialState

# How long one may wait for another: shares take hours, and not equally long.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Processes:
    """
    How many processes share a command's work, and which of them this is.

    Args:
        rank: this one's number; the main one has 0.
        world_size: how many there are.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that speaks and puts together what all have done."""
        return self.rank == 0

    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        """What of a list, the same one in all processes, is this one's: a piece of it, as long as the others'."""
        start, end = (len(items) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return items[start:end]

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.world_size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def gather(self, item: Any) -> list[Any]:
        """What all give, in all processes."""
        if self.world_size == 1:
            return [item]
        from accelerate.utils import gather_object

        return list(gather_object([item]))


ALONE = Processes()


@contextmanager
def launched_processes(device: str) -> Iterator[Processes]:
    """
    The processes that were launched together, each with an accelerator of its own if there are any; or this one alone.

    Args:
        device: that they are to work on: as torch names it, or `auto`.

    Raises:
        CommandError: accelerate is not installed, or they don't find each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    state = find_each_other(device)
    try:
        yield Processes(state.process_index, state.num_processes)
    finally:
        state.destroy_process_group()


def find_each_other(device: str) -> "PartialState":
    """
    Accelerate's state of the processes that were launched together, or of this one alone.

    Args:
        device: that they are to work on: as torch names it, or `auto`.

    Raises:
        CommandError: accelerate is not installed, or they don't find each other.
    """
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise CommandError("several processes need accelerate: pip install 'transformers-tokenflow[train]'") from error
    on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    try:
        return PartialState(cpu=on_cpu, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise CommandError(f"the processes don't find each other: {one_line(error)}") from error
