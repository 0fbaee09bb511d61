# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Puts results where the Hub shows them: the metadata of a card, and `.eval_results` for data of the Hub."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard
from huggingface_hub import eval_result_entries_to_yaml as entries_to_yaml

from . import EvaluationError

TASKS = {
    "reconstruction": ("image-feature-extraction", "Image reconstruction"),
    "generation": ("text-to-image", "Text to image"),
    "understanding": ("visual-question-answering", "Questions about pictures"),
}
NAMES = {
    "rfid": "rFID",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "ssim_official": "SSIM, data range 2 as in the official evaluation",
    "lpips": "LPIPS",
    "codebook_utilization": "Codebook utilization",
    "clip_score": "CLIP score",
    "clip_accuracy": "CLIP accuracy",
    "image_reward": "ImageReward",
    "exact_match": "Exact match",
    "vqa_accuracy": "VQA accuracy",
    "relaxed_accuracy": "Relaxed accuracy",
    "yes_no_accuracy": "Accuracy, yes or no",
    "yes_no_balanced_accuracy": "Balanced accuracy, yes or no",
    "yes_f1": "F1, yes",
    "yes_ratio": "Share of yes",
}
RESULTS_FOLDER = ".eval_results"


def update_card(folder: Path, report: dict[str, Any]) -> list[Path]:
    """
    Put a report's metrics into a model's folder.

    The metadata of `README.md` get a `model-index`; what it had from the same evaluation on the same data is replaced,
    all else is kept. Where the data are of the Hub, a file in `.eval_results` says the same in the form that the Hub
    reads now.

    Args:
        folder: of the model; without a `README.md` one is made.
        report: what `evaluate` returns.

    Returns:
        The files that were written.

    Raises:
        EvaluationError: there is no such folder, or its card can't be read.
    """
    if not folder.is_dir():
        raise EvaluationError(f"there is no folder {folder} whose card could be updated")
    path = folder / "README.md"
    try:
        card = ModelCard.load(path) if path.exists() else ModelCard(f"---\n---\n\n# {folder.resolve().name}\n")
    except (ValueError, yaml.YAMLError) as error:
        raise EvaluationError(f"the card {path} can't be read: {error}") from error
    data: Any = card.data
    new = card_results(report)
    replaced = {_key(result) for result in new}
    data.eval_results = [result for result in data.eval_results or [] if _key(result) not in replaced] + new
    data.model_name = data.model_name or folder.resolve().name
    card.save(path)
    written = [path]
    if entries := hub_entries(report):
        target = folder / RESULTS_FOLDER / f"{results_name(report['description'])}.yaml"
        target.parent.mkdir(exist_ok=True)
        target.write_text(yaml.safe_dump(entries_to_yaml(entries), sort_keys=False), encoding="utf-8")
        written.append(target)
    return written


def _key(result: EvalResult) -> tuple:
    """What a result is of: all but its value, and the revision of the data."""
    data = (result.dataset_type, result.dataset_config, result.dataset_split)
    return (result.task_type, *data, result.metric_type, result.metric_name)


def card_results(report: dict[str, Any]) -> list[EvalResult]:
    """A report's metrics as `model-index` has them."""
    description = report["description"]
    task_type, task_name = TASKS[description["evaluation"]]
    data = description["data"]
    return [
        EvalResult(
            task_type=task_type,
            task_name=task_name,
            dataset_type=data["dataset"],
            dataset_name=data["dataset"],
            dataset_config=data.get("config"),
            dataset_split=data.get("split"),
            dataset_revision=data.get("revision"),
            metric_type=metric,
            metric_name=metric_name(metric, report),
            metric_value=round(value, 4),
        )
        for metric, value in report["metrics"].items()
    ]


def metric_name(metric: str, report: dict[str, Any]) -> str:
    """A metric's name, with the network that it depends on."""
    networks = report["description"]["settings"].get("networks", {})
    network = networks.get("clip" if metric.startswith("clip_") else metric)
    return f"{NAMES[metric]} ({network})" if network else NAMES[metric]


def results_name(description: dict[str, Any]) -> str:
    """A file's name for the results of an evaluation on some data."""
    data = description["data"]
    names = [description["evaluation"], data["dataset"], data.get("config"), data.get("split")]
    return "-".join(name.replace("/", "-") for name in names if name)


def hub_entries(report: dict[str, Any]) -> list[EvalResultEntry]:
    """A report's metrics as `.eval_results` has them; none for data that are not of the Hub."""
    description = report["description"]
    data = description["data"]
    if not data.get("on_hub"):
        return []
    details = ", ".join(f"{name} {data[name]}" for name in ("config", "split") if data.get(name))
    return [
        EvalResultEntry(
            dataset_id=data["dataset"],
            task_id=metric,
            value=round(value, 4),
            dataset_revision=data.get("revision"),
            date=report["date"][:10],
            notes="; ".join(filter(None, [metric_name(metric, report), details])),
        )
        for metric, value in report["metrics"].items()
    ]
