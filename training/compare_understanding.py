"""Compares what a language model can read a picture from: TokenFlow's features, those of pixels alone, the teacher's.

    python -m training.compare_understanding --pixel-tokenizer runs/tiny-pixel

The paper's claim, at this scale: features of the shared codebooks serve understanding far better than those of pixels
alone, and nearly as well as the teacher's continuous ones. The other variants are ways of reading TokenFlow's features
(Table 8). All have the same language model, form of projector, questions, steps and seeds; the teacher's is a LLaVA of
transformers with the teacher's vision tower, frozen as the tokenizers are. A run that is killed goes on from its last
checkpoint, and what is measured is not measured again. The table is written into `docs/understanding.md`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from transformers import AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration, set_seed

from benchmarks.pages import replace_between
from training.evaluate_understanding import TEACHER, Answerer, load_splits, measure, read_names
from training.prepare_questions import encode_split
from transformers_tokenflow import (
    TokenFlowForConditionalGeneration,
    TokenFlowProcessor,
    UnderstandingTrainer,
    UnderstandingTrainingArguments,
)
from transformers_tokenflow.commands.tokenizers import load_tokenizer
from transformers_tokenflow.trainers import load_teacher
from transformers_tokenflow.trainers.conversation_data import conversations
from transformers_tokenflow.trainers.data import load_rows
from transformers_tokenflow.trainers.recipe import make_arguments, make_trainer, read_recipe, run
from transformers_tokenflow.trainers.teachers import initialize_semantic_encoder
from transformers_tokenflow.trainers.understanding_recipe import make_understanding

RECIPE = Path("training/recipes/tiny-understanding.yaml")
START, END = "<!-- comparison -->", "<!-- end of comparison -->"
# Columns of the table beside names: what is asked in which split.
COLUMNS = {
    "is it …?": ("heldout_pairs", "yes_no"),
    "main colour": ("heldout_pairs", "colour"),
    "style": ("heldout_pairs", "style"),
    "category": ("heldout_pairs", "category"),
    "category of new names": ("heldout_names", "category"),
}


@dataclass(frozen=True)
class Variant:
    """Where features come from, `tokenflow`, `pixel` or `teacher`, and which are read."""

    label: str
    source: str = "tokenflow"
    strategy: str = "last_scale"


VARIANTS = {
    "last_scale": Variant("TokenFlow, last scale"),
    "pixel": Variant("a codebook of pixels alone, last scale", source="pixel"),
    "teacher": Variant("the teacher, continuous", source="teacher"),
    "last_scale_semantic": Variant("TokenFlow, last scale, semantic half", strategy="last_scale_semantic"),
    "all_scales": Variant("TokenFlow, all scales", strategy="all_scales"),
    "all_scales_residual": Variant("TokenFlow, residuals of all scales", strategy="all_scales_residual"),
}


class LlavaTrainer(UnderstandingTrainer):
    """An [`UnderstandingTrainer`] whose model reads pixels."""

    def model_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Inputs without labels."""
        return {name: value for name, value in inputs.items() if name != "labels"}

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: it would be one of the package's models."""


def as_llava(model: TokenFlowForConditionalGeneration, teacher: str) -> LlavaForConditionalGeneration:
    """
    A model of the same language model that reads continuous features.

    Args:
        model: its tokenizer's semantic encoder has the teacher's architecture.
        teacher: folder of the small CLIP, whose vision tower takes the tokenizer's place.
    """
    initialize_semantic_encoder(model.model.tokenizer, load_teacher(f"local-dir:{teacher}"))
    tower = model.model.tokenizer.semantic_encoder.model
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=model.config.text_config,
        image_token_index=model.config.image_token_id,
        image_seq_length=model.config.num_image_features,
        vision_feature_layer=-1,
        tie_word_embeddings=model.config.text_config.tie_word_embeddings,
    )
    llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower.load_state_dict(tower.state_dict())
    llava.model.vision_tower.requires_grad_(False)
    llava.model.language_model.load_state_dict(model.model.language_model.state_dict())
    llava.lm_head.load_state_dict(model.lm_head.state_dict())
    llava.generation_config = model.generation_config
    return llava


def make_llava_trainer(recipe: dict[str, Any], teacher: str) -> LlavaTrainer:
    """The trainer of a recipe whose data have pictures in place of codes, of a model of [`as_llava`]."""
    args = make_arguments(recipe["training"], UnderstandingTrainingArguments)
    set_seed(args.seed)
    section = {name: value for name, value in recipe["model"].items() if name != "type"}
    model, processor = make_understanding(section)
    rows = load_rows(needed=[], **recipe["data"])
    examples = conversations(rows, processor, model.config, args.max_length, args.turns_per_conversation, args.seed)
    return LlavaTrainer(model=as_llava(model, teacher), args=args, train_dataset=examples, processing_class=processor)


@dataclass(frozen=True)
class Comparison:
    """
    What all variants share.

    Args:
        data: folder of `training.prepare_questions`.
        tokenizers: folders of the image tokenizers by the source of features.
        teacher: folder of the small CLIP.
        output: folder of the runs and their figures.
        steps: of training.
        recipe: whose language model, batches and learning rate they have.
    """

    data: Path
    tokenizers: dict[str, str]
    teacher: str
    output: Path
    steps: int
    recipe: Path = RECIPE

    def folder(self, name: str, seed: int) -> Path:
        """Where a run of a variant is."""
        return self.output / f"{self.steps}-steps" / f"{name}-{seed}"

    def overrides(self, name: str, seed: int) -> dict[str, Any]:
        """How a variant's recipe differs from the one of the small model."""
        variant = VARIANTS[name]
        tokenizer = self.tokenizers["pixel" if variant.source == "pixel" else "tokenflow"]
        data_files = self.pictures() if variant.source == "teacher" else self.codes(tokenizer)
        return {
            "model.tokenizer": tokenizer,
            "model.text_tokenizer": str(self.data / "text-tokenizer"),
            "model.config": {"feature_strategy": variant.strategy},
            "data.data_files": str(data_files),
            **short_training(self.folder(name, seed), seed, self.steps),
            "training.muon": True,
            "training.learning_rate": 3e-3,
            "training.lr_scheduler_kwargs": {"num_decay_steps": self.steps // 4, "min_lr_ratio": 0.02},
            "training.save_steps": max(1, self.steps // 8),
        }

    def pictures(self) -> Path:
        """The training pictures."""
        return self.data / "pictures" / "train.parquet"

    def codes(self, name: str) -> Path:
        """Their codes by an image tokenizer, which are written if they are not there."""
        tokenizer = load_tokenizer(name, "cpu")
        path = self.output / f"codes-{tokenizer.codebook_hash()}.parquet"
        self.output.mkdir(parents=True, exist_ok=True)
        encode_split(self.pictures(), path, tokenizer)
        return path

    def train(self, name: str, seed: int) -> Path:
        """Trains a variant, or goes on where it was interrupted; returns the folder with the model."""
        recipe = read_recipe(self.recipe, self.overrides(name, seed))
        is_teacher = VARIANTS[name].source == "teacher"
        run(make_llava_trainer(recipe, self.teacher) if is_teacher else make_trainer(recipe))
        return self.folder(name, seed)

    def figures_path(self, name: str, seed: int) -> Path:
        """Where the figures of a variant are, if it has been measured."""
        return self.folder(name, seed).with_suffix(".json")

    def measure(self, name: str, seed: int) -> None:
        """Measures what a variant makes of held-out pictures, unless it has been; trains it first if need be."""
        path = self.figures_path(name, seed)
        if path.exists():
            return
        folder = self.train(name, seed)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        answerer = Answerer(model, TokenFlowProcessor.from_pretrained(folder))
        results = measure(answerer, load_splits(self.data), self.teacher, read_names(self.data))
        results["tokens"] = answerer.processor.num_image_tokens
        write_figures(path, results)

    def figures(self, seeds: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
        """By variant, the figures of every seed, of those that have been measured for all."""
        return read_figures({name: [self.figures_path(name, seed) for seed in seeds] for name in VARIANTS})


def short_training(folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """What recipes of so few steps have in common, whatever they train."""
    return {
        "evaluation": None,
        "training.output_dir": str(folder),
        "training.seed": seed,
        "training.max_steps": steps,
        "training.warmup_steps": steps // 10,
        # Averages over the last of so few steps.
        "training.ema_decay": 0.98,
        "training.eval_strategy": "no",
        "training.save_total_limit": 1,
    }


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Figures of a variant to a file."""
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def read_figures(paths: dict[str, list[Path]]) -> dict[str, list[dict[str, Any]]]:
    """By variant, the figures of every seed, of those that have been measured for all."""
    return {
        name: [json.loads(path.read_text(encoding="utf-8")) for path in files]
        for name, files in paths.items()
        if all(path.exists() for path in files)
    }


def percent(rates: Sequence[dict[str, float]]) -> str:
    """The mean of accuracies over seeds, and their standard error over pictures, which seeds share."""
    accuracy, error = (100 * np.mean([rate[key] for rate in rates]) for key in ("accuracy", "standard_error"))
    return f"{accuracy:.1f} ± {error:.1f}"


def make_table(figures: dict[str, list[dict[str, Any]]]) -> str:
    """
    A table in markdown.

    Args:
        figures: by the variant's name, those of every seed.
    """
    columns = ["features", "tokens", "nats of the name", "name", "name, no skin tones", *COLUMNS]
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    for name, runs in figures.items():
        cells = [VARIANTS[name].label, str(runs[0]["tokens"])]
        nats = [np.mean([run["names"]["nats"][key] for run in runs]) for key in ("mean", "standard_error")]
        cells.append(f"{nats[0]:.2f} ± {nats[1]:.2f}")
        cells += [percent([run["names"][part]["model"] for run in runs]) for part in ("all", "without_skin_tones")]
        cells += [percent([run[split][kind] for run in runs]) for split, kind in COLUMNS.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    variants: Annotated[list[str] | None, typer.Argument(help="By default all.")] = None,
    pixel_tokenizer: str = "runs/tiny-pixel",
    tokenizer: str = "hub_cards/tokenflow-tiny",
    teacher: str = TEACHER,
    data: Path = Path("data/tiny-questions"),
    output: Path = Path("runs/comparison"),
    document: Path = Path("docs/understanding.md"),
    steps: Annotated[int, typer.Option(min=10)] = 300,
    seeds: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Trains VARIANTS, measures them, and writes their table into the document."""
    names = variants or list(VARIANTS)
    if unknown := set(names) - VARIANTS.keys():
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: expected some of {', '.join(VARIANTS)}")
    comparison = Comparison(data, {"tokenflow": tokenizer, "pixel": pixel_tokenizer}, teacher, output, steps)
    for name in names:
        for seed in range(seeds):
            comparison.measure(name, seed)
        table = make_table(comparison.figures(range(seeds)))
        note = f"{steps} steps of training, {seeds} seed(s); per cent right ± the standard error over pictures."
        replace_between(document, START, END, f"{table}\n\n{note}")
        typer.echo(table)


if __name__ == "__main__":
    typer.run(main)
