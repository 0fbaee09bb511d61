# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Pictures through the tokenizer and back, with what every prefix of scales gives."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..modeling_tokenflow import TokenFlowModel
from . import CommandError
from .pictures import PictureBatch, PictureFile, find_pictures, read_batches
from .tokenizers import Tokenizer


@dataclass
class Reconstruction:
    """
    A picture, its reconstructions and how near they come to it.

    Args:
        path: of the file.
        original: the picture as the model was given it.
        prefixes: what the first scale gives, the first two, and so on; the last one is the reconstruction.
        psnrs: peak signal-to-noise ratio of each, in decibel.
    """

    path: str
    original: Image.Image
    prefixes: list[Image.Image]
    psnrs: list[float]


def psnr(picture: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB pictures of the same size, in decibel; infinite if they are equal."""
    difference = np.asarray(picture, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    error = np.square(difference).mean()
    return 10 * math.log10(255**2 / error) if error > 0 else math.inf


@torch.inference_mode()
def decode_prefixes(model: TokenFlowModel, pixel_values: torch.Tensor) -> Iterator[torch.Tensor]:
    """Encode pictures (B, 3, H, H) and yield what each prefix of scales decodes to, of the same shape."""
    features = model.quantizer.codes_to_features(model.encode(pixel_values).codes)
    for index in range(features.shape[1]):
        yield model.decode_features(features[:, index]).pixel_values


def reconstruct_batch(batch: PictureBatch, tokenizer: Tokenizer) -> list[Reconstruction]:
    """Reconstruct the pictures of a batch from every prefix of scales."""
    if not batch.pictures:
        return []
    pixel_values = batch.pixel_values()
    originals = tokenizer.processor.postprocess(pixel_values)
    try:
        decoded = list(decode_prefixes(tokenizer.model, pixel_values.to(tokenizer.device)))
    except ValueError as error:  # the image processor's settings don't fit the model
        raise CommandError(f"{tokenizer.name} can't encode its own image processor's pictures: {error}") from error
    by_scale = [tokenizer.processor.postprocess(pixels) for pixels in decoded]
    return [
        Reconstruction(picture.path, original, list(prefixes), [psnr(original, prefix) for prefix in prefixes])
        for picture, original, *prefixes in zip(batch.pictures, originals, *by_scale, strict=True)
    ]


def reconstruct_pictures(
    sources: list[Path], tokenizer: Tokenizer, batch_size: int
) -> Iterator[tuple[list[Reconstruction], dict[str, str], int]]:
    """
    Reconstruct picture files and folders of them, batch by batch.

    Returns:
        For every batch the reconstructions, the reasons why pictures of it can't be read, and the number of all.

    Raises:
        CommandError: there are no pictures, or the model refuses them.
    """
    pictures = [PictureFile(path) for path in find_pictures(sources)]
    if not pictures:
        raise CommandError(f"there are no pictures in {', '.join(map(str, sources))}")
    for batch in read_batches(pictures, tokenizer.processor, batch_size):
        yield reconstruct_batch(batch, tokenizer), batch.failures, len(pictures)
