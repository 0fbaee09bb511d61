# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The public names and their signatures stay what others rely on: tests/public_api.txt lists them.

A change that is meant is written down by `.venv/bin/python tests/test_public_api.py`, and told in CHANGELOG.md.
"""

import dataclasses
import difflib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import transformers_tokenflow

LISTING = Path(__file__).with_name("public_api.txt")
UPDATE = ".venv/bin/python tests/test_public_api.py"
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def signature(function: Any) -> str:
    """Names and defaults of a function's parameters; types are mypy's matter, and Pythons differ in how they print."""
    parameters = inspect.signature(function).parameters.values()
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return ADDRESS.sub("", str(inspect.Signature(bare)))


def is_own(definition: Any) -> bool:
    """Whether a class or function is this package's."""
    return definition.__module__.partition(".")[0] == transformers_tokenflow.__name__


def own_fields(public: type) -> Iterator[str]:
    """The fields of a dataclass that this package adds to those of other libraries."""
    names = {name for owner in public.__mro__ if is_own(owner) for name in vars(owner).get("__annotations__", ())}
    for field in dataclasses.fields(public) if dataclasses.is_dataclass(public) else ():
        if field.name in names:
            default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
            yield f"field {field.name}{default}"


def own_members(public: type) -> Iterator[str]:
    """Methods and properties that a class has from this package, itself or by inheritance."""
    owners = [owner for owner in public.__mro__ if is_own(owner)]
    called = {"__call__"} if dataclasses.is_dataclass(public) else {"__call__", "__init__"}
    for name in sorted({name for owner in owners for name in vars(owner) if name in called or name[0] != "_"}):
        member = next(vars(owner)[name] for owner in owners if name in vars(owner))
        kind = {classmethod: "classmethod ", staticmethod: "staticmethod "}.get(type(member), "")
        function = inspect.unwrap(getattr(member, "__func__", member))
        if isinstance(member, property):
            yield f"{name}: property"
        elif inspect.isfunction(function) and is_own(function):
            yield f"{kind}{name}{signature(function)}"


def describe(name: str) -> Iterator[str]:
    """The lines of one public name."""
    public = getattr(transformers_tokenflow, name)
    if inspect.isclass(public):
        yield f"class {name}"
        yield from (f"    {line}" for line in (*own_fields(public), *own_members(public)))
    else:
        yield f"{name}{signature(public)}"


def listing() -> str:
    """Every public name, those that are loaded when asked for too."""
    names = sorted({*transformers_tokenflow.__all__, *transformers_tokenflow.LAZY_NAMES})
    return "\n".join(line for name in names for line in describe(name)) + "\n"


def difference(before: str, after: str) -> str:
    """What has changed, each line below the class that it belongs to; empty where nothing has."""
    before_lines, after_lines = before.splitlines(), after.splitlines()
    return "\n".join(difflib.unified_diff(before_lines, after_lines, "written down", "now", n=3, lineterm=""))


def test_the_public_api_is_what_is_written_down():
    pytest.importorskip("diffusers")
    pytest.importorskip("datasets")
    changed = difference(LISTING.read_text(encoding="utf-8"), listing())
    assert not changed, f"the public API has changed; if it is meant to, run `{UPDATE}`:\n{changed}"


def test_changes_are_seen():
    @dataclasses.dataclass
    class Settings:
        size: int = 4
        names: list[str] = dataclasses.field(default_factory=list)

    class Painter:
        shape = 4

        def __init__(self, prompt: str, *, seed: int | None = None):
            """Any."""

        @property
        def width(self) -> int:
            """Any."""

        @classmethod
        def load(cls, folder: str = ".") -> None:
            """Any."""

        def _private(self) -> None:
            """Any."""

    for definition in (Settings, Painter, Painter.__init__, Painter.load.__func__):
        definition.__module__ = f"{transformers_tokenflow.__name__}.painters"
    assert [*own_fields(Settings)] == ["field size = 4", "field names"] and not [*own_members(Settings)]
    expected = ["__init__(self, prompt, *, seed=None)", "classmethod load(cls, folder='.')", "width: property"]
    assert [*own_members(Painter)] == expected and not [*own_fields(Painter)]
    assert "-now(a)\n+now(a, b)" in difference("class Of\nnow(a)\n", "class Of\nnow(a, b)\n")


if __name__ == "__main__":
    LISTING.write_text(listing(), encoding="utf-8")
