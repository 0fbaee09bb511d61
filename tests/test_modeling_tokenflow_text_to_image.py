# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The generator's forward pass, and what the common tests of transformers ask of a model like it."""

import copy
import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from model_checks import assert_same_tensors, tensors
from safetensors import safe_open
from tiny_models import pictures, tiny_text_to_image
from torch.nn import functional as F
from transformers import AutoModel, GenerationConfig, Trainer, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import is_peft_available

from transformers_tokenflow import TokenFlowForTextToImage, TokenFlowModel
from transformers_tokenflow.modeling_tokenflow_text_to_image import (
    TokenFlowTextToImageModel,
    TokenFlowTextToImageOutput,
)

CODEBOOK_SIZE, NUM_CODES, NUM_LAYERS, NUM_HEADS, HIDDEN_SIZE = 48, 21, 2, 4, 32
PREFIXES = [1, 5, 21]


def tiny(**overrides: Any) -> TokenFlowForTextToImage:
    return tiny_text_to_image(**overrides)[0]


def numbers(*shape: int, below: int = CODEBOOK_SIZE, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, below, shape, generator=torch.Generator().manual_seed(seed))


def prompts(batch: int = 2, length: int = 7) -> torch.Tensor:
    return numbers(batch, length, seed=1)


def padded_prompts(side: str = "left") -> dict[str, torch.Tensor]:
    """Two prompts of 4 and of 7 tokens."""
    input_ids, mask = prompts(), torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    if side == "right":
        input_ids[0], mask[0] = input_ids[0].roll(-3), mask[0].roll(-3)
    return {"input_ids": input_ids, "attention_mask": mask}


def training_inputs() -> dict[str, torch.Tensor]:
    return {**padded_prompts(), "labels": numbers(2, NUM_CODES), "end_ids": numbers(2, 3, seed=2)}


def assert_same_outputs(
    model: TokenFlowForTextToImage, other: TokenFlowForTextToImage, tolerance: float = 1e-5, **inputs: Any
):
    inputs = inputs or training_inputs()
    with torch.no_grad():
        expected, output = model(**inputs), other(**inputs)
    assert expected.keys() == output.keys()
    for name, value in expected.items():
        torch.testing.assert_close(output[name], value, atol=tolerance, rtol=tolerance)


# ---- What it predicts ----


def test_prompt_alone():
    output = tiny()(prompts())
    assert output.logits.shape == (2, 1, CODEBOOK_SIZE)
    assert list(output) == ["logits"]


@pytest.mark.parametrize(("length", "predicted"), [(1, 5), (5, 21), (21, 21)])
def test_a_prefix_predicts_the_next_scale(length: int, predicted: int):
    model, codes = tiny(), numbers(2, NUM_CODES)
    with torch.no_grad():
        expected = model(prompts(), codes=codes).logits
        logits = model(prompts(), codes=codes[:, :length]).logits
    assert logits.shape == (2, predicted, CODEBOOK_SIZE)
    torch.testing.assert_close(logits, expected[:, :predicted], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", range(NUM_CODES))
def test_a_code_reaches_all_of_the_next_scales_and_nothing_else(position: int):
    model, codes = tiny(), numbers(1, NUM_CODES)
    changed = codes.clone()
    changed[0, position] = (codes[0, position] + 1) % CODEBOOK_SIZE
    with torch.no_grad():
        difference = (model(prompts(1), codes=codes).logits - model(prompts(1), codes=changed).logits)[0].abs().amax(-1)
    first_reached = next(length for length in PREFIXES if length > position)
    assert (difference[:first_reached] == 0).all() and (difference[first_reached:] > 0).all()


def test_the_prompt_reaches_every_code():
    model, codes, input_ids = tiny(), numbers(1, NUM_CODES), prompts(1)
    changed = input_ids.clone()
    changed[0, 0] += 1
    with torch.no_grad():
        difference = (model(input_ids, codes=codes).logits - model(changed, codes=codes).logits).abs().amax(-1)
    assert (difference > 0).all()


@pytest.mark.parametrize("cache_implementation", ["preallocated", "dynamic", "static"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_teacher_forcing_gives_the_scores_of_generation(side: str, cache_implementation: str):
    model, inputs = tiny(), padded_prompts(side)
    generated = model.generate(
        **inputs,
        guidance_scale=0.0,
        top_k=1,
        top_p=0.0,
        output_logits=True,
        cache_implementation=cache_implementation,
    )
    with torch.no_grad():
        logits = model(**inputs, codes=generated.codes).logits
    torch.testing.assert_close(logits, torch.cat(generated.logits, dim=1), atol=1e-5, rtol=1e-5)
    assert torch.equal(logits.argmax(-1), generated.codes)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_drawn_codes_give_the_scores_of_refinement_passes(side: str, attention: str):
    model, inputs = tiny(), padded_prompts(side)
    model.set_attn_implementation(attention)
    drawings: list[torch.Tensor] = []
    streamer = type("Passes", (), {"put": lambda self, codes: drawings.append(codes), "end": lambda self: None})()
    generated = model.generate(
        **inputs, guidance_scale=0.0, top_k=[9, 1], top_p=[0.0, 0.0], output_logits=True, streamer=streamer, seed=0
    )
    # Passes: the first scale's only one, then a first and a second one of each of two scales.
    drawn_codes = torch.cat([drawings[0], drawings[1], drawings[3]], dim=1)
    with torch.no_grad():
        output = model(**inputs, codes=generated.codes, drawn_codes=drawn_codes, end_ids=numbers(2, 3, seed=2))
        without = model(**inputs, codes=generated.codes, end_ids=numbers(2, 3, seed=2))
    refined = torch.cat([generated.logits[2], generated.logits[4]], dim=1)
    torch.testing.assert_close(output.refined_logits, refined, atol=1e-5, rtol=1e-5)
    for name, value in without.items():
        torch.testing.assert_close(output[name], value, atol=1e-5, rtol=1e-5)


def test_refinement_passes_are_learned_like_first_ones():
    model, codes, drawn = tiny(), numbers(2, NUM_CODES), numbers(2, NUM_CODES, seed=3)
    labels = codes.clone()
    labels[:, 7] = -100
    output = model(prompts(), codes=codes, labels=labels, drawn_codes=drawn)
    logits = torch.cat([output.logits, output.refined_logits], dim=1)
    expected = F.cross_entropy(logits.flatten(0, 1), torch.cat([labels, labels[:, 1:]], dim=1).flatten())
    if model.text_head is None:
        torch.testing.assert_close(output.loss, expected)
    assert output.loss > expected - 1e-5


@pytest.mark.parametrize("codes", [None, 5])
def test_what_is_refined_must_be_whole(codes: int | None):
    given = numbers(2, codes) if codes else None
    with pytest.raises(ValueError, match=r"drawn_codes refine whole pictures, of 21 codes; got \(2, 21\) for codes of"):
        tiny()(prompts(), codes=given, drawn_codes=numbers(2, NUM_CODES))


def test_pictures_are_encoded():
    model = tiny()
    pixel_values = pictures(model.config.tokenizer_config)
    codes = model.tokenizer.encode(pixel_values).codes
    expected, output = model(prompts(), labels=codes), model(prompts(), pixel_values=pixel_values)
    assert torch.equal(output.logits, expected.logits) and torch.equal(output.loss, expected.loss)
    others = numbers(2, NUM_CODES)
    output = model(prompts(), pixel_values=pixel_values, labels=others)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.loss, model(prompts(), codes=codes, labels=others).loss)


# ---- The loss ----


@pytest.mark.parametrize("use_text_head", [True, False])
@pytest.mark.parametrize("length", PREFIXES)
def test_loss_is_the_cross_entropy_over_the_whole_vocabulary(length: int, use_text_head: bool):
    model, labels = tiny(use_text_head=use_text_head), numbers(2, length)
    labels[0, -1] = -100
    states = []
    model.visual_head.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0]))
    with torch.no_grad():
        output = model(**padded_prompts(), codes=labels.clamp(min=0), labels=labels)
        logits = output.logits[:, :length]
        if use_text_head:
            logits = torch.cat([logits, model.text_head(states[0][:, :length])], dim=-1)
        assert torch.equal(model(**padded_prompts(), labels=labels).loss, output.loss)
    torch.testing.assert_close(output.loss, F.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def test_end_of_the_image_is_learned_with_it():
    model, inputs = tiny(), training_inputs()
    with torch.no_grad():
        output = model(**inputs)
        image_only = model(**{name: value for name, value in inputs.items() if name != "end_ids"})
    num_text = model.config.text_config.vocab_size
    assert output.end_logits.shape == (2, 3, num_text + CODEBOOK_SIZE)
    torch.testing.assert_close(output.logits, image_only.logits, atol=1e-6, rtol=1e-6)
    ends = F.cross_entropy(output.end_logits.flatten(0, 1), inputs["end_ids"].flatten())
    torch.testing.assert_close(output.loss, (image_only.loss * NUM_CODES + ends * 3) / (NUM_CODES + 3))


def test_the_end_is_causal():
    """Its first token is predicted by an empty input, and each further one by those before it."""
    model, inputs = tiny(), training_inputs()
    changed = inputs["end_ids"].clone()
    changed[:, 1] += 1
    with torch.no_grad():
        difference = model(**inputs).end_logits - model(**{**inputs, "end_ids": changed}).end_logits
    difference = difference.abs().amax(dim=-1)
    assert (difference[:, :2] == 0).all() and (difference[:, 2] > 0).all()


@pytest.mark.parametrize("use_text_head", [True, False])
def test_every_trainable_parameter_gets_a_gradient(use_text_head: bool, tmp_path: Path):
    tiny(use_text_head=use_text_head).save_pretrained(tmp_path)
    model = TokenFlowForTextToImage.from_pretrained(tmp_path).train()
    inputs = training_inputs()
    if not use_text_head:
        inputs.pop("end_ids")
    model(**inputs).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith("tokenizer.")}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in model.tokenizer.parameters())


def test_every_scale_has_an_embedding_of_its_own():
    """Row 0 is text's, row 1 is never read, as officially: the first scale is predicted at the prompt's end."""
    model = tiny()
    for codes, rows in ((None, [0]), (numbers(1, 1), [0, 2]), (numbers(1, 5), [0, 2, 3])):
        table = model.model.scale_embedding.weight
        (gradient,) = torch.autograd.grad(model(prompts(1), codes=codes).logits.square().sum(), table)
        assert gradient.abs().sum(dim=1).nonzero().flatten().tolist() == rows


def test_the_tokenizer_stays_frozen_and_in_evaluation(tmp_path: Path):
    tiny().save_pretrained(tmp_path)
    for model in (tiny(), TokenFlowForTextToImage.from_pretrained(tmp_path), copy.deepcopy(tiny())):
        assert not any(parameter.requires_grad for parameter in model.tokenizer.parameters())
        assert model.train() is model and model.training and model.model.training
        assert not any(module.training for module in model.tokenizer.modules())
        assert not any(parameter.requires_grad for parameter in model.tokenizer.parameters())
        assert not model.eval().training


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(use_reentrant: bool):
    gradients = []
    for checkpointing in (False, True):
        model = tiny().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            layers = [module for module in model.model.modules() if isinstance(module, GradientCheckpointingLayer)]
            assert len(layers) == NUM_LAYERS and all(layer.gradient_checkpointing for layer in layers)
            calls = count_calls(layers[0].self_attn)
        model(**training_inputs()).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(calls) == 2
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-5)
    model.gradient_checkpointing_disable()
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def count_calls(module: torch.nn.Module) -> list[None]:
    calls: list[None] = []
    module.register_forward_pre_hook(lambda *_: calls.append(None))
    return calls


def test_training_in_autocast():
    model = tiny().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**training_inputs()).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


# ---- Errors ----


def test_wrong_inputs():
    model, codes = tiny(), numbers(2, NUM_CODES)
    for shape in ((2, 0), (2,), (1, 2, 3)):
        with pytest.raises(ValueError, match="prompt has no tokens|of one shape"):
            model(torch.zeros(shape, dtype=torch.long))
    with pytest.raises(ValueError, match="prompt has no tokens"):
        model(prompts(), torch.tensor([[0] * 7, [1] * 7]))
    with pytest.raises(ValueError, match=r"\(2, 7\) and \(2, 6\)"):
        model(prompts(), torch.ones(2, 6))
    with pytest.raises(ValueError, match=r"\[1, 5, 21\]"):
        model(prompts(), codes=codes[:, :4])
    with pytest.raises(ValueError, match="21 labels, but 5 predictions"):
        model(prompts(), codes=codes[:, :1], labels=codes)
    with pytest.raises(ValueError, match=r"of shape \(batch, length\); got torch.int64 of \(21,\)"):
        model(prompts(), labels=codes[0])
    with pytest.raises(ValueError, match=r"\[0, 48\); got 0 to 48"):
        model(prompts(), codes=codes, labels=torch.full_like(codes, CODEBOOK_SIZE).fill_diagonal_(-100))


def test_codes_that_do_not_fit():
    model, codes = tiny(), numbers(2, NUM_CODES)
    with pytest.raises(ValueError, match=r"2 pictures.*got \(3, "):
        model(prompts(), codes=numbers(3, NUM_CODES))
    for wrong in (CODEBOOK_SIZE, -1):
        codes[1, 2] = wrong
        with pytest.raises(ValueError, match=rf"\[0, 48\); got .*{wrong}"):
            model(prompts(), codes=codes)


def test_ends_that_can_not_be():
    codes = numbers(2, NUM_CODES)
    with pytest.raises(ValueError, match="use_text_head"):
        tiny(use_text_head=False)(prompts(), codes=codes, end_ids=prompts())
    for prefix in (None, codes[:, :1]):
        with pytest.raises(ValueError, match="whole image of 21"):
            tiny()(prompts(), codes=prefix, end_ids=prompts())
    for end_ids in (numbers(2, 3)[0], numbers(1, 3)):
        with pytest.raises(ValueError, match=r"expected end_ids \(batch, length\) of 2 prompts; got"):
            tiny()(prompts(), codes=codes, end_ids=end_ids)


# ---- Padding and batches ----


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_equals_its_items(side: str, attention: str):
    model, inputs, labels = tiny(), padded_prompts(side), numbers(2, NUM_CODES)
    model.set_attn_implementation(attention)
    with torch.no_grad():
        together = model(**inputs, codes=labels).logits
        for index in range(2):
            alone = inputs["input_ids"][index][inputs["attention_mask"][index].bool()]
            logits = model(alone[None], codes=labels[index : index + 1]).logits[0]
            torch.testing.assert_close(together[index], logits, atol=1e-5, rtol=1e-5)


def test_padding_has_no_say():
    model, inputs = tiny(), padded_prompts()
    with torch.no_grad():
        expected = model(**inputs, codes=numbers(2, NUM_CODES)).logits
        inputs["input_ids"][0, :3] = 0
        assert torch.equal(model(**inputs, codes=numbers(2, NUM_CODES)).logits, expected)
        wider = {name: F.pad(value, (2, 3)) for name, value in inputs.items()}
        assert torch.equal(model(**wider, codes=numbers(2, NUM_CODES)).logits, expected)


@pytest.mark.parametrize("kind_of_mask", [torch.bool, torch.int32, torch.float32])
def test_masks_of_any_type(kind_of_mask: torch.dtype):
    model, inputs = tiny(), padded_prompts()
    expected = model(**inputs).logits
    inputs["attention_mask"] = inputs["attention_mask"].to(kind_of_mask)
    assert torch.equal(model(**inputs).logits, expected)


def test_evaluation_is_deterministic():
    model = tiny(attention_dropout=0.5)
    assert_same_outputs(model, model, tolerance=0.0)


# ---- Attention ----


@pytest.mark.parametrize("padding", ["left", "right", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_eager_equals_sdpa(padding: str | None, dtype: torch.dtype, tmp_path: Path):
    tiny().save_pretrained(tmp_path)
    models = [
        TokenFlowForTextToImage.from_pretrained(tmp_path, attn_implementation=name, dtype=dtype)
        for name in ("eager", "sdpa")
    ]
    assert [model.model.config._attn_implementation for model in models] == ["eager", "sdpa"]
    prompt = padded_prompts(padding) if padding else {"input_ids": prompts()}
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}[dtype]
    for codes in (None, numbers(2, 5), numbers(2, NUM_CODES)):
        assert_same_outputs(*models, tolerance=tolerance, **prompt, codes=codes)
    if dtype == torch.float32:
        pictures = [model.generate(**prompt, guidance_scale=0.0, seed=0).codes for model in models]
        assert torch.equal(*pictures)


@pytest.mark.slow  # compiles its kernel
def test_flex_attention_equals_sdpa():
    model, other = tiny(), tiny()
    other.set_attn_implementation("flex_attention")
    assert_same_outputs(model, other)


def test_flash_attention_is_refused_where_it_knows_no_mask():
    model = tiny()
    model.config.text_config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="can't mask blocks of scales"):
        model(prompts(), codes=numbers(2, NUM_CODES))


def test_attention_can_be_changed(transformers_log: list[str]):
    model, expected = tiny(), tiny()
    model.set_attn_implementation("eager")
    parts = [model.config.text_config, model.config.tokenizer_config, model.config.tokenizer_config.semantic_config]
    assert [part._attn_implementation for part in parts] == ["eager"] * 3
    assert model.model.config is model.config.text_config
    assert_same_outputs(expected, model)
    model.set_attn_implementation({"text_config": "sdpa"})
    assert [part._attn_implementation for part in parts] == ["sdpa", "eager", "eager"]
    assert_same_outputs(expected, model)
    assert model(**training_inputs()).attentions is None
    with pytest.raises(ValueError, match="no_such_attention"):
        model.set_attn_implementation("no_such_attention")
    assert not transformers_log


def test_attention_per_part():
    config = tiny().config.to_dict()
    attention = {"text_config": "eager", "tokenizer_config": "sdpa"}
    model = TokenFlowForTextToImage(type(tiny().config)(**config, attn_implementation=attention))
    assert model.model.config._attn_implementation == "eager"
    assert model.tokenizer.semantic_encoder.model.config._attn_implementation == "sdpa"


# ---- Outputs ----


@pytest.mark.parametrize("by", ["argument", "config"])
def test_attentions_and_hidden_states(by: str):
    model, inputs = tiny(), training_inputs()
    model.set_attn_implementation("eager")
    length = 7 + NUM_CODES - 1 + 3
    if by == "config":
        for config in (model.config, model.config.text_config):
            config.output_attentions = config.output_hidden_states = True
        output = model(**inputs)
    else:
        output = model(**inputs, output_attentions=True, output_hidden_states=True)
    assert list(output)[-1] == "attentions"
    assert [tuple(part.shape) for part in output.attentions] == [(2, NUM_HEADS, length, length)] * NUM_LAYERS
    assert [tuple(part.shape) for part in output.hidden_states] == [(2, length, HIDDEN_SIZE)] * (NUM_LAYERS + 1)
    image = output.hidden_states[-1][:, 6 : 6 + NUM_CODES]
    torch.testing.assert_close(model.visual_head(image), output.logits)
    for values in (output.attentions, output.hidden_states):
        values[0].retain_grad()
    output.loss.backward()
    assert output.attentions[0].grad is not None and output.hidden_states[0].grad is not None


def test_attentions_show_the_blocks():
    model = tiny()
    model.set_attn_implementation("eager")
    attention = model(**padded_prompts(), codes=numbers(2, NUM_CODES), output_attentions=True).attentions[0][0, 0]
    seen, kind = attention > 0, torch.tensor([-2] * 7 + [1] * 4 + [2] * 16)
    blocks = kind[:, None] >= kind[None]
    blocks[:7, :7] = torch.ones(7, 7).tril().bool()
    blocks[:, :3] = False  # padding
    assert torch.equal(seen[3:], blocks[3:])


def test_tuples_are_the_same_as_dictionaries():
    model, inputs = tiny(), training_inputs()
    model.set_attn_implementation("eager")
    for options in ({}, {"output_hidden_states": True, "output_attentions": True}):
        with torch.no_grad():
            output, values = model(**inputs, **options), model(**inputs, **options, return_dict=False)
        assert isinstance(output, TokenFlowTextToImageOutput) and isinstance(values, tuple)
        assert len(values) == len(output) and all(value is not None for value in output.values())
        for value, expected in zip(values, output.values(), strict=True):
            torch.testing.assert_close(value, expected, atol=0, rtol=0)


def test_tuples_by_configuration():
    model = tiny()
    expected = model.generate(prompts(), guidance_scale=0.0, seed=0).codes
    model.config.return_dict = False
    output = model(**training_inputs())
    assert isinstance(output, tuple) and len(output) == 3
    assert torch.equal(model.generate(prompts(), guidance_scale=0.0, seed=0).codes, expected)


# ---- Initialisation, loading and saving ----


def test_all_missing_weights_are_initialized(seeded_initialization: None):
    built = TokenFlowForTextToImage(tiny().config)
    loaded = TokenFlowForTextToImage.from_pretrained(None, config=tiny().config, state_dict={})
    assert not any(value.is_meta for value in tensors(loaded).values())
    assert_same_tensors(built, loaded)


def test_everything_is_initialized_anew_after_the_meta_device(seeded_initialization: None):
    with torch.device("meta"):
        model = TokenFlowForTextToImage(tiny().config)
    assert all(value.is_meta for value in tensors(model).values())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for value in tensors(model).values():
            value.fill_(77)
    for part in [*model.modules(), *tensors(model).values()]:
        part._is_hf_initialized = False
    model.initialize_weights()
    assert_same_tensors(model, TokenFlowForTextToImage(tiny().config))


def test_initial_values():
    """The official ones of the tables that the image has of its own: truncated normal, std sqrt(1 / (3 · hidden))."""
    model = tiny(hidden_size=256, num_attention_heads=4).model
    for table in (model.position_embedding.weight, model.scale_embedding.weight):
        assert 0.8 < table.std() / (3 * 256) ** -0.5 < 1.2
    assert (model.layers[0].self_attn.query_norm.weight == 1).all()
    assert 0.015 < model.embed_tokens.weight.std() < 0.025


def test_nothing_but_parameters_and_buffers_holds_tensors():
    model = tiny()
    model.generate(prompts(), guidance_scale=0.0)
    held = [
        (name, attribute)
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    ]
    assert not held


@pytest.mark.parametrize("use_text_head", [True, False])
def test_saving_and_loading(use_text_head: bool, tmp_path: Path, transformers_log: list[str]):
    model = tiny(use_text_head=use_text_head)
    model.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir() if path.suffix != ".py"}
    assert files == {"config.json", "generation_config.json", "model.safetensors"}
    inputs = training_inputs()
    if not use_text_head:
        inputs.pop("end_ids")
    for loaded in (TokenFlowForTextToImage.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is TokenFlowForTextToImage and not loaded.training
        assert_same_tensors(model, loaded)
        assert_same_outputs(model, loaded, **inputs)
    loaded.save_pretrained(tmp_path / "again")
    names = [set(safe_open(folder / "model.safetensors", "pt").keys()) for folder in (tmp_path, tmp_path / "again")]
    assert names[0] == names[1] == set(model.state_dict())
    assert ("text_head.weight" in names[0]) == use_text_head
    assert not transformers_log


def test_generation_config_is_saved(tmp_path: Path, transformers_log: list[str]):
    model = tiny()
    model.save_pretrained(tmp_path / "default")
    saved = json.loads((tmp_path / "default" / "generation_config.json").read_text())
    expected = {"top_k": [1200, 100, 1], "top_p": [0.8, 0.8, 0.0], "guidance_scale": 7.5, "temperature": 1.0}
    assert expected.items() <= saved.items()
    loaded = TokenFlowForTextToImage.from_pretrained(tmp_path / "default")
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
    own = {"top_k": [7, 1], "top_p": [0.5, 0.0], "guidance_schedule": "constant", "attend_to_refined": True}
    loaded.generation_config = GenerationConfig(do_sample=True, guidance_scale=2.5, temperature=0.5, **own)
    loaded.save_pretrained(tmp_path / "own")
    again = TokenFlowForTextToImage.from_pretrained(tmp_path / "own").generation_config
    assert again.to_dict() == loaded.generation_config.to_dict()
    assert own.items() <= again.to_dict().items()
    assert not transformers_log


def test_layers_saved_alone_load_again(tmp_path: Path, transformers_log: list[str]):
    """The heads and the tokenizer are then made anew, and named."""
    model = tiny()
    model.model.save_pretrained(tmp_path)
    assert model.model.config is model.config.text_config
    model.set_attn_implementation("eager")
    assert not transformers_log
    assert_same_tensors(model.model, TokenFlowTextToImageModel.from_pretrained(tmp_path))
    loaded, report = TokenFlowForTextToImage.from_pretrained(tmp_path, output_loading_info=True)
    assert_same_tensors(model.model, loaded.model)
    missing = {name.split(".")[0] for name in report["missing_keys"]}
    assert missing == {"visual_head", "text_head", "tokenizer"} and not report["unexpected_keys"]


def test_the_tokenizer_inside_can_be_loaded_alone(tmp_path: Path, transformers_log: list[str]):
    model = tiny(kind="siglip")
    model.save_pretrained(tmp_path)
    tokenizer = TokenFlowModel.from_pretrained(tmp_path)
    assert_same_tensors(model.tokenizer, tokenizer)
    for name in ("scales", "codebook_size", "semantic_image_mean"):
        assert getattr(tokenizer.config, name) == getattr(model.config.tokenizer_config, name)
    with torch.no_grad():
        codes = tokenizer.encode(pictures(tokenizer.config)).codes
    assert torch.equal(codes, model.tokenizer.encode(pictures(tokenizer.config)).codes)
    assert not transformers_log


@pytest.mark.parametrize("argument", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precisions(dtype: torch.dtype, argument: str, tmp_path: Path):
    tiny().save_pretrained(tmp_path / "full")
    model = TokenFlowForTextToImage.from_pretrained(tmp_path / "full", **{argument: dtype})
    assert model.dtype == model.config.dtype == model.model.dtype == model.tokenizer.dtype == dtype
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if "codebook" in name else dtype), name
    model.save_pretrained(tmp_path / "low")
    again = TokenFlowForTextToImage.from_pretrained(tmp_path / "low", dtype="auto")
    assert again.dtype == dtype
    assert_same_tensors(model, again)
    full = TokenFlowForTextToImage.from_pretrained(tmp_path / "low", dtype=torch.float32)
    assert {parameter.dtype for parameter in full.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_running_in_half_precision(dtype: torch.dtype, tmp_path: Path):
    tiny().save_pretrained(tmp_path)
    model = TokenFlowForTextToImage.from_pretrained(tmp_path, dtype=dtype)
    output = model(**training_inputs())
    assert output.logits.dtype == dtype and output.loss.dtype == torch.float32 and output.loss.isfinite()
    output.loss.backward()
    generated = model.generate(
        **padded_prompts(), negative_prompt_ids=prompts(1), seed=0, output_logits=True, num_images_per_prompt=2
    )
    assert generated.codes.shape == (4, NUM_CODES)
    assert all(logits.dtype == torch.float32 and logits.isfinite().all() for logits in generated.logits)
    assert model.tokenizer.decode(generated.codes).pixel_values.dtype == dtype


def test_sizes_that_changed(tmp_path: Path):
    """A generator of another codebook starts from the rest."""
    base = tiny()
    base.save_pretrained(tmp_path)
    config = type(base.config).from_pretrained(tmp_path, tokenizer_config={"codebook_size": 24})
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        TokenFlowForTextToImage.from_pretrained(tmp_path, config=config)
    model = TokenFlowForTextToImage.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True)
    assert_same_tensors(base.model, model.model)
    assert model.visual_head.out_features == 24
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_copies():
    model = tiny()
    model.generate(prompts(), guidance_scale=0.0)
    assert_same_outputs(model, copy.deepcopy(model))


def test_attributes():
    model = tiny()
    assert list(inspect.signature(model.forward).parameters)[0] == model.main_input_name == "input_ids"
    assert model.can_generate() and model.input_modalities == ("text",)
    assert model.base_model is model.model and model.base_model is not model
    assert model.model.config is model.config.text_config
    assert model.tokenizer.config is model.config.tokenizer_config
    assert type(AutoModel.from_config(model.config)) is TokenFlowForTextToImage
    names = {type(module).__name__ for module in model.modules()}
    assert {"TokenFlowTextToImageDecoderLayer", "TokenFlowCodebook"} <= names & set(model._no_split_modules)
    attention = [type(module).__name__ for module in model.model.modules() if hasattr(module, "query_norm")]
    assert attention == ["TokenFlowTextToImageAttention"] * NUM_LAYERS


# ---- Embeddings ----


def test_input_and_output_embeddings():
    model = tiny()
    assert model.get_input_embeddings() is model.model.embed_tokens
    assert model.model.get_input_embeddings() is model.model.embed_tokens
    assert model.get_output_embeddings() is model.text_head
    model.set_input_embeddings(torch.nn.Embedding(10, HIDDEN_SIZE))
    assert model.model.embed_tokens.num_embeddings == 10
    model.requires_grad_(False).enable_input_require_grads()
    model(numbers(1, 4, below=10)).logits.sum().backward()  # as adapters under gradient checkpointing need it


@pytest.mark.parametrize("size", [70, 50])
@pytest.mark.parametrize("use_text_head", [True, False])
def test_text_vocabulary_can_be_resized(size: int, use_text_head: bool, tmp_path: Path):
    model = tiny(use_text_head=use_text_head, pad_token_id=0)
    before = copy.deepcopy(model)
    kept = min(size, model.config.text_config.vocab_size)
    model.resize_token_embeddings(size)
    assert model.config.get_text_config().vocab_size == model.config.text_config.vocab_size == size
    assert model.get_input_embeddings().num_embeddings == size
    assert torch.equal(model.model.embed_tokens.weight[:kept], before.model.embed_tokens.weight[:kept])
    assert_same_tensors(before.visual_head, model.visual_head)
    assert torch.equal(model(prompts()).logits, before(prompts()).logits)
    if use_text_head:
        assert torch.equal(model.text_head.weight[:kept], before.text_head.weight[:kept])
        assert model(**training_inputs()).end_logits.shape[-1] == size + CODEBOOK_SIZE
    model.save_pretrained(tmp_path)
    assert_same_tensors(model, TokenFlowForTextToImage.from_pretrained(tmp_path))


# ---- Compilation ----


@pytest.mark.parametrize("side", ["left", "right", None])
def test_compiles_without_graph_breaks(side: str | None, compiled: Callable):
    model = tiny()
    inputs = padded_prompts(side) if side else {"input_ids": prompts()}
    forward = compiled(model.forward, "eager")
    for further in ({"labels": numbers(2, NUM_CODES), "end_ids": numbers(2, 3)}, {"codes": numbers(2, 5)}):
        with torch.no_grad():
            expected, output = model(**inputs, **further), forward(**inputs, **further)
        for name, value in expected.items():
            torch.testing.assert_close(output[name], value, atol=1e-5, rtol=1e-5)


def test_compiled_training(compiled: Callable):
    models = [tiny().train() for _ in range(2)]
    forward = compiled(models[1].forward, "aot_eager")
    losses = [models[0](**training_inputs()).loss, forward(**training_inputs()).loss]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses)
    for first, second in zip(*(model.parameters() for model in models), strict=True):
        if first.requires_grad:
            torch.testing.assert_close(second.grad, first.grad, atol=1e-5, rtol=1e-4)


def test_generating_with_compiled_layers(compiled: Callable):
    model, other = tiny(), tiny()
    other.model.forward = compiled(other.model.forward, "eager")
    inputs = {**padded_prompts(), "negative_prompt_ids": prompts(1), "seed": 0}
    expected = model.generate(**inputs, cache_implementation="static").codes
    assert torch.equal(other.generate(**inputs, cache_implementation="static").codes, expected)


# ---- Placement ----


def assert_same_pictures(expected: TokenFlowForTextToImage, model: TokenFlowForTextToImage):
    inputs = {**padded_prompts(), "negative_prompt_ids": prompts(1), "seed": 0}
    pictures = [part.generate(**inputs) for part in (expected, model)]
    assert torch.equal(pictures[0].codes, pictures[1].codes)
    decoded = [part.tokenizer.decode(pictures[0].codes).pixel_values for part in (expected, model)]
    assert torch.equal(*decoded)


def test_offloaded_to_memory():
    expected, model = tiny(), tiny()
    cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)
    assert model.model.embed_tokens.weight.is_meta
    assert_same_outputs(expected, model)
    assert_same_pictures(expected, model)


def test_offloaded_to_disk(tmp_path: Path):
    expected, model = tiny(), tiny()
    disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert_same_outputs(expected, model)
    assert_same_pictures(expected, model)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_device_map(share: float, tmp_path: Path):
    """Split where transformers splits: part in memory, the rest on disk."""
    expected = tiny()
    expected.save_pretrained(tmp_path / "model")
    size = sum(parameter.numel() * 4 for parameter in expected.parameters())
    model = TokenFlowForTextToImage.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": int(size * share)}, offload_folder=tmp_path / "disk"
    )
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    assert_same_outputs(expected, model)
    assert_same_pictures(expected, model)


@pytest.mark.parametrize("name", ["inputs_embeds", "position_ids", "past_key_values"])
def test_what_only_layers_take(name: str):
    assert_same_outputs(tiny(), tiny(), **training_inputs(), **{name: None})
    with pytest.raises(ValueError, match=f"forward makes {name} of prompts and codes"):
        tiny()(**training_inputs(), **{name: torch.zeros(2, 3)})


def test_noise_on_the_embeddings_of_prompts(tmp_path: Path):
    rows = [{name: value[0] for name, value in training_inputs().items()}] * 2
    options = {"max_steps": 1, "neftune_noise_alpha": 5.0, "use_cpu": True, "report_to": "none"}
    trainer = Trainer(tiny(), TrainingArguments(tmp_path, **options), train_dataset=rows)
    assert math.isfinite(trainer.train().training_loss)


# ---- Adapters ----


@pytest.mark.skipif(not is_peft_available(), reason="peft is not installed")
def test_low_rank_adapters(tmp_path: Path):
    from peft import LoraConfig, PeftModel, get_peft_model

    base = tiny()
    targets = r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
    config = LoraConfig(r=2, target_modules=targets, modules_to_save=["visual_head", "projector"])
    model = get_peft_model(tiny(), config).train()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all("lora" in name or "modules_to_save" in name for name in trained)
    assert not any("tokenizer" in name for name in trained)
    assert_same_outputs(base, model.eval())
    model.train().base_model.model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model(**training_inputs()).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny(), tmp_path)
    assert_same_outputs(model, loaded)
    inputs = {**padded_prompts(), "guidance_scale": 0.0, "seed": 0}
    assert torch.equal(model.generate(**inputs).codes, loaded.generate(**inputs).codes)
    assert_same_outputs(model, loaded.merge_and_unload(), tolerance=1e-4)


@pytest.mark.skipif(not is_peft_available(), reason="peft is not installed")
@pytest.mark.parametrize("task", ["FEATURE_EXTRACTION", "CAUSAL_LM", "SEQ_2_SEQ_LM"])
def test_adapters_for_tasks(task: str):
    """Models of peft for a task pass arguments of its models, as None."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny(), LoraConfig(task_type=task, r=2, target_modules=r"model\.layers\.\d+\.\w+\.q_proj"))
    assert_same_outputs(tiny(), model.eval(), **padded_prompts(), labels=numbers(2, NUM_CODES))


@pytest.mark.skipif(not is_peft_available(), reason="peft is not installed")
def test_adapters_by_transformers(tmp_path: Path):
    from peft import LoraConfig

    model = tiny()
    model.add_adapter(LoraConfig(r=2, target_modules=r"model\.layers\.\d+\.self_attn\.q_proj", init_lora_weights=False))
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    loaded = tiny()
    loaded.load_adapter(tmp_path)
    assert_same_outputs(model, loaded)
    with pytest.raises(AssertionError):
        assert_same_outputs(tiny(), loaded)
