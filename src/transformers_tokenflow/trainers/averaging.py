# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Averaged weights, of models that are sharded too."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from .sharding import is_sharded, shard_state, whole_state


class AveragedWeights(AveragedModel):
    """
    The exponential average of a module's weights. Its state is whole, however the weights are sharded.

    Args:
        part: the module.
        decay: share of the running average that a step keeps.
    """

    def __init__(self, part: nn.Module, decay: float) -> None:
        if any(is_sharded(parameter) for parameter in part.parameters()):
            # One by one: sharded and whole weights, of which there may be both, can't be averaged in one go.
            super().__init__(part, avg_fn=get_ema_avg_fn(decay))
        else:
            super().__init__(part, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """As any module's; called in every process."""
        return whole_state(super().state_dict(*args, **kwargs))

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """What `state_dict` gave; called in every process."""
        return super().load_state_dict(shard_state(state_dict, super().state_dict()), *args, **kwargs)

    @torch.no_grad()
    def follow(self, part: nn.Module, parameters: Iterable[nn.Parameter], rows: Iterable[torch.Tensor | slice]) -> None:
        """Take rows of some parameters over as they are, if the part has them."""
        pairs = zip(part.parameters(), self.module.parameters(), strict=True)
        averages = {parameter: average for parameter, average in pairs}
        for parameter, chosen in zip(parameters, rows, strict=True):
            if parameter in averages:
                averages[parameter][chosen] = parameter[chosen]

    @contextmanager
    def in_place_of(self, part: nn.Module) -> Iterator[None]:
        """The part with its averaged weights."""
        current = {name: tensor.clone() for name, tensor in part.state_dict().items()}
        part.load_state_dict(self.module.state_dict())
        try:
            yield
        finally:
            part.load_state_dict(current)
