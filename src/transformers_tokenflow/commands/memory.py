# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""As many pictures at a time as memory takes."""

from collections.abc import Callable

import torch
from transformers.utils import logging

from . import CommandError

logger = logging.get_logger(__name__)

# In the messages of devices whose allocators raise a plain RuntimeError: MPS, and the CPU.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")


class InParts:
    """
    Calls a function on batches, in smaller parts where memory does not take them whole.

    What was found to be too much is not tried again.

    Args:
        function: a tensor (B, ...) to another (B, ...), the rows of which do not depend on each other.
    """

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]):
        self.function = function
        self.limit: int | None = None

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """
        Raises:
            CommandError: there is too little memory for a single row.
        """
        results, start = [], 0
        while start < len(batch):
            part = batch[start : start + self.limit] if self.limit else batch[start:]
            result = self._attempt(part)
            if result is None:
                self._halve(len(part))
            else:
                results.append(result)
                start += len(part)
        return torch.cat(results)

    def _attempt(self, part: torch.Tensor) -> torch.Tensor | None:
        """The function's result, or None where memory does not suffice."""
        try:
            return self.function(part)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        return None  # not within `except`, where the error would keep everything alive that it was raised among

    def _halve(self, size: int) -> None:
        if size == 1:
            raise CommandError("the device has too little memory for a single picture: try --dtype bfloat16")
        self.limit = size // 2
        logger.warning(f"{size} pictures at a time are too many for the memory: going on with {self.limit}")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that a device has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or any(part in str(error) for part in OUT_OF_MEMORY)
