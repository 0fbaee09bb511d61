# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Weights that accelerate divides among processes: what can be, how, and how to get at them all the same."""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn

from .arguments import CommonTrainingArguments, TokenFlowTrainingArguments

# What is gathered at a time: one layer of a transformer.
LAYER = re.compile(r"(.*\.)?layers\.\d+")


def check_settings(args: CommonTrainingArguments, is_fsdp: bool, is_deepspeed: bool) -> None:
    """
    Raises:
        ValueError: a setting needs weights that FSDP or DeepSpeed have divided.
    """
    if args.muon and (is_fsdp or is_deepspeed):
        raise ValueError("muon needs whole matrices, which FSDP and DeepSpeed divide: set muon to false")
    if args.ema_decay > 0 and is_deepspeed:
        raise ValueError("ema_decay averages weights that DeepSpeed keeps to itself: set it to 0, or use FSDP")


def check_tokenizer_settings(args: TokenFlowTrainingArguments, is_fsdp: bool, is_deepspeed: bool) -> None:
    """
    Raises:
        ValueError: it is DeepSpeed, or a setting needs weights that FSDP has divided.
    """
    if is_deepspeed:
        raise ValueError("DeepSpeed divides and rounds the codebook, which decides the codes: train with DDP or FSDP2")
    if args.adaptive_adversarial_weight and is_fsdp:
        raise ValueError("adaptive_adversarial_weight needs a gradient before FSDP has it: set it to false")


def check_encoding(is_deepspeed: bool) -> None:
    """
    Raises:
        ValueError: it is DeepSpeed, and pictures are to be encoded while a model is trained.
    """
    if is_deepspeed:
        raise ValueError(
            "DeepSpeed divides and rounds the image tokenizer too, which would give other codes: encode pictures "
            "beforehand with `tokenflow encode`, or train with FSDP2"
        )


def layer_classes(model: nn.Module, replicated: Iterable[nn.Module] = ()) -> list[str]:
    """Names of the classes of a model's layers, but for those inside of modules that are replicated."""
    left_out = {inner for module in replicated for inner in module.modules()}
    layers = (module for name, module in model.named_modules() if LAYER.fullmatch(name) and module not in left_out)
    return sorted({type(layer).__name__ for layer in layers})


def set_up_sharding(plugin: Any, model: nn.Module, replicated: list[nn.Module], device: torch.device) -> None:
    """
    Tell accelerate what of a model is gathered at a time, where its configuration does not, what stays whole, and what
    is computed in full precision.

    Modules that are replicated are moved to the device, since accelerate moves only what it shards. The gradients of
    those of them that are trained are averaged, as by `DistributedDataParallel`.

    Args:
        plugin: accelerate's, of FSDP.
        model: that will be sharded.
        replicated: modules of it that every process holds whole.
        device: of this process.

    Raises:
        ValueError: it is FSDP1, or the weights are to be loaded by one process alone.
    """
    if plugin.fsdp_version != 2:
        raise ValueError(f"FSDP2 is needed, fsdp_version: 2; got fsdp_version: {plugin.fsdp_version}")
    if plugin.cpu_ram_efficient_loading:
        raise ValueError("fsdp_cpu_ram_efficient_loading must be false: parts of the models are not sharded")
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layer_classes(model, replicated)
    if plugin.mixed_precision_policy is not None:
        # Autocast is at work within, as without FSDP: pictures that are compared with, losses and sums of gradients
        # stay in full precision.
        plugin.mixed_precision_policy = dataclasses.replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None, cast_forward_inputs=False
        )
    plugin.ignored_modules = replicated
    for module in replicated:
        module.to(device)
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_average_gradient)


def _average_gradient(parameter: torch.Tensor) -> None:
    """Of a sum over several batches, what came before is the same everywhere already, and is its own mean."""
    distributed.all_reduce(parameter.grad)
    parameter.grad /= distributed.get_world_size()


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether this process holds a part of it."""
    return hasattr(tensor, "to_local")


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process has of a tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined, operator]


def reshard(model: nn.Module) -> None:
    """Bring the shards back in place of whole weights, which a forward pass without a backward pass leaves there."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()  # type: ignore[operator]


def whole_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    A state_dict with whole tensors, those that are sharded on the CPU.

    Called in every process; the others than the main one get none of the latter.
    """
    whole = {}
    for name, tensor in state.items():
        if not is_sharded(tensor):
            whole[name] = tensor
            continue
        gathered = tensor.full_tensor()  # type: ignore[attr-defined, operator]  # by all processes
        if distributed.get_rank() == 0:
            whole[name] = gathered.cpu()
    return whole


def shard_state(state: dict[str, torch.Tensor], like: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What `whole_state` gave, in whatever number of processes, sharded as `like`. Called in every process."""
    from torch.distributed.tensor import distribute_tensor

    sharded = dict(state)
    for name, own in like.items():  # in the same order everywhere
        if is_sharded(own) and name in state:
            sharded[name] = distribute_tensor(state[name].to(own.device), own.device_mesh, own.placements)
    return sharded


@contextmanager
def own_class(model: nn.Module) -> Iterator[None]:
    """
    The model as an instance of its own class, in place of the one that FSDP2 derives from it.

    That class is nobody's to save: a folder's remote code would be torch's.
    """
    derived = type(model)
    if derived.__name__.startswith("FSDP"):
        model.__class__ = derived.__mro__[2]
    try:
        yield
    finally:
        model.__class__ = derived


@contextmanager
def saved_whole(plugin: Any | None) -> Iterator[None]:
    """Have accelerate's plugin of FSDP, if there is one, save weights in one piece, as `from_pretrained` reads them."""
    if plugin is None:
        yield
        return
    from torch.distributed.fsdp import StateDictType

    usual, plugin.state_dict_type = plugin.state_dict_type, StateDictType.FULL_STATE_DICT
    try:
        yield
    finally:
        plugin.state_dict_type = usual
