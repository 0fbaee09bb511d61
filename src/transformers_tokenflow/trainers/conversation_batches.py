# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Conversations to batches, each in a row or, so that little of a batch is padding, several packed into one."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from .conversation_data import IGNORED, PICTURES, ConversationDataset, Example


@dataclass
class ConversationCollator:
    """
    Examples to a batch, with padding to the right: `input_ids` and `labels` (B, T), `image_codes` or `pixel_values` of
    all pictures in order, and `attention_mask` (B, T), or of packed rows `position_ids`.

    Args:
        pad_token_id: what fills up.
        pad_to_multiple_of: that T is to be a multiple of.
    """

    pad_token_id: int
    pad_to_multiple_of: int = 1

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Raises:
            ValueError: an example lacks tokens or labels.
        """
        if missing := {"input_ids", "labels"} - examples[0].keys():
            raise ValueError(f"an example has input_ids and labels; got {', '.join(examples[0])} without {missing}")
        length = max(len(example["input_ids"]) for example in examples)
        length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
        batch = {
            "input_ids": pad([example["input_ids"] for example in examples], length, self.pad_token_id),
            "labels": pad([example["labels"] for example in examples], length, IGNORED),
        }
        if "position_ids" in examples[0]:
            # Padding goes by the position 0, again and again: every token of it is a sequence of its own.
            batch["position_ids"] = pad([example["position_ids"] for example in examples], length, 0)
        else:
            batch["attention_mask"] = pad([np.ones_like(example["input_ids"]) for example in examples], length, 0)
        for name in PICTURES:
            if parts := [torch.as_tensor(example[name]) for example in examples if example.get(name) is not None]:
                batch[name] = torch.cat(parts)
        return batch


def pad(rows: list[Any], length: int, value: int) -> torch.Tensor:
    """Sequences, filled up on their right: (B, length) long."""
    return torch.stack(
        [F.pad(torch.as_tensor(row, dtype=torch.long), (0, length - len(row)), value=value) for row in rows]
    )


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """
    Best-fit decreasing: from the longest on, each item goes into the fullest bin that has room.

    Args:
        lengths: of the items, none above `size`.
        size: of a bin.

    Returns:
        The numbers of the items in each bin.
    """
    bins: list[list[int]] = []
    by_space: dict[int, list[int]] = defaultdict(list)
    spaces = 0  # bit i tells whether a bin has exactly i left
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        if fitting := spaces >> length:
            space = length + (fitting & -fitting).bit_length() - 1
            number = by_space[space].pop()
            if not by_space[space]:
                spaces &= ~(1 << space)
        else:
            space, number = size, len(bins)
            bins.append([])
        bins[number].append(index)
        by_space[space - length].append(number)
        spaces |= 1 << (space - length)
    return bins


class PackedDataset(Dataset):
    """
    Rows of several conversations each, the same ones in every epoch, with `position_ids` (T,) that begin anew with
    each: from these transformers' masks tell where one ends.

    Args:
        dataset: the conversations.
        max_length: of a row; none of them is longer.
    """

    def __init__(self, dataset: ConversationDataset, max_length: int) -> None:
        self.dataset = dataset
        self.rows = pack(dataset.lengths, max_length)
        self.lengths = [sum(dataset.lengths[index] for index in row) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return join(self.dataset.__getitems__(self.rows[index]))


def join(examples: list[Example]) -> Example:
    """Conversations as one row: `input_ids`, `labels` and `position_ids` (T,), and all pictures."""
    labels = [example["labels"].copy() for example in examples]
    for row in labels:
        row[0] = IGNORED  # it would follow another conversation's last token
    joined = {
        "input_ids": np.concatenate([example["input_ids"] for example in examples]),
        "labels": np.concatenate(labels),
        "position_ids": np.concatenate([np.arange(len(row)) for row in labels]),
    }
    for name in PICTURES:
        if parts := [example[name] for example in examples if name in example]:
            joined[name] = np.concatenate(parts)
    return joined
