"""Builds `data/tiny-questions`, what the small understanding model learns from: codes of emoji, questions and answers.

    python -m training.prepare_questions --tokenizer hub_cards/tokenflow-tiny

It reads `data/tiny` (see `training.prepare_emoji`) and writes of every split `pictures/SPLIT.parquet`, pictures with
questions about them, and `SPLIT.parquet`, the same with codes in place of pictures; `encode_split` does the latter for
any other tokenizer. Training pictures are there in five versions, as they are and a little changed; of the skin-tone
variants of a name in a style one is, the others only as they are. Held-out pictures are there once, with one wording
of every kind of question. The text tokenizer, of the words of names and questions, is saved to `text-tokenizer`.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from datasets import Dataset, Features, List, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image
from tokenizers import AddedToken, Regex, decoders
from transformers import PreTrainedTokenizerFast

from training.prepare_captions import main_colours, make_text_tokenizer, select_rows
from training.prepare_photos import encode_png
from training.questions import Amounts, Emoji, NamePool, write_questions
from training.train_teacher import only_emoji
from transformers_tokenflow.commands.encoding import encode_pictures
from transformers_tokenflow.commands.tokenizers import Tokenizer, load_tokenizer

SPLITS = ("train", "heldout_pairs", "heldout_names")
VERSIONS = 5
# Few for each version: of several turns of a conversation, all but the first of a kind are answered by that one.
TRAINING, EVALUATION = Amounts(name=2, yes_no=2, other=1), Amounts(name=1, yes_no=2, other=1)
VOCABULARY_SIZE = 2500
IMAGE_TOKEN = "<image>"
# Words of the chat template.
MARKERS = (IMAGE_TOKEN, "USER:", "ASSISTANT:")
BATCH_SIZE = 64
ROWS_PER_GROUP = 1000
KEPT = ["name", "base_name", "style", "category", "version", "questions"]
FEATURES = Features(
    {"image": ImageFeature()}
    | {column: Value("string") for column in ("name", "base_name", "style", "category")}
    | {"version": Value("int32")}
    | {"questions": List({key: Value("string") for key in ("kind", "question", "answer")})}
)
# Mirrored, these would be something else: what has a direction, and what shows letters, digits or a clock's hands.
UNMIRRORED_CATEGORIES = {"flags", "symbols", "extras", "component"}
UNMIRRORED_WORDS = re.compile(
    r"left|right|clock|-thirty|watch|moon|chart|creasing|arrow|facing|walking|running|kneeling|wheelchair|white cane"
    r"|sign|button|letter|keyboard|calendar|date|points|medal|ball|note\b|news|book|hospital|bank|hotel|store|office|school"
    r"|taxi|bus|ticket|card|dollar|money|mahjong|joker|label|ruler|die\b|stop|\b\d|skin tone, .*skin tone"
)


def can_be_mirrored(name: str, category: str) -> bool:
    """Whether a mirrored picture still has the name."""
    return category not in UNMIRRORED_CATEGORIES and not UNMIRRORED_WORDS.search(name)


def vary(picture: Image.Image, mirrored: bool, generator: random.Random) -> Image.Image:
    """A picture over white, a little moved, resized, brighter or darker; white stays white."""
    if mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    width, height = picture.size
    scale = 1 / generator.uniform(0.85, 1.05)
    x, y = (generator.uniform(-0.06, 0.06) * side + side * (1 - scale) / 2 for side in (width, height))
    placement = (scale, 0, x, 0, scale, y)
    moved = picture.transform(
        picture.size, Image.Transform.AFFINE, placement, Image.Resampling.BICUBIC, fillcolor="white"
    )
    exponent = generator.uniform(0.8, 1.25)
    return moved.point([round(255 * (value / 255) ** exponent) for value in range(256)] * 3)


def read_emoji(rows: Dataset) -> list[Emoji]:
    """What is known about each row."""
    columns = (rows[column] for column in ("name", "base_name", "category", "style", "image"))
    return [Emoji(*known, colours=main_colours(image)) for *known, image in zip(*columns, strict=True)]


def make_rows(rows: Dataset, split: str) -> Iterator[dict]:
    """The rows of `pictures/SPLIT.parquet`, see `FEATURES`."""
    emoji = read_emoji(rows)
    pool = NamePool(emoji)
    selected = select_rows(rows)
    in_versions = set(zip(selected["name"], selected["style"], strict=True)) if split == "train" else set()
    for known, picture in zip(emoji, rows["image"], strict=True):
        for version in range(VERSIONS if (known.name, known.style) in in_versions else 1):
            generator = random.Random(f"questions/{known.style}/{known.name}/{version}")
            # Every other version is mirrored, where that is possible.
            mirrored = version % 2 == 1 and can_be_mirrored(known.name, known.category)
            shown = vary(picture.convert("RGB"), mirrored, generator) if version else picture
            amounts = TRAINING if split == "train" else EVALUATION
            yield {
                "image": {"bytes": encode_png(shown), "path": None},
                "name": known.name,
                "base_name": known.base_name,
                "style": known.style,
                "category": known.category,
                "version": version,
                "questions": write_questions(known, pool, amounts, generator, first_wording=split != "train"),
            }


def write_pictures(rows: Dataset, split: str, path: Path) -> None:
    """Writes the pictures of a split with their questions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, pq.ParquetWriter(file, FEATURES.arrow_schema) as writer:
        written = make_rows(rows, split)
        while group := list(islice(written, ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=FEATURES.arrow_schema))


def encode_split(pictures: Path, codes: Path, tokenizer: Tokenizer) -> None:
    """
    Writes the codes of pictures, of those that are not there yet.

    Args:
        pictures: what `write_pictures` wrote.
        codes: the same with codes in place of pictures.
        tokenizer: any; see `load_tokenizer`.
    """
    encode_pictures([pictures], codes, tokenizer, BATCH_SIZE, keep=KEPT)


def make_chat_tokenizer(texts: list[str], vocabulary_size: int = VOCABULARY_SIZE) -> PreTrainedTokenizerFast:
    """The captions' text tokenizer with the chat template's markers as words; it writes `o'clock`, not `o ' clock`."""
    base = make_text_tokenizer(texts, vocabulary_size - len(MARKERS))
    tokenizer = base.backend_tokenizer
    tokenizer.add_tokens([AddedToken(marker, normalized=False) for marker in MARKERS])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(),
            decoders.Fuse(),
            decoders.Replace(Regex(r" (?=[:;,.!?)])"), ""),
            decoders.Replace(Regex(r"(?<=\() "), ""),
            decoders.Replace(Regex(r'(?<=") (?=[^"]*")'), ""),
            decoders.Replace(Regex(r' (?="( |$))'), ""),
            decoders.Replace(Regex(r"(?<=\w) ' (?=\w)"), "'"),
            decoders.Replace(Regex(r"(?<=\w) - (?=\w)"), "-"),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **base.special_tokens_map, padding_side="left")


def read_texts(path: Path) -> list[str]:
    """All questions and answers of a file."""
    rows = pq.read_table(path, columns=["questions"])["questions"].to_pylist()
    return [turn[key] for row in rows for turn in row for key in ("question", "answer")]


def main(
    data: Path = Path("data/tiny"),
    output: Path = Path("data/tiny-questions"),
    tokenizer: str = "hub_cards/tokenflow-tiny",
) -> None:
    """Writes pictures of DATA with questions to OUTPUT, and their codes by the tokenizer in place of former ones."""
    for split in SPLITS:
        path = output / "pictures" / f"{split}.parquet"
        write_pictures(only_emoji(load_dataset(str(data), split=split)), split, path)
        kinds = Counter(turn["kind"] for row in pq.read_table(path)["questions"].to_pylist() for turn in row)
        typer.echo(f"{path}: {pq.read_metadata(path).num_rows} pictures, questions: {dict(kinds)}")
    texts = read_texts(output / "pictures" / "train.parquet")
    make_chat_tokenizer(texts).save_pretrained(output / "text-tokenizer")
    model = load_tokenizer(tokenizer, "cpu")
    for split in SPLITS:
        codes = output / f"{split}.parquet"
        codes.unlink(missing_ok=True)
        encode_split(output / "pictures" / f"{split}.parquet", codes, model)


if __name__ == "__main__":
    typer.run(main)
