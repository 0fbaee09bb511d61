# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Folders of models to the Hub: what is checked before, and the upload."""

from .card import check_card
from .files import check_files, files_to_publish
from .loading import check_loading
from .remote_code import check_code
from .upload import Published, PublishError, upload_model

__all__ = [
    "PublishError",
    "Published",
    "check_card",
    "check_code",
    "check_files",
    "check_loading",
    "files_to_publish",
    "upload_model",
]
