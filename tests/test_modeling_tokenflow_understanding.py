# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from model_checks import assert_same_tensors
from safetensors.torch import load_file
from tiny_models import IMAGE_TOKEN_ID, UNDERSTANDING_VOCABULARY, pictures, tiny_config, tiny_model, tiny_understanding
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    TextIteratorStreamer,
)

from transformers_tokenflow import TokenFlowForConditionalGeneration, TokenFlowModel, TokenFlowUnderstandingConfig

GREEDY = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}


def sequence(*parts: list[int] | str, num_features: int = 16) -> list[int]:
    """Tokens of a text in which the word `image` is the place of a picture."""
    return [token for part in parts for token in ([IMAGE_TOKEN_ID] * num_features if part == "image" else part)]


def batch(*rows: list[int], side: str = "left") -> dict[str, torch.Tensor]:
    """Padded ids and their mask."""
    longest = max(map(len, rows))
    padding = [[0] * (longest - len(row)) for row in rows]
    ones = [[1] * len(row) for row in rows]
    joined = [
        [pad + row if side == "left" else row + pad for pad, row in zip(padding, part, strict=True)]
        for part in (rows, ones)
    ]
    return {"input_ids": torch.tensor(joined[0]), "attention_mask": torch.tensor(joined[1])}


def images(number: int, seed: int = 0) -> torch.Tensor:
    return pictures(tiny_config(), number, seed)


@pytest.fixture(scope="module")
def model() -> TokenFlowForConditionalGeneration:
    return tiny_understanding()


def test_the_default_is_the_official_model():
    config = TokenFlowUnderstandingConfig()
    assert config.text_config.model_type == "qwen2"
    assert config.text_config.hidden_size == 5120
    assert config.text_config.rope_parameters["rope_theta"] == 1e6
    assert (config.num_image_features, config.feature_dim) == (729, 40)


@pytest.mark.parametrize(
    ("strategy", "num_features", "dim"),
    [("last_scale", 16, 12), ("last_scale_semantic", 16, 8), ("all_scales", 21, 12), ("all_scales_residual", 21, 12)],
)
def test_features_of_every_strategy(strategy: str, num_features: int, dim: int):
    model = tiny_understanding(feature_strategy=strategy)
    assert (model.config.num_image_features, model.config.feature_dim) == (num_features, dim)
    pixels = images(2)
    codes = model.model.tokenizer.encode(pixels).codes
    quantizer = model.model.tokenizer.quantizer
    read = model.get_image_features(pixels)
    if strategy == "all_scales_residual":
        expected = F.embedding(codes, quantizer.codebook())
    elif strategy == "all_scales":
        sums = quantizer.codes_to_features(codes)
        maps = [F.interpolate(sums[:, index], scale, mode="area") for index, scale in enumerate([1, 2, 4])]
        expected = torch.cat([part.flatten(2).mT for part in maps], dim=1)
    else:
        expected = model.model.tokenizer.encode(pixels).quantized.flatten(2).mT
    torch.testing.assert_close(read.last_hidden_state, expected, atol=1e-5, rtol=0)
    projected = model.model.projector(expected[..., :dim])
    torch.testing.assert_close(torch.stack(read.pooler_output), projected, atol=1e-5, rtol=0)
    for dtype in (torch.int64, torch.int16):
        from_codes = model.get_image_features(image_codes=codes.to(dtype))
        torch.testing.assert_close(from_codes.last_hidden_state, expected, atol=1e-5, rtol=0)
    inputs = batch(sequence([1], "image", [7, 8], num_features=num_features))
    assert model(**inputs, pixel_values=pixels[:1]).logits.shape == (1, 3 + num_features, UNDERSTANDING_VOCABULARY)


def test_all_scales_end_with_the_last_scale():
    last, every = tiny_understanding(), tiny_understanding(feature_strategy="all_scales")
    pixels = images(1)
    torch.testing.assert_close(
        every.get_image_features(pixels).last_hidden_state[:, -16:],
        last.get_image_features(pixels).last_hidden_state,
        atol=1e-5,
        rtol=0,
    )


def test_bad_configurations():
    with pytest.raises(ValueError, match="feature_strategy.*one of last_scale.*got 'first'"):
        tiny_understanding(feature_strategy="first")
    with pytest.raises(ValueError, match="semantic_codebook_dim"):
        tiny_understanding("pixel", feature_strategy="last_scale_semantic")


def test_pictures_anywhere_in_a_batch_equal_each_row_alone(model: TokenFlowForConditionalGeneration):
    rows = [sequence("image", [5], "image", [6, 7]), sequence([9, 8, 7]), sequence([4], "image", [6])]
    pixels = images(3)
    used = [pixels[:2], None, pixels[2:]]
    for side in ("left", "right"):
        inputs = batch(*rows, side=side)
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        together = model(**inputs, pixel_values=pixels, position_ids=positions).logits
        for row, own, logits, mask in zip(rows, used, together, inputs["attention_mask"].bool(), strict=True):
            alone = model(input_ids=torch.tensor([row]), pixel_values=own).logits[0]
            torch.testing.assert_close(logits[mask], alone, atol=1e-5, rtol=1e-5)


def test_codes_say_the_same_as_pixels(model: TokenFlowForConditionalGeneration):
    inputs, pixels = batch(sequence([3], "image", [5])), images(1)
    codes = model.model.tokenizer.encode(pixels).codes
    features = {"image": model.get_image_features(pixels)}
    expected = model(**inputs, pixel_values=pixels).logits
    torch.testing.assert_close(model(**inputs, image_codes=codes).logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(**inputs, mm_encoder_outputs=features).logits, expected, atol=1e-5, rtol=0)
    for options in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        generated = model.generate(**inputs, image_codes=codes, **GREEDY, **options)
        assert torch.equal(generated, model.generate(**inputs, pixel_values=pixels, **GREEDY, **options))


def test_other_pictures_get_other_answers(model: TokenFlowForConditionalGeneration):
    inputs = batch(sequence([3], "image", [5]))
    first, second = (model(**inputs, pixel_values=images(1, seed)).logits[:, -1] for seed in (0, 1))
    assert (first - second).abs().max() > 1e-4


def test_left_padding_does_not_change_what_is_generated(model: TokenFlowForConditionalGeneration):
    rows, pixels = [sequence("image", [5]), sequence([4, 5, 6, 7], "image", [6])], images(2)
    together = model.generate(**batch(*rows), pixel_values=pixels, **GREEDY)
    for index, row in enumerate(rows):
        alone = model.generate(**batch(row), pixel_values=pixels[index : index + 1], **GREEDY)
        assert torch.equal(together[index, -5:], alone[0, -5:])


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"do_sample": True, "top_k": 5},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 2},
        {"use_cache": False},
        {"prefill_chunk_size": 7},
    ],
    ids=str,
)
def test_every_way_of_generating(model: TokenFlowForConditionalGeneration, options: dict[str, Any]):
    inputs = batch(sequence([3], "image", [5, 6]))
    generated = model.generate(**inputs, pixel_values=images(1), **{**GREEDY, **options})
    assert generated.shape == (1, 19 + 5)
    if not {"do_sample", "num_beams"} & options.keys():
        assert torch.equal(generated, model.generate(**inputs, pixel_values=images(1), **GREEDY))


def test_assisted_generation(model: TokenFlowForConditionalGeneration):
    inputs = {**batch(sequence([3], "image", [5, 6])), "pixel_values": images(1)}
    assistant = tiny_understanding(seed=1)
    assert torch.equal(
        model.generate(**inputs, assistant_model=assistant, **GREEDY), model.generate(**inputs, **GREEDY)
    )


def test_streaming(model: TokenFlowForConditionalGeneration):
    class Words:
        def decode(self, ids: Any, **options: Any) -> str:
            return " ".join(map(str, torch.as_tensor(ids).flatten().tolist())) + "\n"

    inputs = {**batch(sequence("image", [5])), "pixel_values": images(1)}
    streamer = TextIteratorStreamer(Words(), skip_prompt=True, timeout=60)
    thread = threading.Thread(target=model.generate, kwargs={**inputs, **GREEDY, "streamer": streamer})
    thread.start()
    words = "".join(streamer).split()
    thread.join()
    assert words == [str(token) for token in model.generate(**inputs, **GREEDY)[0, -5:].tolist()]


def test_the_loss_is_of_labels_alone(model: TokenFlowForConditionalGeneration):
    inputs = batch(sequence([3], "image", [5, 6, 7]))
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    output = model(**inputs, pixel_values=images(1), labels=labels)
    expected = F.cross_entropy(output.logits[0, -3:-1], labels[0, -2:])
    torch.testing.assert_close(output.loss, expected)
    kept = model(**inputs, pixel_values=images(1), logits_to_keep=2).logits
    torch.testing.assert_close(kept, output.logits[:, -2:])


def test_the_tokenizer_stays_frozen_and_the_rest_learns():
    model = tiny_understanding().train()
    inputs = batch(sequence([3], "image", [5, 6]))
    model(**inputs, pixel_values=images(1), labels=inputs["input_ids"]).loss.backward()
    assert not model.model.tokenizer.training
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (not name.startswith("model.tokenizer.")), name


@pytest.mark.parametrize("strategy", ["last_scale", "all_scales", "all_scales_residual"])
def test_text_alone_trains_by_the_same_modules_in_the_same_order(strategy: str):
    """Which processes that divide weights or gradients wait for, while others of them have pictures."""
    model = tiny_understanding(feature_strategy=strategy).train()
    number = model.config.num_image_features
    codes = torch.zeros(1, model.config.tokenizer_config.num_image_tokens, dtype=torch.long)
    used: list[str] = []
    ready: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: used.append(name))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: ready.append(name))
    for inputs in (
        {"input_ids": torch.tensor([sequence([5], "image", [6], num_features=number)]), "image_codes": codes},
        {"input_ids": torch.tensor([sequence([5, 6])])},
    ):
        model(**inputs).logits.sum().backward()
    assert "model.projector" in used and "model.projector.linear_1.weight" in ready
    for order in (used, ready):
        assert order[: len(order) // 2] == order[len(order) // 2 :]


def test_gradient_checkpointing_changes_nothing():
    inputs = {**batch(sequence([3], "image", [5, 6])), "pixel_values": images(1)}
    gradients = []
    for checkpointed in (False, True):
        model = tiny_understanding().train()
        if checkpointed:
            model.activation_checkpointing_enable()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append(model.model.projector.linear_1.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("text_type", ["llama", "gemma"])
@pytest.mark.parametrize("tied", [True, False])
def test_other_language_models_and_tied_heads(text_type: str, tied: bool, tmp_path: Path):
    model = tiny_understanding(text_type=text_type, text_config={"tie_word_embeddings": tied, "head_dim": 8})
    same = model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert same == tied == model.config.tie_word_embeddings
    model.save_pretrained(tmp_path)
    assert_same_tensors(model, TokenFlowForConditionalGeneration.from_pretrained(tmp_path))


@pytest.mark.parametrize("text_type", ["llama", "qwen3", "mistral", "gemma3_text", "olmo2", "phi3", "smollm3"])
def test_scores_of_other_language_models_are_their_own(text_type: str):
    model = tiny_understanding(text_type=text_type, text_config={"head_dim": 8})
    alone = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    alone.model.load_state_dict(model.model.language_model.state_dict())
    alone.lm_head.load_state_dict(model.lm_head.state_dict())
    inputs = batch([3, 5, 6], [4, 7])
    torch.testing.assert_close(model(**inputs).logits, alone(**inputs).logits)


@pytest.mark.parametrize(
    ("text_config", "message"),
    [
        ({"model_type": "phi"}, "'phi' can't be used: its head has a bias"),
        ({"model_type": "phimoe", "lm_head_bias": True}, "'phimoe' can't be used: its head has a bias"),
        ({"model_type": "ernie4_5_moe", "use_bias": True}, "'ernie4_5_moe' can't be used: its head has a bias"),
        ({"model_type": "cohere"}, "'cohere' can't be used: its head has logit_scale=0.0625"),
        ({"model_type": "granite", "logits_scaling": 8.0}, "its head has logits_scaling=8.0"),
        ({"model_type": "gemma2"}, "its head has final_logit_softcapping=30.0"),
        ({"model_type": "gpt2"}, "'gpt2' can't be used: its model has no `embed_tokens`"),
    ],
)
def test_language_models_that_are_built_otherwise_are_refused(text_config: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_understanding(text_type=text_config["model_type"], text_config=text_config)


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM])
def test_auto_classes(auto_class: Any, tmp_path: Path, model: TokenFlowForConditionalGeneration):
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert isinstance(loaded, TokenFlowForConditionalGeneration)
    assert_same_tensors(model, loaded)
    assert auto_class.__name__ in AutoConfig.from_pretrained(tmp_path).auto_map


def test_codes_may_be_lists(model: TokenFlowForConditionalGeneration):
    inputs, codes = batch(sequence([3], "image", [5, 6])), torch.arange(21)[None]
    expected = model.generate(**inputs, image_codes=codes, **GREEDY)
    for given in (codes.tolist(), list(codes), codes.numpy()):
        assert torch.equal(model.generate(**inputs, image_codes=given, **GREEDY), expected)
        assert torch.equal(model(**inputs, image_codes=given).logits, model(**inputs, image_codes=codes).logits)
    with pytest.raises(ValueError, match="image_codes must be whole numbers"):
        model.generate(**inputs, image_codes=[["a"]], **GREEDY)


def test_pictures_of_another_size_name_the_right_one(model: TokenFlowForConditionalGeneration):
    with pytest.raises(ValueError, match="resize them to 32 pixels; the tokenizer by itself also takes scales"):
        model.get_image_features(pictures(tiny_config(), 1, size=64))


def test_the_encoder_of_images_is_the_tokenizer():
    model, other = tiny_understanding(), tiny_model(seed=1)
    for part in (model, model.model):
        assert part.get_encoder(modality="image") is model.model.tokenizer
        assert part.get_encoder() is part
    model.set_encoder(other, modality="image")
    assert model.model.tokenizer is other


def test_half_precision_keeps_the_codebook(tmp_path: Path, model: TokenFlowForConditionalGeneration):
    model.save_pretrained(tmp_path)
    half = TokenFlowForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.model.tokenizer.quantizer.codebook.pixel.dtype == torch.float32
    inputs = batch(sequence([3], "image", [5, 6]))
    assert half(**inputs, pixel_values=images(1)).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("vocabulary", [IMAGE_TOKEN_ID, UNDERSTANDING_VOCABULARY])
def test_the_places_of_pictures_need_no_embedding(vocabulary: int):
    model = tiny_understanding(text_config={"vocab_size": vocabulary})
    inputs = batch(sequence([3], "image", [5, 6]))
    assert model.generate(**inputs, pixel_values=images(1), **GREEDY).shape == (1, 24)


def test_embeddings_in_place_of_ids(model: TokenFlowForConditionalGeneration):
    inputs, pixels = batch(sequence([3], "image", [5, 6])), images(1)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    logits = model(inputs_embeds=embeds, pixel_values=pixels).logits
    torch.testing.assert_close(logits, model(**inputs, pixel_values=pixels).logits)
    unnamed = tiny_understanding(text_config={"vocab_size": IMAGE_TOKEN_ID})
    with pytest.raises(ValueError, match="lies outside of the vocabulary.*pass input_ids"):
        unnamed(inputs_embeds=embeds, pixel_values=pixels)


def test_compiled_without_breaks(compiled: Any, model: TokenFlowForConditionalGeneration):
    inputs = {**batch(sequence([3], "image", [5, 6])), "image_codes": torch.randint(0, 48, (1, 21))}
    with torch.no_grad():
        torch.testing.assert_close(compiled(model, "eager")(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixel_values": images(2)}, "16 image tokens, but the pictures given have 32 features, 16 each"),
        ({"pixel_values": images(1), "image_codes": torch.zeros(1, 21).long()}, "one of pixel_values, image_codes"),
        ({"image_codes": torch.zeros(1, 5).long()}, r"shape \(num_images, 21\), all scales of each; got \(1, 5\)"),
        ({"image_codes": torch.full((1, 21), 48)}, r"codes must lie in \[0, 48\)"),
        ({"pixel_values": torch.zeros(1, 3, 32, 16)}, r"shape \(batch, 3, size, size\)"),
        ({"pixel_values": torch.full((1, 3, 32, 32), torch.nan)}, "finite"),
        ({"inputs_embeds": torch.zeros(1, 18, 32)}, "exactly one of input_ids or inputs_embeds"),
    ],
)
def test_bad_input(model: TokenFlowForConditionalGeneration, arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        model(**batch(sequence([3], "image", [5])), **arguments)


def test_no_picture_for_a_place(model: TokenFlowForConditionalGeneration):
    inputs = batch(sequence([3], "image", [5]))
    with pytest.raises(ValueError, match="16 image tokens, but no picture is given"):
        model.generate(**inputs, **GREEDY)
    with pytest.raises(ValueError, match="one of pixel_values and image_codes"):
        model.generate(**inputs, pixel_values=images(1), image_codes=torch.zeros(1, 21).long(), **GREEDY)
    with pytest.raises(ValueError, match="either pixel_values or image_codes"):
        model.get_image_features()


def test_the_tokenizer_inside_can_be_loaded_alone(
    tmp_path: Path, model: TokenFlowForConditionalGeneration, transformers_log: list[str]
):
    model.save_pretrained(tmp_path / "whole")
    tokenizer, report = TokenFlowModel.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not any(report.values())
    assert_same_tensors(model.model.tokenizer, tokenizer)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert load_file(tmp_path / "tokenizer" / "model.safetensors").keys() == tokenizer.state_dict().keys()
    assert_same_tensors(tokenizer, TokenFlowModel.from_pretrained(tmp_path / "tokenizer"))
    assert not transformers_log
