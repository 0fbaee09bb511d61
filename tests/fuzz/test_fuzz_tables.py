# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Tables, metadata and recipes from anywhere: they are read, or refused in one line; nothing is written elsewhere."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import TEXTS, VALUES, damaged, fuzz, fuzz_models
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model
from tiny_training import gradient_pictures

from transformers_tokenflow import TokenFlowImageProcessor
from transformers_tokenflow.commands import CommandError
from transformers_tokenflow.commands.code_files import METADATA_KEY, CodeWriter
from transformers_tokenflow.commands.encoding import decode_pictures, encode_pictures
from transformers_tokenflow.commands.settings import nest, read_settings
from transformers_tokenflow.commands.sources import PictureRow, find_sources
from transformers_tokenflow.commands.tokenizers import Tokenizer
from transformers_tokenflow.commands.training import train_recipe

CODES = list(range(21))


def parquet(columns: dict[str, Any], metadata: dict[bytes, bytes] | None = None) -> bytes:
    table, file = pa.table(columns), io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), file)
    return file.getvalue()


def picture_bytes() -> bytes:
    file = io.BytesIO()
    gradient_pictures(1)[0].save(file, "PNG")
    return file.getvalue()


PICTURE = picture_bytes()
PICTURES = pa.array(
    [{"bytes": PICTURE, "path": "a.png"}] * 3, pa.struct([("bytes", pa.binary()), ("path", pa.string())])
)
SOUND = [
    parquet({"path": ["a/b.png", "c"], "codes": [CODES, CODES]}),
    parquet({"path": ["x"] * 300, "codes": [CODES] * 300, "height": [3] * 300}),
    parquet({"image": PICTURES, "text": ["one", "two", None]}),
]
CELLS = st.one_of(
    st.just(CODES),
    st.lists(st.one_of(st.integers(-2, 60), st.none()), max_size=22),
    st.none(),
    TEXTS.filter(str.isprintable),
    st.integers(-(2**31), 2**31),
    st.binary(max_size=10),
    st.just({"bytes": PICTURE, "path": None}),
    st.fixed_dictionaries({"bytes": st.one_of(st.none(), st.binary(max_size=10)), "path": st.just("../secret.png")}),
)
NAMES = st.sampled_from(["path", "codes", "height", "text", "image"])


@st.composite
def tables(draw: Any) -> bytes:
    """Parquet files with columns of any type."""
    count = draw(st.integers(0, 3))
    columns = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
        cell = draw(CELLS)
        cells = [cell] * count if draw(st.booleans()) else [draw(CELLS) for _ in range(count)]
        try:
            columns[name] = pa.array(cells)
        except (pa.ArrowException, TypeError, OverflowError):
            columns[name] = pa.array([cell] * count)
    description = draw(
        st.one_of(st.none(), st.binary(max_size=20), VALUES.map(lambda value: json.dumps(value).encode()))
    )
    try:
        return parquet(columns, None if description is None else {METADATA_KEY: description})
    except pa.ArrowException:  # types that parquet does not have
        return b""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer("tiny", tiny_model(), TokenFlowImageProcessor(size={"shortest_edge": 32}), "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder beside a picture that is none of a table's."""
    folder = tmp_path_factory.mktemp("tables") / "inner"
    folder.mkdir()
    gradient_pictures(1)[0].save(folder.parent / "secret.png")
    return folder


def check_decoding(content: bytes, tokenizer: Tokenizer, folder: Path) -> None:
    (folder / "codes.parquet").write_bytes(content)
    outside = sorted(folder.parent.iterdir())
    try:
        count = decode_pictures(folder / "codes.parquet", folder / "pictures", tokenizer, 2)
    except CommandError as error:
        assert "\n" not in str(error)
    else:
        assert count == pq.read_metadata(folder / "codes.parquet").num_rows
    assert sorted(folder.parent.iterdir()) == outside
    assert all(path.suffix in (".png", ".parquet", "") for path in folder.rglob("*"))


@fuzz_models
@given(content=st.one_of(tables(), damaged(SOUND)))
def test_decoding(content: bytes, tokenizer: Tokenizer, folder: Path):
    check_decoding(content, tokenizer, folder)


@fuzz
@given(content=st.one_of(tables(), damaged(SOUND)))
def test_tables_of_pictures(content: bytes, folder: Path):
    path = folder / "pictures.parquet"
    path.write_bytes(content)
    try:
        found = find_sources([path])
    except CommandError as error:
        assert "\n" not in str(error)
        return
    for picture in found.pictures:
        assert isinstance(picture, PictureRow)
        try:
            image, _ = picture.read()
            image.load()
        except Exception as error:  # whatever is wrong with a row, the pool of threads reports it
            assert str(error)
        else:
            assert image.size == (40, 40)


@fuzz
@given(content=st.one_of(tables(), damaged(SOUND)))
def test_what_is_added_to(content: bytes, folder: Path):
    output = folder / "added.parquet"
    output.write_bytes(content)
    try:
        writer = CodeWriter(output, {"codebook": "x"})
    except CommandError:
        assert output.read_bytes() == content
    else:
        writer.finish()
    assert not list(folder.glob("*.parts"))


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/hostname", "http://127.0.0.1:9/a.png", "inner/../../secret.png"]
)
def test_rows_name_no_files_elsewhere(name: str, folder: Path, tokenizer: Tokenizer):
    rows = pa.array([{"bytes": None, "path": name}], PICTURES.type)
    (folder / "row.parquet").write_bytes(parquet({"image": rows}))
    report = encode_pictures([folder / "row.parquet"], folder / "c.parquet", tokenizer, 1)
    (reason,) = report.failures.values()
    assert "where a table's pictures lie" in reason or "there is no file" in reason
    (folder / "c.parquet").unlink(missing_ok=True)


def test_rows_name_files_beside_them(tmp_path: Path, tokenizer: Tokenizer):
    gradient_pictures(1)[0].save(tmp_path / "a.png")
    rows = pa.array([{"bytes": None, "path": name} for name in ("a.png", str(tmp_path / "a.png"))], PICTURES.type)
    (tmp_path / "row.parquet").write_bytes(parquet({"image": rows}))
    assert encode_pictures([tmp_path / "row.parquet"], tmp_path / "c.parquet", tokenizer, 1).encoded == 2


METADATA = st.one_of(
    st.binary(max_size=60),
    TEXTS.map(lambda text: text.encode(errors="replace")),
    st.lists(st.one_of(VALUES, st.fixed_dictionaries({"file_name": TEXTS, "text": VALUES})), max_size=3).map(
        lambda rows: "\n".join(map(json.dumps, rows)).encode()
    ),
    st.lists(TEXTS, max_size=3).map(lambda rows: ("file_name,text\n" + "\n".join(rows)).encode(errors="replace")),
)


@fuzz
@given(name=st.sampled_from(["metadata.jsonl", "metadata.csv"]), content=METADATA)
def test_metadata(name: str, content: bytes, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / name.replace(".", "-")
    folder.mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(PICTURE)
    (folder / name).write_bytes(content)
    try:
        found = find_sources([folder])
    except CommandError as error:
        assert "\n" not in str(error)
    else:
        assert [picture.name for picture in found.pictures] == [f"{folder}/a.png"]


RECIPES = st.one_of(
    st.binary(max_size=60),
    TEXTS.map(lambda text: text.encode(errors="replace")),
    st.sampled_from(
        [b"!!python/object/apply:os.system ['exit']", b"[" * 5000, b"a: &a [*a]", b"model: {<<: 3}", b"? [x]\n: y"]
    ),
    st.dictionaries(
        st.sampled_from(["model", "data", "training", "teacher", "evaluation"]), VALUES, min_size=2, max_size=5
    ).map(lambda recipe: json.dumps(recipe).encode()),
)


@fuzz
@given(content=RECIPES)
def test_recipes(content: bytes, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(CommandError):
        train_recipe(path)


@fuzz
@given(st.lists(st.one_of(TEXTS, st.tuples(TEXTS, TEXTS).map("=".join)), max_size=4))
def test_settings(settings: list[str]):
    try:
        assert isinstance(nest(read_settings(settings)), dict)
    except CommandError as error:
        assert "--set" in str(error)
