# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The commands `tokenflow evaluate ...`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .mistakes import load_commands
from .options import (
    AsJson,
    BatchSize,
    Device,
    Dtype,
    Generator,
    GuidanceScale,
    LoadingDtype,
    Model,
    NegativePrompt,
    Scorer,
    Temperature,
    TopK,
    TopP,
    sampling_settings,
)
from .output import console, error_console, is_main_process, progress_bar, report_failures, say, show

Results = Annotated[
    Path, typer.Option(help="JSON file for the results; a run that was killed goes on from what lies beside it.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first N.", show_default="all")]
UpdateCard = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a model, into whose README.md (for datasets of the Hub also .eval_results) the results are "
        "written.",
        exists=True,
        file_okay=False,
    ),
]


def reconstruction(
    data: Annotated[
        list[str],
        typer.Option(
            help="Picture files, parquet files and folders of both, repeatable; or with --split what `datasets` loads."
        ),
    ],
    model: Model = None,
    output: Results = Path("reconstruction.json"),
    split: Annotated[
        str | None, typer.Option(help="Split of a dataset, which may be of the Hub.", show_default="data are files")
    ] = None,
    column: Annotated[str, typer.Option(help="The dataset's column of pictures.")] = "image",
    limit: Limit = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="What rFID sees with: inception, or a CLIP, a folder or a name of open_clip.",
            show_default="inception where its weights can be had, else the small teacher",
        ),
    ] = None,
    update_card: UpdateCard = None,
    device: Device = "auto",
    dtype: LoadingDtype = Dtype.FLOAT32,
    batch_size: BatchSize = 16,
    as_json: AsJson = False,
) -> None:
    """
    Measure reconstructions: rFID, PSNR, SSIM, LPIPS, and the use of the codebook.

    Beside the file of results lie those of every picture, and a PNG of the sizes of clusters, NAME.clusters.png.

    Examples:

    tokenflow evaluate reconstruction --data photos/

    tokenflow evaluate reconstruction --data user/photos --split test --model tokenflow-xl
    """
    commands = load_commands("evaluate_reconstruction")
    with progress_bar("reconstructing") as advance:
        report = commands.evaluate_reconstruction(
            data, output, model, split, column, limit, features, device, dtype.value, batch_size, advance
        )
    show_results(report, output, update_card, as_json)


def generation(
    prompts: Annotated[
        Path,
        typer.Option(
            help="GenEval's evaluation_metadata.jsonl, DPG-Bench's folder of prompts, or a text with a prompt a line.",
            exists=True,
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="Folder for the pictures; the results are in a JSON file beside it.", file_okay=False)
    ] = Path("generation"),
    model: Generator = None,
    num_images: Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first picture; the others count on.")] = 0,
    scorer: Scorer = None,
    negative_prompt: NegativePrompt = None,
    guidance_scale: GuidanceScale = None,
    top_k: TopK = None,
    top_p: TopP = None,
    temperature: Temperature = None,
    update_card: UpdateCard = None,
    device: Device = "auto",
    dtype: LoadingDtype = Dtype.FLOAT32,
    batch_size: BatchSize = 8,
    as_json: AsJson = False,
) -> None:
    """
    Draw a benchmark's prompts as its own programs expect them, and judge the pictures by a CLIP.

    ImageReward judges them as well, if it is installed.

    Examples:

    tokenflow evaluate generation --prompts evaluation_metadata.jsonl

    tokenflow evaluate generation --prompts prompts.txt --num-images 1 --scorer ViT-B-32/openai
    """
    settings = sampling_settings(negative_prompt, guidance_scale, top_k, top_p, temperature)
    commands = load_commands("evaluate_generation")
    with progress_bar("drawing prompts") as advance:
        report = commands.evaluate_generation(
            prompts, output, model, num_images, seed, scorer, device, dtype.value, batch_size, advance, **settings
        )
    show_results(report, commands.results_beside(output), update_card, as_json)


def understanding(
    data: Annotated[str, typer.Option(help="Table, folder or Hub repository that `datasets` loads.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder or Hub repository of any image-text-to-text model.",
            show_default="the checkout's tokenflow-tiny-understanding",
        ),
    ] = None,
    output: Results = Path("understanding.json"),
    config: Annotated[
        str | None, typer.Option(help="Configuration of the dataset.", show_default="the dataset's own")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split.", show_default="the first there is of test, validation and train")
    ] = None,
    image: Annotated[str, typer.Option(help="Column of pictures.")] = "image",
    question: Annotated[str, typer.Option(help="Column of questions.")] = "question",
    answers: Annotated[
        str | None, typer.Option(help="Column of an answer or several.", show_default="answers or answer")
    ] = None,
    limit: Limit = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What is asked, with {question} in it.",
            show_default="{question}, and to answer with a single word or phrase",
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that an answer may have.")] = 16,
    update_card: UpdateCard = None,
    device: Device = "auto",
    dtype: LoadingDtype = Dtype.FLOAT32,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions that are answered at a time.")] = 8,
    as_json: AsJson = False,
) -> None:
    """
    Ask questions about pictures: exact match, VQA accuracy, and of yes or no the balanced accuracy.

    Examples:

    tokenflow evaluate understanding --data questions.parquet

    tokenflow evaluate understanding --data lmms-lab/POPE --split test --limit 500
    """
    columns = {"image": image, "question": question, **({"answers": answers} if answers else {})}
    commands = load_commands("evaluate_understanding")
    with progress_bar("answering") as advance:
        report = commands.evaluate_understanding(
            model, data, output, config, split, columns, limit, prompt, max_new_tokens, device, dtype.value,
            batch_size, advance,
        )  # fmt: skip
    show_results(report, output, update_card, as_json)


def show_results(report: dict[str, Any], output: Path, card: Path | None, as_json: bool) -> None:
    """Print the metrics, say where everything is, and update a card."""
    if not is_main_process():
        return
    table = Table("metric")
    table.add_column("value", justify="right")
    for name, value in report["metrics"].items():
        table.add_row(name, f"{value:.4f}")
    networks = report["description"]["settings"].get("networks", {})
    judges = [f"{name} is by {network}" for name, network in networks.items()]
    show(as_json, report, table, *judges, f"the results are in {output}")
    for name, reason in report.get("not_measured", {}).items():
        say(f"{name} was not measured: {reason}")
    report_failures(report.get("unreadable", {}), "question" if "questions" in report else "picture")
    if card is not None:
        for path in load_commands("evaluation").write_card(card, report):
            say(f"{path} has them, too", error_console if as_json else console)
