# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Runs a recipe, with settings of the command line on top of the file's."""

import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from . import CommandError, one_line
from .settings import read_settings

if TYPE_CHECKING:
    from ..trainers import TokenFlowTrainer

# Where an error that comes up is the recipe's: putting the trainer together, and what it does before its first step.
BEFORE_TRAINING = ("make_trainer", "before_first_step")


def train_recipe(path: Path, settings: Iterable[str] = ()) -> "TokenFlowTrainer":
    """
    Train what a recipe describes.

    Args:
        path: the YAML file.
        settings: changes to it, such as `"training.max_steps=20"`.

    Raises:
        CommandError: something that training takes is not installed, the recipe can't be followed, or the loss is no
            number any more.
    """
    try:
        from ..trainers import recipe as recipes
    except ImportError as error:
        install = "pip install 'transformers-tokenflow[train]'"
        raise CommandError(f"training needs the extra `train` ({install}): {one_line(error)}") from error
    import yaml
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import StrictDataclassError

    overrides = read_settings(settings)
    for key in overrides:
        if key.split(".")[0] not in recipes.SECTIONS:
            sections = ", ".join(sorted(recipes.SECTIONS))
            raise CommandError(f"--set {key}: a key begins with one of {sections}")
    try:
        recipe = recipes.read_recipe(path, overrides)
    except (ValueError, OSError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise CommandError(f"the recipe {path} can't be read: {one_line(error)}") from error
    try:
        return recipes.train(recipe)
    except FloatingPointError as error:
        raise CommandError(f"training has ended: {one_line(error)}") from error
    except (ValueError, OSError, TypeError, RuntimeError, DatasetsError, StrictDataclassError) as error:
        if not is_from(error, *BEFORE_TRAINING):
            raise
        reason = f": {one_line(error.__cause__)}" if isinstance(error, DatasetsError) and error.__cause__ else ""
        raise CommandError(f"the recipe {path} can't be followed: {one_line(error)}{reason}") from error


def is_from(error: BaseException, *functions: str) -> bool:
    """Whether an error came up while one of the functions ran."""
    return any(frame.name in functions for frame in traceback.extract_tb(error.__traceback__))
