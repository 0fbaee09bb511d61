# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Training of the package's models. Needs the extra `train`."""

from .arguments import TokenFlowTrainingArguments
from .teachers import Teacher, load_teacher
from .tokenizer import TokenFlowTrainer

__all__ = ["Teacher", "TokenFlowTrainer", "TokenFlowTrainingArguments", "load_teacher"]
