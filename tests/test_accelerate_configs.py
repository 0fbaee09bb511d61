# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The configurations in training/accelerate, as `accelerate launch` and its plugins read them."""

import os
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.fsdp import StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

FOLDER = Path(__file__).parents[1] / "training" / "accelerate"
NAMES = ["8-gpus", "fsdp2", "zero2", "zero3"]


def launch_environment(name: str) -> dict[str, str]:
    """What `accelerate launch --config_file` tells the processes that it starts."""
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), "training/train.py", "recipe.yaml"])
    args, config, _ = _validate_launch_command(args)
    assert args.num_processes == 8
    if not args.use_deepspeed:
        return prepare_multi_gpu_env(args)
    args.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
    return prepare_deepspeed_cmd_env(args)[1]


def test_all_are_tested():
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_known_to_accelerate(name: str):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    kinds = {"8-gpus": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert config.distributed_type == kinds[name]
    known = {action.dest for action in launch_command_parser()._actions}
    assert {*config.fsdp_config, *config.deepspeed_config} <= known
    assert config.mixed_precision == ("no" if name == "8-gpus" else "bf16")


def test_fsdp2():
    with mock.patch.dict(os.environ, launch_environment("fsdp2")):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy and plugin.transformer_cls_names_to_wrap is None
    assert plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT and not plugin.cpu_ram_efficient_loading
    plugin.set_mixed_precision("bf16")
    assert plugin.mixed_precision_policy.param_dtype == torch.bfloat16


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed(stage: int):
    with mock.patch.dict(os.environ, launch_environment(f"zero{stage}")):
        config = DeepSpeedPlugin().deepspeed_config
    names = ("gradient_accumulation_steps", "gradient_clipping", "train_micro_batch_size_per_gpu")
    assert {config[name] for name in names} == {"auto"}
    zero = config["zero_optimization"]
    assert zero["stage"] == stage and zero["stage3_gather_16bit_weights_on_model_save"] == (stage == 3)
    settings = pytest.importorskip("deepspeed.runtime.zero.config").DeepSpeedZeroConfig(**zero)
    assert settings.stage == stage
