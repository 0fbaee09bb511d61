# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Commands of models with a language model: pictures of texts, and texts about pictures."""

import random
from pathlib import Path
from typing import Annotated

import typer

from .mistakes import fail
from .options import (
    AsJson,
    BatchSize,
    Device,
    Dtype,
    Generator,
    GuidanceScale,
    LoadingDtype,
    NegativePrompt,
    Pictures,
    Scorer,
    Temperature,
    TopK,
    TopP,
    check_picture_name,
    sampling_settings,
)
from .output import console, progress_bar, report_failures, say, show


def generate(
    prompts: Annotated[list[str], typer.Argument(help="What to draw.")],
    model: Generator = None,
    output: Annotated[
        Path, typer.Option(help="Folder for the pictures, which are named after prompt and seed.", file_okay=False)
    ] = Path("generated"),
    num_images: Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")] = 1,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Seed of the first picture, from which the others count on.", show_default="a random one"
        ),
    ] = None,
    negative_prompt: NegativePrompt = None,
    guidance_scale: GuidanceScale = None,
    top_k: TopK = None,
    top_p: TopP = None,
    temperature: Temperature = None,
    best_of: Annotated[
        int, typer.Option(min=1, help="Draws that many for each picture, and keeps the one that --scorer likes best.")
    ] = 1,
    scorer: Scorer = None,
    grid: Annotated[
        Path | None,
        typer.Option(
            help="Also draw all pictures and their prompts on this one.", dir_okay=False, callback=check_picture_name
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet",
            "--steps-preview",
            help="Also draw what every scale adds, on this picture.",
            dir_okay=False,
            callback=check_picture_name,
        ),
    ] = None,
    device: Device = "auto",
    dtype: LoadingDtype = Dtype.FLOAT32,
    batch_size: BatchSize = 8,
    as_json: AsJson = False,
) -> None:
    """
    Draw pictures of prompts, as PNGs.

    Examples:

    tokenflow generate "a red apple" --seed 0

    tokenflow generate "a red apple" "an owl" --num-images 4 --guidance-scale 5 --grid all.png
    """
    settings = sampling_settings(negative_prompt, guidance_scale, top_k, top_p, temperature)
    if best_of == 1 and scorer is not None:
        raise typer.BadParameter(
            "it chooses among several: say by --best-of how many are drawn for each", param_hint="--scorer"
        )

    from transformers_tokenflow.commands import counted
    from transformers_tokenflow.commands.contact_sheet import draw_grid
    from transformers_tokenflow.commands.generation import draw_prompts, draw_steps, load_painter, load_scorer
    from transformers_tokenflow.commands.pictures import FileNames, refuse_other_pictures, save_sheet

    for path in (grid, sheet):
        if path is not None:
            refuse_other_pictures(path)
    painter = load_painter(model, device, dtype.value)
    if best_of > 1:
        settings |= {"best_of": best_of, "scorer": load_scorer(scorer, painter.device)}
    if seed is None:
        seed = random.randrange(2**31)
    output.mkdir(parents=True, exist_ok=True)
    names, drawn, written = FileNames(output), [], []
    with progress_bar("drawing") as advance:
        for item in draw_prompts(painter, prompts, num_images, seed, batch_size, advance, **settings):
            path = names.save(item.picture, f"{item.file_name}.png")
            drawn.append(item)
            written.append({"path": path, "prompt": item.prompt, "seed": item.seed})
    if grid is not None:
        columns = num_images if num_images > 1 else None
        save_sheet(draw_grid([item.picture for item in drawn], [item.prompt for item in drawn], columns), grid)
    if sheet is not None:
        save_sheet(draw_steps(drawn, painter), sheet)
    facts = {"output": output, "seed": seed, "pictures": written, "grid": grid, "sheet": sheet}
    show(as_json, facts, f"{output} got {counted(len(drawn), 'picture')}; the first one's seed is {seed}")


def describe(
    pictures: Pictures,
    question: Annotated[
        str | None, typer.Option(help="What to ask.", show_default="what the model is made for")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder or Hub repository of an understanding model.",
            show_default="the checkout's tokenflow-tiny-understanding",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens that an answer may have.", show_default="the model's own")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Draws the words, above 1 more freely; 0: always the likeliest ones.",
            show_default="the model's own",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**64 - 1, help="The same seed draws the same words.", show_default="a random one"),
    ] = None,
    device: Device = "auto",
    dtype: LoadingDtype = Dtype.FLOAT32,
    batch_size: BatchSize = 8,
    as_json: AsJson = False,
) -> None:
    """
    Ask a question about pictures, each by itself, and print the answers.

    Examples:

    tokenflow describe photo.jpg

    tokenflow describe photos/ --question "What is the person doing?" --max-new-tokens 60
    """
    from transformers_tokenflow.commands.describing import answer_settings, describe_pictures, load_describer

    describer = load_describer(model, device, dtype.value)
    settings = answer_settings(max_new_tokens, temperature, seed)
    answers: dict[str, str] = {}
    failures: dict[str, str] = {}
    with progress_bar("describing", beside_results=not as_json) as advance:
        for described, unreadable, total in describe_pictures(pictures, describer, question, batch_size, **settings):
            for path, text in described.items():
                if not as_json:
                    say(text if total == 1 else f"{path}: {text}", console)
            answers |= described
            failures |= unreadable
            advance(len(answers) + len(failures), total)
    report_failures(failures)
    if not answers:
        fail("no picture could be described")
    show(as_json, {"answers": answers, "failures": failures})
