# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The comparison of features: every variant trains and is measured, once; the table."""

import json
from pathlib import Path

import datasets
import pytest
import torch
import typer
import yaml
from tiny_questions import write_data

from training import compare_understanding
from training.compare_understanding import END, START, VARIANTS, Comparison, as_llava, main, make_table
from transformers_tokenflow import TokenFlowModel
from transformers_tokenflow.trainers import load_teacher
from transformers_tokenflow.trainers.recipe import read_recipe
from transformers_tokenflow.trainers.understanding_recipe import make_understanding

ROOT = Path(__file__).parents[1]
TOKENIZER, TEACHER = (str(ROOT / "hub_cards" / name) for name in ("tokenflow-tiny", "tokenflow-tiny-teacher"))
RECIPE = {
    "model": {
        "type": "understanding",
        "chat_template": "tiny",
        "text_config": {
            "model_type": "llama",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    },
    "data": {"path": "parquet"},
    "training": {
        "per_device_train_batch_size": 2,
        "max_length": 512,
        "use_cpu": True,
        "report_to": "none",
        "lr_scheduler_type": "warmup_stable_decay",
    },
}


@pytest.fixture
def comparison(tmp_path, monkeypatch) -> Comparison:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_data(tmp_path / "data", size=64)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    tokenizers = {"tokenflow": TOKENIZER, "pixel": TOKENIZER}
    return Comparison(tmp_path / "data", tokenizers, TEACHER, tmp_path / "out", 2, tmp_path / "recipe.yaml")


def rate(accuracy: float, error: float) -> dict[str, float]:
    return {"accuracy": accuracy, "standard_error": error}


def figures(accuracy: float) -> dict:
    value = rate(accuracy, 0.02)
    kinds = dict.fromkeys(("yes_no", "colour", "style", "category"), value)
    names = {
        "all": {"model": value},
        "without_skin_tones": {"model": rate(accuracy / 2, 0.04)},
        "nats": {"mean": 10 * accuracy, "standard_error": 0.1},
    }
    return {"tokens": 64, "names": names, "heldout_pairs": kinds, "heldout_names": kinds}


def test_the_language_model_and_the_data_are_the_same_for_all(comparison, monkeypatch):
    monkeypatch.setattr(Comparison, "codes", lambda self, name: Path(name) / "codes")
    recipes = {name: read_recipe(comparison.recipe, comparison.overrides(name, 0)) for name in VARIANTS}
    texts = {json.dumps(recipe["model"]["text_config"]) for recipe in recipes.values()}
    settings = {json.dumps(recipe["training"] | {"output_dir": ""}) for recipe in recipes.values()}
    assert len(texts) == len(settings) == 1
    assert len({recipe["training"]["output_dir"] for recipe in recipes.values()}) == len(VARIANTS)
    assert recipes["teacher"]["data"]["data_files"].endswith("pictures/train.parquet")
    assert recipes["all_scales"]["model"]["config"] == {"feature_strategy": "all_scales"}


def test_llava_reads_the_teachers_features_with_the_same_language_model(comparison, monkeypatch):
    monkeypatch.setattr(Comparison, "codes", lambda self, name: Path(name))
    section = read_recipe(comparison.recipe, comparison.overrides("teacher", 0))["model"]
    section.pop("type")
    model, processor = make_understanding(section)
    expected = {name: tensor.clone() for name, tensor in model.model.language_model.state_dict().items()}
    llava = as_llava(model, TEACHER)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in llava.model.language_model.state_dict().items())
    trained = {name.split(".")[1] for name, parameter in llava.named_parameters() if parameter.requires_grad}
    assert trained == {"language_model", "multi_modal_projector"}
    pictures = torch.rand(1, 3, 64, 64) * 2 - 1
    teacher = load_teacher(f"local-dir:{TEACHER}")
    with torch.no_grad():
        hidden = llava.model.vision_tower(pictures, output_hidden_states=True).hidden_states[-1][:, 1:]
        visual = teacher.tower.visual
        torch.testing.assert_close(visual.ln_post(hidden) @ visual.proj, teacher(pictures), atol=1e-4, rtol=1e-3)
        inputs = processor(
            text=["<image>what is it?"], images=[processor.postprocess(pictures)[0]], return_tensors="pt"
        )
        assert inputs["input_ids"].tolist()[0].count(llava.config.image_token_id) == 64
        assert llava(**inputs).logits.shape[-1] == len(processor.tokenizer)


@pytest.mark.parametrize("name", ["all_scales_residual", "teacher"])
def test_a_variant_is_trained_and_measured_once(comparison, name, monkeypatch):
    monkeypatch.setattr("training.evaluate_understanding.MAX_NEW_TOKENS", 2)
    comparison.measure(name, seed=0)
    measured = comparison.figures([0])
    assert list(measured) == [name] and measured[name][0]["tokens"] == {"teacher": 64}.get(name, 204)
    assert measured[name][0]["names"]["all"]["pictures"] == 2
    state = json.loads((comparison.folder(name, 0) / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    monkeypatch.setattr(Comparison, "train", lambda *_: pytest.fail("it has been trained"))
    comparison.measure(name, seed=0)
    assert comparison.figures([0, 1]) == {}


def test_codes_are_written_once_for_each_tokenizer(comparison, tmp_path, monkeypatch):
    path = comparison.codes(TOKENIZER)
    written = path.stat().st_mtime_ns
    assert comparison.codes(TOKENIZER) == path and path.stat().st_mtime_ns == written
    other = TokenFlowModel.from_pretrained(TOKENIZER)
    with torch.no_grad():
        other.quantizer.codebook.pixel.add_(1)
    other.save_pretrained(tmp_path / "other")
    assert comparison.codes(str(tmp_path / "other")) != path


def test_table_has_means_over_seeds():
    table = make_table({"last_scale": [figures(0.5), figures(0.6)], "pixel": [figures(0.1), figures(0.1)]})
    header, rule, first, second = table.splitlines()
    assert header.count("|") == rule.count("|") == first.count("|") == second.count("|")
    assert first.startswith("| TokenFlow, last scale | 64 | 5.50 ± 0.10 | 55.0 ± 2.0 | 27.5 ± 4.0 | 55.0 ± 2.0 |")
    assert second.startswith("| a codebook of pixels alone, last scale | 64 | 1.00 ± 0.10 | 10.0 ± 2.0 |")


def test_main_measures_what_is_asked_for_and_writes_all_there_is(tmp_path, monkeypatch):
    document, done = tmp_path / "understanding.md", []
    document.write_text(f"{START}{END}")

    def measure(self: Comparison, name: str, seed: int) -> None:
        done.append((name, seed))
        path = self.figures_path(name, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures(0.5)))

    monkeypatch.setattr(Comparison, "measure", measure)
    for variants in (["pixel"], ["last_scale"]):
        main(variants, output=tmp_path / "out", document=document, steps=10, seeds=2)
    assert done == [("pixel", 0), ("pixel", 1), ("last_scale", 0), ("last_scale", 1)]
    assert "pixels alone" in document.read_text() and "TokenFlow, last scale" in document.read_text()
    with pytest.raises(typer.BadParameter, match="unheard-of"):
        main(["unheard-of"], output=tmp_path / "out", document=document)


def test_the_recipe_is_the_small_models():
    assert read_recipe(ROOT / compare_understanding.RECIPE)["model"]["type"] == "understanding"


def test_the_document_has_a_place_for_the_table():
    text = (ROOT / "docs" / "understanding.md").read_text(encoding="utf-8")
    assert 0 <= text.index(START) < text.index(END)
