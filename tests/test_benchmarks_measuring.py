# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What the benchmarks share, and the table of all of them."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
import typer

from benchmarks import __main__ as whole
from benchmarks.measuring import Row, count_flops, interleaved, machine, show_rows, show_value, write_results

ROWS = [Row("m", "a call", 2.0, 4.0, "s", "at most 1"), Row("m", "memory", 1234.5, 1.0, "MB")]


def test_functions_take_turns():
    calls = []
    interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3
    interleaved({"a": lambda: calls.append("c")}, repeats=1, warm_up=False)
    assert calls[6:] == ["c"]


def test_medians():
    clock = iter([0.0, 0.0, 5.0, 0.0])
    assert interleaved({"a": lambda: next(clock)}, repeats=3)["a"] < 1


def test_rows():
    assert ROWS[0].cells() == ["m", "a call", "2 s", "4 s", "0.5", "at most 1"]
    assert ROWS[1].cells()[2] == "1,234 MB"
    assert Row("m", "w", 1.0, 0.0, "s").cells()[4] == "nan"
    assert show_value(3) == "3" and show_value(12345) == "12,345"


def test_attention_counts():
    query = torch.randn(1, 2, 8, 4)
    with torch.no_grad():
        flops = count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query))
    assert flops == 2 * 2 * 8 * 8 * (4 + 4)


def test_the_machine_has_a_name_and_a_day():
    assert torch.__version__ in machine() and "thread" in machine()


def test_results_are_rows_again(tmp_path, capsys):
    write_results(tmp_path / "results.json", ROWS, more=1)
    results = json.loads((tmp_path / "results.json").read_text())
    assert whole.read_rows(results) == ROWS and results["more"] == 1
    show_rows("Title", whole.read_rows(results))
    assert "a call" in capsys.readouterr().out


def test_the_table_has_the_machine_above_it():
    text = whole.markdown("A machine", ROWS)
    head = (
        "A machine.\n\n| model | what | measured | beside | ratio | bar |\n| --- | --- | ---: | ---: | ---: | --- |\n"
    )
    assert text.startswith(head)
    assert "| m | a call | 2 s | 4 s | 0.5 | at most 1 |" in text


def test_the_table_is_recorded_in_a_page(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{whole.BEGIN}\nold\n{whole.END}\nafter\n")
    monkeypatch.setattr(whole, "run", lambda *of: {"machine": "A machine", "rows": [asdict(row) for row in ROWS]})
    whole.main(["tokenizer"], record_in=page)
    table = whole.markdown("A machine", ROWS)
    assert page.read_text() == f"before\n{whole.BEGIN}\n\n{table}\n\n{whole.END}\nafter\n"


def test_the_documentation_has_a_place():
    text = (whole.Path(__file__).parents[1] / "docs" / "benchmarks.md").read_text()
    assert 0 < text.find(whole.BEGIN) < text.find(whole.END)


def test_benchmarks_run_one_after_another(monkeypatch, tmp_path, capsys):
    def run(command, check):
        assert check and command[0] == sys.executable and "--quick" in command
        write_results(whole.Path(command[command.index("--output") + 1]), [Row(command[2], "w", 1.0, 2.0, "s")])

    monkeypatch.setattr(subprocess, "run", run)
    whole.main(["training", "low_bits"], quick=True)
    shown = capsys.readouterr().out
    assert shown.index("benchmarks.training") < shown.index("benchmarks.low_bits")


def test_unknown_benchmarks_are_refused():
    with pytest.raises(typer.BadParameter, match="no benchmark is called speed"):
        whole.main(["speed"])


def test_all_benchmarks_are_there():
    folder = whole.Path(whole.__file__).parent
    assert all((folder / f"{name}.py").is_file() for name in whole.BENCHMARKS)
