# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Measures how well a tokenizer gives pictures back, and how well it uses its codebook."""

from pathlib import Path
from typing import Any

import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from transformers.utils import logging

from ..evaluation import EvaluationError
from ..evaluation.data import DatasetPicture, describe_rows, load_rows
from ..evaluation.networks import clip_distance, inception_distance, perceptual_similarity
from ..evaluation.parts import UNREADABLE, Parts, Record, Sums
from ..evaluation.reconstruction import COUNTS, ReconstructionMeasures, plot_cluster_sizes
from ..evaluation.report import describe_model, evaluate, files_digest, refuse_others, texts_digest
from . import Advance, CommandError, one_line
from .evaluation import network_name, processes
from .generation import DEFAULT_SCORER, load_scorer
from .pictures import Source, read_batches, refuse_no_pictures, refuse_other_pictures
from .sources import find_sources
from .tokenizers import Tokenizer, load_tokenizer

logger = logging.get_logger(__name__)

INCEPTION = "inception"


def evaluate_reconstruction(
    data: list[str],
    output: Path,
    model: str | None,
    split: str | None,
    column: str,
    limit: int | None,
    features: str | None,
    device: str,
    dtype: str,
    batch_size: int,
    advance: Advance,
) -> dict[str, Any]:
    """
    Measure how well a tokenizer gives pictures back.

    Args:
        data: picture files, parquet files and folders of both; or, with `split`, one dataset.
        output: the JSON file; beside it, `NAME.clusters.png` shows the sizes of clusters.
        model: folder or repository of the tokenizer.
        split: of the dataset, which may be of the Hub.
        column: of its pictures.
        limit: how many pictures, the first ones.
        features: of FID: "inception", or a CLIP as `load_scorer` takes it; by default the former where its weights can
            be had, and else the small teacher.
        device, dtype, batch_size: of the model.
        advance: is told how many pictures are done, of how many.

    Returns:
        The results.

    Raises:
        CommandError: something that is needed is not here, or is not what it should be.
    """
    plot = output.with_name(f"{output.stem}.clusters.png")
    with processes(device) as state:
        refuse_others(output)
        refuse_other_pictures(plot)
        tokenizer = load_tokenizer(model, device, dtype)
        sources, described = find_data(data, split, column, limit)
        with state.local_main_process_first():  # who downloads
            networks = Networks(features, tokenizer.device)
        measures = ReconstructionMeasures(tokenizer.model, networks.fid, networks.lpips)
        description = {
            "evaluation": "reconstruction",
            "model": {**describe_model(tokenizer.name, tokenizer.model), "codebook": tokenizer.codebook_hash()},
            "data": described,
            "settings": {"preprocessing": tokenizer.preprocessing(), "networks": networks.names},
        }

        def work(parts: Parts) -> None:
            measure_share(sources, tokenizer, measures, parts, batch_size, advance)

        def summarize(records: dict[str, Record], sums: Sums) -> dict[str, Any]:
            results = measures.summarize(records, sums)
            if not results["pictures"]:
                raise EvaluationError(f"no picture of {', '.join(data)} could be read")
            plot_cluster_sizes(sums[COUNTS], tokenizer.model.config.scales, plot)
            missing = {} if "rfid" in results["metrics"] else {"rfid": "it takes at least two pictures"}
            return {**results, "not_measured": {**missing, **networks.missing}}

        return evaluate(output, description, state, work, summarize)


def find_data(
    data: list[str], split: str | None, column: str, limit: int | None
) -> tuple[list[Source], dict[str, Any]]:
    """Pictures, and what a report says about them."""
    if split is not None:
        if len(data) != 1:
            raise CommandError(f"--split takes one dataset; got {', '.join(data)}")
        rows = load_rows(data[0], None, split, [column], limit)
        return [DatasetPicture(rows, index, column) for index in range(len(rows))], describe_rows(data[0], None, rows)
    paths = [Path(path) for path in data]
    if missing := [str(path) for path in paths if not path.exists()]:
        raise CommandError(f"there is no {missing[0]}; a dataset of the Hub takes --split as well")
    sources = find_sources(paths).pictures[:limit]
    refuse_no_pictures(sources, paths)
    names = [source.name for source in sources]
    described = {
        "dataset": "+".join(path.resolve().stem for path in paths),
        "paths": data,
        "pictures": len(names),
        "names": texts_digest(names),
        "files": files_digest(source.path for source in sources),
    }
    return sources, described


class Networks:
    """
    The networks that measures take.

    Args:
        features: of FID, see `evaluate_reconstruction`.
        device: where they compute.

    Raises:
        EvaluationError: the features that were asked for can't be had.
        CommandError: there is no such CLIP.
    """

    def __init__(self, features: str | None, device: torch.device) -> None:
        self.names: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.fid = self._fid(features, device)
        try:
            self.lpips = perceptual_similarity(device)
            self.names["lpips"] = "AlexNet"
        except EvaluationError as error:
            self.lpips, self.missing["lpips"] = None, one_line(error)

    def _fid(self, features: str | None, device: torch.device) -> FrechetInceptionDistance | None:
        if features in (None, INCEPTION):
            try:
                metric = inception_distance(device)
                self.names["rfid"] = "Inception v3 of torch-fidelity"
                return metric
            except EvaluationError as error:
                if features is not None:
                    raise
                reason = one_line(error)
            if not DEFAULT_SCORER.is_dir():
                self.missing["rfid"] = reason
                return None
            logger.warning(f"rFID is by the small teacher's features, and can't be compared with others: {reason}")
        self.names["rfid"] = f"CLIP {network_name(features)}"
        return clip_distance(load_scorer(features, device))


def measure_share(
    sources: list[Source],
    tokenizer: Tokenizer,
    measures: ReconstructionMeasures,
    parts: Parts,
    batch_size: int,
    advance: Advance,
) -> None:
    """Measure this process's share of the pictures."""
    by_name = {source.name: source for source in sources}
    share = parts.share(list(by_name))
    done = 0
    for batch in read_batches([by_name[name] for name in share], tokenizer.processor, batch_size):
        records: dict[str, Record] = {name: {UNREADABLE: reason} for name, reason in batch.failures.items()}
        if batch.pictures:
            names = [picture.path for picture in batch.pictures]
            with tokenizer.misfit_reported():
                records |= measures.update(names, batch.pixel_values().to(tokenizer.device))
        parts.add(records, measures.sums)
        done += len(records)
        advance(done, len(share))
