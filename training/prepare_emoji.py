"""Builds `data/tiny`, the pictures the small models learn from: emoji in three styles, photographs, stamps.

    python -m training.prepare_emoji --output data/tiny --cache data/cache

It needs npm, apt-get and dpkg-deb for the downloads and `resvg-py` to draw OpenMoji's vector pictures.
The same thing has the same name in every style: the styles are matched by their Unicode code points, and the
names are OpenMoji's annotations (those of Unicode CLDR). Skin-tone variants are all kept, and a loader tells
them by `name != base_name`.

The splits follow a hash of the name's family, not a shuffle. A family joins names that differ only in gender
or direction, and names that share a picture down to the pixel (some territories fly their country's flag), so
that a near copy of a held-out picture is never trained on.
"""

import json
import re
from collections import Counter, defaultdict
from io import BytesIO
from pathlib import Path

import typer
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from training.prepare_photos import IMAGE_SIZE, encode_png, on_white, photo_rows
from training.prepare_sources import EMOJI_STYLES, Source, hash_fraction, read_npm

NOTO = Source(
    "emoji-datasource-google",
    "16.0.0",
    "emoji-datasource-google-16.0.0.tgz",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
)
TWEMOJI = Source(
    "emoji-datasource-twitter",
    "16.0.0",
    "emoji-datasource-twitter-16.0.0.tgz",
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
)
OPENMOJI = Source(
    "openmoji", "17.0.0", "openmoji-17.0.0.tgz", "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68"
)
HELDOUT_NAMES = 0.05
HELDOUT_PAIRS = 0.15
SPLITS = ["train", "heldout_names", "heldout_pairs", "heldout_photos"]
FEATURES = Features(
    {"image": ImageFeature()}
    | {column: Value("string") for column in ("name", "base_name", "category", "style", "licence", "package", "split")}
)
GENDER_WORDS = r"\b(man|woman|person|men|women|people|boy|girl|child|mr|mrs|mx|facing right|with)\b"
README = """---
configs:
- config_name: default
  data_files:
{data_files}
---
# The small models' data

Written by `training/prepare_emoji.py`; do not edit. 64x64 RGB pictures over white, and crops of photographs.

`name` is shared by all styles; `base_name` is the name without the skin tone, so a variant is a row whose two
names differ. `heldout_names`: names held out in every style. `heldout_pairs`: names held out in one style only.
`heldout_photos`: pictures no crop of which is in `train`.

| Split | Style | Rows | Names |
|---|---|---|---|
{counts}

| Licence | Package | Rows |
|---|---|---|
{licences}
"""


def code_points(text: str) -> str:
    """Normalises a sequence of code points, dropping the variation selector that sources disagree on."""
    return "-".join(part for part in text.upper().split("-") if part != "FE0F")


def read_names(openmoji: dict[str, bytes]) -> dict[str, dict[str, str]]:
    """Reads the canonical names from OpenMoji's table.

    Returns:
        By code points: `name`, `base_name`, `category` and the `hexcode` of the picture.
    """
    rows = [row for row in json.loads(openmoji["data/openmoji.json"]) if row["subgroups"] != "brand"]
    rows.sort(key=lambda row: row["group"].startswith("extras"))  # Unicode's own names come first
    annotations = {row["hexcode"]: clean_name(row["annotation"]) for row in rows}
    entries, taken = {}, set()
    for row in rows:
        name = annotations[row["hexcode"]]
        if name in taken:
            continue
        taken.add(name)
        base_name = annotations.get(row["skintone_base_hexcode"], name)
        category = row["group"].replace("extras-openmoji", "extras").replace("extras-unicode", "extras")
        entry = {"name": name, "base_name": base_name, "category": category, "hexcode": row["hexcode"]}
        entries.setdefault(code_points(row["hexcode"]), entry)
    return entries


def clean_name(annotation: str) -> str:
    """Lower-cases an annotation and writes its quotation marks plainly."""
    name = annotation.lower().replace("“", '"').replace("”", '"').replace("’", "'")
    return re.sub(r"\s+", " ", name).strip()


def draw_svg(content: bytes) -> Image.Image:
    """Draws one vector picture at 64x64 with its transparency."""
    try:
        import resvg_py
    except ImportError as error:
        raise RuntimeError("Drawing OpenMoji's pictures needs `pip install resvg-py`.") from error
    png = resvg_py.svg_to_bytes(svg_string=content.decode("utf-8"), width=IMAGE_SIZE, height=IMAGE_SIZE)
    return Image.open(BytesIO(bytes(png)))


def read_datasource(source: Source, folder: str, cache: Path) -> dict[str, Image.Image]:
    """Reads the 64-pixel pictures of an emoji-datasource package by code points."""
    files = read_npm(source, cache, lambda name: name == "emoji.json" or name.startswith(f"img/{folder}/64/"))
    pictures = {}
    for emoji in json.loads(files["emoji.json"]):
        for entry in [emoji, *emoji.get("skin_variations", {}).values()]:
            if entry[f"has_img_{folder}"]:
                content = files[f"img/{folder}/64/{entry['image']}"]
                pictures[code_points(entry["unified"])] = on_white(Image.open(BytesIO(content)))
    return pictures


def read_emoji(cache: Path) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, Image.Image]]]:
    """Reads the names and the RGB 64x64 pictures, by style and then by code points."""
    openmoji = read_npm(OPENMOJI, cache, lambda name: name.startswith("color/svg/") or name == "data/openmoji.json")
    names = read_names(openmoji)
    drawn = {
        points: on_white(draw_svg(openmoji[f"color/svg/{entry['hexcode']}.svg"])) for points, entry in names.items()
    }
    pictures = {"noto": read_datasource(NOTO, "google", cache), "twemoji": read_datasource(TWEMOJI, "twitter", cache)}
    return names, {**pictures, "openmoji": drawn}


def family_of(base_name: str) -> str:
    """Strips what only tells gender or direction: `woman running facing right` belongs to `running`."""
    family = re.sub(r"[^\w\s]", " ", re.sub(GENDER_WORDS, " ", base_name))
    return " ".join(family.split()) or "person"


def join_families(families: dict[str, set[str]]) -> dict[str, str]:
    """Joins families that share a picture.

    Args:
        families: By picture, the families it stands for.

    Returns:
        By family, the one name of all families joined with it.
    """
    leader: dict[str, str] = {}

    def find(family: str) -> str:
        while leader.setdefault(family, family) != family:
            family = leader[family]
        return family

    for members in families.values():
        first, *others = sorted(find(member) for member in members)
        for other in others:
            leader[find(other)] = find(first)
    return {family: find(family) for family in sorted(leader)}


def choose_split(family: str, style: str) -> str:
    """Decides the split of a family's pictures in one style, by nothing but hashes."""
    if hash_fraction(f"name/{family}") < HELDOUT_NAMES:
        return "heldout_names"
    heldout_style = list(EMOJI_STYLES)[int(hash_fraction(f"style/{family}") * len(EMOJI_STYLES))]
    if style == heldout_style and hash_fraction(f"pair/{family}") < HELDOUT_PAIRS:
        return "heldout_pairs"
    return "train"


def emoji_rows(names: dict[str, dict[str, str]], pictures: dict[str, dict[str, Image.Image]]) -> list[dict]:
    """Makes the rows of all emoji. One that a single style draws is for training, or left out if held out."""
    shared: dict[str, set[str]] = defaultdict(set)
    for style, drawn in pictures.items():
        for points in names.keys() & drawn.keys():
            shared[style + drawn[points].tobytes().hex()].add(family_of(names[points]["base_name"]))
    leaders = join_families(shared)
    rows = []
    for points, entry in sorted(names.items()):
        styles = [style for style in EMOJI_STYLES if points in pictures[style]]
        for style in styles:
            split = choose_split(leaders[family_of(entry["base_name"])], style)
            if len(styles) == 1 and split != "train":
                continue
            image = {"bytes": encode_png(pictures[style][points]), "path": None}
            package = {"noto": NOTO, "twemoji": TWEMOJI, "openmoji": OPENMOJI}[style].package
            columns = {key: entry[key] for key in ("name", "base_name", "category")}
            rows.append(
                {
                    "image": image,
                    **columns,
                    "style": style,
                    "licence": EMOJI_STYLES[style],
                    "package": package,
                    "split": split,
                }
            )
    return rows


def write_readme(rows: list[dict], output: Path) -> None:
    """Writes the data's card: where the splits lie, and counts by style and licence."""
    names = defaultdict(set)
    for row in rows:
        names[row["split"], row["style"]].add(row["name"])
    counts = Counter((row["split"], row["style"]) for row in rows)
    licences = Counter((row["licence"], row["package"]) for row in rows)
    text = README.format(
        data_files="\n".join(f"  - split: {split}\n    path: data/{split}-00000.parquet" for split in SPLITS),
        counts="\n".join(
            f"| {split} | {style} | {counts[split, style]} | {len(names[split, style])} |"
            for split, style in sorted(counts, key=lambda key: (SPLITS.index(key[0]), key[1]))
        ),
        licences="\n".join(
            f"| {licence} | {package} | {licences[licence, package]} |" for licence, package in sorted(licences)
        ),
    )
    (output / "README.md").write_text(text, encoding="utf-8")


def write_splits(rows: list[dict], output: Path) -> None:
    """Writes one parquet file per split under `output/data`, in the order of the rows."""
    folder = output / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        chosen = [row for row in rows if row["split"] == split]
        columns = {column: [row[column] for row in chosen] for column in FEATURES}
        Dataset.from_dict(columns, features=FEATURES).to_parquet(folder / f"{split}-00000.parquet")


def main(output: Path = Path("data/tiny"), cache: Path = Path("data/cache"), workers: int = 2) -> None:
    """Downloads the pinned sources into CACHE and writes the data set to OUTPUT."""
    rows = emoji_rows(*read_emoji(cache))
    typer.echo(f"{len(rows)} emoji")
    rows += photo_rows(cache, workers)
    write_splits(rows, output)
    write_readme(rows, output)
    typer.echo(f"{len(rows)} rows written to {output}: {dict(Counter(row['split'] for row in rows))}")


if __name__ == "__main__":
    typer.run(main)
