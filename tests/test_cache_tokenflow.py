# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The caches of generation against concatenation."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from transformers_tokenflow.cache_tokenflow import (
    PreallocatedLayer,
    make_cache,
    read_last,
    rewind,
    select_rows,
    write_last,
)

ROWS, HEADS, HEAD_DIM, LAYERS, MAX_LENGTH = 3, 2, 4, 2, 20
CONFIG = LlamaConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=HEADS
)
States = list[tuple[torch.Tensor, torch.Tensor]]
every_cache = pytest.mark.parametrize("implementation", ["preallocated", "dynamic", "static"])


def states(length: int, seed: int = 0, rows: int = ROWS) -> States:
    """Keys and values of every layer."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, HEADS, length, HEAD_DIM)
    return [(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)) for _ in range(LAYERS)]


def add(cache: Cache, *parts: States) -> Cache:
    for part in parts:
        for index, (keys, values) in enumerate(part):
            cache.update(keys, values, index)
    return cache


def concatenated(*parts: States) -> States:
    return [
        tuple(torch.cat(tensors, dim=2) for tensors in zip(*layer, strict=True)) for layer in zip(*parts, strict=True)
    ]


def held(cache: Cache) -> States:
    length = int(cache.get_seq_length())
    return [(layer.keys[..., :length, :], layer.values[..., :length, :]) for layer in cache.layers]


def assert_same(found: States, expected: States):
    assert len(found) == len(expected)
    for part, expected_part in zip(found, expected, strict=True):
        assert all(torch.equal(*pair) for pair in zip(part, expected_part, strict=True))


def buffers(cache: Cache) -> list[int]:
    return [buffer.data_ptr() for layer in cache.layers for buffer in layer.buffers]


# ---- Every kind ----


@every_cache
def test_kinds(implementation: str):
    cache = make_cache(implementation, CONFIG, MAX_LENGTH)
    assert cache.get_seq_length() == 0
    assert isinstance(cache, {"dynamic": DynamicCache, "static": StaticCache}.get(implementation, Cache))
    add(cache, states(3))
    assert len(cache.layers) == LAYERS and cache.get_seq_length() == 3
    assert cache.is_compileable == (implementation == "static")


def test_other_kinds():
    with pytest.raises(ValueError, match="'preallocated', 'dynamic' or 'static'; got 'paged'"):
        make_cache("paged", CONFIG, MAX_LENGTH)


@every_cache
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_what_is_added_is_held(implementation: str, lengths: list[int]):
    parts = [states(length, seed) for seed, length in enumerate(lengths)]
    cache = add(make_cache(implementation, CONFIG, MAX_LENGTH), *parts)
    assert cache.get_seq_length() == sum(lengths)
    assert_same(held(cache), concatenated(*parts))


@every_cache
def test_the_last_tokens_can_be_taken_back(implementation: str):
    prompt, first, second = states(5), states(4, 1), states(4, 2)
    cache = add(make_cache(implementation, CONFIG, MAX_LENGTH), prompt, first)
    rewind(cache, 4)
    assert cache.get_seq_length() == 5
    assert_same(held(cache), prompt)
    add(cache, second)
    assert_same(held(cache), concatenated(prompt, second))


@every_cache
def test_the_last_tokens_can_be_put_back(implementation: str):
    """A refinement pass leaves no trace."""
    prompt, first, second, next_scale = states(5), states(4, 1), states(4, 2), states(6, 3)
    cache = add(make_cache(implementation, CONFIG, MAX_LENGTH), prompt, first)
    saved = read_last(cache, 4)
    assert_same(saved, first)
    rewind(cache, 4)
    add(cache, second)
    assert_same(saved, first)  # a copy
    write_last(cache, saved)
    assert_same(held(cache), concatenated(prompt, first))
    add(cache, next_scale)
    assert_same(held(cache), concatenated(prompt, first, next_scale))


@every_cache
@given(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=7))
def test_rows_can_be_kept_and_repeated(implementation: str, rows: list[int]):
    prompt, scale = states(5), states(4, 1, rows=len(rows))
    cache = add(make_cache(implementation, CONFIG, MAX_LENGTH), prompt)
    select_rows(cache, torch.tensor(rows))
    expected = [(keys[rows], values[rows]) for keys, values in prompt]
    assert_same(held(cache), expected)
    add(cache, scale)
    assert_same(held(cache), concatenated(expected, scale))
    rewind(cache, 4)
    assert_same(held(cache), expected)


@every_cache
def test_what_is_returned_is_all(implementation: str):
    cache = add(make_cache(implementation, CONFIG, MAX_LENGTH), states(5))
    keys, values = cache.update(*states(4, 1)[0], 0)
    length = MAX_LENGTH if implementation == "static" else 9
    assert keys.shape == values.shape == (ROWS, HEADS, length, HEAD_DIM)
    assert torch.equal(keys[..., 5:9, :], states(4, 1)[0][0])


# ---- The one with room for all ----


def preallocated(*parts: States) -> Cache:
    return add(make_cache("preallocated", CONFIG, MAX_LENGTH), *parts)


def test_states_are_views_into_one_place():
    cache = preallocated(states(5))
    for layer in cache.layers:
        assert layer.keys.data_ptr() == layer.buffers[0].data_ptr()
        assert layer.values.data_ptr() == layer.buffers[1].data_ptr()
        assert layer.buffers[0].shape == (ROWS, HEADS, MAX_LENGTH, HEAD_DIM)
        assert (layer.get_max_length(), layer.get_seq_length(), layer.get_mask_sizes(4)) == (MAX_LENGTH, 5, (9, 0))
    keys, _ = cache.update(*states(4, 1)[0], 0)
    assert keys.data_ptr() == cache.layers[0].buffers[0].data_ptr()


def test_room_is_taken_once():
    cache = preallocated(states(5))
    places = buffers(cache)
    for seed in range(1, 4):
        add(cache, states(4, seed))
        saved = read_last(cache, 4)
        rewind(cache, 4)
        add(cache, states(4, seed + 10))
        write_last(cache, saved)
    assert buffers(cache) == places and cache.get_seq_length() == 17


def test_other_rows_take_other_room():
    cache = preallocated(states(5))
    select_rows(cache, torch.tensor([1, 1]))
    assert all(layer.buffers[0].shape == (2, HEADS, MAX_LENGTH, HEAD_DIM) for layer in cache.layers)


OPERATIONS: dict[str, Callable[[Cache], object]] = {
    "repeat": lambda cache: cache.batch_repeat_interleave(2),
    "select": lambda cache: cache.batch_select_indices(torch.tensor([2, 0])),
    "crop": lambda cache: cache.crop(-2),
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([2, 0, 1])),
    "reset": lambda cache: cache.reset(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_of_caches(operation: str):
    """As on a dynamic cache, whatever comes after."""
    caches = [preallocated(states(5)), add(DynamicCache(config=CONFIG), states(5))]
    for cache in caches:
        OPERATIONS[operation](cache)
    rows = 3 if caches[1].layers[0].keys is None else len(caches[1].layers[0].keys)
    for cache in caches:
        add(cache, states(4, 1, rows=rows), states(2, 2, rows=rows))
    assert_same(held(caches[0]), held(caches[1]))


def test_more_than_there_is_room_for():
    cache = preallocated(states(5))
    with pytest.raises(ValueError, match="room for 20 tokens, not for 25"):
        add(cache, states(20, 1))


def test_any_precision():
    layer = PreallocatedLayer(8)
    keys, values = (part.to(torch.bfloat16) for part in states(3)[0])
    layer.update(keys, values)
    assert layer.keys.dtype == layer.buffers[1].dtype == layer.dtype == torch.bfloat16
    assert torch.equal(layer.keys, keys)
