# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The diffusers pipeline."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_model, tiny_text_to_image
from transformers import pipeline

import transformers_tokenflow
from transformers_tokenflow import TokenFlowForTextToImage, TokenFlowProcessor

diffusers = pytest.importorskip("diffusers")
from transformers_tokenflow import TokenFlowPipeline  # noqa: E402

MODULE = Path(transformers_tokenflow.__file__).parent / "pipeline_tokenflow_diffusers.py"
PROMPTS = ["a red apple", "sun"]
LENGTH = 21


@pytest.fixture(scope="module")
def parts() -> tuple[TokenFlowForTextToImage, TokenFlowProcessor]:
    model, processor = tiny_text_to_image()
    model.generation_config.top_k, model.generation_config.top_p = [40, 10], [0.9, 0.0]
    return model, processor


@pytest.fixture(scope="module")
def pipe(parts) -> TokenFlowPipeline:
    pipe = TokenFlowPipeline(*parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("diffusers")
    pipe.save_pretrained(path)
    return path


def test_other_models_are_refused(parts):
    with pytest.raises(ValueError, match="takes a generator, .* got a model of type 'tokenflow'"):
        TokenFlowPipeline(tiny_model(), parts[1])


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(pipe: TokenFlowPipeline, *args, seeds=(0,), **options):
    return pipe(*args, generator=seeded(*seeds), **{"output_type": "latent", **options}).images


class TestOutputs:
    @pytest.mark.parametrize("count", [1, 2])
    def test_output_types(self, pipe, count):
        options = {"num_images_per_prompt": count, "seeds": range(2 * count)}
        pictures = draw(pipe, PROMPTS, output_type="pil", **options)
        assert len(pictures) == 2 * count and all(isinstance(picture, Image.Image) for picture in pictures)
        array = draw(pipe, PROMPTS, output_type="np", **options)
        assert isinstance(array, np.ndarray) and array.shape == (2 * count, 32, 32, 3)
        tensor = draw(pipe, PROMPTS, output_type="pt", **options)
        assert tensor.shape == (2 * count, 3, 32, 32) and tensor.min() >= 0 and tensor.max() <= 1
        assert draw(pipe, PROMPTS, **options).shape == (2 * count, LENGTH)

    def test_tuple_and_output(self, pipe):
        (pictures,) = pipe("sun", return_dict=False)
        assert len(pictures) == 1 and pictures[0].size == (32, 32)
        assert isinstance(pipe("sun"), diffusers.ImagePipelineOutput) and isinstance(pipe("sun")[0], list)

    def test_prompts_of_unequal_length(self, pipe):
        batch = draw(pipe, [*PROMPTS, "a" * 30], seeds=(0, 1, 2), output_type="pt")
        for index, prompt in enumerate([*PROMPTS, "a" * 30]):
            assert torch.equal(batch[index], draw(pipe, prompt, seeds=(index,), output_type="pt")[0])

    def test_the_same_as_the_other_pipeline(self, pipe):
        painter = pipeline("text-to-image", model=pipe.model, processor=pipe.processor, device="cpu")
        options = {"negative_prompt": "blurry", "guidance_scale": 3.0, "num_images_per_prompt": 2, "temperature": 1.3}
        expected = painter(PROMPTS, seed=5, output_type="latent", **options)
        assert torch.equal(draw(pipe, PROMPTS, seeds=range(5, 9), **options), torch.cat(expected))
        assert torch.equal(pipe(PROMPTS, seed=5, output_type="latent", **options).images, torch.cat(expected))

    def test_one_generator(self, pipe):
        one, again = (pipe("sun", generator=seeded(3)[0], output_type="latent").images for _ in range(2))
        assert torch.equal(one, again)

    def test_guidance(self, pipe):
        plain = draw(pipe, "sun", guidance_scale=0.0)
        assert torch.equal(plain, draw(pipe, "sun", guidance_scale=0.0, negative_prompt="blurry"))
        assert not torch.equal(plain, draw(pipe, "sun", guidance_scale=7.5))


class TestGivenPictures:
    def test_image_and_mask(self, pipe):
        photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
        pixel_values = pipe.processor(images=photo, return_tensors="pt").pixel_values
        given = pipe.model.tokenizer.encode(pixel_values).codes
        kept = draw(pipe, PROMPTS, seeds=(0, 1), image=photo, keep_scales=2)
        assert torch.equal(kept[:, :5], given[:, :5].expand(2, -1))
        mask = Image.new("L", (60, 40))
        mask.paste(255, (30, 0, 60, 40))
        masked = draw(pipe, "sun", codes=given, mask=mask)
        before, after = given[0, 5:].view(4, 4), masked[0, 5:].view(4, 4)
        assert torch.equal(before[:, :2], after[:, :2]) and not torch.equal(before[:, 2:], after[:, 2:])
        assert torch.equal(masked, draw(pipe, "sun", image=photo, mask=mask))

    def test_best_of(self, pipe):
        calls = []

        def scorer(features, prompts):
            calls.append(prompts)
            return features.mean(dim=(1, 2))

        assert draw(pipe, PROMPTS, seeds=(0, 1), best_of=2, scorer=scorer).shape == (2, LENGTH)
        assert calls == [["a red apple"] * 2 + ["sun"] * 2]


class TestCallbacks:
    def test_what_they_are_given(self, pipe):
        seen = []

        def callback(given_pipe, index, side, tensors):
            assert given_pipe is pipe
            seen.append((index, side, tensors))

        final = draw(pipe, "sun", callback_on_step_end=callback)
        assert [(index, side, list(tensors)) for index, side, tensors in seen] == [
            (0, 1, ["codes"]),
            (1, 2, ["codes"]),
            (2, 4, ["codes"]),
        ]
        assert [tensors["codes"].shape for _, _, tensors in seen] == [(1, 1), (1, 5), (1, LENGTH)]
        assert torch.equal(seen[-1][2]["codes"], final)
        assert pipe.decode(seen[0][2]["codes"])[0].size == (32, 32)
        assert pipe.num_timesteps == 3

    @pytest.mark.parametrize("name", ["callback_on_step_end", "callback_on_scale_end"])
    def test_callbacks_may_end_the_drawing(self, pipe, name):
        def end_by_attribute(pipe, index, side, tensors):
            pipe._interrupt = index == 1

        ends = {"callback_on_step_end": end_by_attribute, "callback_on_scale_end": lambda index, codes: index != 1}
        whole = draw(pipe, "sun")
        assert not pipe.interrupt
        assert torch.equal(draw(pipe, "sun", **{name: ends[name]}), whole[:, :5])
        assert pipe.interrupt
        (picture,) = draw(pipe, "sun", output_type="pil", **{name: ends[name]})
        assert picture.tobytes() == pipe.decode(whole[:, :5])[0].tobytes()
        assert torch.equal(draw(pipe, "sun"), whole)

    def test_callbacks_of_diffusers(self, pipe):
        seen = []

        class Recorder(diffusers.callbacks.PipelineCallback):
            tensor_inputs = ["codes", "pixel_values"]

            def callback_fn(self, pipeline, index, side, tensors):
                seen.append(list(tensors))
                return tensors

        pipe("sun", callback_on_step_end=diffusers.callbacks.MultiPipelineCallbacks([Recorder()]))
        pipe("sun", callback_on_step_end=Recorder())
        assert seen == [["codes", "pixel_values"]] * 6

    def test_pixels(self, pipe):
        seen = []
        pixels = draw(
            pipe,
            "sun",
            output_type="pt",
            callback_on_step_end=lambda *args: seen.append(args[-1]),
            callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs,
        )
        assert all(set(tensors) == {"codes", "pixel_values"} for tensors in seen)
        assert torch.equal(pipe.processor.postprocess(seen[-1]["pixel_values"], "pt"), pixels)

    def test_no_tensors(self, pipe):
        seen = []
        draw(pipe, "sun", callback_on_step_end=lambda *a: seen.append(a[-1]), callback_on_step_end_tensor_inputs=None)
        assert seen and not any(seen)

    def test_progress_bar(self, parts, capsys, monkeypatch):
        monkeypatch.setenv("TQDM_DISABLE", "")
        pipe = TokenFlowPipeline(*parts)
        pipe.set_progress_bar_config(disable=False)
        pipe("sun")
        assert "3/3" in capsys.readouterr().err
        pipe.set_progress_bar_config(disable=True)
        pipe("sun")
        assert not capsys.readouterr().err


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"output_type": "jpg"}, "output_type is one of"),
            ({"callback_on_step_end_tensor_inputs": ["latents"]}, "can be given codes and pixel_values; got latents"),
            ({"image": Image.new("RGB", (9, 9))}, "nothing of the picture would be kept"),
            ({"image": Image.new("RGB", (9, 9)), "codes": torch.zeros(1, LENGTH)}, "image or codes, not both"),
            ({"mask": np.ones((4, 4))}, "pass its `codes`"),
            ({"generator": seeded(1)}, "a generator for each of 2 pictures; got 1"),
            ({"negative_prompt": ["a"] * 3}, "one negative prompt, or one for each of 2; got 3"),
            ({"num_inference_steps": 2}, "generate does not take num_inference_steps"),
            ({"best_of": 2}, "pass a `scorer`"),
        ],
    )
    def test_options(self, pipe, options, message):
        with pytest.raises(ValueError, match=message):
            pipe(PROMPTS, **options)

    def test_no_prompt(self, pipe):
        with pytest.raises(ValueError, match="must be a string"):
            pipe(None)


class TestPlacement:
    def test_to(self, parts):
        model, processor = tiny_text_to_image()
        pipe = TokenFlowPipeline(model, processor)
        entries = model.tokenizer.quantizer.codebook.semantic.clone()
        assert pipe.to(torch.bfloat16) is pipe and pipe.dtype == torch.bfloat16
        codebook = model.tokenizer.quantizer.codebook
        assert codebook.semantic.dtype == torch.float32 and torch.equal(codebook.semantic, entries)
        assert pipe("sun", output_type="np").images.dtype == np.float32
        assert pipe.to("cpu", torch.float32).dtype == torch.float32 and pipe.device.type == "cpu"

    def test_model_cpu_offload(self, parts, monkeypatch):
        """`generate` and `decode` are no `forward`: the hook that brings a model to its device is called by hand."""
        pytest.importorskip("accelerate")
        pipe = TokenFlowPipeline(*parts)
        expected = draw(pipe, "sun", output_type="pt")
        pipe.enable_model_cpu_offload(device="cpu")
        hook, moves = type(pipe.model._hf_hook), []
        pre_forward, offload = hook.pre_forward, pipe.enable_model_cpu_offload
        monkeypatch.setattr(hook, "pre_forward", lambda *args: moves.append("on") or pre_forward(*args))
        monkeypatch.setattr(
            pipe, "enable_model_cpu_offload", lambda **options: moves.append("off") or offload(**options)
        )
        assert torch.equal(draw(pipe, "sun", output_type="pt"), expected)
        assert moves[0] == "on" and moves[-1] == "off"
        pipe.decode(torch.zeros(1, LENGTH, dtype=torch.long))
        assert moves[-1] == "on"
        pipe.remove_all_hooks()

    def test_components(self, pipe, parts):
        assert pipe.components == dict(zip(("model", "processor"), parts, strict=True))
        again = TokenFlowPipeline(**pipe.components)
        assert torch.equal(draw(again, "sun"), draw(pipe, "sun"))
        assert type(TokenFlowPipeline.from_pipe(pipe)) is TokenFlowPipeline


class TestSaving:
    def test_one_folder_for_both_libraries(self, pipe, folder):
        """All that transformers writes, in the root and once, and two files more."""
        names = {path.name for path in folder.iterdir()}
        assert {"model_index.json", MODULE.name, "config.json", "processor_config.json"} <= names
        assert [path.name for path in folder.rglob("*.safetensors")] == ["model.safetensors"]
        index = json.loads((folder / "model_index.json").read_text())
        assert index == {
            "_class_name": ["pipeline_tokenflow_diffusers", "TokenFlowPipeline"],
            "_diffusers_version": diffusers.__version__,
            "model": [None, None],
            "processor": [None, None],
        }
        painter = pipeline("text-to-image", model=str(folder), device="cpu")
        assert torch.equal(painter("sun", seed=0, output_type="latent"), draw(pipe, "sun")[0])

    def test_plain_loading(self, pipe, folder):
        """The inherited method would ask to trust code that is installed."""
        loaded = TokenFlowPipeline.from_pretrained(folder)
        assert type(loaded) is TokenFlowPipeline and type(loaded.model) is TokenFlowForTextToImage
        assert not loaded.model.training and loaded.name_or_path == str(folder)
        assert torch.equal(draw(loaded, "sun"), draw(pipe, "sun"))

    def test_folders_of_transformers(self, parts, tmp_path):
        """They need neither an index nor this pipeline's file, if the package is there."""
        for part in parts:
            part.save_pretrained(tmp_path)
        assert draw(TokenFlowPipeline.from_pretrained(str(tmp_path)), "sun").shape == (1, LENGTH)

    def test_as_a_custom_pipeline(self, pipe, folder):
        with pytest.raises(ValueError, match="trust_remote_code"):
            diffusers.DiffusionPipeline.from_pretrained(folder)
        loaded = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
        assert type(loaded).__name__ == "TokenFlowPipeline" and type(loaded) is not TokenFlowPipeline
        assert torch.equal(draw(loaded, "sun"), draw(pipe, "sun"))
        named = diffusers.DiffusionPipeline.from_pretrained(
            folder, custom_pipeline=str(MODULE), trust_remote_code=True, model=pipe.model, processor=pipe.processor
        )
        assert named.model is pipe.model and named.processor is pipe.processor

    def test_passed_components(self, parts, folder):
        loaded = TokenFlowPipeline.from_pretrained(folder, model=parts[0])
        assert loaded.model is parts[0] and loaded.processor is not parts[1]
        empty = TokenFlowPipeline.from_pretrained(folder, model=None)
        assert empty.model is None and isinstance(empty.processor, TokenFlowProcessor)

    @pytest.mark.parametrize(
        ("dtype", "expected"),
        [
            ({"torch_dtype": torch.bfloat16}, torch.bfloat16),
            ({"dtype": torch.float16}, torch.float16),
            ({"torch_dtype": {"model": torch.bfloat16, "default": torch.float16}}, torch.bfloat16),
            ({"torch_dtype": {"default": torch.float16}}, torch.float16),
            ({"torch_dtype": {"other": torch.float16}}, torch.float32),
            ({"low_cpu_mem_usage": True, "use_safetensors": True}, torch.float32),
            ({"safety_checker": None}, torch.float32),
        ],
    )
    def test_precision(self, folder, dtype, expected):
        assert TokenFlowPipeline.from_pretrained(folder, **dtype).dtype == expected

    def test_variants(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path, variant="fp16", safe_serialization=False, max_shard_size="1GB")
        assert (tmp_path / "model.fp16.safetensors").is_file()
        assert torch.equal(draw(TokenFlowPipeline.from_pretrained(tmp_path, variant="fp16"), "sun"), draw(pipe, "sun"))
        with pytest.raises(ValueError, match="variant=bf16`, but no such modeling files"):
            TokenFlowPipeline.from_pretrained(tmp_path, variant="bf16")

    def test_into_its_own_folder(self, folder):
        loaded = TokenFlowPipeline.from_pretrained(folder)
        loaded.save_pretrained(folder)
        assert type(TokenFlowPipeline.from_pretrained(folder)) is TokenFlowPipeline


def test_the_module_stands_alone():
    """diffusers copies it out of a folder without what it imports from there."""
    for node in ast.walk(ast.parse(MODULE.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and not node.module.startswith("transformers_tokenflow")
