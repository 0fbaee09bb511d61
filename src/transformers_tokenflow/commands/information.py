# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What there is to know of a saved model without loading its weights."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import HfApi, ModelCard, get_local_safetensors_metadata, get_safetensors_metadata
from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError
from safetensors import safe_open
from transformers import AutoModel, PreTrainedConfig

from ..card_tokenflow import as_list, count_in_words, describe_config, fact_rows
from ..configuration_tokenflow import PRESETS, TokenFlowConfig
from ..push_tokenflow import read_card
from . import CommandError, one_line
from .loading import check_complete, load_config

# Modules of which other parts are parts; these are named with what is in them.
CONTAINERS = ("model", "language_model")
# safetensors' names of dtypes to torch's.
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "BOOL": "bool"}


@dataclass
class ModelInformation:
    """
    Args:
        name: folder or repository.
        variant: the preset that the image tokenizer has the sizes of, or None.
        facts: what `describe_config` gives.
        parameters: by part of the model.
        dtypes: of the stored weights, each with its number of parameters; empty where there are no weights.
        size: of all files, in bytes.
        license: as the card states it, or None.
    """

    name: str
    variant: str | None
    facts: dict[str, Any]
    parameters: dict[str, int]
    dtypes: dict[str, int]
    size: int
    license: str | None

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        fields = asdict(self)
        total = {"num_parameters": sum(self.parameters.values())}
        return {"name": fields.pop("name"), "variant": fields.pop("variant"), **fields.pop("facts"), **total, **fields}

    def to_rows(self) -> dict[str, str]:
        """All of it in words: label to value."""
        rows = fact_rows(self.facts, sum(self.parameters.values()))
        counts = " + ".join(map(str, self.facts["tokens_per_scale"]))
        rows["tokens of a picture"] += f": {counts}"
        parts = {f"  {part}": count_in_words(count) for part, count in self.parameters.items()}
        stored = ", ".join(f"{dtype} ({count_in_words(count)})" for dtype, count in self.dtypes.items())
        return {
            "variant": self.variant or "none of the published ones",
            **rows,
            **parts,
            "weights": stored or "none: parameters are counted from the configuration",
            "size of all files": f"{self.size / 1e6:,.1f} MB",
            "license": self.license or "not stated",
        }


def inspect_model(name: str) -> ModelInformation:
    """
    Read configuration, card, and the headers of the weights.

    Args:
        name: a folder or a repository of the Hub.

    Raises:
        CommandError: it is no model of this package, or damaged.
    """
    config = load_config(name)
    try:
        tensors = read_tensors(name)
        size, license_name = inspect_folder(Path(name)) if Path(name).is_dir() else inspect_repository(name)
    except (HfHubHTTPError, OSError) as error:
        raise CommandError(f"{name} can't be read: {one_line(error)}") from error
    dtypes: dict[str, int] = defaultdict(int)
    for dtype, count in tensors.values():
        dtypes[DTYPES.get(dtype, dtype)] += count
    counts = {tensor: count for tensor, (_, count) in tensors.items()} or count_from_config(config)
    facts, parameters = describe_config(config), count_by_part(counts.items())
    return ModelInformation(name, find_variant(config), facts, parameters, dict(dtypes), size, license_name)


def inspect_folder(folder: Path) -> tuple[int, str | None]:
    """Bytes of a folder's files, and the license that its card states."""
    text = read_card(folder)
    try:
        data = ModelCard(text).data.to_dict() if text is not None else {}
    except (ValueError, yaml.YAMLError) as error:
        raise CommandError(f"the metadata of {folder / 'README.md'} are damaged: {one_line(error)}") from error
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), join_licenses(data)


def inspect_repository(name: str) -> tuple[int, str | None]:
    """Bytes of a repository's files, and the license that its card states."""
    information = HfApi().model_info(name, files_metadata=True)
    data = information.card_data.to_dict() if information.card_data is not None else {}
    return sum(file.size or 0 for file in information.siblings or ()), join_licenses(data)


def join_licenses(data: dict[str, Any]) -> str | None:
    """What a card's metadata state, one license or several."""
    return ", ".join(as_list(data.get("license"))) or None


def read_tensors(name: str) -> dict[str, tuple[str, int]]:
    """
    Names of the stored tensors, each with its dtype and number of elements; none where there are no weights.

    Raises:
        CommandError: a file of weights is missing, or cut off.
    """
    folder = Path(name)
    try:
        metadata = get_local_safetensors_metadata(folder) if folder.is_dir() else get_safetensors_metadata(name)
        for file in metadata.files_metadata if folder.is_dir() else ():
            safe_open(folder / file, framework="pt")  # finds out whether all that the header announces is there
    except NotASafetensorsRepoError:
        return {}
    except (HfHubHTTPError, ConnectionError):
        raise
    except Exception as error:  # what a damaged file makes of it
        raise CommandError(f"the weights of {name} are damaged: {one_line(error)}") from error
    found = {
        tensor: (str(info.dtype), info.parameter_count)
        for file in metadata.files_metadata.values()
        for tensor, info in file.tensors.items()
    }
    check_complete(name, metadata.weight_map.keys() - found.keys())
    return found


def count_from_config(config: PreTrainedConfig) -> dict[str, int]:
    """Parameters by name of a model that is never in memory."""
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(config)
    except (ImportError, ValueError, RuntimeError) as error:
        raise CommandError(f"no model can be made of the configuration: {one_line(error)}") from error
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def count_by_part(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Sums over what begins with the same names, such as `quantizer` or `model.layers`, in the order of the first."""
    parts: dict[str, int] = defaultdict(int)
    for name, count in counts:
        names = name.split(".")
        depth = next((index for index, part in enumerate(names) if part not in CONTAINERS), 0)
        parts[".".join(names[: depth + 1])] += count
    return dict(sorted(parts.items()))


def find_variant(config: PreTrainedConfig) -> str | None:
    """The preset whose sizes an image tokenizer has, or a model's image tokenizer."""
    sizes = sizes_of(getattr(config, "tokenizer_config", config))
    for name in PRESETS:
        try:
            if sizes_of(TokenFlowConfig.from_preset(name)) == sizes:
                return name
        except ImportError:  # of an encoder whose library is not installed
            continue
    return None


def sizes_of(config: PreTrainedConfig) -> list[Any]:
    """What tells published image tokenizers from others."""
    encoder = config.semantic_config
    own = ("decoder_channels", "decoder_num_res_blocks", "pixel_channels", "teacher_hidden_size", "pixel_patch_size")
    towers = ("hidden_size", "num_hidden_layers", "patch_size", "architecture")
    return [
        describe_config(config),
        *(getattr(config, name) for name in own),
        list(config.pixel_channel_multipliers),
        *(getattr(encoder, name, None) for name in towers),
    ]
