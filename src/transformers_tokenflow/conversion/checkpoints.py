# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Reads checkpoints of one file or many shards, without running code from them and no more at a time than is used."""

import argparse
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

StateDict = Mapping[str, torch.Tensor]

CONTAINER_KEYS = ("ema", "model", "state_dict")
# What a folder may hold, in the order of preference: an index of shards, or a file with everything.
FOLDER_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


def load_official_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """
    Read an official `.pt` container, or a safetensors file with the same keys, without running code from it.

    The tensors are mapped from the file, and take memory as they are read; only files in the form that torch wrote
    before version 1.6 are read as a whole.

    Raises:
        ValueError: the file is no checkpoint of tensors, or would need code to be run to be read.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Training scripts store their arguments beside the weights: a Namespace, which holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            container = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:  # it is missing, or not ours to read
        raise
    except Exception as error:  # of every kind, where a damaged file is unpickled
        raise ValueError(f"{path} can't be read as a checkpoint of plain tensors: {reason(path, error)}") from error
    for key in CONTAINER_KEYS:
        if isinstance(container, dict) and isinstance(container.get(key), dict) and container[key]:
            container = container[key]
            break
    if not isinstance(container, dict) or not all(isinstance(value, torch.Tensor) for value in container.values()):
        raise ValueError(f"{path} holds no state dict, neither bare nor under one of {', '.join(CONTAINER_KEYS)}")
    return container


def reason(path: Path, error: Exception) -> str:
    """Why a file was not read. torch's own words advise to let it run code, of pictures and texts as well."""
    if match := re.search(r"\bGLOBAL (\S+)", str(error)):
        return f"it holds {match[1]}, which would need code to be run"
    form = "safetensors file" if path.suffix == ".safetensors" else "checkpoint that torch saved"
    details = str(error).partition("\n")[0] if isinstance(error, (RuntimeError, SafetensorError)) else ""
    return f"it is no {form}, or a damaged one" + (f" ({details})" if details else "")


class Checkpoint(Mapping[str, torch.Tensor]):
    """
    The state dict of one or several files, which are opened when a tensor of theirs is asked for.

    What has been read of a mapped file counts as memory of the process, until `release` lets go of it. Tensors that
    are still held keep their file.

    Args:
        files: paths, and what is put before the keys of each.

    Raises:
        ValueError: a file is no checkpoint of tensors, or a key is in two of them.
    """

    def __init__(self, files: Mapping[Path, str]):
        self._prefixes = dict(files)
        self._open: dict[Path, dict[str, torch.Tensor]] = {}
        self._files: dict[str, Path] = {}
        for path, prefix in self._prefixes.items():
            for key in self._read(path):
                if prefix + key in self._files:
                    raise ValueError(f"{key} is both in {self._files[prefix + key]} and in {path}")
                self._files[prefix + key] = path
            self.release()

    def _read(self, path: Path) -> dict[str, torch.Tensor]:
        if path not in self._open:
            self._open[path] = load_official_state_dict(path)
        return self._open[path]

    def __getitem__(self, key: str) -> torch.Tensor:
        path = self._files[key]
        return self._read(path)[key.removeprefix(self._prefixes[path])]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def release(self) -> None:
        """Let go of the files; they are opened again when they are needed."""
        self._open.clear()


def joined(model: StateDict, inner: StateDict, prefix: str) -> StateDict:
    """Both in one, the second one's keys behind a prefix; files stay as lazily read as they were."""
    if isinstance(model, Checkpoint) and isinstance(inner, Checkpoint):
        return Checkpoint({**model._prefixes, **{path: prefix + old for path, old in inner._prefixes.items()}})
    return {**model, **{prefix + key: tensor for key, tensor in inner.items()}}


def open_checkpoint(path: str | Path) -> Checkpoint:
    """
    The state dict of a file, or of a folder that holds one of `FOLDER_FILES`.

    Raises:
        ValueError: the folder holds none, its index is damaged, or a file is no checkpoint of tensors.
        FileNotFoundError: a file, or a shard that an index names, is missing.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not found:
            raise ValueError(f"{path} holds no checkpoint: expected one of {', '.join(FOLDER_FILES)}")
        path = found[0]
    if path.suffix != ".json":
        return Checkpoint({path: ""})
    return Checkpoint({shard: "" for shard in read_index(path)})


def read_index(path: Path) -> list[Path]:
    """
    The shards that an index of transformers names.

    Raises:
        ValueError: it is no such index, or names files outside its folder.
    """
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        shards = [path.parent / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no index of shards, which has a weight_map of keys to file names") from error
    if not shards or any(name in ("", "..") or not name.isprintable() or Path(name).name != name for name in names):
        raise ValueError(f"{path} must name shards beside itself; got {', '.join(names) or 'none'}")
    return shards


def read_official_config(folder: Path) -> dict[str, Any]:
    """
    The configuration in a folder; empty if there is none.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} is no configuration")
    return fields
