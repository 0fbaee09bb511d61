# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Weights of 8 and 4 bits: the language model's layers alone, by default; as good as the same after saving."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedModel, TorchAoConfig
from transformers.utils import is_bitsandbytes_available, is_torchao_available

from transformers_tokenflow import TokenFlowForConditionalGeneration, TokenFlowForTextToImage, TokenFlowModel

CARDS = Path(__file__).parents[1] / "hub_cards"
GENERATOR, UNDERSTANDING = CARDS / "tokenflow-tiny-text-to-image", CARDS / "tokenflow-tiny-understanding"
needs_torchao = pytest.mark.skipif(not is_torchao_available(), reason="torchao is not installed")
needs_bitsandbytes = pytest.mark.skipif(not is_bitsandbytes_available(), reason="bitsandbytes is not installed")


def eight_bits(**fields: Any) -> TorchAoConfig:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), **fields)


def four_bits(**fields: Any) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **fields)


KINDS = [pytest.param(eight_bits, marks=needs_torchao), pytest.param(four_bits, marks=needs_bitsandbytes)]


def quantised_linears(model: PreTrainedModel) -> set[str]:
    """Names of the linear layers whose weights are of another kind than parameters are."""
    plain = (nn.Parameter, torch.Tensor)
    layers = {name: part.weight for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    return {name for name, weight in layers.items() if type(weight.data) not in plain or type(weight) not in plain}


def layers_of(model: PreTrainedModel, prefix: str) -> set[str]:
    return {name for name, part in model.named_modules() if isinstance(part, nn.Linear) and name.startswith(prefix)}


@pytest.fixture(scope="module")
def generator() -> TokenFlowForTextToImage:
    return TokenFlowForTextToImage.from_pretrained(GENERATOR).eval()


@pytest.fixture(scope="module")
def talker() -> TokenFlowForConditionalGeneration:
    return TokenFlowForConditionalGeneration.from_pretrained(UNDERSTANDING).eval()


@torch.no_grad()
def predicted(model: TokenFlowForTextToImage) -> torch.Tensor:
    """The likeliest codes (2, L), each after those before it."""
    prompts = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    codes = torch.randint(0, 4096, (2, 204), generator=torch.Generator().manual_seed(0))
    return model(prompts, labels=codes).logits.argmax(dim=-1)


@torch.no_grad()
def answered(model: TokenFlowForConditionalGeneration) -> torch.Tensor:
    """Scores of the next token (1, vocabulary) after a picture's codes."""
    codes = torch.arange(204)[None]
    config = model.config
    ids = torch.tensor([[config.image_token_id] * config.num_image_features + [4, 5, 6]])
    return model(ids, image_codes=codes).logits[:, -1]


def agreement(first: torch.Tensor, second: torch.Tensor) -> float:
    return (first == second).float().mean().item()


@pytest.mark.parametrize("config", KINDS)
def test_of_a_generator_the_layers_are_quantised(config, generator):
    model = AutoModel.from_pretrained(GENERATOR, quantization_config=config()).eval()
    assert quantised_linears(model) == layers_of(model, "model.layers.")
    assert all(part.dtype == torch.float32 for part in model.tokenizer.parameters())
    # Chance is 1/4096; codes are random, so that near ties are many, and bf16 instructions blur four bits more.
    assert agreement(predicted(model), predicted(generator)) > (0.9 if config is eight_bits else 0.4)


@pytest.mark.parametrize("config", KINDS)
def test_of_an_understanding_model_the_layers_are_quantised(config, talker):
    model = AutoModelForImageTextToText.from_pretrained(UNDERSTANDING, quantization_config=config()).eval()
    assert quantised_linears(model) == layers_of(model, "model.language_model.layers.")
    limit = 0.1 if config is eight_bits else 0.5
    difference = (answered(model) - answered(talker)).norm() / answered(talker).norm()
    assert 0 < difference < limit


@needs_torchao
def test_it_draws(generator):
    model = TokenFlowForTextToImage.from_pretrained(GENERATOR, quantization_config=eight_bits()).eval()
    options = {"guidance_scale": 0, "top_k": [1], "top_p": [0.0]}
    ids = torch.tensor([[5, 6, 7, 8]])
    codes, expected = (part.generate(ids, **options).codes for part in (model, generator))
    assert codes.shape == expected.shape and agreement(codes[:, :14], expected[:, :14]) > 0.5
    assert model.tokenizer.decode(codes).pixel_values.isfinite().all()


@needs_torchao
def test_saved_and_loaded_it_is_the_same(tmp_path, generator):
    model = TokenFlowForTextToImage.from_pretrained(GENERATOR, quantization_config=eight_bits()).eval()
    model.save_pretrained(tmp_path)
    again = TokenFlowForTextToImage.from_pretrained(tmp_path).eval()
    assert quantised_linears(again) == quantised_linears(model)
    assert torch.equal(predicted(again), predicted(model))
    assert (tmp_path / "model.safetensors").stat().st_size < 0.7 * generator.get_memory_footprint()


@needs_torchao
def test_layers_of_ones_own_list_are_spared():
    spared = ["tokenizer", "model.projector", "visual_head", "model.layers.0"]
    config = eight_bits(modules_to_not_convert=spared)
    model = TokenFlowForTextToImage.from_pretrained(GENERATOR, quantization_config=config)
    assert quantised_linears(model) == layers_of(model, "model.layers.") - layers_of(model, "model.layers.0.")
    assert config.modules_to_not_convert == spared


@needs_torchao
def test_the_configuration_given_stays_as_it_is():
    config = eight_bits()
    spared = TokenFlowForTextToImage._spare(config).modules_to_not_convert
    assert {"tokenizer", "model.projector", "visual_head"} <= set(spared)
    assert config.modules_to_not_convert is None


def test_bitsandbytes_has_another_name_for_it():
    assert "model.tokenizer" in TokenFlowForConditionalGeneration._spare(four_bits()).llm_int8_skip_modules


def test_a_list_of_ones_own_is_spared_as_well():
    """Without the projector, which pictures would be made integers for."""
    spared = TokenFlowForConditionalGeneration._spare(four_bits(llm_int8_skip_modules=["lm_head", "mine"]))
    assert {"mine", "lm_head", "model.tokenizer", "model.projector"} <= set(spared.llm_int8_skip_modules)


@needs_torchao
def test_the_tokenizer_of_a_quantised_folder_is_loaded_alone(tmp_path, generator):
    TokenFlowForTextToImage.from_pretrained(GENERATOR, quantization_config=eight_bits()).save_pretrained(tmp_path)
    tokenizer = TokenFlowModel.from_pretrained(tmp_path)
    expected = generator.tokenizer.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in tokenizer.state_dict().items())


def test_a_dictionary_spares_what_a_configuration_spares():
    options = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    try:
        expected = TokenFlowForTextToImage._spare(BitsAndBytesConfig(load_in_8bit=True))
    except ImportError:
        pytest.skip("bitsandbytes is not installed")
    assert TokenFlowForTextToImage._spare(options).to_dict() == expected.to_dict()
    assert "visual_head" in expected.llm_int8_skip_modules
