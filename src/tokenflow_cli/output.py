# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What the commands print: results on stdout, everything else on stderr."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# Nothing in a path or in JSON is meant for rich: neither colours nor emoji codes such as `:apple:`.
console = Console(highlight=False, emoji=False)
error_console = Console(stderr=True, highlight=False, emoji=False)


def say(message: str, target: Console = error_console) -> None:
    """Print a line as it is: paths may hold what rich takes for markup."""
    target.print(message, markup=False, soft_wrap=True)


def show(as_json: bool, facts: dict[str, Any], *words: str | Table) -> None:
    """Print a result as one JSON object, or in words: lines and tables."""
    for part in [to_json(facts)] if as_json else words:
        if isinstance(part, str):
            say(part, console)
        else:
            console.print(part)


def to_json(facts: dict[str, Any]) -> str:
    """JSON of what a command found out; paths become strings, and what JSON has no number for, null."""
    text = json.dumps(facts, default=str)
    return json.dumps(json.loads(text, parse_constant=lambda name: None), indent=2)


@contextmanager
def results_alone_on_stdout() -> Iterator[None]:
    """Send to stderr what libraries print, such as the trainer its losses."""
    console.file = sys.stdout
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def progress_bar(title: str, beside_results: bool = False) -> Iterator[Callable[[int, int], None]]:
    """
    A progress bar on a terminal, and nothing elsewhere; gives the function that moves it to (done, total).

    Results that are printed meanwhile, on the same terminal, are progress enough: a bar would get among them.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_shown = error_console.is_terminal and is_main_process() and not (beside_results and console.is_terminal)
    with Progress(*columns, console=error_console, disable=not is_shown) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def is_main_process() -> bool:
    """Whether this is the one of several processes that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


def report_failures(failures: dict[str, str], noun: str = "picture") -> None:
    """List the pictures, or what else it is, that could not be read."""
    if failures:
        from transformers_tokenflow.commands import counted

        say(f"warning: left out {counted(len(failures), noun)} that could not be read:")
    for path, reason in failures.items():
        say(f"  {path}: {reason}")
