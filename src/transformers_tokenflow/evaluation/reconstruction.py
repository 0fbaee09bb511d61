# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""How well a tokenizer gives pictures back, and how well it uses its codebook."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from ..commands.pictures import MARK
from ..modeling_tokenflow import TokenFlowModel
from .measures import CodebookUse, official_ssim, psnr, ssim
from .parts import Record, Sums, split_unreadable

FID_PREFIX, COUNTS = "fid.", "codes"
# Entries by the number of tokens they stand for.
SIZE_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)


@dataclass
class Reconstructed:
    """
    Pictures and what came back.

    Args:
        codes: (B, L).
        real, fake: (B, 3, H, H) in [0, 1], fp32.
        semantic_features: (B, h·w, d_teacher), or None without a semantic codebook.
    """

    codes: torch.Tensor
    real: torch.Tensor
    fake: torch.Tensor
    semantic_features: torch.Tensor | None

    def psnr(self) -> torch.Tensor:
        """(B,) in dB."""
        return psnr(self.fake, self.real)

    def add_to(self, distance: FrechetInceptionDistance) -> None:
        """Let a distance take both into account."""
        for pictures, is_real in ((self.real, True), (self.fake, False)):
            distance.update((pictures * 255).round().byte(), real=is_real)


@torch.no_grad()
def reconstruct(model: TokenFlowModel, pixel_values: torch.Tensor, batch_size: int = 64) -> Iterator[Reconstructed]:
    """Send pictures (N, 3, H, H) in [-1, 1] through a tokenizer and back, batch by batch."""
    for batch in pixel_values.split(batch_size):
        codes = model.encode(batch).codes
        decoded = model.decode(codes)
        real, fake = ((part.float().clamp(-1, 1) + 1) / 2 for part in (batch, decoded.pixel_values))
        yield Reconstructed(codes, real, fake.to(real.device), decoded.semantic_features)


class ReconstructionMeasures:
    """
    Everything that is measured of reconstructions: a record of each picture, and sums over all of them.

    Args:
        model: the tokenizer.
        fid: distance between pictures and reconstructions, if it is wanted.
        lpips: distance of a picture and its reconstruction, if it is wanted; of pictures in [0, 1].
    """

    def __init__(
        self,
        model: TokenFlowModel,
        fid: FrechetInceptionDistance | None = None,
        lpips: LearnedPerceptualImagePatchSimilarity | None = None,
    ) -> None:
        self.model, self.fid, self.lpips = model, fid, lpips
        self.use = CodebookUse(model.config.scales, model.config.codebook_size)

    @torch.no_grad()
    def update(self, names: Sequence[str], pixel_values: torch.Tensor) -> dict[str, Record]:
        """
        Measure a batch.

        Args:
            names: B of them.
            pixel_values: (B, 3, H, H) in [-1, 1].

        Returns:
            The record of each picture, by its name.
        """
        (output,) = reconstruct(self.model, pixel_values, len(pixel_values))
        self.use.update(self.model.quantizer.split_codes(output.codes))
        values = {
            "psnr": output.psnr(),
            "ssim": ssim(output.fake, output.real),
            "ssim_official": official_ssim(output.fake, output.real),
        }
        if self.lpips is not None:
            values["lpips"] = self.lpips(output.fake, output.real).reshape(-1)
            self.lpips.reset()  # what it keeps of each batch is in the records
        if self.fid is not None:
            output.add_to(self.fid)
        columns = {name: column.tolist() for name, column in values.items()}
        return {name: {measure: column[row] for measure, column in columns.items()} for row, name in enumerate(names)}

    def sums(self) -> Sums:
        """What is added up over pictures."""
        sums = {COUNTS: self.use.counts}
        if self.fid is not None:
            state: dict[str, Any] = self.fid.metric_state
            sums |= {FID_PREFIX + name: value for name, value in state.items()}
        return sums

    def summarize(self, records: dict[str, Record], sums: Sums) -> dict[str, Any]:
        """The results of all processes: `metrics`, and details of the codebook."""
        measured, unreadable = split_unreadable(records)
        metrics = {name: float(np.mean([record[name] for record in measured])) for name in (measured or [{}])[0]}
        counts = sums.get(COUNTS)
        use = CodebookUse(self.model.config.scales, self.model.config.codebook_size, counts)
        if self.fid is not None and len(measured) > 1:
            metrics = {"rfid": self._distance(sums), **metrics}
        sizes = use.cluster_sizes()
        quantiles = torch.quantile(sizes.double(), torch.tensor(SIZE_QUANTILES, dtype=torch.double)).tolist()
        return {
            "metrics": {**metrics, "codebook_utilization": use.utilization()},
            "pictures": len(measured),
            "unreadable": unreadable,
            "codebook_utilization_per_scale": use.utilization_per_scale(),
            "cluster_sizes": {
                "mean": sizes.double().mean().item(),
                "largest": int(sizes.max()),
                "quantiles": dict(zip(map(str, SIZE_QUANTILES), quantiles, strict=True)),
            },
        }

    def _distance(self, sums: Sums) -> float:
        """FID of sums that may come from several processes."""
        self.fid.reset()
        state = {name.removeprefix(FID_PREFIX): value for name, value in sums.items() if name.startswith(FID_PREFIX)}
        self.fid.merge_state({name: value.to(self.fid.device) for name, value in state.items()})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchmetrics misses an update, where states were merged
            return self.fid.compute().item()


def plot_cluster_sizes(counts: torch.Tensor, scales: Sequence[int], path: Path) -> None:
    """
    Draw how many tokens the entries stand for (paper Fig. 7), and what each scale uses.

    Args:
        counts: (S, K).
        scales: S sides.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    use = CodebookUse(scales, counts.shape[1], counts)
    sizes = use.cluster_sizes()
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    distribution, ranking, shares = figure.subplots(1, 3)
    bins = np.geomspace(1, max(int(sizes.max()), 2), 40)
    distribution.hist(sizes[sizes > 0].numpy(), bins=bins, color="tab:blue")
    distribution.set(xscale="log", xlabel="tokens of an entry (cluster size)", ylabel="entries")
    distribution.set_title(f"{(sizes == 0).sum()} of {len(sizes)} entries unused", fontsize=10)
    ranking.plot(range(1, len(sizes) + 1), sizes.sort(descending=True).values.numpy(), color="tab:blue")
    ranking.set(yscale="symlog", xlabel="entries, largest cluster first", ylabel="tokens of an entry")
    ranking.set_title(f"{100 * use.utilization():.1f} % of the codebook used", fontsize=10)
    per_scale = use.utilization_per_scale()
    shares.bar([f"{scale}×{scale}" for scale in per_scale], [100 * share for share in per_scale.values()])
    shares.set(ylim=(0, 100), ylabel="% used of the entries it could use")
    shares.set_title("by scale", fontsize=10)
    shares.tick_params(axis="x", labelrotation=60)
    figure.savefig(path, dpi=120, metadata=dict([MARK]))
