# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""TokenFlow's image processor on torchvision, for CPU and GPU; its options are in the PIL twin's module."""

from typing import Any

import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.processing_utils import Unpack
from transformers.utils import TensorType, requires_backends

from .image_processing_pil_tokenflow import (
    TokenFlowImageProcessorKwargs,
    TokenFlowImageProcessorMixin,
    resized_shape,
)
from .image_reading_tokenflow import WHITE_BYTE, picture_to_tensor, white_value


def halve_axis(image: torch.Tensor, axis: int) -> torch.Tensor:
    """Halve one axis (rounded down) with a box filter, as PIL does: torchvision has none for tensors.

    Every output pixel is the mean of the two or three input pixels whose centres lie in its share of the axis. A centre
    on the border is decided by float64 rounding, so the arithmetic follows PIL's; halves of a byte are rounded up.
    """
    length = image.shape[axis]
    scale = length / (length // 2)
    centers = (torch.arange(length // 2, dtype=torch.float64) + 0.5) * scale  # on the CPU: not every device has float64
    starts, ends = ((centers + side * 0.5 * scale + 0.5).long() for side in (-1, 1))
    is_bytes = image.dtype == torch.uint8
    wide = image.to(torch.int32 if is_bytes else image.dtype).movedim(axis, -1)
    total, count = wide.new_zeros(()), torch.zeros_like(starts, device=image.device)
    for offset in range(3):
        pixels = starts + offset
        distance = (pixels - centers + 0.5) * (1 / scale)
        is_inside = ((pixels < ends) & (distance > -0.5) & (distance <= 0.5)).to(image.device)
        total = total + wide.index_select(-1, pixels.clamp(max=length - 1).to(image.device)) * is_inside
        count = count + is_inside
    halved = ((2 * total + count) // (2 * count)).to(torch.uint8) if is_bytes else total / count
    return halved.movedim(-1, axis)


class TokenFlowImageProcessor(TokenFlowImageProcessorMixin, TorchvisionBackend):
    """TokenFlow's image processor, resizing with torchvision on any device.

    [`TokenFlowImageProcessorMixin`] documents the options, which are those of the PIL twin.
    """

    def __init__(self, **kwargs: Unpack[TokenFlowImageProcessorKwargs]):
        requires_backends(self, ["torchvision"])
        super().__init__(**kwargs)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        do_rescale: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: "torch.device | str | None" = None,
        **_: Any,
    ) -> torch.Tensor:
        """Read one picture; see `picture_to_tensor`. Returns (C, H, W), uint8 or float32, on `device`."""
        image = picture_to_tensor(image, do_convert_rgb, do_rescale, input_data_format)
        return image if device is None else image.to(device)

    def resize(
        self,
        image: torch.Tensor,
        size: SizeDict,
        resample: "PILImageResampling | int | None" = PILImageResampling.BICUBIC,
        antialias: bool = True,
        white: float = WHITE_BYTE,
        **_: Any,
    ) -> torch.Tensor:
        """Resize images (..., C, H, W), uint8 or float32; the values stay between black and white."""
        height, width = resized_shape(image.shape[-2], image.shape[-1], size)
        resized = super().resize(image, SizeDict(height=height, width=width), resample, antialias)
        return resized.clamp(0, white) if resized.is_floating_point() else resized

    def halve(self, image: torch.Tensor) -> torch.Tensor:
        """Halve both sides (rounded down) of images (..., C, H, W) with a box filter.

        Bytes are rounded after each axis; PIL takes the axes in an order of its own, so a byte may differ by one.
        """
        return halve_axis(halve_axis(image, -1), -2)

    def _preprocess(
        self,
        images: list[torch.Tensor],
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        disable_grouping: bool | None,
        return_tensors: str | TensorType | None,
        **geometry: Any,
    ) -> BatchFeature:
        """Cut prepared images (C, H, W) to size and map their values; returns `pixel_values` (B, C, H, W)."""
        if len({image.dtype for image in images}) > 1:
            disable_grouping = True  # stacking would turn bytes into floats, whose white may be another
        groups, indices = group_images_by_shape(images, disable_grouping=disable_grouping)
        for key, stacked in groups.items():
            stacked = self.fit(stacked, white=white_value(stacked, do_rescale), **geometry)
            groups[key] = self.rescale_and_normalize(
                stacked, do_rescale, rescale_factor, do_normalize, image_mean, image_std
            )
        return BatchFeature(data={"pixel_values": reorder_images(groups, indices)}, tensor_type=return_tensors)


__all__ = ["TokenFlowImageProcessor", "TokenFlowImageProcessorKwargs"]
