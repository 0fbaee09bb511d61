# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Recipes of understanding models: the shipped ones can be followed, from a text model, from scratch, in two stages."""

import itertools
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from tiny_models import TEXT_FIELDS, tiny_model, tiny_text_tokenizer
from tiny_training import gradient_pictures
from tiny_understanding_training import message_rows, question_rows, tiny_pair
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig, LlamaForCausalLM, Qwen2Config

from transformers_tokenflow import (
    TokenFlowConfig,
    TokenFlowForConditionalGeneration,
    TokenFlowImageProcessor,
    TokenFlowModel,
    TokenFlowProcessor,
    TokenFlowUnderstandingConfig,
    load_chat_template,
)
from transformers_tokenflow.commands import CommandError
from transformers_tokenflow.commands.encoding import encode_pictures
from transformers_tokenflow.commands.tokenizers import Tokenizer
from transformers_tokenflow.commands.training import train_recipe
from transformers_tokenflow.trainers import UnderstandingTrainingArguments
from transformers_tokenflow.trainers import recipe as recipes
from transformers_tokenflow.trainers.understanding_recipe import (
    DATA_KEYS,
    NEW_KEYS,
    PRETRAINED_KEYS,
    build_understanding,
    change_options,
    find_ends,
    make_config,
    make_text_model,
)

FOLDER = Path(__file__).parents[1] / "training" / "recipes"
STAGE_1, STAGE_2, QWEN, TINY = (
    "understanding-stage1.yaml",
    "understanding-stage2.yaml",
    "understanding-qwen2.5-14b.yaml",
    "tiny-understanding.yaml",
)
VICUNA_13B = {
    "vocab_size": 32000,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}
QWEN_14B = {**VICUNA_13B, "vocab_size": 152064, "num_hidden_layers": 48, "num_key_value_heads": 8}
FEW_STEPS = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "save_steps": 2,
    "warmup_steps": 0,
    "logged_answers": 1,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


def read(name: str) -> dict[str, Any]:
    return recipes.read_recipe(FOLDER / name)


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*understanding*.yaml")))
def test_settings_are_known(name, tmp_path):
    recipe = read(name)
    section = {**recipe["training"], "use_cpu": True, "output_dir": str(tmp_path), "report_to": "none", "tf32": None}
    recipes.make_arguments(section, UnderstandingTrainingArguments)
    model = recipe["model"]
    assert model.keys() - {"type"} <= (PRETRAINED_KEYS if "from_pretrained" in model else NEW_KEYS)
    if "from_pretrained" not in model or "chat_template" in model:
        assert load_chat_template(model["chat_template"])
    change_options(TokenFlowImageProcessor(), model.get("image_processor", {}))
    known = DATA_KEYS | {"path", "data_files"}
    assert all(data.keys() <= known for data in (recipe["data"], *recipe.get("evaluation", {}).values()))


@pytest.mark.parametrize(
    "name, rate, batch, template, is_padded",
    [
        (STAGE_1, 1e-3, 256, "plain", False),
        (STAGE_2, 2e-5, 128, "vicuna", True),
        (QWEN, 2e-5, 128, "qwen2.5", True),
    ],
)
def test_numbers_are_the_official_ones(name, rate, batch, template, is_padded):
    recipe = read(name)
    training = recipe["training"]
    batch_size = training["per_device_train_batch_size"] * training.get("gradient_accumulation_steps", 1)
    assert (training["learning_rate"], 8 * batch_size) == (rate, batch)
    assert (training["num_train_epochs"], training["max_length"], training["bf16"]) == (1, 2048, True)
    assert (training["lr_scheduler_type"], training["warmup_steps"], training["weight_decay"]) == ("cosine", 0.03, 0.0)
    assert training.get("trainable_parts") == (["model.projector"] if name == STAGE_1 else None)
    assert recipe["model"]["chat_template"] == template
    options = recipe["model"]["image_processor"]
    assert options.get("do_pad", False) == is_padded and not options["do_halve"]
    assert options["size"]["height"] == options["size"]["width"]


@pytest.mark.parametrize(
    "name, preset, text_config, size",
    [
        (STAGE_1, "tokenflow-l", LlamaConfig(**VICUNA_13B), 13.0),
        (QWEN, "tokenflow-xl", Qwen2Config(**QWEN_14B), 14.8),
    ],
)
def test_large_models_are_put_together_of_their_parts(name, preset, text_config, size):
    recipe = read(name)
    tokenizer_config = TokenFlowConfig.from_preset(preset)
    assert recipe["model"]["image_processor"]["size"]["height"] == tokenizer_config.image_size
    assert recipe["model"].get("tokenizer", "runs/tokenflow-xl") == f"runs/{preset}"
    config = make_config(recipe["model"].get("config", {}), tokenizer_config, text_config=text_config)
    with torch.device("meta"):
        tokenizer, text_model = TokenFlowModel(tokenizer_config), recipes_text_model(text_config)
        whole = TokenFlowForConditionalGeneration(config)
    assert sum(parameter.numel() for parameter in text_model.parameters()) / 1e9 == pytest.approx(size, rel=0.01)
    model = build_understanding(config, tokenizer, text_model)
    shapes = {key: tensor.shape for key, tensor in whole.state_dict().items()}
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == shapes
    assert not any(parameter.requires_grad for parameter in model.model.tokenizer.parameters())


def recipes_text_model(text_config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(text_config)


def test_the_small_models_architecture():
    section = read(TINY)["model"]
    tokenizer = tiny_text_tokenizer(pad_token="<unk>")
    text_model = make_text_model(section, tokenizer)
    text_config = text_model.config
    assert (text_config.hidden_size, text_config.num_hidden_layers, text_config.tie_word_embeddings) == (192, 4, True)
    assert (text_config.vocab_size, text_config.eos_token_id) == (len(tokenizer), tokenizer.eos_token_id)
    config = make_config({}, TokenFlowConfig.from_pretrained(section["tokenizer"]), text_config=text_config)
    assert config.num_image_features == 64
    model = build_understanding(config, TokenFlowModel(config.tokenizer_config), text_model)
    assert model.lm_head.weight is model.get_input_embeddings().weight


# ---- Following them ----


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Path:
    """A tokenizer, a text tokenizer and rows with codes, each in a folder or file."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tiny_model().save_pretrained(tmp_path / "tokenizer")
    TokenFlowImageProcessor(size={"shortest_edge": 32}, do_halve=True).save_pretrained(tmp_path / "tokenizer")
    tiny_text_tokenizer(pad_token="<unk>").save_pretrained(tmp_path / "text-tokenizer")
    question_rows().to_parquet(tmp_path / "questions.parquet")
    message_rows().to_parquet(tmp_path / "messages.parquet")
    return tmp_path


@pytest.fixture
def text_model(sources) -> LlamaForCausalLM:
    """A text model whose vocabulary has no token for pictures."""
    torch.manual_seed(3)
    tokenizer = tiny_text_tokenizer(pad_token="<unk>")
    model = LlamaForCausalLM(LlamaConfig(**TEXT_FIELDS, vocab_size=len(tokenizer)))
    model.save_pretrained(sources / "llama")
    tokenizer.save_pretrained(sources / "llama")
    return model


def write(folder: Path, model: dict[str, Any], rows: str = "questions", **training: Any) -> Path:
    """A recipe of four steps on the codes."""
    data = {"path": "parquet", "data_files": str(folder / f"{rows}.parquet")}
    content = {
        "model": {"type": "understanding", **model},
        "data": data,
        "evaluation": {"same": {**data, "take": 4}},
        "training": {"output_dir": str(folder / "run"), **FEW_STEPS, **training},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def from_scratch(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "tokenizer": str(folder / "tokenizer"),
        "text_tokenizer": str(folder / "text-tokenizer"),
        "chat_template": "tiny",
        "text_config": {"model_type": "llama", **TEXT_FIELDS},
        **changes,
    }


@pytest.mark.parametrize("rows", ["questions", "messages"])
def test_interrupted_recipe_goes_on_and_a_finished_one_rests(sources, rows):
    path = write(sources, from_scratch(sources), rows, ema_decay=0.5, lr_scheduler_type="constant")
    recipes.train(recipes.read_recipe(path, {"training.output_dir": str(sources / "whole")}))
    recipes.train(recipes.read_recipe(path, {"training.max_steps": 2}))
    recipes.train(recipes.read_recipe(path))
    trainer = recipes.train(recipes.read_recipe(path))
    assert trainer.state.global_step == 4
    whole, parts = (AutoModelForImageTextToText.from_pretrained(sources / name) for name in ("whole", "run"))
    assert all(torch.equal(tensor, parts.state_dict()[name]) for name, tensor in whole.state_dict().items())
    measured = json.loads((sources / "run" / "eval_results.json").read_text())
    assert {"eval_same_loss", "eval_same_token_accuracy", "eval_same_answer_accuracy"} <= measured.keys()
    assert "→" in (sources / "run" / "answers" / "eval_same-4.txt").read_text(encoding="utf-8")
    given = parts.model.tokenizer.state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in tiny_model().state_dict().items())
    processor = AutoProcessor.from_pretrained(sources / "run")
    assert len(processor.tokenizer) == whole.config.text_config.vocab_size == whole.lm_head.out_features
    assert whole.config.image_token_id == processor.image_token_id
    assert whole.generation_config.eos_token_id == [processor.tokenizer.eos_token_id]


def test_a_run_of_one_epoch_rests_too(sources):
    path = write(sources, from_scratch(sources), max_steps=-1, num_train_epochs=1, per_device_train_batch_size=8)
    first = recipes.train(recipes.read_recipe(path)).model.state_dict()
    again = recipes.train(recipes.read_recipe(path))
    assert again.state.global_step == 2
    assert all(torch.equal(tensor, first[name]) for name, tensor in again.model.state_dict().items())


@pytest.mark.parametrize("strategy", ["last_scale", "last_scale_semantic", "all_scales", "all_scales_residual"])
def test_feature_strategies(sources, strategy):
    section = from_scratch(sources, config={"feature_strategy": strategy})
    trainer = train_recipe(write(sources, section, max_steps=1))
    assert trainer.model.config.feature_strategy == strategy
    assert trainer.processing_class.num_image_tokens == (21 if strategy.startswith("all") else 16)


def test_weights_of_a_text_model_are_taken_over(sources, text_model):
    section = {"tokenizer": str(sources / "tokenizer"), "text_model": str(sources / "llama"), "chat_template": "vicuna"}
    trainer = recipes.make_trainer(recipes.read_recipe(write(sources, section)))
    model, processor = trainer.model, trainer.processing_class
    vocabulary = len(processor.tokenizer)
    assert vocabulary == text_model.config.vocab_size + 1 == model.config.text_config.vocab_size
    own = model.state_dict()
    for name, tensor in text_model.state_dict().items():
        name = name if name.startswith("lm_head") else name.replace("model.", "model.language_model.", 1)
        assert torch.equal(own[name][: len(tensor)], tensor), name
    assert own["lm_head.weight"].shape[0] == vocabulary
    assert all(tensor.isfinite().all() for tensor in own.values())
    assert own["model.projector.linear_1.weight"].std() == pytest.approx(0.02, rel=0.3)
    assert all(tensor.dtype == torch.float32 for tensor in own.values() if tensor.is_floating_point())


def test_two_stages(sources, text_model):
    first = {
        "tokenizer": str(sources / "tokenizer"),
        "text_model": str(sources / "llama"),
        "chat_template": "plain",
        "image_processor": {"size": {"height": 32, "width": 32}, "do_halve": False},
    }
    stage_1 = write(
        sources, first, "messages", trainable_parts=["model.projector"], output_dir=str(sources / "stage-1")
    )
    train_recipe(stage_1)
    processor = TokenFlowProcessor.from_pretrained(sources / "stage-1")
    assert processor.chat_template == load_chat_template("plain") and processor.image_processor.do_pad is False
    second = {
        "from_pretrained": str(sources / "stage-1"),
        "chat_template": "vicuna",
        "image_processor": {"do_pad": True},
    }
    trainer = train_recipe(write(sources, second, "messages", trainable_parts=["model.projector", "lm_head"]))
    model, processor = (kind.from_pretrained(sources / "run") for kind in (AutoModelForImageTextToText, AutoProcessor))
    assert processor.chat_template == load_chat_template("vicuna") and processor.image_processor.do_pad is True
    assert processor.image_processor.size["height"] == 32 and processor.image_processor.do_halve is False
    frozen = model.model.language_model.layers[0].self_attn.q_proj.weight
    assert torch.equal(frozen, text_model.model.layers[0].self_attn.q_proj.weight)
    assert trainer.state.global_step == 4


def test_adapters_need_a_model_that_can_be_loaded(sources):
    with pytest.raises(CommandError, match="with lora_rank, it is from_pretrained"):
        train_recipe(write(sources, from_scratch(sources), lora_rank=2))
    model, processor = tiny_pair()
    model.save_pretrained(sources / "base")
    processor.save_pretrained(sources / "base")
    path = write(sources, {"from_pretrained": str(sources / "base")}, lora_rank=2, lora_modules_to_save=["projector"])
    train_recipe(path)
    assert (sources / "run" / "adapter_model.safetensors").is_file()
    assert isinstance(AutoModelForImageTextToText.from_pretrained(sources / "run"), TokenFlowForConditionalGeneration)


def test_streams_are_shuffled_without_end(sources):
    path = write(sources, from_scratch(sources), max_steps=12, per_device_train_batch_size=4)
    trainer = train_recipe(path, ["data.streaming=true", "data.shuffle_buffer=8"])
    assert trainer.state.global_step == 12
    trainer = recipes.make_trainer(recipes.read_recipe(path, {"data.streaming": True, "data.shuffle_buffer": 8}))
    order = [tuple(example["image_codes"][0]) for example in itertools.islice(trainer.train_dataset, 32)]
    assert len(set(order[:16])) == 8 and order[:16] != order[16:]


def test_pictures_in_a_folder(sources):
    (sources / "pictures").mkdir()
    lines = []
    for index, picture in enumerate(gradient_pictures(4)):
        picture.save(sources / "pictures" / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a gradient"}]
        lines.append({"id": index, "image": f"{index}.png", "conversations": turns})
    (sources / "llava.json").write_text(json.dumps(lines))
    path = write(sources, from_scratch(sources), max_steps=1)
    data = {"path": "json", "data_files": str(sources / "llava.json"), "image_folder": str(sources / "pictures")}
    trainer = recipes.make_trainer(recipes.read_recipe(path) | {"data": data})
    assert next(iter(trainer.get_train_dataloader()))["pixel_values"].shape == (2, 3, 32, 32)
    trainer.train()


def test_codes_of_another_tokenizer_are_refused(sources):
    (sources / "pictures").mkdir()
    lines = []
    for index, picture in enumerate(gradient_pictures(4)):
        picture.save(sources / "pictures" / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "messages": message_rows(2)[1]["messages"]}))
    (sources / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    path = write(sources, from_scratch(sources), max_steps=1)
    for seed in (0, 1):
        output = sources / f"own-{seed}.parquet"
        processor = TokenFlowImageProcessor(size={"shortest_edge": 32})
        tokenizer = Tokenizer("tiny", tiny_model(seed=seed), processor, torch.device("cpu"))
        encode_pictures([sources / "pictures"], output, tokenizer, 4, keep=["messages"])
        recipe = recipes.read_recipe(path, {"data.data_files": str(output)})
        if seed == 0:
            recipes.train(recipe)
        else:
            with pytest.raises(ValueError, match="come from tiny .*encode the pictures anew"):
                recipes.make_trainer(recipe)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"teacher": {"name": "x"}}, "an understanding model has no teacher"),
        ({"model.colour": 1}, "an understanding model has no colour"),
        ({"model.text_model": "x"}, "either a text_model or a text_config"),
        ({"model.from_pretrained": "x"}, "an understanding model has no text_config, text_tokenizer, tokenizer"),
        ({"model.chat_template": "klingon"}, "expected one of the chat templates .*got 'klingon'"),
        ({"model.config.hidden_size": 3}, "has no fields hidden_size"),
        ({"model.config.image_token_id": 3}, "has no fields image_token_id"),
        ({"model.config.feature_strategy": "best"}, "`feature_strategy` must be one of"),
        ({"model.text_config.width": 3}, "LlamaConfig has no fields width"),
        ({"model.image_processor.do_wobble": True}, "an image processor has no do_wobble"),
        ({"training.text_dropout": 0.1}, "UnderstandingTrainingArguments has no text_dropout"),
    ],
)
def test_bad_settings_are_named(sources, change, message):
    recipe = recipes.read_recipe(write(sources, from_scratch(sources)), {k: v for k, v in change.items() if "." in k})
    recipe |= {name: value for name, value in change.items() if "." not in name}
    with pytest.raises(ValueError, match=message):
        recipes.make_trainer(recipe)


@pytest.mark.parametrize(
    "missing, message",
    [
        ("tokenizer", "needs a tokenizer, and either"),
        ("text_tokenizer", "beside text_config, an understanding model needs a text_tokenizer"),
        ("chat_template", "needs a chat_template: vicuna"),
    ],
)
def test_what_is_missing_is_named(sources, missing, message):
    section = {name: value for name, value in from_scratch(sources).items() if name != missing}
    with pytest.raises(CommandError, match=f"can't be followed: .*{message}"):
        train_recipe(write(sources, section))
    section = from_scratch(sources, text_config=TEXT_FIELDS)
    with pytest.raises(CommandError, match="text_config needs a model_type"):
        train_recipe(write(sources, section))


def test_an_answer_ends_where_its_template_ends_it():
    _, processor = tiny_pair("qwen2.5")
    eos = processor.tokenizer.eos_token_id
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    assert find_ends(processor) == [eos, processor.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    for template in ("vicuna", "tiny", "plain"):
        assert find_ends(tiny_pair(template)[1]) == [eos]


def test_a_chat_template_in_a_file(sources):
    template = load_chat_template("tiny").replace("USER: ", "USER: please, ")
    (sources / "polite.jinja").write_text(template)
    section = from_scratch(sources, chat_template=str(sources / "polite.jinja"))
    trainer = recipes.make_trainer(recipes.read_recipe(write(sources, section)))
    ids = trainer.train_dataset[0]["input_ids"]
    assert "user: please, " in trainer.processing_class.tokenizer.decode(ids)
    assert isinstance(trainer.model.config, TokenFlowUnderstandingConfig)
