# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""One process at a time writes to a place."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def sole_writer(target: Path, lock: Path) -> Iterator[None]:
    """
    Hold a lock file while a target is written; nothing is left of it, but after a kill, which lets go of it.

    Raises:
        BlockingIOError: another process holds it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(f"another process is writing {target}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()  # still held: whoever waits for this file sees that it is gone, and makes another
        held.release()
