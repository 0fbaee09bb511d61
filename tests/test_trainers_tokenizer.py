# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The tokenizer's trainer: resuming, accumulating, logging, averaging, freezing, saving."""

import json
import math
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_model
from tiny_training import EVERYTHING, gradient_pictures, picture_dataset, tiny_arguments, tiny_trainer
from torch.utils.data import ConcatDataset, Subset

from transformers_tokenflow import TokenFlowModel
from transformers_tokenflow.trainers import TokenFlowTrainer
from transformers_tokenflow.trainers.checkpoints import EXTRA_STATE_NAME
from transformers_tokenflow.trainers.objective import gradient_ratio
from transformers_tokenflow.trainers.pictures import log_picture
from transformers_tokenflow.trainers.recipe import last_checkpoint, run

SCRIPT = Path(__file__).with_name("tiny_training.py")
# What `accelerate launch` calls for several devices; on CPUs alone it starts one process, whatever it is told.
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def run_script(command: list[str]) -> subprocess.CompletedProcess:
    """Run tiny_training.py in another process, with this process's import path."""
    environment = {
        "PYTHONPATH": ":".join(sys.path),
        "PATH": "/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # by which sums are rounded
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)


def assert_same(got: Any, expected: Any):
    """Equality bit for bit of nested containers of tensors, arrays and numbers."""
    assert type(got) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected)
    elif isinstance(expected, np.ndarray):
        assert np.array_equal(got, expected)
    elif isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key in expected:
            assert_same(got[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    else:
        assert got == expected


def everything(trainer: Any) -> dict[str, Any]:
    """The state of a trainer and of the process's random generators."""
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "discriminator": trainer.adversary.discriminator.state_dict(),
        "discriminator_optimizer": trainer.adversary.optimizer.state_dict(),
        "averaged": trainer.averaged.state_dict(),
        "codes_used": trainer.codes_used,
        # Python's own generator serves nothing in training, but some imports draw from it.
        "generators": [np.random.get_state(), torch.random.get_rng_state()],
    }


def logged(trainer: Any, first_step: int = 0) -> list[dict[str, float]]:
    """What was logged of training, without timings."""
    return [entry for entry in trainer.state.log_history if "loss" in entry and entry["step"] > first_step]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Any:
    trainer = tiny_trainer(tmp_path_factory.mktemp("uninterrupted"), **EVERYTHING)
    trainer.train()
    trainer.final = everything(trainer)
    return trainer


@pytest.mark.timeout(2000)
def test_killed_run_resumes_bit_for_bit(uninterrupted, tmp_path):
    killed = run_script([sys.executable, str(SCRIPT), str(tmp_path), "13", json.dumps(EVERYTHING)])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    resumed = tiny_trainer(tmp_path, **EVERYTHING)
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert resumed.state.global_step == 20
    assert_same(everything(resumed), uninterrupted.final)
    assert_same(logged(resumed, 10), logged(uninterrupted, 10))
    assert (
        load_file(tmp_path / "checkpoint-20" / "model.safetensors").keys()
        == TokenFlowModel.from_pretrained(tmp_path / "checkpoint-20").state_dict().keys()
    )


def test_checkpoint_cut_off_while_written_is_passed_over(tmp_path):
    for step, is_complete in ((8, True), (10, True), (12, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if is_complete:
            (folder / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_every_loss_is_logged_by_name_from_its_start(uninterrupted):
    always = {
        "loss",
        "pixel_loss",
        "semantic_loss",
        "codebook_loss",
        "commitment_loss",
        "perceptual_loss",
        "entropy_loss",
    }
    adversarial = {"adversarial_loss", "discriminator_loss"}
    entries = logged(uninterrupted)
    assert len(entries) == 20
    for entry in entries:
        assert always | {"codebook_utilization", "grad_norm", "learning_rate"} <= entry.keys()
        assert (adversarial <= entry.keys()) == (entry["step"] > 3)
        assert (not adversarial & entry.keys()) == (entry["step"] <= 3)
        total = sum(entry[name] for name in always - {"loss"}) + 0.5 * entry.get("adversarial_loss", 0.0)
        assert entry["loss"] == pytest.approx(total, abs=1e-5)
        assert 0 < entry["codebook_utilization"] <= 1


def test_discriminator_waits_for_its_start(tmp_path):
    trainer = tiny_trainer(tmp_path, adversarial_weight=0.5, adversarial_start_step=2, max_steps=2)
    before = {name: tensor.clone() for name, tensor in trainer.adversary.discriminator.state_dict().items()}
    trainer.train()
    assert_same(dict(trainer.adversary.discriminator.state_dict()), before)
    trainer = tiny_trainer(tmp_path, adversarial_weight=0.5, adversarial_start_step=1, max_steps=2)
    trainer.train()
    after = trainer.adversary.discriminator.state_dict()
    # The last bias stays: while all patches lie between the hinges, real and fake ones pull at it alike.
    assert {name for name in after if torch.equal(after[name], before[name])} == {"layers.11.bias"}
    assert all(parameter.requires_grad for parameter in trainer.adversary.discriminator.parameters())


def test_codebook_utilization_is_the_share_of_entries_used(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=1)
    seen = []
    trainer.model.register_forward_hook(lambda model, inputs, output: seen.append(output.codes))
    trainer.train()
    assert logged(trainer)[0]["codebook_utilization"] == pytest.approx(len(seen[0].unique()) / 48)


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    common = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 3}
    large = tiny_trainer(tmp_path, per_device_train_batch_size=8, **common)
    small = tiny_trainer(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, **common)
    start = {name: tensor.clone() for name, tensor in large.model.state_dict().items()}
    large.train()
    small.train()
    for name, tensor in small.model.state_dict().items():
        torch.testing.assert_close(tensor, large.model.state_dict()[name], atol=1e-5, rtol=0)
    assert any((tensor - start[name]).abs().max() > 1e-3 for name, tensor in large.model.state_dict().items())
    for one, other in zip(logged(small), logged(large), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_only_the_model_is_saved(uninterrupted, tmp_path):
    for folder, internal in (
        (tmp_path / "model", False),
        (Path(uninterrupted.args.output_dir) / "checkpoint-10", True),
    ):
        if not internal:
            uninterrupted.save_model(str(folder))
        assert load_file(folder / "model.safetensors").keys() == uninterrupted.model.state_dict().keys()
        assert (folder / "preprocessor_config.json").is_file()
        assert (folder / EXTRA_STATE_NAME).is_file() == internal
    assert not any("teacher" in name or "discriminator" in name for name in uninterrupted.model.state_dict())
    state = torch.load(Path(uninterrupted.args.output_dir) / "checkpoint-20" / EXTRA_STATE_NAME, weights_only=True)
    assert state.keys() == {"codes_used", "discriminator", "discriminator_optimizer", "averaged"}


def test_averaged_weights_are_evaluated_and_saved_and_checkpoints_hold_the_raw_ones(uninterrupted, tmp_path):
    raw = {name: tensor.clone() for name, tensor in uninterrupted.model.state_dict().items()}
    averaged = uninterrupted.averaged.module.state_dict()
    assert any(not torch.equal(raw[name], averaged[name]) for name in raw)
    uninterrupted.save_model(str(tmp_path / "model"))
    assert_same(load_file(tmp_path / "model" / "model.safetensors"), dict(averaged))
    uninterrupted.save_model(_internal_call=True)  # as `push_to_hub` does
    output = Path(uninterrupted.args.output_dir)
    assert_same(load_file(output / "model.safetensors"), dict(averaged))
    assert_same(load_file(output / "checkpoint-20" / "model.safetensors"), raw)
    assert_same(dict(uninterrupted.model.state_dict()), raw)

    metrics = uninterrupted.evaluate()
    with torch.no_grad():
        pictures = torch.stack([item["pixel_values"] for item in uninterrupted.eval_dataset])
        output = uninterrupted.averaged.module.eval()(pictures, return_loss=True)
    assert metrics["eval_pixel_loss"] == pytest.approx(output.pixel_loss.item(), rel=1e-4)


def test_average_is_exponential(tmp_path):
    trainer = tiny_trainer(tmp_path, ema_decay=0.9, max_steps=3)
    steps: list[torch.Tensor] = []
    update = trainer.averaged.update_parameters
    trainer.averaged.update_parameters = lambda model: (
        steps.append(model.quantizer.codebook.pixel.detach().clone()),
        update(model),
    )
    trainer.train()
    expected = 0.9 * (0.9 * steps[0] + 0.1 * steps[1]) + 0.1 * steps[2]
    torch.testing.assert_close(trainer.averaged.module.quantizer.codebook.pixel.detach(), expected)


def test_raw_weights_return_when_saving_fails(tmp_path):
    trainer = tiny_trainer(tmp_path, ema_decay=0.5, max_steps=2)
    trainer.train()
    raw = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(OSError, match="disk full"), trainer.averaged_weights():
        raise OSError("disk full")
    assert_same(dict(trainer.model.state_dict()), raw)


def test_best_model_brings_its_averaged_weights(tmp_path):
    trainer = tiny_trainer(
        tmp_path,
        ema_decay=0.5,
        max_steps=3,
        learning_rate=0.1,  # gets worse and worse
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="psnr",
        greater_is_better=True,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    history = {e["step"]: e["eval_psnr"] for e in trainer.state.log_history if "eval_psnr" in e}
    assert best == str(tmp_path / f"checkpoint-{max(history, key=history.get)}")
    assert trainer.evaluate()["eval_psnr"] == pytest.approx(max(history.values()), abs=1e-5)
    run(trainer)  # there is nothing left to train: what is saved is still the best
    assert trainer.evaluate()["eval_psnr"] == pytest.approx(max(history.values()), abs=1e-5)
    kept = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True}
    with pytest.raises(ValueError, match="needs the averaged weights"):
        tiny_arguments(tmp_path, ema_decay=0.5, save_only_model=True, **kept)


def test_decoder_only_mode_trains_only_the_decoder(tmp_path):
    trainer = tiny_trainer(
        tmp_path, trainable_parts=["pixel_decoder"], adversarial_weight=0.5, adversarial_start_step=0
    )
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith("pixel_decoder."), name


def test_semantic_decoder_rests_without_a_teacher(tmp_path):
    trainer = tiny_trainer(tmp_path, teacher=None, max_steps=1)
    trainer.train()
    assert not any(parameter.requires_grad for parameter in trainer.model.semantic_decoder.parameters())
    assert "semantic_loss" not in logged(trainer)[0]


def test_discriminator_of_an_earlier_run_is_taken_over(uninterrupted, tmp_path):
    source = Path(uninterrupted.args.output_dir) / "checkpoint-20"
    trainer = tiny_trainer(tmp_path, adversarial_weight=0.5, discriminator_from=str(source))
    assert_same(
        dict(trainer.adversary.discriminator.state_dict()), dict(uninterrupted.adversary.discriminator.state_dict())
    )
    with pytest.raises(ValueError, match="no full checkpoint"):
        tiny_trainer(tmp_path, adversarial_weight=0.5, discriminator_from=str(tmp_path))


@pytest.mark.parametrize(
    "rates",
    [
        {"semantic_encoder": 1e-5, "semantic_encoder.projection": 2e-4},
        '{"semantic_encoder": 1e-5, "semantic_encoder.projection": 2e-4}',
    ],
)
def test_parts_have_their_own_learning_rates(tmp_path, rates):
    trainer = tiny_trainer(tmp_path, part_learning_rates=rates, weight_decay=0.1)
    optimizer = trainer.create_optimizer()
    rate_of = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    trainable = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(rate_of) == len(trainable)
    for name, parameter in trainable.items():
        rate, decay = rate_of[id(parameter)]
        expected = 1e-5 if name.startswith("semantic_encoder") else 1e-3
        assert rate == (2e-4 if name.startswith("semantic_encoder.projection") else expected)
        assert not (decay and name.endswith("bias"))
    assert rate_of[id(trainer.model.pixel_decoder.conv_out.weight)] == (1e-3, 0.1)


def test_optimizer_of_ones_own(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.optimizer_cls_and_kwargs = (torch.optim.SGD, {"lr": 0.5, "momentum": 0.9})
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.SGD
    assert {(group["lr"], group["momentum"]) for group in optimizer.param_groups} == {(0.5, 0.9)}
    trainer = tiny_trainer(tmp_path, muon=True)
    trainer.optimizer_cls_and_kwargs = (torch.optim.SGD, {"lr": 0.5})
    with pytest.raises(ValueError, match="both choose the optimizer"):
        trainer.create_optimizer()


@pytest.mark.parametrize(
    "optimizer",
    [
        (torch.optim.SGD, {"params": []}),  # as GaLore
        (torch.optim.SGD, {"model": None}),  # as LOMO
        (torch.optim.SGD, {"optimizer_dict": {}}),  # as layer-wise ones
        (lambda: lambda model: None, {}),
    ],
)
def test_optimizers_that_choose_parameters_by_themselves(tmp_path, optimizer):
    trainer = tiny_trainer(tmp_path)
    trainer.get_optimizer_cls_and_kwargs = lambda *args: optimizer
    with pytest.raises(ValueError, match="chooses its parameters itself"):
        trainer.create_optimizer()


def test_scale_dropout_spares_the_first_scale_and_the_grid(tmp_path):
    trainer = tiny_trainer(tmp_path, scale_dropout=1.0)
    draws = random.Random(0)
    drawn = [tuple(trainer.sample_scales(draws)) for _ in range(40)]
    assert set(drawn) == {(1, 4), (1, 2)}
    output = trainer.model.train()(torch.zeros(1, 3, 32, 32), scales=[1, 2])
    assert output.quantized.shape[-1] == 4 and output.codes.shape[1] == 5
    trainer.args.scale_dropout = 0.25
    share = sum(trainer.sample_scales(draws) is not None for _ in range(400)) / 400
    assert 0.15 < share < 0.35
    trainer.args.scale_dropout = 1.0
    trainer.model.config.scales = [4]
    assert trainer.sample_scales(draws) is None


def test_adaptive_weight_is_the_ratio_of_gradients(tmp_path):
    layer = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    ratio = gradient_ratio((3 * layer).sum(), (layer * torch.tensor([0.6, 0.8])).sum(), layer)
    assert ratio.item() == pytest.approx(3 * math.sqrt(2) / (1 + 1e-4))
    assert not ratio.requires_grad
    trainer = tiny_trainer(
        tmp_path, adversarial_weight=0.5, adversarial_start_step=0, adaptive_adversarial_weight=True, max_steps=2
    )
    trainer.train()
    assert all(math.isfinite(entry["grad_norm"]) for entry in logged(trainer))


def test_discriminator_survives_pictures_that_are_not_finite(tmp_path):
    adversary = tiny_trainer(tmp_path, adversarial_weight=0.5).adversary
    before = [parameter.detach().clone() for parameter in adversary.discriminator.parameters()]
    adversary.backward(torch.zeros(2, 3, 32, 32), torch.full((2, 3, 32, 32), torch.nan), 1.0)
    adversary.step(max_grad_norm=1.0)
    assert_same([parameter.detach() for parameter in adversary.discriminator.parameters()], before)
    adversary.backward(torch.zeros(2, 3, 32, 32), torch.rand(2, 3, 32, 32), 1.0)
    adversary.step(max_grad_norm=0.0)
    assert not torch.equal(next(adversary.discriminator.parameters()), before[0])


def test_evaluation_weighs_every_picture_alike(tmp_path):
    datasets = {"one": picture_dataset(5, train=False, seed=1), "two": picture_dataset(3, train=False, seed=2)}
    trainer = tiny_trainer(tmp_path, per_device_eval_batch_size=2, perceptual_loss="teacher")
    trainer.eval_dataset = datasets
    metrics = trainer.evaluate()
    for name, dataset in datasets.items():
        pictures = torch.stack([item["pixel_values"] for item in dataset])
        with torch.no_grad():
            output = trainer.model.eval()(pictures, return_loss=True)
        difference = (output.pixel_values.clamp(-1, 1) - pictures) / 2
        ratios = 10 * torch.log10(1 / difference.square().mean(dim=(1, 2, 3)))
        assert metrics[f"eval_{name}_psnr"] == pytest.approx(ratios.mean().item(), abs=1e-4)
        assert metrics[f"eval_{name}_pixel_loss"] == pytest.approx(output.pixel_loss.item(), rel=1e-4)
        assert metrics[f"eval_{name}_codebook_utilization"] == pytest.approx(len(output.codes.unique()) / 48)
        assert {f"eval_{name}_{part}_loss" for part in ("semantic", "codebook", "perceptual")} <= metrics.keys()
        assert (tmp_path / "pictures" / f"eval_{name}_reconstruction-0.png").is_file()


def test_evaluation_before_training_brings_the_model_to_the_device(tmp_path):
    """FSDP leaves it on the CPU until it shards."""
    trainer, moved = tiny_trainer(tmp_path), []
    trainer.is_fsdp_enabled, trainer.model.to = True, moved.append
    assert not trainer._evaluated_model().training and moved == [trainer.args.device]


def test_reconstructions_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = tiny_trainer(tmp_path, report_to="tensorboard", eval_strategy="steps", eval_steps=2, max_steps=2)
    trainer.train()
    folders = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    tags = [EventAccumulator(str(folder)).Reload().Tags() for folder in folders]
    assert "eval_reconstruction" in [tag for entry in tags for tag in entry["images"]]
    assert {"train/pixel_loss", "train/codebook_utilization"} <= {tag for entry in tags for tag in entry["scalars"]}
    assert (tmp_path / "pictures" / "eval_reconstruction-2.png").is_file()


@pytest.mark.parametrize("library", ["_wandb", "_trackio"])
def test_reconstructions_reach_other_trackers(tmp_path, library):
    sent = []
    tracker = SimpleNamespace(Image=lambda path: Path(path).read_bytes(), log=sent.append)
    callbacks = [SimpleNamespace(**{library: tracker}, _initialized=is_ready) for is_ready in (False, True)]
    log_picture("eval", torch.zeros(3, 4, 4), 7, tmp_path, callbacks)
    assert sent == [{"eval": (tmp_path / "eval-7.png").read_bytes(), "train/global_step": 7}]


def test_rows_of_pictures_are_taken_as_they_come(tmp_path):
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": gradient_pictures(4)}, features=features)
    stream = rows.to_iterable_dataset()
    made = rows.with_transform(lambda batch: {"pixel_values": [torch.zeros(3, 32, 32) for _ in batch["image"]]})
    turned = rows.with_transform(lambda batch: {"image": [picture.rotate(90) for picture in batch["image"]]})
    for name, train_dataset in {"rows": rows, "stream": stream, "made": made, "turned": turned}.items():
        args = tiny_arguments(tmp_path / name, max_steps=1)
        trainer = TokenFlowTrainer(
            tiny_model("clip"), args, train_dataset=train_dataset, eval_dataset={"some": rows, "others": stream}
        )
        trainer.train()
        metrics = trainer.evaluate()
        assert metrics["eval_some_psnr"] == pytest.approx(metrics["eval_others_psnr"])
        assert trainer.evaluate(turned)["eval_psnr"] > 0
    assert trainer.train_dataset.transform.train and not trainer.eval_dataset["some"].transform.train


def test_parts_of_datasets_are_told_the_epoch(tmp_path):
    parts = [picture_dataset(4, seed=seed) for seed in range(3)]
    trainer = tiny_trainer(tmp_path, num_train_epochs=2, max_steps=-1)
    trainer.train_dataset = ConcatDataset([Subset(ConcatDataset(parts[:2]), [0, 5]), parts[2]])
    trainer.train()
    assert [part.generator(0).random() for part in parts] == [random.Random("0-1-0").random()] * 3


def test_training_lowers_the_loss(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=30, learning_rate=3e-3, per_device_train_batch_size=8)
    trainer.train()
    losses = [entry["loss"] for entry in logged(trainer)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_bf16_trains_with_the_discriminator_in_full_precision(tmp_path):
    changes = {**EVERYTHING, "max_steps": 5, "save_strategy": "no", "bf16": True, "adaptive_adversarial_weight": True}
    trainer = tiny_trainer(tmp_path, **changes)
    dtypes = set()
    trainer.adversary.discriminator.layers[0].register_forward_hook(
        lambda module, given, output: dtypes.add(output.dtype)
    )
    trainer.train()
    assert dtypes == {torch.float32}
    assert all(math.isfinite(value) for entry in logged(trainer) for value in entry.values())
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert math.isfinite(trainer.evaluate()["eval_psnr"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"trainable_parts": ["decoder"]}, "no parameters begin with decoder; the model's parts are pixel_decoder"),
        ({"trainable_parts": "decoder"}, "no parameters begin with decoder; the model's parts are pixel_decoder"),
        ({"trainable_parts": []}, "nothing would be trained"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1; got 0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1; got 0"),
        ({"part_learning_rates": {"semantic": 1.0, "vision": 1.0}}, "no parameters begin with vision"),
        ({"part_learning_rates": "semantic_encoder"}, "must map prefixes to rates"),
        ({"perceptual_loss": "vgg"}, "unknown perceptual loss 'vgg'"),
        ({"perceptual_loss": "teacher", "teacher": None}, "needs a teacher"),
        ({"scale_dropout": 1.5}, r"scale_dropout must lie in \[0, 1\]; got 1.5"),
        ({"ema_decay": -1.0}, "ema_decay"),
        ({"codebook_initialization": "zeros"}, "'random' or 'kmeans'; got 'zeros'"),
        ({"adaptive_adversarial_weight": True, "trainable_parts": ["pixel_encoder"]}, "is frozen"),
        ({"label_smoothing_factor": 0.1}, "of its own, without label_smoothing_factor"),
        ({"bf16_full_eval": True}, "of its own, without bf16_full_eval"),
        ({"prediction_loss_only": True}, "of its own, without prediction_loss_only"),
        ({"batch_eval_metrics": True}, "of its own, without batch_eval_metrics"),
        ({"neftune_noise_alpha": 5.0}, "of its own, without neftune_noise_alpha"),
    ],
)
def test_bad_settings_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_trainer(tmp_path, **changes)


@pytest.mark.parametrize("name", ["compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"])
def test_what_would_be_ignored_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"of its own, without {name}"):
        TokenFlowTrainer(tiny_model("clip"), tiny_arguments(tmp_path), **{name: len})


def test_checkpoint_without_our_state_is_refused(tmp_path):
    trainer = tiny_trainer(tmp_path, save_strategy="steps", save_steps=2, save_only_model=True)
    trainer.train()
    with pytest.raises(ValueError, match="no full checkpoint"):
        trainer.load_checkpoint(last_checkpoint(tmp_path))


def test_checkpoint_of_another_model_is_refused(tmp_path):
    tiny_trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    other = tiny_trainer(tmp_path, model=tiny_model("clip", codebook_size=64))
    for load in (other.load_checkpoint, other.train):
        with pytest.raises(ValueError, match=r"checkpoint-4 comes from .* other settings \(codebook_size\)"):
            load(last_checkpoint(tmp_path))


def test_several_gpus_in_one_process_are_refused(tmp_path, monkeypatch):
    from transformers_tokenflow.trainers import TokenFlowTrainingArguments

    monkeypatch.setattr(TokenFlowTrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="accelerate launch"):
        tiny_arguments(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_two_processes_equal_one(tmp_path):
    changes = {
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_steps": 4,
        "ema_decay": 0.5,
        "save_strategy": "steps",
        "save_steps": 4,
    }
    finished = run_script(
        [*LAUNCH, str(SCRIPT), str(tmp_path / "two"), "-1", json.dumps({"per_device_train_batch_size": 2, **changes})]
    )
    assert finished.returncode == 0, finished.stderr
    one = tiny_trainer(tmp_path / "one", per_device_train_batch_size=4, **changes)
    one.train()
    state = json.loads((tmp_path / "two" / "checkpoint-4" / "trainer_state.json").read_text())
    for entry, expected in zip([e for e in state["log_history"] if "loss" in e], logged(one), strict=True):
        for name in ("loss", "pixel_loss", "semantic_loss", "codebook_loss", "codebook_utilization"):
            assert entry[name] == pytest.approx(expected[name], abs=1e-5), name
    two = load_file(tmp_path / "two" / "model.safetensors")
    for name, tensor in one.averaged.module.state_dict().items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_two_processes_train_with_everything_and_resume(tmp_path):
    changes = {**EVERYTHING, "max_steps": 8, "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
    for output, kill_at in (("whole", -1), ("parts", 6), ("parts", -1)):
        finished = run_script([*LAUNCH, str(SCRIPT), str(tmp_path / output), str(kill_at), json.dumps(changes)])
        assert (finished.returncode == 0) == (kill_at < 0), finished.stderr
    assert (tmp_path / "parts" / "checkpoint-4" / "rng_state_1.pth").is_file()  # two processes it was
    for name in ("checkpoint-8/model.safetensors", "model.safetensors"):
        assert_same(load_file(tmp_path / "parts" / name), load_file(tmp_path / "whole" / name))
    states = [
        torch.load(tmp_path / output / "checkpoint-8" / EXTRA_STATE_NAME, weights_only=True)
        for output in ("parts", "whole")
    ]
    assert_same(*states)
