# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The command line. It lies outside of its package, whose `__init__` imports torch: `tokenflow --help` needs none."""

import io
import sys


def main() -> None:
    """Run the command line under its own name, however it was started."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may have letters that the locale has not
    try:
        from .app import app
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    except ImportError as error:
        sys.exit(f"error: the command line needs `pip install 'transformers-tokenflow[cli]'`: {error}")
    app(prog_name="tokenflow")
