# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Sends pictures through the small tokenizer, draws prompts, and reads both: python demo/demo.py [PICTURES...]"""

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from transformers_tokenflow import TextToImagePipeline, TokenFlowConfig
from transformers_tokenflow.commands import CommandError, describing, generation
from transformers_tokenflow.commands.contact_sheet import draw_contact_sheet, draw_grid
from transformers_tokenflow.commands.reconstruction import Reconstruction, reconstruct_pictures
from transformers_tokenflow.commands.tokenizers import Tokenizer, codebook_hash, load_tokenizer

DEMO = Path(__file__).resolve().parent
PICTURES = DEMO / "pictures"
SHEET = DEMO.parent / "outputs" / "demo" / "contact-sheet.png"
PROMPTS = (
    "a red apple",
    "a smiling face with sunglasses",
    "a red heart",
    "a tiger face",
    "a slice of pizza",
    "an evergreen tree",
    "a soccer ball",
    "a green book",
    "the sun",
    "a rocket",
    "a butterfly",
    "a birthday cake",
)
FIRST_SEED = 0


def reconstruct_all(sources: list[Path], tokenizer: Tokenizer) -> tuple[list[Reconstruction], dict[str, str]]:
    """The reconstructions of all pictures, and why others could not be read."""
    reconstructions: list[Reconstruction] = []
    failures: dict[str, str] = {}
    for batch, unreadable, _ in reconstruct_pictures(sources, tokenizer, batch_size=8):
        reconstructions += batch
        failures.update(unreadable)
    return reconstructions, failures


def psnr_table(reconstructions: list[Reconstruction], scales: list[int]) -> Table:
    """PSNR of every picture for every prefix of scales."""
    table = Table("picture", *(f"{scale}×{scale}" for scale in scales), title="PSNR (dB) after each scale")
    for reconstruction in reconstructions:
        name = Path(reconstruction.path).stem.replace("[", r"\[")
        table.add_row(name, *(f"{value:.1f}" for value in reconstruction.psnrs))
    means = [sum(values) / len(values) for values in zip(*(item.psnrs for item in reconstructions), strict=True)]
    table.add_section()
    table.add_row("mean", *(f"{value:.1f}" for value in means))
    return table


def size_line(count: int, config: TokenFlowConfig) -> str:
    """How much smaller the tokens are than the pixels."""
    tokens, bits = config.num_image_tokens, (config.codebook_size - 1).bit_length()
    return (
        f"{count} pictures of {config.image_size}×{config.image_size} pixels, {tokens} tokens of {bits} bits each: "
        f"{tokens * bits / 8:.0f} bytes a picture in place of {3 * config.image_size**2}"
    )


def draw_prompts(painter: TextToImagePipeline, grid: Path) -> tuple[list[generation.Drawn], list[str]]:
    """Draw the demo's prompts on a grid, and tell where it is and how long that took."""
    started = time.perf_counter()
    drawn = list(generation.draw_prompts(painter, PROMPTS, 1, FIRST_SEED, 1, lambda done, total: None))
    seconds = (time.perf_counter() - started) / len(drawn)
    grid.parent.mkdir(parents=True, exist_ok=True)
    draw_grid([item.picture for item in drawn], [item.prompt for item in drawn]).save(grid)
    return drawn, [f"{seconds:.2f} s to draw each of {len(drawn)} prompts", f"generated pictures: {grid}"]


def what_it_sees(sources: list[Path], drawn: list[generation.Drawn], describer: describing.Describer) -> Table:
    """What a model says of pictures, and of those just drawn, which it reads as the tokens they were drawn with."""
    table = Table("picture", "what the model says it is", title="Reading pictures")
    for answers, failures, _ in describing.describe_pictures(sources, describer, None, batch_size=8):
        for path, text in {**answers, **dict.fromkeys(failures, "(can't be read)")}.items():
            table.add_row(Path(path).stem.replace("[", r"\["), text)
    if drawn:
        table.add_section()
        texts = describing.describe_codes(torch.cat([item.codes for item in drawn]), describer)
        for item, text in zip(drawn, texts, strict=True):
            table.add_row(f"drawn: {item.prompt}", text)
    return table


def draw_and_read(
    console: Console, sources: list[Path], generator: str | None, understanding: str | None, grid: Path
) -> None:
    """Draw prompts, and read all pictures, with the models that are given or here."""
    drawn: list[generation.Drawn] = []
    if generator is not None or generation.DEFAULT_MODEL.is_dir():
        painter = generation.load_painter(generator)
        drawn, lines = draw_prompts(painter, grid)
        for line in lines:
            console.print(line, markup=False, soft_wrap=True)
    if understanding is not None or describing.DEFAULT_MODEL.is_dir():
        describer = describing.load_describer(understanding)
        shared = drawn and codebook_hash(painter.model.tokenizer) == codebook_hash(describer.model.model.tokenizer)
        console.print(what_it_sees(sources, drawn if shared else [], describer))


def main(
    pictures: Annotated[list[Path] | None, typer.Argument(help="Pictures of your own, or folders of them.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or Hub repository of a tokenizer.")] = None,
    output: Annotated[Path, typer.Option(help="The contact sheet; the grid of prompts goes beside it.")] = SHEET,
    generator: Annotated[
        str | None,
        typer.Option(help="Folder or Hub repository of a generator; by default the small one, if it's here."),
    ] = None,
    understanding: Annotated[
        str | None,
        typer.Option(
            help="Folder or Hub repository of an understanding model; by default the small one, if it's here."
        ),
    ] = None,
) -> None:
    """
    Reconstruct the demo's pictures, and any given ones, on one contact sheet, draw prompts on another, and tell what is
    on all of them.
    """
    console = Console(highlight=False)
    sources = [PICTURES, *(pictures or ())]
    started = time.perf_counter()
    try:
        tokenizer = load_tokenizer(model)
        loaded = time.perf_counter()
        reconstructions, failures = reconstruct_all(sources, tokenizer)
    except CommandError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    finished = time.perf_counter()
    config = tokenizer.model.config
    output.parent.mkdir(parents=True, exist_ok=True)
    draw_contact_sheet(reconstructions, config.scales).save(output)
    console.print(psnr_table(reconstructions, config.scales))
    lines = [
        *(f"warning: {path} could not be read: {reason}" for path, reason in failures.items()),
        size_line(len(reconstructions), config),
        f"{loaded - started:.1f} s to load the model, {finished - loaded:.1f} s to encode and to decode every prefix",
        f"contact sheet: {output}",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    try:
        draw_and_read(console, sources, generator, understanding, output.with_name("generated.png"))
    except CommandError as error:
        console.print(f"warning: {error}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
