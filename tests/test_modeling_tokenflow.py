# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The model, and what the common tests of transformers ask of one like it."""

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from model_checks import assert_same_tensors, tensors
from safetensors import safe_open
from tiny_models import ALL_KINDS, pictures, teacher_features, tiny_config, tiny_model
from torch.nn import functional as F
from transformers import AutoModel, pipeline
from transformers.modeling_layers import GradientCheckpointingLayer

from transformers_tokenflow import TokenFlowConfig, TokenFlowImageProcessor, TokenFlowModel
from transformers_tokenflow.modeling_tokenflow import resize_pixels, semantic_loss

every_kind = pytest.mark.parametrize("kind", ALL_KINDS)
WITH_ATTENTION = ["clip", "siglip", "vit"]


def assert_same_outputs(model: TokenFlowModel, other: TokenFlowModel, tolerance: float = 0.0):
    with torch.no_grad():
        expected, output = model(pictures(model.config)), other(pictures(model.config))
    assert torch.equal(expected.codes, output.codes)
    for name in ("quantized", "pixel_values", "semantic_features"):
        if expected.get(name) is not None:
            torch.testing.assert_close(output[name], expected[name], atol=tolerance, rtol=tolerance)


# ---- Encoding and decoding ----


@pytest.mark.parametrize("scales", [np.array([1, 4]), [1.0, 4.0]])
def test_scales_are_whole_numbers(scales: Any):
    model = tiny_model()
    with pytest.raises(ValueError, match="scales are a list of whole numbers; got"):
        model.encode(pictures(model.config), scales)


@every_kind
def test_encode_and_decode(kind: str):
    model = tiny_model(kind)
    config = model.config
    with torch.no_grad():
        encoded = model.encode(pictures(config))
        decoded = model.decode(encoded.codes)
    assert encoded.codes.shape == (2, 21) and encoded.codes.dtype == torch.long
    assert encoded.quantized.shape == (2, config.quantized_dim, 4, 4)
    assert [tuple(part.shape) for part in encoded.codes_per_scale] == [(2, 1, 1), (2, 2, 2), (2, 4, 4)]
    assert torch.equal(torch.cat([part.flatten(1) for part in encoded.codes_per_scale], dim=1), encoded.codes)
    storage = encoded.codes.untyped_storage().data_ptr()
    assert all(part.untyped_storage().data_ptr() == storage for part in encoded.codes_per_scale)
    assert decoded.pixel_values.shape == (2, 3, config.image_size, config.image_size)
    if config.semantic_codebook_dim > 0:
        assert decoded.semantic_features.shape == (2, 16, config.teacher_hidden_size)
    else:
        assert decoded.semantic_features is None


@every_kind
def test_forward_is_encode_and_decode(kind: str):
    model = tiny_model(kind)
    with torch.no_grad():
        output = model(pictures(model.config))
        encoded = model.encode(pictures(model.config))
        decoded = model.decode(encoded.codes)
    assert torch.equal(output.codes, encoded.codes) and torch.equal(output.quantized, encoded.quantized)
    assert torch.equal(output.pixel_values, decoded.pixel_values)
    if decoded.semantic_features is not None:
        assert torch.equal(output.semantic_features, decoded.semantic_features)
    assert output.loss is None and "pixel_loss" not in output


@pytest.mark.parametrize("kind", ["siglip", "pixel"])
def test_a_prefix_decodes_to_what_was_accumulated(kind: str):
    model = tiny_model(kind)
    with torch.no_grad():
        codes = model.encode(pictures(model.config)).codes
        features = model.quantizer.codes_to_features(codes)
        for index, length in enumerate((1, 5, 21)):
            decoded, expected = model.decode(codes[:, :length]), model.decode_features(features[:, index])
            assert torch.equal(decoded.pixel_values, expected.pixel_values)


@every_kind
def test_a_batch_equals_its_items(kind: str):
    model = tiny_model(kind)
    pixel_values = pictures(model.config, batch=3)
    with torch.no_grad():
        together = model(pixel_values)
        for index in range(3):
            alone = model(pixel_values[index : index + 1])
            assert torch.equal(alone.codes[0], together.codes[index])
            torch.testing.assert_close(alone.pixel_values[0], together.pixel_values[index], atol=1e-5, rtol=1e-5)


@every_kind
def test_evaluation_is_deterministic(kind: str):
    model = tiny_model(kind)
    assert_same_outputs(model, model)


# ---- Other resolutions and scale lists ----


@pytest.mark.parametrize("kind", ["clip", "siglip", "vit", "pixel"])
def test_another_resolution(kind: str):
    model = tiny_model(kind)
    pixel_values, scales = pictures(model.config, size=48), [1, 2, 4, 6]
    with torch.no_grad():
        encoded = model.encode(pixel_values, scales=scales)
        decoded = model.decode(encoded.codes, scales=scales)
        output = model(pixel_values, scales=scales, return_loss=True)
    assert encoded.codes.shape == (2, 57)
    assert decoded.pixel_values.shape == output.pixel_values.shape == (2, 3, 48, 48)
    assert torch.equal(output.codes, encoded.codes)


def test_pictures_that_patches_do_not_cover_come_back_in_their_size():
    """As SigLIP's 384 pixels and patches of 14: 34 pixels give a grid of 4, and the pixel encoder sees 32."""
    model = tiny_model("siglip", image_size=34)
    pixel_values = pictures(model.config)
    seen = []
    model.pixel_encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        output = model(pixel_values, return_loss=True)
        assert model.decode(output.codes).pixel_values.shape == (2, 3, 34, 34)
    expected = F.interpolate(pixel_values, size=(32, 32), mode="bicubic", align_corners=False, antialias=False)
    assert torch.equal(seen[0], expected)
    assert output.pixel_values.shape == pixel_values.shape


def test_resizing_to_the_same_size_changes_nothing():
    pixel_values = torch.rand(1, 3, 8, 8)
    assert resize_pixels(pixel_values, 8) is pixel_values


def test_a_grid_that_is_not_the_last_scale():
    model = tiny_model("clip")
    with pytest.raises(ValueError, match=r"48 pixels give a grid of 6.*end at 4.*32 pixels.*scales=\[..., 6\]"):
        model.encode(pictures(model.config, size=48))
    with pytest.raises(ValueError, match="grid of 4"):
        model.encode(pictures(model.config), scales=[1, 2])


def test_a_scale_can_be_dropped_in_training():
    model = tiny_model("clip").train()
    for scales in ([1, 4], [1, 2]):
        output = model(pictures(model.config), scales=scales, return_loss=True)
        assert output.quantized.shape[-1] == 4 and output.pixel_values.shape[-1] == 32
        assert output.codes.shape[1] == sum(scale**2 for scale in scales)


def test_one_scale():
    model = tiny_model("siglip", scales=[4])
    with torch.no_grad():
        codes = model.encode(pictures(model.config)).codes
        assert codes.shape == (2, 16) and model.decode(codes).pixel_values.shape == (2, 3, 32, 32)


# ---- Errors ----


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 4, 32, 32), (2, 3, 32, 40), (3, 32, 32), (2, 32, 32, 3)])
def test_pixels_of_another_shape(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"\(batch, 3, size, size\); got " + str(shape).replace("(", r"\(")[:-1]):
        tiny_model("clip").encode(torch.zeros(shape))


def test_pictures_that_patches_do_not_fill():
    model = tiny_model("pixel", pixel_patch_size=2)
    size = model.config.image_size + 1
    with pytest.raises(ValueError, match=f"a multiple of 2 pixels a side; got {size}"):
        model.encode(torch.zeros(1, 3, size, size))


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_pictures_smaller_than_a_token(kind: str):
    model = tiny_model(kind)
    smallest = model.config.image_size // 4
    with pytest.raises(ValueError, match=f"at least {smallest} pixels a side, a token's; got {smallest - 1}"):
        model.encode(torch.zeros(1, 3, smallest - 1, smallest - 1))
    assert model.encode(torch.zeros(1, 3, smallest, smallest), scales=[1]).codes.shape == (1, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_no_numbers(value: float):
    model = tiny_model("clip")
    pixel_values = pictures(model.config)
    pixel_values[0, 0, 0, 0] = value
    for method in (model.encode, model.forward):
        with pytest.raises(ValueError, match="NaN"):
            method(pixel_values)


def test_pixels_that_are_no_tensor():
    pixel_values = torch.zeros(2, 3, 32, 32)
    for given in (pixel_values.numpy(), list(pixel_values), None):
        with pytest.raises(ValueError, match="as a tensor .*return_tensors='pt'; got " + type(given).__name__):
            tiny_model("clip").encode(given)


def test_pixels_that_are_bytes():
    with pytest.raises(ValueError, match="torch.uint8"):
        tiny_model("clip").encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("code", [-1, 48])
def test_codes_out_of_range(code: int):
    codes = torch.zeros(1, 21, dtype=torch.long)
    codes[0, 3] = code
    with pytest.raises(ValueError, match=rf"\[0, 48\); got .*{code}"):
        tiny_model("clip").decode(codes)


def test_no_pictures():
    model = tiny_model("clip")
    with pytest.raises(ValueError, match=r"at least one picture; got none, of shape \(0, 21\)"):
        model.decode(torch.zeros(0, 21, dtype=torch.long))
    with pytest.raises(ValueError, match=r"got \(0, 3, 32, 32\)"):
        model.encode(torch.zeros(0, 3, 32, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_codes_that_are_no_integers(dtype: torch.dtype):
    with pytest.raises(ValueError, match=str(dtype)):
        tiny_model("clip").decode(torch.zeros(1, 21, dtype=dtype))


@pytest.mark.parametrize("shape", [(1, 4), (1, 22), (21,), (1, 0)])
def test_codes_that_end_inside_a_scale(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"\[1, 5, 21\]"):
        tiny_model("clip").decode(torch.zeros(shape, dtype=torch.long))


# ---- Losses ----


@every_kind
def test_losses(kind: str):
    model = tiny_model(kind, entropy_weight=0.1).train()
    target = teacher_features(model.config)
    output = model(pictures(model.config), teacher_features=target, return_loss=True)
    names = [name for name in output if name.endswith("_loss")]
    expected = ["pixel_loss", "codebook_loss", "commitment_loss", "entropy_loss"]
    assert names == expected + (["semantic_loss"] if target is not None else [])
    assert next(iter(output)) == "loss"
    torch.testing.assert_close(output.loss, sum(output[name] for name in names))
    torch.testing.assert_close(output.pixel_loss, F.mse_loss(output.pixel_values, pictures(model.config)))
    if target is not None:
        features, target = (F.normalize(part, dim=-1) for part in (output.semantic_features, target))
        torch.testing.assert_close(output.semantic_loss, (features - target).square().sum(-1).mean() / 2)


def test_targets_of_another_shape():
    model = tiny_model("clip")
    with pytest.raises(ValueError, match=r"\(2, 9, 12\).*\(2, 16, 12\)"):
        model(pictures(model.config), teacher_features=torch.zeros(2, 9, 12), return_loss=True)
    with pytest.raises(ValueError, match="None"):
        semantic_loss(None, torch.zeros(2, 16, 12))


@every_kind
def test_every_trainable_parameter_gets_a_gradient(kind: str, tmp_path: Path):
    tiny_model(kind).save_pretrained(tmp_path)
    model = TokenFlowModel.from_pretrained(tmp_path).train()
    pixel_values = pictures(model.config)
    model(pixel_values, teacher_features=teacher_features(model.config), return_loss=True).loss.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert bool(frozen) == (kind == "siglip")


@pytest.mark.parametrize("use_reentrant", [False, True])
@every_kind
def test_gradient_checkpointing_changes_no_gradient(kind: str, use_reentrant: bool):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(kind).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
            assert layers and all(layer.gradient_checkpointing for layer in layers)
            if kind == "vitamin":
                assert model.semantic_encoder.model.timm_model.grad_checkpointing
        loss = model(pictures(model.config), teacher_features=teacher_features(model.config), return_loss=True).loss
        loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-5)
    model.gradient_checkpointing_disable()
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    if kind == "vitamin":
        assert not model.semantic_encoder.model.timm_model.grad_checkpointing


# ---- Initialisation, loading and saving ----


@every_kind
def test_all_missing_weights_are_initialized(kind: str, seeded_initialization: None):
    built = TokenFlowModel(tiny_config(kind))
    loaded = TokenFlowModel.from_pretrained(None, config=tiny_config(kind), state_dict={})
    assert not any(value.is_meta for value in tensors(loaded).values())
    assert_same_tensors(built, loaded)


@every_kind
def test_everything_is_initialized_anew_after_the_meta_device(kind: str, seeded_initialization: None):
    with torch.device("meta"):
        model = TokenFlowModel(tiny_config(kind))
    assert all(value.is_meta for value in tensors(model).values())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for value in tensors(model).values():
            value.fill_(77)
    for part in [*model.modules(), *tensors(model).values()]:
        part._is_hf_initialized = False
    model.initialize_weights()
    assert_same_tensors(model, TokenFlowModel(tiny_config(kind)))


@every_kind
def test_nothing_but_parameters_and_buffers_holds_tensors(kind: str):
    model = tiny_model(kind)
    with torch.no_grad():
        model(pictures(model.config))
    held = [
        (name, attribute)
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    ]
    assert not held


def test_initial_codebooks_are_normalised():
    codebook = tiny_model("clip").quantizer.codebook
    for entries in codebook.parameters():
        torch.testing.assert_close(entries.norm(dim=-1), torch.ones(48))


@every_kind
def test_saving_and_loading(kind: str, tmp_path: Path, transformers_log: list[str]):
    model = tiny_model(kind)
    model.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir() if path.suffix != ".py"}
    assert files == {"config.json", "model.safetensors"}
    for loaded in (TokenFlowModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is TokenFlowModel and not loaded.training
        assert_same_tensors(model, loaded)
        assert_same_outputs(model, loaded)
    loaded.save_pretrained(tmp_path / "again")
    names = [set(safe_open(folder / "model.safetensors", "pt").keys()) for folder in (tmp_path, tmp_path / "again")]
    assert names[0] == names[1]
    assert not transformers_log


@pytest.mark.parametrize("argument", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precisions(dtype: torch.dtype, argument: str, tmp_path: Path):
    tiny_model("siglip").save_pretrained(tmp_path / "full")
    model = TokenFlowModel.from_pretrained(tmp_path / "full", **{argument: dtype})
    assert model.dtype == model.config.dtype == dtype
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if "codebook" in name else dtype), name
    model.save_pretrained(tmp_path / "low")
    again = TokenFlowModel.from_pretrained(tmp_path / "low", dtype="auto")
    assert again.dtype == dtype
    assert_same_tensors(model, again)
    full = TokenFlowModel.from_pretrained(tmp_path / "low", dtype=torch.float32)
    assert {parameter.dtype for parameter in full.parameters()} == {torch.float32}


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_running_in_half_precision(kind: str, dtype: torch.dtype, tmp_path: Path):
    tiny_model(kind).save_pretrained(tmp_path)
    model = TokenFlowModel.from_pretrained(tmp_path, dtype=dtype)
    with torch.no_grad():
        encoded = model.encode(pictures(model.config))  # fp32 pictures are cast
        decoded = model.decode(encoded.codes)
        output = model(pictures(model.config).to(dtype), return_loss=True)
    assert encoded.quantized.dtype == decoded.pixel_values.dtype == output.pixel_values.dtype == dtype
    assert decoded.pixel_values.isfinite().all() and output.loss.isfinite()
    if decoded.semantic_features is not None:
        assert decoded.semantic_features.dtype == dtype


@pytest.mark.parametrize("kind", ["siglip", "vit"])
def test_training_in_autocast(kind: str):
    model = tiny_model(kind).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(pictures(model.config), teacher_features=teacher_features(model.config), return_loss=True)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_sizes_that_changed(tmp_path: Path):
    """The enhanced decoder starts from a model that has the rest."""
    base = tiny_model("clip")
    base.save_pretrained(tmp_path)
    config = TokenFlowConfig.from_pretrained(tmp_path, decoder_channels=16)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        TokenFlowModel.from_pretrained(tmp_path, config=config)
    model = TokenFlowModel.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True)
    assert_same_tensors(base.semantic_encoder, model.semantic_encoder)
    assert_same_tensors(base.quantizer, model.quantizer)
    assert model.pixel_decoder.conv_out.in_channels == 16
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@every_kind
def test_copies(kind: str):
    model = tiny_model(kind)
    with torch.no_grad():
        model(pictures(model.config))
    assert_same_outputs(model, copy.deepcopy(model))


@every_kind
def test_sub_models_share_the_configuration(kind: str):
    model = tiny_model(kind)
    if model.semantic_encoder is not None:
        assert model.semantic_encoder.model.config is model.config.semantic_config
        assert model.semantic_decoder.config is model.config.semantic_decoder_config


def test_attributes():
    model = tiny_model("clip")
    assert list(inspect.signature(model.forward).parameters)[0] == model.main_input_name == "pixel_values"
    assert model.input_modalities == ("image",)
    assert not model.can_generate() and not model.accepts_loss_kwargs
    assert type(AutoModel.from_config(tiny_config("clip"))) is TokenFlowModel
    names = {type(module).__name__ for module in model.modules()}
    assert {"TokenFlowCLIPVisionEmbeddings", "CLIPEncoderLayer", "TokenFlowSemanticDecoder"} <= model._no_split_modules
    assert names & model._no_split_modules
    assert any("codebook" in name for name, _ in model.named_modules())


@every_kind
def test_input_embeddings(kind: str):
    model = tiny_model(kind)
    embeddings = model.get_input_embeddings()
    assert any(module is embeddings for module in model.modules())
    outputs = []
    model.requires_grad_(False).enable_input_require_grads()
    embeddings.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(pictures(model.config))
    assert outputs[0].requires_grad


# ---- Outputs and attention ----


@every_kind
def test_tuples_are_the_same_as_dictionaries(kind: str):
    model = tiny_model(kind)
    arguments = {"teacher_features": teacher_features(model.config), "return_loss": True}
    with torch.no_grad():
        output = model(pictures(model.config), **arguments)
        values = model(pictures(model.config), **arguments, return_dict=False)
    assert isinstance(values, tuple) and len(values) == len(output)
    assert all(torch.equal(value, expected) for value, expected in zip(values, output.values(), strict=True))
    assert all(value is not None for value in output.values())


def test_the_pipeline_for_features_gives_quantised_ones():
    model, processor = tiny_model(), TokenFlowImageProcessor(size={"shortest_edge": 32})
    extract = pipeline("image-feature-extraction", model=model, image_processor=processor, device="cpu")
    picture = PIL.Image.new("RGB", (40, 40), "red")
    with torch.no_grad():
        expected = model.encode(**processor(images=picture, return_tensors="pt")).quantized
    assert torch.equal(extract(picture, return_tensors=True), expected)


@pytest.mark.parametrize("kind", WITH_ATTENTION)
def test_eager_equals_sdpa(kind: str, tmp_path: Path):
    tiny_model(kind).save_pretrained(tmp_path)
    models = [TokenFlowModel.from_pretrained(tmp_path, attn_implementation=name) for name in ("eager", "sdpa")]
    for model, name in zip(models, ("eager", "sdpa"), strict=True):
        parts = [model.config, model.config.semantic_config, model.config.semantic_decoder_config]
        assert [part._attn_implementation for part in parts] == [name] * 3
    assert_same_outputs(*models, tolerance=1e-5)


@pytest.mark.parametrize("kind", WITH_ATTENTION)
def test_attention_can_be_changed(kind: str, transformers_log: list[str], monkeypatch: pytest.MonkeyPatch):
    model = tiny_model(kind)
    assert model.config.semantic_decoder_config._attn_implementation == "sdpa"
    expected = tiny_model(kind)
    model.set_attn_implementation("eager")
    assert model.config.semantic_config._attn_implementation == "eager"
    assert model.config.semantic_decoder_config._attn_implementation == "eager"
    assert_same_outputs(expected, model, tolerance=1e-5)
    model.set_attn_implementation({"semantic_config": "sdpa"})
    assert model.config.semantic_config._attn_implementation == "sdpa"
    assert model.config.semantic_decoder_config._attn_implementation == "eager"
    assert not transformers_log


def test_attention_per_part():
    config = tiny_config("clip", attn_implementation={"semantic_config": "eager", "semantic_decoder_config": "sdpa"})
    model = TokenFlowModel(config)
    assert model.semantic_encoder.model.config._attn_implementation == "eager"
    assert model.semantic_decoder.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="no_such_attention"):
        model.set_attn_implementation("no_such_attention")


# ---- Compilation ----


def check_compiled(model: TokenFlowModel, compiled: Callable, backend: str, tolerance: float = 0.0, **kwargs: Any):
    pixel_values = pictures(model.config)
    encode, decode = compiled(model.encode, backend, **kwargs), compiled(model.decode, backend, **kwargs)
    with torch.no_grad():
        expected, encoded = model.encode(pixel_values), encode(pixel_values)
        assert torch.equal(encoded.codes, expected.codes)
        torch.testing.assert_close(encoded.quantized, expected.quantized, atol=tolerance, rtol=tolerance)
        for length in (21, 5):
            codes = expected.codes[:, :length]
            expected_pixels, pixels = model.decode(codes).pixel_values, decode(codes).pixel_values
            torch.testing.assert_close(pixels, expected_pixels, atol=tolerance, rtol=tolerance)


@every_kind
def test_compiles_without_graph_breaks(kind: str, compiled: Callable):
    check_compiled(tiny_model(kind), compiled, "eager")


def test_compiles_ahead_of_time(compiled: Callable):
    check_compiled(tiny_model("siglip"), compiled, "aot_eager", 1e-5)


def test_compiled_for_several_batch_sizes_and_resolutions(compiled: Callable):
    model = tiny_model("clip")
    encode = compiled(model.encode, "eager")
    with torch.no_grad():
        for batch, size, scales in ((2, 32, None), (3, 32, None), (4, 32, None), (2, 48, [1, 6]), (2, 40, [1, 5])):
            pixel_values = pictures(model.config, batch=batch, size=size)
            expected = model.encode(pixel_values, scales=scales)
            assert torch.equal(encode(pixel_values, scales=scales).codes, expected.codes)


@pytest.mark.parametrize("name", ["forward", "encode", "decode"])
def test_exported_for_any_batch_size(name: str):
    model = tiny_model()

    class Part(torch.nn.Module):
        """torch exports modules, of whose methods it takes `forward`."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(
                value for value in getattr(self.model, name)(inputs).values() if isinstance(value, torch.Tensor)
            )

    inputs = pictures(model.config, 5)
    with torch.no_grad():
        if name == "decode":
            inputs = model.encode(inputs).codes
        shapes = {"inputs": {0: torch.export.Dim.DYNAMIC}}
        exported = torch.export.export(Part(), (inputs[:2],), dynamic_shapes=shapes, strict=False)
        torch.testing.assert_close(exported.module()(inputs), Part()(inputs))


def test_compiled_training(compiled: Callable):
    models = [tiny_model("clip").train() for _ in range(2)]
    forward = compiled(models[1].forward, "aot_eager")
    arguments = {"teacher_features": teacher_features(models[0].config), "return_loss": True}
    pixel_values = pictures(models[0].config)
    losses = [models[0](pixel_values, **arguments).loss, forward(pixel_values, **arguments).loss]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses)
    for first, second in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(second.grad, first.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "pixel"])
def test_compiles_with_inductor(kind: str, compiled: Callable):
    check_compiled(tiny_model(kind), compiled, "inductor", 1e-4)


# ---- Placement ----


@every_kind
def test_offloaded_to_memory(kind: str):
    expected, model = tiny_model(kind), tiny_model(kind)
    cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)
    assert model.quantizer.codebook.pixel.is_meta
    assert_same_outputs(expected, model)
    check_encode_and_decode(expected, model)


@every_kind
def test_offloaded_to_disk(kind: str, tmp_path: Path):
    expected, model = tiny_model(kind), tiny_model(kind)
    disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert_same_outputs(expected, model)
    check_encode_and_decode(expected, model)


def check_encode_and_decode(expected: TokenFlowModel, model: TokenFlowModel):
    with torch.no_grad():
        codes = model.encode(pictures(model.config)).codes
        assert torch.equal(codes, expected.encode(pictures(model.config)).codes)
        assert torch.equal(model.decode(codes).pixel_values, expected.decode(codes).pixel_values)


@every_kind
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_device_map(kind: str, share: float, tmp_path: Path):
    """Split where transformers splits: part in memory, the rest on disk."""
    expected = tiny_model(kind)
    expected.save_pretrained(tmp_path / "model")
    size = sum(parameter.numel() * 4 for parameter in expected.parameters())
    model = TokenFlowModel.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": int(size * share)}, offload_folder=tmp_path / "disk"
    )
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    assert_same_outputs(expected, model)
    check_encode_and_decode(expected, model)


@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="no GPU")
@every_kind
def test_device_map_with_a_gpu(kind: str):
    from accelerate import dispatch_model

    expected, model = tiny_model(kind), tiny_model(kind)
    parts = [name for name, module in model.named_children() if module is not None]
    dispatch_model(model, {name: "cpu" if index % 2 else 0 for index, name in enumerate(parts)}, main_device=0)
    with torch.no_grad():
        codes = model.encode(pictures(model.config)).codes.cpu()
        assert (codes == expected.encode(pictures(model.config)).codes).float().mean() > 0.9
        loss = model(pictures(model.config), teacher_features=teacher_features(model.config), return_loss=True).loss
    assert loss.isfinite()
