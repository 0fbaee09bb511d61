# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What every command does to load its model: finds the device, checks the configuration, reads all weights."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, AutoProcessor, PreTrainedConfig, PreTrainedModel

from . import CommandError, counted, one_line

CHECKOUT = Path(__file__).resolve().parents[3]
HUB_REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def name_or_default(name: str | None, default: Path) -> str:
    """A model's name, or where none is given the default's; a CommandError where that is not there."""
    if name is not None:
        return name
    if not (default / "config.json").is_file():
        raise CommandError("there is no default model here: pass --model with a folder or a repository of the Hub")
    return str(default)


def find_device(name: str) -> torch.device:
    """
    The device of a name, where it can be used.

    Raises:
        CommandError: the name is none of torch's, or there is no such device here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CommandError(f"the device {name!r} can't be used: {one_line(error)}") from error
    if device.type == "meta":
        raise CommandError("the device 'meta' holds no values: pass cpu, cuda, ...")
    return device


def read_config_fields(name: str) -> dict[str, Any]:
    """
    Read a configuration as it is stored, whatever model it is of.

    Args:
        name: a folder or a repository of the Hub.

    Raises:
        CommandError: it can't be read.
    """
    path = Path(name)
    if path.is_file():
        hint = f"; `tokenflow convert {name} FOLDER` makes one of a checkpoint"
        raise CommandError(f"{name} is a file, but a model is a folder{hint}")
    if path.is_dir() and not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise CommandError(
                f"{name} holds adapters: merge them into their model (peft's `merge_and_unload`), as docs/tutorials/"
                "fine-tune.md shows, or load them in Python, by the pipeline or AutoModel"
            )
        raise CommandError(f"{name} holds no model: it has no config.json")
    if not path.exists() and not HUB_REPOSITORY.fullmatch(name):
        raise CommandError(f"there is no folder {name}")
    try:
        return PreTrainedConfig.get_config_dict(name)[0]
    except Exception as error:  # whatever the network or a damaged file makes of it
        where = "can't be read" if path.exists() else "is no folder here, and the Hub doesn't give it"
        raise CommandError(f"the model {name} {where}: {one_line(error)}") from error


def check_model_type(name: str, config_class: type[PreTrainedConfig], kind: str) -> None:
    """
    Read the configuration alone.

    Args:
        name: a folder or a repository of the Hub.
        config_class: what it must be.
        kind: how that is called in messages.

    Raises:
        CommandError: it can't be read, or is another's.
    """
    model_type = read_config_fields(name).get("model_type")
    if model_type != config_class.model_type:
        raise CommandError(f"{name} is no TokenFlow {kind}: its model type is {model_type!r}")


def load_config(name: str) -> PreTrainedConfig:
    """
    The configuration of any model of this package.

    Args:
        name: a folder or a repository of the Hub.

    Raises:
        CommandError: it can't be read, or is of a model that is none of this package's.
    """
    model_type = read_config_fields(name).get("model_type")
    package = __package__.partition(".")[0]
    if model_type not in CONFIG_MAPPING or not CONFIG_MAPPING[model_type].__module__.startswith(f"{package}."):
        raise CommandError(f"{name} is no TokenFlow model: its model type is {model_type!r}")
    try:
        return CONFIG_MAPPING[model_type].from_pretrained(name)
    except Exception as error:
        raise CommandError(f"the configuration of {name} is no valid one: {one_line(error)}") from error


def check_complete(name: str, missing: Iterable[str]) -> None:
    """
    Raises:
        CommandError: there are names of tensors that the weights of a model lack.
    """
    if names := sorted(missing):
        raise CommandError(
            f"the weights of {name} are incomplete: {counted(len(names), 'tensor')} missing, such as {names[0]}"
        )


def load_model(name: str, dtype: torch.dtype, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """Load the weights, all of them and finite, or raise a CommandError."""
    try:
        model, report = model_class.from_pretrained(name, dtype=dtype, output_loading_info=True)
    except SafetensorError as error:
        where = ", ".join(map(str, damaged_files(Path(name)))) or name
        raise CommandError(f"{where} is damaged: {one_line(error)}") from error
    except Exception as error:  # missing, damaged or foreign weights each fail in a way of their own
        raise CommandError(f"the model {name} can't be loaded: {one_line(error)}") from error
    check_complete(name, report["missing_keys"])
    for key, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise CommandError(f"the weights of {name} are damaged, or too large for {dtype}: {key} is not finite")
    return model


def load_processor(name: str) -> Any:
    """The processor of texts and pictures that is saved with a model, or a CommandError."""
    try:
        return AutoProcessor.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # missing and damaged files each fail in a way of their own
        raise CommandError(f"the processor of {name} can't be loaded: {one_line(error)}") from error


def damaged_files(folder: Path) -> list[Path]:
    """Files of weights in a folder whose beginning, which says what is in them, does not fit the rest."""
    damaged = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError:
            damaged.append(path)
    return damaged
