# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""LoRA adapters of the generator: what they train, and that peft's usual calls save, load and merge them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tiny_models import tiny_text_to_image
from tiny_text_to_image_training import code_rows, tiny_arguments

from transformers_tokenflow import TextToImageTrainer, TokenFlowForTextToImage
from transformers_tokenflow.trainers.card import describe_training
from transformers_tokenflow.trainers.parameters import add_adapters
from transformers_tokenflow.trainers.recipe import last_checkpoint

peft = pytest.importorskip("peft")

LORA: dict[str, Any] = {"lora_rank": 2, "lora_modules_to_save": ["visual_head", "projector"], "ema_decay": 0.5}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A saved generator."""
    folder = tmp_path_factory.mktemp("base")
    model, processor = tiny_text_to_image(use_text_head=False)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def trainer_of(base: Path, output_dir: Path, model: Any = None, **changes: Any) -> TextToImageTrainer:
    return TextToImageTrainer(
        model=TokenFlowForTextToImage.from_pretrained(base) if model is None else model,
        args=tiny_arguments(output_dir, **{**LORA, **changes}),
        train_dataset=code_rows(),
        eval_dataset=code_rows(5),
        processing_class=tiny_text_to_image()[1],
    )


def logits_of(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        codes = torch.tensor(code_rows(2)["codes"][:])
        return model(input_ids=torch.tensor([[1, 5, 6], [1, 7, 8]]), labels=codes).logits


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> TextToImageTrainer:
    trainer = trainer_of(base, tmp_path_factory.mktemp("run"), max_steps=20, save_strategy="steps", save_steps=10)
    trainer.train()
    return trainer


def test_adapters_and_named_modules_are_trained_and_nothing_else(base, trained):
    names = [name for name, parameter in trained.model.named_parameters() if parameter.requires_grad]
    adapters = [name for name in names if "lora_" in name]
    assert len(adapters) == 2 * 2 * 7  # two layers, two matrices for each of seven linear layers
    assert all(".layers." in name and ".tokenizer." not in name for name in adapters)
    others = {name.split(".modules_to_save.")[0].rpartition(".")[2] for name in names if "lora_" not in name}
    assert others == {"visual_head", "projector"}
    before = TokenFlowForTextToImage.from_pretrained(base).state_dict()
    for name, tensor in trained.model.get_base_model().state_dict().items():
        if name in before:
            assert torch.equal(tensor, before[name]), name
    assert trained.state.log_history[-2]["loss"] < trained.state.log_history[0]["loss"]


def test_saved_adapters_load_and_merge(base, trained, tmp_path):
    trained.save_model(str(tmp_path / "adapters"))
    saved = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    assert len(saved) == 2 * 2 * 7 + 1 + 4 and not (tmp_path / "adapters" / "model.safetensors").exists()
    with trained.averaged_weights():
        expected = logits_of(trained.model)
    untrained = TokenFlowForTextToImage.from_pretrained(base)
    assert not torch.allclose(logits_of(untrained), expected, atol=1e-2)
    loaded = peft.PeftModel.from_pretrained(untrained, tmp_path / "adapters")
    torch.testing.assert_close(logits_of(loaded), expected)
    merged = loaded.merge_and_unload()
    assert type(merged) is TokenFlowForTextToImage
    torch.testing.assert_close(logits_of(merged), expected, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = TokenFlowForTextToImage.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(again), expected, atol=1e-4, rtol=1e-4)


def test_folder_of_adapters_is_a_model_to_transformers(base, tmp_path, monkeypatch):
    monkeypatch.chdir(base.parent)
    trained = trainer_of(Path(base.name), tmp_path, max_steps=2)
    trained.train()
    trained.save_model(str(tmp_path))
    trained.create_model_card()
    assert "base_model" not in ModelCard.load(tmp_path / "README.md").data.to_dict()
    with trained.averaged_weights():
        expected = logits_of(trained.model)
    monkeypatch.chdir(tmp_path)
    torch.testing.assert_close(logits_of(TokenFlowForTextToImage.from_pretrained(tmp_path)), expected)


def test_adapters_resume_bit_for_bit(base, trained, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 10}
    trainer_of(base, tmp_path, max_steps=10, **options).train()
    resumed = trainer_of(base, tmp_path, max_steps=20, **options)
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    expected = trained.model.state_dict()
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    for ours, other in zip(resumed.averaged.parameters(), trained.averaged.parameters(), strict=True):
        assert torch.equal(ours, other)


@pytest.fixture(scope="module")
def adapters(trained, tmp_path_factory) -> Path:
    """The trained adapters, saved."""
    folder = tmp_path_factory.mktemp("adapters")
    trained.save_model(str(folder))
    return folder


def load_with_peft(base: Path, adapters: Path) -> Any:
    return peft.PeftModel.from_pretrained(TokenFlowForTextToImage.from_pretrained(base), adapters)


def load_with_transformers(base: Path, adapters: Path) -> Any:
    return TokenFlowForTextToImage.from_pretrained(adapters)


LEFT_OUT: dict[str, Any] = {"lora_rank": 0, "lora_modules_to_save": None}


@pytest.mark.parametrize("load", [load_with_peft, load_with_transformers])
@pytest.mark.parametrize("lora", [LORA, LEFT_OUT])
def test_adapters_are_trained_on(base, trained, adapters, tmp_path, load, lora):
    with trained.averaged_weights():
        before = logits_of(trained.model)
    trainer = trainer_of(base, tmp_path / "run", load(base, adapters), **lora)
    torch.testing.assert_close(logits_of(trainer.model), before)
    trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, parameter in trained.model.named_parameters() if parameter.requires_grad}
    trainer.train()
    trainer.save_model()
    assert describe_training(trainer, [])["adapters"] == "LoRA of rank 2"
    with trainer.averaged_weights():
        after = logits_of(trainer.model)
    assert not torch.allclose(after, before, atol=1e-2)
    torch.testing.assert_close(logits_of(TokenFlowForTextToImage.from_pretrained(tmp_path / "run")), after)
    with trainer.averaged_weights():
        trainer.model.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = TokenFlowForTextToImage.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(merged), after, atol=1e-4, rtol=1e-4)


def test_adapters_that_are_not_those_asked_for(base, adapters, tmp_path):
    for changes in ({"lora_rank": 4}, {"lora_modules_to_save": ["projector"]}):
        with pytest.raises(ValueError, match=r"has adapters already, lora_rank=2 and lora_modules_to_save=\['"):
            trainer_of(adapters, tmp_path, **changes)
    model = load_with_transformers(base, adapters)
    model.load_adapter(adapters, "other")
    with pytest.raises(ValueError, match="several adapters, default, other"):
        trainer_of(base, tmp_path, model)


def test_dora_is_trained_on_as_peft_loads_it(base, tmp_path):
    config = peft.LoraConfig(target_modules=r"model\.layers\.\d+\.self_attn\.q_proj", use_dora=True)
    peft.get_peft_model(TokenFlowForTextToImage.from_pretrained(base), config).save_pretrained(tmp_path / "dora")
    with pytest.raises(ValueError, match="DoRA adapters without their magnitudes: give the trainer PeftModel"):
        trainer_of(base, tmp_path, load_with_transformers(base, tmp_path / "dora"), **LEFT_OUT)
    trainer_of(base, tmp_path, load_with_peft(base, tmp_path / "dora"), **LEFT_OUT)


def test_pictures_are_drawn_with_adapters(trained, base, tmp_path):
    trainer = trainer_of(base, tmp_path, sample_prompts=["owl"], sample_options={"guidance_scale": 1.0})
    trainer.evaluate()
    assert (tmp_path / "pictures" / "eval_samples-0.png").is_file()


def test_modules_that_the_model_does_not_have(base, tmp_path):
    with pytest.raises(ValueError, match="no modules visual_hat"):
        trainer_of(base, tmp_path, lora_modules_to_save=["projector", "visual_hat"])
    with pytest.raises(ValueError, match="no modules visual_hat"):
        trainer_of(base, tmp_path, lora_modules_to_save="visual_hat")
    with pytest.raises(ValueError, match="leave trainable_parts out"):
        trainer_of(base, tmp_path, trainable_parts=["visual_head"])


def test_a_new_model_is_no_folder():
    adapted = add_adapters(tiny_text_to_image(use_text_head=False)[0], rank=2, modules_to_save=None)
    assert not adapted.peft_config["default"].base_model_name_or_path
