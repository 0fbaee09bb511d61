# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The command line. It lies outside of its package, whose `__init__` imports torch: `tokenflow --help` needs none."""

import sys


def main() -> None:
    """Run the command line under its own name, however it was started."""
    try:
        from .app import app
    except ImportError as error:
        sys.exit(f"error: the command line needs `pip install 'transformers-tokenflow[cli]'`: {error}")
    app(prog_name="tokenflow")
