"""Puts a tokenizer's newly trained pixel decoder into the folder of a model that has the same tokenizer inside.

python -m training.take_decoder hub_cards/tokenflow-tiny hub_cards/tokenflow-tiny-text-to-image

Codes and features don't hang on the pixel decoder, so that what the model has learned of them stays valid.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save_file

DECODER = "pixel_decoder."


def take_decoder(source: Path, target: Path) -> int:
    """
    Replaces the tensors of the pixel decoder in TARGET's weights by those of SOURCE's, and counts them.

    Raises:
        ValueError: TARGET holds another tokenizer: any other tensor of it differs.
    """
    new, weights = (load_file(folder / "model.safetensors") for folder in (source, target))
    names = {name: found for name in new if (found := find(name, weights)) is not None}
    differing = [name for name in new if name not in names or weights[names[name]].shape != new[name].shape]
    differing += [
        name
        for name, own in names.items()
        if not name.startswith(DECODER) and not torch.equal(weights[own].float(), new[name].float())
    ]
    if differing:
        raise ValueError(f"{target} holds another tokenizer than {source}: {', '.join(sorted(differing)[:5])} differ")
    decoder = {own: new[name].to(weights[own].dtype) for name, own in names.items() if name.startswith(DECODER)}
    temporary = target / "model.safetensors.tmp"
    save_file(weights | decoder, temporary, metadata={"format": "pt"})
    temporary.replace(target / "model.safetensors")
    return len(decoder)


def find(name: str, weights: dict[str, torch.Tensor]) -> str | None:
    """What a tensor of the tokenizer is called in a model that has it inside."""
    return next((prefix + name for prefix in ("tokenizer.", "model.tokenizer.") if prefix + name in weights), None)


def main(
    source: Annotated[Path, typer.Argument()] = Path("hub_cards/tokenflow-tiny"),
    target: Annotated[Path, typer.Argument()] = Path("hub_cards/tokenflow-tiny-text-to-image"),
) -> None:
    """Gives TARGET the pixel decoder of SOURCE."""
    typer.echo(f"{take_decoder(source, target)} tensors of {target} are those of {source} now")


if __name__ == "__main__":
    typer.run(main)
