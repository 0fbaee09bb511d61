"""Makes the small generator's folder from a finished run: weights in fp16, processor, code, figures, pictures, card.

python -m training.export_text_to_image runs/tiny-text-to-image hub_cards/tokenflow-tiny-text-to-image
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoProcessor

from training.evaluate_generation import Painter
from training.evaluate_generation import main as evaluate
from training.export_tiny import folder_size, read_training, save_half, save_sheet, write_card
from transformers_tokenflow import TokenFlowForTextToImage, TokenFlowPipeline
from transformers_tokenflow.generation_tokenflow import default_generation_config

# What draws best with this model: further passes feed a scale's own codes, which it was never shown.
SAMPLING = {"guidance_scale": 1.5, "top_k": [1200], "top_p": [0.3]}
CARD_PROMPTS = [
    "a red apple",
    "tiger face",
    "rocket",
    "sunflower",
    "pizza",
    "blue heart",
    "octopus",
    "violin",
    "house with garden",
    "grinning face",
    "red car",
    "snowman",
]


def draw_pictures(folder: Path, rows: int = 3) -> None:
    """A column per prompt, a row per seed."""
    painter = Painter(folder, batch_size=len(CARD_PROMPTS))
    batches = [painter.paint(CARD_PROMPTS, seed=100 * row) for row in range(rows)]
    save_sheet([painter.processor.postprocess(batch) for batch in batches], folder / "pictures.png")


def main(
    run: Annotated[Path, typer.Argument()] = Path("runs/tiny-text-to-image"),
    folder: Annotated[Path, typer.Argument()] = Path("hub_cards/tokenflow-tiny-text-to-image"),
    data: Path = Path("data/tiny"),
    evaluated: Annotated[bool, typer.Option(help="Measure anew; otherwise the folder's results.json is used.")] = True,
) -> None:
    """Makes FOLDER from RUN."""
    model = TokenFlowForTextToImage.from_pretrained(run, dtype=torch.float32)
    model.generation_config = default_generation_config()
    model.generation_config.update(**SAMPLING)
    processor = AutoProcessor.from_pretrained(run)
    model = save_half(model, folder)
    processor.save_pretrained(folder)
    TokenFlowPipeline(model=model, processor=processor).save_config(folder)
    if evaluated:
        evaluate(folder, data=data)
    draw_pictures(folder)
    write_card(
        folder,
        "tokenflow-tiny-text-to-image.md.jinja",
        model,
        training=read_training(run),
        llama_parameters=model.num_parameters() - model.tokenizer.num_parameters(),
        prompts=CARD_PROMPTS,
        sampling=SAMPLING,
        size=folder_size(folder),
    )
    typer.echo(f"{folder}: {folder_size(folder):.2f} MB")


if __name__ == "__main__":
    typer.run(main)
