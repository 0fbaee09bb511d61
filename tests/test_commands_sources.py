# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Encoding of pictures with what is known about them: parquet files, and folders with metadata."""

import json
import os
import shutil
import weakref
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_models import tiny_model
from tiny_training import gradient_pictures

from transformers_tokenflow import TokenFlowImageProcessor
from transformers_tokenflow.commands import CommandError, code_files, encoding, sources
from transformers_tokenflow.commands.encoding import EncodingReport, decode_pictures, encode_pictures
from transformers_tokenflow.commands.pictures import find_pictures
from transformers_tokenflow.commands.sources import find_sources
from transformers_tokenflow.commands.tokenizers import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    processor = TokenFlowImageProcessor(size={"shortest_edge": 32})
    return Tokenizer("tiny", tiny_model(), processor, torch.device("cpu"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A parquet file of five rows in groups of two, with pictures, several captions each, and more."""
    features = {"image": datasets.Image(), "text": datasets.List(datasets.Value("string"))}
    features |= {"style": datasets.Value("string"), "number": datasets.Value("int64")}
    columns = {
        "number": list(range(5)),
        "style": ["noto", "noto", None, "photo", "photo"],
        "text": [[f"picture {index}", "a gradient"] for index in range(5)],
        "image": gradient_pictures(5),
    }
    path = tmp_path / "data" / "train-00000.parquet"
    path.parent.mkdir()
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path, batch_size=2)
    return path


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    """What is said while sources are looked for."""
    said: list[str] = []
    monkeypatch.setattr(sources.logger, "warning", said.append)
    return said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures as `imagefolder` takes them: metadata in one folder, in a folder of it, and none in another."""
    root = tmp_path / "pictures"
    for index, picture in enumerate(gradient_pictures(5)):
        path = root / ["", "inner", "inner", "other", ""][index] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    lines = [{"file_name": "0.png", "text": "zero", "likes": 3}, {"file_name": "other/3.png", "text": "three"}]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (root / "inner" / "metadata.csv").write_text(
        'file_name,text,likes\n1.png,"one, two",\n', encoding="utf-8-sig", newline=""
    )
    return root


def rows_of(path: Path) -> dict[str, dict]:
    return {row["path"].rpartition("/")[2]: row for row in pq.read_table(path).to_pylist()}


def test_few_tables_are_open_and_in_memory(table, monkeypatch):
    """However many there are."""
    files, groups = [], []

    class File(code_files.TableFile):
        def __init__(self, path):
            super().__init__(path)
            files.append(self)

        def read_row_group(self, *args, **kwargs):
            group = super().read_row_group(*args, **kwargs)
            groups.append(weakref.ref(group))
            return group

    for number in range(1, 5):
        shutil.copy(table, table.with_name(f"train-0000{number}.parquet"))
    monkeypatch.setattr(code_files, "TableFile", File)
    found = find_sources([table.parent], ["number"]).pictures
    assert [picture.read()[1]["number"] for picture in found] == list(range(5)) * 5
    assert files and all(file.closed for file in files)
    assert len(groups) == 15, "a group was read twice"
    assert sum(group() is not None for group in groups) <= 2


@pytest.mark.parametrize("whole_folder", [False, True])
def test_rows_of_a_table(table, tmp_path, tokenizer, whole_folder):
    output = tmp_path / "codes.parquet"
    source = table.parent if whole_folder else table
    report = encode_pictures([source], output, tokenizer, 3, keep=["style", "number"])
    assert report.encoded == 5 and not report.failures
    assert pq.read_schema(output).names == ["path", "codes", "height", "width", "text", "style", "number"]
    rows = rows_of(output)
    assert rows["000002"]["path"] == f"{table}/000002"
    expected = tokenizer.processor(images=gradient_pictures(5), return_tensors="pt").pixel_values
    for index, codes in enumerate(tokenizer.model.encode(expected).codes.tolist()):
        row = rows[f"{index:06d}"]
        assert row["codes"] == codes and row["number"] == index and (row["height"], row["width"]) == (40, 40)
        assert row["text"] == [f"picture {index}", "a gradient"]
    assert rows["000002"]["style"] is None and rows["000004"]["style"] == "photo"


def test_decoded_rows_are_named_by_their_numbers(table, tmp_path, tokenizer):
    encode_pictures([table], tmp_path / "codes.parquet", tokenizer, 4)
    decode_pictures(tmp_path / "codes.parquet", tmp_path / "decoded", tokenizer, 4)
    assert sorted(path.name for path in (tmp_path / "decoded").iterdir()) == [f"00000{i}.png" for i in range(5)]


def test_folders_keep_their_captions(folder, tmp_path, tokenizer):
    encode_pictures([folder], tmp_path / "codes.parquet", tokenizer, 2)
    texts = {name: row["text"] for name, row in rows_of(tmp_path / "codes.parquet").items()}
    assert texts == {"0.png": "zero", "1.png": "one, two", "2.png": None, "3.png": "three", "4.png": None}


def test_files_are_named_as_datasets_takes_it(tmp_path, warnings):
    names = {"./a.png": "a.png", "sub dir\\b.png": "sub dir/b.png", "sub dir/../c.png": "c.png"}
    (tmp_path / "sub dir").mkdir()
    for name in names.values():
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    lines = [{"file_name": name, "text": f"of {file}"} for name, file in names.items()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    known = {picture.name: picture.known for picture in find_sources([tmp_path], []).pictures}
    assert known == {f"{tmp_path}/{file}": {"text": f"of {file}"} for file in names.values()}
    rows = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path / "c"))
    assert rows["text"][:] == [f"of {file}" for file in names.values()] and not warnings


def test_rows_without_a_picture(folder, warnings):
    find_sources([folder], [])
    assert not warnings
    for name in ("0.png", "other/3.png"):
        (folder / name).unlink()
    find_sources([folder / "4.png"], [])
    assert not warnings
    find_sources([folder], [])
    assert warnings == [f"of the metadata in {folder}, 2 rows match no picture there, such as that of {folder}/0.png"]


def test_a_picture_alone_keeps_its_caption(folder, tmp_path, tokenizer):
    encode_pictures([folder / "0.png"], tmp_path / "codes.parquet", tokenizer, 2, keep=["likes"])
    row = rows_of(tmp_path / "codes.parquet")["0.png"]
    assert (row["text"], row["likes"]) == ("zero", 3)


def test_no_captions_no_column(tmp_path, tokenizer):
    (tmp_path / "plain").mkdir()
    gradient_pictures(1)[0].save(tmp_path / "plain" / "a.png")
    encode_pictures([tmp_path / "plain"], tmp_path / "codes.parquet", tokenizer, 2)
    assert pq.read_schema(tmp_path / "codes.parquet").names == ["path", "codes", "height", "width"]


def test_codes_beside_the_pictures_are_no_source(folder, tokenizer):
    for expected in (5, 0):
        assert encode_pictures([folder], folder / "codes.parquet", tokenizer, 2).encoded == expected


def test_interrupted_and_resumed_equals_whole(table, tmp_path, tokenizer, monkeypatch):
    whole, parts = tmp_path / "whole.parquet", tmp_path / "parts.parquet"
    encode_pictures([table], whole, tokenizer, 1, keep=["style"])
    encode_batch, calls = encoding.encode_batch, []

    def interrupted(batch, tokenizer):
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode_batch(batch, tokenizer)

    monkeypatch.setattr(encoding, "encode_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_pictures([table], parts, tokenizer, 1, keep=["style"])
    report = encode_pictures([table], parts, tokenizer, 1, keep=["style"])
    assert (report.done_before, report.encoded) == (2, 3)
    assert pq.read_table(parts).equals(pq.read_table(whole))


class TestChanges:
    """Since pictures were encoded."""

    @pytest.fixture
    def codes(self, folder, tmp_path, tokenizer) -> Path:
        path = tmp_path / "codes.parquet"
        encode_pictures([folder], path, tokenizer, 2)
        return path

    @pytest.fixture
    def warnings(self, monkeypatch) -> list[str]:
        said: list[str] = []
        monkeypatch.setattr(encoding.logger, "warning", said.append)
        return said

    def encode(self, folder: Path, codes: Path, tokenizer: Tokenizer) -> tuple[int, int]:
        report = encode_pictures([folder], codes, tokenizer, 2)
        return report.encoded, report.done_before

    def test_a_picture(self, folder, codes, tokenizer, warnings):
        before, later = rows_of(codes), codes.stat().st_mtime_ns + 10**9
        Image.new("RGB", (32, 40), "red").save(folder / "4.png")
        os.utime(folder / "4.png", ns=(later, later))
        assert self.encode(folder, codes, tokenizer) == (1, 4)
        assert warnings == [f"encoding 1 picture of {codes} anew: files, or columns that are kept, have changed"]
        after = rows_of(codes)
        assert len(pq.read_table(codes)) == 5
        assert after["4.png"]["codes"] != before.pop("4.png")["codes"] and after.pop("4.png")["width"] == 32
        assert after == before
        os.utime(codes, ns=(later, later))
        assert self.encode(folder, codes, tokenizer) == (0, 5)

    def test_a_caption(self, folder, codes, tokenizer, warnings):
        before = rows_of(codes)
        (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "null"}')
        assert self.encode(folder, codes, tokenizer) == (2, 3)
        after = rows_of(codes)
        assert {name for name in after if after[name] != before[name]} == {"0.png", "3.png"}
        assert after["0.png"]["text"] == "null" and after["3.png"]["text"] is None
        assert self.encode(folder, codes, tokenizer) == (0, 5) and len(warnings) == 1

    def test_a_table(self, table, tmp_path, tokenizer, warnings):
        codes = tmp_path / "codes.parquet"
        for expected in ((5, 0), (0, 5), (5, 0)):
            report = encode_pictures([table], codes, tokenizer, 2)
            assert (report.encoded, report.done_before) == expected
            if report.done_before:
                later = codes.stat().st_mtime_ns + 10**9
                os.utime(table, ns=(later, later))
        assert len(warnings) == 1 and "encoding 5 pictures" in warnings[0] and len(pq.read_table(codes)) == 5

    def test_what_is_gone(self, folder, codes, tokenizer, warnings):
        (folder / "inner" / "2.png").unlink()
        assert self.encode(folder, codes, tokenizer) == (0, 4)
        (warning,) = warnings
        assert f"has codes of pictures that are gone (1, such as {folder}/inner/2.png)" in warning
        encode_pictures([folder / "0.png"], codes, tokenizer, 2)
        assert len(warnings) == 1  # what is gone is none of these


def test_other_columns_can_not_be_added(table, tmp_path, tokenizer):
    encode_pictures([table], tmp_path / "codes.parquet", tokenizer, 4, keep=["style"])
    with pytest.raises(CommandError, match=r"its columns \(.*style \(string\) there, .* now\)"):
        encode_pictures([table], tmp_path / "codes.parquet", tokenizer, 4)


def test_broken_pictures_of_a_table_are_reported(tmp_path, tokenizer):
    nothing = {"bytes": None, "path": None}
    pictures = [{"bytes": b"no picture", "path": "a.png"}, {"bytes": None, "path": "/nowhere.png"}, None, nothing]
    content = pa.table({"image": pa.array(pictures, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))})
    pq.write_table(content, tmp_path / "broken.parquet")
    report = encode_pictures([tmp_path / "broken.parquet"], tmp_path / "codes.parquet", tokenizer, 4)
    assert report.encoded == 0 and len(report.failures) == 4
    for number in (2, 3):
        assert report.failures[f"{tmp_path}/broken.parquet/00000{number}"] == "the row has no picture"


@pytest.mark.parametrize(
    "keep, message",
    [
        (["codes"], "codes can't be kept"),
        (["nonsense"], "nothing here has a column nonsense"),
        (["image"], "image can't be kept: the column has the pictures of "),
    ],
)
def test_columns_that_can_not_be_kept(table, keep, message):
    with pytest.raises(CommandError, match=message):
        find_sources([table], keep)


def test_types_that_differ(table, folder):
    with pytest.raises(CommandError, match="the column text of .* is string, and list"):
        find_sources([table, folder])


@pytest.mark.parametrize("line", ["no json", '["a list"]', '"\\n"', '{"text": "no file name"}'])
def test_metadata_that_can_not_be_read(tmp_path, line):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(CommandError, match="metadata.jsonl") as error:
        find_sources([tmp_path])
    assert "\n" not in str(error.value)


def test_texts_with_commas_need_quotes(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text('file_name,text\na.png,"one, two"\nb.png,one, two\n')
    with pytest.raises(CommandError, match="metadata.csv can't be read: line 3 has more cells than the header; put"):
        find_sources([tmp_path], [])


@pytest.mark.parametrize("name", ["file_name", "image_file_name"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_every_metadata_that_datasets_takes(suffix, name, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {name: "a.png", "text": "an owl"}
    metadata = datasets.Dataset.from_list([row])
    write = {"jsonl": metadata.to_json, "csv": metadata.to_csv, "parquet": metadata.to_parquet}[suffix]
    write(tmp_path / f"metadata.{suffix}")
    assert find_sources([tmp_path], []).pictures[0].known == {"text": "an owl"}
    rows = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path / "c"))
    assert rows["text"][:] == ["an owl"] and "image" in rows.column_names


def test_metadata_that_is_no_parquet(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}')
    (tmp_path / "metadata.jsonl").rename(tmp_path / "metadata.parquet")
    with pytest.raises(CommandError, match="can't be read as parquet"):
        find_sources([tmp_path])


def test_every_picture_once_however_it_is_named(folder, table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(find_sources([Path("pictures"), folder, Path("pictures/inner")]).pictures) == 5
    assert len(find_sources([Path("./data/../data"), table]).pictures) == 5
    assert len(find_pictures([Path("pictures"), folder, Path("pictures/0.png"), folder / "0.png"])) == 5


def test_names_of_two_folders_are_not_mixed(folder, tmp_path, tokenizer, monkeypatch):
    shutil.copytree(folder, tmp_path / "other" / "pictures")
    output = tmp_path / "codes.parquet"

    def encode(*sources: Path | str) -> EncodingReport:
        return encode_pictures(list(map(Path, sources)), output, tokenizer, 4)

    monkeypatch.chdir(tmp_path)
    assert encode("pictures").encoded == 5
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(CommandError, match=r"pictures_named_from \(. there, other now\) differ"):
        encode("pictures")
    assert encode(folder).encoded == 5, "whole names hold everywhere"
    with pytest.raises(CommandError, match="If it was moved, put it back"):
        encode("pictures")


def test_names_of_earlier_versions_go_on(folder, tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as earlier:
        earlier.setattr(encoding, "describe_names", lambda *_: {})
        encode_pictures([Path("pictures")], tmp_path / "codes.parquet", tokenizer, 4)
    assert encode_pictures([Path("pictures")], tmp_path / "codes.parquet", tokenizer, 4).done_before == 5


def test_a_picture_that_is_named_twice_keeps_its_first_name(folder, tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for named, encoded in (([Path("pictures")], 5), ([Path("pictures"), folder], 0)):
        assert encode_pictures(named, tmp_path / "codes.parquet", tokenizer, 4).encoded == encoded


def test_a_parquet_file_named_metadata_that_names_no_pictures(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    pq.write_table(pa.table({"id": [1]}), tmp_path / "metadata.parquet")
    assert [source.name for source in find_sources([tmp_path]).pictures] == [str(tmp_path / "1.png")]


def test_empty_cells_at_the_end_of_a_line(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\n1.png,an owl,,\n")
    (source,) = find_sources([tmp_path]).pictures
    assert source.known == {"text": "an owl"}


def test_metadata_of_which_nothing_is_kept(tmp_path, warnings):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "caption": "an owl"}')
    find_sources([tmp_path], ["caption"])
    assert not warnings
    find_sources([tmp_path])
    assert not warnings
    find_sources([tmp_path], [])
    assert any("columns caption, nothing is kept" in line for line in warnings)


def test_mixed_types_in_metadata(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    lines = [{"file_name": "a.png", "text": "one"}, {"file_name": "b.png", "text": 2}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(CommandError, match="text of .* can't be kept"):
        find_sources([tmp_path])


def test_a_table_without_pictures(tmp_path):
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "text.parquet")
    with pytest.raises(CommandError, match=r"no column of pictures.*it has text \(string\)"):
        find_sources([tmp_path / "text.parquet"])
    assert find_sources([tmp_path]).pictures == []
    (tmp_path / "text.parquet").write_bytes(b"nonsense")
    with pytest.raises(CommandError, match="can't be read as parquet"):
        find_sources([tmp_path / "text.parquet"])
