# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Reading pictures: any file, PIL mode, array or tensor becomes one kind of tensor."""

import base64
import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import torch
from transformers import image_utils
from transformers.image_utils import ChannelDimension

TRANSPOSITIONS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
CHANNEL_NUMBERS = (1, 3, 4)
WHITE_BYTE = 255.0
WHITE_16_BIT = 65535.0
FLOAT_TOLERANCE = 1e-3
# More than PIL's largest picture takes without compression: what is larger is no picture, and may fill the memory.
MAX_FILE_BYTES = 2**31
# Pixels that are laid over white at a time, which takes floats.
PIXELS_CHUNK = 2**22


def open_picture(source: str | os.PathLike) -> PIL.Image.Image:
    """
    Open a file, an URL or a base64 string in the picture's own mode (so with its transparency and its 16 bits).

    Raises:
        ValueError: it is none of them, too large for a picture, or a program for PostScript.
        OSError: what is there is no picture.
    """
    if not os.path.isfile(source):
        return _open_text(os.fspath(source))
    if os.path.getsize(source) > MAX_FILE_BYTES:
        raise ValueError(f"A picture's file has at most {MAX_FILE_BYTES} bytes, but got {os.path.getsize(source)}.")
    return open_encoded(Path(source).read_bytes())


def _open_text(source: str) -> PIL.Image.Image:
    """What an URL or a base64 string, with or without the head of a data URI, holds."""
    if source.startswith(("http://", "https://")):
        # transformers' own client: its name is another one in every version.
        http = image_utils.httpx  # type: ignore[attr-defined]
        return open_encoded(http.get(source, follow_redirects=True).raise_for_status().content)
    text = source.partition(",")[2] if source.startswith("data:image/") else source
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
        PIL.Image.open(io.BytesIO(content))
    except (ValueError, PIL.UnidentifiedImageError):  # the path of a missing file may be base64, too
        shown = source if len(source) <= 100 else f"{source[:100]}…"
        raise ValueError(f"expected a picture's file, URL or base64 string; got {shown!r}") from None
    return open_encoded(content)


def open_encoded(content: bytes) -> PIL.Image.Image:
    """Open the content of a file, of any format but the one that PIL has Ghostscript run as a program."""
    image = PIL.Image.open(io.BytesIO(content))
    if image.format == "EPS":
        raise ValueError("A picture is one of pixels, but got PostScript, which is a program.")
    return image


def turn_upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Turn and mirror a picture as its EXIF orientation says."""
    transposition = TRANSPOSITIONS.get(_orientation(image))
    return image if transposition is None else image.transpose(transposition)


def upright_size(image: PIL.Image.Image) -> tuple[int, int]:
    """Width and height of a picture that is turned upright."""
    return image.size[::-1] if 5 <= _orientation(image) <= 8 else image.size


def _orientation(image: PIL.Image.Image) -> int:
    """What a picture's EXIF block says of how to turn it; 1, not at all, where it says nothing that makes sense."""
    try:
        orientation = image.getexif().get(PIL.ExifTags.Base.Orientation)
        return orientation if orientation in TRANSPOSITIONS else 1
    except Exception:  # PIL lets any kind out; a broken EXIF block leaves the picture itself sound
        return 1


def picture_to_tensor(
    image: "PIL.Image.Image | np.ndarray | torch.Tensor",
    do_convert_rgb: bool | None = True,
    do_rescale: bool | None = True,
    input_data_format: str | ChannelDimension | None = None,
) -> torch.Tensor:
    """Read one picture of any kind.

    Integers of 8 bits stay as they are. Everything deeper becomes float32 between 0 and 255, or between 0 and 1 where
    `do_rescale` is off (then 255 must not be divided out later).

    Returns:
        `torch.Tensor` (C, H, W), uint8 or float32; C is 3 if `do_convert_rgb`.
    """
    if isinstance(image, PIL.Image.Image):
        image = _pil_to_array(image, do_convert_rgb)
        input_data_format = ChannelDimension.LAST
    if 0 in image.shape:
        raise ValueError(f"A picture needs at least one pixel, but got one of shape {tuple(image.shape)}.")
    if image.ndim not in (2, 3):
        raise ValueError(f"A picture has two or three dimensions, but got shape {tuple(image.shape)}.")
    if image.ndim == 3:
        channel_axis = _channel_axis(image, input_data_format)
    image = _array_to_tensor(image)
    image = image[None] if image.ndim == 2 else image.movedim(channel_axis, 0)
    if do_convert_rgb and image.shape[0] not in CHANNEL_NUMBERS:
        raise ValueError(f"A picture has {CHANNEL_NUMBERS} channels, but got {image.shape[0]}.")
    image = _to_known_range(image, do_rescale)
    return (_to_rgb(image, white_value(image, do_rescale)) if do_convert_rgb else image).contiguous()


def white_value(image: "np.ndarray | torch.Tensor", do_rescale: bool | None) -> float:
    """The value of white in a picture that `picture_to_tensor` has read."""
    is_bytes = image.dtype in (torch.uint8, np.uint8)
    return WHITE_BYTE if is_bytes or do_rescale else 1.0


def _pil_to_array(image: PIL.Image.Image, do_convert_rgb: bool | None) -> np.ndarray:
    """Turn a PIL image the right way up and into an array (H, W) or (H, W, C), transparency as a fourth channel."""
    if 0 in image.size:
        raise ValueError(f"A picture needs at least one pixel, but got one of {image.width}x{image.height}.")
    image = turn_upright(image)
    is_deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    if do_convert_rgb and not is_deep:  # PIL would cut deep grey values off at 255
        if image.mode == "La":  # premultiplied grey, which PIL converts to nothing else
            image = image.convert("LA")
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return np.array(image)


def _channel_axis(image: "np.ndarray | torch.Tensor", input_data_format: str | ChannelDimension | None) -> int:
    """Find the channels of a three-dimensional picture; where both ends could be, follow the library's habit."""
    if input_data_format is not None:
        return 0 if ChannelDimension(input_data_format) == ChannelDimension.FIRST else 2
    candidates = [axis for axis in (0, 2) if image.shape[axis] in CHANNEL_NUMBERS]
    if not candidates:
        raise ValueError(
            f"A picture has {CHANNEL_NUMBERS} channels, first or last, but got shape {tuple(image.shape)}. Other "
            "numbers need `input_data_format` and `do_convert_rgb=False`."
        )
    return candidates[0] if isinstance(image, torch.Tensor) else candidates[-1]


def _array_to_tensor(image: "np.ndarray | torch.Tensor") -> torch.Tensor:
    """Make an array a tensor, whatever its byte order and strides."""
    if isinstance(image, torch.Tensor):
        return image.detach()
    if image.dtype.kind not in "buif":
        raise ValueError(f"A picture holds real numbers, but got an array of dtype {image.dtype}.")
    return torch.from_numpy(np.require(image, image.dtype.newbyteorder("="), ["C", "W"]))


def _to_known_range(image: torch.Tensor, do_rescale: bool | None) -> torch.Tensor:
    """Bring the values to bytes, or to float32 between black (0) and white (255, or 1 without rescaling).

    uint16 counts to 65535; wider integers count to 255 if that holds them, else to 65535; floats go to 1 or 255. Of an
    array of pictures `separate_pictures` has seen to it that all of them are read alike.
    """
    if image.dtype == torch.uint8:
        return image
    if image.dtype == torch.bool:
        return image.to(torch.uint8) * 255
    if image.is_complex():
        raise ValueError(f"A picture holds real numbers, but got a tensor of dtype {image.dtype}.")
    is_integer = not image.is_floating_point()
    wide = _widen(image)
    low, high = (value.item() for value in torch.aminmax(wide))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("A picture holds finite numbers, but got NaN or infinity.")
    source_white = _source_white(image.dtype, high) if is_integer or do_rescale else 1.0
    slack = 0.0 if is_integer else FLOAT_TOLERANCE * source_white
    if low < -slack or high > source_white + slack:
        expected = "0 to 65535" if is_integer else "0 to 1 or 0 to 255" if do_rescale else "0 to 1 (no rescaling)"
        raise ValueError(f"A picture of {image.dtype} holds values of {expected}, but got {low:g} to {high:g}.")
    if is_integer and source_white == WHITE_BYTE:
        return image.to(torch.uint8)
    white = WHITE_BYTE if do_rescale else 1.0
    return (wide.to(torch.float32) * (white / source_white)).clamp(0, white)


def _widen(image: torch.Tensor) -> torch.Tensor:
    """As numbers that torch can compare, which unsigned ones of more than 8 bits are not."""
    return image.to(torch.float32 if image.is_floating_point() else torch.int64)


def _source_white(dtype: torch.dtype, high: float) -> float:
    """What white is among values of which the highest is this."""
    if dtype.is_floating_point:
        return 1.0 if high <= 1 + FLOAT_TOLERANCE else WHITE_BYTE
    return WHITE_BYTE if high <= WHITE_BYTE and dtype != torch.uint16 else WHITE_16_BIT


def separate_pictures(batch: "np.ndarray | torch.Tensor") -> list[Any]:
    """
    The pictures of an array (B, ...), whose white is one.

    Those that would pass for another range, such as dark ones of values up to 255 for ones of values up to 1, become
    floats between 0 and 1.
    """
    values = _array_to_tensor(batch)
    if values.dtype in (torch.uint8, torch.bool) or values.is_complex() or 0 in values.shape:
        return list(batch)
    whites = [_source_white(values.dtype, _widen(picture).amax().item()) for picture in values]
    white = max(whites)
    return [picture if own == white else picture / white for picture, own in zip(batch, whites, strict=True)]


def _to_rgb(image: torch.Tensor, white: float) -> torch.Tensor:
    """Repeat grey (1, H, W), or lay red, green, blue and alpha (4, H, W) over white; returns (3, H, W)."""
    if image.shape[0] == 1:
        return image.expand(3, -1, -1)
    if image.shape[0] == 3:
        return image
    rows = image.split(max(1, PIXELS_CHUNK // image.shape[2]), dim=1)
    return torch.cat([_lay_over_white(part, white) for part in rows], dim=1)


def _lay_over_white(image: torch.Tensor, white: float) -> torch.Tensor:
    """Red, green, blue and alpha (4, H, W) -> (3, H, W)"""
    color, alpha = image[:3].to(torch.float32), image[3:].to(torch.float32) / white
    opaque = white - alpha * (white - color)
    return opaque if image.is_floating_point() else opaque.round().to(image.dtype)
