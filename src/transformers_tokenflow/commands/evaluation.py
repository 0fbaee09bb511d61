# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What the commands that evaluate have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..evaluation import EvaluationError
from ..evaluation.card import update_card
from . import CommandError, one_line
from .generation import DEFAULT_SCORER
from .processes import find_each_other


@contextmanager
def processes(device: str) -> Iterator[PartialState]:
    """The processes that `accelerate launch` started, or this one alone. What goes wrong becomes a CommandError."""
    state = find_each_other(device)
    try:
        yield state
    except EvaluationError as error:
        raise CommandError(one_line(error)) from error
    finally:
        state.destroy_process_group()


def network_name(name: str | None) -> str:
    """What a CLIP is called in the results; without a name it is the small teacher of the checkout."""
    path = Path(name or DEFAULT_SCORER)
    return path.resolve().name if path.is_dir() else str(name)


def write_card(folder: Path, report: dict[str, Any]) -> list[Path]:
    """Put results into a model's card, see `update_card`."""
    try:
        return update_card(folder, report)
    except EvaluationError as error:
        raise CommandError(one_line(error)) from error
