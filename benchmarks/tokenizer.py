"""Speed and memory of the image tokenizer beside the naive formulation and this machine's own limits.

python -m benchmarks.tokenizer [--model FOLDER_OR_PRESET] [--quick]

Everything that is compared runs in one process, alternating, and the medians' ratios are what counts.
"""

import ctypes
import gc
import json
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.naive import naive_quantize
from transformers_tokenflow import TokenFlowConfig, TokenFlowModel, TokenFlowQuantizer
from transformers_tokenflow.configuration_tokenflow import PRESETS

CODEBOOK_SIZE = 32768
BATCH = 8
SCALES = {size: PRESETS[name]["scales"] for size, name in ((256, "tokenflow-l"),)}
SCALES[384] = TokenFlowConfig().scales
# What the arithmetic of encode and decode is made of; all else is glue.
ARITHMETIC = ("convolution", "mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product", "_native_multi_head_attention")


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Median duration of a call, after one that is not counted."""
    function()
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations)


def peak_memory(function: Callable[[], Any]) -> int:
    """Bytes by which a call raises the process's resident memory at most (Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    function()
    return max(resident("VmHWM") - before, 0)


def resident(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def machine_peak(dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s of a large matrix product and of a 3×3 convolution."""
    matrix = torch.randn(1024, 1024).to(dtype)
    convolution = torch.nn.Conv2d(128, 128, 3, padding=1).to(dtype)
    picture = torch.randn(4, 128, 64, 64).to(dtype)
    with torch.no_grad():
        return {
            "matmul": 2 * 1024**3 / seconds(lambda: matrix @ matrix, 5),
            "convolution": 2 * 4 * 64**2 * 128**2 * 9 / seconds(lambda: convolution(picture), 5),
        }


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
        durations: dict[str, list[float]] = {"ours": [], "naive": []}
        for _ in range(repeats):  # alternating, so that a slow moment hits both
            durations["ours"].append(seconds(ours, 1))
            durations["naive"].append(seconds(naive, 1))
        memory = {"ours": peak_memory(ours), "naive": peak_memory(naive)}
        rows.append(
            {
                "pixels": size,
                "tokens": BATCH * sum(scale**2 for scale in scales),
                "ours_seconds": statistics.median(durations["ours"]),
                "naive_seconds": statistics.median(durations["naive"]),
                "speedup": statistics.median(durations["naive"]) / statistics.median(durations["ours"]),
                "ours_bytes": memory["ours"],
                "naive_bytes": memory["naive"],
                "memory_ratio": memory["naive"] / max(memory["ours"], 1),
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
        return torch.empty_strided(shape, stride, dtype=dtype).normal_()
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
        whole, alone = [], []
        for _ in range(repeats):
            whole.append(seconds(function, 1))
            alone.append(arithmetic_seconds(function, 2))
        with FlopCounterMode(display=False) as counter:
            function()
        duration = statistics.median(whole)
        rows.append(
            {
                "what": name,
                "dtype": str(dtype).removeprefix("torch."),
                "batch": batch,
                "images_per_second": batch / duration,
                "arithmetic_share": statistics.median(alone) / duration,
                "gflop_per_image": counter.get_total_flops() / batch / 1e9,
                "peak_fraction": counter.get_total_flops() / duration / peak,
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


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(show_value(value) for value in row.values()))
    Console(width=160).print(table)


def show_value(value: Any) -> str:
    """Three digits of a fraction, separated thousands of a count."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


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
    peak_rows = [{"dtype": str(dtype).removeprefix("torch."), **peak} for dtype, peak in peaks.items()]
    show(f"Peak FLOP/s of {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads", peak_rows)
    quantizer = benchmark_quantizer(repeats)
    show(f"Quantiser, K = {CODEBOOK_SIZE:,}, batch {BATCH}", quantizer)
    models = {}
    for name in model or ["hub_cards/tokenflow-tiny", "tokenflow-b"]:
        size = 2 if name in PRESETS else batch
        rows = benchmark_model(load(name), size, torch.float32, repeats)
        if accelerated:
            rows += benchmark_model(load(name), size, torch.bfloat16, repeats)
        show(name, rows)
        models[name] = rows
        if name not in PRESETS:
            agreement = code_agreement(name, demo_pictures(load(name).config.image_size))
            Console().print(f"{name}: bf16 leaves {agreement:.2%} of the codes as they are")
    if not accelerated:
        Console().print("bf16 was not timed: this processor computes it more slowly than fp32")
    if output is not None:
        output.write_text(json.dumps({"peak": peak_rows, "quantizer": quantizer, "models": models}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
