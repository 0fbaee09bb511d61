# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Batches that do not fit into memory."""

import pytest
import torch

from transformers_tokenflow.commands import CommandError
from transformers_tokenflow.commands.memory import InParts, is_out_of_memory


class Squares:
    """Squares rows where there are not too many, and notes how many there were."""

    def __init__(self, most: int, error: Exception | None = None):
        self.most, self.error, self.sizes = most, error, []

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(batch))
        if len(batch) > self.most:
            raise self.error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return batch**2


def test_what_fits_goes_through_at_once():
    squares = Squares(8)
    assert InParts(squares)(torch.arange(8)).tolist() == [0, 1, 4, 9, 16, 25, 36, 49]
    assert squares.sizes == [8]


def test_halves_until_it_fits_and_remembers():
    squares = Squares(3)
    in_parts = InParts(squares)
    assert torch.equal(in_parts(torch.arange(13)), torch.arange(13) ** 2)
    assert squares.sizes == [13, 6, 3, 3, 3, 3, 1]
    assert torch.equal(in_parts(torch.arange(7)), torch.arange(7) ** 2)
    assert squares.sizes[7:] == [3, 3, 1]


def test_one_that_does_not_fit():
    with pytest.raises(CommandError, match="too little memory for a single picture"):
        InParts(Squares(0))(torch.arange(3))


def test_other_errors_come_through():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        InParts(Squares(1, RuntimeError("mat1 and mat2 shapes cannot be multiplied")))(torch.arange(3))


def test_memory_is_let_go_of_before_the_next_attempt():
    alive = []

    class Held:
        def __del__(self):
            alive.remove(self.number)

    def function(batch: torch.Tensor) -> torch.Tensor:
        assert not alive
        held = Held()
        held.number = len(batch)
        alive.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch

    assert len(InParts(function)(torch.arange(8))) == 8


def test_what_the_cpu_says():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**59, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert not is_out_of_memory(RuntimeError("index out of range"))
