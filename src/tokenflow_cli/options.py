# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Arguments and options that several commands take."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer


class Dtype(str, Enum):
    """What the weights are loaded in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


Pictures = Annotated[list[Path], typer.Argument(help="Picture files, and folders of them.", exists=True)]
PicturesOrTables = Annotated[
    list[Path],
    typer.Argument(help="Picture files, parquet files with a column of pictures, and folders of them.", exists=True),
]
Model = Annotated[
    str | None,
    typer.Option(help="Folder or Hub repository of the tokenizer.", show_default="the checkout's tokenflow-tiny"),
]
Generator = Annotated[
    str | None,
    typer.Option(
        help="Folder or Hub repository of a generator.",
        show_default="the checkout's tokenflow-tiny-text-to-image",
    ),
]
Scorer = Annotated[
    str | None,
    typer.Option(
        help="CLIP that judges: a folder, or a name of open_clip.",
        show_default="the checkout's tokenflow-tiny-teacher",
    ),
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps, ..., or the best there is: auto.")]
LoadingDtype = Annotated[Dtype, typer.Option(help="What to compute in.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures that go through the model at a time.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object in place of words.")]
NegativePrompt = Annotated[
    str | None, typer.Option(help="What guidance leads away from.", show_default="the model's own")
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="How much the prompt counts at the last scale; 0: no guidance.",
        show_default="the model's own",
    ),
]
TopK = Annotated[
    str | None,
    typer.Option(
        metavar="K,...",
        help="Likeliest entries that each pass draws from, such as 1200,100,1; 0: all.",
        show_default="the model's own",
    ),
]
TopP = Annotated[
    str | None,
    typer.Option(
        metavar="P,...",
        help="Share of the probability that they make up, such as 0.8,0.8,0; 0: all.",
        show_default="the model's own",
    ),
]
Temperature = Annotated[
    float | None, typer.Option(help="Above 1 draws more freely, below 1 less.", show_default="the model's own")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Changes a setting; repeatable.", show_default="none"),
]


def check_picture_name(path: Path | None) -> Path | None:
    """Refuse a name that doesn't end like a picture's, before the work rather than after it."""
    if path is not None:
        from PIL import Image

        Image.init()
        if Image.EXTENSION.get(path.suffix.lower()) not in Image.SAVE:
            raise typer.BadParameter(f"expected the name of a picture, such as {path.stem}.png; got {path}")
    return path


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


def read_numbers(text: str | None, kind: type[int] | type[float], option: str) -> Any:
    """A number, which counts for every pass, or a list of those with commas between them."""
    try:
        numbers = None if text is None else [kind(part) for part in text.split(",")]
        return numbers[0] if numbers is not None and len(numbers) == 1 else numbers
    except ValueError as error:
        raise typer.BadParameter(f"{option} takes numbers with commas between them; got {text!r}") from error
