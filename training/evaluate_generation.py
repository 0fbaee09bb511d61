"""Measures the small generator with the small CLIP; writes `results.json`.

    python -m training.evaluate_generation hub_cards/tokenflow-tiny-text-to-image

The small CLIP names each picture: which of 100 names, its own and 99 others, is nearest. Real pictures of the same
names are measured alike, and are the yardstick.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from datasets import Dataset, load_dataset
from torch import Tensor
from torch.nn import functional as F

from training.evaluate_teacher import image_features
from training.prepare_sources import EMOJI_STYLES, hash_fraction
from training.train_teacher import as_input, pictures
from transformers_tokenflow.commands.generation import load_painter
from transformers_tokenflow.evaluation.generation import agreement, draw, embed_texts
from transformers_tokenflow.scoring import OpenClipScorer

TEACHER = "hub_cards/tokenflow-tiny-teacher"
NUM_PROMPTS, NUM_CANDIDATES = 200, 100
# Rows of the paper's Table 6.
SAMPLINGS: dict[str, dict[str, Any]] = {
    "one pass, 1200/0.3": {"top_k": [1200], "top_p": [0.3]},
    "one pass, 1200/0.8": {"top_k": [1200], "top_p": [0.8]},
    "two passes, [1200, 1]/[0.8, 0]": {"top_k": [1200, 1], "top_p": [0.8, 0.0]},
    "three passes, [1200, 100, 1]/[0.8, 0.8, 0]": {"top_k": [1200, 100, 1], "top_p": [0.8, 0.8, 0.0]},
}
DEFAULT = "one pass, 1200/0.3"


def base_emoji(rows: Dataset) -> Dataset:
    """Emoji without skin tones."""
    columns = [rows["name"], rows["base_name"], rows["style"]]
    keep = [i for i, (n, b, s) in enumerate(zip(*columns, strict=True)) if n == b and s in EMOJI_STYLES]
    return rows.select(keep)


def choose_names(names: Sequence[str], count: int) -> list[str]:
    """Names in an order that only hashes decide."""
    return sorted(set(names), key=lambda name: hash_fraction(f"prompt/{name}"))[:count]


class Judge:
    """The small CLIP: says how often a picture's own name is the nearest of a hundred."""

    def __init__(self, teacher: str, names: list[str]) -> None:
        self.scorer = OpenClipScorer(teacher)
        self.positions = {name: index for index, name in enumerate(names)}
        self.texts = embed_texts(self.scorer, names)

    def candidates(self, name: str) -> list[int]:
        """A name's own index, then 99 others, drawn by the name."""
        others = [index for other, index in self.positions.items() if other != name]
        seed = int(hash_fraction(f"candidates/{name}") * 2**32)
        drawn = np.random.default_rng(seed).choice(others, NUM_CANDIDATES - 1, replace=False)
        return [self.positions[name], *drawn.tolist()]

    def judge(self, features: Tensor, names: Sequence[str]) -> dict[str, float]:
        """
        Args:
            features: (N, D), normalised, of pictures of N names.

        Returns:
            Share of pictures whose own name is the nearest, and the mean cosine to it.
        """
        candidates = torch.tensor([self.candidates(name) for name in names])
        is_nearest, cosines = agreement(features, self.texts, candidates)
        return {"accuracy": round(is_nearest.float().mean().item(), 4), "cosine": round(cosines.mean().item(), 4)}

    def embed(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, 64, 64) in [-1, 1] -> (N, D), normalised."""
        return F.normalize(torch.cat([self.scorer.embed_pictures(part) for part in pixel_values.split(256)]), dim=-1)

    def embed_rows(self, rows: Dataset) -> Tensor:
        """Pictures of 64 × 64 pixels in a dataset -> (N, D), normalised."""
        return image_features(self.scorer.model, rows)


class Painter:
    """The generator and its processor."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        self.pipeline = load_painter(str(folder), "cpu")
        self.model, self.processor = self.pipeline.model, self.pipeline.processor
        self.batch_size = batch_size

    @torch.no_grad()
    def paint(self, prompts: Sequence[str], seed: int, **options: Any) -> Tensor:
        """One picture per prompt, (N, 3, 64, 64); prompt i is drawn with the seed `seed + i`, whatever the batch."""
        seeds = range(seed, seed + len(prompts))
        codes = torch.stack(list(draw(self.pipeline, prompts, seeds, self.batch_size, "latent", **options)))
        decoded = [self.model.tokenizer.decode(part).pixel_values for part in codes.split(self.batch_size)]
        return torch.cat(decoded).clamp(-1, 1)


def over_seeds(painter: Painter, judge: Judge, names: list[str], num_seeds: int, **options: Any) -> dict[str, Any]:
    """Accuracy and cosine of plain names as prompts, for every seed and their mean."""
    runs = [
        judge.judge(judge.embed(painter.paint(names, seed=1000 * seed, **options)), names) for seed in range(num_seeds)
    ]
    accuracies = [run["accuracy"] for run in runs]
    return {
        "accuracy": round(float(np.mean(accuracies)), 4),
        "accuracy_deviation": round(float(np.std(accuracies)), 4),
        "cosine": round(float(np.mean([run["cosine"] for run in runs])), 4),
        "accuracy_by_seed": accuracies,
    }


def real_pictures(judge: Judge, rows: Dataset, names: list[str]) -> dict[str, float]:
    """The same for the real pictures of the names, in all styles."""
    chosen = rows.filter(lambda batch: [name in set(names) for name in batch], batched=True, input_columns="name")
    return judge.judge(judge.embed_rows(chosen), chosen["name"])


def nearest_distances(pictures: Tensor, known: Tensor) -> Tensor:
    """Root mean squared error to the nearest of other pictures: (N, 3, H, H), (M, 3, H, H) in [-1, 1] -> (N,)"""
    distances = torch.cdist(pictures.flatten(1), known.flatten(1)).min(dim=1).values
    return distances / pictures[0].numel() ** 0.5


def copies(painter: Painter, names: list[str], train: Dataset, heldout: Dataset) -> dict[str, Any]:
    """How near generated pictures are to training ones, beside held-out real ones and what the tokenizer loses."""
    known, unseen = (as_input(pictures(rows)) for rows in (train, heldout))
    tokenizer = painter.model.tokenizer
    with torch.no_grad():
        reconstructed = torch.cat(
            [tokenizer.decode(tokenizer.encode(part).codes).pixel_values for part in known[:512].split(64)]
        )
    own_loss = (reconstructed.clamp(-1, 1) - known[:512]).flatten(1).pow(2).mean(dim=1).sqrt()
    generated = nearest_distances(painter.paint(names, seed=0), known)
    return {
        "generated_median": round(generated.median().item(), 4),
        "generated_smallest": round(generated.min().item(), 4),
        "heldout_real_median": round(nearest_distances(unseen, known).median().item(), 4),
        "reconstruction_median": round(own_loss.median().item(), 4),
        "as_near_as_a_reconstruction": round((generated <= own_loss.quantile(0.9)).float().mean().item(), 4),
    }


def measure(
    painter: Painter, judge: Judge, splits: dict[str, Dataset], num_seeds: int, samplings: Sequence[str]
) -> dict[str, Any]:
    """Every number of the card."""
    names = choose_names(splits["train"]["name"], NUM_PROMPTS)
    real = real_pictures(judge, splits["train"], names)
    table = {label: over_seeds(painter, judge, names, num_seeds, **SAMPLINGS[label]) for label in samplings}
    pairs = splits["heldout_pairs"]
    pairs = pairs.select(range(min(NUM_PROMPTS, len(pairs))))
    prompts = [f"{name}, {style} style" for name, style in zip(pairs["name"], pairs["style"], strict=True)]
    results: dict[str, Any] = {
        "prompts": NUM_PROMPTS,
        "candidates": NUM_CANDIDATES,
        "seeds": num_seeds,
        "real": real,
        "samplings": table,
        "heldout_pairs": {
            "pictures": len(pairs),
            "generated": judge.judge(judge.embed(painter.paint(prompts, seed=0)), pairs["name"]),
            "real": judge.judge(judge.embed_rows(pairs), pairs["name"]),
        },
        "nearest_neighbours": copies(painter, names, splits["train"], splits["heldout_pairs"]),
    }
    results["ratio_to_real"] = round(table[DEFAULT]["accuracy"] / real["accuracy"], 4)
    return results


def best_of(painter: Painter, judge: Judge, names: list[str]) -> dict[str, Any]:
    """What choosing among four candidates by the semantic half of their codes gains, and what pruning early costs."""
    options: dict[str, Any] = {"best_of": 4, "scorer": judge.scorer}
    half = len(painter.model.tokenizer.config.scales) // 2
    return {
        "best_of_4": over_seeds(painter, judge, names, 1, **options),
        "best_of_4_pruned": over_seeds(painter, judge, names, 1, prune_at=[half], **options),
    }


def main(
    folder: Annotated[Path, typer.Argument()] = Path("hub_cards/tokenflow-tiny-text-to-image"),
    teacher: str = TEACHER,
    data: Path = Path("data/tiny"),
    output: Path | None = None,
    seeds: int = 4,
    batch_size: int = 25,
    threads: int = 2,
    quick: Annotated[bool, typer.Option(help="One seed of the default sampling alone.")] = False,
) -> None:
    """Evaluates the generator in FOLDER on names of DATA."""
    torch.set_num_threads(threads)
    splits = {name: base_emoji(rows) for name, rows in load_dataset(str(data)).items() if name != "heldout_photos"}
    names = sorted({name for rows in splits.values() for name in rows["name"]})
    judge, painter = Judge(teacher, names), Painter(folder, batch_size)
    results = measure(painter, judge, splits, 1 if quick else seeds, [DEFAULT] if quick else list(SAMPLINGS))
    if not quick:
        results["choosing"] = best_of(painter, judge, choose_names(splits["train"]["name"], NUM_PROMPTS))
        (output or folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    typer.echo(json.dumps(results, indent=2))


if __name__ == "__main__":
    typer.run(main)
