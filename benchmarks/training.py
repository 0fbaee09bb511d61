"""Steps of training: the generator's beside the straightforward way, the tokenizer's beside its quantiser, the
understanding model's beside LLaVA.

python -m benchmarks.training [--quick] [--output FILE.json]

A step is forward, backward and AdamW. Everything that is compared runs in one process, taking turns.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.measuring import Row, has_fast_bf16, interleaved, short, show_rows, write_results
from benchmarks.naive_training import naive_loss
from benchmarks.text_to_image import TEXT as GENERATOR_TEXT
from benchmarks.text_to_image import TOKENIZER as GENERATOR_TOKENIZER
from benchmarks.understanding import make_case as make_understanding_case
from benchmarks.understanding import scaled_case
from transformers_tokenflow import (
    TokenFlowConfig,
    TokenFlowForConditionalGeneration,
    TokenFlowForTextToImage,
    TokenFlowModel,
    TokenFlowTextToImageConfig,
)

CARDS = Path("hub_cards")
# Of a caption with "<img>"; the longest of a batch.
PROMPT_TOKENS = 20
# What the convolutions of a step are called, forward and backward.
CONVOLUTIONS = ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::thnn_conv2d", "aten::_slow_conv2d")


@dataclass
class Step:
    """
    A step of training; calling it takes one.

    Args:
        modules: what is trained, of which what takes gradients.
        loss: computes it.
        dtype: that linear layers and convolutions compute in.
    """

    modules: Iterable[nn.Module]
    loss: Callable[[], Tensor]
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        parameters = [part for module in self.modules for part in module.parameters() if part.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-5)

    def __call__(self) -> None:
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


# ---- The generator ----


@dataclass
class GeneratorCase:
    """A generator with a text head, which the straightforward way needs, and a batch of captions and codes."""

    model: TokenFlowForTextToImage
    prompt_ids: Tensor  # (B, P)
    codes: Tensor  # (B, L)

    def loss(self) -> Tensor:
        """As [`TextToImageTrainer`] has it of stored codes: among codes alone."""
        head, self.model.text_head = self.model.text_head, None
        try:
            return self.model(self.prompt_ids, labels=self.codes).loss
        finally:
            self.model.text_head = head

    def naive_loss(self) -> Tensor:
        """The straightforward way from stored codes."""
        return naive_loss(self.model, self.prompt_ids, self.codes)

    def pictures_loss(self, pixel_values: Tensor) -> Tensor:
        """The straightforward way from pictures, which every step encodes anew, as the official code does."""
        with torch.no_grad():
            codes = self.model.tokenizer.encode(pixel_values).codes
        return naive_loss(self.model, self.prompt_ids, codes)


def make_generator_case(model: TokenFlowForTextToImage, batch: int) -> GeneratorCase:
    """With random prompts and codes."""
    torch.manual_seed(0)
    text, image = model.config.text_config, model.config.tokenizer_config
    prompt_ids = torch.randint(3, text.vocab_size - 1, (batch, PROMPT_TOKENS))
    return GeneratorCase(
        model.train(), prompt_ids, torch.randint(0, image.codebook_size, (batch, image.num_image_tokens))
    )


def tiny_generator() -> TokenFlowForTextToImage:
    """The shipped one's sizes."""
    config = TokenFlowTextToImageConfig.from_pretrained(CARDS / "tokenflow-tiny-text-to-image")
    config.use_text_head = True
    return TokenFlowForTextToImage(config)


def middle_generator() -> TokenFlowForTextToImage:
    """That of the benchmark of drawing."""
    tokenizer = TokenFlowConfig.from_fields(GENERATOR_TOKENIZER)
    return TokenFlowForTextToImage(TokenFlowTextToImageConfig(text_config=GENERATOR_TEXT, tokenizer_config=tokenizer))


def measure_generator(name: str, case: GeneratorCase, repeats: int, dtype: torch.dtype) -> list[Row]:
    """A step from codes beside the straightforward ones."""
    size = case.model.config.tokenizer_config.image_size
    pixel_values = torch.rand(len(case.codes), 3, size, size) * 2 - 1
    ways = {
        "ours": case.loss,
        "codes": case.naive_loss,
        "pictures": partial(case.pictures_loss, pixel_values),
    }
    found = interleaved({way: Step([case.model], loss, dtype) for way, loss in ways.items()}, repeats)
    what = f"a step of {len(case.codes)} pictures from codes, {short(dtype)}, beside the straightforward way"
    ours = found["ours"]
    return [
        Row(name, what, ours, found["codes"], "s", "at most 0.5"),
        Row(name, f"{what} from pictures", ours, found["pictures"], "s"),
    ]


# ---- The tokenizer ----


def tokenizer_step(model: TokenFlowModel, batch: int) -> tuple[Step, Callable[[], None]]:
    """A step with reconstruction, distillation and quantiser, and what the quantiser has to do in it."""
    torch.manual_seed(0)
    config = model.train().config
    pixel_values = torch.rand(batch, 3, config.image_size, config.image_size) * 2 - 1
    teacher_features = torch.randn(batch, config.grid_size**2, config.teacher_hidden_size)
    features = torch.randn(batch, config.quantized_dim, config.grid_size, config.grid_size, requires_grad=True)

    def loss() -> Tensor:
        return model(pixel_values, teacher_features=teacher_features, return_loss=True).loss

    def quantize() -> None:
        output = model.quantizer(features)
        (output.quantized.sum() + output.codebook_loss + output.commitment_loss).backward()
        model.zero_grad()

    return Step([model], loss), quantize


def measure_tokenizer(name: str, model: TokenFlowModel, batch: int, repeats: int) -> list[Row]:
    """The quantiser, and the convolutions, beside a step."""
    step, quantize = tokenizer_step(model, batch)
    found = interleaved({"step": step, "quantizer": quantize}, repeats)
    whole = found["step"]
    row = partial(Row, name, beside=whole, unit="s")
    return [
        row(f"the quantiser's part of a step of {batch} pictures", found["quantizer"], bar="at most 0.05"),
        row("the convolutions' part of it", share_of(CONVOLUTIONS, step) * whole),
    ]


def share_of(names: tuple[str, ...], function: Callable[[], Any]) -> float:
    """Which share of a call's time operations take whose names begin so."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    return sum(event.self_cpu_time_total for event in events if event.key.startswith(names)) / total


# ---- The understanding model ----


def measure_understanding(name: str, case: Any, repeats: int, dtype: torch.dtype) -> list[Row]:
    """A step from pictures, and from codes, beside LLaVA's; projectors and language models are trained."""
    model, twin = case.model.train(), case.twins["llava"].train()
    twin.model.vision_tower.requires_grad_(False)
    labels = case.input_ids.masked_fill(case.input_ids == model.config.image_token_id, -100)
    inputs = {"input_ids": case.input_ids, "labels": labels}

    def loss_of(part: nn.Module, **picture: Tensor) -> Tensor:
        return part(**inputs, **picture).loss

    pixels = {"pixel_values": case.pixel_values}
    steps = {
        "pixels": Step([model], partial(loss_of, model, **pixels), dtype),
        "codes": Step([model], partial(loss_of, model, image_codes=case.codes), dtype),
        "llava": Step([twin], partial(loss_of, twin, **pixels), dtype),
    }
    found = interleaved(steps, repeats)
    row = partial(Row, name, beside=found["llava"], unit="s")
    return [
        row(f"a step from a picture, {short(dtype)}, beside LLaVA's", found["pixels"], bar="1"),
        row(f"a step from codes, {short(dtype)}, beside LLaVA's from a picture", found["codes"], bar="1"),
    ]


def main(
    quick: Annotated[bool, typer.Option(help="Fewer repeats, and the small models alone.")] = False,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Measure steps of training."""
    repeats = 2 if quick else 7
    dtype = torch.bfloat16 if has_fast_bf16() else torch.float32
    rows = measure_generator("tokenflow-tiny-text-to-image", make_generator_case(tiny_generator(), 16), repeats, dtype)
    talker = TokenFlowForConditionalGeneration.from_pretrained(CARDS / "tokenflow-tiny-understanding")
    rows += measure_tokenizer("tokenflow-tiny", TokenFlowModel.from_pretrained(CARDS / "tokenflow-tiny"), 16, repeats)
    rows += measure_understanding(
        "tokenflow-tiny-understanding", make_understanding_case(talker.config, talker), repeats, dtype
    )
    if not quick:
        rows += measure_generator("generator of mid size", make_generator_case(middle_generator(), 2), 3, dtype)
        rows += measure_tokenizer("tokenflow-b", TokenFlowModel(TokenFlowConfig.from_preset("tokenflow-b")), 2, 2)
        rows += measure_understanding("the official model's parts, smaller", scaled_case(), repeats, dtype)
    show_rows("Training", rows)
    write_results(output, rows)


if __name__ == "__main__":
    typer.run(main)
