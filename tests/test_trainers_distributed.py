# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""All trainers in several processes: as in one, sharded by FSDP2, and resumed in another number of processes."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import datasets
import pytest
import tiny_text_to_image_training as generators
import tiny_training as tokenizers
import tiny_understanding_training as talkers
import torch
from accelerate.state import AcceleratorState, DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin
from faults import needs_fork
from launched import run_launched
from safetensors.torch import load_file
from test_accelerate_configs import launch_environment
from torch.distributed.fsdp import FSDPModule

from transformers_tokenflow import TokenFlowForConditionalGeneration, TokenFlowForTextToImage, TokenFlowModel
from transformers_tokenflow.trainers.base import BaseTrainer
from transformers_tokenflow.trainers.checkpoints import last_checkpoint
from transformers_tokenflow.trainers.sharding import check_settings, check_tokenizer_settings, set_up_sharding

pytestmark = needs_fork

STEPS = 4
COMMON: dict[str, Any] = {"max_steps": STEPS, "optim": "sgd", "learning_rate": 0.05, "warmup_steps": 0}
TOKENIZER: dict[str, Any] = {
    **COMMON,
    "perceptual_loss": "teacher",
    "adversarial_weight": 0.5,
    "adversarial_start_step": 1,
    "discriminator_learning_rate": 1e-4,
    "scale_dropout": 0.5,
    "codebook_initialization": "kmeans",
    "codebook_restart_steps": 2,
}


def tokenizer(folder: Path, **changes: Any) -> BaseTrainer:
    """A trainer of a tokenizer with all that is a mean over a batch, or drawn from one."""
    model = tokenizers.tiny_model("clip", entropy_weight=0.1)
    return tokenizers.tiny_trainer(folder, model=model, **{**TOKENIZER, **changes})


def generator(folder: Path, **changes: Any) -> BaseTrainer:
    return generators.tiny_trainer(folder, **{**COMMON, "text_dropout": 0.3, **changes})


def talker(folder: Path, **changes: Any) -> BaseTrainer:
    return talkers.tiny_trainer(folder, talkers.divided_rows(), **{**COMMON, **changes})


KINDS: dict[str, tuple[Callable[..., BaseTrainer], Any]] = {
    "tokenizer": (tokenizer, TokenFlowModel),
    "text-to-image": (generator, TokenFlowForTextToImage),
    "understanding": (talker, TokenFlowForConditionalGeneration),
}


OTHERS = ["text-to-image", "understanding"]
# What every process generates with sharded weights, at evaluations.
GENERATING: dict[str, dict[str, Any]] = {
    "text-to-image": {"sample_prompts": ["an owl"], "sample_options": {"top_k": [5], "top_p": [0.0]}},
    "understanding": {"logged_answers": 2},
}
# Steps decide alike whoever takes them; where unused entries move is drawn by each process's own generator.
DECIDING: dict[str, dict[str, Any]] = {
    "tokenizer": {"scale_dropout": 0.5, "codebook_restart_steps": 0},
    "text-to-image": {"coarse_step_probability": 0.5, "coarse_scales": 2},
}
# Classes of the layers, which are gathered one at a time.
LAYERS = {
    "tokenizer": {"FSDPCLIPEncoderLayer", "FSDPSiglipEncoderLayer"},
    "text-to-image": {"FSDPTokenFlowTextToImageDecoderLayer"},
    "understanding": {"FSDPQwen2DecoderLayer"},
}


def shard_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have accelerate shard as training/accelerate/fsdp2.yaml says on CPUs too, which it leaves to DDP."""
    started = AcceleratorState.__init__
    with mock.patch.dict(os.environ, launch_environment("fsdp2")):
        plugin = FullyShardedDataParallelPlugin()

    def start(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
        started(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin
            if self._mixed_precision != "no":
                plugin.set_mixed_precision(self._mixed_precision)

    monkeypatch.setattr(AcceleratorState, "__init__", start)


def logged(trainer: BaseTrainer) -> dict[int, dict[str, float]]:
    """What was logged of the steps of training."""
    return {entry["step"]: entry for entry in trainer.state.log_history if "loss" in entry}


def run(kind: str, folder: Path, **changes: Any) -> None:
    """Train in this process, with all others; save the model, and what was logged beside it."""
    trainer = KINDS[kind][0](folder, **changes)
    trainer.eval_dataset = torch.utils.data.Subset(trainer.eval_dataset, range(4))  # as many for every process
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    trainer.save_model()
    metrics = trainer.evaluate()
    gathered = sorted({type(module).__name__ for module in trainer.model.modules() if isinstance(module, FSDPModule)})
    if trainer.is_world_process_zero():
        found = {"logs": logged(trainer), "metrics": metrics, "gathered": gathered}
        torch.save({**found, "is_deepspeed": trainer.is_deepspeed_enabled}, folder / "results.pt")


def results(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "results.pt", weights_only=True)


def assert_close(got: dict[str, float], expected: dict[str, float]) -> None:
    """
    All that is a property of the model, within 1e-5; `token_accuracy` is a mean over processes.

    Of gradients' norms 1e-3: at so high a learning rate they make much of how sums were rounded.
    """
    left_out = ("runtime", "per_second", "token_accuracy", "grad_norm")
    names = [name for name in expected if not name.endswith(left_out)]
    assert got.get("grad_norm", 0.0) == pytest.approx(expected.get("grad_norm", 0.0), rel=1e-3)
    assert [got[name] for name in names] == pytest.approx([expected[name] for name in names], rel=1e-5, abs=1e-5), names


def assert_same_results(got: dict[str, Any], expected: dict[str, Any], first_step: int = 0) -> None:
    """All that was logged after a step."""
    steps = [step for step in expected["logs"] if step > first_step]
    assert steps
    for step in steps:
        assert_close(got["logs"][step], expected["logs"][step])
    assert_close(got["metrics"], expected["metrics"])


def assert_close_tensors(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """All that are expected, as weights are after a few steps whose sums were rounded in another order."""
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-5, rtol=1e-4)


# ---- As in one process ----


# The others take longer, and less is a matter of several processes in them.
@pytest.mark.parametrize("kind", ["tokenizer", *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS)])
def test_two_processes_equal_one(kind: str, tmp_path: Path):
    run(kind, tmp_path / "one", per_device_train_batch_size=4, ema_decay=0.5)
    run_launched(lambda: run(kind, tmp_path / "two", per_device_train_batch_size=2, ema_decay=0.5), 2)
    assert_same_results(results(tmp_path / "two"), results(tmp_path / "one"))


SLOW_WHEN_SHARDED = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("tokenizer", "text-to-image")]


@pytest.mark.parametrize("kind", [*SLOW_WHEN_SHARDED, "understanding"])
def test_sharded_training_equals_one_process(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And what is saved is what a single process saves, weights of all sizes, code and configuration."""
    changes = {"ema_decay": 0.5, "activation_checkpointing": kind != "tokenizer", **GENERATING.get(kind, {})}
    run(kind, tmp_path / "one", per_device_train_batch_size=4, **changes)
    shard_on_cpus(monkeypatch)
    run_launched(lambda: run(kind, tmp_path / "two", per_device_train_batch_size=2, **changes), 2)
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert not one["gathered"]
    assert {name for name in two["gathered"] if name.endswith("Layer")} == LAYERS[kind]
    assert_same_results(two, one)
    loaded = KINDS[kind][1].from_pretrained(tmp_path / "two").state_dict()
    assert_close_tensors(loaded, load_file(tmp_path / "one" / "model.safetensors"))
    files = [
        sorted(str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*"))
        for name in ("one", "two")
    ]
    assert files[0] == files[1]
    assert (tmp_path / "one" / "config.json").read_text() == (tmp_path / "two" / "config.json").read_text()


def assert_same_adapters(got: Path, expected: Path) -> None:
    adapters = load_file(got / "adapter_model.safetensors")
    others = load_file(expected / "adapter_model.safetensors")
    assert adapters.keys() == others.keys()
    assert_close_tensors(adapters, others)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_sharded_adapters_equal_those_of_one_process(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(kind, tmp_path / "one", per_device_train_batch_size=4, lora_rank=2)
    shard_on_cpus(monkeypatch)
    run_launched(lambda: run(kind, tmp_path / "two", per_device_train_batch_size=2, lora_rank=2), 2)
    assert_same_results(results(tmp_path / "two"), results(tmp_path / "one"))
    assert_same_adapters(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_sharded_in_mixed_precision(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Losses are computed in full precision, and weights are kept in it."""
    shard_on_cpus(monkeypatch)
    run_launched(lambda: run(kind, tmp_path / "bf16", per_device_train_batch_size=4, max_steps=1, bf16=True), 2)
    run_launched(lambda: run(kind, tmp_path / "fp32", per_device_train_batch_size=4, max_steps=1), 2)
    loss, expected = (results(tmp_path / name)["logs"][1]["loss"] for name in ("bf16", "fp32"))
    assert loss == pytest.approx(expected, rel=0.02) and loss != expected
    assert loss != torch.tensor(loss).bfloat16().item()
    assert {tensor.dtype for tensor in load_file(tmp_path / "bf16" / "model.safetensors").values()} == {torch.float32}


@pytest.mark.slow
def test_finished_sharded_run_is_evaluated_and_saved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shard_on_cpus(monkeypatch)
    changes = {"ema_decay": 0.5, "save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    run_launched(lambda: run("text-to-image", tmp_path, **changes), 2)

    def again() -> None:
        trainer = generator(tmp_path, **changes)
        trainer.load_checkpoint(last_checkpoint(tmp_path))
        trainer.save_model(str(tmp_path / "again"))

    run_launched(again, 2)
    once, twice = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "again"))
    assert once.keys() == twice.keys() and all(torch.equal(once[name], twice[name]) for name in once)


# ---- Resumed in another number of processes ----


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize("counts", [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_with_the_same_data(
    counts: tuple[int, int], is_sharded: bool, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And with the same decisions about its steps."""
    changes = {"ema_decay": 0.5, "save_strategy": "steps", "save_steps": 2, **DECIDING.get(kind, {})}
    run(kind, tmp_path / "one", per_device_train_batch_size=4, **changes)
    if is_sharded:
        shard_on_cpus(monkeypatch)
    for count, steps in zip(counts, (2, STEPS), strict=True):
        options = {**changes, "per_device_train_batch_size": 4 // count, "max_steps": steps}
        run_launched(lambda options=options: run(kind, tmp_path / "parts", **options), count)
    assert_same_results(results(tmp_path / "parts"), results(tmp_path / "one"), first_step=2)


# ---- What can't be ----


@pytest.mark.parametrize(
    "make, changes, message",
    [
        (tokenizer, {"adaptive_adversarial_weight": True}, "adaptive_adversarial_weight needs a gradient"),
        (generator, {"muon": True}, "muon needs whole matrices"),
    ],
)
def test_settings_that_sharding_leaves_no_way_for(
    make: Callable[..., BaseTrainer], changes: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shard_on_cpus(monkeypatch)

    def refuse() -> None:
        with pytest.raises(ValueError, match=message):
            make(tmp_path, **changes)

    run_launched(refuse, 1)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"ema_decay": 0.9}, "ema_decay averages weights that DeepSpeed keeps to itself"),
        ({"muon": True}, "muon needs whole matrices"),
    ],
)
def test_settings_that_deepspeed_leaves_no_way_for(settings: dict, message: str, tmp_path: Path):
    check_settings(generators.tiny_arguments(tmp_path), is_fsdp=False, is_deepspeed=True)
    with pytest.raises(ValueError, match=message):
        check_settings(generators.tiny_arguments(tmp_path, **settings), is_fsdp=False, is_deepspeed=True)


def test_deepspeed_leaves_no_image_tokenizer_whole(tmp_path: Path):
    with pytest.raises(ValueError, match="divides and rounds the codebook"):
        check_tokenizer_settings(tokenizers.tiny_arguments(tmp_path), is_fsdp=False, is_deepspeed=True)
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    columns = {"image": tokenizers.gradient_pictures(4), "text": ["owl"] * 4}
    trainer = generator(tmp_path, rows=datasets.Dataset.from_dict(columns, features=features))
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match="encode pictures beforehand"):
        trainer._with_labels(next(iter(trainer.get_train_dataloader())))


@pytest.mark.parametrize(
    "options, message",
    [({"fsdp_version": 1}, "fsdp_version: 2; got fsdp_version: 1"), ({"cpu_ram_efficient_loading": True}, "be false")],
)
def test_ways_of_sharding_that_are_none(options: dict, message: str):
    plugin = SimpleNamespace(**{"fsdp_version": 2, "cpu_ram_efficient_loading": False, **options})
    with pytest.raises(ValueError, match=message):
        set_up_sharding(plugin, torch.nn.Linear(2, 2), [], torch.device("cpu"))
