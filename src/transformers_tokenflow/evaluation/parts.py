# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What is done of an evaluation: kept while it runs, by every process in a file of its own, and found again."""

import json
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from filelock import FileLock, Timeout

from ..commands.code_files import written_atomically
from . import EvaluationError

# What a killed run loses at most. Sums of wide features take a moment to write.
SECONDS_BETWEEN_FLUSHES = 10.0
DESCRIPTION = "description.json"
UNREADABLE = "unreadable"

Record = dict[str, Any]
Sums = dict[str, torch.Tensor]


def no_sums() -> Sums:
    """What an evaluation adds up that has records only."""
    return {}


def split_unreadable(records: dict[str, Record]) -> tuple[list[Record], dict[str, str]]:
    """The records of what could be read, and why the rest could not, by name."""
    unreadable = {name: record[UNREADABLE] for name, record in records.items() if UNREADABLE in record}
    return [record for name, record in records.items() if name not in unreadable], unreadable


class Parts:
    """
    Records of what is evaluated, by name, and sums over all of it.

    Every process writes a file of its own again and again, which is always whole, and always has the sums of just the
    records in it. So whenever a run is killed, the next one, of however many processes, leaves out what was kept, and
    in the end the main process puts everything together. The folder must be seen by all processes.

    Args:
        folder: where; it goes when the evaluation is done.
        description: of what is evaluated, by JSON's types. It must be that of what is in the folder already.
        state: the processes.

    Raises:
        EvaluationError: the folder holds something else, or another run writes there.
    """

    def __init__(self, folder: Path, description: dict[str, Any], state: PartialState) -> None:
        self.folder, self.state = folder, state
        self.lock = FileLock(folder / "lock")
        if state.is_main_process:
            self._open(description)
        state.wait_for_everyone()
        known = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if differing := differences(known, description):
            raise EvaluationError(
                f"{folder} holds an unfinished evaluation of something else ({'; '.join(differing)}): "
                "remove it, or write elsewhere"
            )
        self.done = {name for part in self._read() for name in part["records"]}
        state.wait_for_everyone()  # nobody writes before all have looked
        self.path = folder / f"part-{uuid.uuid4().hex}.pt"
        self.records: dict[str, Record] = {}
        self.sums: Callable[[], Sums] = no_sums
        self.last_flush = time.monotonic()

    def _open(self, description: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise EvaluationError(f"another evaluation is writing to {self.folder}") from error
        if not any(self.folder.glob("part-*")):  # what nothing is done of needs no finishing
            with written_atomically(self.folder / DESCRIPTION) as temporary:
                temporary.write_text(json.dumps(description, indent=2), encoding="utf-8")

    def _read(self) -> list[dict[str, Any]]:
        return [torch.load(path, weights_only=True) for path in sorted(self.folder.glob("part-*.pt"))]

    def share(self, names: Sequence[str]) -> list[str]:
        """What of these this process has to do: its share of those that have no record yet."""
        remaining = [name for name in names if name not in self.done]
        with self.state.split_between_processes(remaining) as share:
            return list(share)

    def add(self, records: dict[str, Record], sums: Callable[[], Sums] = no_sums) -> None:
        """
        Keep records, and write all of this process's if the last time is a while ago.

        Args:
            records: by name; of numbers, texts and lists of them.
            sums: gives the sums over all records of this process.
        """
        self.records.update(records)
        self.sums = sums
        if time.monotonic() - self.last_flush >= SECONDS_BETWEEN_FLUSHES:
            self.flush()

    def flush(self) -> None:
        """Write this process's records and sums."""
        if self.records:
            sums = {name: value.cpu() for name, value in self.sums().items()}
            with written_atomically(self.path) as temporary:
                torch.save({"records": self.records, "sums": sums}, temporary)
        self.last_flush = time.monotonic()

    def collect(self) -> tuple[dict[str, Record], Sums]:
        """
        In the main process the records of all processes and runs in order of their names, and all sums; in others
        nothing, since the main one may remove the folder as soon as it has read it. Every process calls it.
        """
        self.flush()
        self.state.wait_for_everyone()
        records: dict[str, Record] = {}
        sums: Sums = {}
        for part in self._read() if self.state.is_main_process else []:
            records.update(part["records"])
            for name, value in part["sums"].items():
                sums[name] = sums[name] + value if name in sums else value
        return dict(sorted(records.items())), sums

    def close(self) -> None:
        """Let another run write here."""
        self.lock.release()

    def remove(self) -> None:
        """Remove the folder, after the results have been written."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def differences(known: dict[str, Any], description: dict[str, Any], prefix: str = "") -> list[str]:
    """In which fields two descriptions differ, and how, as texts."""
    found = []
    for name in dict.fromkeys([*known, *description]):
        there, now = known.get(name), description.get(name)
        if isinstance(there, dict) and isinstance(now, dict):
            found += differences(there, now, f"{prefix}{name}.")
        elif there != now:
            found.append(f"{prefix}{name}: {there} there, {now} now")
    return found
