# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Training of the package's models. Needs the extra `train`."""

from .arguments import TextToImageTrainingArguments, TokenFlowTrainingArguments, UnderstandingTrainingArguments
from .teachers import Teacher, load_teacher
from .text_to_image import TextToImageTrainer
from .tokenizer import TokenFlowTrainer
from .understanding import UnderstandingTrainer

__all__ = [
    "Teacher",
    "TextToImageTrainer",
    "TextToImageTrainingArguments",
    "TokenFlowTrainer",
    "TokenFlowTrainingArguments",
    "UnderstandingTrainer",
    "UnderstandingTrainingArguments",
    "load_teacher",
]
