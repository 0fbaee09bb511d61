# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Draws many pictures on one sheet: reconstructions with what every prefix of scales gives, or drawings."""

import math
from collections.abc import Sequence
from pathlib import PurePath

from PIL import Image, ImageDraw, ImageFont

from ..quantization_tokenflow import prefix_lengths
from . import counted
from .reconstruction import Reconstruction

SMALLEST_TILE = 128
LARGEST_TILE = 256
GAP = 8
TEXT_SIZE = 13
TEXT_HEIGHT = 18
LONGEST_CAPTION = 300
INK = (30, 30, 30)
PAPER = (255, 255, 255)


def tile_size(picture_size: int) -> int:
    """Side of a tile: small pictures are enlarged by a whole number, large ones are shrunk."""
    if picture_size >= SMALLEST_TILE:
        return min(picture_size, LARGEST_TILE)
    return picture_size * math.ceil(SMALLEST_TILE / picture_size)


def prefix_headings(scales: Sequence[int]) -> list[str]:
    """The columns' headings: two lines each, the scales so far and their number of tokens."""
    headings = []
    for number, tokens in enumerate(prefix_lengths(scales), start=1):
        what = "final" if number == len(scales) else "scale 1" if number == 1 else f"scales 1 to {number}"
        headings.append(f"{what}\n{counted(tokens, 'token')}")
    return headings


def draw_contact_sheet(reconstructions: Sequence[Reconstruction], scales: Sequence[int]) -> Image.Image:
    """
    One picture of many: per row an original, what each prefix of scales gives, and the PSNRs underneath.

    Args:
        reconstructions: at least one, all of the same size.
        scales: of the tokenizer.
    """
    rows = []
    for reconstruction in reconstructions:
        pictures = [reconstruction.original, *reconstruction.prefixes]
        captions = [PurePath(reconstruction.path).stem, *(f"{value:.2f} dB" for value in reconstruction.psnrs)]
        rows.append(list(zip(pictures, captions, strict=True)))
    return draw_rows(rows, ["original", *prefix_headings(scales)])


def draw_grid(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int | None = None) -> Image.Image:
    """
    Pictures side by side with captions of up to two lines.

    Args:
        pictures: at least one, all of the same size.
        captions: as many.
        columns: how many stand in a row; by default as many as make the grid nearly square.
    """
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    tiles = list(zip(pictures, captions, strict=True))
    return draw_rows([tiles[start : start + columns] for start in range(0, len(tiles), columns)], caption_lines=2)


def draw_rows(
    rows: Sequence[Sequence[tuple[Image.Image, str]]], headings: Sequence[str] = (), caption_lines: int = 1
) -> Image.Image:
    """
    Tiles in rows.

    Args:
        rows: pictures with their captions, at least one, all pictures of the same size.
        headings: of the columns, of two lines each.
        caption_lines: lines that a caption may take. What does not fit is left out.
    """
    tile = tile_size(rows[0][0][0].width)
    text_height = caption_lines * TEXT_HEIGHT
    row_height = tile + text_height + GAP
    top = 2 * TEXT_HEIGHT + 2 * GAP if headings else GAP
    columns = max(len(headings), *(len(row) for row in rows))
    sheet = Image.new("RGB", (columns * (tile + GAP) + GAP, top + len(rows) * row_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(TEXT_SIZE)
    for column, heading in enumerate(headings):
        draw.multiline_text((GAP + column * (tile + GAP), GAP), heading, INK, font, spacing=4)
    for number, row in enumerate(rows):
        for column, (picture, caption) in enumerate(row):
            left, upper = GAP + column * (tile + GAP), top + number * row_height
            sheet.paste(_resize(picture, tile), (left, upper))
            for line_number, line in enumerate(_wrap(caption, font, tile, caption_lines)):
                draw.text((left, upper + tile + 2 + line_number * TEXT_HEIGHT), line, INK, font)
    return sheet


def _resize(picture: Image.Image, tile: int) -> Image.Image:
    filter = Image.Resampling.NEAREST if picture.width < tile else Image.Resampling.LANCZOS
    return picture.resize((tile, tile), filter)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, lines: int) -> list[str]:
    """A text broken at spaces into lines that fit a width in pixels, the last one shortened."""
    text = text[:LONGEST_CAPTION]  # measuring takes time that grows with the square of the length
    wrapped: list[str] = []
    rest = text.split()
    while rest and len(wrapped) < lines - 1:
        count = 1
        while count < len(rest) and font.getlength(" ".join(rest[: count + 1])) <= width:
            count += 1
        wrapped.append(_shorten(" ".join(rest[:count]), font, width))
        rest = rest[count:]
    return [*wrapped, _shorten(" ".join(rest) if wrapped else text, font, width)]


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """A text that fits a width in pixels, its end left out where it must be."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    shortened = text
    while text and font.getlength(shortened) > width:
        text = text[:-1]
        shortened = f"{text}…"
    return shortened
