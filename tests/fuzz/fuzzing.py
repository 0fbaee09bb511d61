# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What the fuzzers share: how many cases they try, damaged files, and values that files of settings may hold."""

import os
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

# `make fuzz` sets it; as a part of `make test` a fuzzer only shows that it works.
CASES = int(os.environ.get("FUZZ_CASES", 12))
# The short selection is always the same: what it has not found yet is for `make fuzz` to find.
is_short = "FUZZ_CASES" not in os.environ
fuzz = settings(max_examples=CASES, derandomize=is_short)
# For what takes a model to be loaded or run.
fuzz_models = settings(max_examples=max(5, CASES // 20), derandomize=is_short)

TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(st.characters(categories=["Cc", "Cs", "Co", "Zs"]), max_size=10),  # control characters, lone surrogates
    st.sampled_from(["", " ", "..", "../../x", "/etc/passwd", "C:\\x", "a\0b", "\r\n", "x" * 5000, "\u202e", "👩‍👩‍👧"]),
)
# Those at which sizes overflow, but for what would only be a very large model.
NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([2**31, -(2**31), 2**63, 10**30]),
    st.floats(),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def damaged(draw: Any, contents: list[bytes]) -> bytes:
    """One of several files, cut off, with bytes changed, left out, repeated, or others put in."""
    content = draw(st.sampled_from(contents))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.sampled_from([1, 2, 4, 16, 200]))
        before, part, after = content[:start], content[start:end], content[end:]
        new, bit = draw(st.binary(max_size=40)), 1 << draw(st.integers(0, 7))
        content = draw(
            st.sampled_from(
                [
                    before,
                    before + after,
                    before + part * 2 + after,
                    before + new + part + after,
                    before + new + content[start + len(new) :],
                    before + bytes(byte ^ bit for byte in part[:1]) + part[1:] + after,
                ]
            )
        )
    return content


@st.composite
def changed(draw: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """Settings of which some, at any depth, are others, are missing, or are new."""
    fields = dict(fields)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.one_of(st.sampled_from(sorted(fields) or ["x"]), TEXTS))
        if isinstance(fields.get(name), dict) and draw(st.booleans()):
            fields[name] = draw(changed(fields[name]))
        elif draw(st.integers(0, 5)) == 0:
            fields.pop(name, None)
        else:
            fields[name] = draw(VALUES)
    return fields
