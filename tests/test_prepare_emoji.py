"""The small models' data: fixed splits, white backgrounds, safe archives."""

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from training.prepare_emoji import (
    HELDOUT_NAMES,
    HELDOUT_PAIRS,
    choose_split,
    clean_name,
    code_points,
    emoji_rows,
    family_of,
    join_families,
)
from training.prepare_photos import (
    STAMPS_PACKAGE,
    Picture,
    is_picture,
    on_white,
    picture_name,
    picture_rows,
    random_crops,
    read_licence,
    square_on_white,
)
from training.prepare_sources import (
    EMOJI_STYLES,
    Source,
    check_member_name,
    fetch,
    hash_fraction,
    read_members,
    run_client,
)

DATA = Path(__file__).parents[1] / "data" / "tiny"
COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: someone
License: GPL-2+

Files: nature/Dune.jpg
 nature/Wood.jpg
Copyright: someone else
License: CC-BY-SA-4.0
Comment: see AUTHORS
"""


def archive_of(*members: tarfile.TarInfo) -> tarfile.TarFile:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            member.size = 5 if member.isfile() else 0
            archive.addfile(member, io.BytesIO(b"hello") if member.isfile() else None)
    buffer.seek(0)
    return tarfile.open(fileobj=buffer)


def link(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


def stamp() -> Picture:
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGBA").save(buffer, format="PNG")
    return Picture(buffer.getvalue(), "usr/share/tuxpaint/stamps/sun.png", "sun", STAMPS_PACKAGE, "GPL-2")


@pytest.mark.parametrize(("text", "fraction"), [("name/red apple", 0.595216), ("name/pig", 0.024673), ("", 0.889416)])
def test_hash_fraction_is_recorded(text: str, fraction: float) -> None:
    assert hash_fraction(text) == pytest.approx(fraction, abs=1e-6)


@pytest.mark.parametrize(
    ("family", "splits"),
    [
        ("red apple", ["train", "train", "train"]),
        ("tiger", ["heldout_names", "heldout_names", "heldout_names"]),
    ],
)
def test_splits_are_recorded(family: str, splits: list[str]) -> None:
    assert [choose_split(family, style) for style in EMOJI_STYLES] == splits


def test_split_proportions() -> None:
    families = [f"thing {number}" for number in range(4000)]
    splits = [[choose_split(family, style) for style in EMOJI_STYLES] for family in families]
    held_names = sum(split[0] == "heldout_names" for split in splits)
    held_pairs = sum("heldout_pairs" in split for split in splits)
    assert all(split.count("heldout_names") in (0, 3) and split.count("heldout_pairs") <= 1 for split in splits)
    assert held_names / 4000 == pytest.approx(HELDOUT_NAMES, abs=0.012)
    assert held_pairs / (4000 - held_names) == pytest.approx(HELDOUT_PAIRS, abs=0.02)


def test_families_join_gender_direction_and_equal_pictures() -> None:
    assert family_of("woman running facing right") == family_of("man running") == "running"
    assert family_of("man") == family_of("woman") == "person"
    leaders = join_families({"a": {"norway", "svalbard"}, "b": {"svalbard", "bouvet"}, "c": {"chad"}})
    assert leaders["norway"] == leaders["svalbard"] == leaders["bouvet"] != leaders["chad"]


def test_names_and_code_points() -> None:
    assert clean_name("flag: France") == "flag: france"
    assert clean_name("Japanese “here” button") == 'japanese "here" button'
    assert code_points("26f9-fe0f-200d-2642-fe0f") == code_points("26F9-200D-2642")


def test_emoji_rows_keep_variants_with_their_base() -> None:
    tones = {
        "1F44B": "waving hand",
        "1F44B-1F3FB": "waving hand: light skin tone",
        "1F405": "tiger",
        "E000": "tiger cub",
    }
    names = {
        points: {"name": name, "base_name": name.split(":")[0], "category": "test", "hexcode": points}
        for points, name in tones.items()
    }
    drawn = {points: Image.new("RGB", (64, 64), (index * 50, 0, 0)) for index, points in enumerate(names)}
    emoji = {key: picture for key, picture in drawn.items() if key != "E000"}
    rows = emoji_rows(names, {"noto": emoji, "twemoji": emoji, "openmoji": drawn})
    assert len(rows) == 10
    for base_name, style in {(row["base_name"], row["style"]) for row in rows}:
        assert len({row["split"] for row in rows if (row["base_name"], row["style"]) == (base_name, style)}) == 1
    assert {row["split"] for row in rows if row["name"] == "tiger"} == {"heldout_names"}
    assert {row["licence"] for row in rows} == set(EMOJI_STYLES.values())


def test_pictures_are_composited_over_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 255, 128))
    assert [on_white(image).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (127, 127, 255)]
    stamp = square_on_white(Image.new("RGBA", (100, 50), (0, 0, 0, 255)))
    assert (
        stamp.size == (64, 64) and stamp.getpixel((32, 2)) == (255, 255, 255) and stamp.getpixel((32, 32)) == (0, 0, 0)
    )


def test_crops_are_deterministic_and_skip_flat_pictures() -> None:
    image = Image.radial_gradient("L").convert("RGB")
    first, second = ([crop.tobytes() for crop in random_crops(image, 5, "seed")] for _ in range(2))
    assert first == second and len(set(first)) == 5
    assert not list(random_crops(Image.new("RGB", (300, 200), "navy"), 5, "seed"))


def test_stamp_rows_are_whole_stamps_and_crops() -> None:
    rows = picture_rows(stamp())
    assert rows == picture_rows(stamp()) and len(rows) == 3
    assert {(row["name"], row["style"], row["licence"]) for row in rows} == {("sun", "stamp", "GPL-2")}
    assert Image.open(io.BytesIO(rows[0]["image"]["bytes"])).size == (64, 64)


def test_picture_paths() -> None:
    plasma = "usr/share/wallpapers/FallenLeaf/contents/images/1920x1080.jpg"
    assert picture_name(plasma) == "fallenleaf" and is_picture(plasma)
    assert picture_name("usr/share/backgrounds/gnome/wood-d.webp") == "wood"
    assert not is_picture("usr/share/wallpapers/Grey/contents/screenshot.jpg")
    assert not is_picture("usr/share/tuxpaint/stamps/vehicles/dumper_mirror.png")


def test_licence_is_the_last_stanza_that_matches() -> None:
    assert read_licence(COPYRIGHT, "usr/share/backgrounds/mate/nature/Wood.jpg", "any") == "CC-BY-SA-4.0"
    assert read_licence(COPYRIGHT, "usr/share/backgrounds/mate/Other.jpg", "any") == "GPL-2+"
    with pytest.raises(ValueError, match="names no licence"):
        read_licence("Nothing here.", "a.jpg", "any")


@pytest.mark.parametrize("name", ["../evil.png", "/etc/passwd", "package/../../evil", "package\\..\\evil"])
def test_archives_that_climb_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unsafe path"):
        read_members(archive_of(tarfile.TarInfo("package/good"), tarfile.TarInfo(name)), lambda _: True)


def test_links_are_passed_over() -> None:
    members = read_members(archive_of(tarfile.TarInfo("./package/good"), link("package/link")), lambda _: True)
    assert members == {"package/good": b"hello"}
    assert check_member_name("./a/b") == "a/b"


def test_a_wrong_or_missing_download_is_reported(tmp_path: Path) -> None:
    source = Source("thing", "1.0", "thing-1.0.tgz", "0" * 64)
    (tmp_path / source.file_name).write_bytes(b"not it")
    with pytest.raises(ValueError, match="SHA-256"):
        fetch(source, tmp_path)
    with pytest.raises(RuntimeError, match="was not found"):
        run_client(["no-such-client", "pack"], tmp_path)


@pytest.mark.skipif(not (DATA / "README.md").exists(), reason="data/tiny is not built")
def test_built_data() -> None:
    from datasets import load_dataset

    splits = load_dataset(str(DATA))
    assert set(splits) == {"train", "heldout_names", "heldout_pairs", "heldout_photos"}
    emoji = {
        split: {
            (name, style) for name, style in zip(rows["base_name"], rows["style"], strict=True) if style in EMOJI_STYLES
        }
        for split, rows in splits.items()
    }
    held_names = {name for name, _ in emoji["heldout_names"]}
    assert not held_names & {name for name, _ in emoji["train"] | emoji["heldout_pairs"]}
    assert not emoji["train"] & emoji["heldout_pairs"]
    assert {name for name, _ in emoji["heldout_pairs"]} <= {name for name, _ in emoji["train"]}
    photos = {
        split: {
            key for key in zip(splits[split]["style"], splits[split]["name"], strict=True) if key[0] not in EMOJI_STYLES
        }
        for split in ("train", "heldout_photos")
    }
    assert not photos["train"] & photos["heldout_photos"]
    assert all(splits["train"]["licence"])
    image = splits["heldout_names"][0]["image"]
    assert image.size == (64, 64) and image.mode == "RGB"
