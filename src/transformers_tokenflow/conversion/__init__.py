# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Official TokenFlow checkpoints to models and folders of this package, every key accounted for."""

from .checkpoints import Checkpoint, load_official_state_dict, open_checkpoint, read_official_config
from .layouts import ConvertedStateDict, JointLayout, Layout
from .text_to_image import (
    convert_text_to_image,
    infer_text_to_image_config,
    is_text_to_image,
    join_tokenizer,
    text_to_image_layout,
)
from .text_tokenizer import holds_text_tokenizer, load_text_tokenizer
from .tokenizer import convert_clip_tower, convert_state_dict, convert_tokenizer, tokenizer_layout
from .tokenizer_config import infer_config
from .understanding import (
    convert_understanding,
    holds_tokenizer,
    infer_picture_options,
    infer_understanding_config,
    is_understanding,
    understanding_layout,
    with_tokenizer,
)
from .writing import check_target, folder_written_whole, write_model

__all__ = [
    "Checkpoint",
    "ConvertedStateDict",
    "JointLayout",
    "Layout",
    "check_target",
    "convert_clip_tower",
    "convert_state_dict",
    "convert_text_to_image",
    "convert_tokenizer",
    "convert_understanding",
    "folder_written_whole",
    "holds_text_tokenizer",
    "holds_tokenizer",
    "infer_config",
    "infer_picture_options",
    "infer_text_to_image_config",
    "infer_understanding_config",
    "is_text_to_image",
    "is_understanding",
    "join_tokenizer",
    "load_official_state_dict",
    "load_text_tokenizer",
    "open_checkpoint",
    "read_official_config",
    "text_to_image_layout",
    "tokenizer_layout",
    "understanding_layout",
    "with_tokenizer",
    "write_model",
]
