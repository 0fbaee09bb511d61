# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""
Test the package with the oldest and the newest of what it works with, on every Python: `make compat`.

Each combination has an environment of its own in .venv/compat. "oldest" installs the lowest versions that
pyproject.toml allows (of wheels: not every floor has one for every Python), "newest" what pip would install today.
CI runs `--quick --lean` in one of each.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / ".venv" / "compat"
UV = Path(sys.executable).with_name("uv")
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}
OWN_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
COMBINATIONS = tuple(f"{age}-{python}" for python in PYTHONS for age in RESOLUTIONS)
EXTRAS = ("diffusers", "torchvision", "vitamin")
# With their libraries for CUDA these are nearly all of an environment.
LARGE = ("torch", "torchvision")
# Of any version: they are no part of the package.
TEST_PACKAGES = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist")
REPORTED = ("torch", "transformers", "diffusers", "huggingface_hub", "numpy", "pillow")
# What breaks first: remote code, the processor, both pipelines.
QUICK_TESTS = (
    "tests/test_pipeline_tokenflow.py",
    "tests/test_pipeline_tokenflow_diffusers.py",
    "tests/test_processing_tokenflow.py",
    "tests/test_processing_tokenflow_understanding.py",
    "tests/test_publishing_loading.py",
    "tests/test_remote_code.py",
)
# And the official codes, pictures and answers.
TESTS = (
    *QUICK_TESTS,
    "tests/test_configuration_tokenflow.py",
    "tests/test_image_processing_tokenflow.py",
    "tests/test_parity_tokenizer.py",
    "tests/test_parity_text_to_image.py",
    "tests/test_parity_understanding.py",
)


class NoPython(Exception):
    """This machine has no such Python, and uv cannot fetch it."""


def environment_variables() -> dict[str, str]:
    """Those of this process, with pyenv's Pythons to be found: its own launchers refuse versions not switched on."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders = [str(path) for path in sorted(pyenv.glob("versions/*/bin"))]
    without = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return {**kept, "PATH": os.pathsep.join([*folders, os.environ["PATH"]])}


def share_packages(folder: Path, names: Iterable[str]) -> list[str | Path]:
    """
    Let an environment find in .venv, of the same Python, what is not its own.

    Returns:
        Arguments of uv that leave the named packages to .venv.
    """
    packages = folder / "lib" / f"python{OWN_PYTHON}" / "site-packages"
    (packages / "packages-of-venv.pth").write_text(sysconfig.get_path("purelib"))
    excludes = folder / "packages-of-venv.txt"
    excludes.write_text("\n".join(names))
    return ["--excludes", excludes]


def install(name: str, lean: bool) -> Path:
    """
    Make the environment of a combination, or bring it up to date; a lean one of the newest has its torch from .venv.

    Returns:
        Its Python.
    Raises:
        NoPython: there is no such Python.
        subprocess.CalledProcessError: there is no set of versions that fits.
    """
    age, python = name.split("-")
    folder, variables = ENVIRONMENTS / name, environment_variables()
    interpreter = folder / "bin" / "python"
    if not interpreter.exists():
        made = subprocess.run([UV, "venv", "--quiet", "--python", python, folder], env=variables, check=False)
        if made.returncode:
            raise NoPython(python)
    # uv's cache has a copy for each Python all the same, and would outlast the environments. What it unpacks on the way
    # lies beside them, so that it is moved into place and not copied.
    variables["TMPDIR"] = str(ENVIRONMENTS)
    to_install = [UV, "pip", "install", "--quiet", "--no-cache", "--python", interpreter]
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    resolution = ["--resolution", RESOLUTIONS[age], "--upgrade", "--no-build"]
    shared = share_packages(folder, LARGE) if lean and age == "newest" else []
    packages = ["-r", "pyproject.toml", *extras]
    subprocess.run([*to_install, *resolution, *shared, *packages], cwd=ROOT, env=variables, check=True)
    subprocess.run([*to_install, *shared, *TEST_PACKAGES], cwd=ROOT, env=variables, check=True)
    return interpreter


def versions(interpreter: Path) -> str:
    """What matters of what an environment has."""
    script = f"from importlib.metadata import version\nprint(*(f'{{n}} {{version(n)}}' for n in {REPORTED}), sep=', ')"
    return subprocess.check_output([interpreter, "-c", script], text=True).strip()


def check(name: str, tests: Iterable[str], pytest_arguments: list[str], lean: bool) -> tuple[bool, str]:
    """
    Install a combination and run tests in it; a lean one is removed afterwards.

    Returns:
        Whether nothing failed, and a line that says so with the versions and the seconds that both took.
    """
    print(f"== {name}", flush=True)
    started = time.monotonic()
    try:
        interpreter = install(name, lean)
    except NoPython as missing:
        return True, f"{name}: skipped, no Python {missing} here"
    except subprocess.CalledProcessError:
        return False, f"{name}: could not be installed"
    installed = time.monotonic()
    pytest = [interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests, *pytest_arguments]
    passed = subprocess.run(pytest, cwd=ROOT, env=environment_variables(), check=False).returncode == 0
    seconds = f"{installed - started:.0f} s to install, {time.monotonic() - installed:.0f} s to test"
    line = f"{name}: {'passed' if passed else 'FAILED'} ({seconds}) with {versions(interpreter)}"
    if lean:
        shutil.rmtree(ENVIRONMENTS / name)
    return passed, line


def main() -> None:
    """Check the combinations that the command line names, and leave with 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("combinations", nargs="*", help=f"of {', '.join(COMBINATIONS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="only tests of remote code, processors and pipelines")
    parser.add_argument("--lean", action="store_true", help="take torch from .venv for newest, and keep no environment")
    parser.add_argument("--pytest", default="", metavar="ARGUMENTS", help="further arguments of pytest")
    arguments = parser.parse_args()
    names = arguments.combinations or COMBINATIONS
    if unknown := set(names) - set(COMBINATIONS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(COMBINATIONS)}")
    if arguments.lean and any(name.startswith("newest") and not name.endswith(OWN_PYTHON) for name in names):
        parser.error(f"--lean: .venv has Python {OWN_PYTHON}, and no other can take its torch")
    tests, pytest_arguments = QUICK_TESTS if arguments.quick else TESTS, shlex.split(arguments.pytest)
    results = [check(name, tests, pytest_arguments, arguments.lean) for name in names]
    print("== summary", *(line for _, line in results), sep="\n")
    sys.exit(0 if all(passed for passed, _ in results) else 1)


if __name__ == "__main__":
    main()
