"""Speed and memory of the image tokenizer beside the naive formulation and this machine's own limits.

python -m benchmarks.tokenizer [--model FOLDER_OR_PRESET]... [--batch N] [--quick] [--output FILE.json]

Everything that is compared runs in one process, alternating, and the medians' ratios are what counts.
"""

import statistics
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measuring import (
    Row,
    count_flops,
    interleaved,
    machine,
    machine_peak,
    peak_memory,
    seconds,
    short,
    show,
    timed,
    write_results,
)
from benchmarks.naive import naive_quantize
from transformers_tokenflow import TokenFlowConfig, TokenFlowModel, TokenFlowQuantizer
from transformers_tokenflow.configuration_tokenflow import PRESETS

CODEBOOK_SIZE = 32768
BATCH = 8
SCALES = {256: PRESETS["tokenflow-l"]["scales"], 384: TokenFlowConfig().scales}
# What the arithmetic of encode and decode is made of; all else is glue.
ARITHMETIC = ("convolution", "mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product", "_native_multi_head_attention")


@torch.no_grad()
def benchmark_quantizer(repeats: int) -> list[dict[str, Any]]:
    """The naive formulation against the package, at the official codebook's size."""
    rows = []
    for size, scales in SCALES.items():
        torch.manual_seed(0)
        quantizer = TokenFlowQuantizer(scales, CODEBOOK_SIZE).eval()
        for entries in quantizer.codebook.parameters():
            torch.nn.init.normal_(entries)
        features = torch.randn(BATCH, 40, scales[-1], scales[-1])
        tables = (quantizer.codebook.semantic.data, quantizer.codebook.pixel.data)
        ours, naive = partial(quantizer, features), partial(naive_quantize, features, *tables, scales)
        same = (ours().codes == naive()[1]).float().mean().item()
        durations = interleaved({"ours": ours, "naive": naive}, repeats)
        rows.append(
            {
                "pixels": size,
                "tokens": BATCH * sum(scale**2 for scale in scales),
                "ours_seconds": durations["ours"],
                "naive_seconds": durations["naive"],
                "ours_bytes": peak_memory(ours),
                "naive_bytes": peak_memory(naive),
                "same_codes": same,
            }
        )
    return rows


class ArithmeticRecorder(TorchDispatchMode):
    """Notes every convolution, matrix product and attention with the layout of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = function.overloadpacket.__name__
        if name.startswith(ARITHMETIC):
            layout = tuple(describe(argument) for argument in args)
            self.calls[(function, layout, tuple(sorted((kwargs or {}).items())))] += 1
        return function(*args, **(kwargs or {}))


def describe(argument: Any) -> Any:
    """A hashable stand-in for an argument: of a tensor its size, strides and dtype."""
    if isinstance(argument, Tensor):
        return ("tensor", tuple(argument.shape), argument.stride(), argument.dtype)
    return tuple(argument) if isinstance(argument, list) else argument


def revive(description: Any) -> Any:
    """A random tensor in place of its stand-in."""
    if isinstance(description, tuple) and description and description[0] == "tensor":
        _, shape, stride, dtype = description
        span = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        return torch.empty(max(span, 0), dtype=dtype).normal_().as_strided(shape, stride)  # some are broadcast
    return list(description) if isinstance(description, tuple) else description


def arithmetic_seconds(function: Callable[[], Any], repeats: int) -> float:
    """What the recorded arithmetic of a call takes, each operation timed alone at its shape, strides and dtype."""
    with ArithmeticRecorder() as recorder:
        function()
    total = 0.0
    for (operation, layout, keywords), count in recorder.calls.items():
        arguments = [revive(description) for description in layout]
        total += count * seconds(partial(operation, *arguments, **dict(keywords)), repeats)
    return total


@torch.no_grad()
def benchmark_model(model: TokenFlowModel, batch: int, dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    """Encode and decode as a whole, beside their own arithmetic and the machine's peak."""
    model = model.to(dtype).eval()
    peak = max(machine_peak(dtype).values())
    size = model.config.image_size
    pixel_values = torch.rand(batch, 3, size, size, dtype=dtype) * 2 - 1
    codes = model.encode(pixel_values).codes
    rows = []
    for name, function in (("encode", partial(model.encode, pixel_values)), ("decode", partial(model.decode, codes))):
        function()
        whole, alone = [], []
        for _ in range(repeats):
            whole.append(timed(function))
            alone.append(arithmetic_seconds(function, 2))
        flops = count_flops(function)
        duration = statistics.median(whole)
        rows.append(
            {
                "what": name,
                "dtype": short(dtype),
                "batch": batch,
                "images_per_second": batch / duration,
                "arithmetic_share": statistics.median(alone) / duration,
                "gflop_per_image": flops / batch / 1e9,
                "peak_fraction": flops / duration / peak,
            }
        )
    return rows


def load(name: str) -> TokenFlowModel:
    """A folder's model, or a preset's with random weights."""
    if name in PRESETS:
        return TokenFlowModel(TokenFlowConfig.from_preset(name))
    return TokenFlowModel.from_pretrained(name, dtype=torch.float32)


@torch.no_grad()
def code_agreement(name: str, pixel_values: Tensor) -> float:
    """Share of a checkpoint's codes that bf16 leaves as they are in fp32."""
    full = load(name).eval()
    half = TokenFlowModel.from_pretrained(name, dtype=torch.bfloat16).eval()
    return (full.encode(pixel_values).codes == half.encode(pixel_values).codes).float().mean().item()


def demo_pictures(size: int) -> Tensor:
    """The demo's pictures as pixel values."""
    from PIL import Image

    from transformers_tokenflow.trainers.data import PictureTransform

    transform = PictureTransform(size, train=False)
    paths = sorted(Path("demo/pictures").glob("*.png"))
    return torch.stack([transform(Image.open(path), None) for path in paths])


def quantizer_rows(found: list[dict[str, Any]]) -> list[Row]:
    """The quantiser's part of the table of all benchmarks."""
    rows = []
    for part in found:
        name = f"quantiser, K = {CODEBOOK_SIZE:,}, scales of {part['pixels']} pixels"
        durations, memory = (part["ours_seconds"], part["naive_seconds"]), (part["ours_bytes"], part["naive_bytes"])
        rows.append(Row(name, f"{BATCH} pictures, beside the naive way", *durations, "s", "at most 0.1"))
        rows.append(
            Row(name, "extra memory, beside the naive way", *(size / 1e6 for size in memory), "MB", "at most 0.05")
        )
    return rows


def model_rows(name: str, found: list[dict[str, Any]]) -> list[Row]:
    """The models' part of the table of all benchmarks."""
    rows = []
    for part in found:
        duration = 1 / part["images_per_second"]
        what = f"{part['what']} a picture, {part['dtype']}, beside its own arithmetic"
        rows.append(
            Row(Path(name).name, what, duration * 1e3, duration * part["arithmetic_share"] * 1e3, "ms", "at most 1.43")
        )
    return rows


def main(
    model: Annotated[list[str] | None, typer.Option(help="Folders or presets.")] = None,
    batch: Annotated[int, typer.Option(help="Pictures at a time of a folder's model; presets take 2.")] = 16,
    quick: Annotated[bool, typer.Option(help="One repetition.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the numbers as JSON.")] = None,
) -> None:
    """Measure the tokenizer."""
    repeats = 1 if quick else 5
    peaks = {dtype: machine_peak(dtype) for dtype in (torch.float32, torch.bfloat16)}
    accelerated = peaks[torch.bfloat16]["matmul"] > peaks[torch.float32]["matmul"]
    peak_rows = [{"dtype": short(dtype), **peak} for dtype, peak in peaks.items()]
    show(f"Peak FLOP/s of {machine()}", peak_rows)
    quantizer = benchmark_quantizer(repeats)
    show(f"Quantiser, K = {CODEBOOK_SIZE:,}, batch {BATCH}", quantizer)
    rows = quantizer_rows(quantizer)
    models = {}
    for name in model or ["hub_cards/tokenflow-tiny", "tokenflow-b"]:
        size = 2 if name in PRESETS else batch
        found = benchmark_model(load(name), size, torch.float32, repeats)
        if accelerated:
            found += benchmark_model(load(name), size, torch.bfloat16, repeats)
        show(name, found)
        rows += model_rows(name, found)
        models[name] = found
        if name not in PRESETS:
            agreement = code_agreement(name, demo_pictures(load(name).config.image_size))
            Console().print(f"{name}: bf16 leaves {agreement:.2%} of the codes as they are")
    if not accelerated:
        Console().print("bf16 was not timed: this processor computes it more slowly than fp32")
    write_results(output, rows, peak=peak_rows, quantizer=quantizer, models=models)


if __name__ == "__main__":
    typer.run(main)
