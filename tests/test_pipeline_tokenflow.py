# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The transformers pipeline `text-to-image`."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_models import tiny_text_to_image, tiny_understanding
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModel, pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

from transformers_tokenflow import TextToImagePipeline, TokenFlowForTextToImage, TokenFlowProcessor

PROMPTS = ["a red apple", "sun", "the moon at night"]
LENGTH = 21  # 1 + 4 + 16 tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, processor = tiny_text_to_image()
    model.generation_config.top_k, model.generation_config.top_p = [40, 10], [0.9, 0.0]
    path = tmp_path_factory.mktemp("generator")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def painter(folder) -> TextToImagePipeline:
    return pipeline("text-to-image", model=str(folder), device="cpu")


def codes_of(painter: TextToImagePipeline, *args, **kwargs):
    return painter(*args, output_type="latent", **kwargs)


def photo(width: int = 32, height: int = 32, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


class TestOutputs:
    def test_a_text_gives_a_picture_and_a_list_gives_a_list(self, painter):
        assert painter("a red apple", seed=0).size == (32, 32)
        for inputs in (["sun"], PROMPTS, tuple(PROMPTS)):
            pictures = painter(inputs, seed=0)
            assert isinstance(pictures, list) and len(pictures) == len(inputs)
            assert all(isinstance(picture, Image.Image) for picture in pictures)
        assert painter([]) == []

    @pytest.mark.parametrize(
        ("output_type", "shape"), [("np", (32, 32, 3)), ("pt", (3, 32, 32)), ("latent", (LENGTH,))]
    )
    def test_output_types(self, painter, output_type, shape):
        one = painter("sun", seed=0, output_type=output_type)
        several = painter(["sun"], seed=0, output_type=output_type, num_images_per_prompt=2)
        assert isinstance(one, np.ndarray if output_type == "np" else torch.Tensor)
        assert one.shape == shape and several[0].shape == (2, *shape)
        assert (several[0][0] == one).all()

    def test_several_pictures_per_text(self, painter):
        assert len(painter("sun", num_images_per_prompt=3)) == 3
        pictures = painter(PROMPTS, num_images_per_prompt=2)
        assert [len(group) for group in pictures] == [2, 2, 2]

    @pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
    @pytest.mark.parametrize("count", [1, 2])
    def test_no_picture_gets_lost_in_batches(self, painter, batch_size, count):
        options = {"seed": 7, "num_images_per_prompt": count}
        whole = codes_of(painter, PROMPTS, batch_size=batch_size, **options)
        expected = [
            codes_of(painter, text, num_images_per_prompt=count, seed=7 + i * count) for i, text in enumerate(PROMPTS)
        ]
        assert len(whole) == 3 and all(torch.equal(one, other) for one, other in zip(whole, expected, strict=True))

    def test_what_comes_one_by_one(self, painter):
        expected = codes_of(painter, PROMPTS, seed=1)

        class Texts(Dataset):
            def __len__(self):
                return 3

            def __getitem__(self, index):
                return PROMPTS[index % 3]

        rows = KeyDataset([{"text": text} for text in PROMPTS], "text")
        for inputs in ((text for text in PROMPTS), Texts(), rows, iter(PROMPTS)):
            results = codes_of(painter, inputs, seed=1, batch_size=2)
            assert not isinstance(results, list)
            assert all(torch.equal(one, other) for one, other in zip(results, expected, strict=True))

    def test_endless_texts(self, painter):
        def texts():
            while True:
                yield "sun"

        results = iter(codes_of(painter, texts(), seed=1))
        assert torch.equal(next(results), codes_of(painter, "sun", seed=1))
        assert torch.equal(next(results), codes_of(painter, "sun", seed=2))

    def test_the_same_as_generate(self, painter):
        inputs = painter.processor.prepare_generation(PROMPTS).to("cpu")
        expected = painter.model.generate(**inputs, seed=3, num_images_per_prompt=2).codes
        assert torch.equal(torch.cat(codes_of(painter, PROMPTS, seed=3, num_images_per_prompt=2)), expected)


class TestRandomness:
    def test_picture_i_gets_seed_plus_i(self, painter):
        whole = codes_of(painter, PROMPTS, seed=5)
        for index, text in enumerate(PROMPTS):
            assert torch.equal(whole[index], codes_of(painter, text, seed=5 + index))

    @pytest.mark.parametrize(
        "seeds", [[4, 9, 4], (4, 9, 4), range(3), np.array([4, 9, 4]), torch.tensor([4, 9, 4])], ids=repr
    )
    def test_a_seed_per_text(self, painter, seeds):
        whole = codes_of(painter, PROMPTS, seed=seeds, num_images_per_prompt=2)
        for text, seed, codes in zip(PROMPTS, seeds, whole, strict=True):
            assert torch.equal(codes[1], codes_of(painter, text, seed=int(seed) + 1))

    def test_numbers_of_numpy_and_torch(self, painter):
        expected = codes_of(painter, "sun", seed=4)
        for seed in (np.int64(4), np.array(4), torch.tensor(4)):
            assert torch.equal(codes_of(painter, "sun", seed=seed), expected)

    def test_a_generator_per_picture(self, painter):
        generators = [torch.Generator().manual_seed(seed) for seed in range(6)]
        whole = codes_of(painter, PROMPTS, generator=generators, num_images_per_prompt=2, batch_size=2)
        expected = codes_of(painter, PROMPTS, seed=0, num_images_per_prompt=2)
        assert all(torch.equal(one, other) for one, other in zip(whole, expected, strict=True))

    def test_one_generator(self, painter):
        first = codes_of(painter, ["sun"] * 2, generator=torch.Generator().manual_seed(0))
        again = codes_of(painter, ["sun"] * 2, generator=torch.Generator().manual_seed(0))
        assert torch.equal(torch.stack(first), torch.stack(again)) and not torch.equal(*first)

    def test_global_generator(self, painter):
        torch.manual_seed(3)
        first = codes_of(painter, "sun")
        torch.manual_seed(3)
        assert torch.equal(first, codes_of(painter, "sun"))
        torch.manual_seed(3)
        expected = torch.rand(2)
        torch.manual_seed(3)
        painter("sun", seed=0)
        assert torch.equal(torch.rand(2), expected)


class TestSettings:
    def test_negative_prompts(self, painter):
        one, other = (codes_of(painter, "sun", seed=0, negative_prompt=text) for text in ("blurry", "text"))
        assert not torch.equal(one, other)
        pair = codes_of(painter, ["sun", "sun"], seed=[0, 0], negative_prompt=["blurry", "text"], batch_size=2)
        assert torch.equal(pair[0], one) and torch.equal(pair[1], other)
        for size in (1, 2):  # None is the processor's
            mixed = codes_of(painter, ["sun", "sun"], seed=[0, 0], negative_prompt=["blurry", None], batch_size=size)
            assert torch.equal(mixed[0], one) and torch.equal(mixed[1], codes_of(painter, "sun", seed=0))

    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_an_empty_negative_prompt_is_one(self, folder, batch_size):
        processor = TokenFlowProcessor.from_pretrained(folder, negative_prompt="blurry")
        local = pipeline("text-to-image", model=str(folder), processor=processor, device="cpu")
        options = {"seed": [0, 0], "negative_prompt": ["", None], "batch_size": batch_size}
        mixed = codes_of(local, ["sun", "sun"], **options)
        expected = [codes_of(local, "sun", seed=0, negative_prompt=text) for text in ("", "blurry")]
        assert all(torch.equal(one, other) for one, other in zip(mixed, expected, strict=True))
        assert not torch.equal(*expected)

    def test_negative_prompt_of_the_processor(self, folder):
        processor = TokenFlowProcessor.from_pretrained(folder, negative_prompt="blurry")
        local = pipeline("text-to-image", model=str(folder), processor=processor, device="cpu")
        assert torch.equal(codes_of(local, "sun", seed=0), codes_of(local, "sun", seed=0, negative_prompt="blurry"))
        assert not torch.equal(codes_of(local, "sun", seed=0), codes_of(local, "sun", seed=0, negative_prompt=""))

    def test_settings_reach_generate(self, painter):
        greedy = codes_of(painter, "sun", top_k=1, top_p=0.0, guidance_scale=0.0)
        assert torch.equal(greedy, codes_of(painter, "sun", do_sample=False, guidance_scale=0.0))
        hot, cold = (codes_of(painter, "sun", seed=0, temperature=value) for value in (5.0, 0.2))
        assert not torch.equal(hot, cold)

    def test_settings_of_the_pipeline(self, folder, painter):
        settings = {"top_k": [5, 1], "guidance_scale": 0.0, "num_images_per_prompt": 2, "output_type": "latent"}
        own = pipeline("text-to-image", model=str(folder), device="cpu", **settings)
        expected = torch.stack(painter(["sun", "moon"], seed=0, **settings))
        assert torch.equal(torch.stack(own(["sun", "moon"], seed=0)), expected)
        assert own("sun", seed=0, num_images_per_prompt=1, output_type="pil").size == (32, 32)

    def test_seed_and_negative_prompt_of_the_pipeline(self, folder, painter):
        own = pipeline("text-to-image", model=str(folder), device="cpu", seed=5, negative_prompt="blurry")
        expected = codes_of(painter, PROMPTS, seed=5, negative_prompt="blurry")
        assert torch.equal(torch.stack(codes_of(own, PROMPTS)), torch.stack(expected))
        calls = {"seed": 6, "negative_prompt": "text"}
        assert torch.equal(codes_of(own, "sun", **calls), codes_of(painter, "sun", **calls))
        pairs = [codes_of(one, "sun", generator=torch.Generator().manual_seed(1)) for one in (own, own)]
        assert torch.equal(*pairs) and not torch.equal(pairs[0], codes_of(own, "sun"))

    @pytest.mark.parametrize("name", ["generator", "image", "codes", "mask"])
    def test_what_belongs_to_a_call(self, folder, name):
        with pytest.raises(ValueError, match=f"{name} can't be settled for all calls"):
            pipeline("text-to-image", model=str(folder), device="cpu", **{name: None})

    def test_callback(self, painter):
        seen = []
        final = codes_of(painter, "sun", seed=0, callback_on_scale_end=lambda *args: seen.append(args))
        assert [index for index, _ in seen] == [0, 1, 2]
        assert [codes.shape[1] for _, codes in seen] == [1, 5, LENGTH]
        assert torch.equal(seen[-1][1][0], final)
        (preview,) = painter.decode(seen[0][1])
        assert preview.size == (32, 32)

    def test_precision(self, folder):
        half = pipeline("text-to-image", model=str(folder), device="cpu", dtype=torch.bfloat16)
        assert half.model.dtype == torch.bfloat16 and half("sun", output_type="np").dtype == np.float32


class TestGivenPictures:
    def test_coarse_scales_are_kept(self, painter):
        pixel_values = painter.processor(images=photo(60, 40), return_tensors="pt").pixel_values
        expected = painter.model.tokenizer.encode(pixel_values).codes[0]
        for given in ({"image": photo(60, 40)}, {"codes": expected}, {"codes": expected[None].numpy()}):
            codes = codes_of(painter, "sun", seed=0, keep_scales=2, **given)
            assert torch.equal(codes[:5], expected[:5]) and not torch.equal(codes, expected)

    def test_a_picture_for_each_text(self, painter):
        images = [photo(seed=1), photo(seed=2)]
        pair = codes_of(painter, ["sun", "moon"], seed=0, image=images, keep_scales=2, batch_size=2)
        for index, text in enumerate(["sun", "moon"]):
            alone = codes_of(painter, text, seed=index, image=images[index], keep_scales=2)
            assert torch.equal(pair[index], alone)
        arrays = np.stack([np.asarray(image) for image in images])
        for batch in (arrays, torch.from_numpy(arrays).permute(0, 3, 1, 2)):
            same = codes_of(painter, ["sun", "moon"], seed=0, image=batch, keep_scales=2)
            assert torch.equal(torch.stack(same), torch.stack(pair))
        one = codes_of(painter, ["sun", "moon"], seed=0, image=arrays[:1], keep_scales=2)
        assert torch.equal(one[0], pair[0]) and torch.equal(one[1][:5], one[0][:5])
        rows = torch.stack(pair)
        again = codes_of(painter, ["sun", "moon"], seed=9, codes=rows, keep_scales=2)
        assert torch.equal(torch.stack(again)[:, :5], rows[:, :5])

    def test_outside_the_mask_nothing_changes(self, painter):
        mask = np.zeros((4, 4), dtype=bool)
        mask[:, 2:] = True
        given = codes_of(painter, "moon", seed=1)
        codes = codes_of(painter, "sun", seed=0, codes=given, mask=mask)
        before, after = given[5:].view(4, 4), codes[5:].view(4, 4)
        assert torch.equal(before[:, :2], after[:, :2]) and not torch.equal(before[:, 2:], after[:, 2:])

    @pytest.mark.parametrize(
        "make",
        [
            lambda grey: grey >= 128,
            lambda grey: grey,
            lambda grey: grey // 255,
            lambda grey: grey / 255,
            lambda grey: torch.from_numpy(grey),
            lambda grey: Image.fromarray(grey),
            lambda grey: Image.fromarray(grey).convert("1"),
            lambda grey: Image.fromarray(grey).convert("RGB").resize((96, 96), Image.Resampling.NEAREST),
        ],
        ids=["bool", "bytes", "ones", "floats", "tensor", "L", "1", "larger"],
    )
    def test_forms_of_masks(self, painter, make):
        grey = np.zeros((32, 32), dtype=np.uint8)
        grey[8:24, :16] = 255
        expected = torch.zeros(1, 4, 4, dtype=torch.bool)
        expected[:, 1:3, :2] = True
        assert torch.equal(painter.processor.prepare_mask(make(grey), 4), expected)

    def test_nothing_is_drawn_where_a_mask_is_transparent(self, painter, tmp_path):
        strokes = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
        strokes.paste((255, 255, 255, 255), (0, 8, 16, 24))
        strokes.save(tmp_path / "strokes.png")
        expected = torch.zeros(1, 4, 4, dtype=torch.bool)
        expected[:, 1:3, :2] = True
        for mask in (strokes, strokes.convert("LA"), str(tmp_path / "strokes.png")):
            assert torch.equal(painter.processor.prepare_mask(mask, 4), expected)

    def test_masks_are_cropped_as_pictures_are(self, painter):
        wide = np.zeros((32, 96), dtype=np.uint8)
        wide[:, 64:] = 255
        with pytest.raises(ValueError, match="nowhere so for half a token"):
            painter.processor.prepare_mask(wide, 4)
        wide[:, 48:] = 255
        assert painter.processor.prepare_mask(wide, 4)[0].tolist() == [[False, False, True, True]] * 4

    def test_a_mask_for_each_text(self, painter):
        masks = [np.eye(4) > 0, np.ones((4, 4))]
        given = codes_of(painter, "moon", seed=1)
        pair = codes_of(painter, ["sun", "sun"], seed=[0, 0], codes=given, mask=masks, batch_size=2)
        for mask, codes in zip(masks, pair, strict=True):
            assert torch.equal(codes, codes_of(painter, "sun", seed=0, codes=given, mask=mask))
        for batch in (np.stack(masks).astype(bool), torch.tensor(np.stack(masks))[:, None]):
            same = codes_of(painter, ["sun", "sun"], seed=[0, 0], codes=given, mask=batch)
            assert torch.equal(torch.stack(same), torch.stack(pair))

    def test_a_mask_of_several_channels_is_one(self, painter):
        given, mask = codes_of(painter, "moon", seed=1), np.zeros((32, 32), dtype=np.uint8)
        mask[:, 16:] = 255
        picture = np.stack([mask] * 3, axis=-1)
        expected = codes_of(painter, ["sun", "sun"], seed=0, codes=given, mask=mask)
        for several in (picture, Image.fromarray(picture), mask[None]):
            same = codes_of(painter, ["sun", "sun"], seed=0, codes=given, mask=several)
            assert torch.equal(torch.stack(same), torch.stack(expected))


class TestBestOf:
    def test_scorer_is_given_prompts(self, painter):
        calls = []

        def scorer(features, prompts):
            calls.append((tuple(features.shape), prompts))
            return features.mean(dim=(1, 2))

        options = {"best_of": 4, "prune_at": [1], "scorer": scorer, "batch_size": 2}
        codes = codes_of(painter, PROMPTS[:2], seed=0, num_images_per_prompt=2, **options)
        assert [tuple(part.shape) for part in codes] == [(2, LENGTH)] * 2
        assert calls[0] == ((16, 16, 12), ["a red apple"] * 8 + ["sun"] * 8)
        assert calls[1] == ((8, 16, 12), ["a red apple"] * 4 + ["sun"] * 4)

    def test_the_best_is_returned(self, painter):
        def scorer(features, prompts):
            return features.mean(dim=(1, 2))

        def score(codes):
            return scorer(painter.model.tokenizer.decode(codes[None]).semantic_features, ["sun"])

        with torch.no_grad():
            first, best = (
                score(codes_of(painter, "sun", seed=1, best_of=n, scorer=scorer, guidance_scale=0.0)) for n in (1, 16)
            )
        assert best > first


class TestMistakes:
    @pytest.mark.parametrize("inputs", [3, None, {"text": "sun"}, {"sun"}, b"sun"])
    def test_no_texts(self, painter, inputs):
        with pytest.raises(ValueError, match="expected a text, or several; got"):
            painter(inputs)

    def test_no_text_among_texts(self, painter):
        with pytest.raises(ValueError, match="must be a string"):
            painter(["sun", 3])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"seed": [1, 2]}, "expected 3 values as `seed`; got 2"),
            ({"negative_prompt": ["a"]}, "expected 3 values as `negative_prompt`; got 1"),
            ({"generator": [torch.Generator()] * 4}, "expected 3 values as `generator`; got 4"),
            ({"codes": torch.zeros(2, LENGTH, dtype=torch.long), "keep_scales": 1}, "expected 3 values as `codes`"),
            ({"seed": 1, "generator": torch.Generator()}, "seed or generator, not both"),
            ({"num_workers": 1, "generator": torch.Generator()}, "generators are copies: pass seed, or num_workers=0"),
            ({"image": photo()}, "nothing of the picture would be kept"),
            ({"image": photo(), "codes": torch.zeros(1, LENGTH), "keep_scales": 1}, "image or codes, not both"),
            ({"mask": np.ones((4, 4))}, "pass its `codes`"),
            ({"keep_scales": 1}, "pass its `codes`"),
            ({"output_type": "jpg"}, "output_type is one of pil, np, pt, latent; got 'jpg'"),
            ({"best_of": 2}, "pass a `scorer`"),
            ({"scorer": print}, "say by best_of how many"),
            ({"seed": "7"}, "a seed is a whole number"),
            ({"image": np.zeros((2, 8, 8, 3), np.uint8), "keep_scales": 1}, "expected 3 values as `image`; got 2"),
            ({"codes": torch.zeros(LENGTH).long(), "mask": np.ones((2, 8, 8))}, "expected 3 values as `mask`; got 2"),
            ({"width": 32}, "generate does not take width"),
            ({"top_k": [1, 2], "top_p": [0.1, 0.2, 0.3]}, "an entry per pass"),
        ],
    )
    def test_options(self, painter, options, message):
        with pytest.raises(ValueError, match=message):
            painter(PROMPTS, **options)

    def test_lists_need_known_numbers(self, painter):
        with pytest.raises(ValueError, match="takes a list of texts"):
            painter((text for text in PROMPTS), seed=[1, 2, 3])


class TestLoading:
    def test_registered(self):
        _, task, _ = PIPELINE_REGISTRY.check_task("text-to-image")
        # transformers looks the names of these classes up in itself when it loads a saved pipeline.
        assert task["impl"] is TextToImagePipeline and task["pt"] == (AutoModel,)
        assert all(getattr(transformers, loader.__name__) is loader for loader in task["pt"])

    def test_saved_folders_load_plainly(self, painter, folder, tmp_path):
        """The key `custom_pipelines`, which remote code needs, makes transformers ask to trust it wherever it is."""
        painter.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        expected = {"text-to-image": {"impl": "pipeline_tokenflow.TextToImagePipeline", "pt": ["AutoModel"]}}
        assert config["custom_pipelines"] == expected
        assert not hasattr(AutoConfig.from_pretrained(tmp_path), "custom_pipelines")
        for options in ({}, {"trust_remote_code": True}):
            loaded = pipeline("text-to-image", model=str(tmp_path), device="cpu", **options)
            assert type(loaded) is TextToImagePipeline and type(loaded.model) is TokenFlowForTextToImage
            assert type(loaded.processor) is TokenFlowProcessor
            assert torch.equal(codes_of(loaded, "sun", seed=1), codes_of(painter, "sun", seed=1))

    def test_saving_changes_nothing(self, painter, tmp_path):
        before = painter.model.config.to_dict()
        painter.save_pretrained(tmp_path / "one")
        painter.save_pretrained(tmp_path / "two")
        assert {**painter.model.config.to_dict(), "auto_map": None} == {**before, "auto_map": None}
        names = [sorted(path.name for path in (tmp_path / part).iterdir()) for part in ("one", "two")]
        assert names[0] == names[1] and "processor_config.json" in names[0]
        assert "custom_pipelines" not in vars(painter.model.config)

    def test_every_saved_generator_brings_the_pipeline_along(self, folder):
        """`Trainer`, too, saves model and processor, and no pipeline."""
        assert (folder / "pipeline_tokenflow.py").is_file()
        assert "custom_pipelines" in json.loads((folder / "config.json").read_text())

    def test_of_parts(self, painter):
        made = pipeline("text-to-image", model=painter.model, processor=painter.processor, device="cpu")
        assert torch.equal(codes_of(made, "sun", seed=1), codes_of(painter, "sun", seed=1))

    def test_other_models_are_refused_when_it_is_made(self, painter):
        with pytest.raises(ValueError, match="takes a generator, .* got a model of type 'tokenflow_understanding'"):
            pipeline("text-to-image", model=tiny_understanding(), processor=painter.processor, device="cpu")

    def test_models_in_training(self, painter):
        """Drawing is the same in the middle of training, for sample pictures."""
        expected = codes_of(painter, "sun", seed=1)
        painter.model.train()
        try:
            assert torch.equal(codes_of(painter, "sun", seed=1), expected)
        finally:
            painter.model.eval()
