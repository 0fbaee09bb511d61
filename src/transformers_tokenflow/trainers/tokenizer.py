# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Training of the image tokenizer with the paper's objective (§3.2, Eq. 4, Table 11)."""

import itertools
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..evaluation.measures import psnr
from ..modeling_tokenflow import TokenFlowModel, TokenFlowOutput
from .arguments import TokenFlowTrainingArguments
from .base import BaseTrainer, check_evaluated
from .checkpoints import read_extra_state
from .codebook import initialize_codebook, quantizer_inputs, restart_unused_entries
from .data import PictureTransform, column_names, is_table, pictures_of
from .discriminator import Adversary, PatchDiscriminator
from .objective import Objective
from .parameters import select_trainable
from .pictures import comparison, log_picture
from .processes import mean_over_processes
from .sharding import check_tokenizer_settings
from .teachers import Teacher


class TokenFlowTrainer(BaseTrainer):
    """
    Trains a [`TokenFlowModel`]: reconstruction, distillation, quantiser, perceptual and adversarial losses.

    The discriminator has its own Adam and takes its step after the model's, on the same reconstructions. It,
    its optimizer, the averaged weights and the codebook's usage are part of every checkpoint; teacher and perceptual
    network of none.

    Args:
        model: the tokenizer.
        args: [`TokenFlowTrainingArguments`].
        teacher: target of the semantic decoder, which is frozen without one.
        train_dataset, eval_dataset: `datasets` with the column `image`, of which training takes random crops; or
            anything whose examples have `pixel_values` (3, H, H) in [-1, 1], such as [`load_pictures`] gives.
        kwargs: of `transformers.Trainer`, but for losses and metrics.

    Raises:
        ValueError: a setting contradicts another, names a part that the model does not have, or would be ignored.
        RuntimeError: the perceptual loss's weights can't be had.
    """

    # NEFTune is noise on the embeddings of words; here it would be on those of pictures.
    refused_settings = (*BaseTrainer.refused_settings, "label_smoothing_factor", "neftune_noise_alpha")

    def __init__(
        self,
        model: TokenFlowModel,
        args: TokenFlowTrainingArguments,
        teacher: Teacher | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        **kwargs: Any,
    ):
        select_trainable(model, args.trainable_parts)
        if teacher is None and model.semantic_decoder is not None:
            model.semantic_decoder.requires_grad_(False)
        if args.adaptive_adversarial_weight and not model.pixel_decoder.conv_out.weight.requires_grad:
            raise ValueError(
                "adaptive_adversarial_weight needs the gradient of pixel_decoder.conv_out, which is frozen"
            )
        super().__init__(model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        check_tokenizer_settings(args, self.is_fsdp_enabled, self.is_deepspeed_enabled)
        model.quantizer.mean_assignment = mean_over_processes  # type: ignore[method-assign, assignment]
        self.adversary = self._create_adversary() if args.adversarial_weight > 0 else None
        self.objective = Objective(args, teacher, self.adversary)
        self.codes_used = torch.zeros(model.config.codebook_size, dtype=torch.bool, device=args.device)
        self._codes_logged = torch.zeros_like(self.codes_used)
        self._pictures: tuple[torch.Tensor, torch.Tensor] | None = None

    def _examples(self, dataset: Any, train: bool = False) -> Any:
        """Rows of `datasets` with the column `image` as examples; anything else gives examples already."""
        names = column_names(dataset) if is_table(dataset) else []
        if "image" not in names or "pixel_values" in names:
            return dataset
        size = self.accelerator.unwrap_model(self.model).config.image_size
        return pictures_of(dataset, PictureTransform(size, train), self.args.seed)

    # ---- Setting up ----

    def _create_adversary(self) -> Adversary:
        args = self.args
        discriminator = PatchDiscriminator(args.discriminator_channels, args.discriminator_num_layers)
        if args.discriminator_from is not None:
            state = read_extra_state(args.discriminator_from)
            if "discriminator" not in state:
                raise ValueError(f"the checkpoint {args.discriminator_from} was trained without a discriminator")
            discriminator.load_state_dict(state["discriminator"])
        return Adversary(
            discriminator,
            args.device,
            self.accelerator.num_processes,
            args.discriminator_learning_rate or args.learning_rate,
            (args.adam_beta1, args.adam_beta2),
        )

    def before_first_step(self) -> None:
        """Starts the codebook where the arguments say."""
        if self.args.codebook_initialization == "kmeans":
            self.initialize_codebook()

    def initialize_codebook(self) -> None:
        """K-means over features of the first training batches."""
        batches = itertools.islice(self.get_train_dataloader(), self.args.codebook_initialization_batches)
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        features = (self._features(batch["pixel_values"].to(self.args.device)) for batch in batches)
        initialize_codebook(model.quantizer, features, self.args.seed)
        self._share_codebook(model)
        if self.averaged is not None:
            tables = list(model.quantizer.codebook.parameters())
            self.averaged.follow(self.averaged_part(), tables, [slice(None)] * len(tables))

    def _features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the quantiser is given of the pictures of all processes, in the order that a single one has them in."""
        return self.accelerator.gather(quantizer_inputs(self.accelerator.unwrap_model(self.model), pixel_values))

    def _share_codebook(self, model: TokenFlowModel) -> None:
        """Give every process the main one's entries."""
        if self.accelerator.num_processes > 1:
            for entries in model.quantizer.codebook.parameters():
                torch.distributed.broadcast(entries.data, src=0)

    # ---- A step ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, TokenFlowOutput]:
        """The model's side of the objective: everything but the discriminator's own loss."""
        pixel_values = inputs["pixel_values"]
        scales = self.sample_scales(self.draws_of_step()) if model.training else None
        with self.accelerator.autocast():
            losses, output = self.objective.losses(model, pixel_values, scales, model.training and self.is_adversarial)
        loss = self.objective.weigh(losses, self.accelerator.unwrap_model(model).pixel_decoder.conv_out.weight)
        if model.training:
            self.loss_parts = {name: part.detach() for name, part in losses.items()}
            self.record(losses)
            for used in (self.codes_used, self._codes_logged):
                used[output.codes.flatten()] = True
            self._pictures = (pixel_values, output.pixel_values.detach())
        return (loss, output) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """The model's backward pass, then the discriminator's on the same reconstructions."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.is_adversarial:
            weight = self.args.adversarial_weight / self.current_gradient_accumulation_steps
            self.record({"discriminator_loss": self.adversary.backward(self._pictures[0], self._pictures[1], weight)})
        return loss

    def after_optimizer_step(self) -> None:
        """The discriminator's step, the averaged weights, and the codebook's unused entries."""
        args, next_step = self.args, self.state.global_step + 1
        if self.is_adversarial:
            self.adversary.step(args.max_grad_norm)
        model = self.accelerator.unwrap_model(self.model)
        if args.codebook_restart_steps > 0 and next_step % args.codebook_restart_steps == 0:
            # The last steps of a run keep their entries: moved ones need time to be learned around.
            if next_step + args.codebook_restart_steps <= self.state.max_steps:
                self._restart_codebook(model)
            self.codes_used.zero_()
        super().after_optimizer_step()

    @property
    def is_adversarial(self) -> bool:
        """Whether this step trains against the discriminator."""
        return self.adversary is not None and self.state.global_step >= self.args.adversarial_start_step

    def sample_scales(self, draws: random.Random) -> list[int] | None:
        """The scales of this step: with probability `scale_dropout` one of them, never the first, is left out."""
        scales = self.accelerator.unwrap_model(self.model).config.scales
        if len(scales) < 2 or draws.random() >= self.args.scale_dropout:
            return None
        dropped = draws.randrange(1, len(scales))
        return [scale for index, scale in enumerate(scales) if index != dropped]

    @torch.no_grad()
    def _restart_codebook(self, model: TokenFlowModel) -> None:
        tables = list(model.quantizer.codebook.parameters())
        before = [table.clone() for table in tables]
        used = self._used_by_all(self.codes_used)
        restart_unused_entries(model.quantizer, used, self._features(self._pictures[0]))
        self._share_codebook(model)
        if self.averaged is not None:
            # Halfway between two places a moved entry would be of no use to the averaged model.
            moved = [(table != old).any(dim=1) for table, old in zip(tables, before, strict=True)]
            self.averaged.follow(self.averaged_part(), tables, moved)

    def _used_by_all(self, used: torch.Tensor) -> torch.Tensor:
        """Which entries any of the processes used: (K,) bool."""
        return self.accelerator.reduce(used.int(), "sum") > 0

    # ---- Logging and evaluation ----

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds every loss by name and the share of the codebook used since the last log."""
        if "loss" in logs:
            logs["codebook_utilization"] = self._used_by_all(self._codes_logged).float().mean().item()
            self._codes_logged.zero_()
        super().log(logs, *args, **kwargs)

    def _measure_all(self, model: Any, dataloader: Any, prefix: str) -> tuple[dict[str, float], int]:
        """
        Losses, PSNR in dB (mean over pictures, pixels in [0, 1]) and codebook utilisation.

        Where several processes share a last batch that is not full, the losses, which are means over batches, count
        the pictures that fill it up, as all metrics do of a stream.
        """
        sums: dict[str, float] = defaultdict(float)
        used = torch.zeros_like(self.codes_used)
        count, pictures = 0, None
        for batch in dataloader:
            pixel_values = self._prepare_inputs(batch)["pixel_values"]
            with self.accelerator.autocast():
                losses, output = self.objective.losses(model, pixel_values)
            losses["loss"] = self.objective.weigh(losses, model.pixel_decoder.conv_out.weight)
            real, fake = ((part.float().clamp(-1, 1) + 1) / 2 for part in (pixel_values, output.pixel_values))
            ratios, codes = self.accelerator.gather_for_metrics((psnr(fake, real), output.codes))
            for name, value in losses.items():
                sums[name] += self.accelerator.reduce(value, "mean").item() * len(codes)
            sums["psnr"] += ratios.sum().item()
            count += len(codes)
            used[codes.flatten()] = True
            pictures = pictures or (real, fake)
        check_evaluated(count)
        measures = {name: total / count for name, total in sums.items()}
        measures["codebook_utilization"] = used.float().mean().item()
        if self.args.logged_pictures > 0 and self.is_world_process_zero():
            picture = comparison(*pictures, self.args.logged_pictures)
            folder, callbacks = Path(self.args.output_dir, "pictures"), self.callback_handler.callbacks
            log_picture(f"{prefix}_reconstruction", picture, self.state.global_step, folder, callbacks)
        return measures, count

    # ---- Saving and resuming ----

    def averaged_part(self) -> nn.Module:
        """The whole model, but for one that is sharded, which can't be copied."""
        return super().averaged_part() if self.is_fsdp_enabled else self.accelerator.unwrap_model(self.model)

    def replicated_modules(self) -> list[nn.Module]:
        """The codebook, which is small, searched in full precision, and moved entry by entry."""
        return [self.accelerator.unwrap_model(self.model).quantizer.codebook]

    def stateful_parts(self) -> dict[str, Any]:
        """The discriminator and its optimizer, where there is one, and the averaged weights."""
        parts = super().stateful_parts()
        if self.adversary is not None:
            parts["discriminator"] = self.adversary.discriminator
            parts["discriminator_optimizer"] = self.adversary.optimizer
        return parts

    def extra_state(self) -> dict[str, Any]:
        """The codebook's usage beside the parts."""
        self.codes_used = self._used_by_all(self.codes_used)
        return {"codes_used": self.codes_used, **super().extra_state()}

    def load_extra_state(self, checkpoint: str) -> dict[str, Any]:
        """Load discriminator, its optimizer, averaged weights, and usage."""
        state = super().load_extra_state(checkpoint)
        self.codes_used.copy_(state["codes_used"])
        return state
