# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""TokenFlow's image processor on PIL, and all that it shares with the torchvision one.

The torchvision twin lives in `image_processing_tokenflow.py` and builds on this module, which needs no torchvision.
"""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import (
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    is_valid_image,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from .image_reading_tokenflow import WHITE_BYTE, open_picture, picture_to_tensor, separate_pictures, white_value
from .push_tokenflow import TokenFlowPushMixin

if TYPE_CHECKING:
    # Never run, but transformers copies the modules named in relative imports: saving this processor as remote code
    # must bring its twin along, since `auto_map` names both.
    from .image_processing_tokenflow import TokenFlowImageProcessor  # noqa: F401


AUTO_CLASS_REFERENCES = [
    "image_processing_pil_tokenflow.TokenFlowImageProcessorPil",
    "image_processing_tokenflow.TokenFlowImageProcessor",
]


class TokenFlowImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    r"""
    do_pad (`bool`, *optional*, defaults to `False`):
        Whether to centre the picture on a square of its longer side before resizing, so that nothing is cropped (the
        recipe of the official understanding models).
    background_color (`int` or `tuple[int, int, int]`, *optional*, defaults to `(127, 127, 127)`):
        The colour, in bytes, of that square.
    do_halve (`bool`, *optional*, defaults to `False`):
        Whether to halve the picture with a box filter while its shorter side is at least twice the wanted one, before
        resizing (the recipe of the official tokenizer's training and evaluation).
    """

    background_color: int | list[int] | tuple[int, ...] | None
    do_halve: bool | None


def crop_of(size: SizeDict | None) -> SizeDict | None:
    """The crop that goes with a size: its height and width, or a square of its shortest edge."""
    if size is None or not size.shortest_edge:
        return size
    return SizeDict(height=size.shortest_edge, width=size.shortest_edge)


def resized_shape(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """Height and width after resizing; with a shortest edge the longer one is rounded to the nearest pixel."""
    if size.height and size.width:
        return size.height, size.width
    shortest = size.shortest_edge or min(height, width)
    scale = shortest / min(height, width)
    return max(round(height * scale), shortest), max(round(width * scale), shortest)


class TokenFlowImageProcessorMixin(TokenFlowPushMixin, BaseImageProcessor):
    r"""What TokenFlow's two image processors have in common: every option, the order of the steps, the way back.

    A picture (PIL of any mode, array, tensor, path or URL; alone, in lists or in batches) is turned upright by its EXIF
    tag, made RGB with transparency laid over white, cut to size, and mapped to [-1, 1]. Of an animation the current
    frame is taken, which is the first unless somebody sought another.

    Four ways to cut to size:

    - the default: the shorter side is resized to `size["shortest_edge"]`, then the centre is cropped;
    - `do_halve=True` in addition: the official evaluation's recipe for the tokenizer;
    - `do_pad=True`: centred on a square of `background_color`, then resized: the official understanding recipe;
    - `size={"height": s, "width": s}`: squashed to the square, nothing cropped or added.

    `crop_size` follows `size` unless set.
    """

    valid_kwargs = TokenFlowImageProcessorKwargs

    do_convert_rgb = True
    do_pad = False
    background_color = (127, 127, 127)
    do_halve = False
    do_resize = True
    size = {"shortest_edge": 256}
    default_to_square = False
    resample = PILImageResampling.BICUBIC
    do_center_crop = True
    crop_size = None
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    model_input_names = ["pixel_values"]

    def __init__(self, **kwargs: Unpack[TokenFlowImageProcessorKwargs]):
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Serialise all options; a processor saved as remote code names both backends, [pil, torchvision]."""
        output = super().to_dict()
        auto_map = output.get("auto_map") or {}
        if auto_map.get("AutoImageProcessor") in AUTO_CLASS_REFERENCES:
            output["auto_map"] = {**auto_map, "AutoImageProcessor": list(AUTO_CLASS_REFERENCES)}
        return output

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open every path or URL in a (nested) list; pictures pass through untouched."""
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(item) for item in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, os.PathLike)):
            return open_picture(image_url_or_urls)
        if is_valid_image(image_url_or_urls):
            return image_url_or_urls
        raise TypeError(
            "A picture is a PIL image, a numpy array, a torch tensor, a path or an URL, but got an object of type "
            f"{type(image_url_or_urls).__name__}."
        )

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> list[Any]:
        """Flatten single pictures, batches and nested lists into one list of pictures."""
        pictures = self._flatten(self.fetch_images(images), expected_ndims)
        if not pictures:
            raise ValueError("Expected at least one picture, but got none.")
        return pictures

    def _flatten(self, images: Any, expected_ndims: int) -> list[Any]:
        if isinstance(images, (list, tuple)):
            return [picture for item in images for picture in self._flatten(item, expected_ndims)]
        is_batch = not isinstance(images, PIL.Image.Image) and images.ndim == expected_ndims + 1
        return separate_pictures(images) if is_batch else [images]

    def _standardize_kwargs(self, background_color: int | Sequence[int] | None = None, **kwargs: Any) -> dict[str, Any]:
        """Bring the options to the form that is kept and compared."""
        kwargs = super()._standardize_kwargs(**kwargs)
        kwargs["background_color"] = tuple(background_color) if isinstance(background_color, list) else background_color
        return kwargs

    def _validate_preprocess_kwargs(
        self,
        size: SizeDict | None = None,
        crop_size: SizeDict | None = None,
        do_resize: bool | None = None,
        do_pad: bool | None = None,
        background_color: int | tuple[int, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        """Raise a ValueError for options that contradict each other, and for values that can't be."""
        if do_resize and set(dict(size or {})) not in ({"shortest_edge"}, {"height", "width"}):
            raise ValueError(f"`size` has the key 'shortest_edge' or the keys 'height' and 'width', but got {size}.")
        if crop_size and set(dict(crop_size)) != {"height", "width"}:
            raise ValueError(f"`crop_size` has the keys 'height' and 'width', but got {crop_size}.")
        for name, sides in (("size", size), ("crop_size", crop_size)):
            if any(side < 1 for _, side in sides or ()):
                raise ValueError(f"`{name}` has sides of at least one pixel, but got {sides}.")
        if do_pad and background_color is None:
            raise ValueError("`do_pad` needs a `background_color`, but got None.")
        colors = background_color if isinstance(background_color, tuple) else (background_color or 0,)
        if not all(0 <= color <= WHITE_BYTE for color in colors):
            raise ValueError(f"`background_color` has values of 0 to 255, but got {background_color}.")
        super()._validate_preprocess_kwargs(
            size=size, crop_size=crop_size or crop_of(size), do_resize=do_resize, **kwargs
        )

    def fit(
        self,
        image: Any,
        *,
        white: float,
        size: SizeDict,
        crop_size: SizeDict | None,
        resample: "PILImageResampling | int",
        background_color: int | tuple[int, ...],
        do_pad: bool | None,
        do_halve: bool | None,
        do_resize: bool | None,
        do_center_crop: bool | None,
        **_: Any,
    ) -> Any:
        """Cut a picture, or a batch of equal shape, to size: pad, halve, resize, crop.

        Args:
            image (`torch.Tensor` or `np.ndarray` (..., C, H, W), uint8 or float32): as `picture_to_tensor` gives it.
            white (`float`): the value of white in it.
        """
        crop_size = (crop_size or crop_of(size)) if do_center_crop else None
        if do_pad:
            image = self._shorten(image, size, resample, white) if do_resize else image
            image = self.pad_to_square(image, background_color, white)
        if do_resize:
            if crop_size is not None and size.shortest_edge:
                longest_ratio = max(side for _, side in crop_size) / size.shortest_edge
                image = self._trim(image, longest_ratio)
            while do_halve and min(image.shape[-2:]) >= 2 * min(value for _, value in size):
                image = self.halve(image)
            image = self.resize(image, size, resample, white=white)
        return image if crop_size is None else self.center_crop(image, crop_size)

    def pad_to_square(self, image: Any, background_color: int | tuple[int, ...], white: float = WHITE_BYTE) -> Any:
        """Centre an image (..., C, H, W) on a square of its longer side; an odd pixel goes to the right or below."""
        height, width = image.shape[-2:]
        if height == width:
            return image
        channels, side = image.shape[-3], max(height, width)
        colors = (background_color,) * channels if isinstance(background_color, int) else background_color
        if len(colors) != channels:
            raise ValueError(f"`background_color` needs {channels} values, as the picture has, but got {colors}.")
        shape = (*image.shape[:-2], side, side)
        square = image.new_empty(shape) if isinstance(image, torch.Tensor) else np.empty(shape, dtype=image.dtype)
        for channel, color in enumerate(colors):
            square[..., channel, :, :] = color * white / WHITE_BYTE
        top, left = (side - height) // 2, (side - width) // 2
        square[..., top : top + height, left : left + width] = image
        return square

    def _shorten(self, image: Any, size: SizeDict, resample: "PILImageResampling | int", white: float) -> Any:
        """Shrink a very long picture, such as a scrolled page, before the square around it takes gigabytes."""
        height, width = image.shape[-2:]
        longest = 16 * max(side for _, side in size)
        if max(height, width) <= max(longest, 8 * min(height, width)):
            return image
        height, width = (max(round(side * longest / max(height, width)), 1) for side in (height, width))
        return self.resize(image, SizeDict(height=height, width=width), resample, white=white)

    def _trim(self, image: Any, longest_ratio: float) -> Any:
        """Drop the far ends of a very long picture, which the crop drops anyway but resizing would make huge."""
        height, width = image.shape[-2:]
        longest = math.ceil(4 * max(longest_ratio, 1) * min(height, width))
        top, left = max(height - longest, 0) // 2, max(width - longest, 0) // 2
        return image[..., top : height - top, left : width - left]

    def halve(self, image: Any) -> Any:
        """Halve both sides (rounded down) of an image (..., C, H, W) with a box filter."""
        raise NotImplementedError

    @torch.no_grad()
    def postprocess(
        self, pixel_values: "torch.Tensor | np.ndarray | Sequence[torch.Tensor | np.ndarray]", output_type: str = "pil"
    ) -> "list[PIL.Image.Image] | np.ndarray | torch.Tensor":
        """Turn the model's pixels back into pictures.

        Args:
            pixel_values (`torch.Tensor` or `np.ndarray` (B, 3, H, W) or (3, H, W), or a list of the latter): in
                [-1, 1], what lies outside is cut off; any float dtype.
            output_type (`str`): "pil" for a list of PIL images, rounded to the nearest byte as the official code does
                (x · 127.5 + 128, truncated); "np" for an array (B, H, W, 3) in [0, 1]; "pt" for a tensor (B, 3, H, W)
                in [0, 1] on the same device. Both are float32 and not rounded.

        Returns:
            The pictures, in the form that `output_type` says; of a single one as a batch of one.

        Raises:
            ValueError: another `output_type`, pixels of another shape, or NaN among them.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` is 'pil', 'np' or 'pt', but got {output_type!r}.")
        if isinstance(pixel_values, (list, tuple)) and pixel_values:
            pixel_values = torch.stack([torch.as_tensor(picture) for picture in pixel_values])
        pixels = torch.as_tensor(pixel_values).to(torch.float32)
        if pixels.ndim not in (3, 4) or pixels.shape[-3] != 3:
            raise ValueError(f"`pixel_values` has shape (B, 3, H, W), but got {tuple(pixels.shape)}.")
        if pixels.isnan().any():
            raise ValueError("`pixel_values` holds NaN, which is no colour.")
        pixels = pixels[None] if pixels.ndim == 3 else pixels
        mean, std = (pixels.new_tensor(values).reshape(-1, 1, 1) for values in self._normalization())
        if output_type == "pil":
            # One product and one sum, so that the float32 result equals the official x * 127.5 + 128 to the last bit.
            encoded = (pixels * (std * 255) + (mean * 255 + 0.5)).clamp(0, 255).to(torch.uint8)
            return [PIL.Image.fromarray(picture) for picture in encoded.permute(0, 2, 3, 1).cpu().numpy()]
        pixels = (pixels * std + mean).clamp(0, 1)
        return pixels if output_type == "pt" else pixels.permute(0, 2, 3, 1).cpu().numpy()

    def _normalization(self) -> tuple[Any, Any]:
        """Mean and standard deviation that were applied on the way in, of values from 0 to 1."""
        white = WHITE_BYTE * self.rescale_factor if self.do_rescale else 1.0
        mean, std = (self.image_mean, self.image_std) if self.do_normalize else (0.0, 1.0)
        return tuple((np.asarray(part, dtype=np.float64) / white).tolist() for part in (mean, std))


class TokenFlowImageProcessorPil(TokenFlowImageProcessorMixin, PilBackend):
    """TokenFlow's image processor, resizing with PIL on the CPU exactly as the official code does.

    [`TokenFlowImageProcessorMixin`] documents the options, which are those of the torchvision twin.
    """

    def process_image(
        self,
        image: "PIL.Image.Image | np.ndarray | torch.Tensor",
        do_convert_rgb: bool | None = None,
        do_rescale: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **_: Any,
    ) -> np.ndarray:
        """Read one picture; see `picture_to_tensor`. Returns (C, H, W), uint8 or float32."""
        return picture_to_tensor(image, do_convert_rgb, do_rescale, input_data_format).cpu().numpy()

    def resize(
        self,
        image: np.ndarray,
        size: SizeDict,
        resample: "PILImageResampling | int | None" = PILImageResampling.BICUBIC,
        white: float = WHITE_BYTE,
        **_: Any,
    ) -> np.ndarray:
        """Resize an image (C, H, W), uint8 or float32, channel by channel; the values stay between black and white."""
        height, width = resized_shape(image.shape[-2], image.shape[-1], size)
        resized = self._resize_channels(image, (height, width), resample)
        return resized if resized.dtype == np.uint8 else resized.clip(0, white)

    def halve(self, image: np.ndarray) -> np.ndarray:
        """Halve both sides (rounded down) of an image (C, H, W) with PIL's box filter."""
        height, width = image.shape[-2:]
        return self._resize_channels(image, (height // 2, width // 2), PILImageResampling.BOX)

    @staticmethod
    def _resize_channels(image: np.ndarray, shape: tuple[int, int], resample: Any) -> np.ndarray:
        """Resize each channel as an 8-bit or 32-bit grey PIL image, which gives the bytes that RGB would give."""
        channels = [PIL.Image.fromarray(channel) for channel in image]
        return np.stack([np.asarray(channel.resize(shape[::-1], resample=resample)) for channel in channels])

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        return_tensors: str | TensorType | None,
        **geometry: Any,
    ) -> BatchFeature:
        """Cut prepared images (C, H, W) to size and map their values; returns `pixel_values` (B, C, H, W)."""
        processed_images = []
        for image in images:
            image = self.fit(image, white=white_value(image, do_rescale), **geometry)
            if do_rescale:
                image = self.rescale(image, rescale_factor)
            if do_normalize:
                image = self.normalize(image, image_mean, image_std)
            processed_images.append(image)
        return BatchFeature(data={"pixel_values": processed_images}, tensor_type=return_tensors)


__all__ = ["TokenFlowImageProcessorKwargs", "TokenFlowImageProcessorPil"]
