# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""How good tokenizers, generators and models that read pictures are. Needs the extra `eval`."""


class EvaluationError(ValueError):
    """An evaluation that can't be made, for a reason that can be put right: its message is meant for the user."""
