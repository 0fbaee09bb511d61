# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Processes as torchrun launches them, on the CPU; forked, so that they need not import everything anew."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from faults import fork, wait


def launch(function: Callable[[], Any], count: int) -> list[int]:
    """Run a function in so many processes that find each other, and give their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def member(rank: int) -> None:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
        AcceleratorState._reset_state(reset_partial_state=True)  # of the process that this one was forked from
        GradientState._reset_state()
        function()
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # the first one keeps the others together
            torch.distributed.destroy_process_group()

    return [fork(lambda rank=rank: member(rank)) for rank in range(count)]


def run_launched(function: Callable[[], Any], count: int) -> None:
    """Run a function in so many processes, to the end of all."""
    assert [wait(child) for child in launch(function, count)] == [0] * count
