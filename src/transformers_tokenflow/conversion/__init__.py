# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Official TokenFlow checkpoints to models and folders of this package, every key accounted for."""

from .checkpoints import Checkpoint, load_official_state_dict, open_checkpoint
from .layouts import ConvertedStateDict
from .text_to_image import convert_text_to_image, infer_text_to_image_config, text_to_image_layout
from .tokenizer import convert_clip_tower, convert_state_dict, convert_tokenizer, tokenizer_layout
from .tokenizer_config import infer_config
from .writing import folder_written_whole, write_model

__all__ = [
    "Checkpoint",
    "ConvertedStateDict",
    "convert_clip_tower",
    "convert_state_dict",
    "convert_text_to_image",
    "convert_tokenizer",
    "folder_written_whole",
    "infer_config",
    "infer_text_to_image_config",
    "load_official_state_dict",
    "open_checkpoint",
    "text_to_image_layout",
    "tokenizer_layout",
    "write_model",
]
