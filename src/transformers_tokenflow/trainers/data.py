# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Pictures for training: `datasets` in, augmented `pixel_values` out, the same ones for the same seed and epoch."""

import math
import random
from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from ..image_reading_tokenflow import picture_to_tensor, turn_upright
from .streams import SHUFFLE_BUFFER, ExampleStream, Unusable, unusable_if_broken


class PictureTransform:
    """
    A random crop of a picture as the official training takes it, or the centre crop of its evaluation.

    The picture gets a shorter side of random length in [size, ceil(size / min_crop)]: halved by a box filter while it
    is at least twice that long, then resized bicubically. A square of `size` is cut out and maybe flipped.

    Args:
        size: side of the result, in pixels.
        train: whether crop and flip are random.
        min_crop: smallest share of the shorter side that a crop keeps.
        flip: whether pictures may be mirrored.

    Raises:
        ValueError: `min_crop` does not lie in (0, 1].
    """

    def __init__(self, size: int, train: bool = True, min_crop: float = 0.8, flip: bool = True) -> None:
        if not 0 < min_crop <= 1:
            raise ValueError(f"min_crop must lie in (0, 1]; got {min_crop}")
        self.size, self.train, self.min_crop, self.flip = size, train, min_crop, flip

    def __call__(self, picture: Image.Image, generator: random.Random) -> torch.Tensor:
        """A picture of any size and mode -> (3, size, size) float32 in [-1, 1]."""
        picture = to_rgb(picture)
        longest = math.ceil(self.size / self.min_crop)
        shorter = generator.randint(self.size, longest) if self.train else self.size
        while min(picture.size) >= 2 * shorter:
            picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
        picture = resize_shorter_side(picture, shorter)
        left, top = picture.width - self.size, picture.height - self.size
        left, top = (generator.randint(0, left), generator.randint(0, top)) if self.train else (left // 2, top // 2)
        picture = picture.crop((left, top, left + self.size, top + self.size))
        if self.train and self.flip and generator.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return pil_to_tensor(picture).float().div(127.5).sub(1)


def to_rgb(picture: Image.Image) -> Image.Image:
    """As `TokenFlowImageProcessor` reads a picture: upright, transparency over white, 16 bits scaled to 8."""
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return turn_upright(picture)
    channels_last = picture_to_tensor(picture).permute(1, 2, 0)
    return Image.fromarray(channels_last.round().to(torch.uint8).numpy())


def resize_shorter_side(picture: Image.Image, length: int) -> Image.Image:
    """Bicubic resize that keeps the aspect ratio."""
    scale = length / min(picture.size)
    if scale == 1:
        return picture
    size = [max(length, round(side * scale)) for side in picture.size]
    return picture.resize(size, Image.Resampling.BICUBIC)


class SeededDataset(Dataset):
    """
    A dataset with randomness that depends on the seed, the epoch and the row's index alone, so that a resumed run
    sees the same, whatever the number of workers.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        # In shared memory, where workers that outlive an epoch see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the beginning of an epoch."""
        self._epoch.fill_(epoch)

    def generator(self, index: int) -> random.Random:
        """What a row draws from in this epoch."""
        return random.Random(f"{self.seed}-{self._epoch.item()}-{index}")


def seeded_datasets(dataset: Any) -> Iterator[SeededDataset]:
    """The datasets with such randomness that a dataset is, or is made of, as torch's `Subset` and `ConcatDataset`."""
    if isinstance(dataset, SeededDataset):
        yield dataset
    parts = [dataset.dataset] if hasattr(dataset, "dataset") else getattr(dataset, "datasets", ())
    for part in parts:
        yield from seeded_datasets(part)


def has_transform(dataset: Any) -> bool:
    """Whether a dataset's rows are what a function of `with_transform` makes of them."""
    return isinstance(dataset, datasets.Dataset) and dataset.format["type"] == "custom"


def plain_rows(dataset: Any) -> Any:
    """Rows of Python's own values, whatever format they would come in, but for those that a function makes."""
    return dataset if has_transform(dataset) else dataset.with_format(None)


def is_table(dataset: Any) -> bool:
    """Whether these are rows of `datasets`, of which trainers make examples."""
    return isinstance(dataset, datasets.Dataset | datasets.IterableDataset)


def column_names(dataset: datasets.Dataset | datasets.IterableDataset) -> list[str]:
    """Names of the columns, which of a stream, and of what a function makes of rows, have to be read off the first."""
    names = None if has_transform(dataset) else dataset.column_names
    return names or list(next(iter(dataset), {}))


def undecoded_column(dataset: Any, column: str) -> Any:
    """Rows whose pictures are not decoded, unless a function takes them, or nothing says what is in the columns."""
    if has_transform(dataset) or dataset.features is None:
        return dataset
    return dataset.cast_column(column, datasets.Image(decode=False))


class PictureDataset(SeededDataset):
    """
    Pictures of a `datasets.Dataset` as `pixel_values`.

    Raises:
        ValueError: when a picture is read that is broken.
    """

    def __init__(
        self, dataset: datasets.Dataset, transform: PictureTransform, seed: int = 0, column: str = "image"
    ) -> None:
        super().__init__(seed)
        self.dataset, self.transform, self.column = undecoded_column(dataset, column), transform, column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        encoded = self.dataset[index][self.column]
        return {"pixel_values": read_picture(encoded, index, self.transform, self.generator(index))}


@dataclass(frozen=True)
class PictureExample:
    """Makes an example of a row of a stream, whose picture is not decoded."""

    transform: PictureTransform
    column: str

    def __call__(self, row: dict[str, Any], generator: random.Random) -> dict[str, torch.Tensor]:
        return {"pixel_values": read_streamed_picture(row[self.column], self.transform, generator)}


def read_streamed_picture(
    picture: dict[str, Any] | Image.Image | None, transform: PictureTransform, generator: random.Random
) -> torch.Tensor:
    """A picture as `datasets` gives it, undecoded if it can -> (3, size, size), or an Unusable error."""
    path = picture.get("path") if isinstance(picture, dict) else None
    with unusable_if_broken(f"the picture {path} can't be read"):
        decoded = picture if isinstance(picture, Image.Image) else datasets.Image().decode_example(picture)
        return transform(decoded, generator)


def read_picture(
    encoded: dict[str, Any] | None, index: int, transform: PictureTransform, generator: random.Random
) -> torch.Tensor:
    """The same of a row in memory, or a ValueError that names it."""
    try:
        return read_streamed_picture(encoded, transform, generator)
    except Unusable as error:
        raise ValueError(f"row {index}: {error}") from error


def pictures_of(
    dataset: datasets.Dataset | datasets.IterableDataset,
    transform: PictureTransform,
    seed: int = 0,
    column: str = "image",
    shuffle_buffer: int = SHUFFLE_BUFFER,
) -> PictureDataset | ExampleStream:
    """Pictures of rows, see [`load_pictures`]; a stream's for training shuffled and without end, or once as it is."""
    dataset = plain_rows(dataset)
    if not isinstance(dataset, datasets.IterableDataset):
        return PictureDataset(dataset, transform, seed, column)
    dataset = undecoded_column(dataset, column).select_columns([column])
    return ExampleStream(dataset, PictureExample(transform, column), seed, shuffle_buffer, transform.train)


def load_pictures(
    path: str,
    transform: PictureTransform,
    split: str = "train",
    streaming: bool = False,
    seed: int = 0,
    column: str = "image",
    limits: dict[str, dict[str, int]] | None = None,
    take: int | None = None,
    shuffle_buffer: int = SHUFFLE_BUFFER,
    **kwargs: Any,
) -> PictureDataset | ExampleStream:
    """
    Pictures from anything that `datasets.load_dataset` reads.

    Args:
        path: `"imagefolder"`, `"webdataset"`, `"parquet"`, a folder, or a repository of the Hub.
        transform: what is done to each.
        split: name of the split.
        streaming: read while training, without a copy on disk.
        seed: of shuffling and augmentation.
        column: that holds the pictures.
        limits: column to values to how many such rows are kept, drawn with the seed (not when streaming); 0 leaves
            them out, values that are not named keep all.
        take: how many pictures are kept, the first ones; all by default.
        shuffle_buffer: pictures among which a stream is shuffled.
        kwargs: of `load_dataset`, such as `data_dir` or `data_files`.

    Raises:
        ValueError: there is no such column, nothing is left, or a stream is to be limited.
    """
    dataset = load_rows(path, [column], split, streaming, seed, limits, take, **kwargs)
    return pictures_of(dataset, transform, seed, column, shuffle_buffer)


def load_rows(
    path: str,
    needed: list[str],
    split: str = "train",
    streaming: bool = False,
    seed: int = 0,
    limits: dict[str, dict[str, int]] | None = None,
    take: int | None = None,
    **kwargs: Any,
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Rows of anything that `datasets.load_dataset` reads, which must have the needed columns.

    Other arguments, and errors, are those of [`load_pictures`].
    """
    if streaming and limits:
        raise ValueError(f"rows of a stream can't be counted beforehand: limits={limits} needs streaming=False")
    dataset = datasets.load_dataset(path, split=split, streaming=streaming, **kwargs)
    for name in (*needed, *(limits or ())):
        if dataset.column_names is not None and name not in dataset.column_names:
            raise ValueError(f"{path} has no column {name!r}; its columns are {', '.join(dataset.column_names)}")
    if take is not None:
        dataset = dataset.take(take)
    if streaming:
        return dataset
    for name, counts in (limits or {}).items():
        dataset = limit_rows(dataset, name, counts, seed)
    if len(dataset) == 0:
        raise ValueError(f"no rows are left of {path}, split {split!r}, with take {take} and limits {limits}")
    return dataset


def limit_rows(dataset: datasets.Dataset, column: str, counts: dict[str, int], seed: int) -> datasets.Dataset:
    """At most `counts[value]` rows for each value of a column, in their order, drawn with the seed."""
    rows: dict[Any, list[int]] = defaultdict(list)
    for index, value in enumerate(dataset[column]):
        if not isinstance(value, Hashable):
            raise ValueError(f"limits are of columns with single values; got {value!r:.100} in {column}")
        rows[value].append(index)
    kept = []
    for value, indices in rows.items():
        count = min(counts.get(value, len(indices)), len(indices))
        kept += random.Random(f"{seed}-{value}").sample(indices, count)
    return dataset.select(sorted(kept))
