# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Several conversations in one row, so that little of a batch is padding."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from .conversation_data import IGNORED, PICTURES, ConversationDataset, Example


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """
    Put things into as few bins as best fit, from the longest to the shortest, finds.

    Args:
        lengths: of the things, none above `size`.
        size: of a bin.

    Returns:
        The numbers of the things in each bin.
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
