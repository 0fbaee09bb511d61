# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""A recipe, that is a YAML file, to a trainer that is ready to run."""

from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch
import yaml
from transformers import set_seed
from transformers.utils import logging

from ..commands.settings import RecipeLoader, set_value
from ..configuration_tokenflow import TokenFlowConfig, check_fields
from ..image_processing_tokenflow import TokenFlowImageProcessor
from ..modeling_tokenflow import TokenFlowModel
from .arguments import (
    CommonTrainingArguments,
    TextToImageTrainingArguments,
    TokenFlowTrainingArguments,
    UnderstandingTrainingArguments,
)
from .base import BaseTrainer
from .checkpoints import check_configuration, is_whole, last_checkpoint, steps_made
from .data import PictureTransform, load_pictures
from .teachers import Teacher, initialize_semantic_encoder, load_teacher
from .text_to_image_recipe import make_text_to_image_trainer
from .tokenizer import TokenFlowTrainer
from .understanding_recipe import make_understanding_trainer

logger = logging.get_logger(__name__)

SECTIONS = {"model", "teacher", "data", "evaluation", "training"}


def read_recipe(path: str | Path, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    Read a recipe.

    Args:
        path: the YAML file.
        overrides: dotted keys to values, such as `{"training.max_steps": 20}`, or whole sections, `{"evaluation": {}}`.

    Raises:
        ValueError: the file has unknown sections, or lacks one that is needed, or a key leads into what is no section.
    """
    recipe = yaml.load(Path(path).read_text(encoding="utf-8"), RecipeLoader)
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
        set_value(recipe, dotted, value)
    for name in ("model", "data", "training"):
        if not isinstance(recipe[name], dict):
            raise ValueError(f"{path} must hold settings under {name}; got {recipe[name]!r}")
    evaluation = recipe.get("evaluation") or {}
    if not isinstance(evaluation, dict) or not all(isinstance(data, dict) for data in evaluation.values()):
        raise ValueError(
            f"{path} must hold settings of data by name under evaluation, {{NAME: {{...}}}}; got {evaluation}"
        )
    return recipe


def make_config(section: dict[str, Any]) -> TokenFlowConfig:
    """
    The configuration of a recipe's model: of `from_pretrained` (a folder or repository), of a `preset`, or the
    default one; with `config` on top.

    Raises:
        ValueError: a key of the section, or a field to change, is unknown.
    """
    if unknown := section.keys() - {"from_pretrained", "preset", "config"}:
        raise ValueError(
            f"a recipe's model has no {', '.join(sorted(unknown))}; expected from_pretrained, preset, config"
        )
    if "from_pretrained" in section and "preset" in section:
        raise ValueError("a recipe's model is from_pretrained or a preset, not both")
    changes = section.get("config") or {}
    if "preset" in section:
        return TokenFlowConfig.from_preset(section["preset"], **changes)
    if "from_pretrained" not in section:
        return TokenFlowConfig.from_fields(changes)
    check_fields(changes, TokenFlowConfig)
    return TokenFlowConfig.from_pretrained(section["from_pretrained"], **changes)


def make_model(section: dict[str, Any]) -> TokenFlowModel:
    """
    The model of a recipe, see `make_config`.

    A pretrained model's weights that don't fit the changed configuration, such as those of a wider decoder, start anew.
    They are trained in fp32, however they are stored.
    """
    config = make_config(section)
    if "from_pretrained" not in section:
        return TokenFlowModel(config)
    return TokenFlowModel.from_pretrained(
        section["from_pretrained"], config=config, dtype=torch.float32, ignore_mismatched_sizes=True
    )


def make_teacher(section: dict[str, Any], model: TokenFlowModel, initialize: bool) -> Teacher:
    """The teacher of a recipe, from which the semantic encoder starts unless `initialize` or the section says no."""
    options = dict(section)
    initialize = options.pop("initialize_semantic_encoder", initialize)
    teacher = load_teacher(**options)
    if initialize:
        initialize_semantic_encoder(model, teacher)
    return teacher


def make_trainer(recipe: dict[str, Any]) -> BaseTrainer:
    """
    Everything that a recipe names, put together. `type` in its model says what is trained.

    Raises:
        ValueError: a setting is unknown or contradicts another, or the run has begun with another model.
    """
    model = dict(recipe["model"])
    kind = model.pop("type", "tokenizer")
    if kind not in MAKERS:
        raise ValueError(f"unknown type of model {kind!r}: expected one of {', '.join(MAKERS)}")
    make, arguments = MAKERS[kind]
    args = make_arguments(recipe["training"], arguments)
    evaluation = recipe.get("evaluation") or {}
    for section in (recipe["data"], *evaluation.values()):
        check_path(section)
    set_seed(args.seed)
    data = {"seed": args.seed, **recipe["data"]}
    checkpoint = first_checkpoint(args)
    if args.ignore_data_skip and checkpoint:
        data["seed"] += steps_made(checkpoint)  # what is read again comes in another order
        args.data_seed = data["seed"]  # of data in memory it is Trainer's
    trainer = make({**recipe, "model": model, "data": data, "evaluation": evaluation}, args)
    if checkpoint:
        check_configuration(trainer.model.config, checkpoint)
    return trainer


def check_path(section: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: a section of data does not say where they are.
    """
    if not isinstance(path := section.get("path"), str):
        raise ValueError(f"data need a path: a folder, a repository, or a format such as imagefolder; got {path!r}")


def first_checkpoint(args: CommonTrainingArguments) -> str | None:
    """
    Where a run goes on from: its own last checkpoint, or while it has none, that of `resume_from_checkpoint`.

    Raises:
        ValueError: that is none.
    """
    if checkpoint := last_checkpoint(args.output_dir):
        return checkpoint
    given = args.resume_from_checkpoint
    if given is True:  # Trainer's word for its own last one
        return None
    if given and not is_whole(Path(str(given))):
        raise ValueError(f"resume_from_checkpoint is the folder of a checkpoint that was written whole; got {given!r}")
    return given or None


def make_tokenizer_trainer(recipe: dict[str, Any], args: TokenFlowTrainingArguments) -> TokenFlowTrainer:
    """The trainer of an image tokenizer."""
    model = make_model(recipe["model"])
    teacher = None
    if "teacher" in recipe:
        teacher = make_teacher(recipe["teacher"], model, initialize="from_pretrained" not in recipe["model"])
    size, data = model.config.image_size, dict(recipe["data"])
    transform = PictureTransform(size, train=True, **data.pop("transform", {}))
    evaluation = {
        name: load_pictures(transform=PictureTransform(size, train=False), **options)
        for name, options in recipe["evaluation"].items()
    }
    return TokenFlowTrainer(
        model=model,
        args=args,
        teacher=teacher,
        train_dataset=load_pictures(transform=transform, **data),
        eval_dataset=evaluation or None,
        processing_class=TokenFlowImageProcessor(size={"shortest_edge": size}, do_halve=True),
    )


MAKERS: dict[str, tuple[Callable[[dict[str, Any], Any], BaseTrainer], type[CommonTrainingArguments]]] = {
    "tokenizer": (make_tokenizer_trainer, TokenFlowTrainingArguments),
    "text-to-image": (make_text_to_image_trainer, TextToImageTrainingArguments),
    "understanding": (make_understanding_trainer, UnderstandingTrainingArguments),
}


def make_arguments(
    section: dict[str, Any], arguments: type[CommonTrainingArguments] = TokenFlowTrainingArguments
) -> Any:
    """
    Raises:
        ValueError: a setting is unknown, or empty or no number, whole number or truth value where that is asked for.
    """
    if unknown := section.keys() - arguments.__dataclass_fields__.keys():
        raise ValueError(f"{arguments.__name__} has no {', '.join(sorted(unknown))}")
    types = get_type_hints(arguments)
    section = {name: of_type(value, types[name], f"{arguments.__name__}.{name}") for name, value in section.items()}
    # YAML reads `no` as false. Of a strategy, such as `eval_strategy: no`, it is the word that is meant.
    words = {name: "no" for name, value in section.items() if value is False and name.endswith("_strategy")}
    return arguments(**{**section, **words})


def of_type(value: Any, hint: Any, name: str) -> Any:
    """A setting as its field's type has it, where that is a number or a truth value: 1e4 is a whole number, too."""
    types = set(get_args(hint) or [hint])
    if value is None and NoneType not in types:
        raise ValueError(f"{name} must not be empty: leave it out for its default")
    types -= {NoneType}
    if value is None or not types <= {bool, int, float}:
        return value
    if types == {bool}:
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false; got {value!r}")
    elif not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number; got {value!r}")
    elif types == {int}:
        if value != int(value):
            raise ValueError(f"{name} must be a whole number; got {value!r}")
        return int(value)
    return value


def train(recipe: dict[str, Any]) -> BaseTrainer:
    """Run a recipe, see `run`."""
    return run(make_trainer(recipe))


def run(trainer: BaseTrainer) -> BaseTrainer:
    """
    Train from the checkpoint that there is, see `first_checkpoint`, and save the model, with a card.

    A run that has made all its steps is only evaluated and saved again.
    """
    checkpoint = first_checkpoint(trainer.args)
    if checkpoint is not None and steps_made(checkpoint) >= trainer.args.max_steps > 0:
        logger.warning(f"{checkpoint} is the run's last step: nothing is left to train")
        trainer.load_checkpoint(checkpoint)
        if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
            trainer._load_best_model()
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if trainer.eval_dataset is not None:
        trainer.save_metrics("eval", trainer.evaluate())
    trainer.create_model_card()
    return trainer
