# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Which files of a folder go to the Hub, and what must not be among them: pickles, secrets, links to elsewhere."""

import re
import zipfile
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects

# What training and Python leave behind, which stays here. The trainers' pictures and answers, whose names end in steps,
# are those of its data, which need not be public.
LEFT_OUT = [
    "checkpoint-*/*",
    "runs/*",
    "pictures/*-[0-9]*.png",
    "answers/*-[0-9]*.txt",
    ".lock",
    "all_results.json",
    "eval_results.json",
    "train_results.json",
    "trainer_state.json",
    "training_args.bin",
    "__pycache__/*",
    "*/__pycache__/*",
    ".DS_Store",
    "*/.DS_Store",
]
# The Hub's limit for one file.
MAX_FILE_SIZE = 50_000_000_000

PICKLE_SUFFIXES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}
PICKLE_PROTOCOLS = {bytes([0x80, version]) for version in range(2, 6)}

SECRET_FILES = (".env", ".env.*", ".netrc", ".git-credentials", ".pypirc", "id_rsa", "id_ed25519", "*.pem", "*.key")
SECRETS = {
    "a token of the Hugging Face Hub": rb"\bhf_[A-Za-z0-9]{20,}",
    "a private key": rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "a GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})",
    "an AWS key": rb"\bAKIA[0-9A-Z]{16}\b",
    "an OpenAI key": rb"\bsk-[A-Za-z0-9_-]{32,}",
    "a Google key": rb"\bAIza[A-Za-z0-9_-]{35}",
    "a Slack token": rb"\bxox[abprs]-[A-Za-z0-9-]{10,}",
}
# Nobody writes a secret into these, and their bytes look like anything.
UNREADABLE_SUFFIXES = {".safetensors", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".parquet"}


def files_to_publish(folder: Path) -> list[str]:
    """Paths of the files that an upload takes, relative to the folder."""
    paths = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir())
    return list(filter_repo_objects(paths, ignore_patterns=[*LEFT_OUT, *DEFAULT_IGNORE_PATTERNS]))


def check_files(folder: Path) -> list[str]:
    """
    What of a folder's files must not go to the Hub, each as a sentence.

    Args:
        folder: of a model.
    """
    problems = [check for path in sorted(folder.rglob("*")) if (check := check_link(path, folder)) is not None]
    if problems:
        return problems
    for name in files_to_publish(folder):
        path = folder / name
        if path.stat().st_size > MAX_FILE_SIZE:
            size = path.stat().st_size / 1e9
            problems.append(f"{name} has {size:.0f} GB, and the Hub takes 50 GB a file: save the model in more shards")
        if is_pickle(path):
            problems.append(f"{name} is a pickle, which runs code when it is loaded: save weights as safetensors")
        problems += check_secrets(path, name)
    return problems


def check_link(path: Path, folder: Path) -> str | None:
    """What is wrong with a symbolic link; None for anything else."""
    if not path.is_symlink():
        return None
    name = path.relative_to(folder).as_posix()
    if not path.exists():
        return f"{name} is a link to {path.readlink()}, which is not there"
    if not path.resolve().is_relative_to(folder.resolve()):
        return f"{name} is a link out of the folder, to {path.readlink()}: copy the file itself"
    return None


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, or an archive with one, as torch writes; told by its name and its content."""
    if path.suffix in PICKLE_SUFFIXES:
        return True
    with path.open("rb") as file:
        if file.read(2) in PICKLE_PROTOCOLS:
            return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(".pkl") for name in archive.namelist())


def check_secrets(path: Path, name: str) -> list[str]:
    """What looks like a secret, by its place; the secret itself is in no message."""
    if any(fnmatch(path.name, pattern) for pattern in SECRET_FILES):
        return [f"{name} is a file for secrets: remove it"]
    if path.suffix in UNREADABLE_SUFFIXES:
        return []
    content = path.read_bytes()
    problems = []
    for what, pattern in SECRETS.items():
        if match := re.search(pattern, content):
            line = content.count(b"\n", 0, match.start()) + 1
            problems.append(f"{name}, line {line}, has what looks like {what}: remove it, and revoke it if it is one")
    return problems
