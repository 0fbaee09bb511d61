# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Texts that scripts put between two comments of a page."""

import re
from pathlib import Path

import pytest

from benchmarks.pages import replace_between

START, END = "<!-- table -->", "<!-- end of table -->"


def test_the_text_takes_the_place_of_the_former_one(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"before ü\n{START}\nold\n{END}\nafter\n", encoding="utf-8")
    for text in ("a longer\ntext", "new"):
        replace_between(page, START, END, text)
        assert page.read_text(encoding="utf-8") == f"before ü\n{START}\n{text}\n{END}\nafter\n"


@pytest.mark.parametrize("content", ["", "no place", START, END, f"{END} {START}"])
def test_a_page_without_a_place_is_left_as_it_is(tmp_path: Path, content: str):
    page = tmp_path / "page.md"
    page.write_text(content)
    with pytest.raises(ValueError, match=f"expected {re.escape(repr(START))} and after it .* in .*page.md"):
        replace_between(page, START, END, "new")
    assert page.read_text() == content
