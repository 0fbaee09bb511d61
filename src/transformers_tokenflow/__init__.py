# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""TokenFlow (arXiv 2412.03069) for the Hugging Face ecosystem. Importing it registers the Auto classes."""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .chat_templates import load_chat_template
from .configuration_tokenflow import TokenFlowConfig, TokenFlowTextToImageConfig, TokenFlowUnderstandingConfig
from .generation_tokenflow import NextScaleGenerationMixin
from .image_processing_pil_tokenflow import TokenFlowImageProcessorPil
from .image_processing_tokenflow import TokenFlowImageProcessor
from .modeling_tokenflow import TokenFlowModel, TokenFlowOutput
from .modeling_tokenflow_text_to_image import TokenFlowForTextToImage
from .modeling_tokenflow_understanding import TokenFlowForConditionalGeneration
from .pipeline_tokenflow import TextToImagePipeline
from .processing_tokenflow import TokenFlowProcessor
from .quantization_tokenflow import TokenFlowQuantizer

if TYPE_CHECKING:
    from .pipeline_tokenflow_diffusers import TokenFlowPipeline  # noqa: F401
    from .scoring import OpenClipScorer  # noqa: F401
    from .trainers import (  # noqa: F401
        TextToImageTrainer,
        TextToImageTrainingArguments,
        TokenFlowTrainer,
        TokenFlowTrainingArguments,
        UnderstandingTrainer,
        UnderstandingTrainingArguments,
    )

__version__ = "0.1.0"

AutoConfig.register("tokenflow", TokenFlowConfig, exist_ok=True)
AutoModel.register(TokenFlowConfig, TokenFlowModel, exist_ok=True)
AutoConfig.register("tokenflow_text_to_image", TokenFlowTextToImageConfig, exist_ok=True)
AutoModel.register(TokenFlowTextToImageConfig, TokenFlowForTextToImage, exist_ok=True)
AutoConfig.register("tokenflow_understanding", TokenFlowUnderstandingConfig, exist_ok=True)
for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(TokenFlowUnderstandingConfig, TokenFlowForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(
    TokenFlowConfig,
    image_processor_classes={"torchvision": TokenFlowImageProcessor, "pil": TokenFlowImageProcessorPil},
    exist_ok=True,
)
# Not for the tokenizer's own configuration: `AutoProcessor` would ask its folder for a text tokenizer.
AutoProcessor.register(TokenFlowTextToImageConfig, TokenFlowProcessor, exist_ok=True)
AutoProcessor.register(TokenFlowUnderstandingConfig, TokenFlowProcessor, exist_ok=True)
# `pt_model` must be a name of transformers, which it looks up there when it loads a saved folder's pipeline.
PIPELINE_REGISTRY.register_pipeline("text-to-image", pipeline_class=TextToImagePipeline, pt_model=AutoModel)

# `save_pretrained` of these writes their modules and an `auto_map`, so that the folder works without this package.
# What is a part of others, too, is registered in its own module, for those who have that alone.
TokenFlowForTextToImage.register_for_auto_class("AutoModel")
TokenFlowForConditionalGeneration.register_for_auto_class("AutoModel")
TokenFlowImageProcessor.register_for_auto_class()
TokenFlowImageProcessorPil.register_for_auto_class()
TokenFlowProcessor.register_for_auto_class()

# Found by `__getattr__`: what they import is not needed to load a model. Not in `__all__`, so that `import *` works.
# Each with its module and the extra that has what this imports.
LAZY_NAMES = {
    "OpenClipScorer": ("scoring", "train"),
    "TextToImageTrainer": ("trainers", "train"),
    "TextToImageTrainingArguments": ("trainers", "train"),
    "TokenFlowPipeline": ("pipeline_tokenflow_diffusers", "diffusers"),
    "TokenFlowTrainer": ("trainers", "train"),
    "TokenFlowTrainingArguments": ("trainers", "train"),
    "UnderstandingTrainer": ("trainers", "train"),
    "UnderstandingTrainingArguments": ("trainers", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in LAZY_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = LAZY_NAMES[name]
    try:
        return getattr(importlib.import_module(f".{module}", __name__), name)
    except ImportError as error:
        install = f"pip install 'transformers-tokenflow[{extra}]'"
        raise ImportError(f"{name} needs the extra `{extra}` ({install}): {error}") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY_NAMES})


__all__ = [
    "NextScaleGenerationMixin",
    "TextToImagePipeline",
    "TokenFlowConfig",
    "TokenFlowForConditionalGeneration",
    "TokenFlowForTextToImage",
    "TokenFlowImageProcessor",
    "TokenFlowImageProcessorPil",
    "TokenFlowModel",
    "TokenFlowOutput",
    "TokenFlowProcessor",
    "TokenFlowQuantizer",
    "TokenFlowTextToImageConfig",
    "TokenFlowUnderstandingConfig",
    "load_chat_template",
]
