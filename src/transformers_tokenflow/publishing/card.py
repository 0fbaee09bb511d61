# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Checks a card's metadata without the network: by the rules of the Hub, and for what a published model should say."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..card_tokenflow import as_list
from ..commands import one_line
from ..push_tokenflow import CARD, read_card

LICENSES = "https://huggingface.co/docs/hub/repositories-licenses"
# The ids that the Hub knows.
LICENSE_IDS = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community
    h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl
    postgresql unknown unlicense wtfpl zlib
"""
LIBRARIES = {"diffusers", "open_clip", "transformers"}
# Tasks of the Hub that models of this package, and their teachers, can be for.
TASKS = {
    "any-to-any",
    "image-feature-extraction",
    "image-text-to-text",
    "image-to-image",
    "image-to-text",
    "text-to-image",
    "unconditional-image-generation",
    "visual-question-answering",
    "zero-shot-image-classification",
}


def check_card(folder: Path) -> list[str]:
    """
    What is wrong with a folder's card and its results of evaluations, each as a sentence.

    Args:
        folder: of a model.
    """
    text = read_card(folder)
    if text is None:
        return [f"there is no {CARD}: the card says what the model is, and its metadata what its license is"]
    try:
        data = ModelCard(text).data.to_dict()
    except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        return [f"the metadata of {CARD} can't be read: {one_line(error)}"]
    return [
        *check_license(data),
        *check_choice(data, "library_name", LIBRARIES),
        *check_choice(data, "pipeline_tag", TASKS),
        *check_texts(data),
        *check_repositories(data),
        *check_results(folder),
    ]


def check_license(data: dict[str, Any]) -> list[str]:
    """Whether there is one, of which the Hub knows what it is."""
    licenses = as_list(data.get("license"))
    if not licenses:
        return [f"{CARD} states no license: its metadata need `license: apache-2.0`, or another id of {LICENSES}"]
    problems = [
        f"{CARD} states the license {item!r}, which is no id of {LICENSES}; for another, write `license: other`, "
        "`license_name` and `license_link`"
        for item in licenses
        if item not in LICENSE_IDS.split()
    ]
    if "other" in licenses and not data.get("license_name"):
        problems.append(f"{CARD} states the license `other`, and not which: add `license_name` and `license_link`")
    return problems


def check_choice(data: dict[str, Any], name: str, choices: set[str]) -> list[str]:
    """Whether a field is there, and one of its possible values."""
    value = data.get(name)
    if value is None:
        return [f"{CARD} has no {name}: its metadata need one of {', '.join(sorted(choices))}"]
    if value not in choices:
        return [f"{CARD} has the {name} {value!r}; expected one of {', '.join(sorted(choices))}"]
    return []


def check_texts(data: dict[str, Any]) -> list[str]:
    """Whether what must be texts is: YAML makes a date of 2024-12-04, and False of no."""
    return [
        f"{CARD} has {item!r} among its {name}, which is no text: put it in quotes"
        for name in ("tags", "language")
        for item in as_list(data.get(name))
        if not isinstance(item, str)
    ]


def check_repositories(data: dict[str, Any]) -> list[str]:
    """Whether names of models and datasets could be of the Hub."""
    problems = []
    for name in ("base_model", "datasets"):
        for item in as_list(data.get(name)):
            try:
                validate_repo_id(item)
            except HFValidationError:
                problems.append(f"{CARD} has {item!r} as {name}; expected a repository of the Hub, such as `user/name`")
    return problems


def check_results(folder: Path) -> list[str]:
    """Whether the files of `.eval_results` have the Hub's form."""
    problems = []
    for path in sorted(folder.glob(".eval_results/*.yaml")):
        try:
            parse_eval_result_entries(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
            problems.append(f".eval_results/{path.name} is no list of results as the Hub has them: {error!r}")
    return problems
