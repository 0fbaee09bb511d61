# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""TokenFlow (arXiv 2412.03069) for the Hugging Face ecosystem. Importing it registers the Auto classes."""

from transformers import AutoConfig, AutoModel

from .configuration_tokenflow import TokenFlowConfig
from .modeling_tokenflow import TokenFlowModel, TokenFlowOutput
from .quantization_tokenflow import TokenFlowQuantizer

__version__ = "0.1.0"

AutoConfig.register("tokenflow", TokenFlowConfig)
AutoModel.register(TokenFlowConfig, TokenFlowModel)

__all__ = ["TokenFlowConfig", "TokenFlowModel", "TokenFlowOutput", "TokenFlowQuantizer"]
