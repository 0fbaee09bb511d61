# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The command line. Everything slow is imported when a command runs: the help comes without torch."""

import functools
import importlib
import importlib.metadata
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
except ImportError as error:
    raise ImportError(f"the command line needs `pip install 'transformers-tokenflow[cli]'`: {error}") from error

app = typer.Typer(
    help="Turn pictures into TokenFlow tokens and back, draw pictures of texts, convert and train models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(highlight=False)
error_console = Console(stderr=True, highlight=False)


class Dtype(str, Enum):
    """What the weights are loaded in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


Pictures = Annotated[list[Path], typer.Argument(help="Picture files, and folders of them.", exists=True)]
Model = Annotated[
    str | None,
    typer.Option(help="Folder or Hub repository of the tokenizer; by default the checkout's tokenflow-tiny."),
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps, ..., or auto.")]
LoadingDtype = Annotated[Dtype, typer.Option(help="What to compute in.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures that go through the model at a time.")]
Generator = Annotated[
    str | None,
    typer.Option(help="Folder or Hub repository of a generator; by default the checkout's small one."),
]
NegativePrompt = Annotated[str | None, typer.Option(help="What guidance leads away from; by default the model's own.")]
GuidanceScale = Annotated[
    float | None, typer.Option(min=0.0, help="How much the prompt counts at the last scale; 0: no guidance.")
]
TopK = Annotated[
    str | None,
    typer.Option(metavar="K,...", help="Likeliest entries that each pass draws from, such as 1200,100,1; 0: all."),
]
TopP = Annotated[
    str | None,
    typer.Option(metavar="P,...", help="Share of the probability that they make up, such as 0.8,0.8,0; 0: all."),
]
Temperature = Annotated[float | None, typer.Option(help="Above 1 draws more freely, below 1 less.")]
Results = Annotated[
    Path, typer.Option(help="JSON file for the results; a run that was killed goes on from what lies beside it.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Takes so many, the first ones; by default all.")]
UpdateCard = Annotated[
    Path | None,
    typer.Option(help="Model's folder: its README.md, and for data of the Hub .eval_results, get the results."),
]


def reports_mistakes(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command end with one line, in place of a traceback, for what its user can put right."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        from transformers_tokenflow.commands import CommandError, one_line

        try:
            command(*args, **kwargs)
        except CommandError as error:
            fail(str(error))
        except OSError as error:
            fail(one_line(error))
        except KeyboardInterrupt:
            fail("interrupted", 130)
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":
                raise
            fail("the device has too little memory: try smaller batches, or bfloat16")

    return wrapper


def fail(message: str, code: int = 1) -> None:
    """End the program with a message."""
    say(f"error: {message}")
    raise typer.Exit(code)


def say(message: str, target: Console = error_console) -> None:
    """Print a line as it is: paths may hold what rich takes for markup."""
    target.print(message, markup=False, soft_wrap=True)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, and nothing elsewhere; gives the function that moves it to (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_shown = error_console.is_terminal and is_main_process()
    with Progress(*columns, console=error_console, disable=not is_shown) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def report_failures(failures: dict[str, str]) -> None:
    """List the pictures that could not be read."""
    if failures:
        say(f"warning: {len(failures)} could not be read and were left out:")
    for path, reason in failures.items():
        say(f"  {path}: {reason}")


def show_version(wanted: bool) -> None:
    """Print the versions that matter, and end."""
    if wanted:
        for name in ("transformers-tokenflow", "transformers", "torch"):
            say(f"{name} {installed_version(name)}", console)
        raise typer.Exit


def installed_version(name: str) -> str:
    """The version of a distribution; this package's own is known without being installed, too."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if name != "transformers-tokenflow":
            return "not installed"
        from transformers_tokenflow import __version__

        return __version__


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Turn pictures into TokenFlow tokens and back, draw pictures of texts, convert and train models."""


@app.command()
@reports_mistakes
def reconstruct(
    pictures: Pictures,
    model: Model = None,
    output: Annotated[Path, typer.Option(help="Folder for the reconstructions.")] = Path("reconstructions"),
    sheet: Annotated[
        Path | None, typer.Option(help="Also draw originals and what each prefix of scales gives on this picture.")
    ] = None,
    device: Device = "auto",
    dtype: LoadingDtype = Dtype.FLOAT32,
    batch_size: BatchSize = 16,
) -> None:
    """Send pictures through the tokenizer, and save what comes back as PNGs."""
    from transformers_tokenflow.commands.contact_sheet import draw_contact_sheet
    from transformers_tokenflow.commands.pictures import FileNames
    from transformers_tokenflow.commands.reconstruction import reconstruct_pictures
    from transformers_tokenflow.commands.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(model, device, dtype.value)
    output.mkdir(parents=True, exist_ok=True)
    names = FileNames(output)
    psnrs: dict[str, float] = {}
    shown, failures = [], {}
    with progress_bar("reconstructing") as advance:
        for reconstructions, unreadable, total in reconstruct_pictures(pictures, tokenizer, batch_size):
            for reconstruction in reconstructions:
                reconstruction.prefixes[-1].save(names.path_for(reconstruction.path))
                psnrs[reconstruction.path] = reconstruction.psnrs[-1]
                if sheet is not None:
                    shown.append(reconstruction)
            failures.update(unreadable)
            advance(len(psnrs) + len(failures), total)
    report_failures(failures)
    if not psnrs:
        fail("no picture could be reconstructed")
    if sheet is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        draw_contact_sheet(shown, tokenizer.model.config.scales).save(sheet)
    console.print(psnr_table(psnrs))
    say(f"{len(psnrs)} reconstructions are in {output}", console)


def psnr_table(psnrs: dict[str, float]) -> Table:
    """Pictures and how near their reconstructions come to them."""
    table = Table("picture", show_footer=True)
    table.columns[0].footer, table.columns[0].overflow = "mean", "fold"
    table.add_column("PSNR (dB)", f"{sum(psnrs.values()) / len(psnrs):.2f}", justify="right")
    for path, value in psnrs.items():
        table.add_row(path.replace("[", r"\["), f"{value:.2f}")
    return table


@app.command()
@reports_mistakes
def encode(
    pictures: Annotated[
        list[Path],
        typer.Argument(
            help="Picture files, parquet files with a column of pictures, and folders of them.", exists=True
        ),
    ],
    codes: Annotated[Path, typer.Argument(metavar="CODES.PARQUET", help="Parquet file to write.", dir_okay=False)],
    model: Model = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="A column to keep beside `text`, of parquet files or a folder's metadata; repeatable."),
    ] = None,
    device: Device = "auto",
    dtype: LoadingDtype = Dtype.FLOAT32,
    batch_size: BatchSize = 16,
) -> None:
    """
    Turn pictures into tokens: a parquet file with the columns path, codes, height and width.

    Captions are kept as the column text: those of parquet files, and of a folder's metadata.jsonl or metadata.csv.

    What is done is kept every few seconds. After an interruption, or with more pictures in the folder, the same
    command goes on from there. Pictures that can't be read are listed and left out.
    """
    from transformers_tokenflow.commands.encoding import encode_pictures
    from transformers_tokenflow.commands.tokenizers import load_tokenizer

    if codes.suffix != ".parquet":
        raise typer.BadParameter(f"the last argument is the file to write, and ends in .parquet; got {codes}")
    tokenizer = load_tokenizer(model, device, dtype.value)
    with progress_bar("encoding") as advance:
        report = encode_pictures(pictures, codes, tokenizer, batch_size, advance, keep or ())
    report_failures(report.failures)
    if not report.encoded + report.done_before:
        fail("no picture could be encoded")
    tokens = tokenizer.model.config.num_image_tokens
    before = f", and had {report.done_before} before" if report.done_before else ""
    say(f"{codes} got {report.encoded} pictures of {tokens} tokens{before}", console)


@app.command()
@reports_mistakes
def decode(
    codes: Annotated[
        Path, typer.Argument(metavar="CODES.PARQUET", help="Parquet file to read.", exists=True, dir_okay=False)
    ],
    folder: Annotated[Path, typer.Argument(help="Folder for the pictures.", file_okay=False)],
    model: Model = None,
    device: Device = "auto",
    dtype: LoadingDtype = Dtype.FLOAT32,
    batch_size: BatchSize = 16,
) -> None:
    """Turn tokens back into pictures: PNGs that are named like the pictures they come from."""
    from transformers_tokenflow.commands.encoding import decode_pictures
    from transformers_tokenflow.commands.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(model, device, dtype.value)
    with progress_bar("decoding") as advance:
        count = decode_pictures(codes, folder, tokenizer, batch_size, advance)
    say(f"{count} pictures are in {folder}", console)


@app.command()
@reports_mistakes
def generate(
    prompts: Annotated[list[str], typer.Argument(help="What to draw.")],
    model: Generator = None,
    output: Annotated[
        Path, typer.Option(help="Folder for the pictures, which are named after prompt and seed.", file_okay=False)
    ] = Path("generated"),
    num_images: Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")] = 1,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of the first picture, from which the others count on; by default a random one."),
    ] = None,
    negative_prompt: NegativePrompt = None,
    guidance_scale: GuidanceScale = None,
    top_k: TopK = None,
    top_p: TopP = None,
    temperature: Temperature = None,
    best_of: Annotated[int, typer.Option(min=1, help="Draws that many for each picture, and keeps the best.")] = 1,
    scorer: Annotated[
        str | None,
        typer.Option(help="CLIP that tells the best: a folder, or a name of open_clip; by default the small teacher."),
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(help="Also draw all pictures and their prompts on this one.", dir_okay=False)
    ] = None,
    steps: Annotated[
        Path | None,
        typer.Option(
            "--sheet", "--steps-preview", help="Also draw what every scale adds, on this picture.", dir_okay=False
        ),
    ] = None,
    device: Device = "auto",
    dtype: LoadingDtype = Dtype.FLOAT32,
    batch_size: BatchSize = 8,
) -> None:
    """Draw pictures of prompts, as PNGs."""
    settings = sampling_settings(negative_prompt, guidance_scale, top_k, top_p, temperature)

    from transformers_tokenflow.commands.contact_sheet import draw_grid
    from transformers_tokenflow.commands.generation import draw_prompts, draw_steps, load_painter, load_scorer
    from transformers_tokenflow.commands.pictures import FileNames

    painter = load_painter(model, device, dtype.value)
    if best_of > 1:
        settings |= {"best_of": best_of, "scorer": load_scorer(scorer, painter.device)}
    if seed is None:
        seed = random.randrange(2**31)
    output.mkdir(parents=True, exist_ok=True)
    names, drawn = FileNames(output), []
    with progress_bar("drawing") as advance:
        for item in draw_prompts(painter, prompts, num_images, seed, batch_size, advance, **settings):
            item.picture.save(names.path_for(f"{item.file_name}.png"))
            drawn.append(item)
    if grid is not None:
        grid.parent.mkdir(parents=True, exist_ok=True)
        columns = num_images if num_images > 1 else None
        draw_grid([item.picture for item in drawn], [item.prompt for item in drawn], columns).save(grid)
    if steps is not None:
        steps.parent.mkdir(parents=True, exist_ok=True)
        draw_steps(drawn, painter).save(steps)
    say(f"{len(drawn)} pictures are in {output}; the first one's seed is {seed}", console)


def sampling_settings(
    negative_prompt: str | None,
    guidance_scale: float | None,
    top_k: str | None,
    top_p: str | None,
    temperature: float | None,
) -> dict[str, Any]:
    """What is given of the pipeline's settings."""
    settings = {
        "negative_prompt": negative_prompt,
        "guidance_scale": guidance_scale,
        "top_k": read_numbers(top_k, int, "--top-k"),
        "top_p": read_numbers(top_p, float, "--top-p"),
        "temperature": temperature,
    }
    return {name: value for name, value in settings.items() if value is not None}


def read_numbers(text: str | None, kind: type[int] | type[float], option: str) -> list[int] | list[float] | None:
    """Numbers with commas between them."""
    try:
        return None if text is None else [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{option} takes numbers with commas between them; got {text!r}") from error


@app.command()
@reports_mistakes
def describe(
    pictures: Pictures,
    question: Annotated[str | None, typer.Option(help="What to ask; by default what the model is made for.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Folder or Hub repository of an understanding model; by default the checkout's small one."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens that an answer may have; by default as many as the model's own.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Draws the words, above 1 more freely; 0: always the likeliest ones.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed draws the same words.")] = None,
    device: Device = "auto",
    dtype: LoadingDtype = Dtype.FLOAT32,
    batch_size: BatchSize = 8,
) -> None:
    """Ask a question about pictures, each by itself, and print the answers."""
    from transformers_tokenflow.commands.describing import answer_settings, describe_pictures, load_describer

    describer = load_describer(model, device, dtype.value)
    settings = answer_settings(max_new_tokens, temperature, seed)
    answers: dict[str, str] = {}
    failures: dict[str, str] = {}
    with progress_bar("describing") as advance:
        for described, unreadable, total in describe_pictures(pictures, describer, question, batch_size, **settings):
            for path, text in described.items():
                say(text if total == 1 else f"{path}: {text}", console)
            answers |= described
            failures |= unreadable
            advance(len(answers) + len(failures), total)
    report_failures(failures)
    if not answers:
        fail("no picture could be described")


@app.command()
@reports_mistakes
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="Official .pt file, safetensors with its keys, or a folder of shards.", exists=True)
    ],
    folder: Annotated[Path, typer.Argument(help="Folder for the model; it must not hold anything.", file_okay=False)],
    tokenizer: Annotated[
        Path | None, typer.Option(help="File of the image tokenizer, which generators' checkpoints lack.", exists=True)
    ] = None,
    text_tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder or repository of the text tokenizer, if CHECKPOINT needs one and doesn't hold it."),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            help="What to save the weights in; codebooks are float32 in any case.", show_default="the checkpoint's"
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A field of the configuration that shapes don't show."),
    ] = None,
) -> None:
    """
    Convert an official checkpoint to a folder with model, processor and code.

    The variant is read off the tensors. A checkpoint of other than the released sizes may need help, such as
    --set semantic_config.num_attention_heads=16. A generator, and an understanding model without it, takes the file of
    its image tokenizer as well:
    tokenflow convert TokenFlow-t2i FOLDER --tokenizer tokenflow_clipb_32k_enhanced.pt
    """
    from transformers_tokenflow.commands.conversion import WHAT, convert_checkpoint

    with progress_bar("writing megabytes") as advance:
        converted = convert_checkpoint(
            checkpoint,
            folder,
            dtype.value if dtype is not None else None,
            settings or (),
            tokenizer,
            text_tokenizer,
            lambda done, total: advance(done // 10**6, total // 10**6),
        )
    config = converted.config
    image = getattr(config, "tokenizer_config", config)
    say(
        f"{folder} holds {WHAT[config.model_type]} of {image.image_size}-pixel pictures with a {image.semantic_config.model_type}: "
        f"{image.num_image_tokens} tokens of {image.codebook_size}, {converted.num_parameters / 1e6:,.1f} M parameters",
        console,
    )


@app.command()
@reports_mistakes
def info(
    model: Annotated[str, typer.Argument(metavar="FOLDER|REPO", help="Folder or Hub repository of a model.")],
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Tell what a model is: its sizes, tokens, parameters, files and license. No weights are loaded."""
    from transformers_tokenflow.commands.information import inspect_model

    information = inspect_model(model)
    if as_json:
        say(json.dumps(information.to_dict(), indent=2), console)
        return
    table = Table(show_header=False, title=information.name)
    for label, value in information.to_rows().items():
        table.add_row(label, value.replace("[", r"\["))
    console.print(table)


@app.command()
@reports_mistakes
def publish(
    folder: Annotated[Path, typer.Argument(help="Folder of a model.", exists=True, file_okay=False)],
    repository: Annotated[str, typer.Argument(metavar="REPO_ID", help="Where to on the Hub, such as user/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make a repository that nobody else sees.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, and upload nothing.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, which is made if it is not there.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    token: Annotated[str | None, typer.Option(help="Of the Hub; by default the one of `hf auth login`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """
    Check a model's folder, and upload it to the Hub.

    It must load by its remote code where this package is not installed, and have a card with a license; pickles,
    secrets and links out of the folder are refused. After an interruption the same command goes on.
    """
    from transformers_tokenflow.commands.publishing import is_repository, publish_folder

    if not is_repository(repository):
        raise typer.BadParameter(f"REPO_ID is the name of a repository, such as user/name; got {repository!r}")
    if create_pr and revision is not None:
        raise typer.BadParameter("--create-pr opens a pull request to the main branch: leave --revision out")
    options = {"private": private, "revision": revision, "create_pr": create_pr, "token": token}
    result = publish_folder(
        folder, repository, dry_run=dry_run, report=say, shows_progress=error_console.is_terminal, **options
    )
    if as_json:
        say(json.dumps({**result.to_dict(), "dry_run": dry_run}, indent=2), console)
    for problem in result.problems:
        say(f"  {problem}")
    if result.problems:
        fail(f"nothing was uploaded: {len(result.problems)} problems with {folder}")
    if dry_run:
        say(f"nothing is wrong: {result.files} files, {result.size / 1e6:,.1f} MB, would be uploaded")
    if not as_json:
        say(result.url, console)


@app.command()
@reports_mistakes
def train(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.YAML", help="What to train on what.", exists=True, dir_okay=False)
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as training.max_steps=20; repeatable."),
    ] = None,
) -> None:
    """
    Train a tokenizer, from the last checkpoint in its output folder if there is one.

    On several devices: accelerate launch -m transformers_tokenflow.cli train RECIPE.YAML
    """
    from transformers_tokenflow.commands.training import train_recipe

    trainer = train_recipe(recipe, settings or ())
    if trainer.is_world_process_zero():
        say(f"the model is in {trainer.args.output_dir}", console)


evaluation = typer.Typer(
    help="Measure a tokenizer, a generator or an understanding model.\n\n"
    "On several devices: accelerate launch -m transformers_tokenflow.cli evaluate ...",
    no_args_is_help=True,
)
app.add_typer(evaluation, name="evaluate")


def load_commands(name: str) -> Any:
    """A module of commands that need the extra `eval`."""
    try:
        return importlib.import_module(f"transformers_tokenflow.commands.{name}")
    except ImportError as error:
        fail(f"this needs `pip install 'transformers-tokenflow[eval]'`: {error}")


def is_main_process() -> bool:
    """Whether this is the one of several processes that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


def show_results(report: dict[str, Any], output: Path, card: Path | None) -> None:
    """Print the metrics, say where everything is, and update a card."""
    if not is_main_process():
        return
    table = Table("metric")
    table.add_column("value", justify="right")
    for name, value in report["metrics"].items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
    for name, network in report["description"]["settings"].get("networks", {}).items():
        say(f"{name} is by {network}", console)
    for name, reason in report.get("not_measured", {}).items():
        say(f"{name} was not measured: {reason}")
    report_failures(report.get("unreadable", {}))
    say(f"the results are in {output}", console)
    if card is not None:
        for path in load_commands("evaluation").write_card(card, report):
            say(f"{path} has them, too", console)


@evaluation.command()
@reports_mistakes
def reconstruction(
    data: Annotated[
        list[str],
        typer.Option(
            help="Picture files, parquet files and folders of both, repeatable; or with --split what `datasets` loads."
        ),
    ],
    model: Model = None,
    output: Results = Path("reconstruction.json"),
    split: Annotated[str | None, typer.Option(help="Split of a dataset, which may be of the Hub.")] = None,
    column: Annotated[str, typer.Option(help="The dataset's column of pictures.")] = "image",
    limit: Limit = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="What rFID sees with: inception, or a CLIP, a folder or a name of open_clip; by default inception "
            "where its weights can be had, else the small teacher."
        ),
    ] = None,
    update_card: UpdateCard = None,
    device: Device = "auto",
    dtype: LoadingDtype = Dtype.FLOAT32,
    batch_size: BatchSize = 16,
) -> None:
    """
    Measure reconstructions: rFID, PSNR, SSIM, LPIPS, and the use of the codebook.

    Beside the file of results lie those of every picture, and a PNG of the sizes of clusters.
    """
    commands = load_commands("evaluate_reconstruction")
    with progress_bar("reconstructing") as advance:
        report = commands.evaluate_reconstruction(
            data, output, model, split, column, limit, features, device, dtype.value, batch_size, advance
        )
    show_results(report, output, update_card)


@evaluation.command()
@reports_mistakes
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
    scorer: Annotated[
        str | None,
        typer.Option(help="CLIP that judges: a folder, or a name of open_clip; by default the small teacher."),
    ] = None,
    negative_prompt: NegativePrompt = None,
    guidance_scale: GuidanceScale = None,
    top_k: TopK = None,
    top_p: TopP = None,
    temperature: Temperature = None,
    update_card: UpdateCard = None,
    device: Device = "auto",
    dtype: LoadingDtype = Dtype.FLOAT32,
    batch_size: BatchSize = 8,
) -> None:
    """
    Draw a benchmark's prompts as its own programs expect them, and judge the pictures by a CLIP.

    With ImageReward installed by that, too.
    """
    settings = sampling_settings(negative_prompt, guidance_scale, top_k, top_p, temperature)
    commands = load_commands("evaluate_generation")
    with progress_bar("drawing prompts") as advance:
        report = commands.evaluate_generation(
            prompts, output, model, num_images, seed, scorer, device, dtype.value, batch_size, advance, **settings
        )
    show_results(report, output.with_name(f"{output.name}.json"), update_card)


@evaluation.command()
@reports_mistakes
def understanding(
    data: Annotated[str, typer.Option(help="Table, folder or Hub repository that `datasets` loads.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder or Hub repository of any image-text-to-text model; by default the checkout's small one."
        ),
    ] = None,
    output: Results = Path("understanding.json"),
    config: Annotated[str | None, typer.Option(help="Configuration of the dataset.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Split; by default the first there is of test, validation and train.")
    ] = None,
    image: Annotated[str, typer.Option(help="Column of pictures.")] = "image",
    question: Annotated[str, typer.Option(help="Column of questions.")] = "question",
    answers: Annotated[
        str | None, typer.Option(help="Column of an answer or several; by default answers or answer.")
    ] = None,
    limit: Limit = None,
    prompt: Annotated[
        str, typer.Option(help="What is asked.")
    ] = "{question}\nAnswer the question using a single word or phrase.",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that an answer may have.")] = 16,
    update_card: UpdateCard = None,
    device: Device = "auto",
    dtype: LoadingDtype = Dtype.FLOAT32,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions that are answered at a time.")] = 8,
) -> None:
    """Ask questions about pictures: exact match, VQA accuracy, and of yes or no the balanced accuracy."""
    columns = {"image": image, "question": question, **({"answers": answers} if answers else {})}
    commands = load_commands("evaluate_understanding")
    with progress_bar("answering") as advance:
        report = commands.evaluate_understanding(
            model, data, output, config, split, columns, limit, prompt, max_new_tokens, device, dtype.value,
            batch_size, advance,
        )  # fmt: skip
    show_results(report, output, update_card)


@app.command()
@reports_mistakes
def cluster(
    pictures: Annotated[
        list[Path],
        typer.Argument(
            help="Picture files, parquet files with a column of pictures, and folders of them.", exists=True
        ),
    ],
    output: Annotated[Path, typer.Option(help="HTML file to write, which needs no other.", dir_okay=False)] = Path(
        "clusters.html"
    ),
    model: Model = None,
    scale: Annotated[
        list[int] | None,
        typer.Option(help="Side of the token map that is grouped, repeatable; by default the first two."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Clusters of each kind.")] = 16,
    members: Annotated[int, typer.Option(min=1, help="Pictures of each cluster.")] = 12,
    device: Device = "auto",
    dtype: LoadingDtype = Dtype.FLOAT32,
    batch_size: BatchSize = 16,
) -> None:
    """Show which pictures and patches share an entry: of one codebook alone, of the other, and of both."""
    from transformers_tokenflow.commands.tokenizers import load_tokenizer

    commands = load_commands("clustering")
    tokenizer = load_tokenizer(model, device, dtype.value)
    with progress_bar("grouping") as advance:
        failures = commands.cluster_pictures(
            pictures, output, tokenizer, scale or [], count, members, batch_size, advance
        )
    report_failures(failures)
    say(f"the clusters are in {output}", console)


def run() -> None:
    """Run the command line under its own name, however it was started."""
    app(prog_name="tokenflow")


if __name__ == "__main__":
    run()
