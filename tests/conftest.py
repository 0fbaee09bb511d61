# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What all tests share: no network, no progress bars, no leftover state of torch's random generator."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
# As the Makefile has it: workers share the cores, and a process that computed in several threads can't be forked.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import huggingface_hub  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from deprecations import deprecated_calls  # noqa: E402
from hub_server import Hub, running_hub  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from transformers import PreTrainedModel  # noqa: E402

# At the first backward pass autograd starts a thread for every device but the CPU, after which no process can be forked
# that trains; torch.compile registers such a device even where there is none.
torch.zeros(1, requires_grad=True).sum().backward()

# Timing of a shared machine is no property of the code.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_deprecated():
    with deprecated_calls() as found:
        yield
    assert not found, f"the package calls what is deprecated: {'; '.join(found)}"


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


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub on loopback that all libraries of this process talk to, logged in as its user "owner"."""
    constants = huggingface_hub.constants
    with running_hub() as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        monkeypatch.setenv("HF_TOKEN", "hf_test_owner")
        # Between attempts the client waits for seconds.
        impatient = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
        monkeypatch.setattr(huggingface_hub.utils._http, "time", impatient)
        huggingface_hub.close_session()
        yield server
        huggingface_hub.close_session()
