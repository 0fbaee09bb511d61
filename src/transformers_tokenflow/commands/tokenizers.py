# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Loads the tokenizer that a command works with, on a device and in a dtype."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor
from transformers.utils import is_torchvision_available, logging

from ..configuration_tokenflow import TokenFlowConfig, TokenFlowTextToImageConfig, TokenFlowUnderstandingConfig
from ..image_processing_pil_tokenflow import TokenFlowImageProcessorMixin, TokenFlowImageProcessorPil
from ..image_processing_tokenflow import TokenFlowImageProcessor
from ..modeling_tokenflow import TokenFlowModel
from . import CommandError, one_line
from .loading import CHECKOUT, check_model_type, find_device, load_model, name_or_default, read_config_fields
from .memory import InParts

logger = logging.get_logger(__name__)

DEFAULT_MODEL = CHECKOUT / "hub_cards" / "tokenflow-tiny"
# Models whose folders hold a tokenizer as well.
WITH_TOKENIZER = (TokenFlowTextToImageConfig.model_type, TokenFlowUnderstandingConfig.model_type)
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
# How much larger than a model's pictures those of its image processor may be before they only fill the memory.
LARGEST_RATIO = 16


def codebook_hash(model: TokenFlowModel) -> str:
    """
    Tells whose codes they are: a digest of the scales and the codebooks.

    Decoders and the dtype of the rest have no part in it: codes stay readable after either changed.
    """
    quantizer = model.quantizer
    digest = hashlib.sha256(repr(list(quantizer.scales)).encode())
    for entries in (quantizer.codebook.semantic, quantizer.codebook.pixel):
        digest.update(entries.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass
class Tokenizer:
    """
    A tokenizer that is ready to work.

    `encode` makes codes (B, L) of pixel values (B, 3, H, H), `decode` pixel values of codes; both take batches of which
    not all fits into memory.
    """

    name: str
    model: TokenFlowModel
    processor: TokenFlowImageProcessorMixin
    device: torch.device
    encode: InParts = field(init=False)
    decode: InParts = field(init=False)

    def __post_init__(self) -> None:
        self.encode = InParts(lambda pixel_values: self.model.encode(pixel_values.to(self.device)).codes)
        self.decode = InParts(lambda codes: self.model.decode(codes.to(self.device)).pixel_values)

    @contextmanager
    def misfit_reported(self) -> Iterator[None]:
        """What the model says where the image processor's settings don't fit it, as a CommandError."""
        try:
            yield
        except ValueError as error:
            raise CommandError(f"{self.name} can't encode its own image processor's pictures: {error}") from error

    def codebook_hash(self) -> str:
        """Tells whose codes they are, see the function of that name."""
        return codebook_hash(self.model)

    def preprocessing(self) -> dict[str, Any]:
        """The image processor's options."""
        options = json.loads(self.processor.to_json_string())
        return {name: value for name, value in options.items() if name not in ("auto_map", "image_processor_type")}


def load_tokenizer(name: str | None = None, device: str = "auto", dtype: str = "float32") -> Tokenizer:
    """
    Load a tokenizer and its image processor.

    Args:
        name: a folder or a repository of the Hub, of a tokenizer, or of a generator or an understanding model, of which
            the tokenizer inside is loaded; by default the small model of the checkout.
        device: as torch names it, or `"auto"` for the best there is.
        dtype: as torch names it.

    Raises:
        CommandError: there is no such model, it is no TokenFlow tokenizer, or the device can't be used.
    """
    logging.disable_progress_bar()
    target = find_device(device)
    name = name_or_default(name, DEFAULT_MODEL)
    if read_config_fields(name).get("model_type") not in WITH_TOKENIZER:
        check_model_type(name, TokenFlowConfig, "tokenizer")
    model = load_model(name, getattr(torch, dtype), TokenFlowModel)
    return Tokenizer(name, model.to(target).eval(), load_image_processor(name, model.config), target)


def load_image_processor(name: str, config: TokenFlowConfig) -> TokenFlowImageProcessorMixin:
    """
    The image processor saved with a model, or without one the default at the model's size.

    Raises:
        CommandError: it is damaged, another's, or makes pictures of no size or far larger than the model's.
    """
    if Path(name).is_dir() and not any((Path(name) / file).is_file() for file in PROCESSOR_FILES):
        logger.warning(f"{name} has no preprocessor_config.json: pictures are resized and cropped to the model's size")
        return make_processor(size={"shortest_edge": config.image_size})
    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise CommandError(f"the image processor of {name} can't be loaded: {one_line(error)}") from error
    if not isinstance(processor, TokenFlowImageProcessorMixin):
        raise CommandError(f"the image processor of {name} is none of TokenFlow's: it is a {type(processor).__name__}")
    sizes = {**dict(processor.size or {}), **dict(processor.crop_size or {})}
    if not all(isinstance(side, int) for side in sizes.values()):
        raise CommandError(f"the image processor of {name} needs sizes in whole pixels; got {sizes!r}")
    if max(sizes.values(), default=0) > LARGEST_RATIO * config.image_size:
        raise CommandError(
            f"the image processor of {name} makes pictures of {max(sizes.values())} pixels, of which the model takes "
            f"{config.image_size}"
        )
    return processor


def make_processor(**options: Any) -> TokenFlowImageProcessorMixin:
    """An image processor of the backend that `AutoImageProcessor` would choose."""
    return TokenFlowImageProcessor(**options) if is_torchvision_available() else TokenFlowImageProcessorPil(**options)
