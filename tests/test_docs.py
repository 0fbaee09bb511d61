# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What `make docs` adds to MkDocs. Blocks of code and links are tested in test_readme.py."""

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

DOCS = Path(__file__).parents[1] / "docs"
REPOSITORY = "https://example.org/repository"


def load(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs")
    return load("hooks")


class TestHooks:
    @pytest.mark.parametrize(
        ("source", "uri", "link", "expected"),
        [
            ("README.md", "index.md", "docs/sampling.md", "sampling.md"),
            ("README.md", "index.md", "training/README.md", "training.md"),
            ("README.md", "index.md", "hub_cards/tokenflow-tiny", "models/tokenflow-tiny.md"),
            ("README.md", "index.md", "LICENSE", f"{REPOSITORY}/blob/main/LICENSE"),
            (
                "README.md",
                "index.md",
                "training/recipes/tiny.yaml",
                f"{REPOSITORY}/blob/main/training/recipes/tiny.yaml",
            ),
            ("docs/tutorials/use.md", "tutorials/use.md", "../sampling.md", "../sampling.md"),
            ("docs/tutorials/use.md", "tutorials/use.md", "../../training/README.md", "../training.md"),
            ("docs/tutorials/use.md", "tutorials/use.md", "../../src", f"{REPOSITORY}/tree/main/src"),
            ("docs/sampling.md", "sampling.md", "draw_sampling.py", f"{REPOSITORY}/blob/main/docs/draw_sampling.py"),
            ("docs/sampling.md", "sampling.md", "sampling.png", "sampling.png"),
            ("hub_cards/tokenflow-tiny/README.md", "models/tokenflow-tiny.md", "pictures.png", "tokenflow-tiny.png"),
        ],
    )
    def test_links(self, hooks, source, uri, link, expected):
        assert hooks.site_link(source, uri, link, REPOSITORY) == expected

    def test_pages(self, hooks):
        page = SimpleNamespace(file=SimpleNamespace(src_uri="tutorials/use.md"))
        config = SimpleNamespace(repo_url=REPOSITORY)
        text = "[a](../../README.md#install) [b](#here) [c](https://example.org/x)\n\n```bash no-run\nls\n```\n"
        expected = "[a](../index.md#install) [b](#here) [c](https://example.org/x)\n\n```bash\nls\n```\n"
        assert hooks.on_page_markdown(text, page, config, files=None) == expected


class TestDocstrings:
    @pytest.fixture
    def module(self):
        griffe = pytest.importorskip("griffe")
        code = '''
class Arguments:
    """
    Arguments of [`Trainer`].

    Args:
        size (`int`, *optional*):
            Its `size`.
    """

    decay: float = field(default=0.5, metadata={"help": "How fast."})
    names: list = field(default_factory=list)
'''
        extensions = griffe.load_extensions(load("docstrings").HouseDocstrings)
        return griffe.visit("module", filepath=Path("module.py"), code=code, extensions=extensions)

    def test_markdown_is_taken_out_of_types_and_references(self, module):
        words = " ".join(module["Arguments"].docstring.value.split())
        assert words == "Arguments of `Trainer`. Args: size (int, optional): Its `size`."

    def test_fields_have_defaults_and_help(self, module):
        decay, names = module["Arguments.decay"], module["Arguments.names"]
        assert str(decay.value) == "0.5" and decay.docstring.value == "How fast."
        assert names.value is None and names.docstring is None


def test_figures_are_small():
    figures = list((DOCS / "figures").glob("*.png"))
    text = "".join(path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md"))
    assert len(figures) == 5 and all(f"figures/{path.name}" in text for path in figures)
    assert sum(path.stat().st_size for path in figures) < 300_000
