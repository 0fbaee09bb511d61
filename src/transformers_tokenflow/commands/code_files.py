# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Parquet files of codes: written so that nothing finished gets lost, and read with every row checked."""

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from . import CommandError, one_line
from .processes import ALONE, Processes

COLUMNS = pa.schema(
    [("path", pa.string()), ("codes", pa.list_(pa.int32())), ("height", pa.int32()), ("width", pa.int32())]
)
METADATA_KEY = b"tokenflow"
ROWS_PER_GROUP = 4096
# Says where the model was found, not what it is.
NAMES = {"model", "revision"}
# The folder that relative names of pictures begin in. Earlier versions did not write it.
NAMED_FROM = "pictures_named_from"


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` at the end: that is always whole, old or new."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_description(file: pq.ParquetFile) -> dict[str, Any] | None:
    """What a file of codes says about the tokenizer they come from; a ValueError where that is no JSON object."""
    metadata = file.schema_arrow.metadata or {}
    if METADATA_KEY not in metadata:
        return None
    description = json.loads(metadata[METADATA_KEY])
    if not isinstance(description, dict):
        raise ValueError(f"expected an object, got {type(description).__name__}")
    return description


class CodeWriter:
    """
    Writes rows to numbered parts beside the output, and joins them into it at the end.

    A part is either whole or not there, and parts go only after the output has taken them in. So whenever a run is
    killed, the next one, of however many processes, finds what was flushed and goes on from there. One run at a time
    can write an output. Each of its processes has a writer, and the main one's joins the parts of all.

    Args:
        output: the parquet file; if it exists, it is added to.
        description: of the tokenizer, kept as metadata. It must be that of what has been written before.
        fields: of columns beside `COLUMNS`, which must be those of what has been written before.
        processes: those of the run.
        is_current: whether a row that was written before still holds: it is called with its path, the columns beside
            `COLUMNS`, and the time of its file's last change in nanoseconds. Rows that don't are not in `done`, and go.

    Raises:
        CommandError: another run writes the output, or it can't be added to.
    """

    def __init__(
        self,
        output: Path,
        description: dict[str, Any],
        fields: Iterable[pa.Field] = (),
        processes: Processes = ALONE,
        is_current: Callable[[str, dict[str, Any], int], bool] = lambda name, kept, time: True,
    ):
        self.output, self.processes = output, processes
        self.description = description
        columns = pa.schema([*COLUMNS, *fields])
        self.schema = columns.with_metadata({METADATA_KEY: json.dumps(description)})
        self.folder = output.with_name(f"{output.name}.parts")
        self.lock = FileLock(self.folder / "lock")
        if processes.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self.lock.acquire(timeout=0)
            except Timeout as error:
                raise CommandError(f"another process is writing {output}") from error
        processes.wait()
        self.rows: list[dict[str, Any]] = []
        self.done: set[str] = set()
        self.outdated: set[tuple[str, Path]] = set()
        try:
            files = self._files()
            for file in files:
                for name, kept, time in self._rows(file):
                    if is_current(name, kept, time):
                        self.done.add(name)
                    else:
                        self.outdated.add((name, file))
        except Exception:
            self.close()
            raise
        runs = [int(number) for file in files for number in re.findall(r"^part-(\d+)", file.name)]
        self.run, self.parts = max(runs, default=-1) + 1, 0
        processes.wait()  # nobody writes before all have looked

    def _files(self) -> list[Path]:
        """The output of an earlier run, if there is one, and the parts in the order of runs and of their pictures."""
        return [self.output] * self.output.exists() + sorted(self.folder.glob("part-*.parquet"))

    def _rows(self, path: Path) -> Iterator[tuple[str, dict[str, Any], int]]:
        """What `is_current` takes of each row of a file, after a check that it holds the same sort of codes."""
        file = open_codes(path)
        found = read_description(file) or {}
        if NAMED_FROM in found and NAMED_FROM not in self.description:  # relative names stay in the output
            self.description[NAMED_FROM] = found[NAMED_FROM]
            self.schema = self.schema.with_metadata({METADATA_KEY: json.dumps(self.description)})
        differing = [
            f"{name} ({found.get(name)} there, {value} now)"
            for name, value in self.description.items()
            if name not in NAMES and found.get(name) != value and (name in found or name != NAMED_FROM)
        ]
        if differing or not file.schema_arrow.equals(self.schema):
            columns = [
                ", ".join(f"{field.name} ({field.type})" for field in s) for s in (file.schema_arrow, self.schema)
            ]
            what = ", ".join(differing) or f"its columns ({columns[0]} there, {columns[1]} now)"
            hint = "If it was moved, put it back. " * (NAMED_FROM in what)
            raise CommandError(f"{path} can't be added to: {what} differ. {hint}Remove it or write elsewhere.")
        time = path.stat().st_mtime_ns
        columns = ["path", *(name for name in self.schema.names if name not in COLUMNS.names)]
        for batch in read_in_batches(path, file, ROWS_PER_GROUP, columns):
            yield from ((row.pop("path"), row, time) for row in batch.to_pylist())

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Keep rows, with a value for each of `COLUMNS` and maybe for others, until the next flush."""
        self.rows.extend(rows)

    def flush(self) -> int:
        """Write what has been added since as a part, and return the number of rows."""
        if not self.rows:
            return 0
        # A process of a killed run may write for a moment longer: under no other's name, at least.
        name = f"part-{self.run:05d}-{self.processes.rank:05d}-{self.parts:05d}-{uuid.uuid4().hex[:8]}.parquet"
        with written_atomically(self.folder / name) as temporary, temporary.open("wb") as file:
            pq.write_table(pa.Table.from_pylist(self.rows, schema=self.schema), file)
        self.parts += 1
        count = len(self.rows)
        self.done.update(row["path"] for row in self.rows)
        self.rows = []
        return count

    def finish(self) -> None:
        """Join all parts into the output, every picture once, and remove them: the main process, when all are done."""
        try:
            self.flush()
            if any(self.folder.glob("part-*.parquet")):
                self._join()
            shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            self.lock.release()  # last: the next writer must find the folder as it stays

    def close(self) -> None:
        """Flush, and leave the parts, if there are any, where they are."""
        try:
            self.flush()
            if self.processes.is_main and not any(self.folder.glob("part-*.parquet")):
                shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            self.lock.release()

    def _join(self) -> None:
        with (
            written_atomically(self.output) as temporary,
            temporary.open("wb") as file,
            pq.ParquetWriter(file, self.schema) as writer,
        ):
            group: list[pa.RecordBatch] = []
            for batch in self._distinct_rows():
                group.append(batch)
                if sum(len(part) for part in group) >= ROWS_PER_GROUP:
                    writer.write_table(pa.Table.from_batches(group).cast(self.schema))
                    group = []
            if group:
                writer.write_table(pa.Table.from_batches(group).cast(self.schema))

    def _distinct_rows(self) -> Iterator[pa.RecordBatch]:
        """
        All rows in order that still hold; a run killed between joining and the removal of its parts left some twice.
        """
        seen: set[str] = set()
        for path in self._files():
            for batch in open_table(path).iter_batches(ROWS_PER_GROUP):
                is_new = []
                for name in batch["path"].to_pylist():
                    is_new.append(name not in seen and (name, path) not in self.outdated)
                    if is_new[-1]:
                        seen.add(name)
                yield batch.filter(pa.array(is_new))


def read_in_batches(path: Path, file: pq.ParquetFile, size: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of a file that has been opened; a CommandError where it is damaged further on, or lacks rows."""
    count = 0
    with damage_reported(path):
        rows = max(1, file.metadata.num_rows)
        for batch in file.iter_batches(min(size, rows), columns=columns):
            count += len(batch)
            yield batch
        if count != file.metadata.num_rows:
            raise OSError(f"it says that it has {file.metadata.num_rows} rows, but has {count}")


@contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """What reading a damaged parquet file raises, as a CommandError; letters that are none are a UnicodeDecodeError."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise CommandError(f"{path} is damaged: {one_line(error)}") from error


class TableFile(pq.ParquetFile):
    """A parquet file of any name: of a path pyarrow would take colons for a URI, and only letters of UTF-8."""

    def __init__(self, path: Path):
        super().__init__(pa.OSFile(os.fsencode(path)))

    def close(self, force: bool = True) -> None:
        """Close the file as well, which pyarrow leaves to the one who opened it."""
        super().close(force)


def open_table(path: Path) -> pq.ParquetFile:
    """Open a parquet file, or raise a CommandError."""
    try:
        file = TableFile(path)
        file.schema_arrow  # noqa: B018  # names and metadata that can't be read are found here
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise CommandError(f"{path} can't be read as parquet: {one_line(error)}") from error
    return file


def open_codes(path: Path) -> pq.ParquetFile:
    """
    Open a parquet file that has a column of codes.

    Raises:
        CommandError: it is no parquet file, has no lists of integers called `codes`, or a damaged description.
    """
    file = open_table(path)
    schema = file.schema_arrow
    kind = schema.field("codes").type if "codes" in schema.names else None
    is_list = kind is not None and (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    if not is_list or not pa.types.is_integer(kind.value_type):
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise CommandError(f"{path} needs a column `codes` of lists of integers; it has {columns}")
    try:
        read_description(file)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"what {path} says about its tokenizer can't be read: {one_line(error)}") from error
    return file
