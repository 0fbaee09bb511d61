# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""
The same weights and prompts give what the official generator gave: codes, picture, scores, losses and gradients.

Fixtures are `text-to-image*.json` with a safetensors file beside each, in the folder that the environment variable
TOKENFLOW_FIXTURES names. Everything else is read from the JSON, so that others of the form can be dropped in.
"""

import itertools
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_parity_tokenizer import FOLDER, load_fill, overrides_from_fixture, thinned
from torch.nn import functional as F

from transformers_tokenflow import TokenFlowForTextToImage, TokenFlowImageProcessor
from transformers_tokenflow.conversion import convert_text_to_image
from transformers_tokenflow.generation_tokenflow import NextScaleGenerationOutput
from transformers_tokenflow.sampling_tokenflow import best_scores, beyond_top_p, sample

FIXTURES = sorted(path.stem for path in FOLDER.glob("text-to-image*.json"))
# Where the two best scores lie nearer to each other, rounding decides.
TIE = 1e-4
# The fixtures keep scores and pictures in half precision, which rounds by up to this share of the value.
HALF = 2**-11


def official_state_dict(fixture: dict[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    """The weights that the official generator, or with a prefix its tokenizer, ran with."""
    filled = load_fill().fill(fixture[f"{prefix}state_dict"], fixture["config"].get("salt", ""))
    state_dict = {key: torch.from_numpy(value) for key, value in filled.items()}
    for key, value in fixture.get(f"{prefix}constants", {}).items():
        state_dict[key] = torch.tensor(value)
    return state_dict


def convert(fixture: dict[str, Any]) -> TokenFlowForTextToImage:
    """The model that the official implementation ran with, by way of the package's converter."""
    config, image = fixture["config"], fixture["config"]["tokenizer"]
    image_fixture = {
        "config": image,
        "image_size": image["image_size"],
        "scales": image["scales"],
        "commitment_beta": image["codebook"]["commitment_beta"],
    }
    return convert_text_to_image(
        official_state_dict(fixture),
        official_state_dict(fixture, "tokenizer_"),
        {**config, "max_position_embeddings": config["context_length"]},
        qk_norm_eps=config["qk_norm_eps"],
        tokenizer_config=overrides_from_fixture(image_fixture),
    )


@pytest.fixture(scope="module", params=FIXTURES)
def case(request: pytest.FixtureRequest) -> Any:
    fixture = json.loads((FOLDER / f"{request.param}.json").read_text())
    reference = load_file(FOLDER / f"{request.param}.safetensors")
    return SimpleNamespace(config=fixture["config"], fixture=fixture, reference=reference, model=convert(fixture))


def test_there_are_fixtures():
    assert FIXTURES, f"no text-to-image*.json in {FOLDER}"


def generate(
    case: Any, settings: dict[str, Any], choose: Callable[[int, torch.Tensor], torch.Tensor] | None = None
) -> NextScaleGenerationOutput:
    """
    Draw the fixture's pictures with the settings of one of its runs.

    `choose` is given the number of a pass and its scores (B, tokens, K), and chooses in place of the package.
    """
    prompt_ids = case.reference["prompt_ids"].long()
    passes = itertools.count()
    if choose is not None:
        case.model.sample_codes = lambda logits, *rest: choose(next(passes), logits)
    try:
        return case.model.generate(
            input_ids=prompt_ids,
            attention_mask=(prompt_ids != case.config["pad_token_id"]).long(),
            negative_prompt_ids=case.reference["negative_prompt_ids"].long()[None],
            guidance_scale=case.config["guidance_scale"],
            top_k=settings["top_k"],
            top_p=[float(p) for p in settings["top_p"]],
            output_logits=True,
        )
    finally:
        vars(case.model).pop("sample_codes", None)


def replay(case: Any, settings: dict[str, Any], step_codes: torch.Tensor) -> torch.Tensor:
    """Guided scores (B, step tokens, K) where every pass chooses what was recorded (B, step tokens)."""
    parts = step_codes.long().split(case.config["tokens_per_forward"], dim=1)
    output = generate(case, settings, lambda number, logits: parts[number])
    assert [part.shape[1] for part in output.logits] == case.config["tokens_per_forward"]
    return torch.cat(output.logits, dim=1)


# ---- Greedy ----


def greedy_with_flips(case: Any, name: str, flips: list[list[int]]) -> torch.Tensor:
    """Codes of a greedy run which at some (picture, step token) takes the second best."""
    starts = iter(itertools.accumulate(case.config["tokens_per_forward" + name], initial=0))

    def choose(number: int, logits: torch.Tensor) -> torch.Tensor:
        best, start = logits.topk(2, dim=-1).indices, next(starts)
        codes = best[..., 0].clone()
        for picture, position in flips:
            if 0 <= position - start < logits.shape[1]:
                codes[picture, position - start] = best[picture, position - start, 1]
        return codes

    return generate(case, case.config["greedy" + name], choose).codes


@pytest.mark.parametrize("name", ["", "_1_pass", "_2_pass"])
def test_greedy_codes(case: Any, name: str):
    """Where rounding decides, either choice counts, but all that follows must be as recorded."""
    expected = case.reference[f"greedy{name}_codes"].long()
    if torch.equal(generate(case, case.config["greedy" + name]).codes, expected):
        return
    ties = (case.reference[f"greedy{name}_margins"] < TIE).nonzero().tolist()
    assert 0 < len(ties) <= 3, "the codes differ, and it is not for ties"
    subsets = [subset for size in range(1, 4) for subset in itertools.combinations(ties, size)]
    assert any(torch.equal(greedy_with_flips(case, name, list(subset)), expected) for subset in subsets)


def test_greedy_choices_of_every_pass(case: Any):
    expected = case.reference["greedy_step_codes"].long()
    logits = replay(case, case.config["greedy"], expected)
    different = logits.argmax(dim=-1) != expected
    assert different.float().mean() <= 0.005
    assert (case.reference["greedy_margins"][different] < TIE).all()
    best = logits.topk(2, dim=-1).values
    margins = case.reference["greedy_margins"].float()
    torch.testing.assert_close(best[..., 0] - best[..., 1], margins, atol=1e-3, rtol=HALF)


def test_picture(case: Any):
    expected = case.reference["greedy_image"]
    with torch.no_grad():
        pixel_values = case.model.tokenizer.decode(case.reference["greedy_codes"].long()).pixel_values
    rtol = HALF if expected.dtype == torch.float16 else 0.0
    torch.testing.assert_close(thinned(pixel_values, expected), expected.float(), atol=1e-4, rtol=rtol)
    pictures = TokenFlowImageProcessor().postprocess(pixel_values)
    bytes_here = np.stack([np.asarray(picture, dtype=int) for picture in pictures])[:, ::4, ::4]
    difference = np.abs(bytes_here - case.reference["greedy_pixels_every_4th"].numpy().astype(int))
    # Truncation turns the smallest difference into a whole step, where a value lies on the edge of one.
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


# ---- Sampling ----


def test_guided_logits(case: Any):
    logits = replay(case, case.config["sampled"], case.reference["sampled_step_codes"])
    expected = case.reference["sampled_guided_logits"].float()
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=HALF)


def kept_entries(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Which entries a draw can give: (B, T, K) bool."""
    scores, entries = best_scores(logits, top_k, is_sorted=top_p > 0)
    kept = scores > -torch.inf
    if 0 < top_p < 1:
        kept &= ~beyond_top_p(scores.softmax(dim=-1), top_p)
    if entries is None:
        return kept
    return torch.zeros(logits.shape, dtype=torch.bool).scatter(-1, entries, kept)


def test_entries_that_filters_keep(case: Any):
    settings, reference = case.config["sampled"], case.reference
    codebook_size = case.config["codebook_size"]
    recorded = np.unpackbits(reference["sampled_kept"].numpy(), axis=-1)[..., :codebook_size]
    recorded = torch.from_numpy(recorded).bool()
    logits = replay(case, settings, reference["sampled_step_codes"])
    lengths = case.config["tokens_per_forward"]
    for number, (scores, expected) in enumerate(
        zip(logits.split(lengths, dim=1), recorded.split(lengths, dim=1), strict=True)
    ):
        entry = 0 if number == 0 else (number - 1) % len(settings["top_k"])
        top_k, top_p = settings["top_k"][entry], float(settings["top_p"][entry])
        kept = kept_entries(scores, top_k, top_p)
        # An entry on the filter's edge may go either way, with the last bit of a score.
        assert (kept != expected).sum() <= 2, f"forward {number}"
        drawn = sample(scores, top_k, top_p, 1.0, torch.rand(scores.shape[:2]))
        assert kept.gather(-1, drawn[..., None]).all()
        if top_k == 1:
            assert expected.sum(dim=-1).eq(1).all()


# ---- Training ----


@pytest.fixture(scope="module")
def batch(case: Any) -> Any:
    """The training batch, taken apart: prompts, codes, and the tokens that end the image."""
    ids = case.reference["train_input_ids"].long()
    start = case.config["train_first_code_position"]
    codes = case.reference["train_codes"].long()
    end = start + codes.shape[1]
    assert torch.equal(ids[:, start:end] - case.config["first_visual_token_id"], codes)
    prompt_ids = ids[:, :start]
    return SimpleNamespace(
        ids=ids,
        prompt_ids=prompt_ids,
        attention_mask=(prompt_ids != case.config["pad_token_id"]).long(),
        codes=codes,
        end_ids=ids[:, end:],
    )


@pytest.fixture(scope="module")
def trained(case: Any, batch: Any) -> Any:
    """A training step's output; gradients are left in the model."""
    case.model.zero_grad()
    output = case.model(
        input_ids=batch.prompt_ids,
        attention_mask=batch.attention_mask,
        codes=batch.codes,
        labels=batch.codes,
        end_ids=batch.end_ids,
    )
    output.loss.backward()
    return output


def test_codes_of_the_training_pictures(case: Any, batch: Any):
    size = case.config["train_image_size"]
    pixel_values = torch.from_numpy(load_fill().image(case.config["train_image"], len(batch.codes), size))
    with torch.no_grad():
        codes = case.model.tokenizer.encode(pixel_values).codes
    different = codes != batch.codes
    assert different.float().mean() <= 0.005
    assert (case.reference["train_code_gaps"][different] < TIE).all()


def test_visual_and_end_logits(case: Any, batch: Any, trained: Any):
    expected = case.reference["train_visual_logits"].float()
    torch.testing.assert_close(trained.logits.detach(), expected, atol=1e-3, rtol=HALF)
    expected = case.reference["train_tail_logits"].float()[:, : batch.end_ids.shape[1]]
    torch.testing.assert_close(trained.end_logits.detach(), expected, atol=1e-3, rtol=HALF)


def test_training_loss(case: Any, trained: Any):
    torch.testing.assert_close(trained.loss.detach(), case.reference["train_loss"], atol=1e-4, rtol=0)


def test_loss_without_the_end(case: Any, batch: Any):
    with torch.no_grad():
        output = case.model(
            input_ids=batch.prompt_ids, attention_mask=batch.attention_mask, codes=batch.codes, labels=batch.codes
        )
    torch.testing.assert_close(output.loss, case.reference["train_codes_only_loss"], atol=1e-4, rtol=0)


def test_text_loss(case: Any, batch: Any):
    """
    The text's loss, ignored by default, follows from the layers' output and both heads.

    The token that begins a text is officially learned at a pad, which sees nothing and averages over all there is:
    so here the batch goes through the layers as it stood, with attention that does likewise.
    """
    model, lengths = case.model, batch.ids.shape
    implementation = model.config._attn_implementation
    features = model.tokenizer.quantizer.next_scale_inputs(batch.codes)
    with torch.no_grad():
        embeds = [
            model.model.embed_prompt(batch.prompt_ids),
            model.model.embed_image(features, start=1),
            model.model.embed_end(F.pad(batch.end_ids, (0, 1))),
        ]
        scales = model.model.image_scales(batch.ids.device)[1:].expand(lengths[0], -1)
        blocks = F.pad(scales, (batch.prompt_ids.shape[1], batch.end_ids.shape[1] + 1), value=-1)
        mask = F.pad(batch.attention_mask, (0, blocks.shape[1] - batch.attention_mask.shape[1]), value=1)
        model.set_attn_implementation("eager")
        try:
            hidden_states = model.model(
                torch.cat(embeds, dim=1),
                attention_mask=mask,
                position_ids=torch.arange(lengths[1])[None],
                block_sequence_ids=blocks,
            ).last_hidden_state
        finally:
            model.set_attn_implementation(implementation)
        logits = torch.cat([model.text_head(hidden_states), model.visual_head(hidden_states)], dim=-1)
    labels = case.reference["train_text_labels"].long()
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(loss, case.reference["train_text_loss"], atol=1e-4, rtol=0)


def official_gradients(model: TokenFlowForTextToImage) -> dict[str, list[torch.Tensor]]:
    """The gradients that make up those of each official parameter."""
    named = {
        "model.position_embedding.weight": "model.pos_1LC",
        "model.scale_embedding.weight": "model.lvl_embed.weight",
        "model.projector.linear_1.weight": "model.mm_projector.0.weight",
        "model.projector.linear_1.bias": "model.mm_projector.0.bias",
        "model.projector.linear_2.weight": "model.mm_projector.2.weight",
        "model.projector.linear_2.bias": "model.mm_projector.2.bias",
        "text_head.weight": "lm_head.weight",
        "visual_head.weight": "lm_head.weight",
    }
    gradients: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            official = named.get(name, name)
            official = official.replace("query_norm", "qknorm.query_norm").replace("key_norm", "qknorm.key_norm")
            gradients.setdefault(official, []).append(parameter.grad)
    return gradients


def test_gradients(case: Any, trained: Any):
    assert not any(parameter.requires_grad for parameter in case.model.tokenizer.parameters())
    gradients = official_gradients(case.model)
    expected = case.fixture["train_gradient_norms"]
    assert gradients.keys() == expected.keys()
    norms = {name: torch.cat([part.flatten() for part in parts]).norm().item() for name, parts in gradients.items()}
    assert norms == pytest.approx(expected, rel=1e-4, abs=1e-7)
    (gradient,) = gradients["model.lvl_embed.weight"]
    torch.testing.assert_close(gradient, case.reference["train_lvl_embed_gradient"], atol=1e-5, rtol=1e-4)
