"""The shipped generator and understanding model with weights of 8 and 4 bits: what they say, their size, their speed.

python -m benchmarks.low_bits [--quick] [--output FILE.json]

The generator is asked for the likeliest code at every place of pictures that it drew in full precision, the
understanding model for its greedy answers. What is beside each figure is the model in bf16, or fp32 where the machine
has no instructions for bf16.
"""

import copy
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from torch import Tensor, nn
from transformers import AutoProcessor, BitsAndBytesConfig, PreTrainedModel, TorchAoConfig
from transformers.utils import is_bitsandbytes_available, is_torchao_available

from benchmarks.measuring import Row, has_fast_bf16, interleaved, short, show_rows, write_results
from transformers_tokenflow import TokenFlowForConditionalGeneration, TokenFlowForTextToImage
from transformers_tokenflow.answering import answer_conversations, ask

GENERATOR, UNDERSTANDING = (
    Path("hub_cards/tokenflow-tiny-text-to-image"),
    Path("hub_cards/tokenflow-tiny-understanding"),
)
PROMPTS = ["a red apple", "an owl", "rocket", "grinning face", "flag: japan", "a blue car", "sunflower", "a cat"]
PICTURES = sorted([*Path("demo/pictures").glob("*.[pj]*g"), *Path("tests/fixtures/pictures").glob("*.png")])
QUESTIONS = [
    "what is it?",
    "what kind of emoji is it?",
    "which style is it drawn in?",
    "what is its main colour?",
    "is it an apple?",
    "is there an owl in the picture?",
]
NEW_TOKENS = 16


def configurations() -> dict[str, Any]:
    """Those of the libraries that are installed, by what they do. torchao's of 4 bits is a prototype."""
    found: dict[str, Any] = {}
    if is_torchao_available():
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
        from torchao.quantization import Int8WeightOnlyConfig

        found["int8 by torchao"] = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
        four = PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False)
        found["int4 by torchao"] = TorchAoConfig(four)
    if is_bitsandbytes_available():
        found["int8 by bitsandbytes"] = BitsAndBytesConfig(load_in_8bit=True)
        nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
        found["nf4 by bitsandbytes"] = nf4
    return found


def num_bytes(model: PreTrainedModel) -> int:
    """What all weights take, with what quantised ones are read with."""

    def of(tensor: Tensor) -> int:
        if hasattr(tensor, "__tensor_flatten__"):  # torchao's, which are made of several
            return sum(of(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
        return tensor.numel() * tensor.element_size()

    return sum(of(tensor) for tensor in model.state_dict().values() if isinstance(tensor, Tensor))


def agreement(first: Tensor, second: Tensor) -> float:
    """Share of what is equal, in percent."""
    return 100 * (first == second).float().mean().item()


# ---- The generator ----


def prompts(processor: Any, texts: list[str]) -> dict[str, Tensor]:
    """What the generator takes of texts."""
    inputs = processor(text=texts, return_tensors="pt")
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def draw(model: TokenFlowForTextToImage, processor: Any, texts: list[str]) -> Tensor:
    """Codes (B, L) of pictures, as the paper draws them."""
    negative = prompts(processor, [""])["input_ids"]
    return model.generate(**prompts(processor, texts), negative_prompt_ids=negative, seed=0).codes


@torch.no_grad()
def likeliest(model: TokenFlowForTextToImage, processor: Any, codes: Tensor) -> Tensor:
    """The likeliest code at every place, after the scales before it (teacher forcing): (B, L)"""
    return model(**prompts(processor, PROMPTS), codes=codes, labels=codes).logits.argmax(dim=-1)


def measure_generator(models: dict[str, TokenFlowForTextToImage], full: Any, repeats: int) -> list[Row]:
    """Codes, size and speed of models beside the first of them; `full` is the one in fp32."""
    processor = AutoProcessor.from_pretrained(GENERATOR)
    codes = draw(full, processor, PROMPTS)
    expected = likeliest(full, processor, codes)
    agreements = {name: agreement(likeliest(model, processor, codes), expected) for name, model in models.items()}
    durations = interleaved(
        {name: partial(draw, model, processor, PROMPTS[:1]) for name, model in models.items()}, repeats
    )
    return rows_of(GENERATOR.name, models, agreements, "likeliest codes as in fp32", durations, "a picture")


# ---- The understanding model ----


def answers(model: TokenFlowForConditionalGeneration, processor: Any, picture: Path, questions: list[str]) -> list[str]:
    """Greedy answers to questions about a picture."""
    image = Image.open(picture).convert("RGB")
    conversations = [ask(image, question) for question in questions]
    return answer_conversations(model, processor, conversations, do_sample=False, max_new_tokens=NEW_TOKENS)


def measure_understanding(models: dict[str, Any], full: Any, repeats: int) -> list[Row]:
    """Answers, size and speed of models beside the first of them; `full` is the one in fp32."""
    processor = AutoProcessor.from_pretrained(UNDERSTANDING)

    def all_answers(model: TokenFlowForConditionalGeneration) -> list[str]:
        return [answer for picture in PICTURES for answer in answers(model, processor, picture, QUESTIONS)]

    expected = all_answers(full)
    agreements = {}
    for name, model in models.items():
        same = [answer == other for answer, other in zip(all_answers(model), expected, strict=True)]
        agreements[name] = 100 * sum(same) / len(same)
    ask: dict[str, Callable[[], Any]] = {
        name: partial(answers, model, processor, PICTURES[0], QUESTIONS[:1]) for name, model in models.items()
    }
    durations = interleaved(ask, repeats)
    return rows_of(UNDERSTANDING.name, models, agreements, "answers as in fp32", durations, "an answer")


def rows_of(
    folder: str,
    models: dict[str, Any],
    agreements: dict[str, float],
    what: str,
    durations: dict[str, float],
    task: str,
) -> list[Row]:
    """Three lines for each model but the first, which stands beside them."""
    (base, model), *others = models.items()
    rows = []
    for name, other in others:
        row = partial(Row, f"{folder}, {name}")
        rows += [
            row(f"{what}, beside {base}'s", agreements[name], agreements[base], "%"),
            row(f"weights, beside {base}'s", num_bytes(other) / 1e6, num_bytes(model) / 1e6, "MB"),
            row(f"{task}, beside {base}", durations[name] * 1e3, durations[base] * 1e3, "ms"),
        ]
    return rows


# ---- A large layer ----


@torch.no_grad()
def measure_layer(dtype: torch.dtype, repeats: int, size: tuple[int, int] = (4096, 11008)) -> list[Row]:
    """A layer of the official generator's size, by torchao, with the tokens of a step of text and of a large scale."""
    layers = {"plain": nn.Linear(*size, bias=False, dtype=dtype)}
    for name, configuration in configurations().items():
        if isinstance(configuration, TorchAoConfig):
            from torchao.quantization import quantize_

            layers[name] = copy.deepcopy(layers["plain"])
            quantize_(layers[name], configuration.quant_type)
    rows = []
    for tokens in (1, 256):
        inputs = torch.randn(tokens, size[0], dtype=dtype)
        found = interleaved({name: partial(layer, inputs) for name, layer in layers.items()}, 5 * repeats)
        for name in list(layers)[1:]:
            what = f"{tokens} token{'s' * (tokens > 1)}, beside {short(dtype)}"
            rows.append(
                Row(f"layer {size[0]} → {size[1]}, {name}", what, 1e3 * found[name], 1e3 * found["plain"], "ms")
            )
    return rows


def main(
    quick: Annotated[bool, typer.Option(help="Fewer repeats.")] = False,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Measure weights of 8 and 4 bits."""
    if not configurations():
        raise SystemExit("neither torchao nor bitsandbytes is installed, which `pip install -e '.[low-bits]'` does")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says at every layer that it casts
    repeats = 2 if quick else 7
    dtype = torch.bfloat16 if has_fast_bf16() else torch.float32
    rows = measure_layer(dtype, repeats)
    for folder, model_class, measure in (
        (GENERATOR, TokenFlowForTextToImage, measure_generator),
        (UNDERSTANDING, TokenFlowForConditionalGeneration, measure_understanding),
    ):
        full = model_class.from_pretrained(folder, dtype=torch.float32).eval()
        models = {short(dtype): model_class.from_pretrained(folder, dtype=dtype).eval()}
        for name, configuration in configurations().items():
            models[name] = model_class.from_pretrained(folder, dtype=dtype, quantization_config=configuration).eval()
        rows += measure(models, full, repeats)
    show_rows("Weights of 8 and 4 bits", rows)
    write_results(output, rows)


if __name__ == "__main__":
    typer.run(main)
