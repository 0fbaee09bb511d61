# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Loads the tokenizer that a command works with, on a device and in a dtype."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor
from transformers.utils import is_torchvision_available, logging

from ..configuration_tokenflow import TokenFlowConfig
from ..image_processing_pil_tokenflow import TokenFlowImageProcessorMixin, TokenFlowImageProcessorPil
from ..image_processing_tokenflow import TokenFlowImageProcessor
from ..modeling_tokenflow import TokenFlowModel
from . import CommandError, one_line

logger = logging.get_logger(__name__)

CHECKOUT = Path(__file__).resolve().parents[3]
DEFAULT_MODEL = CHECKOUT / "hub_cards" / "tokenflow-tiny"
HUB_REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


@dataclass
class Tokenizer:
    """A tokenizer that is ready to work."""

    name: str
    model: TokenFlowModel
    processor: TokenFlowImageProcessorMixin
    device: torch.device

    def codebook_hash(self) -> str:
        """
        Tells whose codes they are: a digest of the scales and the codebooks.

        Decoders and the dtype of the rest have no part in it: codes stay readable after either changed.
        """
        quantizer = self.model.quantizer
        digest = hashlib.sha256(repr(list(quantizer.scales)).encode())
        for entries in (quantizer.codebook.semantic, quantizer.codebook.pixel):
            digest.update(entries.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def preprocessing(self) -> dict[str, Any]:
        """The image processor's options."""
        options = json.loads(self.processor.to_json_string())
        return {name: value for name, value in options.items() if name not in ("auto_map", "image_processor_type")}


def load_tokenizer(name: str | None = None, device: str = "auto", dtype: str = "float32") -> Tokenizer:
    """
    Load a tokenizer and its image processor.

    Args:
        name: a folder or a repository of the Hub; by default the small model of the checkout.
        device: as torch names it, or `"auto"` for the best there is.
        dtype: as torch names it.

    Raises:
        CommandError: there is no such model, it is no TokenFlow tokenizer, or the device can't be used.
    """
    logging.disable_progress_bar()
    target = find_device(device)
    if name is None:
        if not (DEFAULT_MODEL / "config.json").is_file():
            raise CommandError("there is no default model here: pass --model with a folder or a repository of the Hub")
        name = str(DEFAULT_MODEL)
    check_model_type(name)
    model = load_model(name, getattr(torch, dtype))
    return Tokenizer(name, model.to(target).eval(), load_processor(name, model.config), target)


def find_device(name: str) -> torch.device:
    """
    The device of a name, where it can be used.

    Raises:
        CommandError: the name is none of torch's, or there is no such device here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CommandError(f"the device {name!r} can't be used: {one_line(error)}") from error
    if device.type == "meta":
        raise CommandError("the device 'meta' holds no values: pass cpu, cuda, ...")
    return device


def check_model_type(name: str) -> None:
    """Read the configuration alone, and raise a CommandError unless it is that of a TokenFlow tokenizer."""
    path = Path(name)
    if path.is_file():
        hint = f"; `tokenflow convert {name} FOLDER` makes one of a checkpoint"
        raise CommandError(f"{name} is a file, but a model is a folder{hint}")
    if path.is_dir() and not (path / "config.json").is_file():
        raise CommandError(f"{name} holds no model: it has no config.json")
    if not path.exists() and not HUB_REPOSITORY.fullmatch(name):
        raise CommandError(f"there is no folder {name}")
    try:
        fields, _ = TokenFlowConfig.get_config_dict(name)
    except Exception as error:  # whatever the network or a damaged file makes of it
        where = "can't be read" if path.exists() else "is no folder here, and the Hub doesn't give it"
        raise CommandError(f"the model {name} {where}: {one_line(error)}") from error
    if fields.get("model_type") != TokenFlowConfig.model_type:
        raise CommandError(f"{name} is no TokenFlow tokenizer: its model type is {fields.get('model_type')!r}")


def load_model(name: str, dtype: torch.dtype) -> TokenFlowModel:
    """Load the weights, all of them, or raise a CommandError."""
    try:
        model, report = TokenFlowModel.from_pretrained(name, dtype=dtype, output_loading_info=True)
    except Exception as error:  # missing, damaged or foreign weights each fail in a way of their own
        raise CommandError(f"the model {name} can't be loaded: {one_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise CommandError(f"the weights of {name} are incomplete: {len(missing)} are missing, such as {missing[0]}")
    return model


def load_processor(name: str, config: TokenFlowConfig) -> TokenFlowImageProcessorMixin:
    """The image processor saved with a model, or without one the default at the model's size."""
    if Path(name).is_dir() and not (Path(name) / "preprocessor_config.json").is_file():
        logger.warning(f"{name} has no preprocessor_config.json: pictures are resized and cropped to the model's size")
        return make_processor(size={"shortest_edge": config.image_size})
    try:
        return AutoImageProcessor.from_pretrained(name)
    except Exception as error:
        raise CommandError(f"the image processor of {name} can't be loaded: {one_line(error)}") from error


def make_processor(**options: Any) -> TokenFlowImageProcessorMixin:
    """An image processor of the backend that `AutoImageProcessor` would choose."""
    return TokenFlowImageProcessor(**options) if is_torchvision_available() else TokenFlowImageProcessorPil(**options)
