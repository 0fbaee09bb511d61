# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What the command line's commands do, as functions. They need the extra `cli`."""

from collections.abc import Callable

# Is told of progress: how much is done, of how much.
Advance = Callable[[int, int], None]


class CommandError(Exception):
    """Something that the user can put right: the command line shows its message and no traceback."""


def counted(number: int, noun: str) -> str:
    """A number of things in words: "1 picture", "2 pictures"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
