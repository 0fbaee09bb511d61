# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Pictures grouped by what they become: by the shared index, and by what either codebook alone would choose."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..modeling_tokenflow import TokenFlowModel
from ..quantization_tokenflow import nearest_entries, pool, to_tokens

KINDS = SEMANTIC, PIXEL, JOINT = "semantic", "pixel", "joint"


@dataclass(frozen=True)
class Member:
    """A token: the picture's name, and row and column on the map of its scale."""

    picture: str
    row: int
    column: int


@dataclass
class Cluster:
    """
    What became the same entry.

    Args:
        entry: its index.
        tokens: how many.
        pictures: of how many pictures.
        members: the first token of each picture, of the first few pictures.
    """

    entry: int
    tokens: int = 0
    pictures: int = 0
    members: list[Member] = field(default_factory=list)


@torch.inference_mode()
def choices(model: TokenFlowModel, pixel_values: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """
    Which entries the tokens choose: with both codebooks, and with one of them alone.

    All three look at the same residuals, those that the tokenizer's own codes leave.

    Args:
        model: the tokenizer.
        pixel_values: (B, 3, H, H) in [-1, 1].

    Returns:
        For every scale a dictionary of (B, s, s) long: `joint`, the codes, and of a tokenizer with two codebooks
        `semantic` and `pixel`.
    """
    quantizer = model.quantizer
    entries = quantizer.codebook()
    features = model.extract_features(pixel_values).to(entries.device, torch.float32)
    codes = quantizer(features).codes
    quantized = quantizer.codes_to_features(codes)
    found = []
    for index, part in enumerate(quantizer.split_codes(codes)):
        residual = features - quantized[:, index - 1] if index else features
        normalized = quantizer.normalize(pool(residual, part.shape[-1]))
        chosen = {JOINT: part}
        if min(quantizer.dims) > 0:
            parts = (tensor.split(quantizer.dims, dim=1) for tensor in (normalized, entries))
            for name, queries, keys in zip((SEMANTIC, PIXEL), *parts, strict=True):
                rows = to_tokens(queries).flatten(0, 1)
                chosen[name] = nearest_entries(rows, keys.contiguous()).view_as(part)
        found.append(chosen)
    return found


class Grouping:
    """
    All tokens of a scale by the entry that they chose.

    Args:
        members: how many members of a cluster are kept, to be shown.
    """

    def __init__(self, members: int) -> None:
        self.members = members
        self.clusters: dict[int, Cluster] = {}

    def add(self, picture: str, entries: torch.Tensor) -> None:
        """Add the tokens of a picture: (s, s) long."""
        seen = set()
        for row, columns in enumerate(entries.tolist()):
            for column, entry in enumerate(columns):
                cluster = self.clusters.setdefault(entry, Cluster(entry))
                cluster.tokens += 1
                if entry not in seen:
                    seen.add(entry)
                    cluster.pictures += 1
                    if len(cluster.members) < self.members:
                        cluster.members.append(Member(picture, row, column))

    @property
    def tokens_per_entry(self) -> float:
        """The mean size of a cluster."""
        return sum(cluster.tokens for cluster in self.clusters.values()) / max(len(self.clusters), 1)

    def choose(self, count: int) -> list[Cluster]:
        """
        Clusters to be shown, those of most pictures first.

        The very largest are mostly plain backgrounds. So of the clusters that have enough pictures, every n-th is
        taken; where there are too few, the largest are.
        """
        ranking = sorted(self.clusters.values(), key=lambda cluster: (-cluster.pictures, cluster.entry))
        full = [cluster for cluster in ranking if len(cluster.members) == self.members]
        if len(full) < count:
            return ranking[:count]
        return [full[number * len(full) // count] for number in range(count)]


class Groups:
    """
    The groupings of several scales, by scale and kind of index.

    Args:
        model: the tokenizer.
        scales: sides of its token maps.
        members: how many members of a cluster are kept.
    """

    def __init__(self, model: TokenFlowModel, scales: Sequence[int], members: int) -> None:
        self.model = model
        both = min(model.quantizer.dims) > 0
        kinds = KINDS if both else (JOINT,)
        self.groupings = {(scale, kind): Grouping(members) for scale in scales for kind in kinds}

    def add(self, names: Sequence[str], pixel_values: torch.Tensor) -> None:
        """Add B pictures, (B, 3, H, H) in [-1, 1]."""
        by_scale = dict(zip(self.model.config.scales, choices(self.model, pixel_values), strict=True))
        for (scale, kind), grouping in self.groupings.items():
            for name, entries in zip(names, by_scale[scale][kind], strict=True):
                grouping.add(name, entries)
