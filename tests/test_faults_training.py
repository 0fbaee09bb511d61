# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Training that is killed, runs out of disk, or stops making sense: the last whole checkpoint is one to go on from."""

import math
import pickle
import random
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_text_to_image_training as generators
import tiny_training as tokenizers
import torch
from faults import SEEDS, fork, kill_after, needs_fork, small_disk, wait
from safetensors.torch import load_file
from test_cli import fail
from test_trainers_tokenizer import assert_same
from transformers import TrainerCallback
from transformers.trainer_pt_utils import safe_globals

from transformers_tokenflow.trainers import recipe as recipes
from transformers_tokenflow.trainers.base import BaseTrainer
from transformers_tokenflow.trainers.checkpoints import last_checkpoint

STEPS = 6
SAVING: dict[str, Any] = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, "ema_decay": 0.9}
TOKENIZER = {**tokenizers.EVERYTHING, **SAVING, "codebook_restart_steps": 2, "adversarial_start_step": 1}
MAKERS: dict[str, Callable[..., BaseTrainer]] = {
    "tokenizer": lambda folder, **changes: tokenizers.tiny_trainer(folder, **{**TOKENIZER, **changes}),
    "text-to-image": lambda folder, **changes: generators.tiny_trainer(folder, **{**SAVING, **changes}),
}
FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "tokenflow_trainer.pt")


def train(kind: str, folder: Path, **changes: Any) -> None:
    """Train to the end, from the last checkpoint if there is one."""
    MAKERS[kind](folder, **changes).train(resume_from_checkpoint=last_checkpoint(folder))


def content(checkpoint: Path) -> dict[str, Any]:
    """All that training goes on from."""
    with safe_globals():
        state = {name: torch.load(checkpoint / name, weights_only=True) for name in FILES}
    # Python's own generator serves nothing in training, but some imports draw from it.
    state["rng_state.pth"].pop("python")
    return {**state, "weights": load_file(checkpoint / "model.safetensors")}


@pytest.fixture(scope="module", params=MAKERS)
def undisturbed(request, tmp_path_factory) -> SimpleNamespace:
    """A run that nothing happened to, how long it took, and how many bytes one of its checkpoints has."""
    folder = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    train(request.param, folder)
    seconds = time.monotonic() - started
    last = folder / f"checkpoint-{STEPS}"
    size = sum(path.stat().st_size for path in last.iterdir())
    return SimpleNamespace(kind=request.param, seconds=seconds, content=content(last), size=size)


@needs_fork
@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_any_moment(seed: int, undisturbed: SimpleNamespace, tmp_path: Path):
    moments = random.Random(seed)
    for _ in range(2):
        kill_after(lambda: train(undisturbed.kind, tmp_path), moments.uniform(0, undisturbed.seconds))
    assert wait(fork(lambda: train(undisturbed.kind, tmp_path))) == 0
    assert_same(content(tmp_path / f"checkpoint-{STEPS}"), undisturbed.content)


def test_full_disk(undisturbed: SimpleNamespace, tmp_path: Path):
    """What can't be written whole is removed, so that there may be room for what follows."""
    with small_disk(tmp_path / "disk", int(2.5 * undisturbed.size)) as enlarge:
        with pytest.raises(OSError, match="checkpoint-3 can't be written: "):
            train(undisturbed.kind, tmp_path / "disk")
        assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["checkpoint-1", "checkpoint-2"]
        enlarge(10 * undisturbed.size)
        train(undisturbed.kind, tmp_path / "disk")
        assert_same(content(tmp_path / "disk" / f"checkpoint-{STEPS}"), undisturbed.content)


def test_a_checkpoint_outlives_what_fails_after_it(tmp_path: Path):
    """Such as a push to the Hub while the network is down."""
    trainer = MAKERS["tokenizer"](tmp_path)
    trainer.args.push_to_hub = True

    def push(folder: str) -> None:
        raise OSError("no network")

    trainer._push_from_checkpoint = push
    with pytest.raises(OSError, match="^no network$"):
        trainer.train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


class Spoil(TrainerCallback):
    """Makes a parameter's gradient no number at one step."""

    def __init__(self, parameter: torch.nn.Parameter, step: int):
        self.parameter, self.step = parameter, step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            self.parameter.grad.view(-1)[0] = math.nan


def test_a_gradient_that_is_no_number(undisturbed: SimpleNamespace, tmp_path: Path):
    """Weights are looked at before they are saved."""
    trainer = MAKERS[undisturbed.kind](tmp_path)
    name, parameter = next(item for item in trainer.model.named_parameters() if item[1].requires_grad)
    trainer.add_callback(Spoil(parameter, step=3))
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    assert f"weights are no finite numbers at step 3 ({name}" in str(caught.value)
    assert str(tmp_path / "checkpoint-2") in str(caught.value)
    assert not (tmp_path / "checkpoint-3" / "model.safetensors").exists()
    with pytest.raises(FloatingPointError):
        trainer.save_model(str(tmp_path / "model"))
    train(undisturbed.kind, tmp_path)
    assert_same(content(tmp_path / f"checkpoint-{STEPS}"), undisturbed.content)


def test_a_loss_that_becomes_nan_is_named(tmp_path: Path):
    trainer = MAKERS["tokenizer"](tmp_path)
    losses, calls = trainer.objective.losses, []

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        parts, output = losses(*args, **kwargs)
        calls.append(trainer.state.global_step)
        return ({**parts, "semantic_loss": parts["semantic_loss"] * math.nan} if len(calls) == 6 else parts), output

    trainer.objective.losses = spoilt
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    assert str(caught.value).startswith("the loss is nan at step 2 (semantic_loss). The last checkpoint: ")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2") and str(tmp_path / "checkpoint-2") in str(
        caught.value
    )


def test_an_infinite_loss_before_any_checkpoint(tmp_path: Path):
    trainer = MAKERS["text-to-image"](tmp_path)
    with torch.no_grad():
        trainer.model.visual_head.weight.fill_(math.inf)
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step 0. The last checkpoint: none"):
        trainer.train()


@pytest.mark.parametrize(("scale", "ends"), [(65536.0, False), (1.0, False), (0.5, True)])
def test_fp16_may_overflow_until_its_scale_is_not_the_reason(scale: float, ends: bool, tmp_path: Path):
    trainer = MAKERS["text-to-image"](tmp_path)
    trainer.accelerator.scaler = SimpleNamespace(get_scale=lambda: scale, scale=lambda loss: loss)
    trainer.current_gradient_accumulation_steps = 1
    with torch.no_grad():
        trainer.model.visual_head.weight.fill_(math.inf)
    (batch, *_) = trainer.get_train_dataloader()
    if ends:
        with pytest.raises(FloatingPointError):
            trainer.training_step(trainer.model, batch)
    else:
        assert not trainer.training_step(trainer.model, batch).isfinite()


def test_the_command_line_says_it_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{model: {}, data: {}, training: {}}")

    def diverge(recipe: dict) -> None:
        raise FloatingPointError("the loss is nan at step 7")

    monkeypatch.setattr(recipes, "train", diverge)
    assert fail("train", recipe) == "error: training has ended: the loss is nan at step 7"


class StartAnother(TrainerCallback):
    """Trains into the same folder, as a second process would."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_step_begin(self, args, state, control, **kwargs):
        with pytest.raises(BlockingIOError, match=f"another process is writing {self.folder}"):
            train("text-to-image", self.folder)


def test_two_runs_into_one_folder(tmp_path: Path):
    trainer = MAKERS["text-to-image"](tmp_path, max_steps=1, save_strategy="no")
    trainer.add_callback(StartAnother(tmp_path))
    trainer.train()
    assert not list(tmp_path.iterdir())


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """A run of the generator with two checkpoints."""
    train("text-to-image", tmp_path, max_steps=2)
    return tmp_path


def test_true_resumes_from_what_is_whole(checkpoints: Path):
    (checkpoints / "checkpoint-2" / "trainer_state.json").write_text('{"global_step": ')
    (checkpoints / "checkpoint-3").mkdir()
    assert last_checkpoint(checkpoints) == str(checkpoints / "checkpoint-1")
    trainer = MAKERS["text-to-image"](checkpoints, max_steps=2)
    trainer.train(resume_from_checkpoint=True)
    assert last_checkpoint(checkpoints) == str(checkpoints / "checkpoint-2")
    with pytest.raises(ValueError, match="No valid checkpoint"):
        MAKERS["text-to-image"](checkpoints / "empty").train(resume_from_checkpoint=True)


def test_a_checkpoint_that_is_written_again_is_not_whole_meanwhile(checkpoints: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = MAKERS["text-to-image"](checkpoints, max_steps=2)

    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_save_scaler", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=str(checkpoints / "checkpoint-1"))
    assert last_checkpoint(checkpoints) == str(checkpoints / "checkpoint-1")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "tokenflow_trainer.pt"])
def test_damaged_checkpoints_are_named(name: str, checkpoints: Path):
    path = checkpoints / "checkpoint-2" / name
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(OSError, match=r"checkpoint-2\S* can't be loaded"):
        train("text-to-image", checkpoints)


def test_code_in_a_checkpoint_is_not_run(checkpoints: Path):
    class Malicious:
        def __reduce__(self):
            return (checkpoints.joinpath("ran").touch, ())

    for name in FILES:
        (checkpoints / "checkpoint-2" / name).write_bytes(pickle.dumps(Malicious()))
    with pytest.raises((OSError, pickle.UnpicklingError)):
        train("text-to-image", checkpoints)
    assert not (checkpoints / "ran").exists()
