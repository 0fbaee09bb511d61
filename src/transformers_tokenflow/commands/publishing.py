# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Checks a model's folder, and uploads it to the Hub."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from ..publishing import (
    PublishError,
    check_card,
    check_code,
    check_files,
    check_loading,
    files_to_publish,
    upload_model,
)
from . import CommandError, counted
from .loading import load_config

# What `git check-ref-format --branch` takes.
BRANCH = re.compile(
    r"(?!.*(\.\.|//|@\{|/\.|\.lock(/|$)))(?![-./])[^\x00-\x20\x7f~^:?*\[\\]*[^\x00-\x20\x7f~^:?*\[\\./]"
)


@dataclass
class Report:
    """
    Args:
        repository: where the folder goes.
        url: of the repository, its branch, or the pull request.
        commit: id of the last commit, or None where nothing was uploaded.
        files: how many the folder has to publish.
        size: of these, in bytes.
        problems: for which nothing was uploaded.
    """

    repository: str
    url: str
    commit: str | None = None
    files: int = 0
    size: int = 0
    problems: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)


def is_repository(name: str) -> bool:
    """Whether the Hub could have a repository of this name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def is_branch(name: str) -> bool:
    """Whether git could have a branch of this name, or a pull request be one such as `refs/pr/1`."""
    return BRANCH.fullmatch(name) is not None


def publish_folder(
    folder: Path,
    repository: str,
    *,
    dry_run: bool = False,
    report: Callable[[str], None] = lambda message: None,
    shows_progress: bool = False,
    **options: Any,
) -> Report:
    """
    Check a folder, all of it, and upload it if nothing is wrong.

    Args:
        folder: of a model.
        repository: of the Hub.
        dry_run: whether to check only.
        report: is called with what is going on.
        shows_progress: whether the Hub's client draws its progress bars.
        options: of `upload_model`.

    Returns:
        [`Report`], whose problems, if there are any, are the reason for which nothing was uploaded.

    Raises:
        CommandError: the folder holds no model of this package, or the upload failed.
    """
    report(f"checking {folder}")
    result = Report(repository, f"{constants.ENDPOINT}/{repository}")
    problems = find_problems(folder, report)
    if problems:
        result.problems = tuple(problems)
        return result
    names = files_to_publish(folder)
    result.files, result.size = len(names), sum((folder / name).stat().st_size for name in names)
    if dry_run:
        return result
    report(f"uploading {counted(result.files, 'file')}, {result.size / 1e6:,.1f} MB, but for what is there already")
    if not shows_progress:
        disable_progress_bars()
    try:
        published = upload_model(folder, repository, **options)
    except PublishError as error:
        raise CommandError(str(error)) from error
    result.url, result.commit = published.url, published.commit
    return result


def find_problems(folder: Path, report: Callable[[str], None]) -> list[str]:
    """What is wrong with a folder: what is quickly seen, and if that is nothing, what shows in loading it."""
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise CommandError(f"{folder} holds adapters: merge them into their model (peft's `merge_and_unload`) first")
    load_config(str(folder))
    if problems := [*check_files(folder), *check_card(folder), *check_code(folder)]:
        return problems
    report("loading the model by its remote code, in a process without this package")
    return check_loading(folder)
