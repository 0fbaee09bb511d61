# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""An official checkpoint to a folder that works with the Auto classes, with or without this package."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from ..conversion import convert_tokenizer, load_official_state_dict
from ..modeling_tokenflow import TokenFlowModel
from . import CommandError, one_line
from .settings import nest, read_settings
from .tokenizers import make_processor


def convert_checkpoint(
    checkpoint: Path, folder: Path, dtype: str = "float32", settings: Iterable[str] = ()
) -> TokenFlowModel:
    """
    Convert an official tokenizer, and save model, image processor and their code.

    The image processor prepares pictures as the official evaluation does.

    Args:
        checkpoint: an official `.pt` file, or a safetensors file with the same keys.
        folder: is made if need be.
        dtype: of the saved weights. The codebooks stay in float32, since codes hang on small differences.
        settings: of the configuration that shapes don't show, such as `"semantic_config.num_attention_heads=16"`.

    Raises:
        CommandError: the file is no such checkpoint, or the folder is a file.
    """
    logging.disable_progress_bar()
    overrides = nest(read_settings(settings))
    if folder.is_file():
        raise CommandError(f"{folder} is a file; the model needs a folder")
    try:
        model = convert_tokenizer(load_official_state_dict(checkpoint), **overrides)
    except (ValueError, OSError, SafetensorError) as error:
        raise CommandError(f"{checkpoint} can't be converted: {one_line(error)}") from error
    if dtype != "float32":
        model = TokenFlowModel.from_pretrained(
            None, config=model.config, state_dict=model.state_dict(), dtype=getattr(torch, dtype)
        )
    model.save_pretrained(folder)
    make_processor(size={"shortest_edge": model.config.image_size}, do_halve=True).save_pretrained(folder)
    return model
