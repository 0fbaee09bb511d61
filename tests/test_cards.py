# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The cards of `hub_cards`: tracked as they are rendered, valid for the Hub, and their code runs."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from PIL import Image
from tiny_models import needs_timm, tiny_model, tiny_text_to_image, tiny_understanding_with_processor
from typer.main import get_command

from training.export_tiny import render_card
from training.render_cards import ORGANIZATION, make_config, read_cards, render
from transformers_tokenflow import TokenFlowConfig, TokenFlowImageProcessor
from transformers_tokenflow.card_tokenflow import task_of
from transformers_tokenflow.cli import app
from transformers_tokenflow.commands.information import inspect_model
from transformers_tokenflow.publishing import check_card, check_code, check_files

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "hub_cards"
OFFICIAL = list(read_cards())
# Cards of models; the page to try them on has another kind of card.
MODELS = sorted(
    path.parent.name for path in CARDS.glob("*/README.md") if "sdk:" not in path.read_text(encoding="utf-8")
)
RENDERED = sorted(path.parent.name for path in CARDS.glob("*/card.json"))
SMALL = [name for name in MODELS if name not in OFFICIAL]
# What is shown once takes long.
QUICKER = {
    "num_images_per_prompt=4": "num_images_per_prompt=1",
    "return_full_text=False": "return_full_text=False, max_new_tokens=2",
}
# Sizes of the official models, in millions, as their key lists have them (/work/shared/reference).
MILLIONS = {
    "tokenflow-b": 181.9,
    "tokenflow-l": 560.0,
    "tokenflow-xl": 554.0,
    "tokenflow-text-to-image-7b": 7030 + 376.6 - 32768 * 4096 / 1e6,  # rows of visual tokens that are never read
    "tokenflow-understanding-qwen2.5-14b": 15350.0,
}


def read(name: str) -> str:
    return (CARDS / name / "README.md").read_text(encoding="utf-8")


def code_blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", read(name), flags=re.S)


def test_there_are_cards():
    assert len(OFFICIAL) == 5 and len(RENDERED) >= 2 and len(SMALL) >= 3


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_timm) if n == "tokenflow-l" else n for n in OFFICIAL])
def test_official_cards_are_as_they_are_rendered(name):
    files = render(name)
    tracked = {
        path.relative_to(CARDS / name).as_posix(): path.read_text(encoding="utf-8")
        for path in (CARDS / name).rglob("*")
        if path.is_file()
    }
    configs = [json.loads(texts.pop("config.json")) for texts in (files, tracked)]
    assert len({config.pop("transformers_version") for config in configs}) > 0
    assert configs[0] == configs[1], "python -m training.render_cards writes them anew"
    assert files == tracked, "python -m training.render_cards writes them anew"


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_timm) if n == "tokenflow-l" else n for n in OFFICIAL])
def test_official_cards_are_of_the_official_sizes(name):
    information = inspect_model(str(CARDS / name))
    assert sum(information.parameters.values()) / 1e6 == pytest.approx(MILLIONS[name], rel=2e-3)
    assert information.license == "unknown" and information.dtypes == {}


@pytest.mark.parametrize("name", RENDERED)
def test_small_cards_are_as_they_are_rendered(name):
    assert render_card(CARDS / name) == read(name)


@pytest.mark.parametrize("name", MODELS)
def test_metadata_are_valid(name):
    assert check_card(CARDS / name) == []


@pytest.mark.parametrize("name", MODELS)
def test_sections(name):
    text = read(name)
    headings = {line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")}
    assert {"Use", "Limits", "Compute", "Citation"} <= headings
    assert headings & {"Figures", "Evaluation", "Measured"}
    assert "2412.03069" in text and "None" not in text
    assert not re.search(r"\n\n\n", text) and not re.search(r"\|\n[^|\n]", text), "blank lines around tables"


@pytest.mark.parametrize("name", MODELS)
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)#]+)\)", read(name))
    assert [link for link in links if not link.startswith("https://") and not (CARDS / name / link).exists()] == []
    source = "https://github.com/transformers-tokenflow/transformers-tokenflow/blob/main/"
    inside = [link.removeprefix(source) for link in links if link.startswith(source)]
    assert [link for link in inside if not (ROOT / link).exists()] == []
    own = [link.rpartition("/")[2] for link in links if link.startswith(f"https://huggingface.co/{ORGANIZATION}/")]
    assert [link for link in own if not (CARDS / link).is_dir()] == []


@pytest.mark.parametrize("name", OFFICIAL)
def test_results_are_marked_as_the_papers(name):
    card = ModelCard(read(name))
    for result in card.data.get("eval_results") or []:
        assert result.source_name == "TokenFlow paper" and "(the paper's)" in result.metric_name
    for path in (CARDS / name).glob(".eval_results/*.yaml"):
        for entry in parse_eval_result_entries(yaml.safe_load(path.read_text(encoding="utf-8"))):
            assert entry.source_name == "TokenFlow paper" and "not measured" in entry.notes
    assert "The paper's figures" in card.text


@pytest.mark.parametrize("name", [name for name in SMALL if (CARDS / name / "model.safetensors").exists()])
def test_small_models_can_be_published(name):
    assert check_files(CARDS / name) == check_code(CARDS / name) == []


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> dict[str, Path]:
    """Tiny random models by task, in place of those that are large."""
    root = tmp_path_factory.mktemp("stand-ins")
    parts = {
        "image-feature-extraction": (tiny_model(), TokenFlowImageProcessor(size={"shortest_edge": 32})),
        "text-to-image": tiny_text_to_image(),
        "image-text-to-text": tiny_understanding_with_processor(),
    }
    for task, (model, processor) in parts.items():
        model.save_pretrained(root / task)
        processor.save_pretrained(root / task)
    return {task: root / task for task in parts}


def test_a_derived_configuration_is_of_the_same_kind():
    class Derived(TokenFlowConfig):
        model_type = "derived"

    assert task_of(Derived()) == task_of(TokenFlowConfig()) == "image-feature-extraction"


@pytest.mark.parametrize("name", MODELS)
def test_code_runs(name, stand_ins, tmp_path, monkeypatch):
    blocks = code_blocks(name, "python")
    assert blocks
    folder = CARDS / name
    if name in OFFICIAL:
        folder = stand_ins[task_of(make_config(read_cards()[name]))]
    monkeypatch.chdir(tmp_path)
    for picture in ("photo.png", "apple.png"):
        Image.new("RGB", (70, 60), "red").save(picture)
    for code in blocks:
        code = re.sub(rf"(?:{ORGANIZATION}|hub_cards)/{re.escape(name)}\b", str(folder), code)
        assert str(folder) in code, "the code loads this card's model"
        for long, quick in QUICKER.items():
            code = code.replace(long, quick)
        with torch.no_grad():
            exec(compile(code, name, "exec"), {})


@pytest.mark.parametrize("name", OFFICIAL)
def test_commands_exist(name):
    commands = [line for block in code_blocks(name, "bash") for line in block.splitlines() if "tokenflow " in line]
    (words,) = [line.split() for line in commands if line.startswith("tokenflow ")]
    command = get_command(app).commands[words[1]]
    known = {option for parameter in command.params for option in parameter.opts}
    assert [word for word in words if word.startswith("--") and word not in known] == []
    assert name in words
