"""Builds `data/tiny-captions`, what the small generator learns from: codes of the emoji with several captions each.

    python -m training.prepare_captions --tokenizer hub_cards/tokenflow-tiny

It reads `data/tiny` (see `training.prepare_emoji`), leaves photographs and stamps out, and keeps
of the skin-tone variants, which are half of all rows, one for each name and style. It also makes the text
tokenizer, of the words of the captions, and saves it to `data/tiny-captions/text-tokenizer`.
"""

import colorsys
import string
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import typer
from datasets import Dataset, load_dataset
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from training.prepare_sources import EMOJI_STYLES, hash_fraction
from transformers_tokenflow.commands.encoding import encode_pictures
from transformers_tokenflow.commands.tokenizers import load_tokenizer

VOCABULARY_SIZE = 2500
# How often the plain name stands in a row's list, of which one caption is drawn: more often than all others together.
PLAIN_CAPTIONS = 10
# A colour is named when it covers this share of what is not background.
MAIN_COLOUR, SECOND_COLOUR = 0.5, 0.2
HUES = ((15, "red"), (42, "orange"), (68, "yellow"), (165, "green"), (255, "blue"), (290, "purple"), (345, "pink"))
# Pairs of a name and a style that are seen in other styles alone serve the evaluation while training.
SPLITS = ("train", "heldout_pairs")
KEPT = ["name", "style", "category"]
BATCH_SIZE = 64
IMAGE_START = "<img>"
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}


def select_rows(rows: Dataset) -> Dataset:
    """Emoji alone, and of the skin-tone variants of a name in a style one, chosen by a hash."""
    chosen: list[int] = []
    variants: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    for index, (name, base_name, style) in enumerate(zip(rows["name"], rows["base_name"], rows["style"], strict=True)):
        if style not in EMOJI_STYLES:
            continue
        if name == base_name:
            chosen.append(index)
        else:
            variants[base_name, style].append((hash_fraction(f"caption/{style}/{name}"), index))
    return rows.select(sorted([*chosen, *(min(candidates)[1] for candidates in variants.values())]))


def name_colour(red: int, green: int, blue: int) -> str:
    """The everyday name of a colour of 8 bits per channel."""
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    if value < 0.22:
        return "black"
    if saturation < 0.15:
        return "white" if value > 0.88 else "grey"
    name = next((name for limit, name in HUES if hue * 360 < limit), "red")
    if name in ("red", "orange") and value < 0.65:
        return "brown"
    return "pink" if name == "red" and saturation < 0.5 and value > 0.8 else name


def main_colours(picture: Image.Image) -> list[str]:
    """Colours that cover much of a picture over white, the foremost first; white itself can't be told from it."""
    small = np.asarray(picture.convert("RGB").resize((32, 32), Image.Resampling.BOX)).reshape(-1, 3)
    counts = Counter(name_colour(*pixel) for pixel in small.tolist())
    counts.pop("white", None)
    total = sum(counts.values())
    colours = [name for name, count in counts.most_common(2) if count >= SECOND_COLOUR * total]
    return colours if colours and counts[colours[0]] >= MAIN_COLOUR * total else []


def with_article(name: str) -> str:
    """`an owl`, `a red apple`; names that begin like no word of the language stay as they are."""
    if not name[:1].isalpha():
        return name
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def write_captions(name: str, style: str, category: str, colours: list[str]) -> list[str]:
    """The captions of a picture; what stands in the list more often is drawn more often."""
    an_emoji = with_article(name)
    captions = [name] * PLAIN_CAPTIONS
    captions += [an_emoji] * 3 + [f"{name}, {style} style", f"{an_emoji}, {style} style"]
    captions += [f"{name} in the style of {style}", f"{style} emoji of {name}", f"{name}, {category}"]
    if colours:
        captions += [f"a mostly {colours[0]} {name}", f"{name}. The main colour is {colours[0]}."]
    if len(colours) > 1:
        captions.append(f"{name}, {colours[0]} and {colours[1]}")
    return captions


def make_text_tokenizer(captions: list[str], vocabulary_size: int = VOCABULARY_SIZE) -> PreTrainedTokenizerFast:
    """
    Makes a lower-casing tokenizer of the captions' most frequent words, which spells all others letter by letter.

    A trainer of WordPiece would break ties differently in every process. `<img>`, where the image begins, is a word of
    its own. Special tokens that a user types stay text.
    """
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for caption, count in Counter(captions).items():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)):
            counts[word] += count
    letters = sorted({*string.ascii_lowercase, *string.digits, *string.punctuation, *"".join(counts)})
    words = [*SPECIAL.values(), *letters, *(f"##{letter}" for letter in letters)]
    words += sorted(counts.keys() - set(letters), key=lambda word: (-counts[word], word))
    vocabulary = {word: index for index, word in enumerate(words[: vocabulary_size - 1])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, splitter, decoders.WordPiece()
    tokenizer.add_tokens([AddedToken(IMAGE_START, normalized=False)])
    bos = SPECIAL["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **SPECIAL, padding_side="left", split_special_tokens=True
    )


def caption_rows(rows: Dataset) -> list[list[str]]:
    """The captions of every row."""
    columns = zip(rows["name"], rows["style"], rows["category"], rows["image"], strict=True)
    return [write_captions(name, style, category, main_colours(image)) for name, style, category, image in columns]


def write_rows(rows: Dataset, output: Path) -> None:
    """Writes pictures with their captions, from which `tokenflow encode` makes a file of codes."""
    output.parent.mkdir(parents=True, exist_ok=True)
    rows.select_columns(["image", *KEPT]).add_column("text", caption_rows(rows)).to_parquet(output)


def main(
    data: Path = Path("data/tiny"),
    output: Path = Path("data/tiny-captions"),
    tokenizer: str = "hub_cards/tokenflow-tiny",
) -> None:
    """Writes the emoji of DATA with captions to OUTPUT, and their codes by the tokenizer in place of former ones."""
    model = load_tokenizer(tokenizer, "cpu")
    for split in SPLITS:
        rows = select_rows(load_dataset(str(data), split=split))
        pictures, codes = output / "pictures" / f"{split}.parquet", output / f"{split}.parquet"
        write_rows(rows, pictures)
        codes.unlink(missing_ok=True)
        encode_pictures([pictures], codes, model, BATCH_SIZE, keep=KEPT)
        typer.echo(f"{codes}: {len(rows)} pictures, {dict(Counter(rows['style']))}")
    captions = load_dataset("parquet", data_files=str(output / "train.parquet"), split="train")["text"]
    text_tokenizer = make_text_tokenizer([caption for row in captions for caption in row])
    text_tokenizer.save_pretrained(output / "text-tokenizer")


if __name__ == "__main__":
    typer.run(main)
