# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Draws the prompts of a benchmark, and judges the pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..evaluation import EvaluationError
from ..evaluation.benchmarks import Prompt, picture_folder, read_prompts
from ..evaluation.generation import IMAGE_REWARD, ClipJudge, Judge, RewardJudge, draw_and_judge, summarize
from ..evaluation.parts import Parts, Record, Sums, differences
from ..evaluation.report import describe_model, evaluate, read_description, refuse_others, texts_digest
from . import Advance, one_line
from .evaluation import network_name, processes
from .generation import check_seeds, load_painter, load_scorer


def evaluate_generation(
    prompts: Path,
    folder: Path,
    model: str | None,
    num_images: int,
    seed: int,
    scorer: str | None,
    device: str,
    dtype: str,
    batch_size: int,
    advance: Advance,
    **settings: Any,
) -> dict[str, Any]:
    """
    Draw a benchmark's prompts, and judge the pictures.

    Args:
        prompts: what `read_prompts` reads.
        folder: for the pictures, in the benchmark's own form. The results are in a JSON file beside it.
        model: folder or repository of the generator.
        num_images: pictures of each prompt.
        seed: of the first picture.
        scorer: the CLIP that judges, as `load_scorer` takes it.
        device, dtype, batch_size: of the model.
        advance: is told how many prompts are done, of how many.
        settings: of the pipeline's call.

    Returns:
        The results.

    Raises:
        CommandError: something that is needed is not here, or is not what it should be.
    """
    output = results_beside(folder)
    with processes(device) as state:
        refuse_others(output)
        wanted = read_prompts(prompts)
        check_seeds(seed, len(wanted) * num_images)
        pictures = picture_folder(prompts, folder, num_images)
        painter = load_painter(model, device, dtype)
        networks = {"clip": network_name(scorer), "image_reward": IMAGE_REWARD}
        with state.local_main_process_first():  # who downloads
            judges, not_measured = load_judges(scorer, wanted, painter.device)
        description = {
            "evaluation": "generation",
            "model": describe_model(painter.model.name_or_path, painter.model),
            "data": describe_prompts(prompts, wanted),
            "settings": {
                "num_images": num_images,
                "seed": seed,
                **settings,
                "generation_config": painter.model.generation_config.to_diff_dict(),
                "networks": {name: network for name, network in networks.items() if name not in not_measured},
            },
        }
        check_folder(folder, output, description)

        def work(parts: Parts) -> None:
            draw_and_judge(painter, wanted, pictures, judges, parts, seed, batch_size, advance, **settings)

        def summarize_all(records: dict[str, Record], sums: Sums) -> dict[str, Any]:
            return {**summarize(records, sums), "not_measured": not_measured}

        return evaluate(output, description, state, work, summarize_all)


def results_beside(folder: Path) -> Path:
    """The file of results of a folder of pictures; of `.`, too."""
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    return folder.with_name(f"{folder.name}.json")


def load_judges(
    scorer: str | None, prompts: Sequence[Prompt], device: torch.device
) -> tuple[list[Judge], dict[str, str]]:
    """Those whose weights can be had, and why others are left out by the measure's name."""
    clip = ClipJudge(load_scorer(scorer, device), [prompt.text for prompt in prompts])
    try:
        return [clip, RewardJudge(device)], {}
    except EvaluationError as error:
        return [clip], {"image_reward": one_line(error)}


def describe_prompts(path: Path, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What a report says about them."""
    return {
        "dataset": path.resolve().stem,
        "path": str(path),
        "prompts": len(prompts),
        "texts": texts_digest([f"{prompt.name}\t{prompt.text}" for prompt in prompts]),
    }


def check_folder(folder: Path, output: Path, description: dict[str, Any]) -> None:
    """
    See that the pictures in a folder, if there are any, are of the same drawing, whoever judged them.

    Raises:
        EvaluationError: they are of another one, or nobody knows of which.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    known = read_description(output)
    if known is None:
        raise EvaluationError(f"{folder} holds files of another origin: choose another folder")
    before, now = ({**one, "settings": {**one["settings"], "networks": None}} for one in (known, description))
    if differing := differences(before, now):
        raise EvaluationError(
            f"{folder} holds pictures of another drawing ({'; '.join(differing)}): remove it, or choose another folder"
        )
