# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints from anywhere: tensors, or a ValueError; never code that runs, never a file elsewhere."""

import builtins
import io
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import TEXTS, VALUES, damaged, fuzz
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from transformers_tokenflow.conversion import load_official_state_dict, open_checkpoint
from transformers_tokenflow.conversion.checkpoints import read_index, read_official_config

WEIGHTS = {"a.weight": torch.rand(3, 4), "b": torch.arange(5), "c": torch.rand(2).half()}


def saved(content: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


PICKLED = [
    saved({"ema": WEIGHTS, "steps": 3}),
    saved(WEIGHTS),
    saved({"model": WEIGHTS}, _use_new_zipfile_serialization=False),
    pickle.dumps({"a": [1, 2.0, "text", b"bytes"]}),
]
SAFE = [save(WEIGHTS), save({"a": torch.zeros(0)}), save(WEIGHTS, {"format": "pt"})]


def load(path: Path, content: bytes) -> None:
    """What is loaded holds tensors that can be read to their ends."""
    path.write_bytes(content)
    try:
        state_dict = load_official_state_dict(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    for tensor in state_dict.values():
        tensor.clone()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@fuzz
@given(content=st.one_of(damaged(PICKLED), st.binary(max_size=100)))
def test_damaged_containers(content: bytes, folder: Path):
    load(folder / "official.pt", content)


@fuzz
@given(content=st.one_of(damaged(SAFE), st.binary(max_size=100)))
def test_damaged_safetensors(content: bytes, folder: Path):
    load(folder / "official.safetensors", content)


@fuzz
@given(header=VALUES, body=st.binary(max_size=64))
def test_safetensors_with_any_header(header: Any, body: bytes, folder: Path):
    text = json.dumps(header).encode()
    load(folder / "official.safetensors", len(text).to_bytes(8, "little") + text + body)


class Call:
    """Is pickled as a call, which unpickling makes."""

    def __init__(self, function: Callable, arguments: tuple):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.function, self.arguments


def calls(marker: Path) -> list[Call]:
    """Ways to make a file of that name."""
    name = str(marker)
    return [
        Call(os.mkdir, (name,)),
        Call(os.system, (f"touch {name}",)),
        Call(subprocess.Popen, (["touch", name],)),
        Call(builtins.open, (name, "w")),
        Call(builtins.eval, (f"open({name!r}, 'w')",)),
        Call(builtins.exec, (f"open({name!r}, 'w')",)),
        Call(pathlib.Path.touch, (marker,)),
        Call(shutil.copy, (__file__, name)),
        Call(torch.save, ({}, name)),
        Call(torch.hub.download_url_to_file, (Path(__file__).as_uri(), name)),
    ]


@fuzz
@given(
    number=st.integers(0, 9),
    where=st.sampled_from(["bare", "value", "weights", "beside", "key"]),
    form=st.sampled_from(["zip", "old", "pickle"]),
    protocol=st.integers(0, 5),
)
def test_code_is_refused_and_not_run(number: int, where: str, form: str, protocol: int, folder: Path):
    marker = folder / "made"
    call: Any = calls(marker)[number]
    content: Any = {
        "bare": call,
        "value": {**WEIGHTS, "z": call},
        "weights": {"model": call},
        "beside": {"model": WEIGHTS, "args": call},
        "key": {"model": WEIGHTS, "args": [{"x": (call,)}]},
    }[where]
    if form == "pickle":
        path = folder / "official.pt"
        path.write_bytes(pickle.dumps(call if where == "bare" else {"args": call}, protocol))
    else:
        path = folder / "official.pt"
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match="can't be read as a checkpoint of plain tensors"):
        load_official_state_dict(path)
    assert not marker.exists()


@fuzz
@given(name=st.one_of(TEXTS, st.sampled_from(["../evil", "/tmp/evil", "archive/../../evil"])), content=st.binary())
def test_archives_are_not_unpacked(name: str, content: bytes, folder: Path):
    inner = folder / "inner"
    inner.mkdir(exist_ok=True)
    (inner / "official.pt").write_bytes(PICKLED[0])
    with zipfile.ZipFile(inner / "official.pt", "a") as archive:
        try:
            archive.writestr(name or "x", content)
        except (ValueError, IndexError):  # names that zipfile can't take
            return
    before = sorted(folder.rglob("*"))
    load(inner / "official.pt", (inner / "official.pt").read_bytes())
    assert sorted(folder.rglob("*")) == before


@fuzz
@given(
    index=st.one_of(
        VALUES,
        st.fixed_dictionaries({"weight_map": st.one_of(VALUES, st.dictionaries(TEXTS, TEXTS, max_size=3))}),
        st.sampled_from(["../official.safetensors", "..", "."]).map(lambda name: {"weight_map": {"a": name}}),
    )
)
def test_shards_lie_beside_their_index(index: Any, folder: Path):
    path = folder / "indexed" / "model.safetensors.index.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(index))
    try:
        shards = read_index(path)
    except ValueError:
        return
    assert shards and all(shard.parent == path.parent and shard.resolve().parent == path.parent for shard in shards)
    with pytest.raises((ValueError, OSError)):  # none of them is there
        open_checkpoint(path)


@fuzz
@given(content=st.one_of(st.binary(max_size=100), VALUES.map(lambda value: json.dumps(value).encode())))
def test_configurations_beside_checkpoints(content: bytes, folder: Path):
    (folder / "config.json").write_bytes(content)
    try:
        fields = read_official_config(folder)
    except ValueError as error:
        assert str(folder / "config.json") in str(error)
    else:
        assert isinstance(fields, dict)


def test_nesting_without_end(folder: Path):
    for name, read in (("config.json", lambda path: read_official_config(path.parent)), ("index.json", read_index)):
        (folder / name).write_text("[" * 200_000)
        with pytest.raises(ValueError, match=name):
            read(folder / name)
