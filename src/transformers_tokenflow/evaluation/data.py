# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Rows to evaluate on: whatever `datasets` loads, and what tells it apart from other data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from . import EvaluationError
from .report import texts_digest

BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv"}
DEFAULT_SPLITS = ("test", "validation", "train")
REVISION = re.compile(r"@([0-9a-f]{40})/")


@dataclass(frozen=True)
class DatasetPicture:
    """A picture in a row of a dataset."""

    rows: datasets.Dataset
    index: int
    column: str

    @property
    def path(self) -> Path:
        """The file that holds its row."""
        return Path(self.rows.cache_files[0]["filename"])

    @property
    def name(self) -> str:
        """The row's number."""
        return f"{self.index:08d}"

    def read(self) -> tuple[Image.Image, dict[str, Any]]:
        """The picture; nothing more is known about it."""
        picture = self.rows[self.index][self.column]
        if picture is None:
            raise ValueError("the row has no picture")
        return picture, {}


def load_rows(
    source: str, config: str | None, split: str | None, columns: Sequence[str], limit: int | None = None
) -> datasets.Dataset:
    """
    Rows of anything that `datasets.load_dataset` reads.

    Args:
        source: a file (parquet, JSON lines, CSV), a folder, or a repository of the Hub.
        config: of the dataset.
        split: its name; by default the first there is of test, validation and train.
        columns: that must be there.
        limit: how many, the first ones; by default all.

    Raises:
        EvaluationError: there is no such data, split or column, or there are no rows.
    """
    path = Path(source)
    options: dict[str, Any] = {"path": source, "name": config}
    if path.is_file():
        if path.suffix not in BUILDERS:
            raise EvaluationError(f"{source} is no table: its name must end in {', '.join(BUILDERS)}")
        options = {"path": BUILDERS[path.suffix], "data_files": source}
    try:
        rows = datasets.load_dataset(**options, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise EvaluationError(f"the data {source} can't be loaded: {error}") from error
    if split is None:
        rows = rows[next((name for name in DEFAULT_SPLITS if name in rows), next(iter(rows)))]
    if missing := [name for name in columns if name not in rows.column_names]:
        raise EvaluationError(
            f"{source} has no column {', '.join(missing)}; its columns are {', '.join(rows.column_names)}"
        )
    if limit is not None:
        rows = rows.take(min(limit, len(rows)))
    if not len(rows):
        raise EvaluationError(f"there are no rows in {source}, split {rows.split}")
    return rows


def describe_rows(source: str, config: str | None, rows: datasets.Dataset) -> dict[str, Any]:
    """What a report says about rows: where they come from, and how many there are."""
    found = REVISION.search(" ".join(rows.info.download_checksums or {}))
    on_hub = not Path(source).exists()
    return {
        "dataset": source if on_hub else Path(source).resolve().stem,
        "on_hub": on_hub,
        "path": None if on_hub else source,
        "config": config,
        "split": str(rows.split),
        "revision": found[1] if found is not None else None,
        # `datasets` names the cache of local data by their files' sizes and times.
        "files": None
        if on_hub
        else texts_digest(["/".join(Path(file["filename"]).parts[-4:]) for file in rows.cache_files]),
        "rows": len(rows),
    }
