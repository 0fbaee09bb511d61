# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The file of results: numbers, and all that it takes to get them again."""

import hashlib
import importlib.metadata
import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel

from ..commands.code_files import written_atomically
from . import EvaluationError
from .parts import DESCRIPTION, Parts, Record, Sums

DISTRIBUTIONS = (
    "transformers-tokenflow",
    "transformers",
    "torch",
    "torchvision",
    "torchmetrics",
    "torch-fidelity",
    "open_clip_torch",
    "image-reward",
    "scikit-image",
    "datasets",
    "accelerate",
    "numpy",
    "pillow",
)
DIGEST_BLOCK = 2**20


def describe_model(name: str, model: PreTrainedModel) -> dict[str, Any]:
    """
    Which model it was: of a repository the revision, of a folder a digest of its weights.

    Args:
        name: the folder or repository that it was loaded from.
        model: what was loaded.
    """
    return {
        "name": name,
        "type": model.config.model_type,
        "revision": getattr(model.config, "_commit_hash", None),
        "weights": weights_digest(Path(name)) if Path(name).is_dir() else None,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def weights_digest(folder: Path) -> str:
    """SHA-256 of a folder's files of weights, one after the other."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(DIGEST_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def texts_digest(texts: Sequence[str]) -> str:
    """Tells lists of texts apart."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def files_digest(paths: Iterable[Path]) -> str:
    """Tells files from what else was, or will be, in their place: by path, size and time of the last change."""
    known = {path: path.stat() for path in sorted(set(paths))}
    return texts_digest([f"{path} {found.st_size} {found.st_mtime_ns}" for path, found in known.items()])


def versions() -> dict[str, str]:
    """The installed versions of what has a part in the numbers."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read_report(path: Path) -> dict[str, Any] | None:
    """The results of an earlier evaluation, if the file holds any."""
    report = read_json(path)
    return report if report is not None and isinstance(report.get("description"), dict) else None


def read_description(output: Path) -> dict[str, Any] | None:
    """What an earlier evaluation with this output was of, whether it came to its end or not."""
    report = read_report(output)
    return read_json(parts_folder(output) / DESCRIPTION) if report is None else report["description"]


def refuse_others(output: Path) -> None:
    """Raise an EvaluationError where a file is that holds no results, and that results would overwrite."""
    if output.exists() and read_report(output) is None:
        raise EvaluationError(f"{output} holds no results of an evaluation, and would be overwritten: write elsewhere")


def read_json(path: Path) -> dict[str, Any] | None:
    """A file's dictionary, or None where there is no such file or it holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def parts_folder(output: Path) -> Path:
    """Where what is done is kept until the results are written."""
    return output.with_name(f"{output.name}.parts")


def evaluate(
    output: Path,
    description: dict[str, Any],
    state: PartialState,
    work: Callable[[Parts], None],
    summarize: Callable[[dict[str, Record], Sums], dict[str, Any]],
) -> dict[str, Any]:
    """
    Evaluate what has not been evaluated yet, and write the results.

    Args:
        output: the JSON file. While the evaluation runs, what is done of it is in a folder beside it, and a run that
            was killed is continued from there. If the file already has the results of the same, they are returned.
        description: of model, data and settings. Of those that are the same nothing is done twice.
        state: the processes.
        work: adds a record of everything that this process has to do.
        summarize: makes the results of all records and sums, in the main process: a dictionary with `metrics`, numbers
            by name, and whatever else is to be told.

    Returns:
        What the file holds.
    """
    description = json.loads(json.dumps(description))  # as it will be read again
    known = read_report(output)
    if known is not None and known["description"] == description:
        return known
    parts = Parts(parts_folder(output), description, state)
    try:
        work(parts)
        records, sums = parts.collect()
        if state.is_main_process:
            report = {"description": description, **summarize(records, sums), **circumstances(state)}
            write_records(records_path(output), records)
            with written_atomically(output) as temporary:
                temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            parts.remove()
        state.wait_for_everyone()
    finally:
        parts.close()
    return read_report(output)


def circumstances(state: PartialState) -> dict[str, Any]:
    """When, where and by which command."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([program_name(), *sys.argv[1:]]),
        "processes": state.num_processes,
        "device": str(state.device),
        "versions": versions(),
    }


def program_name() -> str:
    """What was started: the command line, whose script has another name than its command, or any other."""
    name = Path(sys.argv[0]).name
    return "tokenflow" if name == "cli.py" else name


def records_path(output: Path) -> Path:
    """Where the values of every single picture, prompt or question are written."""
    return output.with_name(f"{output.stem}.records.jsonl")


def write_records(path: Path, records: dict[str, Record]) -> None:
    """A line of JSON for each record."""
    lines = [json.dumps({"name": name, **record}, ensure_ascii=False) + "\n" for name, record in records.items()]
    with written_atomically(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
