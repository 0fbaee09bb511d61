# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Starts the command line for scripts of older installations."""

from tokenflow_cli import main

__all__ = ["main"]
