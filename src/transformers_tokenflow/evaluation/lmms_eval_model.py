# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The understanding model as lmms-eval calls it: `lmms-eval --model tokenflow --model_args pretrained=FOLDER`."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import Collator

from .understanding import Answerer

# Where a task does not say.
MAX_NEW_TOKENS = 1024
SAMPLING_OPTIONS = ("temperature", "top_p", "num_beams")


class TokenFlow(lmms):
    """
    Answers lmms-eval's requests, in batches and with as many processes as `accelerate launch` starts.

    Args:
        pretrained: a folder or repository, of this package's models or of any other that
            `AutoModelForImageTextToText` loads.
        device: by default the process's own.
        dtype: what to compute in, as torch names it.
        batch_size: requests at a time.
        max_batch_size: is passed by lmms-eval; sizes are not searched for.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator()
        is_alone = self.accelerator.num_processes == 1
        self.device = torch.device(device) if device and is_alone else self.accelerator.device
        self.answerer = Answerer.from_pretrained(pretrained, self.device, getattr(torch, dtype))
        self.batch_size = int(batch_size)
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to each request, in their order."""
        order = Collator(
            [request.args for request in requests], lambda args: args[3], group_fn=lambda args: args[2], grouping=True
        )
        answers = []
        for batch in order.get_batched(n=self.batch_size):
            documents = [self.task_dict[task][split][index] for _, _, _, index, task, split in batch]
            messages = [args[1](document) for args, document in zip(batch, documents, strict=True)]
            conversations = [ChatMessages(messages=message).to_hf_messages() for message in messages]
            options = batch[0][2]
            texts = self.answerer.answer(conversations, **generate_options(options))
            for args, text in zip(batch, texts, strict=True):
                answers.append(cut(text, options.get("until", [])))
                self.cache_hook.add_partial("generate_until", (args[0], options), answers[-1])
        return order.get_original(answers)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered: lmms-eval's tasks about pictures ask for answers."""
        raise NotImplementedError("TokenFlow answers in words: choose a task whose output type is generate_until")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered."""
        raise NotImplementedError("TokenFlow does not play tasks of several rounds")


def generate_options(options: dict[str, Any]) -> dict[str, Any]:
    """A task's options as `generate` takes them: greedy unless there is a temperature."""
    chosen = {name: options[name] for name in SAMPLING_OPTIONS if options.get(name) is not None}
    do_sample = options.get("do_sample", True) and chosen.get("temperature", 0) > 0
    if not do_sample:
        chosen = {name: value for name, value in chosen.items() if name == "num_beams"}
    return {"max_new_tokens": options.get("max_new_tokens", MAX_NEW_TOKENS), "do_sample": do_sample, **chosen}


def cut(text: str, until: str | Sequence[str]) -> str:
    """A text up to the first of the words at which a task ends it."""
    for stop in [until] if isinstance(until, str) else until:
        text = text.split(stop)[0] if stop else text
    return text
