"""The blocks of README and docs run as they stand, but for those marked `no-run`; trainings take two steps."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "training/README.md", "hub_cards/space/README.md")
    for path in ROOT.glob(pattern)
)
TUTORIALS = [page for page in PAGES if page.startswith("docs/tutorials/")]
SHORT_TRAINING = [
    "--set=training.max_steps=2",
    "--set=training.per_device_train_batch_size=2",
    "--set=training.bf16=no",
]
OTHER_PAGES = ["docs/sampling.md", "docs/evaluation.md", "docs/how-it-works.md"]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, languages: str = "python") -> list[tuple[str, str]]:
    """Blocks of code with their language, in order."""
    return re.findall(rf"^```({languages})\n(.*?)^```", read(page), flags=re.S | re.M)


def run(page: str, language: str, code: str, names: dict[str, Any]) -> None:
    """A block of a page, after those that left `names`."""
    if language == "python":
        exec(compile(re.sub(r"\bmax_steps=\d+", "max_steps=2", code), page, "exec"), names)
    else:
        for command in commands(code):
            run_command(command + SHORT_TRAINING if command[:2] == ["tokenflow", "train"] else command)


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command of a block of the shell's."""
    for line in code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def run_command(words: list[str]) -> None:
    from tokenflow_cli.app import app

    assert words[0] == "tokenflow", f"{words[0]} is not run by tests: mark its block `no-run`"
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what pages read, in which they may write."""
    for name in ("demo", "hub_cards", "tests", "training"):
        (tmp_path / name).symlink_to(ROOT / name)
    collect_pictures(tmp_path / "my" / "pictures")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def collect_pictures(folder: Path) -> None:
    """The reader's own pictures and captions, as many as the small tokenizer's codebook needs to begin with."""
    folder.mkdir(parents=True)
    lines = []
    for path in [*ROOT.glob("demo/pictures/*.[jp]*g"), *ROOT.glob("tests/fixtures/pictures/*.png")]:
        for copy in range(3):
            name = f"{copy}-{path.name}"
            (folder / name).symlink_to(path)
            lines.append(json.dumps({"file_name": name, "text": path.stem.replace("-", " ")}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("code", [code for _, code in blocks("README.md")], ids=lambda code: code.split("\n")[-2][:40])
def test_block_of_readme_runs_alone(code, workplace):
    run("README.md", "python", code, {})


@pytest.mark.parametrize("page", OTHER_PAGES)
def test_blocks_of_a_page_run_one_after_the_other(page, workplace):
    names: dict[str, Any] = {}
    for language, code in blocks(page):
        run(page, language, code, names)
    if page == "docs/sampling.md":
        assert len(names["forming"]) == len(names["painter"].model.tokenizer.config.scales)
    if page == "docs/evaluation.md":
        assert names["results"]["metrics"]["psnr"] > 0


@pytest.mark.parametrize("page", TUTORIALS)
def test_blocks_and_commands_of_a_tutorial_run(page, workplace):
    names: dict[str, Any] = {}
    for language, code in blocks(page, "python|bash"):
        run(page, language, code, names)


def test_there_are_blocks():
    assert len(blocks("README.md")) >= 4
    assert sum(len(blocks(page, "python|bash")) for page in TUTORIALS) >= 15
    assert not [page for page in PAGES if blocks(page) and page not in {"README.md", *OTHER_PAGES, *TUTORIALS}]


def test_a_command_that_fails_is_noticed(workplace):
    with pytest.raises(AssertionError, match="nothing.png"):
        run("page", "bash", "tokenflow reconstruct \\\n    nothing.png  # not there\n", {})
    with pytest.raises(AssertionError, match="rm is not run"):
        run("page", "bash", "rm nothing\n", {})


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    links = re.findall(r"\]\((?!http|#)([^)#\s]+)(?:#[^)]*)?\)", read(page))
    assert [link for link in links if not (folder / link).exists()] == []
