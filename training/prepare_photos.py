"""Crops of freely licensed photographs, and the tuxpaint stamps, from Debian packages.

scikit-image's and scikit-learn's sample pictures are deliberately not among the sources: they stay the
untouched test photographs.
"""

import math
import random
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path, PurePosixPath

from PIL import Image, ImageStat

from training.prepare_sources import Source, hash_fraction, read_debian

IMAGE_SIZE = 64
WORKING_SIZE = 1024  # a photograph's short side before it is cropped
TRAIN_CROPS = 165
HELDOUT_CROPS = 50
HELDOUT_PICTURES = 0.07
FLAT_CROP = 5.0  # standard deviation of the grey values under which a crop shows nothing

STAMPS_PACKAGE = "tuxpaint-stamps-default"
SOURCES = [
    Source("gnome-backgrounds", "43.1-1", "gnome-backgrounds_43.1-1_all.deb",
           "a670dea21572652127d6e55f9cdb3a226d0037854fdbfd037003c7d00ee0dc4e"),
    Source("lomiri-wallpapers-16.04", "20.04.0-2", "lomiri-wallpapers-16.04_20.04.0-2_all.deb",
           "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab"),
    Source("lomiri-wallpapers-20.04", "20.04.0-2", "lomiri-wallpapers-20.04_20.04.0-2_all.deb",
           "d44e89b8473aafe64a5b678f014862dc31335aaaf18665c544d985d854f1a709"),
    Source("lxqt-themes", "1.2.0-1", "lxqt-themes_1.2.0-1_all.deb",
           "d518df36b515b09d36cb00b12645dd8ce170bb82bb0966297741905ce3edc8e1"),
    Source("mate-backgrounds", "1.26.0-1", "mate-backgrounds_1.26.0-1_all.deb",
           "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04"),
    Source("plasma-workspace-wallpapers", "4:5.27.5-2", "plasma-workspace-wallpapers_4%3a5.27.5-2_all.deb",
           "32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b"),
    Source("ukui-wallpapers", "20.04.3-1.1", "ukui-wallpapers_20.04.3-1.1_all.deb",
           "6d49be70152e6d603163458e177e501deb0be8f2916389ccbfcf59b0d7fc0262"),
    Source(STAMPS_PACKAGE, "2022.06.04-1", "tuxpaint-stamps-default_2022.06.04-1_all.deb",
           "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"),
]  # fmt: skip
UNSTRUCTURED_LICENCES = {"gnome-backgrounds": "CC-BY-SA-3.0"}  # copyright files that list no licence per file


@dataclass(frozen=True)
class Picture:
    """One photograph or stamp: its encoded bytes and what is known of it."""

    content: bytes
    path: str
    name: str
    package: str
    licence: str

    @property
    def style(self) -> str:
        return "stamp" if self.package == STAMPS_PACKAGE else "photo"

    @property
    def split(self) -> str:
        return "heldout_photos" if hash_fraction(f"{self.style}/{self.name}") < HELDOUT_PICTURES else "train"


def encode_png(image: Image.Image) -> bytes:
    """Encodes an RGB picture; metadata is left out, so equal pixels give equal bytes."""
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=False, compress_level=9)
    return buffer.getvalue()


def on_white(image: Image.Image) -> Image.Image:
    """Composites a picture of any mode over white; returns RGB of the same size."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def is_picture(path: str) -> bool:
    """Accepts wallpapers and stamps, and leaves out thumbnails, theme previews and mirrored stamps."""
    file = PurePosixPath(path)
    if file.suffix.lower() not in {".jpg", ".jpeg", ".png", ".webp"}:
        return False
    if "stamps" in file.parts:
        return not file.stem.endswith(("_mirror", "_flip"))
    return bool({"backgrounds", "wallpapers"} & set(file.parts)) and file.stem != "screenshot"


def picture_name(path: str) -> str:
    """The picture's name, shared by its sizes and its light and dark versions."""
    file = PurePosixPath(path)
    stem = file.parts[-4] if "contents" in file.parts else file.stem  # Plasma: <name>/contents/images/<size>.jpg
    return re.sub(r"(_\d+x\d+|-[dl])$", "", stem).replace("_", " ").lower()


def read_licence(copyright_text: str, path: str, package: str) -> str:
    """Finds a file's licence in a machine-readable debian/copyright: the last stanza that matches it."""
    licence = UNSTRUCTURED_LICENCES.get(package)
    for stanza in re.split(r"\n\s*\n", copyright_text):
        fields = dict(re.findall(r"^(Files|License):\s*(.*(?:\n[ \t]+.*)*)", stanza, flags=re.MULTILINE))
        if "Files" in fields and "License" in fields and any(
            pattern == "*" or fnmatch(path, f"*/{pattern}") or PurePosixPath(path).name == PurePosixPath(pattern).name
            for pattern in fields["Files"].split()
        ):  # fmt: skip
            licence = fields["License"].splitlines()[0].strip()
    if licence is None:
        raise ValueError(f"The copyright file of {package} names no licence for {path}.")
    return licence


def read_pictures(source: Source, cache: Path) -> list[Picture]:
    """Reads a package's pictures, each wallpaper only in its largest size."""
    files = read_debian(source, cache, is_picture)
    copyright_text = files.pop(f"usr/share/doc/{source.package}/copyright").decode("utf-8", errors="replace")
    largest: dict[tuple[str, str], str] = {}
    for path, content in files.items():
        if not is_picture(path):
            continue
        dark = "dark" if "images_dark" in path or PurePosixPath(path).stem.endswith("-d") else ""
        key = (path, "") if source.package == STAMPS_PACKAGE else (picture_name(path), dark)
        if key not in largest or len(content) > len(files[largest[key]]):
            largest[key] = path
    return [
        Picture(
            files[path], path, picture_name(path), source.package, read_licence(copyright_text, path, source.package)
        )
        for path in sorted(largest.values())
    ]


def random_crops(image: Image.Image, count: int, seed: str) -> Iterator[Image.Image]:
    """Cuts up to `count` squares (fewer where the picture is flat), from 80 pixels to the whole height.

    Args:
        image: The photograph, RGB, of any size.
        count: How many crops to try for.
        seed: Text that fixes the crops.
    """
    generator = random.Random(seed)
    scale = min(1.0, WORKING_SIZE / min(image.size))
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    smallest = min(80, *image.size)
    for _ in range(count):
        for _attempt in range(5):
            side = round(smallest * math.exp(generator.random() * math.log(min(image.size) / smallest)))
            left = generator.randint(0, image.width - side)
            top = generator.randint(0, image.height - side)
            box = (left, top, left + side, top + side)
            crop = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS, box=box)
            if ImageStat.Stat(crop.convert("L")).stddev[0] >= FLAT_CROP:
                yield crop
                break


def square_on_white(image: Image.Image) -> Image.Image:
    """Puts a stamp in the middle of a white square that holds it entirely; returns 64x64 RGB."""
    image = on_white(image)
    side = max(image.size)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)


def picture_rows(picture: Picture) -> list[dict]:
    """Makes the rows of one picture: its crops, or for a stamp the whole of it and two crops."""
    with Image.open(BytesIO(picture.content)) as opened:
        image = on_white(opened)
    seed = f"{picture.package}/{picture.path}"
    if picture.style == "stamp":
        crops = [square_on_white(image), *random_crops(image, 2, seed)]
    else:
        crops = random_crops(image, TRAIN_CROPS if picture.split == "train" else HELDOUT_CROPS, seed)
    return [
        {
            "image": {"bytes": encode_png(crop), "path": None},
            "name": picture.name,
            "base_name": picture.name,
            "category": picture.style,
            "style": picture.style,
            "licence": picture.licence,
            "package": picture.package,
            "split": picture.split,
        }
        for crop in crops
    ]


def photo_rows(cache: Path, workers: int = 2) -> list[dict]:
    """Makes the rows of all photographs and stamps, in a fixed order."""
    pictures = [picture for source in SOURCES for picture in read_pictures(source, cache)]
    with ProcessPoolExecutor(workers) as pool:
        return [row for rows in pool.map(picture_rows, pictures, chunksize=4) for row in rows]
