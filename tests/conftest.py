# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What all tests share: no network, no progress bars, no leftover state of torch's random generator."""

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from transformers import PreTrainedModel  # noqa: E402

# Timing of a shared machine is no property of the code.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def transformers_log() -> Iterator[list[str]]:
    """What transformers logs, which does not reach pytest."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    yield messages
    logging.getLogger("transformers").removeHandler(handler)


@pytest.fixture
def seeded_initialization(monkeypatch: pytest.MonkeyPatch):
    """Every module draws from the same seed, so that the order of initialisation does not matter."""
    original = PreTrainedModel._initialize_weights

    def initialize(self: PreTrainedModel, module: torch.nn.Module, *args: Any, **kwargs: Any):
        torch.manual_seed(0)
        original(self, module, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "_initialize_weights", initialize)


@pytest.fixture
def compiled() -> Iterator[Callable]:
    torch.compiler.reset()
    yield lambda function, backend, **kwargs: torch.compile(function, backend=backend, fullgraph=True, **kwargs)
    torch.compiler.reset()
