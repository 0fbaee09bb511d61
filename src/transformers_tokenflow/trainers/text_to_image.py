# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Training of the generator: cross-entropy on the codes of every scale (paper §3.3)."""

import inspect
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.utils import make_grid
from transformers.trainer_utils import unwrap_peft_model

from ..modeling_tokenflow_text_to_image import TokenFlowForTextToImage, TokenFlowTextToImageOutput
from ..quantization_tokenflow import prefix_lengths
from ..sampling_tokenflow import SETTINGS, Sampling, sample
from .arguments import TextToImageTrainingArguments
from .base import BaseTrainer, check_evaluated
from .code_data import CaptionTransform, TextToImageCollator, captioned
from .data import column_names, is_table
from .parameters import adapt, select_trainable
from .pictures import log_picture
from .sharding import check_encoding

FIRST_SAMPLE_SEED = 0
# Arguments of `generate` that are not the caller's to choose: prompts, and what makes pictures the same every time.
DRAWN_BY_TRAINER = {
    "input_ids",
    "attention_mask",
    "negative_prompt_ids",
    "negative_attention_mask",
    "seed",
    "generator",
    "num_images_per_prompt",
    "kwargs",
}


class TextToImageTrainer(BaseTrainer):
    """
    Trains a [`TokenFlowForTextToImage`] on captions with codes, or with pictures that its frozen tokenizer encodes.

    Averaged weights, if there are any, are those of trained parameters alone, and part of every checkpoint.

    Args:
        model: the generator. Adapters that it was loaded with are trained on, and nothing else.
        args: [`TextToImageTrainingArguments`].
        train_dataset, eval_dataset: `datasets` with the columns `text` (a text, or a list of texts of which one is
            drawn) and `codes` or `image`; or anything whose examples have `prompt` and `codes` (L,) or
            `pixel_values` (3, H, H) in [-1, 1], such as [`captioned`] makes.
        processing_class: the processor, which makes prompts of texts.
        kwargs: of `transformers.Trainer`, but for losses and metrics.

    Raises:
        ValueError: there is no processor, the model has other adapters than are asked for, a setting names a part that
            the model does not have or would be ignored, or a dataset does not fit the model.
        ImportError: adapters are asked for, and peft is not installed.
    """

    refused_settings = (*BaseTrainer.refused_settings, "label_smoothing_factor")

    def __init__(
        self,
        model: TokenFlowForTextToImage,
        args: TextToImageTrainingArguments,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ):
        if processing_class is None:
            raise ValueError("TextToImageTrainer needs processing_class, the processor that makes prompts of texts")
        self.tokenizer_config = model.config.tokenizer_config
        if not 1 <= args.coarse_scales <= len(self.tokenizer_config.scales):
            raise ValueError(
                f"coarse_scales must lie between 1 and the {len(self.tokenizer_config.scales)} scales; "
                f"got {args.coarse_scales}"
            )
        check_sample_options(unwrap_peft_model(model), args.sample_options or {})
        end_ids = read_end_ids(processing_class) if model.config.use_text_head else None
        trained = adapt(model, args.lora_rank, args.lora_modules_to_save)
        select_trainable(trained, args.trainable_parts)
        kwargs.setdefault("data_collator", TextToImageCollator(processing_class, end_ids))
        super().__init__(
            model=trained,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self._drawn_at: int | None = None
        self.model_accepts_loss_kwargs = True  # the model does not, but `compute_loss` takes the number of pictures

    def _examples(self, dataset: Any, train: bool = False) -> Any:
        """Rows of `datasets` with the column `text` as examples; anything else gives examples already."""
        if not is_table(dataset) or "text" not in column_names(dataset):
            return dataset
        captions = CaptionTransform(self.args.text_dropout, self.args.first_sentence_probability, train)
        return captioned(dataset, self.tokenizer_config, captions, seed=self.args.seed)

    def replicated_modules(self) -> list[nn.Module]:
        """The frozen tokenizer, which encodes pictures outside of the model's forward pass."""
        return [self.accelerator.unwrap_model(self.model).tokenizer]

    # ---- A step ----

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """How many pictures a step has, on all devices together unless each averages for itself."""
        count = torch.tensor(sum(len(batch["input_ids"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(count).sum() if self.args.average_tokens_across_devices else count

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, TokenFlowTextToImageOutput]:
        """Cross-entropy on the codes, which pictures are encoded to first; of a batch, its part of the step's mean."""
        inputs = self._with_labels(inputs)
        draws = self.draws_of_step()
        is_coarse = model.training and draws.random() < self.args.coarse_step_probability
        if is_coarse:
            inputs = self.coarse(inputs)
        elif model.training and draws.random() < self.args.refinement_probability:
            inputs = {**inputs, "drawn_codes": self.draw_codes(model, inputs)}
        with self.accelerator.autocast():
            output = model(**inputs)
        if model.training and not is_coarse and self.is_measured():
            values = self.measure(output.logits, inputs["labels"])
            self.record({name: value.mean() for name, value in values.items()})
        loss = output.loss
        if num_items_in_batch is not None:
            loss = self._part_of_step(loss * len(inputs["input_ids"]), num_items_in_batch)
        return (loss, output) if return_outputs else loss

    def _with_labels(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Encoding is no part of mixed precision, so that codes are those that `tokenflow encode` writes."""
        if "pixel_values" not in inputs:
            return inputs
        check_encoding(self.is_deepspeed_enabled)
        tokenizer = self.accelerator.unwrap_model(self.model).tokenizer
        with torch.no_grad():
            labels = tokenizer.encode(inputs["pixel_values"]).codes
        return {name: value for name, value in inputs.items() if name != "pixel_values"} | {"labels": labels}

    def coarse(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Inputs of a step that trains the first scales alone: half of them can have a tenth of the tokens.

        What the last of them is predicted from are the codes of those before it.
        """
        lengths = [0, *prefix_lengths(self.tokenizer_config.scales)]
        count = self.args.coarse_scales
        labels = inputs["labels"][:, : lengths[count]]
        codes = {"codes": labels[:, : lengths[count - 1]]} if count > 1 else {}
        return {name: value for name, value in inputs.items() if name != "end_ids"} | {"labels": labels} | codes

    @torch.no_grad()
    def draw_codes(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """
        What refinement passes are trained to mend: in every picture some share of its codes, from none to all, is
        replaced by what the model draws in their place, (B, L).

        Were all of them drawn, nothing in them would tell of the picture that is to be learned.
        """
        with self.accelerator.autocast():
            logits = model(**inputs).logits
        labels = inputs["labels"]
        uniform = torch.rand(labels.shape, device=labels.device)
        drawn = sample(logits.float(), top_k=0, top_p=0.0, temperature=1.0, uniform=uniform)
        share = torch.rand(len(labels), 1, device=labels.device)
        return torch.where(torch.rand(labels.shape, device=labels.device) < share, drawn, labels)

    @torch.no_grad()
    def measure(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Losses among visual tokens and shares of codes that are predicted right, over all and per scale.

        Args:
            logits: (B, L, K).
            labels: (B, L).

        Returns:
            By name, each (B,).
        """
        losses = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")
        values = {"code_loss": losses, "accuracy": (logits.argmax(dim=-1) == labels).float()}
        measures = {"accuracy": values["accuracy"].mean(dim=1)}
        scales = self.tokenizer_config.scales
        starts = [0, *prefix_lengths(scales)]
        for index, (start, end) in enumerate(zip(starts, starts[1:], strict=False)):
            for name, value in values.items():
                measures[f"{name}_scale_{index}"] = value[:, start:end].mean(dim=1)
        return measures

    # ---- Evaluation ----

    def _measure_all(self, model: Any, dataloader: Any, prefix: str) -> tuple[dict[str, float], int]:
        """
        Loss and what `measure` gives, means over pictures, and sample pictures.

        Where several processes share a last batch that is not full, the loss, which is a mean over batches, counts the
        pictures that fill it up; the measures do not.
        """
        sums: dict[str, float] = defaultdict(float)
        count = 0
        for batch in dataloader:
            inputs = self._with_labels(self._prepare_inputs(batch))
            with self.accelerator.autocast():
                output = model(**inputs)
            values = self.measure(output.logits, inputs["labels"])
            values["loss"] = output.loss.repeat(len(inputs["labels"]))
            values = self.accelerator.gather_for_metrics(values)
            count += len(values["loss"])
            for name, value in values.items():
                sums[name] += value.sum().item()
        self._draw_samples(prefix)
        check_evaluated(count)
        return {name: total / count for name, total in sums.items()}, count

    def _draw_samples(self, prefix: str) -> None:
        """Log pictures of the prompts, once a step, however many datasets are evaluated."""
        is_asked = self.args.sample_prompts and self.args.logged_pictures > 0
        if is_asked and self._drawn_at != self.state.global_step and self.is_generating():
            self._drawn_at = self.state.global_step
            pictures = self.draw(self.args.sample_prompts)
            if self.is_world_process_zero():
                grid = make_grid(pictures, nrow=8)
                folder, callbacks = Path(self.args.output_dir, "pictures"), self.callback_handler.callbacks
                log_picture(f"{prefix.split('_')[0]}_samples", grid, self.state.global_step, folder, callbacks)

    @torch.no_grad()
    def draw(self, prompts: list[str]) -> torch.Tensor:
        """Pictures of prompts (B, 3, H, H) in [0, 1], by the model as it is; picture i always from seed i."""
        model = self.accelerator.unwrap_model(self.model)
        inputs = self.processing_class.prepare_generation(prompts, "")
        with self.accelerator.autocast():
            codes = model.generate(**inputs, seed=FIRST_SAMPLE_SEED, **(self.args.sample_options or {})).codes
        pictures = model.tokenizer.decode(codes).pixel_values
        return (pictures.float().clamp(-1, 1).cpu() + 1) / 2


def check_sample_options(model: TokenFlowForTextToImage, options: Any) -> None:
    """
    Raises:
        ValueError: `generate` does not take the options, or their values: said before training, not at an evaluation.
    """
    known = inspect.signature(model.generate).parameters.keys() - DRAWN_BY_TRAINER
    if unknown := options.keys() - known:
        raise ValueError(f"sample_options: generate does not take {', '.join(sorted(unknown))} here")
    settings = {name: value for name, value in options.items() if name in SETTINGS}
    Sampling.from_config(model._prepare_generation_config(None, **settings)[0])


def read_end_ids(processor: Any) -> list[int]:
    """What follows an image, officially: the tokens of "</img>" and the end of the sequence."""
    tokenizer = processor.tokenizer
    return [*tokenizer("</img>", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
