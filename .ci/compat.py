# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""
Test the package with the oldest and the newest of what it works with, on every Python: `make compat`.

Each combination has an environment of its own in .venv/compat. "oldest" installs the lowest versions that
pyproject.toml allows (of wheels: not every floor has one for every Python), "newest" what pip would install today.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / ".venv" / "compat"
UV = Path(sys.executable).with_name("uv")
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}
PYTHONS = ("3.11", "3.12", "3.13")
COMBINATIONS = tuple(f"{age}-{python}" for python in PYTHONS for age in RESOLUTIONS)
EXTRAS = ("diffusers", "torchvision", "vitamin")
# Of any version: they are no part of the package.
TEST_PACKAGES = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist")
REPORTED = ("torch", "transformers", "diffusers", "huggingface_hub", "numpy", "pillow")
# What users do first, and what breaks first: the official codes, pictures and answers, remote code, pipelines.
TESTS = (
    "tests/test_configuration_tokenflow.py",
    "tests/test_image_processing_tokenflow.py",
    "tests/test_parity_tokenizer.py",
    "tests/test_parity_text_to_image.py",
    "tests/test_parity_understanding.py",
    "tests/test_pipeline_tokenflow.py",
    "tests/test_pipeline_tokenflow_diffusers.py",
    "tests/test_processing_tokenflow.py",
    "tests/test_remote_code.py",
)


def environment_variables() -> dict[str, str]:
    """Those of this process, with pyenv's Pythons to be found: its own launchers refuse versions not switched on."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders = [str(path) for path in sorted(pyenv.glob("versions/*/bin"))]
    without = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return {**kept, "PATH": os.pathsep.join([*folders, os.environ["PATH"]])}


def install(name: str) -> Path:
    """
    Make the environment of a combination, or bring it up to date.

    Returns:
        Its Python.
    Raises:
        subprocess.CalledProcessError: there is no such Python, or no set of versions that fits.
    """
    age, python = name.split("-")
    folder, variables = ENVIRONMENTS / name, environment_variables()
    interpreter = folder / "bin" / "python"
    if not interpreter.exists():
        subprocess.run([UV, "venv", "--quiet", "--python", python, folder], env=variables, check=True)
    to_install = [UV, "pip", "install", "--quiet", "--python", interpreter]
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    resolution = ["--resolution", RESOLUTIONS[age], "--upgrade", "--no-build"]
    subprocess.run([*to_install, *resolution, "-r", "pyproject.toml", *extras], cwd=ROOT, env=variables, check=True)
    subprocess.run([*to_install, *TEST_PACKAGES], cwd=ROOT, env=variables, check=True)
    return interpreter


def versions(interpreter: Path) -> str:
    """What matters of what an environment has."""
    script = f"from importlib.metadata import version\nprint(*(f'{{n}} {{version(n)}}' for n in {REPORTED}), sep=', ')"
    return subprocess.check_output([interpreter, "-c", script], text=True).strip()


def check(name: str, pytest_arguments: list[str]) -> tuple[bool, str]:
    """
    Install a combination and run the tests in it.

    Returns:
        Whether they passed, and a line that says so with the versions and the seconds that both took.
    """
    print(f"== {name}", flush=True)
    started = time.monotonic()
    try:
        interpreter = install(name)
    except subprocess.CalledProcessError:
        return False, f"{name}: could not be installed"
    installed = time.monotonic()
    pytest = [interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *TESTS, *pytest_arguments]
    passed = subprocess.run(pytest, cwd=ROOT, env=environment_variables(), check=False).returncode == 0
    seconds = f"{installed - started:.0f} s to install, {time.monotonic() - installed:.0f} s to test"
    return passed, f"{name}: {'passed' if passed else 'FAILED'} ({seconds}) with {versions(interpreter)}"


def main() -> None:
    """Check the combinations that the command line names, and leave with 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("combinations", nargs="*", help=f"of {', '.join(COMBINATIONS)}; all by default")
    parser.add_argument("--pytest", default="", metavar="ARGUMENTS", help="further arguments of pytest")
    arguments = parser.parse_args()
    if unknown := set(arguments.combinations) - set(COMBINATIONS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(COMBINATIONS)}")
    results = [check(name, shlex.split(arguments.pytest)) for name in arguments.combinations or COMBINATIONS]
    print("== summary", *(line for _, line in results), sep="\n")
    sys.exit(0 if all(passed for passed, _ in results) else 1)


if __name__ == "__main__":
    main()
