# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""
The same weights and pictures give what the official implementation gave.

Fixtures are `tokenizer-*.json` with a safetensors file beside each, in the folder that the environment variable
TOKENFLOW_FIXTURES names. Everything else is read from the JSON, so that others of the form can be dropped in.
"""

import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.utils import is_timm_available

from transformers_tokenflow import TokenFlowModel
from transformers_tokenflow.conversion import convert_tokenizer

OWN = Path(__file__).parent / "fixtures"
FOLDER = Path(os.environ.get("TOKENFLOW_FIXTURES") or OWN)
FIXTURES = sorted(path.stem for path in FOLDER.glob("tokenizer-*.json"))


def load_fill() -> Any:
    """The module that makes weights and pictures: the fixtures' own, or the copy here."""
    path = next(folder / "fill.py" for folder in (FOLDER, OWN) if (folder / "fill.py").exists())
    spec = importlib.util.spec_from_file_location("tokenflow_fixtures_fill", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def overrides_from_fixture(fixture: dict[str, Any]) -> dict[str, Any]:
    """What the shapes of a state dict don't show, as fields of the configuration."""
    teacher, decoder = fixture["config"]["teacher"], fixture["config"]["semantic_decoder"]
    if teacher["kind"] == "vitamin":
        tower: dict[str, Any] = {"model_args": {"num_heads": teacher["heads"]}}
        assert teacher["layer_norm_eps"] == 1e-6, "timm's ViTamin has no other epsilon"
    else:
        tower = {"num_attention_heads": teacher["heads"], "layer_norm_eps": teacher["layer_norm_eps"]}
    overrides = {
        "image_size": fixture["image_size"],
        "scales": fixture["scales"],
        "commitment_weight": fixture["commitment_beta"],
        "semantic_config": tower,
        "semantic_decoder_config": {
            "num_attention_heads": decoder["heads"],
            "layer_norm_eps": decoder["layer_norm_eps"],
        },
    }
    normalisation = teacher.get("input_normalisation", {})
    if "mean" in normalisation:
        overrides |= {"semantic_image_mean": normalisation["mean"], "semantic_image_std": normalisation["std"]}
    return overrides


def official_state_dict(fixture: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights that the official implementation ran with."""
    filled = load_fill().fill(fixture["state_dict"], fixture.get("salt", ""))
    state_dict = {key: torch.from_numpy(value) for key, value in filled.items()}
    for key, value in fixture.get("constants", {}).items():
        state_dict[key] = torch.tensor(value)
    return state_dict


def thinned(tensor: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Every n-th entry along each axis, where the reference, to be small, holds no others."""
    strides = [round(length / kept) for length, kept in zip(tensor.shape, reference.shape, strict=True)]
    tensor = tensor[tuple(slice(None, None, stride) for stride in strides)]
    assert tensor.shape == reference.shape
    return tensor


def run(
    model: TokenFlowModel, pixel_values: torch.Tensor, reference: dict[str, torch.Tensor], scales: list[int]
) -> Any:
    """The model's own codes, and everything else as it follows from the codes of the reference."""
    features = model.extract_features(pixel_values)
    codes = reference["codes"].long()
    forced = (part.flatten(1) for part in model.quantizer.split_codes(codes))
    own_codes = model.quantizer(features).codes
    model.quantizer.assign = lambda normalized, entries: next(forced)
    quantized = model.quantizer(features)
    del model.quantizer.assign
    prefix = codes[:, : sum(scale * scale for scale in scales[:-2])]
    return SimpleNamespace(
        codes=own_codes,
        quantized=quantized,
        decoded=model.decode(codes),
        decoded_prefix=model.decode(prefix) if len(scales) > 2 else None,
    )


@pytest.fixture(scope="module", params=FIXTURES)
def case(request: pytest.FixtureRequest) -> Any:
    fixture = json.loads((FOLDER / f"{request.param}.json").read_text())
    if fixture["config"]["teacher"]["kind"] == "vitamin" and not is_timm_available():
        pytest.skip("timm is not installed")
    reference = load_file(FOLDER / f"{request.param}.safetensors")
    state_dict = official_state_dict(fixture)
    model = convert_tokenizer(state_dict, **overrides_from_fixture(fixture))
    pixel_values = torch.from_numpy(load_fill().image(fixture["image"], fixture["batch"], fixture["image_size"]))
    with torch.no_grad():
        result = run(model, pixel_values, reference, fixture["scales"])
    return SimpleNamespace(fixture=fixture, reference=reference, model=model, result=result)


def test_there_are_fixtures():
    assert FIXTURES, f"no tokenizer-*.json in {FOLDER}"


def test_the_configuration_is_the_official_one(case: Any):
    fixture, config = case.fixture, case.model.config
    assert config.codebook_size == fixture["codebook_size"]
    assert config.image_size == fixture["image_size"]
    codebook = fixture["config"]["codebook"]
    assert (config.semantic_codebook_dim, config.pixel_codebook_dim) == (
        codebook["semantic_dim"],
        codebook["pixel_dim"],
    )
    assert config.teacher_hidden_size == fixture["config"]["semantic_decoder"]["output_dim"]
    assert config.pixel_channels == fixture["config"]["pixel_encoder"]["ch"]
    assert config.decoder_channels == fixture["config"]["pixel_decoder"]["ch"]
    assert config.decoder_num_res_blocks == fixture["config"]["pixel_decoder"]["res_blocks"]


def test_codes(case: Any):
    codes, reference = case.result.codes, case.reference
    assert codes.shape == reference["codes"].shape
    different = codes != reference["codes"]
    assert different.float().mean() <= 0.005
    assert (reference["margin"][different] < 1e-4).all()


def test_quantized_features(case: Any):
    torch.testing.assert_close(case.result.quantized.quantized, case.reference["quantized"], atol=1e-4, rtol=0)
    features = case.model.quantizer.codes_to_features(case.reference["codes"])[:, -1]
    torch.testing.assert_close(features, case.reference["quantized"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["codebook_loss", "commitment_loss"])
def test_losses(case: Any, name: str):
    torch.testing.assert_close(getattr(case.result.quantized, name), case.reference[name], atol=1e-4, rtol=0)


def test_semantic_reconstruction(case: Any):
    expected = case.reference["semantic_reconstruction"].float()
    semantic_features = thinned(case.result.decoded.semantic_features, expected)
    torch.testing.assert_close(semantic_features, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("part", "name"),
    [("decoded", "pixel_reconstruction"), ("decoded_prefix", "pixel_reconstruction_without_last_two_scales")],
)
def test_pixel_reconstruction(case: Any, part: str, name: str):
    if name not in case.reference:
        pytest.skip("the fixture has no such picture")
    # The fixtures keep pictures in half precision, which rounds by up to 2^-11 of the value.
    expected = case.reference[name]
    rtol = 2**-11 if expected.dtype == torch.float16 else 0.0
    pixel_values = thinned(getattr(case.result, part).pixel_values, expected)
    torch.testing.assert_close(pixel_values, expected.float(), atol=1e-4, rtol=rtol)
