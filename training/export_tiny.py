"""Makes the folder that is shipped from a finished run: weights in fp16, processor, code, figures, card.

python -m training.export_tiny runs/tiny hub_cards/tokenflow-tiny
"""

import json
from pathlib import Path
from typing import Annotated, Any

import jinja2
import torch
import typer
from datasets import load_dataset
from PIL import Image
from transformers import AutoImageProcessor

from training.evaluate_tokenizer import main as evaluate
from transformers_tokenflow import TokenFlowModel

TEMPLATES = Path(__file__).parent / "templates"
CARD_PICTURES = 12


def save_half(run: Path, folder: Path) -> TokenFlowModel:
    """Writes weights in fp16 beside a configuration that asks for fp32, which a CPU computes in."""
    model = TokenFlowModel.from_pretrained(run, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(run)
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=half)
    processor.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return TokenFlowModel.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def draw_pictures(model: TokenFlowModel, folder: Path, data: Path) -> Path:
    """Held-out pictures above their reconstructions, three times their size."""
    processor = AutoImageProcessor.from_pretrained(folder)
    pictures: list[Image.Image] = []
    for split in ("heldout_names", "heldout_photos"):
        rows = load_dataset(str(data), split=split)
        step = len(rows) // (CARD_PICTURES // 2)
        pictures += rows.select(range(0, step * (CARD_PICTURES // 2), step))["image"]
    inputs = processor(images=pictures, return_tensors="pt")
    decoded = processor.postprocess(model.decode(model.encode(**inputs).codes).pixel_values)
    side = model.config.image_size
    sheet = Image.new("RGB", (side * len(pictures), 2 * side), "white")
    for column, (picture, reconstruction) in enumerate(zip(pictures, decoded, strict=True)):
        sheet.paste(picture, (side * column, 0))
        sheet.paste(reconstruction, (side * column, side))
    sheet = sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST)
    path = folder / "pictures.png"
    sheet.quantize(256).save(path, optimize=True)
    return path


def write_card(folder: Path, model: TokenFlowModel, training: dict[str, Any]) -> None:
    """Renders the card from its template and the measured figures."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined)
    text = environment.get_template("tokenflow-tiny.md.jinja").render(
        config=model.config,
        parameters=model.num_parameters(),
        results=json.loads((folder / "results.json").read_text(encoding="utf-8")),
        training=training,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


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
    model = save_half(run, folder)
    evaluate(folder, data=data)
    draw_pictures(model, folder, data)
    write_card(folder, model, read_training(run))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    typer.echo(f"{folder}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    typer.run(main)
