# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Pictures through the tokenizer and back, with what every prefix of scales gives."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..evaluation import measures
from ..modeling_tokenflow import TokenFlowModel
from .pictures import PictureBatch, PictureFile, find_pictures, read_batches, refuse_no_pictures
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
    tensors = (torch.from_numpy(np.asarray(one, dtype=np.float64) / 255) for one in (picture, other))
    return measures.psnr(*(tensor[None] for tensor in tensors)).item()


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
    with tokenizer.misfit_reported():
        decoded = list(decode_prefixes(tokenizer.model, pixel_values.to(tokenizer.device)))
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
    refuse_no_pictures(pictures, sources)
    for batch in read_batches(pictures, tokenizer.processor, batch_size):
        yield reconstruct_batch(batch, tokenizer), batch.failures, len(pictures)
