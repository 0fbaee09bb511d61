# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Tells lmms-eval about this package's model: an entry point of the group `lmms_eval.models`."""

from typing import Any


def manifest() -> Any:
    """What lmms-eval's registry asks entry points for: `--model tokenflow` names the class in `lmms_eval_model`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="tokenflow", chat_class_path="transformers_tokenflow.evaluation.lmms_eval_model.TokenFlow"
    )
