# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Settings of the command line: `--set section.name=value`."""

import re
from collections.abc import Iterable
from typing import Any

import yaml

from . import CommandError, one_line


class RecipeLoader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, where YAML 1.1 asks for 1.0e-4 and takes the other for text."""


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_settings(settings: Iterable[str]) -> dict[str, Any]:
    """
    Read `key=value` pairs, the keys dotted and the values in YAML's notation.

    Raises:
        CommandError: a setting has no `=`, or a value can't be read.
    """
    values = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not (separator and all(key.split("."))):
            raise CommandError(f"--set takes key=value, the key's parts joined by dots; got {setting!r}")
        values[key] = read_value(text)
    return values


def read_value(text: str) -> Any:
    """A number, text, list, ... in the notation of recipes."""
    try:
        return yaml.load(text, RecipeLoader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # the first of dates that don't exist
        raise CommandError(f"the value {text!r} of --set can't be read: {one_line(error)}") from error


def nest(settings: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys to dictionaries in dictionaries."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        try:
            set_value(nested, key, value)
        except ValueError as error:
            raise CommandError(f"--set {error}") from error
    return nested


def set_value(fields: dict[str, Any], dotted: str, value: Any) -> None:
    """
    Set what a dotted key says.

    Raises:
        ValueError: it leads into what is no section.
    """
    *parents, name = dotted.split(".")
    section = fields
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ValueError(f"{dotted} can't be set: {parent} is {section!r}, and holds no settings")
    section[name] = value
