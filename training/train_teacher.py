"""Trains the tiny teacher: open_clip's CLIP on emoji and their names, on two CPU cores.

    python -m training.train_teacher training/recipes/tiny-teacher.yaml

A step takes names, each with two pictures of it in two styles. Three of open_clip's contrastive losses add up:
each style with the names, and the two styles with each other. It goes on from its last checkpoint.
"""

import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml
from datasets import Dataset, load_dataset
from open_clip import ClipLoss
from open_clip.model import CLIP
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedTokenizerFast

from training.prepare_sources import EMOJI_STYLES

PREPROCESS = {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}


@dataclass
class TeacherRecipe:
    """What training/recipes/tiny-teacher.yaml says; `model` is open_clip's `model_cfg`."""

    data: Path
    output: Path
    run: Path
    vocabulary_size: int
    model: dict[str, Any]
    patch_dropout: float
    names_per_step: int
    steps: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    image_image_weight: float
    average_decay: float
    log_every: int
    save_every: int
    seed: int
    threads: int

    @classmethod
    def load(cls, path: Path) -> "TeacherRecipe":
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return cls(**{**values, **{key: Path(values[key]) for key in ("data", "output", "run")}})


def train_tokenizer(names: list[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Trains a lower-casing WordPiece tokenizer that frames a name in [BOS] and [EOS]."""
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size, special_tokens=list(special.values()), show_progress=False
    )
    tokenizer.train_from_iterator(sorted(names), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def only_emoji(rows: Dataset) -> Dataset:
    """Leaves out photographs and stamps, which have no names to learn."""
    return rows.filter(lambda styles: [style in EMOJI_STYLES for style in styles], batched=True, input_columns="style")


def pictures(rows: Dataset) -> Tensor:
    """Stacks pictures; returns (N, 64, 64, 3) bytes."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in rows["image"]]))


class EmojiPairs:
    """The training pictures by name, served as deterministic steps of names with two pictures each.

    An epoch holds every base name once, and for a name with skin tones one of its variants as well, so that
    the variants, which are half of all names, do not rule the batches.
    """

    def __init__(self, rows: Dataset, names_per_step: int, seed: int) -> None:
        self.pictures = pictures(rows)
        self.by_name: dict[str, dict[str, int]] = defaultdict(dict)
        self.variants: dict[str, list[str]] = defaultdict(list)
        columns = zip(rows["name"], rows["base_name"], rows["style"], strict=True)
        for index, (name, base_name, style) in enumerate(columns):
            if name != base_name and name not in self.by_name:
                self.variants[base_name].append(name)
            self.by_name[name][style] = index
        self.base_names = sorted({name for name in self.by_name} - {v for vs in self.variants.values() for v in vs})
        self.names_per_step, self.seed = names_per_step, seed
        self.steps_per_epoch = (len(self.base_names) + len(self.variants)) // names_per_step

    def epoch_names(self, epoch: int) -> list[str]:
        generator = np.random.default_rng([self.seed, epoch])
        names = self.base_names + [str(generator.choice(names)) for _, names in sorted(self.variants.items())]
        return [names[index] for index in generator.permutation(len(names))]

    def step(self, step: int) -> tuple[list[str], Tensor, Tensor]:
        """Returns the step's names and the pictures in two styles, each (names, 3, 64, 64) in [-1, 1]."""
        epoch, position = divmod(step, self.steps_per_epoch)
        names = self.epoch_names(epoch)[position * self.names_per_step : (position + 1) * self.names_per_step]
        generator = np.random.default_rng([self.seed, 1, step])
        chosen = []
        for name in names:
            indices = list(self.by_name[name].values())
            chosen.append(generator.permutation(indices)[:2] if len(indices) > 1 else indices * 2)
        first, second = torch.as_tensor(np.array(chosen)).T
        return names, as_input(self.pictures[first]), as_input(self.pictures[second])


def as_input(pictures: Tensor) -> Tensor:
    """Turns (N, 64, 64, 3) bytes into the teacher's input, (N, 3, 64, 64) in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts, zooms, turns and recolours pictures a little; never flips, since arrows and words would change.

    Args:
        pictures: (N, 3, 64, 64) in [-1, 1]; what moves in from outside is white.
        generator: Source of the randomness.
    """
    count = len(pictures)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    angle, zoom = uniform(-0.17, 0.17), uniform(0.87, 1.2)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(count, 2, 2)
    affine = torch.cat([rotation * zoom[:, None, None], uniform(-0.12, 0.12, 2, 1)], dim=2)
    grid = F.affine_grid(affine, list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures - 1.0, grid, align_corners=False) + 1.0
    contrast, tint = uniform(0.8, 1.0, 1, 1, 1), uniform(-0.1, 0.1, 3, 1, 1)
    grey = moved.mean(dim=1, keepdim=True)
    moved = grey + (moved - grey) * uniform(0.7, 1.2, 1, 1, 1)
    return (moved * contrast + (1.0 - contrast) + tint).clamp(-1.0, 1.0)


def build_optimizer(model: nn.Module, recipe: TeacherRecipe) -> torch.optim.AdamW:
    """AdamW with decay on the matrices only."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    plain = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))


def learning_rate_at(step: int, recipe: TeacherRecipe) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def contrastive_losses(model: CLIP, text: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """open_clip's loss between the names and each of the two styles, and between the styles.

    Args:
        model: The CLIP to train.
        text: (N, context_length) token ids of N different names.
        first: (N, 3, 64, 64) the names in one style.
        second: (N, 3, 64, 64) the names in another.
    """
    contrast = ClipLoss()
    images = model.encode_image(torch.cat([first, second]), normalize=True)
    texts = model.encode_text(text, normalize=True)
    scale = model.logit_scale.exp()
    one, other = images.chunk(2)
    image_text = 0.5 * (contrast(one, texts, scale) + contrast(other, texts, scale))
    return {"image_text": image_text, "image_image": contrast(one, other, scale)}


def save_teacher(model: CLIP, tokenizer: PreTrainedTokenizerFast, recipe: TeacherRecipe) -> None:
    """Writes the folder that open_clip loads as `local-dir:`, the weights in half precision."""
    recipe.output.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": recipe.model, "preprocess_cfg": PREPROCESS}
    (recipe.output / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, recipe.output / "open_clip_model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(recipe.output)


class Training:
    """The model, its averaged weights and its optimizer, with the checkpoint they are kept in."""

    def __init__(self, recipe: TeacherRecipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.next_step = recipe, 0
        vision = {**recipe.model["vision_cfg"], "patch_dropout": recipe.patch_dropout}  # off in evaluation
        self.model = CLIP(**{**recipe.model, "vision_cfg": vision})
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average_decay))
        self.optimizer = build_optimizer(self.model, recipe)
        self.path = recipe.run / "checkpoint.pt"
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            self.next_step = state.pop("step")
            for key, part in state.items():
                getattr(self, key).load_state_dict(part)

    def save(self, step: int) -> None:
        parts = {key: getattr(self, key).state_dict() for key in ("model", "average", "optimizer")}
        temporary = self.path.with_suffix(".tmp")
        torch.save({"step": step, **parts}, temporary)
        temporary.replace(self.path)

    def update(self, step: int, text: Tensor, first: Tensor, second: Tensor) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, self.recipe)
        losses = contrastive_losses(self.model, text, first, second)
        loss = losses["image_text"] + self.recipe.image_image_weight * losses["image_image"]
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(100.0))
        self.average.update_parameters(self.model)
        return {name: value.item() for name, value in losses.items()}


def main(
    recipe_path: Annotated[Path, typer.Argument()] = Path("training/recipes/tiny-teacher.yaml"),
    stop_after: int | None = None,
) -> None:
    """Trains the recipe's teacher to its last step, or for STOP_AFTER steps to measure the speed."""
    recipe = TeacherRecipe.load(recipe_path)
    torch.set_num_threads(recipe.threads)
    recipe.run.mkdir(parents=True, exist_ok=True)
    splits = {split: only_emoji(rows) for split, rows in load_dataset(str(recipe.data)).items()}
    names = {name for rows in splits.values() for name in rows["name"]}
    tokenizer = train_tokenizer(list(names), recipe.vocabulary_size)
    pairs = EmojiPairs(splits["train"], recipe.names_per_step, recipe.seed)
    training = Training(recipe)
    started, first_step = time.monotonic(), training.next_step
    with (recipe.run / "log.jsonl").open("a", encoding="utf-8") as log:
        for step in range(first_step, min(recipe.steps, first_step + (stop_after or recipe.steps))):
            step_names, first, second = pairs.step(step)
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
            text = tokenizer(
                step_names,
                padding="max_length",
                truncation=True,
                return_tensors="pt",
                max_length=recipe.model["text_cfg"]["context_length"],
            ).input_ids
            losses = training.update(step, text, augment(first, generator), augment(second, generator))
            if step % recipe.log_every == 0:
                seconds = round(time.monotonic() - started, 1)
                log.write(json.dumps({"step": step, "seconds": seconds, **losses}) + "\n")
                log.flush()
            if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
                training.save(step + 1)
                save_teacher(training.average.module, tokenizer, recipe)
    typer.echo(f"from step {first_step} of {recipe.steps}: {time.monotonic() - started:.0f} seconds")


if __name__ == "__main__":
    typer.run(main)
