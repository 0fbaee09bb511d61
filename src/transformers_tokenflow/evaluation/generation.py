# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Pictures of a benchmark's prompts, and how well they go with them."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from ..pipeline_tokenflow import TextToImagePipeline
from . import EvaluationError
from .benchmarks import PictureFolder, Prompt
from .parts import Parts, Record, Sums

if TYPE_CHECKING:
    from ..scoring import OpenClipScorer

TEXTS_AT_A_TIME = 256
IMAGE_REWARD = "ImageReward-v1.0"


def draw(
    painter: TextToImagePipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch_size: int,
    output_type: str = "pil",
    **settings: Any,
) -> Iterator[Any]:
    """
    Draw a picture of each prompt, the same one for its seed in any batch.

    Args:
        painter: the pipeline.
        prompts: N texts.
        seeds: N of them.
        batch_size: pictures at a time.
        output_type: of the pipeline, which says what comes: PIL images, or codes (L,) for "latent".
        settings: of the pipeline's call.

    Raises:
        EvaluationError: a setting can't be.
    """
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        options = {"seed": list(seeds[part]), "batch_size": batch_size, "output_type": output_type, **settings}
        try:
            pictures = painter(list(prompts[part]), **options)
        except ValueError as error:
            raise EvaluationError(str(error)) from error
        yield from pictures


def embed_texts(scorer: "OpenClipScorer", texts: Sequence[str]) -> torch.Tensor:
    """Embeddings of any number of texts, of unit length: (M, d)"""
    parts = [texts[start : start + TEXTS_AT_A_TIME] for start in range(0, len(texts), TEXTS_AT_A_TIME)]
    return torch.cat([scorer.embed(list(part)) for part in parts])


def agreement(
    pictures: torch.Tensor, texts: torch.Tensor, candidates: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Whether a picture's own text is the nearest of several, by cosine.

    Args:
        pictures: (N, d), of unit length.
        texts: (M, d), of unit length.
        candidates: (N, C) long, among which texts each picture chooses; its own is the first.

    Returns:
        (N,) bool, whether it chooses its own, and (N,) cosines to it.
    """
    cosines = (pictures @ texts.T).gather(1, candidates.to(pictures.device))
    return cosines.argmax(dim=1) == 0, cosines[:, 0]


class ClipJudge:
    """
    How well pictures go with their prompts by a CLIP, and whether they go better with any other prompt of the set.

    Args:
        scorer: the CLIP.
        prompts: the set; what is in it twice counts once.
    """

    def __init__(self, scorer: "OpenClipScorer", prompts: Sequence[str]) -> None:
        self.scorer = scorer
        self.positions = {text: index for index, text in enumerate(dict.fromkeys(prompts))}
        self.texts = embed_texts(scorer, list(self.positions))

    def __call__(self, prompt: str, pictures: Sequence[Image.Image]) -> Record:
        """Of each picture the cosine to the prompt, and whether the prompt is the nearest."""
        own = self.positions[prompt]
        order = torch.tensor([own, *(index for index in range(len(self.texts)) if index != own)])
        pixel_values = torch.stack([pil_to_tensor(picture) for picture in pictures]).float() / 127.5 - 1
        features = torch.nn.functional.normalize(self.scorer.embed_pictures(pixel_values), dim=-1)
        is_nearest, cosines = agreement(features, self.texts, order.expand(len(pictures), -1))
        return {"cosine": cosines.tolist(), "is_nearest": is_nearest.tolist()}


class RewardJudge:
    """
    ImageReward, where it is installed: what people would prefer.

    Args:
        device: where it computes.

    Raises:
        EvaluationError: it is not installed, or its weights are neither here nor to be had.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            import ImageReward

            self.model = ImageReward.load(IMAGE_REWARD, device=device)
        except ImportError as error:
            raise EvaluationError(f"ImageReward can't be imported: {error}") from error
        except (OSError, RuntimeError) as error:
            raise EvaluationError(f"ImageReward's weights are not here and can't be downloaded: {error}") from error

    @torch.no_grad()
    def __call__(self, prompt: str, pictures: Sequence[Image.Image]) -> Record:
        """The reward of each picture."""
        return {"image_reward": [float(self.model.score(prompt, picture)) for picture in pictures]}


Judge = Callable[[str, Sequence[Image.Image]], Record]


def draw_and_judge(
    painter: TextToImagePipeline,
    prompts: Sequence[Prompt],
    folder: PictureFolder,
    judges: Sequence[Judge],
    parts: Parts,
    seed: int,
    batch_size: int,
    advance: Callable[[int, int], None],
    **settings: Any,
) -> None:
    """
    Draw this process's share of the prompts, except what is in the folder already, and judge it.

    Args:
        painter: the pipeline.
        prompts: all of them. Prompt i's picture j has the seed `seed + i · count + j`.
        folder: for the pictures.
        judges: called with a prompt and its pictures as they lie in the folder; they give a number for each.
        parts: for the records.
        seed: of the first picture.
        batch_size: pictures at a time.
        advance: called with the number of prompts that are done, and that of all of the share.
        settings: of the pipeline's call.
    """
    numbers = {prompt.name: number for number, prompt in enumerate(prompts)}
    share = [prompts[numbers[name]] for name in parts.share(list(numbers))]
    missing = [prompt for prompt in share if not folder.is_done(prompt)]
    texts = [prompt.text for prompt in missing for _ in range(folder.count)]
    firsts = [seed + numbers[prompt.name] * folder.count for prompt in missing]
    seeds = [first + offset for first in firsts for offset in range(folder.count)]
    pictures = draw(painter, texts, seeds, batch_size, **settings)
    is_missing = {prompt.name for prompt in missing}
    for done, prompt in enumerate(share, start=1):
        if prompt.name in is_missing:
            folder.write(prompt, list(islice(pictures, folder.count)))
        record: Record = {"prompt": prompt.text}
        for judge in judges:
            record |= judge(prompt.text, folder.read(prompt))
        parts.add({prompt.name: record})
        advance(done, len(share))


def summarize(records: dict[str, Record], sums: Sums) -> dict[str, Any]:
    """The means over all pictures of what the judges found; CLIP score is 100 times the cosine, not below 0."""
    metrics = {}

    def column(name: str) -> np.ndarray:
        return np.array([value for record in records.values() for value in record.get(name, [])], dtype=np.float64)

    if len(cosines := column("cosine")):
        metrics["clip_score"] = float(100 * cosines.clip(0).mean())
        metrics["clip_accuracy"] = float(column("is_nearest").mean())
    if len(rewards := column("image_reward")):
        metrics["image_reward"] = float(rewards.mean())
    return {"metrics": metrics, "prompts": len(records)}
