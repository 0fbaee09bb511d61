# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Finds, reads and names picture files. A file that can't be read is reported, and the others go on."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from threading import Lock
from typing import Any, Protocol

import torch
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from transformers.utils import logging

from ..image_processing_pil_tokenflow import TokenFlowImageProcessorMixin
from ..image_reading_tokenflow import open_picture, upright_size
from . import CommandError, counted, one_line

logger = logging.get_logger(__name__)

# In the pictures that commands write, so that they may be overwritten, and are not taken for pictures of a folder.
MARK = ("Software", "transformers-tokenflow")
# Texts come before the pixels; those of commands come first.
MARKED_BYTES = 2**10
READING_THREADS = 4
BATCHES_AHEAD = 2
# Of larger pictures one is read at a time: the largest that PIL opens takes gigabytes, though its file may be small.
PIXELS_AT_A_TIME = 2**24
LARGE_PICTURE = Lock()


@dataclass
class Picture:
    """
    A picture as the model takes it: `pixel_values` (3, H, H), beside the size of its file's upright picture, and what
    is known about it by the name of a column.
    """

    path: str
    height: int
    width: int
    pixel_values: torch.Tensor
    known: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Where a picture comes from, and what it is called."""

    @property
    def path(self) -> Path:
        """The file that it is, or is in."""

    @property
    def name(self) -> str: ...

    def read(self) -> tuple[Image.Image, dict[str, Any]]:
        """The picture, and what is known about it by the name of a column."""


@dataclass(frozen=True)
class PictureFile:
    """A picture in a file of its own."""

    path: Path
    known: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its path as text."""
        return path_text(self.path)

    def read(self) -> tuple[Image.Image, dict[str, Any]]:
        """The picture, and what was known about it beforehand."""
        return open_picture(self.path), self.known


@dataclass
class PictureBatch:
    """Pictures that could be read, and why others could not."""

    pictures: list[Picture] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def pixel_values(self) -> torch.Tensor:
        """(B, 3, H, H)"""
        return torch.stack([picture.pixel_values for picture in self.pictures])


def path_text(path: Path) -> str:
    """A path with forward slashes; bytes in its name that are no UTF-8 are written as `\\xff`."""
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


def find_pictures(sources: Iterable[Path]) -> list[Path]:
    """
    The picture files among files and folders, without repetition.

    Files are taken as they are. Folders are searched to the bottom, in order of names, for what ends like a picture;
    hidden files, links to other folders and, with a warning, what commands have written beside others are left out.
    """
    found: dict[str, Path] = {}
    for source in sources:
        for path in _search_folder(source) if source.is_dir() else [source]:
            found.setdefault(os.path.abspath(path), path)  # a link may be another picture of a collection
    return list(found.values())


def refuse_no_pictures(pictures: Sequence[Any], sources: Iterable[Path]) -> None:
    """Raise a CommandError where none were found."""
    if not pictures:
        raise CommandError(f"there are no pictures in {', '.join(map(str, sources))}")


def _search_folder(folder: Path) -> list[Path]:
    found = list(_walk(folder))
    others = [path for path in found if not is_written_here(path)]
    if not others:  # all that is asked for
        return found
    if len(others) < len(found):
        pictures = counted(len(found) - len(others), "picture")
        logger.warning(f"left out {pictures} in {folder} that commands have written: name their files to take them")
    return others


def _walk(folder: Path) -> Iterator[Path]:
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    for parent, folders, names in os.walk(folder):
        folders.sort()
        paths = [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
        yield from (path for path in paths if path.suffix.lower() in suffixes and path.is_file())


def read_picture(source: Source, processor: TokenFlowImageProcessorMixin) -> Picture:
    """Read one picture; whatever a damaged file makes PIL raise comes through."""
    image, known = source.read()
    width, height = upright_size(image)
    with LARGE_PICTURE if width * height > PIXELS_AT_A_TIME else nullcontext():
        pixel_values = processor(images=image, return_tensors="pt").pixel_values[0]
    return Picture(source.name, height, width, pixel_values, known)


def read_batches(
    sources: Sequence[Source], processor: TokenFlowImageProcessorMixin, batch_size: int
) -> Iterator[PictureBatch]:
    """Read pictures in batches of up to `batch_size`, in threads and ahead of the one who takes them."""
    pool = ThreadPoolExecutor(READING_THREADS)
    pending: deque[list[tuple[str, Future[Picture]]]] = deque()
    try:
        for start in range(0, len(sources), batch_size):
            batch = sources[start : start + batch_size]
            pending.append([(source.name, pool.submit(read_picture, source, processor)) for source in batch])
            if len(pending) > BATCHES_AHEAD:
                yield _collect(pending.popleft())
        while pending:
            yield _collect(pending.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _collect(futures: list[tuple[str, "Future[Picture]"]]) -> PictureBatch:
    batch = PictureBatch()
    for name, future in futures:
        try:
            batch.pictures.append(future.result())
        except UnidentifiedImageError:
            batch.failures[name] = "no picture, or in a format that PIL does not know"
        except Exception as error:  # PIL's readers raise errors of every kind
            batch.failures[name] = one_line(error)
    return batch


class FileNames:
    """
    Gives every picture the name `<stem of its path>.png` in one folder, numbered where it was given before, and saves
    it there, but not over pictures of other origin.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.taken: set[str] = set()

    def save(self, picture: Image.Image, source: str) -> Path:
        """
        Write a picture.

        Raises:
            CommandError: a file of this name is there that no command wrote.
        """
        path = self.path_for(source)
        refuse_other_pictures(path)
        save_marked(picture, path)
        return path

    def path_for(self, source: str) -> Path:
        """Where to write the picture of a source; nothing in a source's name leads out of the folder."""
        stem = safe_stem(source)
        name, number = stem, 1
        while name.casefold() in self.taken:  # file systems may not tell capitals from small letters
            number += 1
            name = f"{stem}-{number}"
        self.taken.add(name.casefold())
        return self.folder / f"{name}.png"


def save_marked(picture: Image.Image, path: Path) -> None:
    """Write a picture; if it is a PNG, JPEG or GIF, with the mark."""
    mark = PngInfo()
    mark.add_text(*MARK)
    picture.save(path, pnginfo=mark, comment="\0".join(MARK).encode())


def save_sheet(picture: Image.Image, path: Path) -> None:
    """Write a picture of pictures, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_marked(picture, path)


def refuse_other_pictures(path: Path) -> None:
    """Raise a CommandError where a file is that no command wrote, and that a picture would overwrite."""
    if path.exists() and not is_written_here(path):
        raise CommandError(
            f"{path} exists without the mark of tokenflow's pictures, and would be overwritten: write elsewhere"
        )


def is_written_here(path: Path) -> bool:
    """Whether a file is a picture that a command wrote."""
    try:
        with path.open("rb") as file:
            return "\0".join(MARK).encode() in file.read(MARKED_BYTES)
    except OSError:
        return False


def safe_stem(source: str) -> str:
    """The last part of a path of any system, without its suffix and what a file's name can't hold."""
    stem = PureWindowsPath(source).stem  # splits at both slashes
    stem = "".join(letter if letter.isprintable() and letter not in '/\\:*?"<>|' else "_" for letter in stem)
    return stem.encode()[:200].decode(errors="ignore") if stem.strip(". ") else "picture"
