"""Takes TokenFlow's tokenizer apart, as the paper's Table 5 and Figure 6 do, at a size that two CPU cores can train.

    python -m training.compare_tokenizers

One semantic codebook whose entries pixels are decoded from too; then a second codebook that shares its index; then
several scales; then the teacher's weights to start the semantic encoder from; and the last of these with codebooks of
1k to 16k entries. All have the same data, order, steps and seeds. A run that is killed goes on from its last
checkpoint, and what is measured is not measured again. The table is written into `docs/ablation.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from datasets import Dataset, load_dataset
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForImageTextToText

from benchmarks.pages import replace_between
from training.compare_understanding import END, START, Comparison, read_figures, short_training, write_figures
from training.evaluate_tokenizer import measure, to_pixels
from training.evaluate_understanding import Answerer, load_splits, mean, rate, read_questions
from training.prepare_sources import EMOJI_STYLES
from transformers_tokenflow import TokenFlowModel, TokenFlowProcessor
from transformers_tokenflow.evaluation.networks import clip_distance
from transformers_tokenflow.scoring import OpenClipScorer
from transformers_tokenflow.trainers import load_teacher
from transformers_tokenflow.trainers.recipe import make_trainer, read_recipe, run

RECIPE = Path("training/recipes/tiny.yaml")
# Half as wide as tokenflow-tiny's, a quarter of its arithmetic.
WIDTH = 48
PROBED = 4000


@dataclass(frozen=True)
class Variant:
    """What a tokenizer's configuration changes, and whether its semantic encoder starts from the teacher's weights."""

    label: str
    config: dict[str, Any] = field(default_factory=dict)
    starts_from_teacher: bool = True


def parts() -> dict[str, Variant]:
    """Rows of Table 5, each with a part more; the single codebook's entries are as wide as the other two together."""
    single = {"scales": [8], "semantic_codebook_dim": 48, "pixel_codebook_dim": 0}
    return {
        "semantic": Variant("one semantic codebook, pixels decoded from it", single, starts_from_teacher=False),
        "shared": Variant("+ a pixel codebook, shared index", {"scales": [8]}, starts_from_teacher=False),
        "scales": Variant("+ several scales", starts_from_teacher=False),
        "teacher": Variant("+ starting from the teacher's weights (TokenFlow)"),
    }


def sizes() -> dict[str, Variant]:
    """Points of Figure 6 beside the one of 4,096 entries that is `parts`' last."""
    return {
        f"{size}": Variant(f"TokenFlow, {size:,} entries", {"codebook_size": size})
        for size in (1024, 2048, 8192, 16384)
    }


VARIANTS = parts() | sizes()


@dataclass(frozen=True)
class Study:
    """
    What all variants share.

    Args:
        data: folder of `training.prepare_emoji`.
        questions: folder of `training.prepare_questions`.
        teacher: folder of the small CLIP.
        output: folder of the runs and their figures.
        steps: of a tokenizer's training.
        understanding_steps: of the training of the language model that reads it.
        recipe: whose encoders, batches and learning rates tokenizers have.
    """

    data: Path
    questions: Path
    teacher: str
    output: Path
    steps: int
    understanding_steps: int
    recipe: Path = RECIPE

    def folder(self, name: str, seed: int) -> Path:
        """Where a run of a variant is."""
        return self.output / f"{self.steps}-steps" / f"{name}-{seed}"

    def overrides(self, name: str, seed: int) -> dict[str, Any]:
        """How a variant's recipe differs from that of the small tokenizer."""
        variant = VARIANTS[name]
        changes: dict[str, Any] = {f"model.config.{key}": value for key, value in variant.config.items()}
        return changes | {
            "model.config.pixel_channels": WIDTH,
            "teacher.name": f"local-dir:{self.teacher}",
            "teacher.initialize_semantic_encoder": variant.starts_from_teacher,
            "data.path": str(self.data),
            **short_training(self.folder(name, seed), seed, self.steps),
            "training.lr_scheduler_kwargs": {"num_decay_steps": self.steps // 2, "min_lr_ratio": 0.02},
            "training.codebook_restart_steps": max(1, self.steps // 8),
            "training.save_steps": max(1, self.steps // 2),
        }

    def train(self, name: str, seed: int) -> Path:
        """Trains a variant, or goes on where it was interrupted; returns the folder with the tokenizer."""
        folder = self.folder(name, seed)
        if not (folder / "config.json").exists():
            run(make_trainer(read_recipe(self.recipe, self.overrides(name, seed))))
        return folder

    def path(self, name: str, seed: int, what: str) -> Path:
        """Where figures of a variant are, of the tokenizer or of what a language model reads from it."""
        return self.folder(name, seed).with_suffix(f".{what}.json")

    def measure_tokenizer(self, name: str, seed: int) -> None:
        """Measures a variant's pictures and its features, unless they have been; trains it first if need be."""
        path = self.path(name, seed, "tokenizer")
        if path.exists():
            return
        model = TokenFlowModel.from_pretrained(self.train(name, seed), dtype=torch.float32).eval()
        splits = load_dataset(str(self.data))
        held_out = {split: rows for split, rows in splits.items() if split != "train"}
        teacher = f"local-dir:{self.teacher}"
        distance = clip_distance(OpenClipScorer(teacher))
        results = measure(model, load_teacher(teacher), held_out, distance)
        results["distance"] = round(distance.compute().item(), 4)
        results["probe"] = probe(model, splits["train"], splits["heldout_names"])
        write_figures(path, results)

    def measure_understanding(self, name: str, seed: int) -> None:
        """Trains a language model to read a variant, and measures it, unless that has been done."""
        path = self.path(name, seed, "understanding")
        if path.exists():
            return
        tokenizer = str(self.train(name, seed))
        output = self.folder(name, seed) / "understanding"
        comparison = Comparison(
            self.questions, {"tokenflow": tokenizer}, self.teacher, output, self.understanding_steps
        )
        folder = comparison.train("last_scale", seed)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        answerer = Answerer(model, TokenFlowProcessor.from_pretrained(folder))
        write_figures(path, recognition(answerer, load_splits(self.questions)))

    def figures(self, names: Sequence[str], seeds: Sequence[int], what: str) -> dict[str, list[dict[str, Any]]]:
        """By variant, the figures of every seed, of those that have been measured for all."""
        return read_figures({name: [self.path(name, seed, what) for seed in seeds] for name in names})


@torch.no_grad()
def mean_features(model: TokenFlowModel, rows: Dataset, batch_size: int = 64) -> np.ndarray:
    """The quantised features of pictures, averaged over the grid: (N, d_sem + d_pix)."""
    batches = to_pixels(rows["image"][:], model.config.image_size).split(batch_size)
    return torch.cat([model.encode(batch).quantized.mean(dim=(2, 3)) for batch in batches]).numpy()


def probe(model: TokenFlowModel, train: Dataset, test: Dataset) -> dict[str, float]:
    """How often a linear classifier of the features names the category of emoji whose names were held out."""
    emoji = train.select([index for index, style in enumerate(train["style"]) if style in EMOJI_STYLES])
    chosen = emoji.shuffle(seed=0).select(range(min(PROBED, len(emoji))))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(mean_features(model, chosen), chosen["category"][:])
    return rate(
        (classifier.predict(mean_features(model, test)) == np.array(test["category"][:])).astype(float).tolist()
    )


def recognition(answerer: Answerer, splits: dict[str, Dataset]) -> dict[str, dict[str, float]]:
    """What a language model makes of pictures: nats of the right name, and categories of things with new names."""
    pairs, names = splits["heldout_pairs"], splits["heldout_names"]
    nats = answerer.surprise(read_questions(pairs, ["name"]), pairs["image"][:])
    answered = answerer.answer(read_questions(names, ["category"]), names["image"][:])
    return {"nats": mean(nats), "category": rate([float(question.is_right) for question in answered])}


def spread(values: Sequence[float], digits: int = 2, scale: float = 1.0) -> str:
    """The mean over seeds, and half of what lies between the least and the most."""
    scaled = scale * np.asarray(values, dtype=float)
    return f"{scaled.mean():.{digits}f} ± {np.ptp(scaled) / 2:.{digits}f}"


def make_table(tokenizers: dict[str, list[dict[str, Any]]], readers: dict[str, list[dict[str, Any]]]) -> str:
    """
    A table in markdown.

    Args:
        tokenizers: by the variant's name, the figures of every seed.
        readers: those of the language models, of the variants that have one.
    """
    columns = [
        "tokenizer",
        "PSNR of emoji, dB",
        "distance",
        "entries used, %",
        "probe, %",
        "nats of the name",
        "category, %",
    ]
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    for name, runs in tokenizers.items():
        reader = readers.get(name, [])
        cells = [
            VARIANTS[name].label,
            spread([one["psnr"]["heldout_names"] for one in runs]),
            spread([one["distance"] for one in runs], digits=3),
            spread([one["codebook_utilization"] for one in runs], digits=1, scale=100),
            spread([one["probe"]["accuracy"] for one in runs], digits=1, scale=100),
            spread([one["nats"]["mean"] for one in reader]) if reader else "—",
            spread([one["category"]["accuracy"] for one in reader], digits=1, scale=100) if reader else "—",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    variants: Annotated[list[str] | None, typer.Argument(help="By default all.")] = None,
    data: Path = Path("data/tiny"),
    questions: Path = Path("data/tiny-questions"),
    teacher: str = "hub_cards/tokenflow-tiny-teacher",
    output: Path = Path("runs/ablation"),
    document: Path = Path("docs/ablation.md"),
    steps: Annotated[int, typer.Option(min=10)] = 400,
    understanding_steps: Annotated[int, typer.Option(min=0, help="0 leaves the language models out.")] = 100,
    seeds: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Trains VARIANTS, measures them, and writes their table into the document."""
    names = variants or list(VARIANTS)
    if unknown := set(names) - VARIANTS.keys():
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: expected some of {', '.join(VARIANTS)}")
    study = Study(data, questions, teacher, output, steps, understanding_steps)
    stages = [study.measure_tokenizer] + [study.measure_understanding] * (understanding_steps > 0)
    for stage in stages:
        for name in names:
            for seed in range(seeds):
                stage(name, seed)
            tokenizers = study.figures(list(VARIANTS), range(seeds), "tokenizer")
            readers = study.figures(list(VARIANTS), range(seeds), "understanding")
            note = f"{steps} steps of a tokenizer, {understanding_steps} of a language model; {seeds} seed(s)."
            replace_between(document, START, END, f"{make_table(tokenizers, readers)}\n\n{note}")
    typer.echo(make_table(tokenizers, readers))


if __name__ == "__main__":
    typer.run(main)
