# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""One process at a time writes to a place."""

import os
import signal
import time
from pathlib import Path

import pytest
from faults import fork, needs_fork, wait

from transformers_tokenflow.locks import sole_writer


def test_nothing_is_left(tmp_path: Path):
    with sole_writer(tmp_path / "target", tmp_path / "new" / ".lock"):
        assert (tmp_path / "new" / ".lock").exists()
    assert not list((tmp_path / "new").iterdir())


def test_one_at_a_time(tmp_path: Path):
    lock = tmp_path / ".lock"
    with sole_writer(tmp_path / "target", lock):
        message = f"another process is writing {tmp_path / 'target'}"
        with pytest.raises(BlockingIOError, match=message), sole_writer(tmp_path / "target", lock):
            pass
        with pytest.raises(BlockingIOError), sole_writer(tmp_path / "target", lock):
            pass  # who was refused has not taken the lock away
    with pytest.raises(KeyError), sole_writer(tmp_path / "target", lock):
        raise KeyError
    with sole_writer(tmp_path / "target", lock):
        pass


@needs_fork
def test_a_killed_process_holds_nothing(tmp_path: Path):
    lock = tmp_path / ".lock"

    def hold():
        with sole_writer(tmp_path, lock):
            (tmp_path / "held").touch()
            time.sleep(60)

    child = fork(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(BlockingIOError), sole_writer(tmp_path, lock):
        pass
    os.kill(child, signal.SIGKILL)
    wait(child)
    with sole_writer(tmp_path, lock):
        pass


@needs_fork
def test_many_that_want_it_at_once(tmp_path: Path):
    """Each waits its turn and adds a line, which reading and writing at the same time would lose."""
    log, lock = tmp_path / "log", tmp_path / ".lock"
    log.write_text("")

    def add():
        added = 0
        while added < 20:
            try:
                with sole_writer(log, lock):
                    text = log.read_text()
                    time.sleep(0)
                    log.write_text(f"{text}x")
                    added += 1
            except BlockingIOError:
                time.sleep(0.001)

    children = [fork(add) for _ in range(3)]
    assert [wait(child) for child in children] == [0, 0, 0]
    assert log.read_text() == "x" * 60
