"""What all benchmarks share: durations of calls that take turns, memory, arithmetic, the machine, tables of results."""

import ctypes
import datetime
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

# ---- Time and memory ----


def timed(function: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Median duration of a call, after one that is not counted."""
    return interleaved({"": function}, repeats)[""]


def interleaved(functions: Mapping[str, Callable[[], Any]], repeats: int, warm_up: bool = True) -> dict[str, float]:
    """
    Median durations of several calls that take turns, so that a slow moment of the machine hits all of them.

    Args:
        functions: by name.
        repeats: how many rounds are counted.
        warm_up: whether a round goes before that is not.
    """
    if warm_up:
        for function in functions.values():
            function()
    rounds = [{name: timed(function) for name, function in functions.items()} for _ in range(repeats)]
    return {name: statistics.median(durations[name] for durations in rounds) for name in functions}


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


# ---- Arithmetic ----


def attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """What torch does not count on a processor: queries times keys, weights times values."""
    rows, heads, num_queries, size = query
    return 2 * rows * heads * num_queries * key[-2] * (size + value[-1])


def count_flops(function: Callable[[], Any]) -> int:
    """The arithmetic of a call, as it is done."""
    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        function()
    return counter.get_total_flops()


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


def has_fast_bf16() -> bool:
    """Whether this machine multiplies bf16 matrices faster than fp32 ones: without instructions for it, far slower."""
    return machine_peak(torch.bfloat16)["matmul"] > machine_peak(torch.float32)["matmul"]


# ---- Results ----


@dataclass
class Row:
    """
    A line of the table of all benchmarks.

    Args:
        model: what was measured.
        what: which duration, size or rate of it, and beside what.
        measured, beside: ours and the other's.
        unit: of both.
        bar: what their ratio, measured over beside, is to be.
    """

    model: str
    what: str
    measured: float
    beside: float
    unit: str
    bar: str = ""

    @property
    def ratio(self) -> float:
        """How many times the other."""
        return self.measured / self.beside if self.beside else float("nan")

    def cells(self) -> list[str]:
        """As the table shows it."""
        values = [f"{show_value(value)} {self.unit}" for value in (self.measured, self.beside)]
        return [self.model, self.what, *values, show_value(float(self.ratio)), self.bar]


COLUMNS = ("model", "what", "measured", "beside", "ratio", "bar")


def short(dtype: torch.dtype) -> str:
    """A dtype's name, without torch's."""
    return str(dtype).removeprefix("torch.")


def machine() -> str:
    """The processor, how much of it is used, torch's version, and the day."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}, {datetime.date.today()}"


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(show_value(value) for value in row.values()))
    Console(width=160).print(table)


def show_rows(title: str, rows: Sequence[Row]) -> None:
    """Print lines of the table of all benchmarks."""
    show(title, [dict(zip(COLUMNS, row.cells(), strict=True)) for row in rows])


def show_value(value: Any) -> str:
    """Three digits of a fraction, separated thousands of a count."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write_results(output: Path | None, rows: Sequence[Row], **more: Any) -> None:
    """A JSON file of the machine, the rows, and what else was measured."""
    if output is not None:
        results = {"machine": machine(), "rows": [asdict(row) for row in rows], **more}
        output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
