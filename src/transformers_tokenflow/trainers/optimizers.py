# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Muon for the matrices of layers, AdamW for everything else, as one optimizer."""

import re
from typing import Any

import torch
from torch import nn

# Embeddings and heads are matrices too, but their rows are updated one by one.
IN_LAYERS = re.compile(r"(^|\.)layers\.\d+\.")


def layer_matrices(model: nn.Module) -> set[nn.Parameter]:
    """The trained matrices inside a model's layers."""
    return {
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim == 2 and IN_LAYERS.search(name)
    }


class MuonWithAdamW(torch.optim.Optimizer):
    """
    Muon (arXiv 2502.16982) for some parameters and AdamW for the others, at the same learning rates.

    Muon's steps are scaled to the size of AdamW's. Small models learn in less than half the steps.

    Args:
        groups: dictionaries with `params`, `lr` and `weight_decay`.
        matrices: which of the parameters are Muon's.
        momentum: of Muon.
        adamw_options: of AdamW.

    Raises:
        ValueError: no parameter is Muon's, or none is AdamW's.
    """

    def __init__(
        self, groups: list[dict[str, Any]], matrices: set[nn.Parameter], momentum: float = 0.95, **adamw_options: Any
    ):
        parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
        for group in groups:
            for part, is_muons in zip(parts, (True, False), strict=True):
                if chosen := [parameter for parameter in group["params"] if (parameter in matrices) == is_muons]:
                    part.append({**group, "params": chosen})
        if not all(parts):
            raise ValueError("Muon and AdamW share the work: the model needs matrices in layers, and other parameters")
        self.muon = torch.optim.Muon(parts[0], momentum=momentum, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(parts[1], **adamw_options)
        # The groups are the parts' own, so that what a schedule does to these it does to those.
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})

    def step(self, closure: Any = None) -> Any:
        """A step of both."""
        loss = closure() if closure is not None else None
        self.muon.step()
        self.adamw.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]
