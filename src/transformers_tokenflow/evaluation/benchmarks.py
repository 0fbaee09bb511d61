# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Prompts of GenEval, DPG-Bench and plain lists, and pictures where the benchmarks' own programs look for them."""

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..commands.code_files import written_atomically
from . import EvaluationError

DPG_BENCH_PICTURES = 4
TEXT_SUFFIXES = (".txt", "")


@dataclass(frozen=True)
class Prompt:
    """
    What to draw.

    Args:
        name: of its file or folder.
        text: the prompt.
        metadata: what the benchmark knows about it.
    """

    name: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


class PictureFolder(ABC):
    """
    A folder of pictures in the form of a benchmark.

    Args:
        root: the folder.
        count: pictures of each prompt.
    """

    def __init__(self, root: Path, count: int) -> None:
        self.root, self.count = root, count

    @abstractmethod
    def is_done(self, prompt: Prompt) -> bool:
        """Whether all of a prompt's pictures are there."""

    @abstractmethod
    def write(self, prompt: Prompt, pictures: Sequence[Image.Image]) -> None:
        """Write a prompt's pictures, all or nothing."""

    @abstractmethod
    def read(self, prompt: Prompt) -> list[Image.Image]:
        """A prompt's pictures."""


class GenEvalFolder(PictureFolder):
    """`00000/metadata.jsonl`, `00000/grid.png` and `00000/samples/0000.png` onwards, as GenEval's `evaluate_images.py`
    reads them."""

    def is_done(self, prompt: Prompt) -> bool:
        return all(path.is_file() for path in self._paths(prompt))

    def _paths(self, prompt: Prompt) -> list[Path]:
        return [self.root / prompt.name / "samples" / f"{number:04d}.png" for number in range(self.count)]

    def write(self, prompt: Prompt, pictures: Sequence[Image.Image]) -> None:
        folder, temporary = self.root / prompt.name, self.root / f".{prompt.name}"
        for path in (folder, temporary):
            shutil.rmtree(path, ignore_errors=True)
        (temporary / "samples").mkdir(parents=True)
        (temporary / "metadata.jsonl").write_text(json.dumps(prompt.metadata, ensure_ascii=False), encoding="utf-8")
        for path, picture in zip(self._paths(prompt), pictures, strict=True):
            picture.save(temporary / "samples" / path.name)
        tile(pictures).save(temporary / "grid.png")
        temporary.rename(folder)

    def read(self, prompt: Prompt) -> list[Image.Image]:
        return [Image.open(path).convert("RGB") for path in self._paths(prompt)]


class DpgBenchFolder(PictureFolder):
    """`NAME.png` for `NAME.txt`: four pictures in a square without gaps, as DPG-Bench's `compute_dpg_bench.py` cuts."""

    def is_done(self, prompt: Prompt) -> bool:
        return self._path(prompt).is_file()

    def _path(self, prompt: Prompt) -> Path:
        return self.root / f"{prompt.name}.png"

    def write(self, prompt: Prompt, pictures: Sequence[Image.Image]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        with written_atomically(self._path(prompt)) as temporary:
            tile(pictures).save(temporary, format="PNG")

    def read(self, prompt: Prompt) -> list[Image.Image]:
        square = Image.open(self._path(prompt)).convert("RGB")
        side = square.width // 2
        corners = [(left, top) for top in (0, side) for left in (0, side)]
        return [square.crop((left, top, left + side, top + side)) for left, top in corners]


def tile(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size beside each other, two in a row, without gaps."""
    width, height = pictures[0].size
    columns = min(2, len(pictures))
    square = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
    for number, picture in enumerate(pictures):
        square.paste(picture, (number % columns * width, number // columns * height))
    return square


def read_prompts(source: Path) -> list[Prompt]:
    """
    Prompts of a file or folder.

    Args:
        source: GenEval's `evaluation_metadata.jsonl`, DPG-Bench's folder of a `.txt` each, or a text file, `.txt` or
            without a suffix, with a prompt in every line.

    Raises:
        EvaluationError: there are none, or they can't be read.
    """
    try:
        prompts = _read_prompts(source)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"the prompts of {source} can't be read: {error}") from error
    if not prompts:
        raise EvaluationError(f"there are no prompts in {source}")
    if empty := [prompt.name for prompt in prompts if not prompt.text]:
        raise EvaluationError(f"a prompt of {source} is empty: {empty[0]}")
    return prompts


def _read_prompts(source: Path) -> list[Prompt]:
    if source.is_dir():
        texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(source.glob("*.txt"))}
        return [Prompt(name, " ".join(text.split())) for name, text in texts.items()]
    if source.suffix not in (*TEXT_SUFFIXES, ".jsonl"):
        raise ValueError(f"its name must end in .txt or .jsonl, or have no suffix; got {source.suffix}")
    lines = [line for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    if source.suffix in TEXT_SUFFIXES:
        return [Prompt(f"{index:05d}", line.strip(), {"prompt": line.strip()}) for index, line in enumerate(lines)]
    rows = [json.loads(line) for line in lines]
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise ValueError(f"every line needs a prompt; got {row!r}")
    return [Prompt(f"{index:05d}", row["prompt"].strip(), row) for index, row in enumerate(rows)]


def picture_folder(source: Path, root: Path, count: int) -> PictureFolder:
    """
    The folder for the pictures of a source of prompts.

    Args:
        source: what `read_prompts` reads.
        root: where.
        count: pictures of each prompt.

    Raises:
        EvaluationError: the benchmark wants another number of pictures.
    """
    if not source.is_dir():
        return GenEvalFolder(root, count)
    if count != DPG_BENCH_PICTURES:
        raise EvaluationError(f"DPG-Bench takes {DPG_BENCH_PICTURES} pictures of each prompt; got {count}")
    return DpgBenchFolder(root, count)
