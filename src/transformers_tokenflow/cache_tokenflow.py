# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The cache of next-scale generation: keys and values of whole scales, of which the last can be taken back."""

from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, StaticCache

States = list[tuple[torch.Tensor, torch.Tensor]]


class PreallocatedLayer(DynamicLayer):
    """
    A dynamic layer that never copies what it holds: there is room for all tokens, and `keys` and `values` are views.

    `reorder_cache` and `batch_repeat_interleave`, which this package does not call, are here for callers of
    transformers' `Cache`: the inherited ones would change the views and leave the buffers stale.

    Args:
        max_length: tokens there is room for.
    """

    def __init__(self, max_length: int):
        super().__init__()
        self.max_length = max_length
        self.buffers: list[torch.Tensor] = []

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._hold(key_states[..., :0, :], value_states[..., :0, :])

    def _hold(self, *states: torch.Tensor) -> None:
        """Take new room, for other rows, and move states there."""
        length = states[0].shape[-2]
        self.buffers = [part.new_empty((*part.shape[:2], self.max_length, part.shape[-1])) for part in states]
        for buffer, part in zip(self.buffers, states, strict=True):
            buffer[..., :length, :] = part
        self.keys, self.values = (buffer[..., :length, :] for buffer in self.buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add (B, heads, T, head_dim) states, and return all; a ValueError where there is no room for them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if end > self.max_length:
            raise ValueError(f"the cache has room for {self.max_length} tokens, not for {end}")
        for buffer, part in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = part
        self.keys, self.values = (buffer[..., :end, :] for buffer in self.buffers)
        return self.keys, self.values

    def get_max_length(self) -> int:
        return self.max_length

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep, or repeat, rows: (R,) long."""
        self._hold(self.keys[indices], self.values[indices])

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Put rows in another order."""
        self.batch_select_indices(beam_idx.to(self.keys.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self._hold(self.keys.repeat_interleave(repeats, dim=0), self.values.repeat_interleave(repeats, dim=0))


def make_cache(implementation: str, config: PreTrainedConfig, max_length: int) -> Cache:
    """
    An empty cache.

    Args:
        implementation: `"preallocated"`, `"dynamic"` or `"static"`.
        config: of the language model.
        max_length: tokens that it will have to hold.

    Raises:
        ValueError: there is no such implementation.
    """
    if implementation == "preallocated":
        return Cache(layers=[PreallocatedLayer(max_length) for _ in range(config.num_hidden_layers)])
    if implementation == "dynamic":
        return DynamicCache(config=config)
    if implementation == "static":
        return StaticCache(config=config, max_cache_len=max_length)
    raise ValueError(f"cache_implementation is 'preallocated', 'dynamic' or 'static'; got {implementation!r}")


def select_rows(cache: Cache, rows: torch.Tensor) -> None:
    """Keep, or repeat, rows of the batch: (R,) long."""
    for layer in cache.layers:
        rows = rows.to(layer.keys.device)
        if layer.is_compileable:  # static layers have a place in memory, but no rows to choose before they are compiled
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
            layer.batch_size = len(rows)
        else:
            layer.batch_select_indices(rows)


def rewind(cache: Cache, num_tokens: int) -> None:
    """Forget the last tokens."""
    for layer in cache.layers:
        if layer.is_compileable:  # a static layer has no `crop`: what lies beyond its length is masked and written over
            layer.cumulative_length.sub_(num_tokens)
        else:
            layer.crop(-num_tokens)


def read_last(cache: Cache, num_tokens: int) -> States:
    """Copies of the last tokens' keys and values, each (R, heads, num_tokens, head_dim)."""
    states = []
    for layer in cache.layers:
        end = int(layer.get_seq_length())
        states.append(tuple(part[..., end - num_tokens : end, :].clone() for part in (layer.keys, layer.values)))
    return states


def write_last(cache: Cache, states: States) -> None:
    """Put other keys and values in the place of the last tokens'."""
    rewind(cache, states[0][0].shape[-2])
    for index, (keys, values) in enumerate(states):
        cache.update(keys, values, index)
