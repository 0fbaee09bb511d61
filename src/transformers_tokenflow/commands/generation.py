# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Pictures of prompts, and what each scale adds to them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from ..configuration_tokenflow import TokenFlowTextToImageConfig
from ..modeling_tokenflow_text_to_image import TokenFlowForTextToImage
from ..pipeline_tokenflow import TextToImagePipeline
from ..quantization_tokenflow import prefix_lengths
from . import CommandError, counted, one_line
from .contact_sheet import draw_rows, prefix_headings
from .loading import CHECKOUT, check_model_type, find_device, load_model, load_processor, name_or_default

if TYPE_CHECKING:
    from ..scoring import OpenClipScorer

DEFAULT_MODEL = CHECKOUT / "hub_cards" / "tokenflow-tiny-text-to-image"
DEFAULT_SCORER = CHECKOUT / "hub_cards" / "tokenflow-tiny-teacher"
SEEDS = 2**64


@dataclass
class Drawn:
    """
    A picture that was drawn.

    Args:
        prompt: its text.
        seed: that draws it again.
        codes: (1, L).
        picture: what they decode to.
    """

    prompt: str
    seed: int
    codes: torch.Tensor
    picture: Image.Image

    @property
    def file_name(self) -> str:
        """A name without a suffix: the prompt's letters and digits, and the seed."""
        letters = "".join(letter if letter.isalnum() else " " for letter in self.prompt)
        words = "-".join(letters.split()).encode()[:100].decode(errors="ignore").strip("-")
        return f"{words or 'picture'}-{self.seed}"


class PassCounter(BaseStreamer):
    """Counts the passes that `generate` makes."""

    def __init__(self, advance: Callable[[int, int], None], total: int):
        self.advance, self.total, self.done = advance, total, 0

    def put(self, value: torch.Tensor) -> None:
        """Called with the codes of every pass."""
        self.done += 1
        self.advance(self.done, self.total)

    def end(self) -> None:
        """Called when pictures are finished."""


def load_painter(name: str | None = None, device: str = "auto", dtype: str = "float32") -> TextToImagePipeline:
    """
    Load a generator and its processor.

    Args:
        name: a folder or a repository of the Hub; by default the small generator of the checkout.
        device: as torch names it, or `"auto"` for the best there is.
        dtype: as torch names it.

    Raises:
        CommandError: there is no such model, it is no TokenFlow generator, or the device can't be used.
    """
    logging.disable_progress_bar()
    target = find_device(device)
    name = name_or_default(name, DEFAULT_MODEL)
    check_model_type(name, TokenFlowTextToImageConfig, "generator")
    model: Any = load_model(name, getattr(torch, dtype), TokenFlowForTextToImage)
    return TextToImagePipeline(model=model, processor=load_processor(name), task="text-to-image", device=target)


def load_scorer(name: str | None, device: torch.device) -> "OpenClipScorer":
    """
    Load a CLIP that chooses among pictures.

    Args:
        name: as open_clip names it, `model` or `model/tag`, or a folder; by default the small teacher of the checkout.
        device: where texts are embedded.

    Raises:
        CommandError: open_clip is not installed or doesn't know the model.
    """
    if name is None:
        if not DEFAULT_SCORER.is_dir():
            raise CommandError("there is no default CLIP here: pass --scorer with a folder or a name of open_clip")
        name = str(DEFAULT_SCORER)
    try:
        from ..scoring import OpenClipScorer
    except ImportError as error:
        raise CommandError(f"a CLIP that scores needs `pip install open_clip_torch`: {one_line(error)}") from error
    is_named = not Path(name).is_dir() and ":" not in name
    model, _, tag = name.partition("/") if is_named else (name, "", "")
    try:
        return OpenClipScorer(model, tag or None, device)
    except Exception as error:  # unknown names, missing files and the network each fail in a way of their own
        raise CommandError(f"the scorer {name} can't be loaded: {one_line(error)}") from error


def count_passes(painter: TextToImagePipeline, settings: dict[str, Any]) -> int:
    """How many passes one picture takes: one of the first scale, and of each other one as many as entries."""
    config = painter.model.generation_config
    values = [settings.get(name, getattr(config, name)) for name in ("top_k", "top_p")]
    entries = max(len(value) if isinstance(value, Sequence) else 1 for value in values)
    return 1 + (len(painter.model.tokenizer.config.scales) - 1) * entries


def check_seeds(first: int, count: int) -> None:
    """Raise a CommandError where seeds, counted on from the first one, would go beyond what torch takes."""
    if first + count > SEEDS:
        raise CommandError(f"seeds lie below 2**64, which those of {counted(count, 'picture')} from {first} on don't")


def draw_prompts(
    painter: TextToImagePipeline,
    prompts: Sequence[str],
    count: int,
    seed: int,
    batch_size: int,
    advance: Callable[[int, int], None],
    **settings: Any,
) -> Iterator[Drawn]:
    """
    Draw pictures, as many at a time as are wanted of one prompt, but no more than a batch.

    Args:
        painter: the pipeline.
        prompts: the texts.
        count: pictures of each.
        seed: of the first picture; the others count on.
        batch_size: pictures at a time, of which `best_of` are drawn for each that is kept.
        advance: called with the number of passes that are done, and that of all.
        settings: of the pipeline's call.

    Raises:
        CommandError: a setting can't be.
    """
    texts = [prompt for prompt in prompts for _ in range(count)]
    check_seeds(seed, len(texts))
    at_once = max(1, batch_size // settings.get("best_of", 1))
    counter = PassCounter(advance, math.ceil(len(texts) / at_once) * count_passes(painter, settings))
    for start in range(0, len(texts), at_once):
        part = texts[start : start + at_once]
        seeds = [seed + start + offset for offset in range(len(part))]
        options = {"seed": seeds, "batch_size": at_once, "output_type": "latent", "streamer": counter}
        try:
            codes = painter(part, **options, **settings)
        except ValueError as error:
            raise CommandError(one_line(error)) from error
        for text, own, row in zip(part, seeds, codes, strict=True):
            yield Drawn(text, own, row[None], painter.decode(row[None])[0])


def draw_steps(drawn: Sequence[Drawn], painter: TextToImagePipeline) -> Image.Image:
    """A sheet of pictures, a row for each: what the first scale gives, the first two, and so on."""
    scales = painter.model.tokenizer.config.scales
    lengths = prefix_lengths(scales)
    rows = []
    for item in drawn:
        pictures = [*(painter.decode(item.codes[:, :length])[0] for length in lengths[:-1]), item.picture]
        captions = [item.prompt, *[""] * (len(scales) - 1)]
        rows.append(list(zip(pictures, captions, strict=True)))
    return draw_rows(rows, prefix_headings(scales), caption_lines=2)
