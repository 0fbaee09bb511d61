"""The Python blocks of README and docs run as they stand."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/sampling.md", "docs/benchmarks.md", "docs/evaluation.md", "training/README.md"]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.S)


@pytest.mark.parametrize("code", blocks("README.md"), ids=lambda code: code.strip().splitlines()[-1][:40])
def test_block_of_readme_runs_alone(code, monkeypatch):
    missing = [name for name in re.findall(r"hub_cards/[\w-]+", code) if not (ROOT / name / "config.json").exists()]
    if missing:
        pytest.skip(f"{', '.join(missing)} has not been trained yet")
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})


def test_blocks_of_docs_run_one_after_the_other(monkeypatch):
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    for code in blocks("docs/sampling.md"):
        exec(compile(code, "docs/sampling.md", "exec"), names)
    assert len(names["forming"]) == len(names["painter"].model.tokenizer.config.scales)


def test_blocks_of_evaluation_run(monkeypatch):
    pytest.importorskip("torchmetrics")
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    for code in blocks("docs/evaluation.md"):
        exec(compile(code, "docs/evaluation.md", "exec"), names)
    assert names["results"]["metrics"]["psnr"] > 0


def test_there_are_blocks():
    assert len(blocks("README.md")) >= 4


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (folder / link).exists()] == []
