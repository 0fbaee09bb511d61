# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""A deprecated call is noticed where the package makes it, and only there."""

import logging
import warnings
from collections.abc import Callable

import pytest
from deprecations import deprecated_calls

WARNING = "def old():\n    warnings.warn('use new', FutureWarning)"
LOG = "def old():\n    logging.getLogger('transformers.models').warning('old is deprecated')"


@pytest.fixture(autouse=True)
def _nothing_deprecated():
    """In place of everybody's, which would find what these tests do on purpose."""


def function(code: str, module: str, **names: object) -> Callable:
    """The function that some code defines, as if a module had it."""
    scope = {"__name__": module, "warnings": warnings, "logging": logging, **names}
    exec(code, scope)
    return scope[code.partition("(")[0].removeprefix("def ")]


@pytest.mark.parametrize("code", [WARNING, LOG])
@pytest.mark.parametrize(
    ("callers", "is_found"),
    [
        (["transformers_tokenflow.modeling"], True),
        (["tokenflow_cli.app"], True),
        (["transformers.other", "torch.nn.modules.module", "transformers_modules.folder.modeling"], True),
        (["huggingface_hub.dataclasses", "transformers_tokenflow.configuration"], True),
        (["huggingface_hub.hf_api", "transformers_tokenflow.push"], False),
        (["peft.model", "transformers_tokenflow.trainers"], False),
        (["somewhere"], False),
    ],
)
def test_calls_of_the_package_are_found(code: str, callers: list[str], is_found: bool):
    call = function(code, "transformers.models")
    for caller in callers:
        call = function("def call():\n    inner()", caller, inner=call)
    with warnings.catch_warnings(record=True) as shown, deprecated_calls() as found:
        warnings.simplefilter("always")
        call()
    assert len(found) == is_found
    assert len(shown) == (code is WARNING)


def test_other_warnings_are_nobodys_fault():
    warn = function("def old():\n    warnings.warn('too large', UserWarning)", "transformers.models")
    log = function("def old():\n    logging.getLogger('transformers').warning('too large')", "transformers.models")
    call = function("def call():\n    warn(), log()", "transformers_tokenflow.modeling", warn=warn, log=log)
    with warnings.catch_warnings(record=True) as shown, deprecated_calls() as found:
        call()
    assert not found and len(shown) == 1
