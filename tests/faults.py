# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Faults to inject: processes that are killed, and disks that are full."""

import faulthandler
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
# Seconds after which a child shows where it hangs and ends, before pytest's timeout would end its parent.
HANGING = 200
# Two quick ones, and those that come to 20.
SEEDS = [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))]


def fork(function: Callable[[], Any]) -> int:
    """Run a function in a child, whose exit status is 1 if it raises; gives the child's id."""
    child = os.fork()
    if child:
        return child
    status = 1
    faulthandler.dump_traceback_later(HANGING, exit=True, file=sys.__stderr__)
    try:
        torch.set_num_threads(1)
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(child: int) -> int:
    """The exit status of a child, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_after(function: Callable[[], Any], seconds: float) -> int:
    """Run a function in a child that is killed some time later, and give its exit status."""
    child = fork(function)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return wait(child)


def kill_at_write(function: Callable[[], Any], folder: Path, number: int) -> int:
    """Run a function in a child that kills itself before the n-th time it changes something in a folder."""
    count = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal count
        if changes_something(event, arguments, folder):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    def watched() -> None:
        sys.addaudithook(watch)
        function()

    return wait(fork(watched))


def changes_something(event: str, arguments: tuple, folder: Path) -> bool:
    """Whether an audit event of Python is about files in a folder that are made, moved or removed."""
    if event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        return False
    path = arguments[0]
    if event == "open" and not arguments[2] & os.O_ACCMODE:
        return False
    return isinstance(path, (str, os.PathLike)) and Path(os.fspath(path)).is_relative_to(folder)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """
    A folder on a disk of its own of so many bytes; gives a function that makes it larger.

    Without the right to mount one the test is skipped.
    """
    folder.mkdir()
    if mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder):
        pytest.skip("needs the right to mount a disk")
    try:
        yield lambda larger: mount("-o", f"remount,size={larger}", folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def mount(*arguments: object) -> int:
    """The exit status of `mount`; not 0 where there is no such program, too."""
    try:
        return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode
    except FileNotFoundError:
        return 1
