# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What the package's trainers share: averaged weights, whole checkpoints with a state of their own, logs by name."""

import random
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import nn
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput
from transformers.utils import logging

from ..commands import one_line
from ..locks import sole_writer
from .arguments import CommonTrainingArguments
from .averaging import AveragedWeights
from .checkpoints import (
    EXTRA_STATE_NAME,
    check_configuration,
    damage_named,
    is_whole,
    last_checkpoint,
    read_extra_state,
)
from .data import seeded_datasets
from .optimizers import MuonWithAdamW, layer_matrices
from .parameters import check_prefixes, not_finite, parameter_groups, trained_parameters
from .sharding import check_settings, own_class, reshard, saved_whole, set_up_sharding
from .stream_trainer import StreamTrainer

logger = logging.get_logger(__name__)

# How often in the steps between two logs more than the loss is measured, which takes time of its own.
MEASUREMENTS_PER_LOG = 10
# What Trainer takes, and the package's trainers, with losses and evaluations of their own, would ignore.
REFUSED_ARGUMENTS = ("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics")

# Options of Trainer's optimizers that take no groups of parameters: GaLore and APOLLO, LOMO, layer-wise ones.
OWN_PARAMETERS = {"params", "model", "optimizer_dict"}


class _StepCallback(TrainerCallback):
    """What happens around the optimizer's step, which Trainer offers no method for."""

    def __init__(self, trainer: "BaseTrainer") -> None:
        self.trainer = trainer
        self.has_begun = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.start_averaging()
        if state.global_step == 0 and not self.has_begun:
            self.trainer.before_first_step()
        self.has_begun = True

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # accelerate does not tell the dataset in distributed runs, nor after it skipped batches to resume.
        for dataset in seeded_datasets(self.trainer.train_dataset):
            dataset.set_epoch(int(state.epoch))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.after_optimizer_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.batches_of_step = 0
        if self.trainer.progress is not None:
            state.epoch = state.global_step / state.max_steps  # where Trainer counts from 0 when a stream is resumed


class BaseTrainer(StreamTrainer):
    """
    A Trainer with averaged weights, learning rates by part, means logged by name, and more state in its checkpoints.

    A loss or weights that are no numbers end the training, so that the last checkpoint is one to go on from. `evaluate`
    and `predict` measure and keep no predictions.

    Args:
        model: what is trained.
        args: [`CommonTrainingArguments`], or arguments derived from them.
        kwargs: of `transformers.Trainer`, but for losses and metrics.

    Raises:
        ValueError: a setting names a part that the model does not have, or would be ignored.
    """

    optimizer: Any

    # Settings that would be ignored, or mean something else.
    refused_settings: tuple[str, ...] = (
        "bf16_full_eval",
        "fp16_full_eval",
        "prediction_loss_only",
        "batch_eval_metrics",
    )

    def __init__(self, model: nn.Module, args: CommonTrainingArguments, **kwargs: Any) -> None:
        refused = [name for name in REFUSED_ARGUMENTS if kwargs.get(name) is not None]
        if refused := refused + [name for name in self.refused_settings if getattr(args, name)]:
            raise ValueError(f"{type(self).__name__} has a loss and metrics of its own, without {', '.join(refused)}")
        if kwargs.get("optimizers", (None, None))[0] is not None and (args.muon or args.part_learning_rates):
            raise ValueError("an optimizer that is given has its parameters: leave muon and part_learning_rates out")
        check_prefixes(model, args.part_learning_rates or ())
        super().__init__(model=model, args=args, **kwargs)
        check_settings(args, self.is_fsdp_enabled, self.is_deepspeed_enabled)
        self.averaged: AveragedWeights | None = None
        if self.is_fsdp_enabled:
            set_up_sharding(self.accelerator.state.fsdp_plugin, self.model, self.replicated_modules(), args.device)
        else:
            self.start_averaging()
        self._log_sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=args.device))
        self._log_counts: dict[str, int] = defaultdict(int)
        # What the loss of the current step is made of, by name, where there is more than one part.
        self.loss_parts: Mapping[str, torch.Tensor] = {}
        self.batches_of_step = 0  # how many the current step has accumulated
        self.add_callback(_StepCallback(self))

    # ---- Hooks ----

    def before_first_step(self) -> None:
        """Called once, when training begins and is not resumed; not when `train` is called again."""

    def after_optimizer_step(self) -> None:
        """Called after each step of the optimizer, before it is counted."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.averaged_part())

    def start_averaging(self) -> None:
        """Make the averaged weights, if there are to be any; of weights that will be sharded, once they are."""
        if self.averaged is None and self.args.ema_decay > 0:
            self.averaged = AveragedWeights(self.averaged_part(), self.args.ema_decay)

    def averaged_part(self) -> nn.Module:
        """What the averaged weights are an average of: trained parameters, since frozen ones cost memory and time."""
        return trained_parameters(self.accelerator.unwrap_model(self.model))

    def replicated_modules(self) -> list[nn.Module]:
        """Modules of the model that every process holds whole where FSDP shards the rest."""
        return []

    def is_generating(self) -> bool:
        """Whether this process generates what is logged: the main one, but of divided weights all have a part."""
        return self.is_world_process_zero() or self.is_fsdp_enabled or self.is_deepspeed_enabled

    # ---- A step ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """As Trainer's, but a FloatingPointError where the loss is no number."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.batches_of_step += 1
        if not (loss.isfinite() or self._is_overflow()):
            self._fail(f"the loss is {loss.item()}", not_finite(self.loss_parts.items()))
        return loss

    def draws_of_step(self) -> random.Random:
        """
        What is to be decided alike by all processes, and by a run that is resumed: of the seed, the step and its batch.

        Each process's own generator is kept by its number, which another number of processes has not.
        """
        return random.Random(f"{self.args.seed}-{self.state.global_step}-{self.batches_of_step}")

    def _part_of_step(self, total: torch.Tensor, num_items: torch.Tensor | int) -> torch.Tensor:
        """What a batch whose losses are summed up adds to the mean over a step's items, on however many devices."""
        # Every device's loss is divided by the items of all, and their gradients are averaged afterwards.
        devices = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return devices * total / torch.as_tensor(num_items).clamp(min=1)

    def _is_overflow(self) -> bool:
        """Whether fp16's scaler will skip the step and halve its scale: not for ever, if it is the scale's fault."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= 1

    def _check_weights(self) -> None:
        names = not_finite(self.model.named_parameters())
        if self.is_fsdp_enabled:
            names = sorted(set(gather_object(names)))  # of everybody's shards
        if names:
            self._fail("weights are no finite numbers", names)

    def _fail(self, what: str, names: list[str]) -> None:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        where = f" ({', '.join(names[:3])}{more})" if names else ""
        last = last_checkpoint(self.args.output_dir) or "none"
        raise FloatingPointError(
            f"{what} at step {self.state.global_step}{where}. The last checkpoint: {last}. A smaller learning rate, or "
            "bf16 in place of fp16, may go on from there"
        )

    # ---- Optimizer and logs ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """
        The optimizer that the arguments name, with a learning rate per part.

        Raises:
            ValueError: it is none that takes groups of parameters, or two are named.
        """
        if self.optimizer is not None:
            return self.optimizer
        args, optimized = self.args, self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(optimized))
        given = self.optimizer_cls_and_kwargs
        if given and args.muon:
            raise ValueError("muon and optimizer_cls_and_kwargs both choose the optimizer: pass one of them")
        optimizer_class, options = given or self.get_optimizer_cls_and_kwargs(args, optimized)
        is_factory = not (isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer))
        if is_factory or OWN_PARAMETERS & options.keys():
            raise ValueError(f"{optimizer_class} chooses its parameters itself: take one that is given groups of them")
        rate = options.get("lr", args.learning_rate)
        whole = self.replicated_modules() if self.is_fsdp_enabled else []
        apart = {parameter for module in whole for parameter in module.parameters()}
        groups = parameter_groups(optimized, rate, args.part_learning_rates or {}, args.weight_decay, decayed, apart)
        if args.muon:
            options = {name: value for name, value in options.items() if name in ("betas", "eps")}
            self.optimizer = MuonWithAdamW(groups, layer_matrices(optimized), **options)
        else:
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def is_measured(self) -> bool:
        """Whether this step is one of those in which more than the loss is measured."""
        return self.state.global_step % max(1, self.state.logging_steps // MEASUREMENTS_PER_LOG) == 0

    @torch.no_grad()
    def record(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add scalars to the means that the next log shows by name."""
        for name, value in values.items():
            self._log_sums[name] += value.detach()
            self._log_counts[name] += 1

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean of everything recorded since the last log of training."""
        if "loss" in logs:
            for name, total in self._log_sums.items():
                mean = total / self._log_counts[name]
                logs[name] = round(self.accelerator.reduce(mean, "mean").item(), 6)
            self._log_sums.clear()
            self._log_counts.clear()
        super().log(logs, *args, **kwargs)

    # ---- Evaluation ----

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As Trainer's, of what `_measure_all` measures, with averaged weights and without predictions."""
        model = self._evaluated_model()
        with self.averaged_weights():
            measures, count = self._measure_all(model, dataloader, metric_key_prefix)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measures.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=count)

    def _measure_all(self, model: Any, dataloader: Any, prefix: str) -> tuple[dict[str, float], int]:
        """What an evaluation measures, by name, and of how many examples; it logs examples under the prefix."""
        raise NotImplementedError

    def _evaluated_model(self) -> Any:
        """The bare model in its mode for evaluation, on the device, where FSDP and DeepSpeed bring it in training."""
        model = self.accelerator.unwrap_model(self.model)
        if (self.is_fsdp_enabled or self.is_deepspeed_enabled) and not self.accelerator._models:
            model.to(self.args.device)
        return model.eval()

    # ---- Saving and resuming ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """
        As Trainer's, but True resumes from the last checkpoint that was written to its end.

        Raises:
            BlockingIOError: another process trains into the same folder.
            FloatingPointError: the loss, or weights that were to be saved, are no numbers.
        """
        output = Path(self.args.output_dir)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(output) or True
        with sole_writer(output, output / ".lock") if self.is_world_process_zero() else nullcontext():
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As Trainer's, but whole, or not at all: Trainer's state, which is written last, marks what is whole."""
        self._check_weights()
        folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save:
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)  # of an earlier run that came as far
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # each library has its own for a full disk
            if not self.args.should_save or is_whole(folder):  # what failed came after it, such as a push to the Hub
                raise
            shutil.rmtree(folder, ignore_errors=True)
            raise OSError(f"the checkpoint {folder} can't be written: {one_line(error)}") from error

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The model with its averaged weights in place, where there are any."""
        if self.averaged is None:
            yield
            return
        reshard(self.model)
        with self.averaged.in_place_of(self.averaged_part()):
            try:
                yield
            finally:
                reshard(self.model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save the model: its averaged weights if there are any, but for the checkpoints that training resumes from.

        Raises:
            FloatingPointError: weights are no numbers.
        """
        if _internal_call and output_dir is not None:
            super().save_model(output_dir, _internal_call=True)
            return
        self._check_weights()
        with self.averaged_weights(), saved_whole(self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None):
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with own_class(self.accelerator.unwrap_model(self.model)):
            super()._save(output_dir, state_dict)

    def stateful_parts(self) -> dict[str, Any]:
        """What is part of every checkpoint beside Trainer's own, by name."""
        parts = super().stateful_parts()
        return {**parts, "averaged": self.averaged} if self.averaged is not None else parts

    def extra_state(self) -> dict[str, Any]:
        """The state of `stateful_parts`; called in every process."""
        return {name: part.state_dict() for name, part in self.stateful_parts().items()}

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state = self.extra_state()
        if self.args.should_save:
            torch.save(state, Path(output_dir, EXTRA_STATE_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        check_configuration(self.accelerator.unwrap_model(self.model).config, resume_from_checkpoint)
        with damage_named(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with damage_named(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.load_extra_state(checkpoint)

    def load_checkpoint(self, checkpoint: str) -> None:
        """
        Load a checkpoint to evaluate or save it, not to train on.

        Raises:
            ValueError: in a process of DeepSpeed, which loads only what it trains.
        """
        if self.is_deepspeed_enabled:
            raise ValueError(f"{checkpoint} ends its run; DeepSpeed goes on with runs alone: evaluate the saved model")
        self.model.to(self.args.device)  # where FSDP, which does so while it shards, has not brought it
        self._load_from_checkpoint(checkpoint)
        self.load_extra_state(checkpoint)
        self.state = TrainerState.load_from_json(Path(checkpoint, TRAINER_STATE_NAME))

    def load_extra_state(self, checkpoint: str) -> dict[str, Any]:
        """Load what `extra_state` gave, and return it."""
        state = read_extra_state(checkpoint)
        self.start_averaging()
        for name, part in self.stateful_parts().items():
            if name in state:
                part.load_state_dict(state[name])
            else:
                logger.warning(f"{checkpoint} was trained without {name}, which starts anew")
        return state

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.averaged is not None:
            self.averaged.load_state_dict(read_extra_state(self.state.best_model_checkpoint)["averaged"])


def check_evaluated(count: int) -> None:
    """Raise a ValueError where an evaluation has seen no example."""
    if count == 0:
        raise ValueError("nothing to evaluate: the dataset is empty, or dataloader_drop_last leaves no batch of it")
