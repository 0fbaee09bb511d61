"""Draws pictures in a style that the small generator does not know: emoji as blueprints, white on dark blue.

    python -m training.prepare_style data/blueprint

Each is there in its own style too, without which the generator would forget how to draw anything else. They lie in one
folder, beside a `metadata.jsonl` with their captions: what `datasets` calls an imagefolder, and what one's own pictures
should look like.
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
    """Writes COUNT pictures of DATA as they are and in the new style, and their captions, to OUTPUT."""
    rows = select_rows(load_dataset(str(data), split="train"))
    rows = rows.filter(lambda name, base_name: name == base_name, input_columns=["name", "base_name"])
    rows = rows.shuffle(seed=0).take(min(count, len(rows)))
    output.mkdir(parents=True, exist_ok=True)
    with (output / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for index, row in enumerate(rows):
            name = row["name"] if index % 2 else with_article(row["name"])
            pictures = {"": row["image"], ", blueprint style": as_blueprint(row["image"])}
            for number, (style, picture) in enumerate(pictures.items()):
                file_name = f"{index:04d}-{number}.png"
                picture.save(output / file_name)
                metadata.write(json.dumps({"file_name": file_name, "text": name + style}) + "\n")
    typer.echo(f"{len(rows)} pictures are in {output}, in two styles each")


if __name__ == "__main__":
    typer.run(main)
