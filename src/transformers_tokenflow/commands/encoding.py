# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Pictures to a parquet file of codes, and back."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers.utils import logging

from ..quantization_tokenflow import prefix_lengths
from . import Advance, CommandError, counted
from .code_files import NAMED_FROM, CodeWriter, open_codes, read_description, read_in_batches
from .pictures import FileNames, PictureBatch, PictureFile, Source, read_batches, refuse_no_pictures
from .processes import ALONE, Processes
from .sources import find_sources
from .tokenizers import Tokenizer

logger = logging.get_logger(__name__)

# What a killed run loses at most. Longer saves nothing worth it: a part is written in milliseconds.
SECONDS_BETWEEN_PARTS = 5.0
ROWS_PER_PART = 4096


@dataclass
class EncodingReport:
    """How many pictures a run encoded, how many it found done, and which it could not read."""

    encoded: int = 0
    done_before: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def put_together(reports: list[EncodingReport]) -> EncodingReport:
    """One report of all processes of a run."""
    failures = {path: reason for report in reports for path, reason in report.failures.items()}
    return EncodingReport(sum(report.encoded for report in reports), reports[0].done_before, failures)


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a file of codes says about the tokenizer they come from."""
    config = tokenizer.model.config
    return {
        "model": tokenizer.name,
        "revision": getattr(config, "_commit_hash", None),
        "codebook": tokenizer.codebook_hash(),
        "codebook_size": config.codebook_size,
        "scales": config.scales,
        "image_size": config.image_size,
        "dtype": str(tokenizer.model.dtype).removeprefix("torch."),
        "preprocessing": tokenizer.preprocessing(),
    }


def describe_names(sources: Iterable[Path], output: Path) -> dict[str, str]:
    """What a file of codes says about names in it that hold for one folder alone: which one, seen from the file's."""
    if all(source.is_absolute() for source in sources):
        return {}
    try:
        return {NAMED_FROM: os.path.relpath(Path.cwd(), output.resolve().parent)}
    except ValueError:  # on Windows, another drive
        return {NAMED_FROM: str(Path.cwd())}


def ignore_progress(done: int, total: int) -> None:
    """What is told of progress when nobody listens."""


def encode_pictures(
    sources: list[Path],
    output: Path,
    tokenizer: Tokenizer,
    batch_size: int,
    advance: Advance = ignore_progress,
    keep: Iterable[str] = (),
    processes: Processes = ALONE,
) -> EncodingReport:
    """
    Encode pictures to a parquet file with the columns path, codes, height and width, and those that are kept.

    Pictures that the file, or an interrupted run's parts beside it, already has are not encoded again, unless their
    files, or what is kept of them, changed since; a warning says how many did, and how many are gone. Pictures that
    can't be read are left out and reported. Several processes, which must see the same files, share out the pictures:
    each calls this, and gets a report of what all have done.

    Args:
        sources: picture files, parquet files with a column of pictures, and folders of both, see `find_sources`.
        output: the parquet file.
        tokenizer: see `load_tokenizer`.
        batch_size: pictures that go through the model at a time.
        advance: is told how many pictures are dealt with (done before, written, or found unreadable), of how many that
            are not another process' share.
        keep: columns that are kept beside `text`, of parquet files and of what folders say in their metadata.
        processes: among which the pictures are shared out.

    Raises:
        CommandError: there are no pictures, a column is nowhere, the output holds codes of another tokenizer or names
            of another folder, or the model refuses.
    """
    found = find_sources(sources, keep)
    refuse_no_pictures(found.pictures, sources)
    pictures = {picture.name: picture for picture in found.pictures}

    def is_current(name: str, kept: dict[str, Any], time: int) -> bool:
        return name not in pictures or not has_changed(pictures[name], kept, time)

    description = {**describe(tokenizer), **describe_names(sources, output)}
    writer = CodeWriter(output, description, found.fields, processes, is_current)
    report = EncodingReport()
    try:
        if processes.is_main:
            warn_of_changes(writer, pictures, sources)
        remaining = [picture for name, picture in pictures.items() if name not in writer.done]
        report.done_before = len(pictures) - len(remaining)
        share = processes.share(remaining)
        total = report.done_before + len(share)
        last_flush = time.monotonic()
        for batch in read_batches(share, tokenizer.processor, batch_size):
            report.failures.update(batch.failures)
            writer.add(encode_batch(batch, tokenizer))
            if len(writer.rows) >= ROWS_PER_PART or time.monotonic() - last_flush >= SECONDS_BETWEEN_PARTS:
                report.encoded += writer.flush()
                last_flush = time.monotonic()
                advance(report.done_before + report.encoded + len(report.failures), total)
        report.encoded += writer.flush()
        advance(total, total)
        reports = processes.gather(report)  # when it returns, all have written what they had
    except BaseException:
        writer.close()
        raise
    if processes.is_main:
        writer.finish()
    return put_together(reports)


def has_changed(picture: Source, kept: dict[str, Any], time: int) -> bool:
    """Whether a picture's file has changed since a time in nanoseconds, or what is known about it is no longer this."""
    if isinstance(picture, PictureFile) and kept != {name: picture.known.get(name) for name in kept}:
        return True
    return picture.path.exists() and picture.path.stat().st_mtime_ns > time


def warn_of_changes(writer: CodeWriter, pictures: dict[str, Source], sources: Sequence[Path]) -> None:
    """Say how many of the pictures that were written before have changed, and how many of the sources' are gone."""
    if changed := {name for name, _ in writer.outdated} - writer.done:
        count = counted(len(changed), "picture")
        logger.warning(f"encoding {count} of {writer.output} anew: files, or columns that are kept, have changed")
    gone = [name for name in writer.done - pictures.keys() if any(map(Path(name).is_relative_to, sources))]
    if gone:
        some = f"{len(gone):,}, such as {min(gone)}"
        logger.warning(
            f"{writer.output} has codes of pictures that are gone ({some}): write elsewhere to leave them out"
        )


@torch.inference_mode()
def encode_batch(batch: PictureBatch, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The rows of a batch."""
    if not batch.pictures:
        return []
    with tokenizer.misfit_reported():
        codes = tokenizer.encode(batch.pixel_values())
    return [
        {"path": picture.path, "codes": row, "height": picture.height, "width": picture.width, **picture.known}
        for picture, row in zip(batch.pictures, codes.tolist(), strict=True)
    ]


def decode_pictures(
    source: Path, folder: Path, tokenizer: Tokenizer, batch_size: int, advance: Advance = ignore_progress
) -> int:
    """
    Decode every row of a parquet file of codes to a PNG with its picture's name.

    Args:
        source: a file written by `encode_pictures`, or any with a column `codes` of lists of integers: all scales or
            whole coarse ones alone.
        folder: is made if need be.
        tokenizer: the one that the codes come from.
        batch_size: pictures that go through the model at a time.
        advance: is told how many pictures are written, of how many.

    Returns:
        The number of pictures.

    Raises:
        CommandError: the file holds no codes, or not of this tokenizer, or pictures of other origin have their names.
    """
    file = open_codes(source)
    check_codebook(source, file, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    names = FileNames(folder)
    total, done = file.metadata.num_rows, 0
    for rows in read_rows(source, file, tokenizer, batch_size):
        with torch.inference_mode():
            pixel_values = tokenizer.decode(torch.tensor([row["codes"] for row in rows]))
        for row, picture in zip(rows, tokenizer.processor.postprocess(pixel_values), strict=True):
            names.save(picture, row["path"])
        done += len(rows)
        advance(done, total)
    return done


def check_codebook(source: Path, file: pq.ParquetFile, tokenizer: Tokenizer) -> None:
    """Raise a CommandError for codes that say they come from another tokenizer."""
    description = read_description(file)
    if description is not None and description.get("codebook") != tokenizer.codebook_hash():
        raise CommandError(
            f"the codes in {source} come from {description.get('model')} (codebook {description.get('codebook')}), "
            f"not from {tokenizer.name} (codebook {tokenizer.codebook_hash()}): pass theirs with --model"
        )


def read_rows(
    source: Path, file: pq.ParquetFile, tokenizer: Tokenizer, batch_size: int
) -> Iterator[list[dict[str, Any]]]:
    """Rows in batches of one length, each with `codes` that the tokenizer can decode and a `path`."""
    lengths = prefix_lengths(tokenizer.model.config.scales)
    size = tokenizer.model.config.codebook_size
    columns = [name for name in ("path", "codes") if name in file.schema_arrow.names]
    number = 0
    for batch in read_in_batches(source, file, batch_size, columns):
        rows = []
        for row in batch.to_pylist():
            name = f"row {number} of {source}"
            codes = row["codes"] or []
            if len(codes) not in lengths:
                raise CommandError(
                    f"{name} has {counted(len(codes), 'code')}; {tokenizer.name} decodes {_list(lengths)}"
                )
            if None in codes or not 0 <= min(codes) <= max(codes) < size:
                raise CommandError(f"{name} has codes outside [0, {size}), which {tokenizer.name} does not know")
            path = row.get("path")
            rows.append({"codes": codes, "path": path if path and isinstance(path, str) else f"{number:06d}"})
            number += 1
        yield from (list(group) for _, group in groupby(rows, key=lambda row: len(row["codes"])))


def _list(numbers: list[int]) -> str:
    return " or ".join([", ".join(map(str, numbers[:-1])), str(numbers[-1])]) if len(numbers) > 1 else str(numbers[0])
