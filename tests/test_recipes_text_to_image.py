# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Recipes of generators: the shipped ones can be followed, from scratch, from a text Llama, and with adapters."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from tiny_models import TEXT_FIELDS, tiny_model, tiny_text_to_image, tiny_text_tokenizer
from tiny_text_to_image_training import code_rows
from tiny_training import gradient_pictures
from transformers import LlamaConfig, LlamaForCausalLM, pipeline

from training import prepare_style
from transformers_tokenflow import (
    TokenFlowConfig,
    TokenFlowForTextToImage,
    TokenFlowImageProcessor,
    TokenFlowProcessor,
)
from transformers_tokenflow.commands import CommandError
from transformers_tokenflow.commands.encoding import encode_pictures
from transformers_tokenflow.commands.tokenizers import Tokenizer
from transformers_tokenflow.commands.training import train_recipe
from transformers_tokenflow.trainers import TextToImageTrainingArguments
from transformers_tokenflow.trainers import recipe as recipes
from transformers_tokenflow.trainers.text_to_image_recipe import (
    DATA_KEYS,
    MODEL_KEYS,
    build_config,
    build_generator,
    load_text_tokenizer,
    start_from_text_model,
)

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "training" / "recipes"
NAMES = ["text-to-image-1b.yaml", "text-to-image-7b.yaml", "tiny-style.yaml", "tiny-text-to-image.yaml"]
LLAMAS: dict[str, dict[str, Any]] = {
    "text-to-image-7b.yaml": {"max_position_embeddings": 4096},
    "text-to-image-1b.yaml": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_key_value_heads": 4,
    },
}
FEW_STEPS = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "save_steps": 2,
    "warmup_steps": 0,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


def read(name: str) -> dict[str, Any]:
    return recipes.read_recipe(FOLDER / name)


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_known(name, tmp_path):
    recipe = read(name)
    section = {**recipe["training"], "use_cpu": True, "output_dir": str(tmp_path), "report_to": "none", "tf32": None}
    args = recipes.make_arguments(section, TextToImageTrainingArguments)
    assert args.max_steps > 0
    assert recipe["model"].keys() - {"type"} <= MODEL_KEYS
    known = DATA_KEYS | {"path", "split", "streaming", "data_files", "data_dir", "take"}
    assert all(data.keys() <= known for data in (recipe["data"], *recipe.get("evaluation", {}).values()))


def test_numbers_are_the_official_ones(tmp_path):
    training = read("text-to-image-7b.yaml")["training"]
    official = TextToImageTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    for name in ("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "text_dropout", "adam_beta2"):
        assert training[name] == getattr(official, name)
    assert training["first_sentence_probability"] == 0.2 and training["lr_scheduler_type"] == "constant_with_warmup"
    assert training["per_device_train_batch_size"] == 16 and training["activation_checkpointing"] and training["bf16"]
    assert training["max_steps"] * 8 * 16 * training["gradient_accumulation_steps"] == pytest.approx(120e6, rel=0.01)


@pytest.mark.parametrize("name", LLAMAS)
def test_large_models_start_from_their_text_models(name):
    text_config = LlamaConfig(vocab_size=64, **LLAMAS[name])
    tokenizer_config = TokenFlowConfig.from_preset(read(name)["model"]["tokenizer"].removeprefix("runs/"))
    tokenizer = tiny_text_tokenizer(pad_token="</s>")
    config = build_config(read(name)["model"]["config"], tokenizer_config, tokenizer, text_config)
    with torch.device("meta"):
        model, text_model = TokenFlowForTextToImage(config), LlamaForCausalLM(text_config)
    start_from_text_model(model, text_model)
    layers = sum(parameter.numel() for parameter in model.model.layers.parameters())
    assert layers / 1e9 == pytest.approx(6.48 if "7b" in name else 0.97, rel=0.01)


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Path:
    """Two tokenizers, a text Llama, a generator, codes and pictures, each in a folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tiny_model().save_pretrained(tmp_path / "tokenizer")
    TokenFlowImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / "tokenizer")
    tiny_text_tokenizer().save_pretrained(tmp_path / "text-tokenizer")
    code_rows(16).to_parquet(tmp_path / "codes.parquet")
    return tmp_path


def write(folder: Path, model: dict[str, Any], **training: Any) -> Path:
    """A recipe of four steps on the codes."""
    data = {"path": "parquet", "data_files": str(folder / "codes.parquet")}
    content = {
        "model": {"type": "text-to-image", **model},
        "data": data,
        "evaluation": {"same": {**data, "take": 4}},
        "training": {"output_dir": str(folder / "run"), **FEW_STEPS, **training},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def from_scratch(folder: Path) -> dict[str, Any]:
    return {
        "tokenizer": str(folder / "tokenizer"),
        "text_tokenizer": str(folder / "text-tokenizer"),
        "config": {"use_text_head": False, "text_config": TEXT_FIELDS},
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_interrupted_recipe_goes_on_and_a_finished_one_rests(sources, streaming):
    path = write(sources, from_scratch(sources), ema_decay=0.5)
    options = {"data.streaming": streaming}
    recipes.train(recipes.read_recipe(path, {**options, "training.output_dir": str(sources / "whole")}))
    recipes.train(recipes.read_recipe(path, {**options, "training.max_steps": 2}))
    recipes.train(recipes.read_recipe(path, options))
    trainer = recipes.train(recipes.read_recipe(path, options))
    assert trainer.state.global_step == 4
    whole, parts = (TokenFlowForTextToImage.from_pretrained(sources / name) for name in ("whole", "run"))
    assert all(torch.equal(tensor, parts.state_dict()[name]) for name, tensor in whole.state_dict().items())
    assert "eval_same_accuracy_scale_2" in json.loads((sources / "run" / "eval_results.json").read_text())
    assert len(TokenFlowProcessor.from_pretrained(sources / "run").tokenizer) == whole.config.text_config.vocab_size
    given = TokenFlowForTextToImage.from_pretrained(sources / "run").tokenizer.state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in tiny_model().state_dict().items())


@pytest.fixture
def text_model(sources) -> LlamaForCausalLM:
    """A text Llama whose vocabulary has not the token for padding that its tokenizer gets."""
    torch.manual_seed(3)
    tokenizer = tiny_text_tokenizer()
    model = LlamaForCausalLM(LlamaConfig(**TEXT_FIELDS, vocab_size=len(tokenizer), rms_norm_eps=1e-4))
    model.model.norm.weight.data.uniform_()
    model.save_pretrained(sources / "llama")
    tokenizer.save_pretrained(sources / "llama")
    return model


@pytest.mark.parametrize("use_text_head", [False, True])
def test_weights_of_a_text_model_are_taken_over(sources, text_model, use_text_head):
    tokenizer = load_text_tokenizer(str(sources / "llama"))
    model = build_generator({"use_text_head": use_text_head}, tiny_model(), tokenizer, text_model)
    assert model.config.text_config.rms_norm_eps == 1e-4
    assert model.config.text_config.vocab_size == text_model.config.vocab_size + 1
    own, given = model.state_dict(), text_model.state_dict()
    for name, tensor in given.items():
        name = name.replace("lm_head", "text_head")
        if name == "text_head.weight" and not use_text_head:
            assert name not in own
        else:
            assert torch.equal(own[name][: len(tensor)], tensor), name
    pad = own["model.embed_tokens.weight"][-1]
    assert pad.isfinite().all()
    position = own["model.position_embedding.weight"]
    assert position.std() == pytest.approx((3 * 32) ** -0.5, rel=0.3)


def test_a_text_model_of_another_architecture(sources, text_model):
    tokenizer = load_text_tokenizer(str(sources / "llama"))
    with pytest.raises(ValueError, match="does not fit the generator's configuration: model.layers.0.mlp.down"):
        build_generator({"text_config": {"intermediate_size": 48}}, tiny_model(), tokenizer, text_model)


def test_recipe_from_a_text_model(sources, text_model):
    section = {"tokenizer": str(sources / "tokenizer"), "from_text_model": str(sources / "llama")}
    trainer = train_recipe(write(sources, section, max_steps=1))
    assert trainer.model.text_head is not None
    assert {"eval_same_loss"} <= trainer.evaluate().keys()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"teacher": {"name": "x"}}, "a generator has no teacher"),
        ({"model.colour": 1}, "a generator's model has no colour"),
        ({"model.from_pretrained": "x"}, "has its tokenizers and configuration already"),
        ({"model.config.hidden_size": 3}, "TokenFlowTextToImageConfig has no fields hidden_size"),
        ({"model.config.text_config.hidden_sizes": 3}, "LlamaConfig has no fields hidden_sizes"),
        ({"training.perceptual_loss": "none"}, "TextToImageTrainingArguments has no perceptual_loss"),
        ({"data.text_column": "caption"}, "has no column 'caption'; its columns are codes, text"),
        ({"training.lora_rank": 2}, "with lora_rank, it is from_pretrained"),
    ],
)
def test_bad_settings_are_named(sources, change, message):
    recipe = recipes.read_recipe(write(sources, from_scratch(sources)), {k: v for k, v in change.items() if "." in k})
    recipe |= {name: value for name, value in change.items() if "." not in name}
    with pytest.raises(ValueError, match=message):
        recipes.make_trainer(recipe)


FORMS: list[Callable[[Path], dict[str, Any]]] = [
    lambda path: {"data_files": str(path)},
    lambda path: {"data_files": [str(path)]},
    lambda path: {"data_files": {"train": [str(path).replace("own", "o*n")]}},
    lambda path: {"data_files": f"file://{path}"},
    lambda path: {"data_dir": str(path.parent)},
    lambda path: {"data_dir": str(path.parent), "data_files": path.name},
    lambda path: {"path": str(path.parent)},
]


@pytest.mark.parametrize("form", FORMS)
def test_codes_of_another_tokenizer_are_refused(sources, form):
    pictures = sources / "pictures"
    pictures.mkdir()
    for index, picture in enumerate(gradient_pictures(4)):
        picture.save(pictures / f"{index}.png")
    lines = [json.dumps({"file_name": f"{index}.png", "text": "a gradient"}) for index in range(4)]
    (pictures / "metadata.jsonl").write_text("\n".join(lines))
    path = write(sources, from_scratch(sources), max_steps=1)
    for seed in (0, 1):
        model = tiny_model(seed=seed)
        processor = TokenFlowImageProcessor(size={"shortest_edge": 32})
        output = sources / f"codes-{seed}" / f"own-{seed}.parquet"
        output.parent.mkdir()
        encode_pictures([pictures], output, Tokenizer("tiny", model, processor, torch.device("cpu")), 4)
        recipe = recipes.read_recipe(path, {"data": {"path": "parquet", **form(output)}})
        if seed == 0:
            recipes.train(recipe)
        else:
            with pytest.raises(ValueError, match="come from tiny .*encode the pictures anew"):
                recipes.make_trainer(recipe)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training.max_steps=1.5"], "TextToImageTrainingArguments.max_steps must be a whole number; got 1.5"),
        (["training.muon=maybe"], "TextToImageTrainingArguments.muon must be true or false; got 'maybe'"),
        (["training.learning_rate=much"], "TextToImageTrainingArguments.learning_rate must be a number; got 'much'"),
        (
            ["data.path=json", "data.data_files=cut.json"],
            "can't be followed: An error occurred .*: Unexpected character",
        ),
        (["data.transform={min_crop: 0.5}"], "rows with codes are read by them"),
    ],
)
def test_errors_are_one_line(sources, monkeypatch, settings, message):
    monkeypatch.chdir(sources)
    (sources / "cut.json").write_text('[{"codes": [1, 2')
    with pytest.raises(CommandError, match=message) as error:
        train_recipe(write(sources, from_scratch(sources)), settings)
    assert "\n" not in str(error.value)


def test_whole_numbers_may_be_written_as_powers(tmp_path):
    section = {"output_dir": str(tmp_path), "max_steps": 1e1, "use_cpu": True, "report_to": "none"}
    args = recipes.make_arguments(section, TextToImageTrainingArguments)
    assert args.max_steps == 10 and isinstance(args.max_steps, int)


def test_fields_of_another_type_are_named(sources):
    with pytest.raises(CommandError, match="can't be followed: .*qk_norm_eps"):
        train_recipe(write(sources, {**from_scratch(sources), "config": {"qk_norm_eps": "small"}}))


def test_a_text_tokenizer_is_needed(sources):
    section = {name: value for name, value in from_scratch(sources).items() if name != "text_tokenizer"}
    with pytest.raises(CommandError, match="can't be followed: a generator needs a tokenizer, and a text_tokenizer"):
        train_recipe(write(sources, section))


def test_tutorial_of_a_new_style(tmp_path, monkeypatch):
    """Its commands, shortened: fewer pictures and steps, and a model of random weights."""
    text = (ROOT / "training" / "README.md").read_text(encoding="utf-8")
    chapter = text[text.index("## A new style") :]
    commands = re.search(r"```bash\n(.*?)```", chapter, flags=re.S)[1]
    assert "python -m training.prepare_style data/blueprint" in commands
    assert "tokenflow train training/recipes/tiny-style.yaml" in commands
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model, processor = tiny_text_to_image(use_text_head=False)
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    columns = {"image": gradient_pictures(8), "name": [f"thing {index}" for index in range(8)]}
    columns |= {"base_name": columns["name"], "style": ["noto"] * 8}
    rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    monkeypatch.setattr(prepare_style, "load_dataset", lambda path, split: rows)

    prepare_style.main(tmp_path / "blueprint", count=6)
    settings = {
        "model.from_pretrained": tmp_path / "base",
        "data.data_dir": tmp_path / "blueprint",
        "training.output_dir": tmp_path / "run",
        "training.max_steps": 3,
        "training.lr_scheduler_kwargs.num_decay_steps": 1,
        "training.warmup_steps": 1,
        "training.per_device_train_batch_size": 2,
        "training.use_cpu": "true",
    }
    trainer = train_recipe(FOLDER / "tiny-style.yaml", [f"{name}={value}" for name, value in settings.items()])
    assert [entry["prompt"] for entry in trainer.train_dataset if entry["prompt"]][0].endswith(", blueprint style")
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    painter = pipeline("text-to-image", model=str(tmp_path / "run"))
    assert painter("thing 1, blueprint style", seed=0).size == (32, 32)
