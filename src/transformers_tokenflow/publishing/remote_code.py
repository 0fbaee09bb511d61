# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Checks a folder's remote code: it must be this package's, all of it, and found by the configurations."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from .. import __version__
from ..card_tokenflow import as_list

PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
DIFFUSERS_INDEX = "model_index.json"
MODULES = "*_tokenflow*.py"


def check_code(folder: Path) -> list[str]:
    """
    What is wrong with a folder's remote code, each as a sentence.

    Args:
        folder: of a model.
    """
    problems, needed = [], set()
    for source, reference in references(folder):
        module = f"{reference.partition('.')[0]}.py"
        if "--" in reference:
            problems.append(f"{source} takes its code from another repository, {reference}: save the model anew")
        elif not (PACKAGE / module).is_file():
            problems.append(f"{source} names {module} as the model's code, which is no module of this package")
        else:
            needed |= {module, *(Path(path).name for path in get_relative_import_files(PACKAGE / module))}
    if not any(source == "config.json" for source, _ in references(folder)):
        problems.append(
            "config.json names no code (`auto_map`), so that nobody without this package could load the model: save it "
            "with this package's `save_pretrained`"
        )
    present = {path.name for path in folder.glob(MODULES)}
    problems += [f"{name}, a part of the model's code, is missing: save the model anew" for name in needed - present]
    for name in sorted(present):
        own = PACKAGE / name
        if not own.is_file():
            problems.append(f"{name} is no module of this package: remove it, or give it a name without `_tokenflow`")
        elif own.read_bytes() != (folder / name).read_bytes():
            problems.append(f"{name} differs from this package's, version {__version__}: save the model anew")
    return sorted(problems)


def references(folder: Path) -> Iterator[tuple[str, str]]:
    """Names of files, and the classes that they name as code, as `module.Class`."""
    for name in CONFIGS:
        fields = read_fields(folder / name)
        for value in (fields.get("auto_map") or {}).values():
            yield from ((name, reference) for reference in as_list(value) if reference)
        for pipeline in (fields.get("custom_pipelines") or {}).values():
            yield name, pipeline["impl"]
    class_name = read_fields(folder / DIFFUSERS_INDEX).get("_class_name")
    if isinstance(class_name, list):
        yield DIFFUSERS_INDEX, ".".join(class_name)


def read_fields(path: Path) -> dict[str, Any]:
    """A JSON file's fields; none where there is no such file, or it can't be read, which loading it will tell."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}
