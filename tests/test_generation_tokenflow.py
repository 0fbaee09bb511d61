# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Drawing pictures, against drawing them plainly."""

import copy
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_generation import Plain
from tiny_models import tiny_text_to_image
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from transformers_tokenflow import TokenFlowForTextToImage, generation_tokenflow
from transformers_tokenflow.generation_tokenflow import left_aligned
from transformers_tokenflow.modeling_tokenflow_text_to_image import TokenFlowTextToImageAttention
from transformers_tokenflow.sampling_tokenflow import make_generators, more_generators

SCALES, CODEBOOK_SIZE, NUM_CODES = [1, 2, 4], 48, 21
CACHES = ["preallocated", "dynamic", "static"]
SAMPLED: dict[str, Any] = {"top_k": [9, 4, 1], "top_p": [0.8, 0.9, 0.0]}
GREEDY: dict[str, Any] = {"top_k": [1, 1, 1], "top_p": 0.0}
PROMPTS = [torch.tensor([5, 9, 14, 31]), torch.tensor([7, 3, 22, 8, 40, 11, 31])]
NEGATIVE = torch.tensor([6, 18, 31])
every_cache = pytest.mark.parametrize("cache_implementation", CACHES)


@functools.cache
def tiny() -> TokenFlowForTextToImage:
    """Shared by the tests, none of which changes it; what it reads and where has more say than in a fresh model."""
    model = tiny_text_to_image()[0]
    inner, projector = model.model, model.model.projector
    factors = {model.visual_head: 10, inner.embed_tokens: 20, inner.position_embedding: 5}
    factors |= {projector.linear_1: 20, projector.linear_2: 20}
    with torch.no_grad():
        for module, factor in factors.items():
            module.weight.mul_(factor)
    return model


def test_the_shared_model_tells_things_apart():
    """What the tests below compare would be the same for a model that hardly looks at its inputs."""
    expected = draw(**GREEDY).codes
    assert expected.unique().numel() > 10
    others = [{"attend_to_refined": True}, {"top_k": [1]}, {"guidance_scale": 0.0}, {"guidance_schedule": "constant"}]
    for other in others:
        assert (draw(**{**GREEDY, **other}).codes != expected).float().mean() > 0.2
    assert (expected[0] != expected[1]).float().mean() > 0.5


def batch(prompts: list[torch.Tensor] = PROMPTS, side: str = "left") -> dict[str, torch.Tensor]:
    length = max(len(prompt) for prompt in prompts)
    rows = []
    for prompt in prompts:
        padding = torch.zeros(length - len(prompt), dtype=torch.long)
        parts = [(padding, padding), (prompt, torch.ones_like(prompt))]
        rows.append([torch.cat(row) for row in zip(*(parts if side == "left" else parts[::-1]), strict=True)])
    input_ids, attention_mask = (torch.stack(column) for column in zip(*rows, strict=True))
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def draw(prompts: list[torch.Tensor] = PROMPTS, side: str = "left", **arguments: Any) -> Any:
    """Guided unless `guidance_scale` is 0, sampled with a seed unless told otherwise."""
    defaults: dict[str, Any] = dict(SAMPLED)
    if not {"seed", "generator"} & arguments.keys():
        defaults["seed"] = 0
    if arguments.get("guidance_scale") != 0:
        defaults["negative_prompt_ids"] = NEGATIVE[None]
    return tiny().generate(**batch(prompts, side), **{**defaults, **arguments})


def some_codes(batch: int = 1, seed: int = 3) -> torch.Tensor:
    return torch.randint(CODEBOOK_SIZE, (batch, NUM_CODES), generator=torch.Generator().manual_seed(seed))


# ---- With the cache as without ----


def assert_same(output: Any, expected: list[tuple[torch.Tensor, list[torch.Tensor]]]):
    assert len(output.codes) == len(expected)
    all_scores = torch.cat(output.logits, dim=1)
    for found_codes, found_scores, (codes, scores) in zip(output.codes, all_scores, expected, strict=True):
        torch.testing.assert_close(found_scores, torch.cat(scores), atol=1e-3, rtol=1e-4)
        assert torch.equal(found_codes, codes)


def assert_plain(output: Any, pictures: list[Plain]):
    assert_same(output, [picture.generate() for picture in pictures])


@pytest.mark.parametrize("attend_to_refined", [False, True])
@pytest.mark.parametrize("guidance_scale", [0.0, 3.0])
@pytest.mark.parametrize("padded", [False, True])
def test_with_the_cache_as_without(padded: bool, guidance_scale: float, attend_to_refined: bool):
    prompts = PROMPTS if padded else [PROMPTS[1], PROMPTS[1].flip(0)]
    options: dict[str, Any] = {"attend_to_refined": attend_to_refined, "guidance_scale": guidance_scale}
    pictures = [Plain(tiny(), prompts[index // 2], NEGATIVE, **options, **SAMPLED, seed=index) for index in range(4)]
    expected = [picture.generate() for picture in pictures]
    for cache in CACHES:
        for side in ("left", "right"):
            output = draw(
                prompts, side, **options, cache_implementation=cache, num_images_per_prompt=2, output_logits=True
            )
            assert_same(output, expected)


@settings(max_examples=15)
@given(
    passes=st.lists(
        st.tuples(st.sampled_from([0, 1, 2, 7, 48, 60]), st.sampled_from([0.0, 0.5, 0.95, 1.0])), min_size=1, max_size=4
    ),
    guidance=st.sampled_from([0.0, 1.0, 4.0]),
    schedule=st.sampled_from(["linear", "constant"]),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    attend_to_refined=st.booleans(),
    keep_scales=st.integers(0, 3),
    masked=st.booleans(),
    cache_implementation=st.sampled_from(CACHES),
    seed=st.integers(0, 1000),
)
def test_all_settings_do_what_they_say(
    passes: list[tuple[int, float]],
    guidance: float,
    schedule: str,
    temperature: float,
    attend_to_refined: bool,
    keep_scales: int,
    masked: bool,
    cache_implementation: str,
    seed: int,
):
    options: dict[str, Any] = {
        "top_k": [top_k for top_k, _ in passes],
        "top_p": [top_p for _, top_p in passes],
        "guidance_scale": guidance,
        "guidance_schedule": schedule,
        "temperature": temperature,
        "attend_to_refined": attend_to_refined,
        "keep_scales": keep_scales,
    }
    codes = some_codes(seed=seed)
    mask = torch.rand(4, 4, generator=torch.Generator().manual_seed(seed)) > 0.5 if masked else None
    output = draw(
        **options, codes=codes, mask=mask, seed=seed, output_logits=True, cache_implementation=cache_implementation
    )
    redrawn = None if mask is None else [area_share(mask, side) >= 0.5 for side in SCALES]
    pictures = [
        Plain(tiny(), prompt, NEGATIVE, **options, codes=codes[0], redrawn=redrawn, seed=seed + index)
        for index, prompt in enumerate(PROMPTS)
    ]
    if keep_scales == len(SCALES):
        assert output.logits is None and torch.equal(output.codes, codes.expand(2, -1))
    else:
        assert_plain(output, pictures)


def area_share(mask: torch.Tensor, side: int) -> torch.Tensor:
    """How much of a coarse token is inside, counted token by token: (4, 4) -> (side, side)"""
    return mask.float().unflatten(0, (side, -1)).unflatten(2, (side, -1)).mean(dim=(1, 3))


def test_longer_negative_prompts():
    negative = torch.arange(10, 22)
    output = draw(negative_prompt_ids=negative[None], output_logits=True)
    assert_plain(output, [Plain(tiny(), p, negative, 7.5, seed=i, **SAMPLED) for i, p in enumerate(PROMPTS)])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_negative_prompt_per_prompt(side: str):
    negatives = [torch.tensor([6, 18, 31]), torch.tensor([12, 31])]
    padded = batch(negatives, side)
    output = draw(
        negative_prompt_ids=padded["input_ids"],
        negative_attention_mask=padded["attention_mask"],
        num_images_per_prompt=2,
        output_logits=True,
    )
    pictures = [
        Plain(tiny(), PROMPTS[i // 2], negatives[i // 2], guidance_scale=7.5, seed=i, **SAMPLED) for i in range(4)
    ]
    assert_plain(output, pictures)


def test_scores_in_parts(monkeypatch: pytest.MonkeyPatch):
    expected = draw(output_logits=True)
    monkeypatch.setattr("transformers_tokenflow.generation_tokenflow.SCORES_CHUNK", 500)
    assert torch.equal(draw().codes, expected.codes)
    for part, whole in zip(draw(output_logits=True).logits, expected.logits, strict=True):
        assert torch.equal(part, whole)


# ---- What is computed ----


def record_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and tokens of every run of the layers."""
    calls, original = [], tiny().model.forward

    def forward(embeds: torch.Tensor, **arguments: Any) -> Any:
        calls.append(tuple(embeds.shape[:2]))
        return original(embeds, **arguments)

    monkeypatch.setattr(tiny().model, "forward", forward)
    return calls


def test_nothing_is_computed_twice(monkeypatch: pytest.MonkeyPatch):
    calls = record_calls(monkeypatch)
    draw(num_images_per_prompt=3)
    assert calls == [(3, 7), *[(12, 4)] * 3, *[(12, 16)] * 3]  # one negative prompt for all
    calls.clear()
    draw(guidance_scale=0.0, top_k=1, top_p=0.0)
    assert calls == [(2, 7), (2, 4), (2, 16)]
    calls.clear()
    draw(codes=some_codes(), keep_scales=2)
    assert calls == [(3, 7), (4, 4), *[(4, 16)] * 3]
    calls.clear()
    draw(codes=some_codes(), keep_scales=3)
    assert calls == [(3, 7), (4, 4)]


def test_padding_beyond_the_longest_prompt_is_cut(monkeypatch: pytest.MonkeyPatch):
    expected = draw([PROMPTS[0]]).codes
    calls = record_calls(monkeypatch)
    wide = {name: torch.nn.functional.pad(value, (3, 9)) for name, value in batch([PROMPTS[0]]).items()}
    arguments = {**SAMPLED, "negative_prompt_ids": NEGATIVE[None], "seed": 0}
    assert torch.equal(tiny().generate(**wide, **arguments).codes, expected)
    assert calls[0] == (2, 4)


def test_the_head_computes_what_is_needed():
    rows = []
    hook = tiny().visual_head.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[:2]))
    draw(num_images_per_prompt=2)
    hook.remove()
    assert rows == [(4, 1), *[(4, 4)] * 3, *[(4, 16)] * 3]  # of guided states, one row for a picture


# ---- The same picture ----


@pytest.mark.parametrize("guidance_scale", [0.0, 7.5])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_equals_its_items(side: str, guidance_scale: float):
    together = draw(side=side, guidance_scale=guidance_scale, seed=[4, 9]).codes
    for index, seed in enumerate((4, 9)):
        assert torch.equal(draw([PROMPTS[index]], guidance_scale=guidance_scale, seed=seed).codes[0], together[index])
    swapped = draw(PROMPTS[::-1], side, guidance_scale=guidance_scale, seed=[9, 4]).codes
    assert torch.equal(swapped, together.flip(0))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_is_left_out_and_not_masked(monkeypatch: pytest.MonkeyPatch, implementation: str):
    """Beside a longer prompt the same sums are made: a mask would round them otherwise."""
    seen, attend = [], TokenFlowTextToImageAttention._attend

    def record(self: Any, query: torch.Tensor, key: torch.Tensor, *others: Any, **kwargs: Any) -> Any:
        seen.append((len(query), query.shape[2], key.shape[2]))
        return attend(self, query, key, *others, **kwargs)

    monkeypatch.setattr(TokenFlowTextToImageAttention, "_attend", record)
    model = copy.deepcopy(tiny())
    model.set_attn_implementation(implementation)
    prompts = [torch.arange(3, 6), torch.arange(3, 40)]
    arguments = {"negative_prompt_ids": NEGATIVE[None], "output_logits": True, **SAMPLED}
    together = model.generate(**batch(prompts), seed=[3, 4], **arguments)
    num_layers = model.config.text_config.num_hidden_layers
    runs = [(1, 3, 3), (1, 37, 37), (1, 3, 3)]  # of both prompts, and of the negative one
    assert seen[: len(runs) * num_layers] == runs * num_layers
    assert seen[-len(runs) :] == [(1, 16, 3 + 20), (1, 16, 37 + 20), (2, 16, 3 + 20)]
    for index, prompt in enumerate(prompts):
        alone = model.generate(**batch([prompt]), seed=3 + index, **arguments)
        assert torch.equal(alone.codes[0], together.codes[index])
        for single, pair in zip(alone.logits, together.logits, strict=True):
            torch.testing.assert_close(single[0], pair[index], atol=1e-5, rtol=1e-5)


def test_several_pictures_of_a_prompt_are_several_seeds():
    pictures = draw(num_images_per_prompt=3, seed=[10, 20]).codes
    for index in range(6):
        seed = (10, 20)[index // 3] + index % 3
        assert torch.equal(draw([PROMPTS[index // 3]], seed=seed).codes[0], pictures[index])
    assert torch.equal(draw(num_images_per_prompt=3, seed=10).codes[:3], pictures[:3])
    assert len(pictures.unique(dim=0)) == 6


def test_seeds_are_generators():
    expected = draw(seed=5).codes
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    assert torch.equal(draw(generator=generators).codes, expected)
    shared = [draw(generator=torch.Generator().manual_seed(1)).codes for _ in range(2)]
    assert torch.equal(*shared) and not torch.equal(shared[0], expected)


def test_torchs_generator_is_used_only_without_others():
    tiny()  # whose weights are drawn from it
    before = torch.get_rng_state()
    draw(seed=5)
    draw(generator=torch.Generator().manual_seed(5))
    draw(seed=5, best_of=2, scorer=lambda features, prompts: features.mean(dim=(1, 2)))
    assert torch.equal(torch.get_rng_state(), before)
    pictures = []
    for _ in range(2):
        torch.manual_seed(3)
        pictures.append(draw(seed=None).codes)
    assert torch.equal(*pictures) and not torch.equal(draw(seed=None).codes, pictures[0])


def test_caches_agree():
    assert len({draw(cache_implementation=name, seed=11).codes.numpy().tobytes() for name in CACHES}) == 1


# ---- Settings ----


def test_codes_are_in_the_codebook():
    output = draw(top_k=0, top_p=0.0, temperature=100.0, num_images_per_prompt=8)
    assert output.codes.shape == (16, NUM_CODES) and output.codes.dtype == torch.long
    assert output.codes.min() >= 0 and output.codes.max() < CODEBOOK_SIZE and output.codes.unique().numel() > 40
    assert [tuple(part.shape) for part in output.codes_per_scale] == [(16, side, side) for side in SCALES]
    storage = output.codes.untyped_storage().data_ptr()
    assert all(part.untyped_storage().data_ptr() == storage for part in output.codes_per_scale)
    assert torch.equal(torch.cat([part.flatten(1) for part in output.codes_per_scale], dim=1), output.codes)
    assert tiny().tokenizer.decode(output.codes).pixel_values.shape == (16, 3, 32, 32)


def test_no_guidance_is_the_conditional_model_alone():
    expected = draw(guidance_scale=0.0).codes
    for negative in (None, NEGATIVE[None], PROMPTS[0][None]):
        assert torch.equal(draw(guidance_scale=0.0, negative_prompt_ids=negative).codes, expected)
    assert not torch.equal(draw(guidance_scale=7.5).codes, expected)


def test_guidance_of_the_prompt_away_from_itself_changes_nothing():
    expected = draw([PROMPTS[0]], guidance_scale=0.0, output_logits=True)
    output = draw([PROMPTS[0]], negative_prompt_ids=PROMPTS[0][None], output_logits=True)
    assert torch.equal(output.codes, expected.codes)
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-3, rtol=1e-4)


def test_schedules_of_guidance():
    """Linear guidance leaves the first scale alone."""
    first = [draw(guidance_scale=scale, output_logits=True, **GREEDY).logits[0] for scale in (0.0, 7.5)]
    torch.testing.assert_close(*first)
    constant = draw(guidance_schedule="constant", output_logits=True, **GREEDY).logits[0]
    assert (constant - first[0]).abs().max() > 0.1


def test_one_is_greedy():
    expected = draw(**GREEDY, seed=0, output_logits=True)
    assert torch.equal(draw(**GREEDY, seed=1).codes, expected.codes)
    assert torch.equal(draw(do_sample=False, seed=2).codes, expected.codes)
    last_passes = [expected.logits[0], expected.logits[3], expected.logits[6]]
    assert torch.equal(torch.cat(last_passes, dim=1).argmax(dim=-1), expected.codes)


def test_zero_switches_a_filter_off():
    expected = draw(top_k=[0, 0], top_p=[0.0, 0.0]).codes
    for options in ({"top_k": [0, 48], "top_p": 1.0}, {"top_k": 1000, "top_p": [1, 0]}):
        assert torch.equal(draw(**options).codes, expected)
    assert not torch.equal(draw(top_k=[5, 5], top_p=[0.0, 0.0]).codes, expected)


def test_a_number_counts_for_every_pass():
    assert torch.equal(draw(top_k=[9, 9], top_p=0.7).codes, draw(top_k=9, top_p=[0.7, 0.7]).codes)
    assert len(draw(top_k=9, top_p=0.7, output_logits=True).logits) == 3


def test_scores_of_every_pass():
    output = draw(num_images_per_prompt=2, output_logits=True)
    assert [tuple(part.shape) for part in output.logits] == [
        (4, tokens, CODEBOOK_SIZE) for tokens in (1, 4, 4, 4, 16, 16, 16)
    ]
    assert all(part.dtype == torch.float32 for part in output.logits)
    assert list(draw()) == ["codes", "codes_per_scale"]


# ---- Where settings come from ----


@pytest.fixture
def own() -> TokenFlowForTextToImage:
    """A model whose settings may be changed."""
    return tiny_text_to_image()[0]


def drawn_by(model: TokenFlowForTextToImage, **arguments: Any) -> torch.Tensor:
    return model.generate(**batch(), negative_prompt_ids=NEGATIVE[None], seed=0, **arguments).codes


def test_a_generation_config_holds_settings(own: TokenFlowForTextToImage):
    options = {"top_k": [7, 2], "top_p": [0.9, 0.0], "guidance_scale": 2.0, "guidance_schedule": "constant"}
    expected = drawn_by(own, **options, temperature=0.7, attend_to_refined=True)
    config = GenerationConfig(do_sample=True, **options, temperature=0.7, attend_to_refined=True)
    assert torch.equal(drawn_by(own, generation_config=config), expected)
    changed = drawn_by(own, generation_config=config, guidance_scale=0.0)
    assert torch.equal(
        changed, drawn_by(own, **{**options, "guidance_scale": 0.0}, temperature=0.7, attend_to_refined=True)
    )
    assert config.guidance_scale == 2.0


def test_what_a_generation_config_leaves_open_is_the_models(own: TokenFlowForTextToImage):
    expected = drawn_by(own, guidance_scale=1.5)
    assert torch.equal(drawn_by(own, generation_config=GenerationConfig(guidance_scale=1.5)), expected)


def test_settings_are_saved(own: TokenFlowForTextToImage, tmp_path: Path):
    own.generation_config.top_k, own.generation_config.top_p = [6, 1], [0.5, 0.0]
    own.generation_config.guidance_schedule = "constant"
    own.save_pretrained(tmp_path)
    loaded = TokenFlowForTextToImage.from_pretrained(tmp_path)
    expected = drawn_by(tiny_text_to_image()[0], top_k=[6, 1], top_p=[0.5, 0.0], guidance_schedule="constant")
    assert torch.equal(drawn_by(loaded), expected)
    (tmp_path / "generation_config.json").unlink()
    loaded = TokenFlowForTextToImage.from_pretrained(tmp_path)
    assert torch.equal(drawn_by(loaded), drawn_by(tiny_text_to_image()[0]))  # the paper's


@pytest.mark.parametrize(
    "added",
    [
        {"max_new_tokens": 256, "pad_token_id": 3},  # any-to-any's
        {"use_cache": True, "return_dict_in_generate": True, "max_length": 20, "eos_token_id": [2]},
        {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "bad_words_ids": None},  # as ever
        {"output_attentions": False, "stop_strings": [], "disable_compile": True},  # switched off
    ],
)
def test_what_pipelines_add_does_no_harm(added: dict[str, Any]):
    assert torch.equal(draw(**added).codes, draw().codes)
    assert torch.equal(draw(generation_config=GenerationConfig(**added)).codes, draw().codes)


def test_the_models_configuration_gives_a_generation_config(own: TokenFlowForTextToImage):
    config = GenerationConfig.from_model_config(own.config)
    assert torch.equal(drawn_by(own, generation_config=config), drawn_by(own))


def test_a_model_that_gives_tuples_draws_the_same(own: TokenFlowForTextToImage):
    expected = drawn_by(own)
    own.config.return_dict = False
    assert torch.equal(drawn_by(own), expected)


def test_arguments_in_a_generation_config(monkeypatch: pytest.MonkeyPatch):
    made, make_cache = [], generation_tokenflow.make_cache
    monkeypatch.setattr(
        generation_tokenflow, "make_cache", lambda kind, *sizes: made.append(kind) or make_cache(kind, *sizes)
    )
    config = GenerationConfig(cache_implementation="static", output_logits=True)
    assert len(draw(generation_config=config).logits) == 7
    assert draw(generation_config=config, cache_implementation="dynamic", output_logits=False).logits is None
    assert made == ["static", "dynamic"]


@pytest.mark.parametrize(
    "asked",
    [
        {"num_beams": 4},
        {"num_return_sequences": 2},
        {"repetition_penalty": 1.2},
        {"min_p": 0.1},
        {"bad_words_ids": [[3]]},
        {"stop_strings": ["."]},
        {"output_scores": True},
        {"forced_bos_token_id": 0},
    ],
)
def test_what_texts_alone_have_is_refused(own: TokenFlowForTextToImage, asked: dict[str, Any]):
    message = f"pictures, where {next(iter(asked))} mean nothing"
    with pytest.raises(ValueError, match=message):
        draw(**asked)
    with pytest.raises(ValueError, match=message):
        draw(generation_config=GenerationConfig(do_sample=True, **asked))
    own.generation_config.update(**asked)
    with pytest.raises(ValueError, match=message):
        drawn_by(own)


# ---- Pictures of which something is kept ----


@pytest.mark.parametrize("guidance_scale", [0.0, 7.5])
@pytest.mark.parametrize("keep_scales", [0, 1, 2, 3])
def test_coarse_scales_are_kept(keep_scales: int, guidance_scale: float):
    codes, length = some_codes(2), [0, 1, 5, 21][keep_scales]
    output = draw(codes=codes, keep_scales=keep_scales, guidance_scale=guidance_scale, output_logits=True)
    assert torch.equal(output.codes[:, :length], codes[:, :length])
    if keep_scales < 3:
        assert not torch.equal(output.codes, codes) and len(output.logits) == [7, 6, 3][keep_scales]
    if keep_scales == 0:
        assert torch.equal(output.codes, draw(guidance_scale=guidance_scale).codes)


@every_cache
@pytest.mark.parametrize(("passes", "attend_to_refined"), [(1, False), (3, False), (1, True)])
@pytest.mark.parametrize("keep_scales", [1, 2])
def test_the_rest_of_ones_own_greedy_picture_is_the_same(
    keep_scales: int, passes: int, attend_to_refined: bool, cache_implementation: str
):
    options: dict[str, Any] = {"attend_to_refined": attend_to_refined, "cache_implementation": cache_implementation}
    options |= {"top_k": [1] * passes, "top_p": 0.0}
    codes = draw(**options).codes
    assert torch.equal(draw(**options, codes=codes, keep_scales=keep_scales).codes, codes)


def test_one_picture_for_all_or_one_each():
    codes = some_codes(4)
    for given_codes in (codes[:1], codes[:2], codes):
        output = draw(codes=given_codes, keep_scales=2, num_images_per_prompt=2).codes
        expected = given_codes.repeat_interleave(4 // len(given_codes), dim=0)
        assert torch.equal(output[:, :5], expected[:, :5])


@settings(max_examples=20)
@given(st.lists(st.booleans(), min_size=16, max_size=16), st.integers(0, 100))
def test_what_lies_outside_a_mask_is_held(inside: list[bool], seed: int):
    codes, mask = some_codes(), torch.tensor(inside).view(4, 4)
    seen = []
    output = draw([PROMPTS[0]], codes=codes, mask=mask, seed=seed, streamer=recorder(seen))
    for part, given_part in zip(output.codes_per_scale, tiny().tokenizer.quantizer.split_codes(codes), strict=True):
        outside = area_share(mask, part.shape[-1]) < 0.5
        assert torch.equal(part[0][outside], given_part[0][outside])
    last_passes, outside = seen[-3:], ~mask.flatten()
    for scale_codes in last_passes:
        assert torch.equal(scale_codes[0][outside], codes[0, 5:][outside])
    if not mask.any():
        assert torch.equal(output.codes, codes)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_a_mask_of_everything_is_no_mask(dtype: torch.dtype):
    expected = draw().codes
    for shape in ((4, 4), (1, 4, 4), (2, 4, 4)):
        assert torch.equal(draw(codes=some_codes(), mask=torch.ones(shape, dtype=dtype)).codes, expected)


def test_a_mask_per_picture():
    masks = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])
    output = draw(codes=some_codes(), mask=masks, num_images_per_prompt=2).codes
    assert torch.equal(output[:2], draw(num_images_per_prompt=2).codes[:2])
    assert torch.equal(output[2:], some_codes().expand(2, -1))


# ---- Candidates ----


class Ranks:
    """Scores that candidates have from the first scale on, known in advance; forgets those that will be dropped."""

    def __init__(self, ranks: list[list[float]], num_prompts: int = 2):
        self.alive, self.num_prompts = torch.tensor(ranks), num_prompts
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, features: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        self.calls.append((features, prompts))
        scores = self.alive
        count = (scores.shape[1] + 1) // 2
        best = scores.topk(count).indices.sort().values
        self.alive = scores.gather(1, best)
        assert len(features) == len(prompts) == scores.numel()
        return scores.flatten()


def candidate(prompt: int, index: int, best_of: int, **arguments: Any) -> torch.Tensor:
    """One candidate of one of two prompts, drawn alone."""
    source = more_generators(make_generators(0, None, 2, 1), best_of).each[prompt * best_of + index]
    return draw([PROMPTS[prompt]], generator=[source], **arguments).codes[0]


RANKS = [[0.1, 0.9, 0.3, 0.5, 0.2], [0.4, 0.1, 0.2, 0.3, 0.8]]


PRUNED = [(), (0,), (1,), (0, 1)]


@pytest.mark.parametrize(
    ("prune_at", "options"),
    [(prune_at, {"cache_implementation": name}) for prune_at in PRUNED for name in CACHES]
    + [((0, 1), {"guidance_scale": 0.0}), ((0, 1), {"attend_to_refined": True})],
)
def test_the_best_candidate_is_what_it_is_alone(prune_at: tuple[int, ...], options: dict[str, Any]):
    scorer = Ranks(RANKS)
    output = draw(best_of=5, scorer=scorer, prune_at=prune_at, output_logits=True, **options)
    assert torch.equal(output.codes[0], candidate(0, 1, 5, **options))
    assert torch.equal(output.codes[1], candidate(1, 4, 5, **options))
    assert torch.allclose(output.scores, torch.tensor([0.9, 0.8]))
    assert [part.shape[0] for part in output.logits] == [2] * 7
    assert torch.equal(output.logits[-1].argmax(-1), output.codes[:, 5:])  # the last pass is greedy
    num_alive = [10, 6, 4][: len(prune_at) + 1]
    assert [len(features) for features, _ in scorer.calls] == num_alive
    for (features, prompts), count in zip(scorer.calls, num_alive, strict=True):
        assert prompts.tolist() == [0] * (count // 2) + [1] * (count // 2)
        assert features.shape == (count, 16, tiny().config.tokenizer_config.teacher_hidden_size)


def test_the_scorer_sees_what_the_tokenizer_decodes():
    scorer = Ranks([[0.1, 0.2], [0.4, 0.3]])
    seen = []
    output = draw(best_of=2, scorer=scorer, prune_at=[1], callback_on_scale_end=lambda index, codes: seen.append(codes))
    for (features, _), rows, codes in ((scorer.calls[0], [1, 2], seen[1]), (scorer.calls[1], [0, 1], output.codes)):
        expected = tiny().tokenizer.decode(codes).semantic_features
        torch.testing.assert_close(features[rows], expected, atol=1e-5, rtol=1e-5)


def test_several_pictures_of_several_candidates():
    scorer = Ranks([[0.1, 0.2, 0.3], [0.9, 0.5, 0.1], [0.0, 1.0, 0.5], [0.3, 0.2, 0.1]])
    output = draw(num_images_per_prompt=2, best_of=3, scorer=scorer, prune_at=[1])
    each = more_generators(make_generators(0, None, 2, 2), 3).each
    for index, chosen in enumerate((2, 0, 1, 0)):
        expected = draw([PROMPTS[index // 2]], generator=[each[index * 3 + chosen]]).codes
        assert torch.equal(output.codes[index], expected[0])


def test_the_first_candidate_is_the_plain_picture():
    scorer = Ranks([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert torch.equal(draw(best_of=3, scorer=scorer).codes, draw().codes)
    assert torch.equal(draw(best_of=1, scorer=scorer).codes, draw().codes)
    assert draw(best_of=1, scorer=scorer).scores is None


def test_candidates_of_one_generator_or_of_torchs():
    for source in ({"generator": torch.Generator().manual_seed(0)}, {"seed": None}):
        output = draw(best_of=4, scorer=lambda features, _: features.mean(dim=(1, 2)), prune_at=[0, 1], **source)
        assert output.codes.shape == (2, NUM_CODES)


@pytest.mark.parametrize("prune_at", [(), (0, 1)])
def test_candidates_of_which_something_is_kept(prune_at: tuple[int, ...]):
    codes, mask = some_codes(2), torch.tensor([[True] * 4, [True] * 4, [False] * 4, [False] * 4])
    mask = torch.stack([mask, ~mask])
    output = draw(codes=codes, mask=mask, best_of=5, scorer=Ranks(RANKS), prune_at=prune_at).codes
    for prompt, index in ((0, 1), (1, 4)):
        expected = candidate(prompt, index, 5, codes=codes[prompt : prompt + 1], mask=mask[prompt])
        assert torch.equal(output[prompt], expected)


# ---- Watching ----


def recorder(put: list[torch.Tensor], ended: list[bool] | None = None) -> BaseStreamer:
    class Recorder(BaseStreamer):
        def put(self, value: torch.Tensor):
            put.append(value)

        def end(self):
            if ended is not None:
                ended.append(True)

    return Recorder()


def test_streamers_get_every_pass():
    put, ended = [], []
    output = draw(num_images_per_prompt=2, streamer=recorder(put, ended), output_logits=True)
    assert [tuple(part.shape) for part in put] == [(4, tokens) for tokens in (1, 4, 4, 4, 16, 16, 16)]
    assert ended == [True]
    assert torch.equal(torch.cat([put[0], put[3], put[6]], dim=1), output.codes)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int16])
def test_codes_of_any_integer_type_are_given(dtype: torch.dtype):
    given, mask = some_codes().to(dtype), torch.eye(4)
    for keep in ({"keep_scales": 1}, {"mask": mask}):
        codes = draw(codes=given, **keep).codes
        assert codes.dtype == torch.long and torch.equal(codes, draw(codes=some_codes(), **keep).codes)


def test_callbacks_get_the_codes_so_far():
    calls = []

    def callback(index: int, codes: torch.Tensor):
        assert tiny().tokenizer.decode(codes).pixel_values.shape == (2, 3, 32, 32)
        calls.append((index, codes))

    output = draw(callback_on_scale_end=callback)
    assert [index for index, _ in calls] == [0, 1, 2]
    for (_, codes), length in zip(calls, (1, 5, 21), strict=True):
        assert torch.equal(codes, output.codes[:, :length])


def test_callbacks_may_end_the_drawing():
    seen = []
    output = draw(callback_on_scale_end=lambda index, codes: seen.append(codes) or index != 1)
    assert [codes.shape[1] for codes in seen] == [1, 5]
    assert torch.equal(output.codes, draw().codes[:, :5])
    assert [part.shape[1:] for part in output.codes_per_scale] == [(1, 1), (2, 2)]
    best = draw(best_of=2, scorer=lambda features, index: features.mean((1, 2)), callback_on_scale_end=lambda *_: False)
    assert best.codes.shape == (2, 1) and best.scores.shape == (2,)


def test_kept_scales_are_shown_too():
    put, calls = [], []
    codes = some_codes()
    options = {"streamer": recorder(put), "callback_on_scale_end": lambda index, codes: calls.append(index)}
    draw([PROMPTS[0]], codes=codes, keep_scales=3, **options)
    assert torch.equal(torch.cat(put, dim=1), codes) and calls == [0, 1, 2]


def test_callbacks_may_draw():
    """They can't disturb what is being drawn."""
    expected = draw().codes
    assert torch.equal(draw(callback_on_scale_end=lambda *_: draw(seed=5)).codes, expected)


# ---- Errors ----


def test_scores_are_numbers_of_any_kind():
    expected = draw(best_of=2, scorer=lambda features, _: torch.arange(4.0)).codes
    for scores in ([0.0, 1.0, 2.0, 3.0], np.arange(4)):
        assert torch.equal(draw(best_of=2, scorer=lambda *_, scores=scores: scores).codes, expected)


def test_kept_scales_are_enough():
    codes = some_codes()
    assert torch.equal(draw(codes=codes[:, :5], keep_scales=2).codes, draw(codes=codes, keep_scales=2).codes)


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "lists that differ": ({"top_k": [5, 1], "top_p": [0.5, 0.5, 0.0]}, "an entry per pass"),
    "no passes": ({"top_k": [], "top_p": []}, "an entry per pass"),
    "negative k": ({"top_k": -1}, "whole numbers from 0"),
    "fractional k": ({"top_k": 5.0}, "whole numbers from 0"),
    "large p": ({"top_p": 1.1}, r"top_p must lie in \[0, 1\]"),
    "negative p": ({"top_p": [0.5, -0.5, 0.0]}, r"top_p must lie in \[0, 1\]"),
    "temperature": ({"temperature": 0.0}, "temperature"),
    "negative guidance": ({"guidance_scale": -1.0}, "guidance_scale must be from 0 to 10,000"),
    "schedule": ({"guidance_schedule": "cosine"}, "'linear' or 'constant'; got 'cosine'"),
    "no negative prompt": (
        {"negative_prompt_ids": None},
        r"guidance needs negative_prompt_ids: .*prepare_generation\(text\)",
    ),
    "negative prompts": ({"negative_prompt_ids": NEGATIVE.expand(3, -1)}, "3 negative prompts for 2 prompts"),
    "negative prompts as lists": ({"negative_prompt_ids": [[1, 2]]}, r"prepare_generation\(text\).* got list"),
    "empty negative prompt": ({"negative_prompt_ids": NEGATIVE[None, :0]}, "prompt has no tokens"),
    "seeds": ({"seed": [1, 2, 3]}, "a seed for each of 2 prompts; got 3"),
    "generators": ({"generator": [torch.Generator()] * 3}, "a generator for each of 2 pictures; got 3"),
    "both": ({"seed": 1, "generator": torch.Generator()}, "seed or generator, not both"),
    "no pictures": ({"num_images_per_prompt": 0}, "at least 1; got 0 and 1"),
    "no candidates": ({"best_of": 0}, "at least 1; got 1 and 0"),
    "no scorer": ({"best_of": 2}, "pass a `scorer`"),
    "prune nothing": ({"prune_at": [0]}, "prune_at names scales 0 to 2 of best_of candidates"),
    "prune where": ({"prune_at": [3], "best_of": 2, "scorer": Ranks([[0.0]])}, "prune_at names scales 0 to 2"),
    "scores": ({"best_of": 2, "scorer": lambda features, _: features}, "a score for each of 4 pictures; got"),
    "nothing to choose from": ({"scorer": Ranks([[0.0]])}, "say by best_of how many to draw"),
    "keep nothing": ({"codes": some_codes()}, "nothing of `codes` would be kept: say what"),
    "keep what": ({"keep_scales": 1}, "pass its `codes`"),
    "mask what": ({"mask": torch.ones(4, 4)}, "pass its `codes`"),
    "keep too many": ({"codes": some_codes(), "keep_scales": 4}, "between 0 and the 3 scales; got 4"),
    "keep less than nothing": ({"codes": some_codes(), "keep_scales": -1}, "between 0 and the 3 scales"),
    "mask of another size": ({"codes": some_codes(), "mask": torch.ones(3, 3)}, r"4×4; got \(1, 3, 3\)"),
    "mask of other dimensions": ({"codes": some_codes(), "mask": torch.ones(16)}, r"4×4; got \(16,\)"),
    "masks": ({"codes": some_codes(), "mask": torch.ones(3, 4, 4)}, "`mask` for one, 2 or 2 pictures; got 3"),
    "pictures": ({"codes": some_codes(3), "keep_scales": 1}, "`codes` for one, 2 or 2 pictures; got 3"),
    "part of a scale": ({"codes": some_codes()[:, :4], "keep_scales": 1}, r"\[1, 5, 21\]"),
    "a few scales": ({"codes": some_codes()[:, :5], "keep_scales": 3}, r"at least 3 scales, .*; got \(1, 5\)"),
    "a mask of a few": (
        {"codes": some_codes()[:, :5], "mask": torch.ones(4, 4)},
        r"at least 3 scales, .*; got \(1, 5\)",
    ),
    "half a scale": ({"codes": some_codes(), "keep_scales": 1.5}, "keep_scales must be a whole number; got 1.5"),
    "half a picture": ({"num_images_per_prompt": 1.5}, "num_images_per_prompt must be a whole number; got 1.5"),
    "prune at a number": (
        {"best_of": 2, "scorer": Ranks([[0.0]]), "prune_at": 1},
        "prune_at is a list of scales; got 1",
    ),
    "no choice": ({"best_of": 2, "scorer": lambda features, _: [torch.nan] * len(features)}, "the scorer gave NaN"),
    "codes out of range": ({"codes": some_codes() + 40, "keep_scales": 1}, r"\[0, 48\)"),
    "codes that are none": ({"codes": some_codes().float(), "keep_scales": 1}, "integers"),
    "cache": ({"cache_implementation": "paged"}, "'preallocated', 'dynamic' or 'static'; got 'paged'"),
    "typing error": ({"num_image_per_prompt": 2}, "generate does not take num_image_per_prompt"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_clear_errors(case: str):
    arguments, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        draw(**arguments)


def test_prompts_that_can_not_be():
    generate = functools.partial(tiny().generate, guidance_scale=0.0)
    with pytest.raises(ValueError, match=r"expected input_ids as a tensor .*prepare_generation\(text\).* got list"):
        generate([[5, 6]])
    for input_ids in (torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, 4, dtype=torch.long)):
        with pytest.raises(ValueError, match="prompt has no tokens"):
            generate(input_ids)
    with pytest.raises(ValueError, match="prompt has no tokens"):
        generate(torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, 1, 1], [0, 0, 0]]))
    with pytest.raises(ValueError, match=r"\(1, 4\) and \(1, 5\)"):
        generate(torch.ones(1, 4, dtype=torch.long), torch.ones(1, 5))
    with pytest.raises(ValueError, match=r"\(4,\)"):
        generate(PROMPTS[0])
    generate(torch.ones(1, 236, dtype=torch.long))
    with pytest.raises(ValueError, match="prompt of 237 tokens and 20 of the image are more than the model's 256"):
        generate(torch.ones(1, 237, dtype=torch.long))


def test_candidates_need_semantic_features():
    model = tiny_text_to_image("pixel")[0]
    with pytest.raises(ValueError, match="semantic codebook"):
        model.generate(PROMPTS[0][None], guidance_scale=0.0, best_of=2, scorer=Ranks([[0.0, 1.0]]))


# ---- Other models ----


@pytest.mark.parametrize("kind", ["pixel", "semantic", "siglip"])
def test_other_tokenizers(kind: str):
    model = tiny_text_to_image(kind, use_text_head=False)[0]
    codes = model.generate(PROMPTS[0][None], guidance_scale=0.0, seed=0).codes
    assert model.tokenizer.decode(codes).pixel_values.shape == (1, 3, 32, 32)


@every_cache
def test_grouped_queries(cache_implementation: str):
    model = tiny_text_to_image(num_key_value_heads=2)[0]
    options: dict[str, Any] = {"guidance_scale": 2.0, **SAMPLED}
    output = model.generate(
        **batch(),
        negative_prompt_ids=NEGATIVE[None],
        seed=0,
        output_logits=True,
        cache_implementation=cache_implementation,
        **options,
    )
    pictures = [Plain(model, prompt, NEGATIVE, **options, seed=index) for index, prompt in enumerate(PROMPTS)]
    assert_plain(output, pictures)


def test_checkpointed_layers_in_training_keep_no_cache():
    model = tiny_text_to_image()[0].train()
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"call model.eval\(\) before generate"):
        model.generate(PROMPTS[0][None], guidance_scale=0)
    assert model.eval().generate(PROMPTS[0][None], guidance_scale=0).codes.shape == (1, 21)


def test_training_mode_and_gradients_are_left_as_they_are():
    model = tiny_text_to_image()[0].train()
    codes = model.generate(PROMPTS[0][None], guidance_scale=0.0, seed=0).codes
    assert model.training and not model.tokenizer.training and not codes.requires_grad
    assert torch.is_grad_enabled() and model(PROMPTS[0][None], labels=codes).loss.requires_grad


# ---- Alignment ----


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6).filter(any), min_size=1, max_size=4))
def test_padding_goes_to_the_left(masks: list[list[bool]]):
    mask = torch.tensor(masks)
    input_ids = torch.arange(mask.numel()).view(mask.shape)
    aligned, aligned_mask = left_aligned(input_ids, mask)
    lengths = mask.sum(dim=1)
    assert aligned.shape == aligned_mask.shape == (len(masks), lengths.max()) and aligned_mask.dtype == torch.long
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(aligned[row, -length:], input_ids[row][mask[row]])
        assert aligned_mask[row].tolist() == [0] * (aligned.shape[1] - length) + [1] * length


@pytest.mark.parametrize("mask", [torch.tensor([[0, 7, -1]]), torch.tensor([[False, True, True]])])
def test_whatever_is_not_zero_is_no_padding(mask: torch.Tensor):
    aligned, aligned_mask = left_aligned(torch.tensor([[5, 6, 7]]), mask)
    assert aligned.tolist() == [[6, 7]] and aligned_mask.tolist() == [[1, 1]]


def test_placement(own: TokenFlowForTextToImage):
    """accelerate's hooks say where an offloaded model computes."""
    assert own._execution_device == torch.device("cpu")
    own.model.layers[0]._hf_hook = SimpleNamespace(execution_device=None)
    own.model.norm._hf_hook = SimpleNamespace(execution_device="meta")
    assert own._execution_device == torch.device("meta")
