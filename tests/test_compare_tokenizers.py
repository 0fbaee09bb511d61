# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The tokenizer taken apart: every variant builds as it is named, is trained and measured once; the table."""

import json
from pathlib import Path

import datasets
import pytest
import torch
import typer
import yaml
from PIL import Image
from tiny_questions import write_data

from training import compare_tokenizers
from training.compare_tokenizers import RECIPE, VARIANTS, Study, main, make_table, probe
from training.compare_understanding import END, START, Comparison
from training.prepare_photos import encode_png
from transformers_tokenflow import TokenFlowModel
from transformers_tokenflow.trainers.recipe import make_config, read_recipe

ROOT = Path(__file__).parents[1]
TEACHER = str(ROOT / "hub_cards" / "tokenflow-tiny-teacher")
COLUMNS = ("image", "name", "base_name", "category", "style")


def write_pictures(folder: Path) -> None:
    """A dataset like that of `training.prepare_emoji`: red things are food, blue ones are animals."""
    folder.mkdir()
    splits = ("train", "heldout_names", "heldout_pairs")
    files = [{"split": split, "path": f"{split}.parquet"} for split in splits]
    metadata = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]})
    (folder / "README.md").write_text(f"---\n{metadata}---\n")
    for split in splits:
        rows = [
            {
                "image": {"bytes": encode_png(Image.new("RGB", (64, 64), colour)), "path": None},
                "name": name,
                "base_name": name,
                "category": category,
                "style": style,
            }
            for name, category, colour in (("apple", "food", "red"), ("whale", "animals", "blue"))
            for style in ("noto", "openmoji", "twemoji")
        ]
        features = datasets.Features({name: datasets.Value("string") for name in COLUMNS} | {"image": datasets.Image()})
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}.parquet")


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_pictures(tmp_path / "data")
    write_data(tmp_path / "questions", size=64)
    recipe = yaml.safe_load((ROOT / RECIPE).read_text())
    recipe["model"]["config"] |= {"codebook_size": 16, "pixel_latent_channels": 16}
    recipe["data"] = {"split": "train"}
    recipe["training"] |= {"per_device_train_batch_size": 2, "codebook_initialization_batches": 1, "use_cpu": True}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(compare_tokenizers, "WIDTH", 16)
    out = tmp_path / "out"
    return Study(tmp_path / "data", tmp_path / "questions", TEACHER, out, 2, 2, tmp_path / "recipe.yaml")


def test_each_variant_has_what_it_is_named_for(study):
    recipes = {name: read_recipe(ROOT / RECIPE, study.overrides(name, 0)) for name in VARIANTS}
    configs = {name: make_config(recipe["model"]) for name, recipe in recipes.items()}
    assert {name: config.codebook_size for name, config in configs.items() if name.isdigit()} == {
        str(size): size for size in (1024, 2048, 8192, 16384)
    }
    # One codebook of the width of the other two together.
    assert configs["semantic"].pixel_codebook_dim == 0
    assert configs["semantic"].semantic_codebook_dim == configs["shared"].quantized_dim == 48
    assert list(configs["semantic"].scales) == list(configs["shared"].scales) == [8]
    assert len(configs["scales"].scales) == 8 and configs["scales"].to_dict() == configs["teacher"].to_dict()
    starts = {name for name, recipe in recipes.items() if recipe["teacher"]["initialize_semantic_encoder"]}
    assert starts == set(VARIANTS) - {"semantic", "shared", "scales"}
    settings = {json.dumps(recipe["training"] | {"output_dir": ""}) for recipe in recipes.values()}
    assert len(settings) == 1
    assert recipes["teacher"]["training"]["seed"] != study.overrides("teacher", 1)["training.seed"]


@pytest.mark.parametrize("name", ["semantic", "teacher"])
def test_a_variant_is_trained_and_measured_once(study, name, monkeypatch):
    study.measure_tokenizer(name, seed=0)
    (figures,) = study.figures([name], [0], "tokenizer")[name]
    assert figures["psnr"]["heldout_names"] > 0 and figures["distance"] > 0 and 0 < figures["codebook_utilization"] <= 1
    monkeypatch.setattr(Study, "train", lambda *_: pytest.fail("it has been trained"))
    study.measure_tokenizer(name, seed=0)
    assert study.figures([name], [0, 1], "tokenizer") == {} == study.figures([name], [0], "understanding")


def test_a_language_model_reads_the_variants_tokens(study, monkeypatch):
    monkeypatch.setattr("training.evaluate_understanding.MAX_NEW_TOKENS", 2)
    recipe = yaml.safe_load((ROOT / "training/recipes/tiny-understanding.yaml").read_text())
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    recipe["model"]["text_config"] |= small | {"num_attention_heads": 2, "num_key_value_heads": 2}
    recipe["training"] |= {"per_device_train_batch_size": 2, "bf16": False}
    path = study.output.parent / "understanding.yaml"
    path.write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(Comparison, "recipe", path)
    monkeypatch.setattr(Comparison.__init__, "__defaults__", (path,))
    study.measure_understanding("shared", seed=0)
    (figures,) = study.figures(["shared"], [0], "understanding")["shared"]
    assert figures["nats"]["mean"] > 0 and 0 <= figures["category"]["accuracy"] <= 1


def test_the_probe_tells_features_that_tell_categories(study):
    class Colours:
        """Their features are the mean colours."""

        config = TokenFlowModel.config_class(image_size=64, scales=[8])

        def encode(self, pixel_values: torch.Tensor):
            return type("Output", (), {"quantized": pixel_values})

    splits = datasets.load_dataset(str(study.data))
    assert probe(Colours(), splits["train"], splits["heldout_names"])["accuracy"] == 1.0
    blind = splits["heldout_names"].map(lambda row: {"image": Image.new("RGB", (64, 64))}, load_from_cache_file=False)
    assert probe(Colours(), splits["train"], blind)["accuracy"] == 0.5


def figures(value: float) -> dict:
    """Of a tokenizer."""
    return {
        "psnr": {"heldout_names": 10 * value},
        "distance": value,
        "codebook_utilization": value,
        "probe": {"accuracy": value},
    }


def test_the_table_has_means_and_half_ranges_over_seeds():
    readers = {"teacher": [{"nats": {"mean": nats}, "category": {"accuracy": 0.5}} for nats in (9.0, 10.0)]}
    table = make_table({"scales": [figures(0.5)] * 2, "teacher": [figures(0.5), figures(0.6)]}, readers)
    header, rule, first, second = table.splitlines()
    assert header.count("|") == rule.count("|") == first.count("|") == second.count("|")
    assert first.startswith("| + several scales | 5.00 ± 0.00 | 0.500 ± 0.000 | 50.0 ± 0.0 |")
    assert first.endswith("| — | — |")
    assert "| 5.50 ± 0.50 | 0.550 ± 0.050 | 55.0 ± 5.0 | 55.0 ± 5.0 | 9.50 ± 0.50 | 50.0 ± 0.0 |" in second


def test_main_writes_what_there_is(tmp_path, monkeypatch):
    document, done = tmp_path / "ablation.md", []
    document.write_text(f"{START}{END}")

    def measure(self: Study, name: str, seed: int) -> None:
        done.append((name, seed))
        path = self.path(name, seed, "tokenizer")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures(0.5)))

    monkeypatch.setattr(Study, "measure_tokenizer", measure)
    main(["shared", "1024"], output=tmp_path / "out", document=document, steps=10, understanding_steps=0)
    assert done == [("shared", 0), ("shared", 1), ("1024", 0), ("1024", 1)]
    assert "1,024 entries" in document.read_text() and "shared index" in document.read_text()
    with pytest.raises(typer.BadParameter, match="unheard-of"):
        main(["unheard-of"], output=tmp_path / "out", document=document)


def test_the_document_has_a_place_for_the_table():
    text = (ROOT / "docs" / "ablation.md").read_text(encoding="utf-8")
    assert 0 <= text.index(START) < text.index(END)
