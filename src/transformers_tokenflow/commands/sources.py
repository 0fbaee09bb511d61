# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Pictures to encode, with what is known about them: files with a folder's metadata, and rows of parquet files."""

import csv
import io
import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from transformers.utils import logging

from ..image_reading_tokenflow import open_encoded, open_picture
from . import CommandError, counted, one_line
from .code_files import COLUMNS, damage_reported, open_table
from .pictures import PictureFile, Source, find_pictures, path_text

logger = logging.get_logger(__name__)

# The column that is always kept, where there is one: `imagefolder` calls captions so.
TEXT = "text"
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FILE_NAMES = {"file_name", "image_file_name"}


@dataclass
class Sources:
    """Pictures in order, and the columns that are kept of what is known about them."""

    pictures: list[Source]
    fields: list[pa.Field]


def find_sources(paths: Iterable[Path], keep: Iterable[str] | None = None) -> Sources:
    """
    The pictures of files, of folders, and of parquet files with a column of pictures, on their own or in folders.

    Of a folder's `metadata.jsonl`, `.csv` or `.parquet`, as `datasets` reads them, and of parquet files, the column
    `text` is kept, and those that are asked for; warnings say of which metadata nothing is, and which rows have no
    picture.

    Args:
        paths: files and folders.
        keep: names of columns; None where what is known about pictures does not matter.

    Raises:
        CommandError: a column is nowhere, has several types or the pictures, or a file of metadata can't be read.
    """
    is_kept, keep = keep is not None, list(keep or ())
    names = list(dict.fromkeys([TEXT, *keep]))
    if taken := sorted(set(names) & set(COLUMNS.names)):
        raise CommandError(f"{', '.join(taken)} can't be kept: the file of codes has columns of its own called so")
    pictures: dict[str, Source] = {}
    types: dict[str, pa.DataType] = {}
    groups = RowGroups()
    for path in paths:
        for table in find_tables(path, groups):
            if table.column in keep:
                raise CommandError(f"{table.column} can't be kept: the column has the pictures of {table.path}")
            note_types(types, {name: table.types[name] for name in names if name in table.types}, table.path)
            for index in range(table.num_rows):
                row = PictureRow(table, index, names)
                pictures.setdefault(os.path.abspath(row.name), row)
        if path.suffix != ".parquet":
            folder = PictureFolder(path, names)
            for file in find_pictures([path]):
                picture = PictureFile(file, folder.known(file))
                pictures.setdefault(os.path.abspath(picture.name), picture)
            note_types(types, folder.types(), path)
            if is_kept:
                warn_of_losses(path, folder)
    if missing := [name for name in keep if name not in types]:
        raise CommandError(f"nothing here has a column {', '.join(missing)} that could be kept")
    return Sources(list(pictures.values()), [pa.field(name, types[name]) for name in names if name in types])


def note_types(types: dict[str, pa.DataType], found: dict[str, pa.DataType], path: Path) -> None:
    """Add the types of a source's columns to those of the sources before it."""
    for name, kind in found.items():
        if types.setdefault(name, kind) != kind:
            raise CommandError(f"the column {name} of {path} is {kind}, and {types[name]} before")


def warn_of_losses(path: Path, folder: "PictureFolder") -> None:
    """Say of which metadata nothing is kept, and which of its rows have no picture."""
    if folder.columns and not folder.columns & set(folder.names):
        columns = ", ".join(sorted(folder.columns))
        logger.warning(f"of the metadata in {path}, columns {columns}, nothing is kept: name those to keep")
    if path.is_dir() and (unused := folder.unused()):
        count = counted(len(unused), "row")
        logger.warning(f"of the metadata in {path}, {count} match no picture there, such as that of {unused[0]}")


class PictureFolder:
    """
    What the metadata of a folder and the folders in it say about their pictures.

    Args:
        root: the folder, or a picture file.
        names: of the columns that are kept.
    """

    def __init__(self, root: Path, names: list[str]):
        self.root, self.names = root if root.is_dir() else root.parent, names
        self.by_folder: dict[Path, dict[str, dict[str, Any]] | None] = {}
        self.columns: set[str] = set()
        self.used: set[Path] = set()

    def known(self, file: Path) -> dict[str, Any]:
        """What is kept of a picture: the nearest metadata on the way up to the root counts."""
        folder = file.parent
        while True:
            if folder not in self.by_folder:
                self.by_folder[folder] = self._read(folder)
            metadata = self.by_folder[folder]
            if metadata is not None:
                self.used.add(file)
                return metadata.get(file.relative_to(folder).as_posix(), {})
            if folder == self.root:
                return {}
            folder = folder.parent

    def _read(self, folder: Path) -> dict[str, dict[str, Any]] | None:
        path = next((folder / name for name in METADATA_NAMES if (folder / name).is_file()), None)
        if path is None or (path.suffix == ".parquet" and not names_pictures(path)):
            return None
        rows = {}
        for row in read_metadata(path):
            name = os.path.normpath(row["file_name"]).replace("\\", "/")  # as `datasets` does
            rows[name] = {name: row[name] for name in self.names if row.get(name) is not None}
            self.columns |= row.keys() - {"file_name"}
        return rows

    def unused(self) -> list[Path]:
        """The files that rows name, but for the pictures that have been asked for."""
        named = [folder / name for folder, rows in self.by_folder.items() for name in rows or ()]
        return [file for file in named if file not in self.used]

    def types(self) -> dict[str, pa.DataType]:
        """The types of the columns found, as far as pictures have been asked for."""
        rows = [row for metadata in self.by_folder.values() for row in (metadata or {}).values()]
        types = {}
        for name in self.names:
            values = [row[name] for row in rows if name in row]
            if values:
                try:
                    types[name] = pa.array(values).type
                except (pa.ArrowException, ValueError, OverflowError) as error:
                    raise CommandError(f"the column {name} of {self.root} can't be kept: {one_line(error)}") from error
        return types


def read_metadata(path: Path) -> list[dict[str, Any]]:
    """
    The rows of a `metadata.jsonl`, `.csv` or `.parquet`.

    Raises:
        CommandError: it can't be read, or a row has no `file_name`, which may be called `image_file_name`, too.
    """
    if path.suffix == ".parquet":
        with open_table(path) as file, damage_reported(path):
            rows = file.read().to_pylist()
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")  # spreadsheets begin a file with a mark
            rows = read_csv(text) if path.suffix == ".csv" else [json.loads(s) for s in text.split("\n") if s.strip()]
        except (ValueError, RecursionError, csv.Error) as error:
            raise CommandError(f"{path} can't be read: {one_line(error)}") from error
    for row in rows:
        if isinstance(row, dict) and "image_file_name" in row:
            row.setdefault("file_name", row.pop("image_file_name"))
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise CommandError(f"every row of {path} needs a file_name; got {row!r:.200}")
    return rows


def names_pictures(path: Path) -> bool:
    """Whether a parquet file is a folder's metadata, and no table of pictures or of something else."""
    with open_table(path) as file:
        return not FILE_NAMES.isdisjoint(file.schema_arrow.names)


def read_csv(text: str) -> list[dict[str, Any]]:
    """The rows of a table with a header; a ValueError where one is longer than that."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows = []
    for row in reader:
        if any(row.pop(None, ())):
            raise ValueError(f"line {reader.line_num} has more cells than the header; put texts with commas in quotes")
        rows.append(row)
    return rows


def find_tables(source: Path, groups: "RowGroups") -> Iterator["PictureTable"]:
    """
    The parquet files with a column of pictures: the source itself, or all in a folder, in order of names.

    Args:
        source: a file or folder.
        groups: holds what is read of all of them.

    Raises:
        CommandError: the source is a parquet file without pictures.
    """
    if source.is_file():
        if source.suffix == ".parquet":
            yield PictureTable(source, groups)
        return
    for parent, folders, names in os.walk(source):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix == ".parquet" and not name.startswith(".") and has_pictures(path):
                yield PictureTable(path, groups)


def has_pictures(path: Path) -> bool:
    """Whether a parquet file has a column of pictures."""
    with open_table(path) as file:
        return picture_column(file) is not None


def picture_column(file: pq.ParquetFile) -> str | None:
    """The first column that holds pictures as `datasets` writes them: structures of `bytes` and `path`."""
    for field in file.schema_arrow:
        if pa.types.is_struct(field.type) and {part.name for part in field.type} == {"bytes", "path"}:
            return field.name
    return None


class RowGroups:
    """
    The last two groups of rows that were read, of any number of parquet files: where one ends and the next begins,
    threads want both. No file stays open, since there may be more of them than a process may open.
    """

    def __init__(self) -> None:
        self.groups: dict[tuple[Path, int], pa.Table] = {}
        self.lock = Lock()  # pictures are read in threads

    def read(self, path: Path, number: int, columns: list[str]) -> pa.Table:
        """A group of a file by its number; of the same file always with the same columns."""
        with self.lock:
            if (path, number) not in self.groups:
                if len(self.groups) > 1:
                    del self.groups[next(iter(self.groups))]
                with open_table(path) as file:
                    self.groups[path, number] = file.read_row_group(number, columns=columns)
            return self.groups[path, number]


class PictureTable:
    """
    A parquet file with a column of pictures.

    Args:
        path: the file.
        groups: holds what is read of it.

    Raises:
        CommandError: it is no parquet file, or has no pictures.
    """

    def __init__(self, path: Path, groups: RowGroups):
        self.path, self.groups = path, groups
        with open_table(path) as file:
            self.column = picture_column(file)
            self.num_rows = file.metadata.num_rows
            self.types = {field.name: field.type for field in file.schema_arrow}
            counts = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        if self.column is None:
            columns = ", ".join(f"{name} ({kind})" for name, kind in self.types.items())
            raise CommandError(f"{path} has no column of pictures, of bytes and path; it has {columns}")
        self.starts = list(accumulate(counts, initial=0))

    def row(self, index: int, names: list[str]) -> dict[str, Any]:
        """The picture of a row and the columns of those names."""
        number = bisect_right(self.starts, index) - 1
        columns = [self.column, *(name for name in names if name in self.types)]
        group = self.groups.read(self.path, number, columns)
        return group.slice(index - self.starts[number], 1).to_pylist()[0]


@dataclass(frozen=True)
class PictureRow:
    """A picture in a row of a parquet file; its name is the file's, with the row's number as another part."""

    table: PictureTable
    index: int
    names: list[str]

    @property
    def path(self) -> Path:
        """The file that it is in."""
        return self.table.path

    @property
    def name(self) -> str:
        """`FILE.parquet/000012`"""
        return f"{path_text(self.table.path)}/{self.index:06d}"

    def read(self) -> tuple[Image.Image, dict[str, Any]]:
        """The picture, and what is kept of its row."""
        row = self.table.row(self.index, self.names)
        encoded = row.pop(self.table.column)
        if encoded is None or encoded["bytes"] is encoded["path"] is None:
            raise ValueError("the row has no picture")
        content = encoded["bytes"]
        if content is not None:
            return open_encoded(content), row
        return open_picture(file_beside(self.table.path, encoded["path"])), row


def file_beside(table: Path, name: str) -> Path:
    """
    The file that a row names instead of holding it.

    Raises:
        ValueError: it lies elsewhere than in the folder of the table, whose author may know of this machine's files.
    """
    folder = table.parent.resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"{name} is no file in {folder}, where a table's pictures lie")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return path
