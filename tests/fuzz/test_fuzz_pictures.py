# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Pictures from anywhere: each is read, or reported with a reason."""

import io
import os
import struct
import subprocess
import sys
import textwrap
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from fuzzing import damaged, fuzz
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from transformers_tokenflow import TokenFlowImageProcessor, TokenFlowImageProcessorPil
from transformers_tokenflow.commands.pictures import PictureBatch, PictureFile, read_batches
from transformers_tokenflow.image_reading_tokenflow import MAX_FILE_BYTES

PROCESSORS = [
    TokenFlowImageProcessor(size={"shortest_edge": 32}),
    TokenFlowImageProcessorPil(size={"shortest_edge": 32}),
    TokenFlowImageProcessor(size={"height": 32, "width": 32}, do_pad=True, do_center_crop=False),
    TokenFlowImageProcessor(size={"shortest_edge": 32}, do_halve=True),
]
MODES = {"PNG": "RGBA", "GIF": "P", "ICO": "RGBA", "JPEG2000": "RGB", "MSP": "1", "PCX": "L", "SGI": "L", "XBM": "1"}


def picture(mode: str = "RGB", width: int = 24, height: int = 17) -> PIL.Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(values).convert(mode)


def encoded(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def valid_files() -> Iterator[bytes]:
    """A file of every format that PIL writes, and of several kinds of one format."""
    PIL.Image.init()
    for kind in sorted((PIL.Image.SAVE.keys() & PIL.Image.OPEN.keys()) - {"ICNS"}):  # a large file of large pictures
        try:
            yield encoded(picture(MODES.get(kind, "RGB")), kind)
        except Exception:  # a format may lack its library, or take no such picture
            continue
    frames = [picture("P"), picture("P").rotate(90), picture("P")]
    yield encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield encoded(picture(), "PNG", save_all=True, append_images=[picture().rotate(90)])
    yield encoded(PIL.Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160), "PNG")
    yield encoded(picture("P"), "PNG", transparency=3)
    yield encoded(picture("CMYK"), "JPEG")
    yield encoded(picture(), "JPEG", progressive=True, exif=turned(6))
    yield encoded(picture(), "TIFF", compression="tiff_lzw", exif=turned(8))
    yield encoded(PIL.Image.new("L", (1, 300)), "PNG")


def turned(orientation: int) -> bytes:
    exif = PIL.Image.Exif()
    exif[274] = orientation
    return exif.tobytes()


FILES = list(valid_files())


@pytest.fixture(autouse=True)
def smaller_bombs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sizes that damage makes large are refused earlier than otherwise, which spares time."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 2**18)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read(path: Path, processor: TokenFlowImageProcessor = PROCESSORS[0]) -> PictureBatch:
    """What commands make of a file."""
    (batch,) = read_batches([PictureFile(path)], processor, 1)
    assert len(batch.pictures) + len(batch.failures) == 1
    for one in batch.pictures:
        assert one.pixel_values.shape == (3, 32, 32)
        assert one.pixel_values.abs().max() <= 1
        assert one.height > 0 and one.width > 0
    assert all(isinstance(reason, str) and reason and "\n" not in reason for reason in batch.failures.values())
    return batch


@pytest.mark.parametrize("content", FILES, ids=lambda content: str(content[:6]))
def test_what_is_damaged_below_is_sound(content: bytes, tmp_path: Path):
    (tmp_path / "picture").write_bytes(content)
    assert read(tmp_path / "picture").pictures or b"PS-Adobe" in content


@fuzz
@given(content=damaged(FILES), processor=st.sampled_from(PROCESSORS))
def test_damaged_files(content: bytes, processor: TokenFlowImageProcessor, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    read(path, processor)


@fuzz
@given(st.binary(max_size=200))
def test_what_stands_in_exif_does_no_harm(content: bytes):
    file = encoded(picture(), "JPEG", exif=b"Exif\0\0" + content)
    pixel_values = PROCESSORS[0](images=PIL.Image.open(io.BytesIO(file)), return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 3, 32, 32)


@fuzz
@given(
    width=st.integers(1, 9000),
    height=st.integers(1, 25),
    is_upright=st.booleans(),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"]),
    processor=st.sampled_from(PROCESSORS),
)
def test_any_size_and_mode(width: int, height: int, is_upright: bool, mode: str, processor: TokenFlowImageProcessor):
    image = PIL.Image.new(mode, (height, width) if is_upright else (width, height))
    pixel_values = processor(images=image, return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 3, 32, 32) and pixel_values.isfinite().all()


@fuzz
@given(
    array=arrays.arrays(
        st.one_of(arrays.scalar_dtypes(), arrays.complex_number_dtypes()),
        arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6),
    ),
    is_tensor=st.booleans(),
    processor=st.sampled_from(PROCESSORS),
)
def test_any_array(array: np.ndarray, is_tensor: bool, processor: TokenFlowImageProcessor):
    try:
        pixel_values = processor(
            images=torch.from_numpy(array) if is_tensor else array, return_tensors="pt"
        ).pixel_values
    except (ValueError, TypeError):  # the latter is also torch's, of dtypes that it does not have
        return
    assert pixel_values.shape[1:] == (3, 32, 32)
    assert pixel_values.isfinite().all() and pixel_values.abs().max() <= 1


# ---- One by one ----


def png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """A PNG of any stated size, whatever the rows that it has."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_bombs_are_refused_before_they_go_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()  # PIL's own limit
    (tmp_path / "bomb.png").write_bytes(png(60_000, 60_000, 1, 0, bytes(100)))
    assert "decompression bomb" in read(tmp_path / "bomb.png").failures[f"{tmp_path}/bomb.png"]


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """PIL would have Ghostscript run it; a loop without end, for one."""
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\n%%EOF\n"
    (tmp_path / "a.png").write_bytes(program)
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **kwargs: pytest.fail("Ghostscript was called"))
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    assert "PostScript" in read(tmp_path / "a.png").failures[f"{tmp_path}/a.png"]


def test_files_too_large_for_a_picture(tmp_path: Path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse: it takes no room
    assert "at most" in read(tmp_path / "a.png").failures[f"{tmp_path}/a.png"]


def test_what_is_no_file(tmp_path: Path):
    os.mkfifo(tmp_path / "a.png")  # opening it would wait for ever
    assert read(tmp_path / "a.png").failures
    assert read(tmp_path).failures
    assert read(tmp_path / "nothing").failures


# Prints by how many megabytes reading the files raised the process's resident memory at most.
MEASURE = """
    import resource, sys
    from pathlib import Path
    from transformers_tokenflow import TokenFlowImageProcessor
    from transformers_tokenflow.commands.pictures import PictureFile, read_batches

    def megabytes():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    before = megabytes()
    files = [PictureFile(Path(name)) for name in sys.argv[1:]]
    batches = list(read_batches(files, TokenFlowImageProcessor(size={"shortest_edge": 32}), 4))
    assert sum(len(batch.pictures) for batch in batches) == len(files), batches[0].failures
    print(megabytes() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is counted as Linux does")
def test_several_of_a_hundred_megapixels(tmp_path: Path):
    """Of 400 KB each, and at least 400 MB when they are open: one at a time, and not in floats as a whole."""
    content = png(10_000, 10_000, 8, 6, bytes(10_000 * 40_001))
    names = []
    for index in range(4):
        names.append(tmp_path / f"{index}.png")
        names[-1].write_bytes(content)
    script = textwrap.dedent(MEASURE)
    result = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 3000
