# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Groups pictures by the entries that they become, on a page of HTML."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..evaluation.cluster_page import render
from ..evaluation.clusters import Cluster, Groups
from . import CommandError
from .code_files import written_atomically
from .pictures import Source, read_batches
from .sources import find_sources
from .tokenizers import Tokenizer


@dataclass
class ClusteringReport:
    """How many pictures were grouped, and why others could not be read, by name."""

    pictures: int
    failures: dict[str, str]


def cluster_pictures(
    sources: Sequence[Path],
    output: Path,
    tokenizer: Tokenizer,
    scales: Sequence[int],
    count: int,
    members: int,
    batch_size: int,
    advance: Callable[[int, int], None],
) -> ClusteringReport:
    """
    Write a page with clusters of pictures and of patches.

    Args:
        sources: picture files, parquet files with a column of pictures, and folders of both.
        output: the HTML file.
        tokenizer: see `load_tokenizer`.
        scales: sides of the token maps that are shown; by default the first two: what is left for later ones is
            detail that says less.
        count: clusters of each kind.
        members: pictures of each cluster.
        batch_size: pictures that go through the model at a time.
        advance: is told how many pictures are read, of how many.

    Raises:
        CommandError: there are no pictures, or the model has no such scale.
    """
    known = tokenizer.model.config.scales
    if unknown := sorted(set(scales) - set(known)):
        raise CommandError(f"{tokenizer.name} has no scale {unknown[0]}; its scales are {', '.join(map(str, known))}")
    pictures = find_sources(sources).pictures
    groups = Groups(tokenizer.model, scales or known[:2], members)
    failures: dict[str, str] = {}
    done = 0
    for batch in read_batches(pictures, tokenizer.processor, batch_size):
        failures |= batch.failures
        if batch.pictures:
            names = [picture.path for picture in batch.pictures]
            groups.add(names, batch.pixel_values().to(tokenizer.device))
        done += len(batch.pictures)
        advance(done + len(failures), len(pictures))
    if not done:
        raise CommandError(f"there are no pictures that can be read in {', '.join(map(str, sources))}")
    chosen = {key: grouping.choose(count) for key, grouping in groups.groupings.items()}
    shown = read_members(pictures, chosen, tokenizer, batch_size)
    output.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(output) as temporary:
        temporary.write_text(render(chosen, groups, shown, tokenizer.name, done), encoding="utf-8")
    return ClusteringReport(done, failures)


def read_members(
    pictures: Sequence[Source], chosen: dict[tuple[int, str], list[Cluster]], tokenizer: Tokenizer, batch_size: int
) -> dict[str, Image.Image]:
    """The pictures of the clusters that are shown, as the model is given them: read again, since not all fit."""
    names = {member.picture for clusters in chosen.values() for cluster in clusters for member in cluster.members}
    shown: dict[str, Image.Image] = {}
    for batch in read_batches(
        [picture for picture in pictures if picture.name in names], tokenizer.processor, batch_size
    ):
        images = tokenizer.processor.postprocess(batch.pixel_values())
        shown.update(zip((picture.path for picture in batch.pictures), images, strict=True))
    return shown
