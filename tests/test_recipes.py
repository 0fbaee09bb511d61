# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Recipes: every shipped one can be followed, and what can't is said clearly."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from tiny_models import KINDS, PIXEL_FIELDS, TRANSFORMER, needs_timm, pictures, tiny_model
from tiny_training import gradient_pictures
from transformers.utils import is_timm_available

from transformers_tokenflow import TokenFlowConfig, TokenFlowModel
from transformers_tokenflow.configuration_tokenflow import PRESETS
from transformers_tokenflow.trainers import recipe as recipes
from transformers_tokenflow.trainers.data import PictureTransform, load_pictures
from transformers_tokenflow.trainers.teachers import OpenClipTower, Teacher, initialize_semantic_encoder

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "training" / "recipes"
# Those of generators are in test_recipes_text_to_image.py.
NAMES = sorted(
    path.name
    for path in FOLDER.glob("*.yaml")
    if path.name != "tiny-teacher.yaml" and "type" not in recipes.read_recipe(path)["model"]
)
PAPER = ["tokenflow-b.yaml", "tokenflow-l.yaml", "tokenflow-xl.yaml", "tokenflow-b-256-enhanced.yaml"]
ENHANCED = "tokenflow-b-256-enhanced.yaml"
PRESET_B = TokenFlowConfig.from_preset("tokenflow-b")


def read(name: str) -> dict[str, Any]:
    return recipes.read_recipe(FOLDER / name)


def config_of(name: str) -> TokenFlowConfig:
    """The configuration of a shipped recipe's model; for a trained one stands that of the recipe that trains it."""
    section = dict(read(name)["model"])
    if section.get("from_pretrained", "").startswith("hub_cards/"):
        section["from_pretrained"] = str(ROOT / section["from_pretrained"])
    elif "from_pretrained" in section:
        folder, changes = section.pop("from_pretrained"), section.pop("config", {})
        source = next(other for other in NAMES if read(other)["training"]["output_dir"] == folder)
        section = dict(read(source)["model"])
        section["config"] = {**section.get("config", {}), **changes}
    return recipes.make_config(section)


def meta_model(config: TokenFlowConfig) -> TokenFlowModel:
    with torch.device("meta"):
        return TokenFlowModel(config)


def test_all_variants_of_the_paper_have_a_recipe():
    assert {*PAPER, "tiny.yaml"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_valid(name, tmp_path):
    section = {**read(name)["training"], "use_cpu": True, "output_dir": str(tmp_path), "report_to": "none"}
    args = recipes.make_arguments(section)
    assert args.max_steps > 0
    for data in (read(name)["data"], *read(name)["evaluation"].values()):
        options = {**data, "transform": PictureTransform(32, **data.get("transform", {}))}
        known = load_pictures.__code__.co_varnames[: load_pictures.__code__.co_argcount]
        assert options.keys() <= {*known, "data_dir", "data_files", "name", "revision"}


@pytest.mark.parametrize("name", PAPER)
def test_numbers_are_the_papers(name, tmp_path):
    recipe = read(name)
    args = recipes.make_arguments(
        {**recipe["training"], "use_cpu": True, "output_dir": str(tmp_path), "report_to": "none"}
    )
    assert (args.learning_rate, args.adam_beta1, args.adam_beta2, args.weight_decay) == (1e-4, 0.9, 0.95, 0.0)
    assert 8 * args.per_device_train_batch_size * args.gradient_accumulation_steps == 256
    assert (args.adversarial_weight, args.adversarial_start_step, args.max_grad_norm) == (0.5, 20_000, 1.0)
    assert (args.perceptual_loss, args.scale_dropout, args.bf16 or args.fp16) == ("lpips", 0.1, True)
    assert (args.warmup_steps, str(args.lr_scheduler_type.value)) == (0, "constant_with_warmup")
    assert args.max_steps == (1_000_000 if name == "tokenflow-b.yaml" else 500_000)
    config = config_of(name)
    assert (config.codebook_weight, config.commitment_weight, config.entropy_weight) == (1.0, 0.25, 0.0)
    assert (config.codebook_size, config.semantic_codebook_dim, config.pixel_codebook_dim) == (32_768, 32, 8)
    assert recipe["data"]["streaming"] and recipe["data"]["transform"] == {"min_crop": 0.8, "flip": True}


@pytest.mark.parametrize("name", NAMES)
def test_model_builds(name):
    if name == "tokenflow-l.yaml" and not is_timm_available():
        pytest.skip("timm is not installed")
    model = meta_model(config_of(name))
    has_semantics = model.config.semantic_codebook_dim > 0
    parts = read(name)["training"].get("trainable_parts", ["semantic_"] * has_semantics + ["pixel_", "quantizer"])
    assert all(any(key.startswith(part) for key, _ in model.named_parameters()) for part in parts)
    rates = read(name)["training"].get("part_learning_rates", {})
    assert all(any(key.startswith(part) for key, _ in model.named_parameters()) for part in rates)


@pytest.mark.parametrize("name", NAMES)
def test_teacher_is_known(name):
    teacher = read(name).get("teacher")
    if teacher is None and config_of(name).semantic_codebook_dim == 0:
        return
    if teacher is None:
        assert all(part.startswith("pixel_decoder") for part in read(name)["training"]["trainable_parts"])
    elif teacher["name"].startswith("local-dir:"):
        assert (ROOT / teacher["name"].removeprefix("local-dir:") / "open_clip_config.json").is_file()
    elif teacher.get("library") == "transformers":
        assert teacher["name"].count("/") == 1
        assert (
            TokenFlowConfig.from_preset(read(name)["model"]["preset"]).semantic_feature_layer
            == teacher["feature_layer"]
        )
    else:
        open_clip = pytest.importorskip("open_clip")
        assert open_clip.get_model_config(teacher["name"]) is not None
        assert open_clip.pretrained.get_pretrained_cfg(teacher["name"], teacher["pretrained"])


@pytest.mark.parametrize("name", ["tokenflow-b.yaml", pytest.param("tokenflow-l.yaml", marks=needs_timm)])
def test_open_clip_teacher_has_the_semantic_encoders_weights(name):
    open_clip = pytest.importorskip("open_clip")
    config = config_of(name)
    with torch.device("meta"):
        model = open_clip.create_model(
            read(name)["teacher"]["name"], pretrained_image=False, pretrained_text=False, device="meta"
        )
    tower = OpenClipTower(model.visual)
    teacher = Teacher(tower, config.image_size, [0.5] * 3, [0.5] * 3)
    initialize_semantic_encoder(meta_model(config), teacher)
    tokens = tower(torch.empty(1, 3, config.image_size, config.image_size, device="meta"))
    assert tokens.shape == (1, config.grid_size**2, config.teacher_hidden_size)


def test_enhanced_decoder_keeps_all_but_the_decoder():
    before = meta_model(TokenFlowConfig.from_preset("tokenflow-b"))
    after = meta_model(config_of(ENHANCED))
    assert config_of(ENHANCED).to_dict() == TokenFlowConfig.from_preset("tokenflow-b-256-enhanced").to_dict()
    shapes = {name: tensor.shape for name, tensor in before.state_dict().items()}
    trained = tuple(read(ENHANCED)["training"]["trainable_parts"])
    for name, tensor in after.state_dict().items():
        if name.startswith(trained):
            # Of the old decoder nothing fits but this, which is three numbers.
            assert shapes.get(name) != tensor.shape or name == "pixel_decoder.conv_out.bias", name
        else:
            assert shapes[name] == tensor.shape, name


def test_enhanced_decoder_starts_from_a_checkpoint(tmp_path):
    source = tiny_model("clip", seed=5)
    source.save_pretrained(tmp_path)
    changes = {"image_size": 48, "scales": [1, 2, 4, 6], "decoder_channels": 16, "decoder_num_res_blocks": 2}
    model = recipes.make_model({"from_pretrained": str(tmp_path), "config": changes})
    assert (model.config.scales, model.config.decoder_channels) == ([1, 2, 4, 6], 16)
    loaded, old = model.state_dict(), source.state_dict()
    for name in old:
        if not name.startswith(("pixel_decoder.conv", "pixel_decoder.blocks", "pixel_decoder.norm")):
            assert torch.equal(loaded[name], old[name]), name
    fresh = [tensor for name, tensor in loaded.items() if name.startswith("pixel_decoder.blocks")]
    assert all(tensor.isfinite().all() for tensor in fresh) and any(tensor.std() > 0 for tensor in fresh)
    assert model.eval()(pictures(model.config)).pixel_values.shape == (2, 3, 48, 48)


def test_presets_of_recipes_exist():
    assert {read(name)["model"].get("preset") for name in PAPER} - {None} <= PRESETS.keys()


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe of five steps on pictures in a folder, as a file, without a teacher."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "pictures" / "train"
    folder.mkdir(parents=True)
    for index, picture in enumerate(gradient_pictures(6)):
        picture.save(folder / f"{index}.png")
    data = {"path": "imagefolder", "data_dir": str(folder.parent)}
    fields = {
        **PIXEL_FIELDS,
        **KINDS["clip"],
        "semantic_decoder_config": {**TRANSFORMER, "image_size": 4},
        "teacher_hidden_size": 12,
    }
    training = {
        "output_dir": str(tmp_path / "run"),
        "max_steps": 5,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "save_steps": 2,
        "perceptual_loss": "none",
        "adversarial_weight": 0,
        "ema_decay": 0.5,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    content = {"model": {"config": fields}, "data": data, "evaluation": {"some": data}, "training": training}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("streaming", [False, True])
def test_interrupted_recipe_goes_on_and_a_finished_one_rests(recipe, streaming):
    overrides = {"data.streaming": streaming, "data.seed": 3}
    recipes.train(recipes.read_recipe(recipe, {**overrides, "training.output_dir": f"{recipe.parent}/whole"}))
    recipes.train(recipes.read_recipe(recipe, {**overrides, "training.max_steps": 3}))
    trainer = recipes.train(recipes.read_recipe(recipe, overrides))
    whole = TokenFlowModel.from_pretrained(recipe.parent / "whole").state_dict()
    parts = TokenFlowModel.from_pretrained(recipe.parent / "run").state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert len([entry for entry in trainer.state.log_history if "loss" in entry]) == 5
    assert "eval_some_psnr" in json.loads((recipe.parent / "run" / "eval_results.json").read_text())

    again = recipes.train(recipes.read_recipe(recipe, overrides))
    assert again.state.global_step == 5
    resaved = TokenFlowModel.from_pretrained(recipe.parent / "run").state_dict()
    assert all(torch.equal(whole[name], resaved[name]) for name in whole)


def test_a_run_goes_on_from_a_checkpoint_of_another_until_it_has_its_own(recipe):
    def steps(**settings: Any) -> list[int]:
        overrides = {f"training.{name}": value for name, value in settings.items()}
        trainer = recipes.train(recipes.read_recipe(recipe, overrides))
        return [entry["step"] for entry in trainer.state.log_history if "loss" in entry]

    steps(output_dir=f"{recipe.parent}/other", max_steps=2)
    given = recipe.parent / "given"  # named as no checkpoint is
    (recipe.parent / "other" / "checkpoint-2").rename(given)
    assert steps(resume_from_checkpoint=str(given), max_steps=4) == [1, 2, 3, 4]
    assert not (recipe.parent / "run" / "checkpoint-2").exists()
    shutil.rmtree(given)
    assert steps(resume_from_checkpoint=str(given), max_steps=5) == [1, 2, 3, 4, 5]
    own = {"resume_from_checkpoint": True, "output_dir": f"{recipe.parent}/new"}  # Trainer's word for its own last one
    assert steps(**own, max_steps=1) == [1] and steps(**own, max_steps=2) == [1, 2]


def test_a_number_holds_no_settings(recipe):
    with pytest.raises(ValueError, match="training.max_steps.x can't be set: max_steps is 5, and holds no settings"):
        recipes.read_recipe(recipe, {"training.max_steps.x": 1})


@pytest.mark.parametrize("max_steps", [1, 2])
def test_run_of_another_model_does_not_go_on(recipe, max_steps):
    overrides = {"training.max_steps": 1, "training.output_dir": f"{recipe.parent}/base"}
    recipes.train(recipes.read_recipe(recipe, overrides))
    pretrained = {"model": {"from_pretrained": f"{recipe.parent}/base"}, "training.max_steps": 1}
    recipes.train(recipes.read_recipe(recipe, pretrained))
    before = (recipe.parent / "run" / "config.json").read_text()
    recipes.make_trainer(recipes.read_recipe(recipe, pretrained))
    settings = {**pretrained, "training.max_steps": max_steps}
    changed = {**settings, "model.config.distance_weight": 0.25, "model.config.codebook_size": 64}
    message = r"checkpoint-1 comes from .* other settings \(codebook_size, distance_weight\): choose another output_dir"
    with pytest.raises(ValueError, match=message):
        recipes.make_trainer(recipes.read_recipe(recipe, changed))
    assert (recipe.parent / "run" / "config.json").read_text() == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_trained_in_fp32(recipe, tmp_path, dtype):
    section = recipes.read_recipe(recipe)["model"]
    recipes.make_model(section).to(dtype).save_pretrained(tmp_path / "half")
    model = recipes.make_model({"from_pretrained": str(tmp_path / "half")})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_stream_that_is_not_read_again_changes_its_order(recipe):
    def first_picture(steps: int) -> torch.Tensor:
        overrides = {"data.streaming": True, "training.ignore_data_skip": True, "training.max_steps": steps}
        return next(iter(recipes.make_trainer(recipes.read_recipe(recipe, overrides)).train_dataset))["pixel_values"]

    before = first_picture(2)
    recipes.train(recipes.read_recipe(recipe, {"training.max_steps": 2}))
    assert not torch.equal(first_picture(4), before)


def test_data_in_memory_that_begin_anew_change_their_order(recipe):
    def order(steps: int) -> list[torch.Tensor]:
        overrides = {"training.ignore_data_skip": True, "training.max_steps": steps}
        trainer = recipes.make_trainer(recipes.read_recipe(recipe, overrides))
        sampler = trainer.get_train_dataloader().batch_sampler.sampler
        return list(sampler)

    before = order(2)
    recipes.train(recipes.read_recipe(recipe, {"training.max_steps": 2}))
    assert order(4) != before and sorted(order(4)) == sorted(before)


def test_script_for_accelerate_launch(recipe, monkeypatch, tmp_path):
    monkeypatch.setattr(
        sys, "argv", ["train.py", str(recipe), "--set", "training.max_steps=1", "--set", "training.learning_rate=2e-3"]
    )
    runpy.run_path(str(ROOT / "training" / "train.py"), run_name="__main__")
    state = json.loads((tmp_path / "run" / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["log_history"][0]["learning_rate"] == 2e-3
    monkeypatch.setattr(sys, "argv", ["train.py", str(recipe), "--set", "training.nonsense=1"])
    with pytest.raises(SystemExit, match="TokenFlowTrainingArguments has no nonsense"):
        runpy.run_path(str(ROOT / "training" / "train.py"), run_name="__main__")


def test_scientific_numbers_are_numbers(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("{model: {}, data: {}, training: {learning_rate: 1e-4, other: 2.5E3, name: 1e-4b}}")
    assert recipes.read_recipe(path)["training"] == {"learning_rate": 1e-4, "other": 2500.0, "name": "1e-4b"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"training.max_step": 3}, "TokenFlowTrainingArguments has no max_step"),
        ({"model.config.code_book_size": 3}, "has no fields code_book_size"),
        ({"model.presets": "tokenflow-b"}, "a recipe's model has no presets"),
        ({"model.type": "video"}, "unknown type of model 'video': expected one of tokenizer, text-to-image"),
        ({"model.preset": "tokenflow-s"}, "unknown preset 'tokenflow-s'"),
        ({"model.preset": "tokenflow-b", "model.from_pretrained": "x"}, "not both"),
        ({"teacher.name": "x", "teacher.library": "keras"}, "unknown library of teachers"),
        ({"data.transform": {"min_crop": 2.0}}, "min_crop must lie in"),
        ({"data.column": "jpg"}, "no column 'jpg'"),
        ({"data.path": None}, "data need a path: .* got None"),
        ({"evaluation": {"some": {}}}, "data need a path"),
        ({"training.seed": None}, "TokenFlowTrainingArguments.seed must not be empty"),
        ({"training.optim": None}, "TokenFlowTrainingArguments.optim must not be empty"),
        ({"training.resume_from_checkpoint": "runs/nowhere"}, "is the folder of a checkpoint .* got 'runs/nowhere'"),
    ],
)
def test_bad_settings_are_named(recipe, change, message):
    with pytest.raises(ValueError, match=message):
        recipes.make_trainer(recipes.read_recipe(recipe, change))


def test_empty_keys_change_nothing():
    assert recipes.make_config({"preset": "tokenflow-b", "config": None}).to_dict() == PRESET_B.to_dict()


@pytest.mark.parametrize("text", ["[]", "model: {}", "{model: {}, data: {}, training: {}, optimizer: {}}", ""])
def test_sections_are_checked(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="must hold the sections model, data and training"):
        recipes.read_recipe(path)
