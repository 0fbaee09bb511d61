# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Writes converted models: tensor by tensor, and the folder whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import PreTrainedConfig, PreTrainedModel

from ..commands import Advance
from ..locks import sole_writer
from .layouts import ConvertedStateDict

# Of the files of weights. What is read for one of them is let go of after it.
SHARD_SIZE = "1GB"


def check_target(folder: Path) -> None:
    """
    Raises:
        FileExistsError: there is a file, a folder with something in it, or one that can't be replaced.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already, and no empty folder: remove it, or choose another")
    if folder.exists() and (os.path.ismount(folder) or folder.samefile(Path.cwd())):
        raise FileExistsError(
            f"{folder} can't be replaced, as where this runs, or something is mounted: name one in it"
        )


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """
    A folder to write into, which takes the name of `folder` at the end, or goes away with an error.

    What a process that was killed left behind is removed first.

    Raises:
        FileExistsError: as `check_target`.
        BlockingIOError: another process writes it.
    """
    check_target(folder)
    folder = folder.resolve()  # a link stays one
    temporary = folder.with_name(f".{folder.name}.tmp")
    with sole_writer(folder, folder.with_name(f".{folder.name}.lock")):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            check_target(folder)
            if folder.exists():
                folder.rmdir()
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_model(
    folder: Path,
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    weights: ConvertedStateDict,
    dtype: torch.dtype | None = None,
    advance: Advance | None = None,
) -> None:
    """
    Write what `save_pretrained` would, without ever having the model in memory.

    Args:
        folder: exists.
        model_class: of the model.
        config: of the model.
        weights: of the model.
        dtype: of the weights, but for those that the model keeps in float32; by default the checkpoint's own.
        advance: is called with the bytes written and the bytes in all.
    """
    with torch.device("meta"):
        model = model_class(config)
    kept = set(model_class._keep_in_fp32_modules_strict or ())
    dtypes = {name: saved_dtype(name, spec, dtype, kept) for name, spec in weights.specs.items()}
    # The dtype that `from_pretrained` loads by default, and the first parameter's, which passes for the model's.
    model.to(dtypes[next(name for name, _ in model.named_parameters())])
    model.save_pretrained(folder, state_dict={})
    write_weights(folder, weights, dtypes, advance)


def saved_dtype(name: str, spec: torch.Tensor, dtype: torch.dtype | None, kept: set[str]) -> torch.dtype:
    """What a tensor is saved in; `kept` are names of modules that stay in float32."""
    if not spec.is_floating_point():
        return spec.dtype
    if kept.intersection(name.split(".")):
        return torch.float32
    return dtype or spec.dtype


def write_weights(
    folder: Path, weights: ConvertedStateDict, dtypes: dict[str, torch.dtype], advance: Advance | None = None
) -> None:
    """
    Write the weights in files of at most `SHARD_SIZE`, with an index if there are several, as transformers does.

    Raises:
        ValueError: a tensor is not finite in its dtype.
    """
    # Not views, whose size would count as that of all that they are a part of.
    specs = {name: torch.empty_like(spec, dtype=dtypes[name]) for name, spec in weights.specs.items()}
    split = split_torch_state_dict_into_shards(specs, max_shard_size=SHARD_SIZE)
    written = 0
    for file, names in split.filename_to_tensors.items():
        shard = {name: weights[name].to(dtypes[name]).contiguous() for name in names}
        for name, tensor in shard.items():
            # Of the extremes, as `isfinite` of them all would take more memory than the tensor.
            if tensor.is_floating_point() and not torch.stack(tensor.aminmax()).isfinite().all():
                raise ValueError(f"{name} is damaged, or too large for {tensor.dtype}: it is not finite")
        save_file(shard, folder / file, metadata={"format": "pt"})
        written += sum(tensor.nbytes for tensor in shard.values())
        del shard
        weights.release()
        if advance is not None:
            advance(written, split.metadata["total_size"])
    if split.is_sharded:
        total = sum(spec.numel() for spec in specs.values())
        index = {"metadata": {"total_parameters": total, **split.metadata}, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
