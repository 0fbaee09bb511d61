# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""
The same weights, pictures and texts give what the official understanding model gave, as a Qwen2 and as a Vicuna.

Fixtures are `understanding*.json` with a safetensors file beside each, in the folder that the environment variable
TOKENFLOW_FIXTURES names. Everything else is read from the JSON, so that others of the form can be dropped in.
"""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_parity_tokenizer import FOLDER, load_fill, overrides_from_fixture

from transformers_tokenflow.conversion import convert_understanding

FIXTURES = sorted(path.stem for path in FOLDER.glob("understanding*.json"))
FLAVOURS = {"": "qwen2", "vicuna_": "llama"}
TIE = 1e-4


def official_state_dict(fixture: dict[str, Any], flavour: str) -> dict[str, torch.Tensor]:
    """The weights that the official implementation ran with; the vision tower is the same for both flavours."""
    filled = load_fill().fill(fixture["state_dict"], fixture["config"]["salt"])
    if flavour:
        tower = {key: value for key, value in filled.items() if key.startswith("model.vision_tower.")}
        filled = tower | load_fill().fill(fixture[f"{flavour}state_dict"], fixture["config"]["salt"])
    state_dict = {key: torch.from_numpy(value) for key, value in filled.items()}
    return state_dict | {key: torch.tensor(value) for key, value in fixture["constants"].items()}


@pytest.fixture(scope="module", params=[(name, flavour) for name in FIXTURES for flavour in FLAVOURS], ids=str)
def case(request: pytest.FixtureRequest) -> Any:
    name, flavour = request.param
    fixture = json.loads((FOLDER / f"{name}.json").read_text())
    config, image = fixture["config"], fixture["config"]["tokenizer"]
    image_fixture = {
        "config": image,
        "image_size": image["image_size"],
        "scales": image["scales"],
        "commitment_beta": image["codebook"]["commitment_beta"],
    }
    official = config["vicuna"] if flavour else config
    model = convert_understanding(
        official_state_dict(fixture, flavour), official, tokenizer_config=overrides_from_fixture(image_fixture)
    )
    reference = load_file(FOLDER / f"{name}.safetensors")
    batch = len(reference["input_ids"])
    pixels = torch.from_numpy(load_fill().image(config["image"], batch, config["image_size"]))
    return SimpleNamespace(config=config, flavour=flavour, model=model, reference=reference, pixels=pixels)


def expand(case: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """The fixture's inputs with as many places for a picture as it has features."""
    placeholder, ignored = case.config["image_placeholder"], case.config["ignore_index"]
    ids, labels = case.reference[f"{prefix}input_ids"].long(), case.reference[f"{prefix}labels"].long()
    mask = case.reference.get(f"{prefix}attention_mask", torch.ones_like(ids)).long()
    num_features, token = case.model.config.num_image_features, case.model.config.image_token_id
    rows: dict[str, list[torch.Tensor]] = {"input_ids": [], "labels": [], "attention_mask": []}
    for row, row_labels, row_mask in zip(ids, labels, mask, strict=True):
        repeats = torch.where(row == placeholder, num_features, 1)
        rows["input_ids"].append(row.masked_fill(row == placeholder, token).repeat_interleave(repeats))
        rows["labels"].append(row_labels.masked_fill(row == placeholder, ignored).repeat_interleave(repeats))
        rows["attention_mask"].append(row_mask.repeat_interleave(repeats))
    return {name: torch.stack(values) for name, values in rows.items()}


@pytest.fixture(scope="module")
def output(case: Any) -> Any:
    with torch.no_grad():
        return case.model(pixel_values=case.pixels, **expand(case))


def test_there_are_fixtures():
    assert FIXTURES, f"no understanding*.json in {FOLDER}"


def test_the_language_model_is_recognised(case: Any):
    assert case.model.config.text_config.model_type == FLAVOURS[case.flavour]
    assert case.model.config.num_image_features == case.reference["image_features"].shape[1]


def test_image_features(case: Any):
    features = case.model.get_image_features(case.pixels)
    torch.testing.assert_close(features.last_hidden_state, case.reference["image_features"], atol=1e-4, rtol=0)
    if not case.flavour:
        head = case.reference["projected_features_head"]
        projected = torch.stack(features.pooler_output)[:, : head.shape[1]]
        torch.testing.assert_close(projected, head, atol=1e-4, rtol=0)


def test_codes_and_what_is_read_of_them(case: Any):
    codes, expected = case.model.model.tokenizer.encode(case.pixels).codes, case.reference["image_codes"].long()
    clear = case.reference["image_code_gaps"] > TIE
    assert torch.equal(codes[clear], expected[clear])
    features = case.model.get_image_features(image_codes=expected).last_hidden_state
    torch.testing.assert_close(features, case.reference["image_features"], atol=1e-4, rtol=0)


def test_logits_and_loss(case: Any, output: Any):
    last = case.reference[f"{case.flavour}last_logits"]
    torch.testing.assert_close(output.logits[:, -last.shape[1] :], last, atol=1e-3, rtol=0)
    torch.testing.assert_close(output.loss, case.reference[f"{case.flavour}loss"], atol=1e-3, rtol=0)
    if not case.flavour:
        positions = case.config["logits_at_image_positions"]
        torch.testing.assert_close(output.logits[:, positions], case.reference["logits_at_image"], atol=1e-3, rtol=0)


def test_a_padded_batch(case: Any):
    inputs = expand(case, "padded_")
    with torch.no_grad():
        output = case.model(pixel_values=case.pixels, **inputs)
    expected = case.reference[f"{case.flavour}padded_last_logits"]
    torch.testing.assert_close(output.loss, case.reference[f"{case.flavour}padded_loss"], atol=1e-3, rtol=0)
    for row, mask, reference in zip(output.logits, inputs["attention_mask"], expected, strict=True):
        torch.testing.assert_close(row[mask.bool()][-len(reference) :], reference, atol=1e-3, rtol=0)


def test_greedy_tokens(case: Any):
    inputs = expand(case)
    expected, logits = (case.reference[f"{case.flavour}greedy_{part}"] for part in ("tokens", "logits"))
    generated = case.model.generate(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        pixel_values=case.pixels,
        max_new_tokens=expected.shape[1],
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(generated.sequences[:, inputs["input_ids"].shape[1] :], expected.long())
    torch.testing.assert_close(torch.stack(generated.logits, dim=1), logits, atol=1e-3, rtol=0)
