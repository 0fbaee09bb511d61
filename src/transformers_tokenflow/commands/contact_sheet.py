# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Draws reconstructions on one sheet: a row per picture, with its PSNRs, and a column per prefix of scales."""

import math
from collections.abc import Sequence
from pathlib import PurePath

from PIL import Image, ImageDraw, ImageFont

from .reconstruction import Reconstruction

SMALLEST_TILE = 128
LARGEST_TILE = 256
GAP = 8
TEXT_SIZE = 13
TEXT_HEIGHT = 18
INK = (30, 30, 30)
PAPER = (255, 255, 255)


def tile_size(picture_size: int) -> int:
    """Side of a tile: small pictures are enlarged by a whole number, large ones are shrunk."""
    if picture_size >= SMALLEST_TILE:
        return min(picture_size, LARGEST_TILE)
    return picture_size * math.ceil(SMALLEST_TILE / picture_size)


def prefix_headings(scales: Sequence[int]) -> list[str]:
    """The columns' headings: two lines each, the scales so far and their number of tokens."""
    headings, tokens = [], 0
    for number, scale in enumerate(scales, start=1):
        tokens += scale * scale
        what = "final" if number == len(scales) else "scale 1" if number == 1 else f"scales 1 to {number}"
        headings.append(f"{what}\n{tokens} token{'s' if tokens > 1 else ''}")
    return headings


def draw_contact_sheet(reconstructions: Sequence[Reconstruction], scales: Sequence[int]) -> Image.Image:
    """
    One picture of many: per row an original, what each prefix of scales gives, and the PSNRs underneath.

    Args:
        reconstructions: at least one, all of the same size.
        scales: of the tokenizer.
    """
    tile = tile_size(reconstructions[0].original.width)
    headings = ["original", *prefix_headings(scales)]
    row_height = tile + TEXT_HEIGHT + GAP
    top = 2 * TEXT_HEIGHT + 2 * GAP
    width = len(headings) * (tile + GAP) + GAP
    sheet = Image.new("RGB", (width, top + len(reconstructions) * row_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(TEXT_SIZE)
    for column, heading in enumerate(headings):
        draw.multiline_text((GAP + column * (tile + GAP), GAP), heading, INK, font, spacing=4)
    for row, reconstruction in enumerate(reconstructions):
        pictures = [reconstruction.original, *reconstruction.prefixes]
        captions = [PurePath(reconstruction.path).stem, *(f"{value:.2f} dB" for value in reconstruction.psnrs)]
        for column, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
            left, upper = GAP + column * (tile + GAP), top + row * row_height
            sheet.paste(_resize(picture, tile), (left, upper))
            draw.text((left, upper + tile + 2), _shorten(caption, font, tile), INK, font)
    return sheet


def _resize(picture: Image.Image, tile: int) -> Image.Image:
    filter = Image.Resampling.NEAREST if picture.width < tile else Image.Resampling.LANCZOS
    return picture.resize((tile, tile), filter)


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """A text that fits a width in pixels, its end left out where it must be."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    shortened = text
    while text and font.getlength(shortened) > width:
        text = text[:-1]
        shortened = f"{text}…"
    return shortened
