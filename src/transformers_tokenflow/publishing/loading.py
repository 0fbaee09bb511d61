# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Checks that a folder loads where this package is not installed."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..commands import counted

SCRIPT = Path(__file__).with_name("clean_process.py")
KEYS = {
    "missing_keys": "the files lack {} of the model",
    "mismatched_keys": "the files hold {} of another shape than the model's",
    "unexpected_keys": "the files hold {} that the model has not",
}


def check_loading(folder: Path) -> list[str]:
    """
    What goes wrong when a folder is loaded by its remote code in a clean process, each as a sentence.

    Args:
        folder: of a model, whose weights must fit into memory.
    """
    with tempfile.TemporaryDirectory() as temporary:
        result = subprocess.run(
            [sys.executable, str(SCRIPT), str(folder.resolve())],
            env=clean_environment(temporary),
            cwd=temporary,
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode < 0:
        return [f"loading the model by its remote code was killed by signal {-result.returncode}: too little memory?"]
    if result.returncode > 0:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        return [f"the model can't be loaded by its remote code: {lines[-1] if lines else 'no message'}"]
    return read_report(json.loads(result.stdout.splitlines()[-1]))


def clean_environment(temporary: str) -> dict[str, str]:
    """This process's, without network and token, and with a place of its own for remote code."""
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("TOKEN")}
    return {**inherited, "HF_MODULES_CACHE": temporary, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


def read_report(report: dict[str, Any]) -> list[str]:
    """What a clean process found, as sentences."""
    problems = [
        f"{what.format(counted(len(report[kind]), 'tensor'))}, such as {report[kind][0]}"
        for kind, what in KEYS.items()
        if report[kind]
    ]
    return problems + [f"{name} was not loaded from the folder's code" for name in report["foreign"]]
