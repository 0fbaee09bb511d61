# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Examples of a streamed dataset: shared out among processes and workers, shuffled, counted, and resumed."""

import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import islice
from typing import Any

import datasets
import fsspec.asyn
from datasets.iterable_dataset import SkipExamplesIterable, TakeExamplesIterable
from torch.utils.data import IterableDataset, get_worker_info
from transformers.utils import logging

from ..commands import counted

logger = logging.get_logger(__name__)

# A dataset of more files is read in as many groups of them. To pick one out takes `datasets` 5 microseconds for every
# file that there is: of a folder of pictures, 5 milliseconds a picture.
MAX_SHARDS = 1024
# Rows among which is shuffled, where nothing else is asked for.
SHUFFLE_BUFFER = 1000
# Where a pass is read from, see `Share.place`, and how many rows of the block there have been given.
BEGINNING = {"unit": 0, "row": 0, "state": None, "given": 0}

Row = dict[str, Any]
MakeExample = Callable[[Row, random.Random], Row]


class Unusable(Exception):
    """Why no example can be made of a row, which is skipped then."""


@contextmanager
def unusable_if_broken(what: str) -> Iterator[None]:
    """Make an Unusable of any error: broken files make PIL raise all kinds."""
    try:
        yield
    except Exception as error:
        raise Unusable(f"{what}: {error}") from error


class Share:
    """
    The rows of a reader's share of a pass over the data, with the numbers of their shard and of the row in it.

    Args:
        open_shard: gives a shard by its number, to be read from its beginning.
        units: what the share consists of: the number of a shard, and which of how many rows count, (part, parts).
        unit, row, state: where to begin, as `place` says it.
    """

    def __init__(
        self,
        open_shard: Callable[[int], datasets.IterableDataset],
        units: list[tuple[int, int, int]],
        unit: int = 0,
        row: int = 0,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.open_shard, self.units, self.unit, self.row = open_shard, units, unit, row
        self.state = state
        self.rows: datasets.IterableDataset | None = None

    def place(self) -> dict[str, Any]:
        """Where the next row is: number of the unit, row in the shard, and state of the shard's dataset."""
        state = self.state if self.rows is None else self.rows.state_dict()
        return {"unit": self.unit, "row": self.row, "state": state}

    def __iter__(self) -> Iterator[tuple[int, int, Row]]:
        while self.unit < len(self.units):
            shard, part, parts = self.units[self.unit]
            rows = self.open_shard(shard)
            if self.state is not None:
                rows.load_state_dict(self.state)
            self.rows = rows
            # Not `__iter__`: within a worker that would share the shard out once more.
            for columns in rows.iter(batch_size=1):
                self.row += 1
                if (self.row - 1) % parts == part:
                    yield shard, self.row - 1, {name: values[0] for name, values in columns.items()}
            self.unit, self.row, self.state, self.rows = self.unit + 1, 0, None, None


class ExampleStream(IterableDataset):
    """
    Examples of a streamed dataset: for training shuffled and without end, for evaluation once, in order.

    Readers, which are the workers of all processes, share out a pass so that each row belongs to just one of them:
    whole shards, drawn anew for every pass, or where there are fewer shards than readers, every n-th row. Rows are
    shuffled in blocks of `buffer_size`. What an example is depends on the seed, the pass and the row alone. A stream of
    `take` or `skip` counts as a single shard.

    `position` says how far a reader is, and goes with each batch. From the positions of all, `load_state_dict` goes on
    with just the examples that follow; if there are other numbers of processes or workers now, each of these
    first finishes passes for some of the former readers, so that in all still every row comes once in a pass.

    Args:
        dataset: the rows, pictures not decoded.
        make_example: makes one of a row, drawing from a generator. It raises Unusable for rows that are to be skipped.
        seed: of everything that is random.
        buffer_size: rows among which is shuffled.
        train: for training.

    Raises:
        ValueError: when it is read: `make_example` raised it; or all rows of a pass are unusable, in training.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        make_example: MakeExample,
        seed: int = 0,
        buffer_size: int = SHUFFLE_BUFFER,
        train: bool = True,
    ) -> None:
        if buffer_size < 1:
            raise ValueError(f"a stream is shuffled among at least 1 row; got {buffer_size}")
        self.dataset, self.make_example, self.seed, self.train = dataset, make_example, seed, train
        self.buffer_size = buffer_size if train else 1
        self.is_selection = selects_by_number(dataset._ex_iterable)
        # In order, rows come from one file after the other.
        self.num_shards = min(dataset.num_shards, MAX_SHARDS) if train and not self.is_selection else 1
        self.share_out(processes=1, process=0, workers=0)

    # ---- Sharing out ----

    def share_out(self, processes: int, process: int, workers: int) -> None:
        """Say how many processes with how many workers read, and which one this is; starts anew."""
        self.processes, self.process, self.workers = processes, process, max(1, workers)
        last = None if self.train else 0
        self.starts = [new_reader(self.num_readers, reader, 0, last) for reader in range(self.num_readers)]

    @property
    def num_readers(self) -> int:
        """The workers of all processes."""
        return self.processes * self.workers

    @property
    def own_readers(self) -> range:
        """The numbers of the readers in this process."""
        return range(self.process * self.workers, (self.process + 1) * self.workers)

    def units(self, number: int, readers: int, reader: int) -> list[tuple[int, int, int]]:
        """What of a pass is a reader's, see [`Share`]."""
        shards = list(range(self.num_shards))
        if self.train:
            random.Random(f"{self.seed}-{number}").shuffle(shards)
        parts = readers // math.gcd(readers, len(shards)) if len(shards) < readers else 1
        units = [(shard, part, parts) for shard in shards for part in range(parts)]
        return units[(reader + number) % readers :: readers]  # who has one more changes with the pass

    def _open_shard(self, number: int) -> datasets.IterableDataset:
        # Of concatenated streams, `shard` divides each, even where one shard is asked for.
        if self.is_selection:
            return deepcopy(self.dataset, shared_parts(self.dataset._ex_iterable))
        return self.dataset.shard(self.num_shards, number)

    # ---- Reading ----

    def __iter__(self) -> Iterator[Row]:
        worker = get_worker_info()
        if worker is not None:
            if worker.num_workers != self.workers:  # a loader of its own, such as an evaluation's
                self.share_out(self.processes, self.process, worker.num_workers)
            fsspec.asyn.reset_lock()  # a lock that was held when the worker was forked would be held for ever
        self._reader = self.own_readers[worker.id if worker is not None else 0]
        self._progress = deepcopy(self.starts[self._reader])
        tasks = self._progress["tasks"]
        while tasks:
            yield from self._follow(tasks[0])
            del tasks[0]

    def position(self) -> str:
        """Where the reader of this worker is after the last example that it gave, as JSON."""
        return json.dumps({"reader": self._reader, **self._progress})

    def _follow(self, task: dict[str, Any]) -> Iterator[Row]:
        barren, reason = 0, ""
        while task["last"] is None or task["pass"] <= task["last"]:
            is_barren = True
            for shard, row, columns in self._shuffled(task):
                generator = random.Random(f"{self.seed}-{task['pass']}-{shard}-{row}")
                try:
                    example = self.make_example(columns, generator)
                except Unusable as error:
                    self._progress["skipped"] += 1
                    reason = f"row {row} of shard {shard}: {error}"
                    logger.warning(f"skipped {reason}")
                    continue
                except ValueError as error:
                    raise ValueError(f"row {row} of shard {shard}: {error}") from error
                is_barren = False
                yield example
            task.update({**BEGINNING, "pass": task["pass"] + 1})
            barren = barren + 1 if is_barren else 0
            if self.train and barren > task["readers"]:
                raise ValueError(f"the stream has no row that could be used{f', such as {reason}' if reason else ''}")

    def _shuffled(self, task: dict[str, Any]) -> Iterator[tuple[int, int, Row]]:
        """The rows of a task's pass, block by block; while one is given the next is read, a row for a row."""
        units = self.units(task["pass"], task["readers"], task["reader"])
        share = Share(self._open_shard, units, task["unit"], task["row"], task["state"])
        rows, start, given = iter(share), share.place(), task["given"]
        block, next_start = list(islice(rows, self.buffer_size)), share.place()
        while block:
            next_block: list[tuple[int, int, Row]] = []
            shard, row, _ = block[0]
            random.Random(f"{self.seed}-{task['pass']}-{shard}-{row}-block").shuffle(block)
            for count in range(1, len(block) + 1):
                entry = block.pop()
                next_block += islice(rows, 1)
                if count > given:
                    task.update(start, given=count)
                    yield entry
            start, block, next_start, given = next_start, next_block, share.place(), 0

    # ---- Resuming ----

    def state_dict(self, progress: dict[int, dict[str, Any]]) -> dict[str, Any]:
        """
        The state of all readers.

        Args:
            progress: what `position` said of the readers of all processes, by their numbers; of those that are not
                among them nothing has been used.
        """
        readers = [progress.get(number, start) for number, start in enumerate(self.starts)]
        return {"num_shards": self.num_shards, "readers": readers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Go on from there.

        Raises:
            ValueError: the data are others.
        """
        if state["num_shards"] != self.num_shards:
            raise ValueError(
                f"the data come in {counted(self.num_shards, 'shard')}, and came in {state['num_shards']} when the "
                "checkpoint was written: `ignore_data_skip` begins with them anew"
            )
        readers = state["readers"]
        self.starts = readers if len(readers) == self.num_readers else redistribute(readers, self.num_readers)


def selects_by_number(rows: Any) -> bool:
    """Whether `take` or `skip` is part of a stream: of its shards, `datasets` would take, or skip, other rows."""
    is_selection = isinstance(rows, TakeExamplesIterable | SkipExamplesIterable)
    return is_selection or any(map(selects_by_number, sources_of(rows)))


def sources_of(rows: Any) -> list[Any]:
    """What a part of a stream reads."""
    return [*getattr(rows, "ex_iterables", ()), *filter(None, [getattr(rows, "ex_iterable", None)])]


def shared_parts(rows: Any) -> dict[int, Any]:
    """For `deepcopy`: a stream's functions and data, which may be large or hold what can't be copied."""
    parts = [getattr(rows, name, None) for name in ("function", "generate_examples_fn")]
    for name in ("kwargs", "fn_kwargs"):
        parts += (getattr(rows, name, None) or {}).values()
    shared = {id(part): part for part in parts if part is not None}
    for source in sources_of(rows):
        shared |= shared_parts(source)
    return shared


def new_task(readers: int, reader: int, number: int, last: int | None) -> dict[str, Any]:
    """To read what of passes from `number` on, to `last` if there is one, is the share of one of so many readers."""
    return {"readers": readers, "reader": reader, "pass": number, "last": last, **BEGINNING}


def new_reader(readers: int, reader: int, number: int, last: int | None = None) -> dict[str, Any]:
    """One of so many readers before a pass: how many rows it has skipped, and its tasks in order."""
    return {"skipped": 0, "tasks": [new_task(readers, reader, number, last)]}


def redistribute(readers: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """
    Give what former readers leave to another number of readers.

    These finish the passes that have been begun, in the former shares, and then read shares of their own.
    """
    tasks = [dict(task) for reader in readers for task in reader["tasks"]]
    last = max(task["pass"] for task in tasks)
    for task in tasks:
        task["last"] = last if task["last"] is None else task["last"]
    successors = [new_reader(count, number, last + 1) for number in range(count)]
    for number, successor in enumerate(successors):
        successor["tasks"] = tasks[number::count] + successor["tasks"]
    successors[0]["skipped"] = sum(reader["skipped"] for reader in readers)
    return successors
