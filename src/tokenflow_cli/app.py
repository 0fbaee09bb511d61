# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""All commands, and what holds for each of them."""

import importlib.metadata
import inspect
from collections.abc import Callable
from typing import Annotated

import typer

from . import evaluation, language, models, pictures
from .mistakes import mistakes, reports_mistakes

COMMANDS: tuple[Callable[..., None], ...] = (
    pictures.reconstruct,
    pictures.encode,
    pictures.decode,
    language.generate,
    language.describe,
    models.convert,
    models.info,
    models.publish,
    models.train,
    pictures.cluster,
)
EVALUATIONS: tuple[Callable[..., None], ...] = (
    evaluation.reconstruction,
    evaluation.generation,
    evaluation.understanding,
)
EXIT_CODES = (
    "Exit codes: 0, all is well; 1, it did not work, and the last line says why; 2, the command line is not as it "
    "should be; 130, interrupted."
)
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    epilog=f"{EXIT_CODES}\n\nResults go to stdout, with --json as one object; everything else goes to stderr.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=HELP_OPTIONS,
)
evaluate = typer.Typer(
    help="Measure a tokenizer, a generator or an understanding model.\n\n"
    "On several devices: accelerate launch -m transformers_tokenflow.cli evaluate ...",
    epilog="Example: tokenflow evaluate reconstruction --data photos/",
    no_args_is_help=True,
)


def show_version(wanted: bool) -> None:
    """Print the versions that matter, and end."""
    if wanted:
        for name in ("transformers-tokenflow", "transformers", "torch"):
            typer.echo(f"{name} {installed_version(name)}")
        raise typer.Exit


def installed_version(name: str) -> str:
    """The version of a distribution; this package's own is known without being installed, too."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if name != "transformers-tokenflow":
            return "not installed"
        from transformers_tokenflow import __version__

        return __version__


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show where in the code a mistake came up; stands before the command.")
    ] = False,
) -> None:
    """
    Turn pictures into TokenFlow tokens and back, draw pictures of texts, convert and train models.

    Each command has a help of its own, with examples: tokenflow encode --help
    """
    mistakes.with_traceback = verbose


def add(group: typer.Typer, command: Callable[..., None]) -> None:
    """Make a command of a function: its docstring is the help, and the examples in it stand at the help's end."""
    text, _, examples = inspect.getdoc(command).partition("Examples:\n\n")
    paragraphs = [paragraph.replace("\n", " ") for paragraph in text.strip().split("\n\n")]
    group.command(help="\n\n".join(paragraphs), epilog=f"Examples:\n\n{examples}")(reports_mistakes(command))


for command in COMMANDS:
    add(app, command)
for command in EVALUATIONS:
    add(evaluate, command)
app.add_typer(evaluate, name="evaluate")
