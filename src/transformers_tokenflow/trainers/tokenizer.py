# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Training of the image tokenizer with the paper's objective (§3.2, Eq. 4, Table 11)."""

import itertools
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchvision.utils import make_grid, save_image
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from ..modeling_tokenflow import TokenFlowModel, TokenFlowOutput
from .codebook import initialize_codebook, restart_unused_entries
from .data import PictureDataset
from .discriminator import PatchDiscriminator, discriminator_loss, generator_loss
from .losses import make_perceptual_loss
from .teachers import Teacher

EXTRA_STATE_NAME = "tokenflow_trainer.pt"
LOSS_PARTS = ("pixel_loss", "codebook_loss", "commitment_loss", "entropy_loss", "semantic_loss")


@dataclass
class TokenFlowTrainingArguments(TrainingArguments):
    """
    Arguments of [`TokenFlowTrainer`], with the official code's settings as defaults.

    Weights of the codebook, commitment and entropy losses belong to the quantiser: see [`TokenFlowConfig`].
    """

    adam_beta2: float = field(default=0.95, metadata={"help": "Second beta of Adam."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate (paper Table 11)."})
    lr_scheduler_type: str = field(default="constant_with_warmup", metadata={"help": "Schedule of the learning rate."})
    pixel_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the pixels' mean squared error."})
    semantic_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the distillation."})
    perceptual_loss: str = field(default="lpips", metadata={"help": "'lpips', 'teacher' (its features), or 'none'."})
    perceptual_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the perceptual loss."})
    adversarial_weight: float = field(default=0.5, metadata={"help": "Weight of the adversarial loss; 0: no GAN."})
    adversarial_start_step: int = field(default=20_000, metadata={"help": "Step from which the GAN is trained."})
    adaptive_adversarial_weight: bool = field(
        default=False,
        metadata={"help": "Scale the adversarial loss by the ratio of gradients at the last layer, as VQGAN does."},
    )
    discriminator_channels: int = field(default=64, metadata={"help": "Width of PatchGAN's first layer."})
    discriminator_num_layers: int = field(default=3, metadata={"help": "PatchGAN's layers of stride 2."})
    discriminator_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the discriminator; as the model's by default."}
    )
    scale_dropout: float = field(
        default=0.1, metadata={"help": "Probability that a step leaves out one random scale, never the first."}
    )
    ema_decay: float = field(
        default=0.0, metadata={"help": "Decay of the averaged weights, which are evaluated and saved; 0: none."}
    )
    part_learning_rates: dict | str | None = field(
        default=None, metadata={"help": "Learning rates by module prefix, such as {'semantic_encoder': 1e-5}."}
    )
    trainable_parts: list[str] | None = field(
        default=None,
        metadata={"help": "Module prefixes to train, all others are frozen: ['pixel_decoder'] trains a new decoder."},
    )
    codebook_initialization: str = field(
        default="random", metadata={"help": "'random', or 'kmeans' to cluster features of the training pictures."}
    )
    codebook_initialization_batches: int = field(default=16, metadata={"help": "Batches that k-means sees."})
    codebook_restart_steps: int = field(
        default=0, metadata={"help": "Every so many steps entries that were not used since are moved; 0: never."}
    )
    logged_pictures: int = field(default=8, metadata={"help": "Pictures of an evaluation that are logged."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The data collator decides what is kept."})

    def __post_init__(self):
        super().__post_init__()
        if self.codebook_initialization not in ("random", "kmeans"):
            raise ValueError(f"codebook_initialization is 'random' or 'kmeans'; got {self.codebook_initialization!r}")
        for name in ("scale_dropout", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1]; got {getattr(self, name)}")


class _StepCallback(TrainerCallback):
    """What happens around the optimizer's step, which Trainer offers no method for."""

    def __init__(self, trainer: "TokenFlowTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0 and args.codebook_initialization == "kmeans":
            self.trainer.initialize_codebook()

    def on_epoch_begin(self, args, state, control, **kwargs):
        # accelerate does not tell the dataset in distributed runs, nor after it skipped batches to resume.
        if isinstance(self.trainer.train_dataset, PictureDataset):
            self.trainer.train_dataset.set_epoch(int(state.epoch))

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.after_optimizer_step()


class TokenFlowTrainer(Trainer):
    """
    Trains a [`TokenFlowModel`]: reconstruction, distillation, quantiser, perceptual and adversarial losses.

    The discriminator has its own Adam and takes its step after the model's, on the same reconstructions. It,
    its optimizer, the averaged weights and the codebook's usage are part of every checkpoint; teacher and perceptual
    network of none.

    Args:
        model: the tokenizer.
        args: [`TokenFlowTrainingArguments`].
        teacher: target of the semantic decoder; without one there is no distillation.
        kwargs: of `transformers.Trainer`. Datasets give `pixel_values` (3, H, H) in [-1, 1].

    Raises:
        ValueError: a setting contradicts another, or names a part that the model does not have.
        RuntimeError: the perceptual loss's weights can't be had.
    """

    def __init__(
        self, model: TokenFlowModel, args: TokenFlowTrainingArguments, teacher: Teacher | None = None, **kwargs: Any
    ):
        select_trainable(model, args.trainable_parts)
        super().__init__(model=model, args=args, **kwargs)
        # The losses are means over what the model is given, not sums over items.
        self.model_accepts_loss_kwargs = False
        self.teacher = teacher.to(args.device) if teacher is not None else None
        perceptual = make_perceptual_loss(args.perceptual_loss, teacher) if args.perceptual_loss_weight > 0 else None
        self.perceptual_loss = perceptual.to(args.device) if perceptual is not None else None
        self.discriminator: nn.Module | None = None
        self.discriminator_optimizer: torch.optim.Optimizer | None = None
        if args.adversarial_weight > 0:
            self._create_discriminator()
        self.averaged: AveragedModel | None = None
        if args.ema_decay > 0:
            self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay))
        self.codes_used = torch.zeros(model.config.codebook_size, dtype=torch.bool, device=args.device)
        self._log_sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=args.device))
        self._log_counts: dict[str, int] = defaultdict(int)
        self._codes_logged = torch.zeros_like(self.codes_used)
        self._pictures: tuple[torch.Tensor, torch.Tensor] | None = None
        self.add_callback(_StepCallback(self))

    # ---- Setting up ----

    def _create_discriminator(self):
        args = self.args
        discriminator = PatchDiscriminator(args.discriminator_channels, args.discriminator_num_layers)
        self.discriminator = discriminator.to(args.device)
        # Neither prepared by accelerate nor scaled: fp16's loss scaler serves one optimizer, and FSDP and DeepSpeed
        # one model. In full precision and replicated, the small discriminator goes with all of them.
        self.discriminator_for_training = self.discriminator
        if self.accelerator.num_processes > 1:
            devices = None if args.device.type == "cpu" else [args.device]
            self.discriminator_for_training = DistributedDataParallel(self.discriminator, device_ids=devices)
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(),
            lr=args.discriminator_learning_rate or args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that the arguments name, with a learning rate per part."""
        if self.optimizer is None:
            optimized = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(optimized))
            optimizer_class, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, optimized)
            groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
            for name, parameter in optimized.named_parameters():
                if parameter.requires_grad:
                    groups[self.learning_rate_of(name), name in decayed].append(parameter)
            self.optimizer = optimizer_class(
                [
                    {"params": parameters, "lr": rate, "weight_decay": self.args.weight_decay if decay else 0.0}
                    for (rate, decay), parameters in groups.items()
                ],
                **optimizer_kwargs,
            )
        return self.optimizer

    def learning_rate_of(self, parameter_name: str) -> float:
        """The learning rate of the longest prefix in `part_learning_rates` that fits, or the common one."""
        rates = self.args.part_learning_rates or {}
        fitting = [prefix for prefix in rates if parameter_name.removeprefix("module.").startswith(prefix)]
        return float(rates[max(fitting, key=len)]) if fitting else self.args.learning_rate

    def initialize_codebook(self):
        """K-means over features of the first training batches."""
        batches = itertools.islice(self.get_train_dataloader(), self.args.codebook_initialization_batches)
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        initialize_codebook(model, (batch["pixel_values"].to(self.args.device) for batch in batches), self.args.seed)
        if self.averaged is not None:
            self.averaged.module.load_state_dict(model.state_dict())

    # ---- A step ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, TokenFlowOutput]:
        """The generator's side of the objective: everything but the discriminator's own loss."""
        pixel_values = inputs["pixel_values"]
        teacher_features = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher_features = self.teacher(pixel_values)
        output = model(
            pixel_values=pixel_values,
            teacher_features=teacher_features,
            scales=self.sample_scales() if model.training else None,
            return_loss=True,
        )
        losses = {name: output[name] for name in LOSS_PARTS if output.get(name) is not None}
        weighted = dict(losses)
        weighted["pixel_loss"] = self.args.pixel_loss_weight * losses["pixel_loss"]
        if "semantic_loss" in losses:
            weighted["semantic_loss"] = self.args.semantic_loss_weight * losses["semantic_loss"]
        if self.perceptual_loss is not None:
            losses["perceptual_loss"] = self.perceptual_loss(output.pixel_values, pixel_values)
            weighted["perceptual_loss"] = self.args.perceptual_loss_weight * losses["perceptual_loss"]
        if model.training and self.is_adversarial:
            losses["adversarial_loss"] = self._adversarial_loss(output.pixel_values)
            weighted["adversarial_loss"] = self._adversarial_weight(weighted, losses) * losses["adversarial_loss"]
        loss = torch.stack(list(weighted.values())).sum()
        if model.training:
            self._record(losses, output.codes)
            self._pictures = (pixel_values, output.pixel_values.detach())
        return (loss, output) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> torch.Tensor:
        """The model's backward pass, then the discriminator's on the same reconstructions."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.is_adversarial:
            real, fake = self._pictures
            with torch.autocast(self.args.device.type, enabled=False):
                judged = (self.discriminator_for_training(part.float()) for part in (real, fake))
                judgement = discriminator_loss(*judged)
            (self.args.adversarial_weight * judgement / self.current_gradient_accumulation_steps).backward()
            self._record({"discriminator_loss": judgement})
        return loss

    def after_optimizer_step(self):
        """The discriminator's step, the averaged weights, and the codebook's unused entries."""
        args, next_step = self.args, self.state.global_step + 1
        if self.is_adversarial:
            if args.max_grad_norm > 0:
                nn.utils.clip_grad_norm_(self.discriminator.parameters(), args.max_grad_norm)
            self.discriminator_optimizer.step()
            self.discriminator_optimizer.zero_grad()
        model = self.accelerator.unwrap_model(self.model)
        if args.codebook_restart_steps > 0 and next_step % args.codebook_restart_steps == 0:
            # The last steps of a run keep their entries: moved ones need time to be learned around.
            if next_step + args.codebook_restart_steps <= self.state.max_steps:
                self._restart_codebook(model)
            self.codes_used.zero_()
        if self.averaged is not None:
            self.averaged.update_parameters(model)

    @property
    def is_adversarial(self) -> bool:
        """Whether this step trains against the discriminator."""
        return self.discriminator is not None and self.state.global_step >= self.args.adversarial_start_step

    def sample_scales(self) -> list[int] | None:
        """The scales of this step: with probability `scale_dropout` one of them, never the first, is left out."""
        scales = self.accelerator.unwrap_model(self.model).config.scales
        if len(scales) < 2 or torch.rand(()).item() >= self.args.scale_dropout:
            return None
        dropped = torch.randint(1, len(scales), ()).item()
        return [scale for index, scale in enumerate(scales) if index != dropped]

    def _adversarial_loss(self, reconstruction: torch.Tensor) -> torch.Tensor:
        self.discriminator.requires_grad_(False)
        with torch.autocast(self.args.device.type, enabled=False):
            loss = generator_loss(self.discriminator(reconstruction.float()))
        self.discriminator.requires_grad_(True)
        return loss

    def _adversarial_weight(self, weighted: dict[str, torch.Tensor], losses: dict[str, torch.Tensor]):
        if not self.args.adaptive_adversarial_weight:
            return self.args.adversarial_weight
        last = self.accelerator.unwrap_model(self.model).pixel_decoder.conv_out.weight
        reconstruction = weighted["pixel_loss"] + weighted.get("perceptual_loss", 0.0)
        norms = [
            torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
            for loss in (reconstruction, losses["adversarial_loss"])
        ]
        return self.args.adversarial_weight * (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()

    @torch.no_grad()
    def _restart_codebook(self, model: TokenFlowModel):
        used = self.accelerator.reduce(self.codes_used.int(), "sum") > 0
        restart_unused_entries(model, used, self._pictures[0])
        if self.accelerator.num_processes > 1:
            for entries in model.quantizer.codebook.parameters():
                torch.distributed.broadcast(entries.data, src=0)

    # ---- Logging and evaluation ----

    @torch.no_grad()
    def _record(self, losses: dict[str, torch.Tensor], codes: torch.Tensor | None = None):
        for name, loss in losses.items():
            self._log_sums[name] += loss.detach()
            self._log_counts[name] += 1
        if codes is not None:
            self.codes_used[codes.flatten()] = True
            self._codes_logged[codes.flatten()] = True

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds every loss by name and the share of the codebook used since the last log."""
        if "loss" in logs:
            for name, total in self._log_sums.items():
                mean = total / self._log_counts[name]
                logs[name] = round(self.accelerator.reduce(mean, "mean").item(), 6)
            used = self.accelerator.reduce(self._codes_logged.int(), "sum") > 0
            logs["codebook_utilization"] = used.float().mean().item()
            self._log_sums.clear()
            self._log_counts.clear()
            self._codes_logged.zero_()
        super().log(logs, *args, **kwargs)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Losses, PSNR in dB (mean over pictures, pixels in [0, 1]) and codebook utilisation, with averaged weights."""
        model = self.averaged.module if self.averaged is not None else self.accelerator.unwrap_model(self.model)
        model.eval()
        sums: dict[str, float] = defaultdict(float)
        used = torch.zeros_like(self.codes_used)
        count, pictures = 0, None
        for batch in dataloader:
            batch = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                loss, output = self.compute_loss(model, batch, return_outputs=True)
            real, fake = ((part.float().clamp(-1, 1) + 1) / 2 for part in (batch["pixel_values"], output.pixel_values))
            values = {"loss": loss, "psnr": mean_psnr(fake, real)}
            values |= {name: output[name] for name in LOSS_PARTS if output.get(name) is not None}
            gathered = self.accelerator.gather_for_metrics(output.codes)
            for name, value in values.items():
                sums[name] += self.accelerator.reduce(value.detach(), "mean").item() * len(gathered)
            count += len(gathered)
            used[gathered.flatten()] = True
            pictures = (real, fake) if pictures is None else pictures
        metrics = {f"{metric_key_prefix}_{name}": total / max(count, 1) for name, total in sums.items()}
        metrics[f"{metric_key_prefix}_codebook_utilization"] = used.float().mean().item()
        if pictures is not None:
            self.log_pictures(f"{metric_key_prefix}_reconstruction", *pictures)
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=count)

    def log_pictures(self, name: str, real: torch.Tensor, fake: torch.Tensor):
        """Pictures above their reconstructions, to the output folder and to trackers that take pictures."""
        count = self.args.logged_pictures
        if count <= 0 or not self.is_world_process_zero():
            return
        grid = make_grid(torch.cat([real[:count], fake[:count]]).cpu(), nrow=min(count, len(real)))
        folder = Path(self.args.output_dir, "pictures")
        folder.mkdir(parents=True, exist_ok=True)
        save_image(grid, folder / f"{name}-{self.state.global_step}.png")
        for callback in self.callback_handler.callbacks:
            if getattr(callback, "tb_writer", None) is not None:
                callback.tb_writer.add_image(name, grid, self.state.global_step)
            if getattr(callback, "_wandb", None) is not None and callback._wandb.run is not None:
                callback._wandb.log({name: callback._wandb.Image(grid)})

    # ---- Saving and resuming ----

    @contextmanager
    def averaged_weights(self):
        """The model with its averaged weights in place, where there are any."""
        if self.averaged is None:
            yield
            return
        model = self.accelerator.unwrap_model(self.model)
        current = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.averaged.module.state_dict())
        yield
        model.load_state_dict(current)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Save the model: its averaged weights if there are any, but for the checkpoints that training resumes from."""
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
            return
        with self.averaged_weights():
            super().save_model(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            torch.save(self._extra_state(), Path(output_dir, EXTRA_STATE_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state = torch.load(Path(checkpoint, EXTRA_STATE_NAME), map_location=self.args.device, weights_only=True)
        self.codes_used.copy_(state["codes_used"])
        for name, part in self._stateful_parts().items():
            part.load_state_dict(state[name])

    def _stateful_parts(self) -> dict[str, Any]:
        parts = {
            "discriminator": self.discriminator,
            "discriminator_optimizer": self.discriminator_optimizer,
            "averaged": self.averaged,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _extra_state(self) -> dict[str, Any]:
        states = {name: part.state_dict() for name, part in self._stateful_parts().items()}
        return {"codes_used": self.codes_used, **states}


def select_trainable(model: TokenFlowModel, parts: list[str] | None):
    """
    Freeze all parameters but those whose names begin with one of the parts.

    Raises:
        ValueError: no parameter begins with a part.
    """
    if parts is None:
        return
    names = [name for name, _ in model.named_parameters()]
    unknown = [part for part in parts if not any(name.startswith(part) for name in names)]
    if unknown or not parts:
        raise ValueError(
            f"no parameters begin with {unknown}; the model's parts are {sorted({n.split('.')[0] for n in names})}"
        )
    for name, parameter in model.named_parameters():
        if not name.startswith(tuple(parts)):
            parameter.requires_grad_(False)


def mean_psnr(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over the pictures (B, 3, H, W) in [0, 1] of the peak signal-to-noise ratio in dB."""
    return peak_signal_noise_ratio(prediction, target, data_range=1.0, dim=(1, 2, 3), reduction="elementwise_mean")
