# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Training of the understanding model: cross-entropy on answers, as LLaVA is trained (paper §3.2)."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import SequentialSampler
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import has_length, unwrap_peft_model

from ..modeling_tokenflow_understanding import TokenFlowForConditionalGeneration
from .arguments import UnderstandingTrainingArguments
from .base import BaseTrainer, check_evaluated
from .conversation_batches import ConversationCollator, PackedDataset
from .conversation_data import IGNORED, PICTURES, ConversationDataset, conversations
from .data import column_names, is_table
from .parameters import adapt, select_trainable
from .pictures import log_text
from .sharding import check_encoding
from .streams import SHUFFLE_BUFFER

MAX_ANSWER_TOKENS = 64


class UnderstandingTrainer(BaseTrainer):
    """
    Trains a [`TokenFlowForConditionalGeneration`] on conversations about pictures, or about none.

    The loss is the mean over the tokens of all answers in a step, on however many devices. The image tokenizer stays
    frozen. Averaged weights, if there are any, are those of trained parameters alone, and part of every checkpoint.

    Args:
        model: the understanding model. Adapters that it was loaded with are trained on, and nothing else.
        args: [`UnderstandingTrainingArguments`].
        train_dataset, eval_dataset: `datasets` of rows as [`conversations`] takes them; or anything whose examples have
            `input_ids` and `labels` (T,) and, of pictures, `image_codes` (n, L) or `pixel_values` (n, 3, H, H).
        processing_class: the processor, with a chat template that marks answers.
        kwargs: of `transformers.Trainer`, but for losses and metrics.

    Raises:
        ValueError: there is no processor, the model has other adapters than are asked for, a setting names a part that
            the model does not have or would be ignored, or a dataset does not fit the model.
        ImportError: adapters are asked for, and peft is not installed.
    """

    def __init__(
        self,
        model: TokenFlowForConditionalGeneration,
        args: UnderstandingTrainingArguments,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ):
        if processing_class is None:
            raise ValueError("UnderstandingTrainer needs processing_class, the processor with the chat template")
        trained = adapt(model, args.lora_rank, args.lora_modules_to_save)
        select_trainable(trained, args.trainable_parts)
        kwargs.setdefault("data_collator", ConversationCollator(processing_class.tokenizer.pad_token_id))
        super().__init__(
            model=trained,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )

    def _examples(self, dataset: Any, train: bool = False) -> Any:
        """Rows of `datasets` as examples; anything else, and what has `input_ids`, gives examples already."""
        args, model, processor = self.args, self.bare_model(), self.processing_class
        if is_table(dataset) and "input_ids" not in column_names(dataset):
            turns, buffer = args.turns_per_conversation, SHUFFLE_BUFFER if train else 0
            with args.main_process_first(desc="tokenising conversations"):
                dataset = conversations(
                    dataset, processor, model.config, args.max_length, turns, args.seed, shuffle_buffer=buffer
                )
        return pack_dataset(dataset, model, args) if train and args.packing else dataset

    def replicated_modules(self) -> list[nn.Module]:
        """The frozen tokenizer, which encodes pictures outside of the model's forward pass."""
        return [self.bare_model().model.tokenizer]

    def bare_model(self) -> Any:
        """The model without what wraps it for distributed training or as adapters."""
        return unwrap_peft_model(self.accelerator.unwrap_model(self.model))

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        """Trainer's; but lengths that are known are not found by reading everything, pictures included."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not has_length(dataset):
            return super()._get_train_sampler(train_dataset)
        lengths = getattr(dataset, "lengths", None)
        if lengths is None:
            lengths = [len(dataset[index]["input_ids"]) for index in range(len(dataset))]
        return EpochLengthGroupedSampler(
            self.args.train_batch_size * self.args.gradient_accumulation_steps,
            lengths,
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
            lambda: int(self.state.epoch or 0),
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> torch.utils.data.Sampler | None:
        """In order: what is evaluated is not grouped by lengths, which Trainer would look for in the pictures."""
        return SequentialSampler(eval_dataset) if has_length(eval_dataset) else None

    # ---- A step ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The mean cross-entropy of answers' tokens, 0 of none, over the whole step where their number is given."""
        logits, targets = self.answer_logits(model, inputs)
        losses = self.token_losses(logits, targets, self.args.label_smoothing_factor)
        if model.training and self.is_measured():
            is_right = (logits.argmax(dim=-1) == targets).sum()
            self.record({"token_accuracy": is_right / (targets != IGNORED).sum().clamp(min=1)})
        if num_items_in_batch is None:
            loss = losses.sum() / (targets != IGNORED).sum().clamp(min=1)
        else:
            loss = self._part_of_step(losses.sum(), num_items_in_batch)
        return (loss, {"logits": logits}) if return_outputs else loss

    def answer_logits(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Scores where a token of an answer comes next in any row, (B, K, V), and these tokens, (B, K), or -100.

        That spares the scores at pictures and questions, whose number is that of the vocabulary each.
        """
        targets = F.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)
        kept = (targets != IGNORED).any(dim=0).nonzero()[:, 0]
        with self.accelerator.autocast():
            logits = model(**self.model_inputs(inputs), logits_to_keep=kept, use_cache=False).logits
        return logits, targets[:, kept]

    def model_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Inputs without labels, and codes in place of pictures.

        Encoding is no part of mixed precision, so that codes are those that `tokenflow encode` writes.
        """
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        if "pixel_values" in inputs:
            check_encoding(self.is_deepspeed_enabled)
            with torch.no_grad():
                inputs["image_codes"] = self.bare_model().model.tokenizer.encode(inputs.pop("pixel_values")).codes
        return inputs

    @staticmethod
    def token_losses(logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """Cross-entropy of each token, 0 where there is none to predict: (B, K, V), (B, K) -> (B, K)"""
        return F.cross_entropy(
            logits.float().transpose(1, 2),
            targets,
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=label_smoothing,
        )

    # ---- Evaluation ----

    def _measure_all(self, model: Any, dataloader: Any, prefix: str) -> tuple[dict[str, float], int]:
        """
        `loss` and `token_accuracy`, means over the tokens of answers, and `answer_accuracy`, the share of conversations
        all of whose answers' tokens are predicted right. Some answers are logged.
        """
        sums: dict[str, float] = defaultdict(float)
        count = 0
        for batch in dataloader:
            values = self.accelerator.gather_for_metrics(self.measure(model, self._prepare_inputs(batch)))
            count += len(values["tokens"])
            for name, value in values.items():
                sums[name] += value.sum().item()
        self._log_answers(dataloader.dataset, prefix)
        check_evaluated(count)
        if sums["tokens"] == 0:
            raise ValueError("nothing to evaluate: the dataset has no token of an answer, that is a label but -100")
        measures = {
            "loss": sums["loss"] / sums["tokens"],
            "token_accuracy": sums["right"] / sums["tokens"],
            "answer_accuracy": sums["all_right"] / count,
        }
        return measures, count

    def measure(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Of each conversation (B,): the sum of losses, how many tokens there are, how many right, whether all."""
        logits, targets = self.answer_logits(model, inputs)
        is_target, is_right = targets != IGNORED, logits.argmax(dim=-1) == targets
        return {
            "loss": self.token_losses(logits, targets).sum(dim=1),
            "tokens": is_target.sum(dim=1),
            "right": is_right.sum(dim=1),
            "all_right": (is_right | ~is_target).all(dim=1),
        }

    def _log_answers(self, dataset: Any, prefix: str) -> None:
        """Log what the model answers to the first questions of conversations all over the dataset."""
        if self.args.logged_answers > 0 and self.is_generating() and has_length(dataset):
            count = min(self.args.logged_answers, len(dataset))
            examples = (dataset[index * len(dataset) // count] for index in range(count))
            lines = [self.answer(example) for example in examples if has_answer(example)]
            if lines and self.is_world_process_zero():
                folder, callbacks = Path(self.args.output_dir, "answers"), self.callback_handler.callbacks
                log_text(prefix, "\n".join(lines), self.state.global_step, folder, callbacks)

    @torch.no_grad()
    def answer(self, example: dict[str, Any]) -> str:
        """A conversation's first question, what the model as it is says most likely, and what would be right."""
        model, tokenizer = self.bare_model(), self.processing_class.tokenizer
        labels = torch.as_tensor(example["labels"])
        is_answer = (labels != IGNORED).tolist()
        start = is_answer.index(True, 1)  # nothing predicts the first token
        end = is_answer.index(False, start) if False in is_answer[start:] else len(is_answer)
        prompt = {name: example[name][:start] for name in ("input_ids", "labels")}
        is_place = torch.as_tensor(prompt["input_ids"]) == model.config.image_token_id
        count = int(is_place.sum()) // model.config.num_image_features
        pictures = {name: example[name][:count] for name in PICTURES if count and example.get(name) is not None}
        batch = self.data_collator([prompt | pictures])
        inputs = self.model_inputs(self._prepare_inputs(batch))
        with self.accelerator.autocast():
            ids = model.generate(**inputs, max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False)[0, start:]
        text = inputs["input_ids"][0, :start][~is_place.to(ids.device)]
        parts = (tokenizer.decode(part, skip_special_tokens=True) for part in (text, ids, labels[start:end]))
        return "{} → {} ({})".format(*(" ".join(part.split()) for part in parts))


def has_answer(example: dict[str, Any]) -> bool:
    """Whether any of an example's tokens is to be predicted, which the first one can't be."""
    return bool((torch.as_tensor(example["labels"])[1:] != IGNORED).any())


class EpochLengthGroupedSampler(LengthGroupedSampler):
    """Its order follows from a seed and the epoch alone, so that a resumed run goes on with that of its checkpoint."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int, epoch: Callable[[], int]) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch())
        return super().__iter__()


def pack_dataset(dataset: Any, model: Any, args: UnderstandingTrainingArguments) -> PackedDataset:
    """
    Conversations put together in rows of `args.max_length`.

    Raises:
        ValueError: their lengths are not known beforehand, or the model's attention would not keep them apart.
    """
    if not isinstance(dataset, ConversationDataset):
        raise ValueError("packing needs to know how long conversations are: not those of a stream, nor drawn questions")
    attention = model.config.text_config._attn_implementation or ""
    if "flash" in attention and args.per_device_train_batch_size > 1:
        raise ValueError(
            f"with {attention} packed conversations are kept apart in rows alone: set per_device_train_batch_size to 1"
        )
    return PackedDataset(dataset, args.max_length)
