"""Makes the small understanding model's folder from a finished run: weights in fp16, processor, code, figures, card.

python -m training.export_understanding runs/tiny-understanding hub_cards/tokenflow-tiny-understanding
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from datasets import Dataset
from transformers import AutoProcessor

from training.evaluate_understanding import MAX_NEW_TOKENS, Answerer, Question, load_splits
from training.evaluate_understanding import main as evaluate
from training.export_tiny import folder_size, read_training, save_half, save_sheet, write_card
from training.questions import COLOUR_QUESTIONS, NAME_QUESTIONS, STYLE_QUESTIONS, YES_NO_QUESTIONS, describe
from transformers_tokenflow import TokenFlowForConditionalGeneration

CARD_PICTURES = 10
CARD_QUESTIONS = [NAME_QUESTIONS[0], COLOUR_QUESTIONS[0], STYLE_QUESTIONS[0]]


def choose_pictures(rows: Dataset, count: int = CARD_PICTURES) -> Dataset:
    """Pictures for the card, by nothing but their place: as far from each other as can be, without skin tones."""
    plain = [
        index for index, (name, base) in enumerate(zip(rows["name"], rows["base_name"], strict=True)) if name == base
    ]
    step = max(1, len(plain) // count)
    return rows.select(plain[::step][:count])


def ask_about(rows: Dataset) -> list[Question]:
    """The card's questions about each picture; one of them is whether it is the one before."""
    names = rows["base_name"][:]
    questions = []
    for index in range(len(rows)):
        other = YES_NO_QUESTIONS[0].format(describe(names[index - 1]))
        questions += [Question(index, "card", question, "") for question in [*CARD_QUESTIONS, other]]
    return questions


def draw_pictures(rows: Dataset, folder: Path) -> None:
    """The pictures in a row."""
    save_sheet([rows["image"][:]], folder / "pictures.png")


def main(
    run: Annotated[Path, typer.Argument()] = Path("runs/tiny-understanding"),
    folder: Annotated[Path, typer.Argument()] = Path("hub_cards/tokenflow-tiny-understanding"),
    data: Path = Path("data/tiny-questions"),
    hours: Annotated[float | None, typer.Option(help="How long training took, for the card.")] = None,
    evaluated: Annotated[bool, typer.Option(help="Measure anew; otherwise the folder's results.json is used.")] = True,
) -> None:
    """Makes FOLDER from RUN."""
    model = TokenFlowForConditionalGeneration.from_pretrained(run, dtype=torch.float32)
    model.generation_config.max_new_tokens = MAX_NEW_TOKENS
    processor = AutoProcessor.from_pretrained(run)
    processor.default_question = NAME_QUESTIONS[0]
    model = save_half(model, folder)
    processor.save_pretrained(folder)
    if evaluated:
        evaluate(folder, data=data)
    shown = choose_pictures(load_splits(data)["heldout_pairs"])
    draw_pictures(shown, folder)
    write_card(
        folder,
        "tokenflow-tiny-understanding.md.jinja",
        model,
        training=read_training(run),
        language_parameters=model.num_parameters() - model.model.tokenizer.num_parameters(),
        names=shown["name"][:],
        answers=Answerer(model, processor).answer(ask_about(shown), shown["image"][:]),
        hours=hours,
        size=folder_size(folder),
    )
    typer.echo(f"{folder}: {folder_size(folder):.2f} MB")


if __name__ == "__main__":
    typer.run(main)
