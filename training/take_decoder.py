"""Puts newly trained pixel decoders, or the mean of several, into the folder of a model with the same tokenizer.

    python -m training.take_decoder hub_cards/tokenflow-tiny runs/tiny-decoder-3 runs/tiny-decoder-4 runs/tiny-decoder-5
    python -m training.take_decoder hub_cards/tokenflow-tiny-text-to-image hub_cards/tokenflow-tiny

Codes and features don't hang on the pixel decoder, so that what the model has learned of them stays valid. The mean of
decoders that were trained on in different ways generalises better than any of them (arXiv 2203.05482).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save_file

DECODER = "pixel_decoder."


def take_decoder(sources: Sequence[Path], target: Path) -> int:
    """
    Replaces the tensors of the pixel decoder in TARGET's weights by the mean of those of SOURCES, and counts them.

    Raises:
        ValueError: TARGET holds another tokenizer than one of SOURCES: any other tensor of it differs.
    """
    weights = load_file(target / "model.safetensors")
    decoders = [read_decoder(source, target, weights) for source in sources]
    mean = {
        name: torch.stack([decoder[name].float() for decoder in decoders]).mean(dim=0).to(weights[name].dtype)
        for name in decoders[0]
    }
    temporary = target / "model.safetensors.tmp"
    save_file(weights | mean, temporary, metadata={"format": "pt"})
    temporary.replace(target / "model.safetensors")
    return len(mean)


def read_decoder(source: Path, target: Path, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The pixel decoder of a tokenizer, by the names that its tensors have among TARGET's weights."""
    new = load_file(source / "model.safetensors")
    names = {name: found for name in new if (found := find(name, weights)) is not None}
    differing = [name for name in new if name not in names or weights[names[name]].shape != new[name].shape]
    differing += [
        name
        for name, own in names.items()
        if not name.startswith(DECODER) and not torch.equal(weights[own], new[name].to(weights[own].dtype))
    ]
    if differing:
        raise ValueError(f"{target} holds another tokenizer than {source}: {', '.join(sorted(differing)[:5])} differ")
    return {own: new[name] for name, own in names.items() if name.startswith(DECODER)}


def find(name: str, weights: dict[str, torch.Tensor]) -> str | None:
    """What a tensor of the tokenizer is called in a model that has it inside, or is it."""
    return next((prefix + name for prefix in ("", "tokenizer.", "model.tokenizer.") if prefix + name in weights), None)


def main(
    target: Annotated[Path, typer.Argument()],
    sources: Annotated[list[Path], typer.Argument()],
) -> None:
    """Gives TARGET the mean pixel decoder of SOURCES."""
    count = take_decoder(sources, target)
    typer.echo(f"{count} tensors of {target} come from {', '.join(map(str, sources))} now")


if __name__ == "__main__":
    typer.run(main)
