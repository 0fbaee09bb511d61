# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Starts the command line from outside its package, whose `__init__` imports torch: `tokenflow --help` needs none."""

import importlib.util
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Run `transformers_tokenflow/cli.py` as a script; the commands import the package."""
    package = importlib.util.find_spec("transformers_tokenflow")
    try:
        runpy.run_path(str(Path(package.origin).with_name("cli.py")), run_name="__main__")
    except ImportError as error:
        sys.exit(str(error))
