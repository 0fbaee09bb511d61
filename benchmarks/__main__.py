"""All benchmarks, each in a process of its own, and one table of what they found.

python -m benchmarks [NAME ...] [--quick] [--record docs/benchmarks.md]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measuring import COLUMNS, Row, show_rows
from benchmarks.pages import replace_between

BENCHMARKS = ("tokenizer", "text_to_image", "understanding", "training", "low_bits", "compilation")
BEGIN, END = "<!-- The table of `make bench`: -->", "<!-- End of the table. -->"


def run(name: str, quick: bool, folder: Path) -> dict[str, Any]:
    """
    What a benchmark writes: its machine and its rows.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    output = folder / f"{name}.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--output", str(output), *(["--quick"] if quick else [])]
    subprocess.run(command, check=True)
    return json.loads(output.read_text(encoding="utf-8"))


def read_rows(results: dict[str, Any]) -> list[Row]:
    """The rows in a benchmark's results."""
    return [Row(**row) for row in results["rows"]]


def markdown(machine: str, rows: list[Row]) -> str:
    """A table with the machine and the day above it."""
    right = {"measured", "beside", "ratio"}
    rule = ["---:" if column in right else "---" for column in COLUMNS]
    lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, rule, *(row.cells() for row in rows))]
    return "\n".join([f"{machine}.", "", *lines])


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Some of {', '.join(BENCHMARKS)}; all by default.")] = None,
    quick: Annotated[bool, typer.Option(help="Fewer repetitions.")] = False,
    record_in: Annotated[
        Path | None, typer.Option("--record", help="A page whose table is replaced, as docs/benchmarks.md.")
    ] = None,
) -> None:
    """Run benchmarks and show what they found in one table."""
    chosen = names or list(BENCHMARKS)
    if unknown := sorted(set(chosen) - set(BENCHMARKS)):
        raise typer.BadParameter(f"no benchmark is called {', '.join(unknown)}: there are {', '.join(BENCHMARKS)}")
    with tempfile.TemporaryDirectory() as folder:
        results = [run(name, quick, Path(folder)) for name in chosen]
    machine, rows = results[-1]["machine"], [row for result in results for row in read_rows(result)]
    show_rows(machine, rows)
    if record_in is not None:
        replace_between(record_in, BEGIN, END, f"\n{markdown(machine, rows)}\n")


if __name__ == "__main__":
    typer.run(main)
