# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Whether the package itself calls what a library has deprecated, as that says so by a warning or in its log."""

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

OWN = {"transformers_tokenflow", "tokenflow_cli", "transformers_modules"}
LIBRARIES_WITH_LOGS = ("diffusers", "huggingface_hub", "transformers")
# Modules that pass a call on, and so are not the ones that make it.
BETWEEN = {
    "builtins",
    "contextlib",
    "functools",
    "huggingface_hub.dataclasses",
    "huggingface_hub.utils._validators",
    "logging",
    "torch.nn.modules.module",
    "torch.utils._contextlib",
    "warnings",
    __name__,
}
IN_A_LOG = re.compile(r"deprecat|will be removed|removed in v", re.IGNORECASE)


def callers(frame: FrameType | None) -> Iterator[str]:
    """The top-level packages of the calls that led here, innermost first."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", "builtins"))
        if module not in BETWEEN:
            yield module.partition(".")[0]
        frame = frame.f_back


def called_by_the_package(frame: FrameType | None) -> bool:
    """Whether it is this package that called the library that warns; a third one's calls are its own matter."""
    outwards = callers(frame)
    library = next(outwards, None)
    return next((package for package in outwards if package != library), None) in OWN


@contextmanager
def deprecated_calls() -> Iterator[list[str]]:
    """What is said about deprecated calls of this package while this lasts; all warnings go on their way."""
    found: list[str] = []
    show = warnings.showwarning

    def look_and_show(message: Warning, category: type[Warning], *place: object) -> None:
        deprecating = issubclass(category, DeprecationWarning | PendingDeprecationWarning | FutureWarning)
        if deprecating and called_by_the_package(sys._getframe()):
            found.append(str(message))
        show(message, category, *place)

    def look(record: logging.LogRecord) -> None:
        if IN_A_LOG.search(record.getMessage()) and called_by_the_package(sys._getframe()):
            found.append(record.getMessage())

    handler = logging.Handler(logging.WARNING)
    handler.emit = look
    loggers = [logging.getLogger(name) for name in LIBRARIES_WITH_LOGS]
    warnings.showwarning = look_and_show
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield found
    finally:
        warnings.showwarning = show
        for logger in loggers:
            logger.removeHandler(handler)
