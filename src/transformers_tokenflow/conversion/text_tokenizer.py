# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Text tokenizers of official models: codes are no part of their vocabulary here."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.utils import logging

from ..commands import counted

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
VISUAL_TOKEN = re.compile(r"<vq_token_\d+>")
PAD_TOKEN = "[PAD]"


def holds_text_tokenizer(folder: Path) -> bool:
    """Whether a folder has the files of a text tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def load_text_tokenizer(name: str, vocab_size: int, pad_token: str | None = PAD_TOKEN) -> Any:
    """
    The text tokenizer of a folder or a repository, without visual tokens, and with one for padding, to the left.

    Args:
        name: of the folder or the repository.
        vocab_size: of the model, which the tokenizer must keep to.
        pad_token: is added where there is none to pad with, unless it is None.

    Raises:
        ValueError: there is none, or it has other tokens than text beyond the vocabulary.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the type of the official model is none that transformers knows
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, padding_side="left")
    except Exception as error:  # whatever the network, a missing library or a damaged file makes of it
        raise ValueError(f"the text tokenizer of {name} can't be loaded: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    beyond = [token for token, index in tokenizer.get_vocab().items() if index >= vocab_size]
    if others := sorted(token for token in beyond if not VISUAL_TOKEN.fullmatch(token)):
        raise ValueError(
            f"the text tokenizer of {name} has {counted(len(others), 'token')} beyond the model's vocabulary of "
            f"{vocab_size}: {', '.join(others[:3])}"
        )
    if beyond:
        tokenizer = without_tokens(tokenizer, set(beyond))
    if tokenizer.pad_token is None and pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": pad_token})
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"with {pad_token} {name} has {len(tokenizer)} tokens, but the model's vocabulary {vocab_size}"
        )
    return tokenizer


def without_tokens(tokenizer: Any, tokens: set[str]) -> Any:
    """The same tokenizer without some of the tokens that were added to it, which must be the last ones."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            path = Path(folder) / name
            fields = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(drop_tokens(fields, tokens)), encoding="utf-8")
        return type(tokenizer).from_pretrained(folder)


def drop_tokens(fields: dict[str, Any], tokens: set[str]) -> dict[str, Any]:
    """The contents of a tokenizer's file without some added tokens."""
    fields = dict(fields)
    if "added_tokens" in fields:
        fields["added_tokens"] = [entry for entry in fields["added_tokens"] if entry["content"] not in tokens]
    if "added_tokens_decoder" in fields:
        decoder = fields["added_tokens_decoder"]
        fields["added_tokens_decoder"] = {k: v for k, v in decoder.items() if v["content"] not in tokens}
    for name in ("additional_special_tokens", "extra_special_tokens"):
        if isinstance(fields.get(name), list):
            fields[name] = [entry for entry in fields[name] if entry not in tokens]
    return fields
