"""Draws the figures of docs/how-it-works.md with the small tokenizer: python docs/make_figures.py

The clusters are of emoji that it was not trained on: `python -m training.prepare_emoji` makes them.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from transformers_tokenflow.commands.clustering import read_members
from transformers_tokenflow.commands.contact_sheet import GAP, INK, PAPER, TEXT_HEIGHT, TEXT_SIZE, draw_contact_sheet
from transformers_tokenflow.commands.pictures import PictureBatch, PictureFile, read_batches
from transformers_tokenflow.commands.reconstruction import reconstruct_batch
from transformers_tokenflow.commands.sources import find_sources
from transformers_tokenflow.commands.token_maps import draw_token_map, entry_colors
from transformers_tokenflow.commands.tokenizers import Tokenizer, load_tokenizer
from transformers_tokenflow.evaluation.cluster_page import thumbnail
from transformers_tokenflow.evaluation.clusters import PIXEL, SEMANTIC, Groups

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "figures"
PICTURES = [
    ROOT / "demo" / "pictures" / name for name in ("butterfly-noto.png", "tiger-face-twemoji.png", "cat-photo.jpg")
]
HELD_OUT = [ROOT / "data" / "tiny" / "data" / f"heldout_{kind}-00000.parquet" for kind in ("names", "pairs")]
TITLES = {SEMANTIC: "nearest entry of the semantic codebook", PIXEL: "nearest entry of the pixel codebook"}
CELL, SHARED_SCALE, TILE = 17, 4, 200
CLUSTERS, MEMBERS = 5, 6

Row = tuple[str, Sequence[Image.Image]]


def draw_labelled(rows: Sequence[Row], headings: Sequence[str] = (), label_width: int = 110) -> Image.Image:
    """Rows of pictures with a label before each, the bottoms of a row's pictures on one line."""
    font = ImageFont.load_default(TEXT_SIZE)
    heights = [max(picture.height for picture in pictures) for _, pictures in rows]
    width = max(sum(picture.width + GAP for picture in pictures) for _, pictures in rows)
    top = TEXT_HEIGHT if headings else 0
    sheet = Image.new("RGB", (label_width + width, top + sum(heights) + GAP * (len(rows) + 1)), PAPER)
    draw = ImageDraw.Draw(sheet)
    bottom = top
    for number, ((label, pictures), height) in enumerate(zip(rows, heights, strict=True)):
        bottom += GAP + height
        draw.multiline_text((GAP, bottom - height / 2), label, INK, font, anchor="lm")
        left = label_width
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (left, bottom - picture.height))
            if number == 0 and headings:
                draw.text((left + picture.width / 2, GAP), headings[column], INK, font, anchor="mt")
            left += picture.width + GAP
    return sheet


def read(paths: Sequence[Path], tokenizer: Tokenizer) -> PictureBatch:
    """Pictures as the tokenizer takes them."""
    (batch,) = read_batches([PictureFile(path) for path in paths], tokenizer.processor, len(paths))
    return batch


@torch.inference_mode()
def draw_pyramid(tokenizer: Tokenizer) -> Image.Image:
    """The token maps of a picture, each token as large as any other, in the colours of both codebooks."""
    maps = tokenizer.model.encode(read(PICTURES[:1], tokenizer).pixel_values()).codes_per_scale
    colors = entry_colors(tokenizer.model.quantizer)
    rows = [
        (f"{name}\nentries", [draw_token_map(codes[0], part, CELL * codes.shape[1]) for codes in maps])
        for name, part in colors.items()
    ]
    return draw_labelled(rows, [f"{codes.shape[1]} x {codes.shape[1]}" for codes in maps])


@torch.inference_mode()
def draw_shared_index(tokenizer: Tokenizer) -> Image.Image:
    """A token map with its indices, in the colours of both codebooks, beside its picture."""
    batch = read(PICTURES[:1], tokenizer)
    codes = tokenizer.model.encode(batch.pixel_values()).codes_per_scale
    codes = codes[tokenizer.model.config.scales.index(SHARED_SCALE)][0]
    (picture,) = tokenizer.processor.postprocess(batch.pixel_values())
    maps = [draw_token_map(codes, part, TILE) for part in entry_colors(tokenizer.model.quantizer).values()]
    row = [picture.resize((TILE, TILE), Image.Resampling.NEAREST), *maps]
    return draw_labelled([("", row)], ["the picture", "semantic entries", "pixel entries"], label_width=GAP)


def draw_reconstructions(tokenizer: Tokenizer) -> Image.Image:
    """What each prefix of scales gives."""
    return draw_contact_sheet(reconstruct_batch(read(PICTURES, tokenizer), tokenizer), tokenizer.model.config.scales)


def draw_clusters(tokenizer: Tokenizer) -> Image.Image:
    """Emoji that share their first token: by the semantic codebook alone, and by the pixel codebook alone."""
    sources = find_sources(HELD_OUT).pictures
    groups = Groups(tokenizer.model, [1], MEMBERS)
    for batch in read_batches(sources, tokenizer.processor, 64):
        groups.add([picture.path for picture in batch.pictures], batch.pixel_values())
    chosen = {(1, kind): groups.groupings[1, kind].choose(CLUSTERS) for kind in (SEMANTIC, PIXEL)}
    shown = read_members(sources, chosen, tokenizer, 64)
    halves = []
    for (_, kind), clusters in chosen.items():
        rows = [
            ("", [thumbnail(shown[member.picture], member, 1) for member in cluster.members]) for cluster in clusters
        ]
        half = draw_labelled(rows, label_width=GAP)
        titled = Image.new("RGB", (half.width, half.height + TEXT_HEIGHT), PAPER)
        titled.paste(half, (0, TEXT_HEIGHT))
        ImageDraw.Draw(titled).text((GAP, GAP), TITLES[kind], INK, ImageFont.load_default(TEXT_SIZE), anchor="lt")
        halves.append(titled)
    return draw_labelled([("", halves)], label_width=0)


def main() -> None:
    """Draw all figures."""
    tokenizer = load_tokenizer(device="cpu")
    figures = {
        "pyramid": draw_pyramid,
        "shared-index": draw_shared_index,
        "reconstructions": draw_reconstructions,
        "clusters": draw_clusters,
    }
    FIGURES.mkdir(exist_ok=True)
    for name, draw in figures.items():
        draw(tokenizer).quantize(128).save(FIGURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
