# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""A recipe, that is a YAML file, to a trainer that is ready to run."""

from pathlib import Path
from typing import Any

import yaml
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from ..configuration_tokenflow import TokenFlowConfig
from ..image_processing_tokenflow import TokenFlowImageProcessor
from ..modeling_tokenflow import TokenFlowModel
from .data import PictureTransform, load_pictures
from .teachers import initialize_semantic_encoder, load_teacher
from .tokenizer import TokenFlowTrainer, TokenFlowTrainingArguments

SECTIONS = {"model", "teacher", "data", "evaluation", "training"}


def read_recipe(path: str | Path, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    Read a recipe.

    Args:
        path: the YAML file.
        overrides: dotted keys to values, such as `{"training.max_steps": 20}`.

    Raises:
        ValueError: the file has unknown sections, or lacks one that is needed.
    """
    recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if (
        not isinstance(recipe, dict)
        or not recipe.keys() <= SECTIONS
        or not {"model", "data", "training"} <= recipe.keys()
    ):
        raise ValueError(
            f"{path} must hold the sections model, data and training, and may hold teacher and evaluation; "
            f"got {sorted(recipe) if isinstance(recipe, dict) else type(recipe).__name__}"
        )
    for dotted, value in (overrides or {}).items():
        *parents, name = dotted.split(".")
        section = recipe
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = value
    return recipe


def make_model(section: dict[str, Any]) -> TokenFlowModel:
    """
    The model of a recipe: `from_pretrained` (a folder or repository), `preset`, or neither; with `config` on top.

    A pretrained model's weights that don't fit the changed configuration, such as those of a wider decoder, start anew.
    """
    changes = section.get("config", {})
    if "from_pretrained" in section:
        config = TokenFlowConfig.from_pretrained(section["from_pretrained"], **changes)
        return TokenFlowModel.from_pretrained(section["from_pretrained"], config=config, ignore_mismatched_sizes=True)
    if "preset" in section:
        return TokenFlowModel(TokenFlowConfig.from_preset(section["preset"], **changes))
    return TokenFlowModel(TokenFlowConfig(**changes))


def make_trainer(recipe: dict[str, Any]) -> TokenFlowTrainer:
    """
    Everything that a recipe names, put together.

    Raises:
        ValueError: a setting is unknown or contradicts another.
    """
    args = TokenFlowTrainingArguments(**recipe["training"])
    set_seed(args.seed)
    model = make_model(recipe["model"])
    teacher = None
    if "teacher" in recipe:
        options = dict(recipe["teacher"])
        initialize = options.pop("initialize_semantic_encoder", "from_pretrained" not in recipe["model"])
        teacher = load_teacher(**options)
        if initialize:
            initialize_semantic_encoder(model, teacher)
    size = model.config.image_size
    data = dict(recipe["data"])
    transform = PictureTransform(size, train=True, **data.pop("transform", {}))
    evaluation = {
        name: load_pictures(transform=PictureTransform(size, train=False), **options)
        for name, options in recipe.get("evaluation", {}).items()
    }
    return TokenFlowTrainer(
        model=model,
        args=args,
        teacher=teacher,
        train_dataset=load_pictures(transform=transform, seed=args.seed, **data),
        eval_dataset=evaluation or None,
        processing_class=TokenFlowImageProcessor(size={"shortest_edge": size}, do_halve=True),
    )


def train(recipe: dict[str, Any]) -> TokenFlowTrainer:
    """Run a recipe, from its last checkpoint if there is one, and save the model to its output folder."""
    trainer = make_trainer(recipe)
    output = Path(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(output)) if output.is_dir() else None)
    trainer.save_model()
    if trainer.eval_dataset is not None:
        trainer.save_metrics("eval", trainer.evaluate())
    return trainer
