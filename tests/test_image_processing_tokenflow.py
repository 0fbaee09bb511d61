"""The image processor: any picture in, [-1, 1] out, the official recipes to the byte, and back."""

import base64
import functools
import http.server
import inspect
import io
import json
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.processing_utils import ImagesKwargs

from transformers_tokenflow import image_reading_tokenflow
from transformers_tokenflow.image_processing_pil_tokenflow import TokenFlowImageProcessorPil
from transformers_tokenflow.image_processing_tokenflow import TokenFlowImageProcessor, halve_axis
from transformers_tokenflow.image_reading_tokenflow import TRANSPOSITIONS, picture_to_tensor, turn_upright, upright_size

BACKENDS = [TokenFlowImageProcessor, TokenFlowImageProcessorPil]
both_backends = pytest.mark.parametrize("processor_class", BACKENDS)


def make_photo(width: int = 100, height: int = 70, seed: int = 0) -> Image.Image:
    """A smooth picture with some noise, RGB."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    noise = generator.integers(-8, 9, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8))


def pixels_of(processor, images, **options) -> torch.Tensor:
    return processor(images, return_tensors="pt", **options).pixel_values


def palette_with_alpha(index: np.ndarray, alpha: np.ndarray) -> Image.Image:
    """A PA image with a grey palette (PIL's own conversion to PA forgets the alpha)."""
    image = Image.frombytes("PA", index.shape[::-1], np.stack([index, alpha], axis=-1).tobytes())
    image.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
    return image


def bytes_of(processor, images, **options) -> np.ndarray:
    """What the processor made of the first picture, (H, W, 3) uint8."""
    return np.asarray(processor.postprocess(pixels_of(processor, images, **options))[0])


def reload(processor, folder):
    processor.save_pretrained(folder)
    return type(processor).from_pretrained(folder)


class TestContract:
    @both_backends
    def test_default_gives_square_pixels_in_range(self, processor_class):
        pixels = pixels_of(processor_class(), make_photo(300, 200))
        assert pixels.shape == (1, 3, 256, 256) and pixels.dtype == torch.float32
        assert pixels.min() >= -1 and pixels.max() <= 1

    @both_backends
    def test_size_alone_sets_the_crop(self, processor_class):
        assert pixels_of(processor_class(size=48), make_photo()).shape == (1, 3, 48, 48)
        assert pixels_of(processor_class(size=48), make_photo(), size={"shortest_edge": 32}).shape == (1, 3, 32, 32)
        assert pixels_of(processor_class(size=48), make_photo(), crop_size=40).shape == (1, 3, 40, 40)

    @both_backends
    def test_without_return_tensors_a_list(self, processor_class):
        pixels = processor_class(size=16)([make_photo(), make_photo()])["pixel_values"]
        assert isinstance(pixels, list) and [tuple(image.shape) for image in pixels] == [(3, 16, 16)] * 2

    @both_backends
    def test_numpy_output(self, processor_class):
        assert processor_class(size=16)(make_photo(), return_tensors="np").pixel_values.shape == (1, 3, 16, 16)

    @both_backends
    def test_batch_equals_single(self, processor_class):
        photos = [make_photo(100, 70), make_photo(70, 100, seed=1), make_photo(100, 70, seed=2)]
        processor = processor_class(size=32)
        batch = pixels_of(processor, photos)
        for grouped in (True, False):
            assert torch.equal(batch, pixels_of(processor, photos, disable_grouping=grouped))
        assert torch.equal(batch, torch.cat([pixels_of(processor, photo) for photo in photos]))

    @both_backends
    def test_output_moves_and_casts(self, processor_class):
        inputs = processor_class(size=16)(make_photo(), return_tensors="pt").to("cpu", torch.bfloat16)
        assert inputs.pixel_values.dtype == torch.bfloat16

    def test_backends_agree(self):
        photo = make_photo(301, 203)
        for options in ({}, {"do_halve": True, "size": 40}, {"do_pad": True}, {"size": {"height": 90, "width": 90}}):
            first, second = (pixels_of(processor_class(**options), photo) for processor_class in BACKENDS)
            assert (first - second).abs().max() <= 2.01 / 127.5, options
            assert (first - second).abs().mean() <= 1e-3, options

    @pytest.mark.slow
    def test_torchvision_backend_compiles(self):
        torch.compiler.reset()
        image = torch.randint(0, 255, (3, 224, 224), dtype=torch.uint8)
        processor = TokenFlowImageProcessor(size=64)
        expected = pixels_of(processor, image)
        compiled = torch.compile(processor)
        assert torch.allclose(pixels_of(compiled, image), expected, atol=1e-4)


class TestKindsOfPictures:
    @both_backends
    @pytest.mark.parametrize(
        "kind",
        [
            "first",
            "last",
            "tensor",
            "float",
            "float255",
            "bfloat16",
            "uint16",
            "int64",
            "list",
            "nested",
            "batch",
            "tuple",
        ],
    )
    def test_arrays_and_tensors_equal_pil(self, processor_class, kind):
        photo = make_photo()
        last = np.asarray(photo)
        first = np.ascontiguousarray(last.transpose(2, 0, 1))
        image = {
            "first": first,
            "last": last,
            "tensor": torch.from_numpy(first),
            "float": last / 255,
            "float255": torch.from_numpy(first).float(),
            "bfloat16": torch.from_numpy(first).bfloat16(),
            "uint16": last.astype(np.uint16) * 257,
            "int64": last.astype(np.int64),
            "list": [photo],
            "nested": [[photo], []],
            "batch": first[None],
            "tuple": (photo,),
        }[kind]
        processor = processor_class(size=photo.height)
        assert np.array_equal(bytes_of(processor, image), bytes_of(processor, photo))

    @both_backends
    def test_file_by_name(self, processor_class, tmp_path):
        photo, path = make_photo(), tmp_path / "photo.png"
        photo.save(path)
        processor = processor_class(size=32)
        for source in (path, str(path), [str(path)]):
            assert torch.equal(pixels_of(processor, source), pixels_of(processor, photo))

    @both_backends
    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV", "CMYK", "I", "I;16", "F"])
    def test_opaque_modes(self, processor_class, mode):
        gray = make_photo().convert("L")
        image = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257) if mode == "I;16" else gray.convert(mode)
        expected = gray.convert("1") if mode == "1" else gray
        result = bytes_of(processor_class(size=gray.height), image)
        left = (gray.width - gray.height) // 2
        difference = np.abs(result.astype(int) - np.asarray(expected.convert("RGB"))[:, left : left + gray.height])
        assert difference.max() <= (4 if mode in ("YCbCr", "HSV") else 0)

    @both_backends
    def test_sixteen_bits_keep_their_scale(self, processor_class):
        bytes_ = np.linspace(0, 255, 64 * 64).round().reshape(64, 64)
        processor = processor_class(size=64)
        big_endian = (bytes_ * 257).astype(">u2")
        image = Image.frombytes("I;16B", (64, 64), big_endian.tobytes())
        file = io.BytesIO()
        Image.fromarray((bytes_ * 257).astype(np.uint16)).save(file, "PNG")
        for picture in (
            (bytes_ * 257).astype(np.uint16),
            (bytes_ * 257).astype(np.int32),
            torch.from_numpy((bytes_ * 257).astype(np.uint16)),
            Image.fromarray((bytes_ * 257).astype(np.int32)),
            big_endian,
            image,
            Image.open(file),
        ):
            assert np.array_equal(bytes_of(processor, picture)[..., 1], bytes_)

    @both_backends
    @pytest.mark.parametrize("kind", ["float32", "float16", "int32", "uint16"])
    @pytest.mark.parametrize("is_tensor", [False, True])
    def test_a_dark_picture_of_an_array_is_read_as_the_others(self, processor_class, kind, is_tensor):
        photos = np.stack([np.asarray(make_photo()), np.asarray(make_photo()) % 2])
        arrays = photos.astype(kind) * (257 if "int" in kind else 1)
        if kind == "int32":
            arrays[1] = arrays[1] // 257
        batch = torch.tensor(arrays).permute(0, 3, 1, 2) if is_tensor else arrays
        dark, expected = pixels_of(processor_class(), batch)[1], pixels_of(processor_class(), photos)[1]
        assert (dark - expected).abs().max() < 0.02
        assert dark.max() < -0.97

    def test_transparency_in_parts(self, monkeypatch):
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (4, 33, 20), generator=generator, dtype=torch.uint8)
        expected = [picture_to_tensor(image), picture_to_tensor(image.float() / 255)]
        monkeypatch.setattr(image_reading_tokenflow, "PIXELS_CHUNK", 100)
        assert torch.equal(picture_to_tensor(image), expected[0])
        assert torch.equal(picture_to_tensor(image.float() / 255), expected[1])

    @pytest.mark.parametrize("orientation", [*range(10), 6.0, "6", None])
    def test_upright_size(self, orientation, monkeypatch):
        image = Image.new("L", (5, 3))
        monkeypatch.setattr(Image.Image, "getexif", lambda self: {0x0112: orientation})
        assert upright_size(image) == turn_upright(image).size

    @both_backends
    @pytest.mark.parametrize("kind", ["RGBA", "LA", "La", "RGBa", "PA", "numpy", "float", "tensor"])
    def test_transparency_lies_over_white(self, processor_class, kind):
        gray = np.zeros((8, 8), dtype=np.uint8)
        alpha = np.tile(np.array([0, 255, 128, 64], dtype=np.uint8), (8, 2))
        array = np.stack([gray, gray, gray, alpha], axis=-1)
        rgba = Image.fromarray(array)
        image = {
            "numpy": array,
            "float": array / 255,
            "tensor": torch.from_numpy(array).permute(2, 0, 1),
            "La": lambda: rgba.convert("LA").convert("La"),
            "PA": lambda: palette_with_alpha(gray, alpha),
        }.get(kind, lambda: rgba.convert(kind))
        image = image() if callable(image) and kind not in ("numpy", "float", "tensor") else image
        result = bytes_of(processor_class(size=8), image)
        assert np.abs(result.astype(int) - (255 - alpha[..., None].astype(int))).max() <= 1

    @both_backends
    def test_palette_with_transparency(self, processor_class):
        image = Image.new("P", (8, 8), 1)
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.paste(0, (0, 0, 4, 8))
        image.info["transparency"] = 0
        result = bytes_of(processor_class(size=8), image)
        assert (result[:, :4] == 255).all() and (result[:, 4:] == (0, 0, 255)).all()

    @both_backends
    def test_gif_gives_its_first_frame(self, processor_class):
        file = io.BytesIO()
        colors = [(255, 0, 0), (0, 255, 0)]
        frames = [Image.new("RGB", (8, 8), color) for color in colors]
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
        assert (bytes_of(processor_class(size=8), Image.open(file)) == colors[0]).all()

    @both_backends
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, processor_class, orientation, tmp_path):
        upright = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
        exif = Image.Exif()
        exif[0x0112] = orientation
        inverse = {6: 8, 8: 6}.get(orientation, orientation)
        stored = upright if orientation == 1 else upright.transpose(TRANSPOSITIONS[inverse])
        stored.save(tmp_path / "stored.png", exif=exif)
        processor = processor_class(do_resize=False, do_center_crop=False)
        for source in (Image.open(tmp_path / "stored.png"), tmp_path / "stored.png"):
            assert np.array_equal(bytes_of(processor, source)[..., 0], np.asarray(upright))

    @both_backends
    def test_broken_exif_does_no_harm(self, processor_class):
        photo = make_photo()
        photo.info["exif"] = b"Exif\x00\x00nonsense"
        assert torch.equal(pixels_of(processor_class(), photo), pixels_of(processor_class(), make_photo()))

    def test_layout_of_small_pictures_and_explicit_layout(self):
        processor = TokenFlowImageProcessor(do_resize=False, do_center_crop=False)
        assert pixels_of(processor, np.zeros((4, 9, 3))).shape == (1, 3, 4, 9)
        assert pixels_of(processor, torch.zeros(4, 9, 3)).shape == (1, 3, 9, 3)
        assert pixels_of(processor, torch.zeros(4, 9, 3), input_data_format="channels_last").shape == (1, 3, 4, 9)

    @both_backends
    def test_four_channels_stay_without_conversion(self, processor_class):
        image = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
        options = {"image_mean": (0.0,) * 4, "image_std": (1.0,) * 4, "input_data_format": "channels_last"}
        pixels = pixels_of(processor_class(size=16), image, do_convert_rgb=False, **options)
        assert pixels.shape == (1, 4, 16, 16)

    @both_backends
    def test_any_shape(self, processor_class):
        for shape in ((1, 1, 3), (1, 4000, 3), (4000, 1, 3), (2, 2), (300, 1, 3)):
            assert pixels_of(processor_class(size=32), np.zeros(shape, dtype=np.uint8)).shape == (1, 3, 32, 32)

    @both_backends
    @pytest.mark.parametrize("do_pad", [False, True])
    def test_very_long_picture_costs_little(self, processor_class, do_pad):
        start = time.monotonic()
        pixels = pixels_of(processor_class(size=64, do_pad=do_pad), Image.new("RGB", (2_000_000, 1)))
        assert pixels.shape == (1, 3, 64, 64) and time.monotonic() - start < 60

    @both_backends
    def test_long_picture_padded_nearly_as_without_the_detour(self, processor_class):
        photo = make_photo(2000, 160)
        processor = processor_class(size=48, do_pad=True)
        whole = processor.pad_to_square(processor.process_image(photo, True, True), (127, 127, 127))
        assert np.abs(bytes_of(processor, photo).astype(int) - bytes_of(processor, whole)).max() <= 6

    @settings(max_examples=30, deadline=None)
    @given(width=st.integers(1, 90), height=st.integers(1, 90), seed=st.integers(0, 9), halve=st.booleans())
    def test_backends_agree_on_any_size(self, width, height, seed, halve):
        image = make_photo(width, height, seed)  # on pure noise the order of the axes, which PIL chooses, shows more
        first, second = (pixels_of(processor_class(size=16, do_halve=halve), image) for processor_class in BACKENDS)
        assert first.abs().max() <= 1 and (first - second).abs().max() <= 4.01 / 127.5


class TestOfficialRecipes:
    """The recipes written down once more, plainly, on PIL alone."""

    @pytest.mark.parametrize("side", [33, 64, 128, 256])
    @pytest.mark.parametrize("shape", [(500, 333), (333, 500), (641, 480)])
    def test_evaluation(self, side, shape):
        image = photo = make_photo(*shape)
        while min(image.size) >= 2 * side:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = side / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        expected = np.asarray(image.crop((left, top, left + side, top + side)))
        processor = TokenFlowImageProcessorPil(size=side, do_halve=True)
        assert np.array_equal(bytes_of(processor, photo), expected)
        twin = bytes_of(TokenFlowImageProcessor(size=side, do_halve=True), photo)
        assert np.abs(twin.astype(int) - expected).max() <= 3

    @pytest.mark.parametrize("shape", [(101, 70), (70, 101), (64, 64)])
    def test_understanding_padded(self, shape):
        photo = make_photo(*shape)
        side = max(photo.size)
        square = Image.new("RGB", (side, side), (127, 127, 127))
        square.paste(photo, ((side - photo.width) // 2, (side - photo.height) // 2))
        expected = np.asarray(square.resize((48, 48), Image.Resampling.BICUBIC))
        processor = TokenFlowImageProcessorPil(size=48, do_pad=True)
        assert np.array_equal(bytes_of(processor, photo), expected)
        pixels = pixels_of(processor, photo)[0].permute(1, 2, 0).numpy()
        assert np.allclose(pixels, (expected / 255 - 0.5) / 0.5, atol=1e-6)

    def test_understanding_squashed(self):
        photo = make_photo(101, 70)
        expected = np.asarray(photo.resize((48, 48), Image.Resampling.BICUBIC))
        assert np.array_equal(bytes_of(TokenFlowImageProcessorPil(size={"height": 48, "width": 48}), photo), expected)

    @both_backends
    def test_background_color(self, processor_class):
        processor = processor_class(size=16, do_pad=True, do_resize=False, do_center_crop=False)
        for color, expected in (((10, 20, 30), (10, 20, 30)), (7, (7, 7, 7)), ([1, 2, 3], (1, 2, 3))):
            result = bytes_of(processor, Image.new("RGB", (5, 2)), background_color=color)
            assert result.shape == (5, 5, 3) and (result[0] == expected).all() and (result[1:3] == 0).all()
        floats = bytes_of(processor, np.zeros((2, 5, 3)), background_color=51, do_rescale=False)
        assert (floats[0] == 51).all()

    def test_halving_is_pils_box_filter(self):
        for length in range(2, 120):
            row = np.random.default_rng(length).integers(0, 256, (3, length), dtype=np.uint8)
            expected = np.asarray(Image.fromarray(row).resize((length // 2, 3), Image.Resampling.BOX))
            assert np.array_equal(halve_axis(torch.from_numpy(row), -1).numpy(), expected), length


class TestErrors:
    @both_backends
    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (Image.new("RGB", (0, 5)), "at least one pixel"),
            (np.zeros((0, 5, 3)), "at least one pixel"),
            (np.full((5, 5, 3), np.nan), "NaN"),
            (torch.full((3, 5, 5), float("inf")), "NaN or infinity"),
            (np.zeros((5, 5, 2)), "channels"),
            (torch.zeros(7, 5, 5), "channels"),
            (np.zeros(5), "dimensions"),
            (torch.zeros(1, 1, 3, 5, 5), "dimensions"),
            (np.full((5, 5, 3), -1.0), "0 to 1 or 0 to 255"),
            (np.full((5, 5, 3), 300.0), "0 to 255"),
            (np.full((5, 5, 3), 70000), "65535"),
            (np.full((5, 5, 3), -3), "65535"),
            (np.zeros((5, 5, 3), dtype=complex), "real numbers"),
            (torch.zeros(3, 5, 5, dtype=torch.complex64), "real numbers"),
            (np.full((5, 5, 3), "x"), "real numbers"),
            ([], "at least one picture"),
        ],
    )
    def test_no_picture(self, processor_class, image, message):
        with pytest.raises(ValueError, match=message):
            processor_class(size=4)(image)

    @both_backends
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"size": {"max_height": 4, "max_width": 4}}, "shortest_edge"),
            ({"do_pad": True, "background_color": None}, "background_color"),
            ({"do_pad": True, "background_color": (1, 2)}, "3 values"),
            ({"do_normalize": True, "image_mean": None}, "image_mean"),
            ({"do_rescale": False}, "no rescaling"),
            ({"size": 0}, "`size` has sides of at least one pixel"),
            ({"size": {"height": -5, "width": 4}}, "`size` has sides of at least one pixel"),
            ({"crop_size": 0}, "`crop_size` has sides of at least one pixel"),
            ({"crop_size": {"shortest_edge": 4}}, "`crop_size` has the keys 'height' and 'width'"),
            ({"do_pad": True, "background_color": 256}, "values of 0 to 255, but got 256"),
            ({"do_pad": True, "background_color": [0, -1, 0]}, "values of 0 to 255"),
        ],
    )
    def test_contradicting_options(self, processor_class, options, message):
        with pytest.raises(ValueError, match=message):
            processor_class(size=4)(np.full((5, 6, 3), 200.0), **options)

    @both_backends
    def test_wrong_types(self, processor_class):
        with pytest.raises(TypeError, match="dict"):
            processor_class()({"image": 3})
        with pytest.raises(Exception, match="do_resizee"):
            processor_class()(make_photo(), do_resizee=True)
        with pytest.raises(Exception, match="do_halve"):
            processor_class()(make_photo(), do_halve="yes")


class TestOptions:
    @both_backends
    def test_every_option_is_a_class_attribute(self, processor_class):
        own = set(processor_class.valid_kwargs.__annotations__) - set(ImagesKwargs.__annotations__)
        assert own == {"background_color", "do_halve"}
        for name in own | {"size", "do_pad", "do_center_crop", "resample", "image_mean", "do_convert_rgb"}:
            assert hasattr(processor_class, name)
        assert processor_class.valid_kwargs.__name__ == "TokenFlowImageProcessorKwargs"
        assert processor_class.model_input_names == ["pixel_values"]
        assert list(inspect.signature(processor_class.__init__).parameters) == ["self", "kwargs"]

    @both_backends
    def test_round_trip(self, processor_class, tmp_path):
        options = {"size": {"height": 24, "width": 24}, "do_pad": True, "background_color": [1, 2, 3], "do_halve": True}
        processor = processor_class(**options)
        again = reload(processor, tmp_path)
        assert again.to_dict() == processor.to_dict()
        assert processor_class(**processor.to_dict()).to_dict() == processor.to_dict()
        saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
        assert saved["image_processor_type"] == "TokenFlowImageProcessor"
        assert {name: saved[name] for name in options} == options

    def test_round_trip_across_backends(self, tmp_path):
        for source, target in (BACKENDS, BACKENDS[::-1]):
            processor = source(size=24, do_halve=True)
            processor.save_pretrained(tmp_path)
            assert target.from_pretrained(tmp_path).to_dict() == processor.to_dict()

    @both_backends
    def test_explicit_none_survives(self, processor_class, tmp_path):
        processor = processor_class(do_resize=None, background_color=None)
        again = reload(processor, tmp_path)
        assert again.do_resize is None and again.background_color is None
        assert processor_class().do_resize is True

    @both_backends
    def test_call_leaves_the_processor_alone(self, processor_class):
        processor = processor_class(size=24)
        before = processor.to_dict()
        processor(make_photo(), size=16, do_pad=True, background_color=3, do_halve=True, crop_size=8)
        assert processor.to_dict() == before

    @both_backends
    def test_steps_can_be_switched_off(self, processor_class):
        photo = make_photo(40, 40)
        image = np.asarray(photo).transpose(2, 0, 1)
        raw = processor_class(do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False)
        assert np.array_equal(np.asarray(raw(photo)["pixel_values"][0]), image)
        scaled = processor_class(do_resize=False, do_center_crop=False, do_normalize=False)
        assert np.allclose(np.asarray(scaled(photo)["pixel_values"][0]), image / 255, atol=1e-6)
        cropped = processor_class(do_resize=False, crop_size=20)
        assert pixels_of(cropped, photo).shape == (1, 3, 20, 20)
        assert pixels_of(processor_class(size=20, do_center_crop=False), make_photo(80, 40)).shape == (1, 3, 20, 40)

    @both_backends
    def test_floats_without_rescaling_are_fractions(self, processor_class):
        photo = make_photo()
        processor = processor_class(size=32)
        with_bytes = pixels_of(processor, np.asarray(photo) / 255)
        assert torch.allclose(pixels_of(processor, np.asarray(photo) / 255, do_rescale=False), with_bytes, atol=1e-5)

    @both_backends
    @pytest.mark.parametrize("do_resize", [True, False])
    @pytest.mark.parametrize("do_normalize", [True, False])
    def test_dtypes(self, processor_class, do_resize, do_normalize):
        processor = processor_class(size=24, do_resize=do_resize, do_rescale=False, do_normalize=do_normalize)
        values = processor(make_photo(), return_tensors="pt")["pixel_values"]
        assert values.dtype == (torch.float32 if do_normalize else torch.uint8)


class TestPostprocess:
    @both_backends
    def test_other_factors_return_too(self, processor_class):
        photo = make_photo(24, 24)
        processor = processor_class(size=24, rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3)
        values = processor(photo, return_tensors="pt")["pixel_values"]
        assert -1 <= values.min() < 0 < values.max() <= 1
        assert np.array_equal(np.asarray(processor.postprocess(values)[0]), np.asarray(photo))

    @both_backends
    def test_every_byte_returns(self, processor_class):
        ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
        processor = processor_class(size=16)
        for image in (ramp, Image.fromarray(ramp)):
            assert np.array_equal(bytes_of(processor, image), ramp)

    def test_bytes_are_the_official_ones(self):
        pixels = torch.randn(4, 3, 50, 50, generator=torch.Generator().manual_seed(0))
        expected = (pixels * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        pictures = TokenFlowImageProcessor().postprocess(pixels)
        assert all(picture.mode == "RGB" for picture in pictures)
        assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures]), expected)

    @both_backends
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
    def test_output_types(self, processor_class, dtype):
        pixels = torch.linspace(-1.2, 1.2, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(dtype)
        processor = processor_class()
        tensor = processor.postprocess(pixels, output_type="pt")
        array = processor.postprocess(pixels, output_type="np")
        assert tensor.shape == (2, 3, 4, 5) and tensor.dtype == torch.float32
        assert array.shape == (2, 4, 5, 3) and array.dtype == np.float32
        assert array.min() == 0 and array.max() == 1
        assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)
        assert [picture.size for picture in processor.postprocess(pixels, output_type="pil")] == [(5, 4)] * 2

    def test_single_picture_numpy_and_gradient(self):
        processor = TokenFlowImageProcessor()
        assert len(processor.postprocess(torch.zeros(3, 4, 4))) == 1
        assert len(processor.postprocess(np.zeros((2, 3, 4, 4)))) == 2
        for several in ([torch.zeros(3, 4, 4)] * 2, (np.zeros((3, 4, 4)),) * 2, np.zeros((2, 3, 4, 4)).tolist()):
            assert len(processor.postprocess(several)) == 2
        assert not processor.postprocess(torch.zeros(1, 3, 4, 4, requires_grad=True), "pt").requires_grad

    def test_follows_the_processors_own_normalisation(self):
        photo = make_photo(16, 16)
        for options in ({"do_normalize": False}, {"image_mean": [0.4, 0.5, 0.6], "image_std": 0.25}):
            processor = TokenFlowImageProcessor(size=16, **options)
            assert np.array_equal(bytes_of(processor, photo), np.asarray(photo))

    @pytest.mark.parametrize(
        ("pixels", "output_type", "message"),
        [
            (torch.zeros(1, 3, 4, 4), "latent", "latent"),
            (torch.zeros(1, 4, 4, 4), "pil", r"\(1, 4, 4, 4\)"),
            (torch.zeros(4, 4), "pil", r"\(4, 4\)"),
            (torch.full((1, 3, 4, 4), float("nan")), "pil", "NaN"),
        ],
    )
    def test_errors(self, pixels, output_type, message):
        with pytest.raises(ValueError, match=message):
            TokenFlowImageProcessor().postprocess(pixels, output_type=output_type)


REMOTE_SCRIPT = """
    import sys
    if {without_torchvision}:
        sys.modules["torchvision"] = None
    sys.modules["transformers_tokenflow"] = None
    import numpy as np
    from transformers import AutoImageProcessor
    processor = AutoImageProcessor.from_pretrained({folder!r}, trust_remote_code=True, {options})
    pixels = processor(np.zeros((30, 40, 3), dtype=np.uint8), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 24, 24), pixels.shape
    assert len(processor.postprocess(pixels)) == 1
    processor.save_pretrained({again!r})
    sys.stdout.write(type(processor).__name__)
"""


class TestRemoteCode:
    @both_backends
    def test_saving_writes_both_backends(self, processor_class, tmp_path, monkeypatch):
        monkeypatch.setattr(processor_class, "_auto_class", "AutoImageProcessor")
        processor = processor_class(size=24)
        processor.save_pretrained(tmp_path)
        assert {path.name for path in tmp_path.glob("*.py")} == {
            "image_processing_tokenflow.py",
            "image_processing_pil_tokenflow.py",
            "image_reading_tokenflow.py",
            "card_tokenflow.py",
            "push_tokenflow.py",
        }
        assert json.loads((tmp_path / "preprocessor_config.json").read_text())["auto_map"] == {
            "AutoImageProcessor": [
                "image_processing_pil_tokenflow.TokenFlowImageProcessorPil",
                "image_processing_tokenflow.TokenFlowImageProcessor",
            ]
        }
        assert processor_class.from_pretrained(tmp_path).to_dict() == processor.to_dict()

    @pytest.mark.parametrize(
        ("options", "without_torchvision", "expected"),
        [
            ("", False, "TokenFlowImageProcessor"),
            ("backend='pil'", False, "TokenFlowImageProcessorPil"),
            ("", True, "TokenFlowImageProcessorPil"),
        ],
    )
    def test_loads_without_the_package(self, options, without_torchvision, expected, tmp_path, monkeypatch):
        monkeypatch.setattr(TokenFlowImageProcessor, "_auto_class", "AutoImageProcessor")
        folder, again = tmp_path / "first", tmp_path / "again"
        TokenFlowImageProcessor(size=24).save_pretrained(folder)
        script = REMOTE_SCRIPT.format(
            folder=str(folder), again=str(again), options=options, without_torchvision=without_torchvision
        )
        environment_free = [sys.executable, "-c", textwrap.dedent(script)]
        monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
        result = subprocess.run(environment_free, capture_output=True, text=True, timeout=240, check=False)
        assert result.returncode == 0, result.stderr
        assert result.stdout == expected
        for name in ("preprocessor_config.json", "image_processing_tokenflow.py", "image_processing_pil_tokenflow.py"):
            assert (again / name).read_text() == (folder / name).read_text()


@both_backends
@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
def test_base64_reads_like_a_file(processor_class, tmp_path, head):
    for mode, colour in (("RGBA", (0, 0, 0, 0)), ("I;16", 8000)):
        path = tmp_path / "picture.png"
        Image.new(mode, (40, 40), colour).save(path)
        processor = processor_class(size={"height": 32, "width": 32})
        text = head + base64.encodebytes(path.read_bytes()).decode()
        expected, given = (processor(source, return_tensors="pt").pixel_values for source in (str(path), text))
        assert torch.equal(given, expected)


@both_backends
def test_text_that_is_no_picture_is_named(processor_class):
    with pytest.raises(ValueError, match="a picture's file, URL or base64 string; got 'missing.png'"):
        processor_class()("missing.png")


@both_backends
def test_urls_read_like_files(processor_class, tmp_path, monkeypatch):
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(tmp_path / "picture.png")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        pixels = processor_class()(f"{address}/picture.png", return_tensors="pt").pixel_values
        with pytest.raises(Exception, match="404"):
            processor_class()(f"{address}/missing.png")
        server.shutdown()
    assert (pixels == 1).all()
