# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Which of a model's parameters are trained, and how fast; adapters that are trained in place of them."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .sharding import own_part


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Names of those with NaN or infinity in what this process has of them."""
    return [name for name, tensor in tensors if not own_part(tensor).isfinite().all()]


def check_prefixes(model: nn.Module, prefixes: Iterable[str]) -> None:
    """
    Raises:
        ValueError: no parameter begins with a prefix.
    """
    names = [name for name, _ in model.named_parameters()]
    unknown = [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in names)]
    if unknown:
        parts = sorted({name.split(".")[0] for name in names})
        raise ValueError(f"no parameters begin with {', '.join(unknown)}; the model's parts are {', '.join(parts)}")


def select_trainable(model: nn.Module, parts: list[str] | None) -> None:
    """
    Freeze all parameters but those whose names begin with one of the parts; None leaves all as they are.

    Raises:
        ValueError: no parameter begins with a part, there are no parts, or they are frozen anyhow.
    """
    if parts is None:
        return
    if not parts:
        raise ValueError("trainable_parts is empty: nothing would be trained")
    check_prefixes(model, parts)
    for name, parameter in model.named_parameters():
        if not name.startswith(tuple(parts)):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"nothing would be trained: the model keeps {', '.join(parts)} frozen")


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    part_rates: Mapping[str, float],
    weight_decay: float,
    decayed: set[str],
    apart: Set[nn.Parameter] = frozenset(),
) -> list[dict[str, Any]]:
    """
    Groups for an optimizer: trainable parameters of one learning rate, with and without weight decay.

    Args:
        model: whose parameters they are.
        learning_rate: of parameters that no prefix fits.
        part_rates: learning rates by prefix; of several that fit the longest counts.
        weight_decay: of the parameters named in `decayed`.
        apart: parameters that have groups of their own, since no step can be made of sharded and whole ones at once.
    """
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            fitting = [prefix for prefix in part_rates if name.removeprefix("module.").startswith(prefix)]
            rate = float(part_rates[max(fitting, key=len)]) if fitting else learning_rate
            groups[rate, name in decayed, parameter in apart].append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": weight_decay if decay else 0.0}
        for (rate, decay, _), parameters in groups.items()
    ]


def trained_parameters(model: nn.Module) -> nn.ParameterList:
    """A module that shares the model's trained parameters, and has nothing else."""
    return nn.ParameterList(parameter for parameter in model.parameters() if parameter.requires_grad)


def adapt(model: nn.Module, rank: int, modules_to_save: list[str] | None) -> nn.Module:
    """
    What is trained of a model: the adapters that it has, new ones if it has none, or for rank 0 the model as it is.

    Args:
        model: the generator or the understanding model, which is changed.
        rank: of the adapters; of those that it has, 0 is any.
        modules_to_save: names of modules that are trained in full, such as `projector`.

    Raises:
        ValueError: the model has other adapters, or there is no module of a name.
        ImportError: peft is not installed.
    """
    if getattr(model, "peft_config", None):
        return continue_adapters(model, rank, modules_to_save)
    return add_adapters(model, rank, modules_to_save) if rank > 0 else model


def add_adapters(model: nn.Module, rank: int, modules_to_save: list[str] | None) -> nn.Module:
    """
    The model with LoRA adapters (arXiv 2106.09685) on attention and MLP of every layer of its language model, and the
    rest frozen. They count twice as much as they say (alpha is 2 · rank).
    """
    from peft import LoraConfig

    names = [name for name, _ in model.named_modules()]
    if unknown := [name for name in modules_to_save or () if not any(f".{own}".endswith(f".{name}") for own in names)]:
        raise ValueError(f"lora_modules_to_save: the model has no modules {', '.join(unknown)}")
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        # By their place: the tokenizer's encoder has projections of the same names.
        target_modules=r"model\.(language_model\.)?layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
        modules_to_save=modules_to_save,
    )
    return wrap(model, config)


def continue_adapters(model: Any, rank: int, modules_to_save: list[str] | None) -> nn.Module:
    """The model with the adapters that `from_pretrained` or peft has given it, which are trained on."""
    from peft import PeftModel

    if len(model.peft_config) != 1:
        raise ValueError(f"the model has several adapters, {', '.join(model.peft_config)}: load it with one of them")
    ((name, config),) = model.peft_config.items()
    if getattr(config, "use_dora", False) and not isinstance(model, PeftModel):
        raise ValueError(
            "transformers loads DoRA adapters without their magnitudes: give the trainer "
            "PeftModel.from_pretrained(base, folder, is_trainable=True)"
        )
    own_rank, own_modules = getattr(config, "r", 0), config.modules_to_save or []
    if rank not in (0, own_rank) or set(modules_to_save or own_modules) != set(own_modules):
        raise ValueError(
            f"the model has adapters already, lora_rank={own_rank} and lora_modules_to_save={own_modules}: leave both "
            "out to train these on, or merge them into the model (peft's `merge_and_unload`) to train new ones"
        )
    if not isinstance(model, PeftModel):  # `from_pretrained` puts them right into the layers
        state = model.state_dict()
        del model.peft_config
        model._hf_peft_config_loaded, model._weight_conversions = False, None  # else, merged, it would save as adapters
        wrapped = wrap(model, config, name)
        model.load_state_dict(state)  # peft has begun them anew
        model = wrapped
    model.set_adapter(name)  # of what was loaded to be used alone, nothing is trained
    return model


def wrap(model: nn.Module, config: Any, name: str = "default") -> Any:
    """The model with new adapters of a configuration, which load from wherever they are used."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # where adapters that the layers have are wrapped
        adapted = get_peft_model(model, config, name)
    base = str(model.name_or_path)  # of a new model, which is nowhere to be loaded from, it is empty
    if base and Path(base).is_dir():
        config.base_model_name_or_path = str(Path(base).resolve())
    return adapted
