# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Commands that make models, or tell and publish what they are."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from .mistakes import fail
from .options import AsJson, Dtype, Settings
from .output import error_console, progress_bar, say, show


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="Official .pt file, safetensors with its keys, or a folder of shards.", exists=True)
    ],
    folder: Annotated[Path, typer.Argument(help="Folder for the model; it must not hold anything.", file_okay=False)],
    tokenizer: Annotated[
        Path | None, typer.Option(help="File of the image tokenizer, which generators' checkpoints lack.", exists=True)
    ] = None,
    text_tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder or repository of the text tokenizer.", show_default="that of CHECKPOINT's folder"),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            help="What to save the weights in; codebooks are float32 in any case.", show_default="the checkpoint's"
        ),
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """
    Convert an official checkpoint to a folder with model, processor and code.

    The variant is read off the tensors. A checkpoint of other than the released sizes may need help with fields of the
    configuration that shapes don't show, such as --set semantic_config.num_attention_heads=16. A generator, and an
    understanding model without it, takes the file of its image tokenizer as well.

    Examples:

    tokenflow convert tokenflow_siglip_32k.pt tokenflow-xl

    tokenflow convert TokenFlow-t2i/ FOLDER --tokenizer tokenflow_clipb_32k_enhanced.pt
    """
    from transformers_tokenflow.commands.conversion import WHAT, convert_checkpoint

    with progress_bar("writing megabytes") as advance:
        converted = convert_checkpoint(
            checkpoint,
            folder,
            dtype.value if dtype is not None else None,
            settings or (),
            tokenizer,
            text_tokenizer,
            lambda done, total: advance(done // 10**6, total // 10**6),
        )
    config = converted.config
    image = getattr(config, "tokenizer_config", config)
    facts = {
        "folder": folder,
        "model_type": config.model_type,
        "semantic_encoder": image.semantic_config.model_type,
        "image_size": image.image_size,
        "num_image_tokens": image.num_image_tokens,
        "codebook_size": image.codebook_size,
        "num_parameters": converted.num_parameters,
    }
    words = (
        f"{folder} holds {WHAT[config.model_type]} of {image.image_size}-pixel pictures with a "
        f"{image.semantic_config.model_type}: {image.num_image_tokens} tokens of {image.codebook_size}, "
        f"{converted.num_parameters / 1e6:,.1f} M parameters"
    )
    show(as_json, facts, words)


def info(
    model: Annotated[str, typer.Argument(metavar="FOLDER|REPO", help="Folder or Hub repository of a model.")],
    as_json: AsJson = False,
) -> None:
    """
    Tell what a model is: its sizes, tokens, parameters, files and license. No weights are loaded.

    Examples:

    tokenflow info hub_cards/tokenflow-tiny

    tokenflow info user/name --json
    """
    from transformers_tokenflow.commands.information import inspect_model

    information = inspect_model(model)
    table = Table(show_header=False, title=Text(information.name))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for label, value in information.to_rows().items():
        table.add_row(label, Text(value))
    show(as_json, information.to_dict(), table)


def publish(
    folder: Annotated[Path, typer.Argument(help="Folder of a model.", exists=True, file_okay=False)],
    repository: Annotated[str, typer.Argument(metavar="REPO_ID", help="Where to on the Hub, such as user/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make a repository that nobody else sees.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, and upload nothing.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch, which is made if it is not there.", show_default="main")
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    token: Annotated[str | None, typer.Option(help="Of the Hub.", show_default="that of `hf auth login`")] = None,
    as_json: AsJson = False,
) -> None:
    """
    Check a model's folder, and upload it to the Hub.

    It must load by its remote code where this package is not installed, and have a card with a license; pickles,
    secrets and links out of the folder are refused. After an interruption the same command goes on.

    Examples:

    tokenflow publish runs/tiny user/name --dry-run

    tokenflow publish runs/tiny user/name --private
    """
    from transformers_tokenflow.commands import counted
    from transformers_tokenflow.commands.publishing import is_branch, is_repository, publish_folder

    if not is_repository(repository):
        raise typer.BadParameter(f"REPO_ID is the name of a repository, such as user/name; got {repository!r}")
    if revision is not None and not is_branch(revision):
        raise typer.BadParameter(f"--revision is the name of a branch; got {revision!r}")
    if create_pr and revision is not None:
        raise typer.BadParameter("--create-pr opens a pull request to the main branch: leave --revision out")
    options = {"private": private, "revision": revision, "create_pr": create_pr, "token": token}
    result = publish_folder(
        folder, repository, dry_run=dry_run, report=say, shows_progress=error_console.is_terminal, **options
    )
    facts = {**result.to_dict(), "dry_run": dry_run}
    if result.problems:
        show(as_json, facts)
        for problem in result.problems:
            say(f"  {problem}")
        fail(f"nothing was uploaded: {counted(len(result.problems), 'problem')} with {folder}")
    if dry_run:
        say(f"nothing is wrong: {counted(result.files, 'file')}, {result.size / 1e6:,.1f} MB, would be uploaded")
    show(as_json, facts, result.url)


def train(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.YAML", help="What to train on what.", exists=True, dir_okay=False)
    ],
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """
    Train what a recipe describes, from the last checkpoint in its output folder if there is one.

    On several devices: accelerate launch -m transformers_tokenflow.cli train RECIPE.YAML

    Examples:

    tokenflow train training/recipes/tiny.yaml

    tokenflow train training/recipes/tiny.yaml --set training.max_steps=20
    """
    from transformers_tokenflow.commands.training import train_recipe

    trainer = train_recipe(recipe, settings or ())
    if not trainer.is_world_process_zero():
        return
    logged = {name: value for log in trainer.state.log_history for name, value in log.items()}
    facts = {
        "output_dir": trainer.args.output_dir,
        "step": trainer.state.global_step,
        "metrics": {name: value for name, value in logged.items() if name != "step"},
    }
    show(as_json, facts, f"the model is in {trainer.args.output_dir}")
