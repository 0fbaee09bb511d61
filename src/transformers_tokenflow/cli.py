# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The command line as a module of the package: `accelerate launch -m transformers_tokenflow.cli train ...`."""

from tokenflow_cli import main
from tokenflow_cli.app import app

__all__ = ["app"]

if __name__ == "__main__":
    main()
