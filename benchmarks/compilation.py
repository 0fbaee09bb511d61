"""Drawing with a compiled generator: static shapes, one graph for the prompt and one for each scale, a static cache.

python -m benchmarks.compilation [--quick] [--output FILE.json]
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.measuring import Row, has_fast_bf16, interleaved, short, show_rows, timed, write_results
from benchmarks.text_to_image import PROMPT_TOKENS
from transformers_tokenflow import TokenFlowForTextToImage

MODEL = Path("hub_cards/tokenflow-tiny-text-to-image")
# Graphs that torch may keep of one function: one for every scale, for every cache.
GRAPHS = 64


def compile_layers(model: TokenFlowForTextToImage) -> None:
    """Compile what a pass spends its time in; shapes are those of a scale, which are few."""
    torch._dynamo.config.recompile_limit = GRAPHS
    model.model.compile(dynamic=False)


def draw(model: TokenFlowForTextToImage, cache: str, num_passes: int = 3, **given: Any) -> Tensor:
    """Codes (1, L) of a picture, as likely as can be, without guidance, to a prompt of as many tokens as a sentence."""
    ids = torch.arange(3, 3 + PROMPT_TOKENS)[None]
    passes = {"top_k": [1] * num_passes, "top_p": [0.0] * num_passes}
    return model.generate(ids, guidance_scale=0, cache_implementation=cache, **passes, **given).codes


def measure(name: str, model: TokenFlowForTextToImage, compiled: TokenFlowForTextToImage, repeats: int) -> list[Row]:
    """
    A picture by the compiled model beside one by the model as it is, each with the cache that suits it.

    Args:
        name: of the model.
        model, compiled: two with the same weights; the second is compiled here.
        repeats: of either.
    """
    compile_layers(compiled)
    first = timed(partial(draw, compiled, "static"))
    ways = {"plain": partial(draw, model, "preallocated"), "compiled": partial(draw, compiled, "static")}
    scales = model.tokenizer.config.scales
    given = {"codes": ways["plain"](), "keep_scales": len(scales) - 1}
    # Of the last scale alone, after the same codes: one other code of a first scale makes another picture.
    last = [
        draw(*way, num_passes=1, **given)[:, -(scales[-1] ** 2) :]
        for way in ((model, "preallocated"), (compiled, "static"))
    ]
    same = (last[0] == last[1]).float().mean().item()
    found = interleaved(ways, repeats)
    return [
        Row(name, "a picture, compiled, beside not", found["compiled"], found["plain"], "s", "less than 1"),
        Row(name, "the first picture, with compiling, beside not", first, found["plain"], "s"),
        Row(name, "codes that compiling leaves as they are, of the last scale's", 100 * same, 100.0, "%"),
    ]


def main(
    quick: Annotated[bool, typer.Option(help="Fewer repeats.")] = False,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Measure what compiling gains."""
    dtype = torch.bfloat16 if has_fast_bf16() else torch.float32
    model, compiled = (TokenFlowForTextToImage.from_pretrained(MODEL, dtype=dtype).eval() for _ in range(2))
    rows = measure(f"{MODEL.name}, {short(dtype)}", model, compiled, 3 if quick else 9)
    show_rows("Compilation", rows)
    write_results(output, rows)


if __name__ == "__main__":
    typer.run(main)
