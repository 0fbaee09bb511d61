# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Weights of 8 or 4 bits: which parts of the models transformers' quantisation leaves as they are."""

import copy
from typing import Any

from transformers.quantizers import AutoQuantizationConfig

# What the quantisation configurations of transformers call the modules that they spare: torchao and most others, and
# bitsandbytes.
SPARING_FIELDS = ("modules_to_not_convert", "llm_int8_skip_modules")


class TokenFlowLowBitsMixin:
    """
    Gives models with a language model in them a `from_pretrained` that knows what not to quantise.

    Nearly all weights are those of the language model's layers. The image tokenizer, whose codes are decided by small
    differences, the projector, whose input is too narrow for groups of weights, and the heads stay in full precision.
    """

    _modules_to_not_convert = ("tokenizer", "projector", "visual_head", "text_head", "lm_head")
    base_model_prefix: str

    @classmethod
    def from_pretrained(cls, *args: Any, quantization_config: Any = None, **kwargs: Any) -> Any:
        """
        As of any model.

        Args:
            quantization_config: transformers' `TorchAoConfig`, `BitsAndBytesConfig` or another. The language model's
                layers are quantised, but for those that it lists itself (`modules_to_not_convert`,
                `llm_int8_skip_modules`), and nothing else.
            args, kwargs: of transformers' `from_pretrained`.
        """
        if quantization_config is not None:
            kwargs["quantization_config"] = cls._spare(quantization_config)
        return super().from_pretrained(*args, **kwargs)  # type: ignore[misc]

    @classmethod
    def _spare(cls, quantization_config: Any) -> Any:
        """A copy that lists what it spares, if the configuration has a field for it."""
        if isinstance(quantization_config, dict):
            quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
        quantization_config = copy.copy(quantization_config)
        names = [name for part in cls._modules_to_not_convert for name in (part, f"{cls.base_model_prefix}.{part}")]
        for field in SPARING_FIELDS:
            if hasattr(quantization_config, field):
                setattr(quantization_config, field, names + (getattr(quantization_config, field) or []))
        return quantization_config


__all__ = ["TokenFlowLowBitsMixin"]
