"""Makes the folder that is shipped from a finished run: weights in fp16, processor, code, figures, card.

python -m training.export_tiny runs/tiny hub_cards/tokenflow-tiny
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import jinja2
import torch
import typer
from datasets import load_dataset
from PIL import Image
from transformers import AutoImageProcessor, PreTrainedModel

from training.evaluate_tokenizer import main as evaluate
from transformers_tokenflow import TokenFlowModel
from transformers_tokenflow.card_tokenflow import CITATION
from transformers_tokenflow.commands.loading import load_config

TEMPLATES = Path(__file__).parent / "templates"
CARD_PICTURES = 12


def save_half(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Writes weights in fp16 and a configuration that asks for fp32, which a CPU computes in; loads it again."""
    # Tensors that are one in the model stay one: saved twice, they would take twice the space.
    halves: dict[Any, torch.Tensor] = {}
    half = {
        name: halves.setdefault((tensor.data_ptr(), tensor.shape), tensor.half())
        for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=half)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return type(model).from_pretrained(folder, dtype=torch.float32).eval()


def save_sheet(rows: Sequence[Sequence[Image.Image]], path: Path) -> None:
    """Rows of equally many pictures, all of one size, side by side and twice as large, in 256 colours."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (width * len(rows[0]), height * len(rows)), "white")
    for top, row in enumerate(rows):
        for left, picture in enumerate(row):
            sheet.paste(picture, (width * left, height * top))
    sheet = sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST)
    sheet.quantize(256).save(path, optimize=True)


@torch.no_grad()
def draw_pictures(model: TokenFlowModel, folder: Path, data: Path) -> None:
    """Held-out pictures above their reconstructions."""
    processor = AutoImageProcessor.from_pretrained(folder)
    pictures: list[Image.Image] = []
    for split in ("heldout_names", "heldout_photos"):
        rows = load_dataset(str(data), split=split)
        step = len(rows) // (CARD_PICTURES // 2)
        pictures += rows.select(range(0, step * (CARD_PICTURES // 2), step))["image"]
    inputs = processor(images=pictures, return_tensors="pt")
    decoded = processor.postprocess(model.decode(model.encode(**inputs).codes).pixel_values)
    save_sheet([pictures, decoded], folder / "pictures.png")


def write_card(folder: Path, template: str, model: PreTrainedModel, **values: Any) -> None:
    """Writes the card, and to `card.json` what is shown there beside configuration and figures, to render it anew."""
    card = {"template": template, "parameters": model.num_parameters(), **values}
    (folder / "card.json").write_text(json.dumps(card, indent=2, default=asdict) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(render_card(folder), encoding="utf-8")


def render_card(folder: Path) -> str:
    """The card of a folder, from its template, `config.json`, `results.json` and `card.json`."""
    card, results = (json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("card", "results"))
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined)
    template = environment.get_template(card.pop("template"))
    return template.render(config=load_config(str(folder)), results=results, citation=CITATION, **card)


def folder_size(folder: Path) -> float:
    """Megabytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def read_training(run: Path) -> dict[str, Any]:
    """Steps and pictures seen, from the run's last checkpoint."""
    states = sorted(run.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    state = json.loads(states[-1].read_text(encoding="utf-8"))
    return {
        "steps": state["global_step"],
        "batch_size": state["train_batch_size"],
        "pictures": state["global_step"] * state["train_batch_size"],
    }


def main(
    run: Annotated[Path, typer.Argument()] = Path("runs/tiny"),
    folder: Annotated[Path, typer.Argument()] = Path("hub_cards/tokenflow-tiny"),
    data: Path = Path("data/tiny"),
) -> None:
    """Makes FOLDER from RUN."""
    model = save_half(TokenFlowModel.from_pretrained(run, dtype=torch.float32), folder)
    AutoImageProcessor.from_pretrained(run).save_pretrained(folder)
    evaluate(folder, data=data)
    draw_pictures(model, folder, data)
    write_card(folder, "tokenflow-tiny.md.jinja", model, training=read_training(run))
    typer.echo(f"{folder}: {folder_size(folder):.2f} MB")


if __name__ == "__main__":
    typer.run(main)
