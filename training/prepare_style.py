"""Draws pictures in a style that the small generator does not know: emoji as blueprints, white on dark blue.

    python -m training.prepare_style data/blueprint

They lie in one folder, beside a `metadata.jsonl` with their captions: what `datasets` calls an imagefolder, and what
pictures of one's own should look like.
"""

import json
from pathlib import Path

import typer
from datasets import load_dataset
from PIL import Image, ImageOps

from training.prepare_captions import select_rows, with_article

PAPER, INK = (16, 44, 110), (245, 248, 255)


def as_blueprint(picture: Image.Image) -> Image.Image:
    """A picture over white, drawn in light ink on blue paper."""
    return ImageOps.colorize(ImageOps.autocontrast(ImageOps.invert(picture.convert("L"))), PAPER, INK)


def main(output: Path, data: Path = Path("data/tiny"), count: int = 400) -> None:
    """Writes COUNT pictures of DATA in the new style, and their captions, to OUTPUT."""
    rows = select_rows(load_dataset(str(data), split="train"))
    rows = rows.filter(lambda name, base_name: name == base_name, input_columns=["name", "base_name"])
    rows = rows.shuffle(seed=0).take(min(count, len(rows)))
    output.mkdir(parents=True, exist_ok=True)
    with (output / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for index, row in enumerate(rows):
            file_name = f"{index:04d}.png"
            as_blueprint(row["image"]).save(output / file_name)
            name = row["name"] if index % 2 else with_article(row["name"])
            metadata.write(json.dumps({"file_name": file_name, "text": f"{name}, blueprint style"}) + "\n")
    typer.echo(f"{len(rows)} pictures are in {output}")


if __name__ == "__main__":
    typer.run(main)
