"""Measures the tiny teacher on the held-out emoji and writes `results.json` beside it.

python -m training.evaluate_teacher hub_cards/tokenflow-tiny-teacher
"""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import open_clip
import torch
import typer
from datasets import Dataset, load_dataset
from torch import Tensor

from training.retrieval import cross_style_retrieval_accuracy
from training.train_teacher import as_input, only_emoji, pictures

NEIGHBOURS = 10


@torch.no_grad()
def image_features(model: torch.nn.Module, rows: Dataset) -> Tensor:
    """Embeds pictures; returns (N, 128), normalised."""
    batches = pictures(rows).split(256)
    return torch.cat([model.encode_image(as_input(batch), normalize=True) for batch in batches])


@torch.no_grad()
def text_features(model: torch.nn.Module, tokenizer: Any, names: list[str]) -> Tensor:
    """Embeds names; returns (N, 128), normalised."""
    return torch.cat([model.encode_text(batch, normalize=True) for batch in tokenizer(names).split(512)])


def zero_shot_accuracy(images: Tensor, texts: Tensor, targets: list[int]) -> dict[str, float]:
    """How often a picture's own name is the nearest of all names, or among the nearest five.

    Args:
        images: (N, D) normalised.
        texts: (M, D) normalised, one row per name.
        targets: N indices into the names.
    """
    nearest = (images @ texts.T).topk(5, dim=1).indices
    hits = nearest == torch.tensor(targets)[:, None]
    return {"top1": hits[:, 0].float().mean().item(), "top5": hits.any(dim=1).float().mean().item()}


def neighbour_accuracy(queries: Tensor, labels: list[str], known: Tensor, known_labels: list[str]) -> float:
    """Category accuracy by a vote of the nearest pictures of the training split.

    Args:
        queries: (N, D) normalised.
        labels: N categories.
        known: (M, D) normalised.
        known_labels: M categories.
    """
    nearest = (queries @ known.T).topk(NEIGHBOURS, dim=1).indices.tolist()
    votes = [Counter(known_labels[index] for index in indices).most_common(1)[0][0] for indices in nearest]
    return sum(vote == label for vote, label in zip(votes, labels, strict=True)) / len(labels)


def name_results(model: torch.nn.Module, tokenizer: Any, splits: dict[str, Dataset]) -> dict[str, Any]:
    """Zero-shot accuracy of the pairs of name and style that training left out."""
    names = sorted({name for rows in splits.values() for name in rows["name"]})
    positions = {name: index for index, name in enumerate(names)}
    rows = splits["heldout_pairs"]
    images, texts = image_features(model, rows), text_features(model, tokenizer, names)
    targets = [positions[name] for name in rows["name"]]
    plain = torch.tensor([n == b for n, b in zip(rows["name"], rows["base_name"], strict=True)])
    plain_targets = [target for target, keep in zip(targets, plain, strict=True) if keep]
    return {
        "names": len(names),
        "pictures": len(rows),
        **zero_shot_accuracy(images, texts, targets),
        "without_skin_tones": {
            "pictures": len(plain_targets),
            **zero_shot_accuracy(images[plain], texts, plain_targets),
        },
    }


def retrieval_results(features: Tensor, rows: Dataset) -> dict[str, Any]:
    """Retrieval of the same thing in another style, by name, by base name and among base names alone.

    Args:
        features: (N, D) features of the rows.
        rows: N pictures' names and styles.
    """
    names, base_names, styles = rows["name"], rows["base_name"], rows["style"]
    plain = [index for index, (name, base) in enumerate(zip(names, base_names, strict=True)) if name == base]
    plain_accuracy = cross_style_retrieval_accuracy(
        features[plain], [names[index] for index in plain], [styles[index] for index in plain]
    )
    return {
        "pictures": len(rows),
        "same_name": cross_style_retrieval_accuracy(features, names, styles),
        "same_base_name": cross_style_retrieval_accuracy(features, base_names, styles),
        "without_skin_tones": {"pictures": len(plain), "same_name": plain_accuracy},
    }


def main(
    teacher: Annotated[Path, typer.Argument()] = Path("hub_cards/tokenflow-tiny-teacher"),
    data: Path = Path("data/tiny"),
    threads: int = 2,
) -> None:
    """Evaluates TEACHER on the held-out splits of DATA."""
    torch.set_num_threads(threads)
    model, *_ = open_clip.create_model_and_transforms(f"local-dir:{teacher}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{teacher}")
    model.eval()
    splits = {split: only_emoji(rows) for split, rows in load_dataset(str(data)).items()}
    rows, train = splits["heldout_names"], splits["train"]
    features, train_features = image_features(model, rows), image_features(model, train)
    results = {
        "zero_shot_heldout_pairs": name_results(model, tokenizer, {k: v for k, v in splits.items() if len(v)}),
        "cross_style_retrieval_heldout_names": retrieval_results(features, rows),
        "cross_style_retrieval_heldout_names_by_raw_pixels": retrieval_results(
            as_input(pictures(rows)).flatten(1), rows
        ),
        "category_heldout_names": {
            "neighbours": NEIGHBOURS,
            "categories": len(set(rows["category"])),
            "largest_category": max(Counter(rows["category"]).values()) / len(rows),
            "accuracy": neighbour_accuracy(features, rows["category"], train_features, train["category"]),
        },
    }
    (teacher / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    typer.echo(json.dumps(results, indent=2))


if __name__ == "__main__":
    typer.run(main)
