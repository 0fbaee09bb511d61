# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Pictures for training: the official crop, repeatable randomness, and everything that `datasets` reads."""

import io
import itertools
import random
import tarfile

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from tiny_training import gradient_pictures, picture_dataset
from torch.utils.data import DataLoader

from transformers_tokenflow.trainers.data import PictureDataset, PictureTransform, load_pictures, load_rows, to_rgb


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def noise(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    """A picture whose every pixel differs from its neighbours."""
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def official_crop(picture: PIL.Image.Image, size: int, shorter: int, left: int, top: int) -> np.ndarray:
    """The official preparation, with its random numbers given: (size, size, 3) bytes."""
    while min(*picture.size) >= 2 * shorter:
        picture = picture.resize(tuple(side // 2 for side in picture.size), resample=PIL.Image.BOX)
    scale = shorter / min(*picture.size)
    picture = picture.resize(tuple(round(side * scale) for side in picture.size), resample=PIL.Image.BICUBIC)
    return np.array(picture)[top : top + size, left : left + size]


def as_bytes(pixel_values: torch.Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] -> (H, W, 3) bytes"""
    return (pixel_values * 127.5 + 127.5).round().byte().permute(1, 2, 0).numpy()


class Drawn(random.Random):
    """Gives prepared numbers instead of random ones, and checks the ranges they are asked for in."""

    def __init__(self, *numbers: float):
        super().__init__()
        self.numbers, self.ranges = list(numbers), []

    def randint(self, a, b):
        self.ranges.append((a, b))
        return self.numbers.pop(0)

    def random(self):
        return self.numbers.pop(0)


@pytest.mark.parametrize("size", [(70, 50), (200, 170), (33, 90), (20, 12), (64, 64)])
def test_training_crop_is_the_official_one(size):
    picture, drawn = noise(*size), Drawn(38, 3, 5, 0.7)
    pixel_values = PictureTransform(32)(picture, drawn)
    assert drawn.ranges[0] == (32, 40)
    assert min(high for low, high in drawn.ranges[1:]) == 38 - 32
    assert np.array_equal(as_bytes(pixel_values), official_crop(picture, 32, 38, 3, 5))
    flipped = PictureTransform(32)(picture, Drawn(38, 3, 5, 0.3))
    assert torch.equal(flipped, pixel_values.flip(-1))
    unflipped = PictureTransform(32, flip=False)(picture, Drawn(38, 3, 5, 0.3))
    assert torch.equal(unflipped, pixel_values)


def test_evaluation_takes_the_centre_and_nothing_random():
    picture = noise(150, 101)
    pixel_values = PictureTransform(32, train=False)(picture, Drawn())
    assert pixel_values.shape == (3, 32, 32) and pixel_values.dtype == torch.float32
    assert np.array_equal(as_bytes(pixel_values), official_crop(picture, 32, 32, (48 - 32) // 2, 0))
    assert pixel_values.min() >= -1 and pixel_values.max() <= 1


def test_exact_size_is_left_alone():
    picture = noise(32, 32)
    assert np.array_equal(
        as_bytes(PictureTransform(32, min_crop=1.0, flip=False)(picture, random.Random())), np.array(picture)
    )


@pytest.mark.parametrize("min_crop", [0.0, 1.1, -1.0])
def test_impossible_crops_are_refused(min_crop):
    with pytest.raises(ValueError, match=f"min_crop must lie in .* got {min_crop}"):
        PictureTransform(32, min_crop=min_crop)


def test_any_mode_becomes_rgb_as_the_processor_reads_it():
    half = PIL.Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert to_rgb(half).getpixel((0, 0)) == (255, 127, 127)
    assert to_rgb(PIL.Image.new("L", (4, 4), 7)).getpixel((0, 0)) == (7, 7, 7)
    assert to_rgb(PIL.Image.fromarray(np.full((4, 4), 65535, dtype=np.uint16))).getpixel((0, 0)) == (255, 255, 255)
    wide = noise(8, 4)
    exif = wide.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    file = io.BytesIO()
    wide.save(file, "png", exif=exif)
    turned = PIL.Image.open(file)
    assert turned.size == (8, 4) and to_rgb(turned).size == (4, 8)


def test_same_picture_for_same_seed_epoch_and_index():
    one, other = picture_dataset(4), picture_dataset(4)
    for epoch in (0, 3):
        one.set_epoch(epoch)
        other.set_epoch(epoch)
        assert all(torch.equal(one[index]["pixel_values"], other[index]["pixel_values"]) for index in (2, 0, 3, 1))
    other.set_epoch(4)
    assert not torch.equal(one[0]["pixel_values"], other[0]["pixel_values"])
    other.set_epoch(3)
    other.seed = 1
    assert not torch.equal(one[0]["pixel_values"], other[0]["pixel_values"])


def test_workers_that_stay_alive_see_the_epoch_change():
    dataset = picture_dataset(4)
    loader = DataLoader(dataset, batch_size=4, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        expected = torch.stack([dataset[index]["pixel_values"] for index in range(4)])
        assert torch.equal(next(iter(loader))["pixel_values"], expected)


@pytest.fixture
def sources(tmp_path):
    """The same six pictures as a folder, as a tar file of webdataset and as parquet: arguments of `load_pictures`."""
    pictures = gradient_pictures(6)
    folder = tmp_path / "folder" / "train"
    folder.mkdir(parents=True)
    for index, picture in enumerate(pictures):
        picture.save(folder / f"{index}.png")
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for index in range(6):
            tar.add(folder / f"{index}.png", f"{index}.png")
    rows = {"image": pictures, "style": ["a", "a", "b", "b", "b", "c"]}
    features = datasets.Features({"image": datasets.Image(), "style": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    return {
        "imagefolder": {"path": "imagefolder", "data_dir": str(tmp_path / "folder")},
        "webdataset": {"path": "webdataset", "data_files": {"train": str(tmp_path / "train-*.tar")}, "column": "png"},
        "parquet": {"path": "parquet", "data_files": {"train": str(tmp_path / "train.parquet")}},
    }


@pytest.mark.parametrize("kind", ["imagefolder", "webdataset", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_everything_that_datasets_reads(sources, kind, streaming):
    pictures = load_pictures(transform=PictureTransform(32, train=False), streaming=streaming, **sources[kind])
    batches = list(DataLoader(pictures, batch_size=4))
    assert [len(batch["pixel_values"]) for batch in batches] == [4, 2]
    expected = picture_dataset(6, train=False)
    for got, wanted in zip(torch.cat([batch["pixel_values"] for batch in batches]), expected, strict=True):
        assert torch.equal(got, wanted["pixel_values"])


def test_training_stream_never_ends_and_repeats_itself_for_the_same_seed(sources):
    def read(count: int, seed: int) -> torch.Tensor:
        stream = load_pictures(
            transform=PictureTransform(32), streaming=True, seed=seed, shuffle_buffer=3, **sources["imagefolder"]
        )
        return torch.stack([item["pixel_values"] for item in itertools.islice(stream, count)])

    first = read(20, seed=0)
    assert torch.equal(read(20, seed=0), first)
    assert not torch.equal(read(20, seed=1), first)
    # Crops and flips of a picture differ between passes.
    assert len(first.flatten(1).unique(dim=0)) > 12


def test_processes_share_out_the_files_of_a_stream(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"train-{shard}.tar", "w") as tar:
            for index, picture in enumerate(gradient_pictures(3, seed=shard)):
                picture.save(tmp_path / "picture.png")
                tar.add(tmp_path / "picture.png", f"{index}.png")
    transform = PictureTransform(32, min_crop=1.0, flip=False)
    files = {"train": str(tmp_path / "train-*.tar")}
    stream = load_pictures("webdataset", transform, streaming=True, column="png", data_files=files)
    seen = []
    for index in range(2):
        stream.share_out(2, index, workers=0)
        items = itertools.islice(stream, 3)  # one of the files, which is another one in the next pass
        seen.append({item["pixel_values"].numpy().tobytes() for item in items})
    assert [len(pictures) for pictures in seen] == [3, 3] and not seen[0] & seen[1]


def test_broken_pictures_of_a_stream_are_skipped(tmp_path, caplog):
    folder = tmp_path / "broken" / "train"
    folder.mkdir(parents=True)
    for index, picture in enumerate(gradient_pictures(3)):
        picture.save(folder / f"{index}.png")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:60])
    stream = load_pictures(
        "imagefolder", PictureTransform(32, train=False), streaming=True, data_dir=str(tmp_path / "broken")
    )
    assert len(list(stream)) == 2


def test_rows_are_limited_by_column(sources):
    def count(limits: dict) -> int:
        return len(load_pictures(transform=PictureTransform(32), limits=limits, **sources["parquet"]))

    assert count({}) == 6
    assert count({"style": {"b": 1}}) == 4
    assert count({"style": {"a": 9, "b": 0, "c": 0}}) == 2
    with pytest.raises(ValueError, match="no rows are left of parquet"):
        count({"style": {"a": 0, "b": 0, "c": 0}})
    with pytest.raises(ValueError, match="no rows are left of parquet, split 'train', with take 0"):
        load_pictures(transform=PictureTransform(32), take=0, **sources["parquet"])
    with pytest.raises(ValueError, match=r"limits are of columns with single values; got .* in image"):
        count({"image": {"a": 1}})
    with pytest.raises(ValueError, match="no column 'colour'; its columns are image, style"):
        count({"colour": {"red": 1}})
    with pytest.raises(ValueError, match="needs streaming=False"):
        load_pictures(transform=PictureTransform(32), limits={"style": {"a": 0}}, streaming=True, **sources["parquet"])


def test_parquet_reads_some_columns_alone(sources):
    assert load_rows(needed=["image"], **sources["parquet"], columns=["image"]).column_names == ["image"]


@pytest.mark.parametrize("streaming", [False, True])
def test_missing_column_is_named(sources, streaming):
    options = {**sources["webdataset"], "column": "jpg", "streaming": streaming}
    with pytest.raises(ValueError, match="no column 'jpg'; its columns are .*png"):
        load_pictures(transform=PictureTransform(32), **options)


def test_a_broken_picture_in_memory_is_named():
    images = [datasets.Image().encode_example(gradient_pictures(1)[0]), {"bytes": b"no picture", "path": "a.png"}]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    rows = datasets.Dataset.from_dict({"image": images}, features=features).cast_column("image", datasets.Image())
    pictures = PictureDataset(rows, PictureTransform(32))
    assert pictures[0]["pixel_values"].shape == (3, 32, 32)
    with pytest.raises(ValueError, match="row 1: the picture a.png can't be read"):
        pictures[1]
