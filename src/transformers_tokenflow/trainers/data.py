# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Pictures for training: `datasets` in, augmented `pixel_values` out, the same ones for the same seed and epoch."""

import math
import random
from collections import defaultdict
from typing import Any

import datasets
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor


class PictureTransform:
    """
    A random crop of a picture as the official training takes it, or the centre crop of its evaluation.

    The shorter side is halved by a box filter while it is at least twice the size, then resized bicubically to a
    random length in [size, ceil(size / min_crop)]; a square of `size` is cut out and maybe flipped.

    Args:
        size: side of the result, in pixels.
        train: whether crop and flip are random.
        min_crop: smallest share of the shorter side that a crop keeps.
        flip: whether pictures may be mirrored.
    """

    def __init__(self, size: int, train: bool = True, min_crop: float = 0.8, flip: bool = True):
        if not 0 < min_crop <= 1:
            raise ValueError(f"min_crop must lie in (0, 1]; got {min_crop}")
        self.size, self.train, self.min_crop, self.flip = size, train, min_crop, flip

    def __call__(self, picture: Image.Image, generator: random.Random) -> torch.Tensor:
        """A picture of any size -> (3, size, size) float32 in [-1, 1]."""
        picture = picture.convert("RGB")
        while min(picture.size) >= 2 * self.size:
            picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
        longest = math.ceil(self.size / self.min_crop)
        shorter = generator.randint(self.size, longest) if self.train else self.size
        picture = resize_shorter_side(picture, shorter)
        left, top = picture.width - self.size, picture.height - self.size
        left, top = (generator.randint(0, left), generator.randint(0, top)) if self.train else (left // 2, top // 2)
        picture = picture.crop((left, top, left + self.size, top + self.size))
        if self.train and self.flip and generator.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return pil_to_tensor(picture).float().div(127.5).sub(1)


def resize_shorter_side(picture: Image.Image, length: int) -> Image.Image:
    """Bicubic resize that keeps the aspect ratio."""
    scale = length / min(picture.size)
    if scale == 1:
        return picture
    size = tuple(max(length, round(side * scale)) for side in picture.size)
    return picture.resize(size, Image.Resampling.BICUBIC)


class PictureDataset(Dataset):
    """
    Pictures of a `datasets.Dataset` as `pixel_values`.

    What is random depends on the seed, the epoch and the picture's index alone, so that a resumed run sees the
    same pictures, whatever the number of workers.
    """

    def __init__(self, dataset: datasets.Dataset, transform: PictureTransform, seed: int = 0, column: str = "image"):
        self.dataset, self.transform, self.seed, self.column = dataset, transform, seed, column
        self.epoch = 0

    def set_epoch(self, epoch: int):
        """Called by accelerate at the beginning of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = random.Random(f"{self.seed}-{self.epoch}-{index}")
        return {"pixel_values": self.transform(self.dataset[index][self.column], generator)}


def stream_pictures(
    dataset: datasets.IterableDataset, transform: PictureTransform, seed: int = 0, column: str = "image"
) -> datasets.IterableDataset:
    """The same for a streamed dataset, where the index counts the pictures of a shard's stream."""

    def example(row: dict[str, Any], index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": transform(row[column], random.Random(f"{seed}-{index}"))}

    return dataset.map(example, with_indices=True, remove_columns=dataset.column_names).with_format("torch")


def load_pictures(
    path: str,
    transform: PictureTransform,
    split: str = "train",
    streaming: bool = False,
    seed: int = 0,
    column: str = "image",
    limits: dict[str, dict[str, int]] | None = None,
    shuffle_buffer: int = 1000,
    **kwargs: Any,
) -> PictureDataset | datasets.IterableDataset:
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
        shuffle_buffer: pictures among which a stream is shuffled.
        kwargs: of `load_dataset`, such as `data_dir` or `data_files`.

    Raises:
        ValueError: there is no such column, or nothing is kept.
    """
    dataset = datasets.load_dataset(path, split=split, streaming=streaming, **kwargs)
    if dataset.column_names is not None and column not in dataset.column_names:
        raise ValueError(f"{path} has no column {column!r}; its columns are {dataset.column_names}")
    if streaming:
        return stream_pictures(dataset.shuffle(seed=seed, buffer_size=shuffle_buffer), transform, seed, column)
    for name, counts in (limits or {}).items():
        dataset = limit_rows(dataset, name, counts, seed)
    if len(dataset) == 0:
        raise ValueError(f"no pictures are left of {path}, split {split!r}, with limits {limits}")
    return PictureDataset(dataset, transform, seed, column)


def limit_rows(dataset: datasets.Dataset, column: str, counts: dict[str, int], seed: int) -> datasets.Dataset:
    """At most `counts[value]` rows for each value of a column, in their order, drawn with the seed."""
    rows: dict[str, list[int]] = defaultdict(list)
    for index, value in enumerate(dataset[column]):
        rows[value].append(index)
    kept = []
    for value, indices in rows.items():
        count = min(counts.get(value, len(indices)), len(indices))
        kept += random.Random(f"{seed}-{value}").sample(indices, count)
    return dataset.select(sorted(kept))
