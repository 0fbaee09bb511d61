# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Formats of conversations, as templates that a processor takes and saves."""

from importlib.resources import files


def load_chat_template(name: str) -> str:
    """
    A conversation format: the template that `TokenFlowProcessor` takes as `chat_template`.

    Args:
        name: `"vicuna"` or `"qwen2.5"`, those of the official models; `"plain"`, pictures and captions alone, which
            the projector learns from first; `"tiny"`, that of the small model.

    Raises:
        ValueError: there is none of the name.
    """
    templates = {path.name.removesuffix(".jinja"): path for path in files(__name__).iterdir() if ".jinja" in path.name}
    if name not in templates:
        raise ValueError(f"expected one of the chat templates {', '.join(sorted(templates))}; got {name!r}")
    return templates[name].read_text(encoding="utf-8")


__all__ = ["load_chat_template"]
