# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Importing the package costs little more than importing what it is used with."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src"
WITHOUT = """
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText
from transformers import AutoModelForMultimodalLM, AutoProcessor
"""
WITH = """
import transformers_tokenflow as package
for name in package.__all__:
    getattr(package, name)
"""
REPETITIONS = 5
LARGEST_RATIO = 1.3


def seconds(script: str) -> float:
    """Processor time of a Python that runs a script, which a busy machine changes less than time on the clock."""
    timed = f"{script}\nimport os\nprint(sum(os.times()[:2]))"
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**inherited, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    return float(subprocess.check_output([sys.executable, "-c", timed], env=environment, text=True))


@pytest.mark.slow
def test_import_time():
    seconds(WITHOUT + WITH)  # what is compiled on a first run is kept
    pairs = [(seconds(WITHOUT), seconds(WITH)) for _ in range(REPETITIONS)]
    without, with_package = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = with_package / without
    assert ratio < LARGEST_RATIO, f"{with_package:.2f} s with the package, {without:.2f} s without: {ratio:.2f} times"
