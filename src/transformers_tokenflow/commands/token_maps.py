# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Token maps as pictures: tokens have the same colour where their entries of a codebook are alike."""

import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F

from ..quantization_tokenflow import TokenFlowQuantizer

# Shares of the entries that may be darker or lighter than a channel shows.
DARKEST, LIGHTEST = 0.02, 0.98
# Cells at least so wide, in pixels, hold their index.
SMALLEST_LABELLED_CELL = 30
LUMINANCE = torch.tensor([0.299, 0.587, 0.114])
LIGHT_BACKGROUND = 140


@torch.no_grad()
def entry_colors(quantizer: TokenFlowQuantizer) -> dict[str, torch.Tensor]:
    """
    A colour for each entry of each codebook: its three principal components as red, green and blue.

    Returns:
        `semantic` and `pixel`, those of the two that the quantiser has: (K, 3) uint8.
    """
    parts = zip(("semantic", "pixel"), quantizer.codebook().cpu().split(quantizer.dims, dim=1), strict=True)
    return {name: principal_colors(entries) for name, entries in parts if entries.numel()}


def principal_colors(entries: torch.Tensor) -> torch.Tensor:
    """(K, D) -> (K, 3) uint8. Each axis points to where its largest weight is positive, on any machine."""
    centered = F.pad(entries - entries.mean(dim=0), (0, max(0, 3 - entries.shape[1])))
    axes = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -3:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    components = centered @ axes
    darkest, lightest = components.quantile(torch.tensor([DARKEST, LIGHTEST]), dim=0)
    shares = (components - darkest) / (lightest - darkest).clamp_min(1e-6)
    return shares.clamp(0, 1).mul(255).round().to(torch.uint8)


def draw_token_map(codes: torch.Tensor, colors: torch.Tensor, side: int) -> Image.Image:
    """
    A map of tokens as a square picture. Where there is room, each token's index stands in it.

    Args:
        codes: (s, s) long.
        colors: (K, 3) uint8, see `entry_colors`.
        side: of the picture, in pixels.
    """
    codes = codes.cpu()
    cells = colors[codes]
    picture = Image.fromarray(cells.numpy()).resize((side, side), Image.Resampling.NEAREST)
    cell = side / len(codes)
    if cell < SMALLEST_LABELLED_CELL:
        return picture
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(min(16, int(cell / 2.6)))
    is_light = cells.float() @ LUMINANCE > LIGHT_BACKGROUND
    for row, indices in enumerate(codes.tolist()):
        for column, index in enumerate(indices):
            ink = "black" if is_light[row, column] else "white"
            draw.text(((column + 0.5) * cell, (row + 0.5) * cell), str(index), ink, font, anchor="mm")
    return picture
