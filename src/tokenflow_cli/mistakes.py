# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""How a command ends that could not do its work: with one line, and an exit code."""

import functools
import importlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import typer

from .output import results_alone_on_stdout, say

FAILURE, INTERRUPTED = 1, 130


@dataclass
class Mistakes:
    """What the option --verbose, which comes before the command, says of all mistakes."""

    with_traceback: bool = False


mistakes = Mistakes()


def fail(message: str, code: int = FAILURE) -> NoReturn:
    """End the program with a message."""
    say(f"error: {message}")
    raise typer.Exit(code)


def reports_mistakes(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command end with one line in place of a traceback, and keep stdout for its results."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            with results_alone_on_stdout():
                command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            fail("interrupted", INTERRUPTED)
        except Exception as error:
            if mistakes.with_traceback:
                say("".join(traceback.format_exception(error)).rstrip())
            fail(explain(error))

    return wrapper


def explain(error: Exception) -> str:
    """One line about an error."""
    if isinstance(error, ImportError):
        return f"something is not installed, or not as it should be: {error}"
    from transformers_tokenflow.commands import CommandError, one_line

    if isinstance(error, CommandError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":
        return "the device has too little memory: try smaller batches, or bfloat16"
    if isinstance(error, MemoryError):
        return "there is too little memory: try smaller batches, or bfloat16"
    if isinstance(error, OSError):
        return one_line(error)
    return (
        f"unexpected {type(error).__name__}: {one_line(error)}; `tokenflow --verbose ...` shows where it came up, "
        "which makes a useful report"
    )


def load_commands(name: str) -> Any:
    """A module of commands that need the extra `eval`."""
    try:
        return importlib.import_module(f"transformers_tokenflow.commands.{name}")
    except ImportError as error:
        fail(f"this needs `pip install 'transformers-tokenflow[eval]'`: {error}")
