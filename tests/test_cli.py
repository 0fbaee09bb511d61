# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Image as ImageFeature
from datasets import load_dataset
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model, tiny_text_to_image, tiny_understanding
from transformers import AutoImageProcessor, AutoModel, CLIPVisionConfig
from typer.testing import CliRunner, Result

from transformers_tokenflow import TokenFlowImageProcessor, TokenFlowModel, __version__
from transformers_tokenflow.cli import app
from transformers_tokenflow.commands import counted, encoding, tokenizers
from transformers_tokenflow.commands.code_files import CodeWriter
from transformers_tokenflow.commands.pictures import FileNames, find_pictures, safe_stem
from transformers_tokenflow.commands.settings import nest, read_settings
from transformers_tokenflow.commands.tokenizers import load_tokenizer

SOURCES = Path(__file__).parents[1] / "src"
TINY_CHECKPOINT = Path(__file__).parent / "fixtures" / "tokenizer-clip-224.json"
GOOD = ["a/same.png", "b/same.jpg", "grey.png", "palette.gif", "transparent.webp", "turned.jpg"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def fail(*arguments: object) -> str:
    """The one line that a command ends with."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("error: "), lines
    return lines[-1]


def documented_keys(command: str) -> list[str]:
    """The keys of a command's --json, as docs/command-line.md has them."""
    page = (SOURCES.parent / "docs" / "command-line.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `tokenflow {command}` \|.*\|(.*)\|$", page, flags=re.M)
    return re.findall("`(.*?)`", row)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved tokenizer."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(path)
    TokenFlowImageProcessor(size={"shortest_edge": 32}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory) -> Path:
    """A tokenizer with other codebooks."""
    path = tmp_path_factory.mktemp("models") / "other"
    tiny_model(seed=1).save_pretrained(path)
    TokenFlowImageProcessor(size={"shortest_edge": 32}).save_pretrained(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures of several kinds, two broken ones, and what else lies in folders."""
    root = tmp_path / "photos"
    (root / "a").mkdir(parents=True)
    (root / "b").mkdir()
    generator = np.random.default_rng(0)
    photo = Image.fromarray(generator.integers(0, 255, (40, 60, 3), dtype=np.uint8))
    photo.save(root / "a" / "same.png")
    photo.transpose(Image.Transpose.ROTATE_180).save(root / "b" / "same.jpg")
    photo.convert("L").save(root / "grey.png")
    photo.quantize(16).save(root / "palette.gif")
    photo.convert("RGBA").save(root / "transparent.webp")
    exif = Image.Exif()
    exif[274] = 6
    photo.save(root / "turned.jpg", exif=exif)
    (root / "broken.png").write_bytes(b"no picture")
    (root / "cut [off].png").write_bytes((root / "a" / "same.png").read_bytes()[:500])
    (root / "notes.txt").write_text("no picture either")
    (root / ".hidden.png").write_bytes(b"")
    return root


def table(path: Path) -> dict[str, dict]:
    return {row["path"]: row for row in pq.read_table(path).to_pylist()}


class TestApp:
    def test_help_comes_without_torch(self):
        script = (
            f"import sys; sys.path.insert(0, {str(SOURCES)!r}); sys.argv = ['tokenflow', 'encode', '--help']\n"
            "from tokenflow_cli import main\n"
            "try: main()\n"
            "finally: sys.exit('torch' in sys.modules)"
        )
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert "tokenflow encode" in result.stdout

    def test_version(self):
        assert f"transformers-tokenflow {__version__}" in succeed("--version").stdout

    @pytest.mark.parametrize("arguments", [["encode"], ["decode", "nowhere.parquet", "x"], ["train", "no.yaml"]])
    def test_wrong_usage(self, arguments):
        assert run(*arguments).exit_code == 2


def test_counts_in_words():
    assert [counted(number, "picture") for number in (0, 1, 2, 2227)] == [
        "0 pictures", "1 picture", "2 pictures", "2,227 pictures"
    ]  # fmt: skip


class TestTokenizer:
    def test_default_model(self, folder, photos, tmp_path, monkeypatch):
        monkeypatch.setattr(tokenizers, "DEFAULT_MODEL", tmp_path / "nothing")
        assert "pass --model" in fail("encode", photos, tmp_path / "codes.parquet")
        monkeypatch.setattr(tokenizers, "DEFAULT_MODEL", folder)
        succeed("encode", photos, tmp_path / "codes.parquet")

    def test_what_is_no_tokenizer(self, folder, tmp_path, photos):
        def message(model: object) -> str:
            return fail("encode", photos, tmp_path / "codes.parquet", "--model", model)

        assert "there is no folder" in message(tmp_path / "nothing")
        assert "has no config.json" in message(photos)
        assert "tokenflow convert" in message(folder / "model.safetensors")
        CLIPVisionConfig().save_pretrained(tmp_path / "clip")
        assert "its model type is 'clip_vision_model'" in message(tmp_path / "clip")
        (tmp_path / "clip" / "config.json").write_text("{")
        assert "can't be read" in message(tmp_path / "clip")

    @pytest.mark.parametrize("make", [lambda: tiny_text_to_image()[0], tiny_understanding])
    def test_the_tokenizer_of_another_model(self, make, tmp_path, photos):
        model = make()
        inside = getattr(model, "tokenizer", None) or model.model.tokenizer
        model.save_pretrained(tmp_path / "model")
        inside.save_pretrained(tmp_path / "tokenizer")
        for name in ("model", "tokenizer"):
            succeed("encode", photos, tmp_path / f"{name}.parquet", "--model", tmp_path / name)
        assert table(tmp_path / "model.parquet") == table(tmp_path / "tokenizer.parquet")

    def test_incomplete_weights(self, folder, tmp_path, photos):
        damaged = tmp_path / "damaged"
        damaged.mkdir()
        for name in ("config.json", "preprocessor_config.json"):
            (damaged / name).write_bytes((folder / name).read_bytes())
        weights = load_file(folder / "model.safetensors")
        weights.pop("quantizer.codebook.pixel")
        save_file(weights, damaged / "model.safetensors", {"format": "pt"})
        assert "incomplete: 1 tensor missing, such as quantizer.codebook.pixel" in fail(
            "encode", photos, "c.parquet", "--model", damaged
        )
        (damaged / "model.safetensors").write_bytes(b"garbage")
        assert "model.safetensors is damaged" in fail("encode", photos, "c.parquet", "--model", damaged)

    def test_without_an_image_processor(self, folder, tmp_path):
        AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "bare")
        assert load_tokenizer(str(tmp_path / "bare")).processor.size == {"shortest_edge": 32}

    @pytest.mark.parametrize("device", ["toaster", "cuda:99", "meta"])
    def test_devices_that_are_not_there(self, device, folder, photos, tmp_path):
        message = fail("encode", photos, tmp_path / "codes.parquet", "--model", folder, "--device", device)
        assert f"the device {device!r}" in message

    def test_codebook_hash(self, folder, other_folder):
        hashes = [load_tokenizer(str(path)).codebook_hash() for path in (folder, folder, other_folder)]
        assert hashes[0] == hashes[1] != hashes[2]
        assert load_tokenizer(str(folder), dtype="bfloat16").codebook_hash() == hashes[0]


class TestEncode:
    def test_columns_and_codes(self, folder, photos, tmp_path):
        codes = tmp_path / "new" / "codes.parquet"
        result = succeed("encode", photos, codes, "--model", folder, "--batch-size", 4)
        assert "got 6 pictures of 21 tokens" in result.stdout
        assert "warning: left out 2 pictures that could not be read:" in result.stderr
        assert f"{photos}/broken.png: no picture" in result.stderr
        assert f"{photos}/cut [off].png: " in result.stderr
        assert [path.name for path in codes.parent.iterdir()] == ["codes.parquet"]

        dataset = load_dataset("parquet", data_files=str(codes), split="train", cache_dir=str(tmp_path / "cache"))
        assert [path.removeprefix(f"{photos}/") for path in dataset["path"]] == [*GOOD[2:], *GOOD[:2]]
        turned = dataset[3]
        assert (turned["height"], turned["width"]) == (60, 40)
        model, processor = TokenFlowModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
        pixel_values = processor(images=list(dataset["path"]), return_tensors="pt").pixel_values
        assert torch.equal(torch.tensor(dataset["codes"][:]), model.encode(pixel_values).codes)

    def test_metadata(self, folder, photos, tmp_path):
        succeed("encode", photos, tmp_path / "codes.parquet", "--model", folder)
        schema = pq.read_schema(tmp_path / "codes.parquet")
        assert schema.field("codes").type == pa.list_(pa.int32())
        description = json.loads(schema.metadata[b"tokenflow"])
        assert description["scales"] == [1, 2, 4] and description["codebook_size"] == 48
        assert description["model"] == str(folder) and len(description["codebook"]) == 16
        assert description["preprocessing"]["size"] == {"shortest_edge": 32}

    def test_running_again_encodes_what_is_new(self, folder, photos, tmp_path, monkeypatch):
        codes = tmp_path / "codes.parquet"
        succeed("encode", photos, codes, "--model", folder)
        before, content = table(codes), codes.read_bytes()
        assert (
            "got 0 pictures of 21 tokens, and had 6 before"
            in succeed("encode", photos, codes, "--model", folder).stdout
        )
        assert codes.read_bytes() == content
        (photos / "a" / "same.png").rename(photos / "a" / "new.png")
        assert "got 1 picture of 21 tokens" in succeed("encode", photos, codes, "--model", folder).stdout
        after = table(codes)
        new = after.pop(f"{photos}/a/new.png")
        assert after == before and new["codes"] == before[f"{photos}/a/same.png"]["codes"]

    def test_interrupted_by_hand(self, folder, photos, tmp_path, monkeypatch):
        codes, whole = tmp_path / "codes.parquet", tmp_path / "whole.parquet"
        succeed("encode", photos, whole, "--model", folder)
        encode_batch, calls = encoding.encode_batch, []

        def interrupted(batch, tokenizer):
            calls.append([Path(picture.path).name for picture in batch.pictures])
            if len(calls) == 3:
                raise KeyboardInterrupt
            return encode_batch(batch, tokenizer)

        monkeypatch.setattr(encoding, "encode_batch", interrupted)
        result = run("encode", photos, codes, "--model", folder, "--batch-size", 2)
        assert result.exit_code == 130 and result.stderr.endswith("error: interrupted\n")
        assert not codes.exists()
        kept = [
            row["path"] for part in (tmp_path / "codes.parquet.parts").glob("part-*") for row in table(part).values()
        ]
        assert [Path(path).name for path in kept] == calls[0] + calls[1] != []
        result = succeed("encode", photos, codes, "--model", folder)
        assert f"and had {len(kept)} before" in result.stdout
        assert pq.read_table(codes).equals(pq.read_table(whole))
        assert not (tmp_path / "codes.parquet.parts").exists()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_killed(self, folder, photos, tmp_path, monkeypatch):
        codes, whole = tmp_path / "codes.parquet", tmp_path / "whole.parquet"
        tokenizer = load_tokenizer(str(folder))
        encoding.encode_pictures([photos], whole, tokenizer, 1)
        monkeypatch.setattr(encoding, "SECONDS_BETWEEN_PARTS", 0.0)
        encode_batch, calls = encoding.encode_batch, []

        def killed(batch, tokenizer):
            calls.append(batch)
            if len(calls) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return encode_batch(batch, tokenizer)

        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            monkeypatch.setattr(encoding, "encode_batch", killed)
            try:
                encoding.encode_pictures([photos], codes, tokenizer, 1)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        report = encoding.encode_pictures([photos], codes, tokenizer, 1)
        assert report.done_before + report.encoded == 6 and report.done_before >= 2
        assert pq.read_table(codes).equals(pq.read_table(whole))

    def test_killed_between_joining_and_cleaning(self, folder, photos, tmp_path):
        codes = tmp_path / "codes.parquet"
        succeed("encode", photos, codes, "--model", folder)
        expected = pq.read_table(codes)
        parts = tmp_path / "codes.parquet.parts"
        parts.mkdir()
        (parts / "part-00000.parquet").write_bytes(codes.read_bytes())
        (parts / ".part-00001.parquet.tmp").write_bytes(b"half a part")
        succeed("encode", photos, codes, "--model", folder)
        assert pq.read_table(codes).equals(expected) and not parts.exists()

    def test_parts_are_joined_in_groups(self, tmp_path, monkeypatch):
        monkeypatch.setattr("transformers_tokenflow.commands.code_files.ROWS_PER_GROUP", 4)
        writer = CodeWriter(tmp_path / "codes.parquet", {})
        for index in range(11):
            writer.add([{"path": f"{index}", "codes": [index], "height": 1, "width": 1}])
            assert writer.flush() == 1
        assert writer.flush() == 0
        writer.finish()
        file = pq.ParquetFile(tmp_path / "codes.parquet")
        assert file.metadata.num_row_groups == 3
        assert file.read()["path"].to_pylist() == [str(index) for index in range(11)]

    def test_refuses_to_mix_codes(self, folder, other_folder, photos, tmp_path):
        codes = tmp_path / "codes.parquet"
        succeed("encode", photos, codes, "--model", folder)
        content = codes.read_bytes()
        assert "codebook (" in fail("encode", photos, codes, "--model", other_folder)
        message = fail("encode", photos, codes, "--model", folder, "--dtype", "bfloat16")
        assert "dtype (float32 there, bfloat16 now) differ" in message
        assert codes.read_bytes() == content and not (tmp_path / "codes.parquet.parts").exists()
        pq.write_table(pa.table({"path": ["x"]}), codes)
        assert "needs a column `codes`" in fail("encode", photos, codes, "--model", folder)

    def test_one_process_at_a_time(self, folder, photos, tmp_path):
        (tmp_path / "codes.parquet.parts").mkdir()
        with FileLock(tmp_path / "codes.parquet.parts" / "lock"):
            assert "another process" in fail("encode", photos, tmp_path / "codes.parquet", "--model", folder)
        succeed("encode", photos, tmp_path / "codes.parquet", "--model", folder)

    def test_nothing_to_encode(self, folder, photos, tmp_path):
        codes = tmp_path / "codes.parquet"
        assert "no picture could be encoded" in fail("encode", photos / "broken.png", codes, "--model", folder)
        (tmp_path / "empty").mkdir()
        assert "there are no pictures in" in fail("encode", tmp_path / "empty", codes, "--model", folder)
        assert not codes.exists() and not (tmp_path / "codes.parquet.parts").exists()

    def test_output_must_be_parquet(self, folder, photos):
        picture = photos / "grey.png"
        content = picture.read_bytes()
        result = run("encode", photos / "a", picture, "--model", folder)
        assert result.exit_code == 2 and picture.read_bytes() == content

    def test_clusters_are_a_page(self, folder, photos):
        assert run("cluster", photos, "--model", folder, "--output", photos / "grey.png").exit_code == 2
        with Image.open(photos / "grey.png") as picture:
            assert picture.format == "PNG"

    def test_preprocessing_that_does_not_fit(self, folder, photos, tmp_path):
        AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "misfit")
        TokenFlowImageProcessor(size={"shortest_edge": 48}).save_pretrained(tmp_path / "misfit")
        message = fail("encode", photos, tmp_path / "codes.parquet", "--model", tmp_path / "misfit")
        assert "image processor" in message and "48 pixels" in message

    def test_names_that_are_no_text(self, folder, photos, tmp_path):
        odd = os.fsencode(photos) + b"/\xff.png"
        os.rename(photos / "grey.png", odd)
        succeed("encode", photos, tmp_path / "codes.parquet", "--model", folder)
        assert f"{photos}/\\xff.png" in table(tmp_path / "codes.parquet")

    @pytest.mark.parametrize("name", [b"codes-2026-11-27T12:30:00.parquet", b"\xff.parquet"])
    def test_outputs_of_any_name(self, name, folder, photos, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        output = Path(os.fsdecode(name))
        succeed("encode", "photos", output, "--model", folder, "--json")
        assert json.loads(succeed("encode", "photos", output, "--model", folder, "--json").stdout)["done_before"] == 6
        with output.open("rb") as file:
            assert pq.read_table(file).num_rows == len(GOOD)
        succeed("decode", output, "decoded", "--model", folder)

    def test_full_disk(self, folder, photos, tmp_path, monkeypatch):
        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(pq, "write_table", full)
        assert "No space left" in fail("encode", photos, tmp_path / "codes.parquet", "--model", folder)


class TestDecode:
    @pytest.fixture
    def codes(self, folder, photos, tmp_path) -> Path:
        path = tmp_path / "codes.parquet"
        succeed("encode", photos, path, "--model", folder)
        return path

    def write(self, target: Path, **columns: list) -> Path:
        pq.write_table(pa.table(columns), target)
        return target

    def test_pictures_get_their_names_back(self, codes, folder, tmp_path):
        output = tmp_path / "new" / "decoded"
        result = succeed("decode", codes, output, "--model", folder, "--batch-size", 4)
        assert result.stdout == f"{output} got 6 pictures\n"
        assert sorted(path.name for path in output.iterdir()) == [
            "grey.png", "palette.png", "same-2.png", "same.png", "transparent.png", "turned.png"
        ]  # fmt: skip
        tokenizer = load_tokenizer(str(folder))
        rows = pq.read_table(codes).to_pylist()
        decoded = tokenizer.model.decode(torch.tensor([row["codes"] for row in rows])).pixel_values
        expected = tokenizer.processor.postprocess(decoded.detach())
        for row, picture in zip(rows, expected, strict=True):
            name = "same-2" if row["path"].endswith("jpg") and "same" in row["path"] else Path(row["path"]).stem
            assert np.array_equal(np.asarray(Image.open(output / f"{name}.png")), np.asarray(picture))

    def test_paths_never_lead_out_of_the_folder(self, folder, tmp_path):
        hostile = ["../../evil.png", "/etc/passwd", "C:\\windows\\evil.png", "..", "", "a\0b\n.png", "x" * 999, "../.."]
        source = self.write(tmp_path / "hostile.parquet", path=hostile, codes=[[1]] * len(hostile))
        before = {path for path in tmp_path.rglob("*")}
        succeed("decode", source, tmp_path / "out" / "in", "--model", folder)
        written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
        assert {path.parent for path in written} == {tmp_path / "out" / "in"} and len(written) == len(hostile)

    def test_any_file_with_codes(self, folder, tmp_path):
        lengths = [5, 5, 1, 21]
        source = tmp_path / "codes.parquet"
        columns = {"codes": [[index % 48 for index in range(length)] for length in lengths]}
        pq.write_table(pa.table(columns, schema=pa.schema([("codes", pa.large_list(pa.uint16()))])), source)
        succeed("decode", source, tmp_path / "out", "--model", folder)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"00000{i}.png" for i in range(4)]

    def test_other_models_codes(self, codes, folder, other_folder, tmp_path):
        message = fail("decode", codes, tmp_path / "out", "--model", other_folder)
        assert str(folder) in message and "--model" in message

    @pytest.mark.parametrize(
        ("codes", "message"),
        [
            ([[1] * 21, [1] * 7], "row 1 of .* has 7 codes; .* decodes 1, 5 or 21"),
            ([[48]], r"row 0 of .* codes outside \[0, 48\)"),
            ([[-1]], "codes outside"),
            ([[1, None, 1, 1, 1]], "codes outside"),
            ([None, [1]], "has 0 codes"),
            ([[0.5]], r"needs a column `codes` of lists of integers; it has codes \(list<.*double>\)"),
            ([1], "needs a column `codes`"),
        ],
    )
    def test_what_are_no_codes(self, codes, message, folder, tmp_path):
        source = self.write(tmp_path / "codes.parquet", codes=codes)
        assert re.search(message, fail("decode", source, tmp_path / "out", "--model", folder))

    def test_batches_larger_than_any_number_of_rows(self, codes, folder, tmp_path):
        succeed("decode", codes, tmp_path / "out", "--model", folder, "--batch-size", 10**24)

    def test_what_is_no_parquet(self, folder, photos, tmp_path):
        assert "can't be read as parquet" in fail("decode", photos / "grey.png", tmp_path / "out", "--model", folder)


class TestReconstruct:
    def test_pictures_table_and_sheet(self, folder, photos, tmp_path):
        output, sheet = tmp_path / "out", tmp_path / "sheets" / "sheet.png"
        result = succeed("reconstruct", photos, "--model", folder, "--output", output, "--sheet", sheet)
        assert len(list(output.glob("*.png"))) == 6 and f"{output} got 6 reconstructions\n" in result.stdout
        assert "mean" in result.stdout and "turned.jpg" in result.stdout
        assert "warning: left out 2 pictures that could not be read:" in result.stderr
        with Image.open(sheet) as drawn:
            assert drawn.width > 4 * 128 and drawn.height > 6 * 128

    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
    def test_sheets_overwrite_sheets_alone(self, suffix, folder, photos, tmp_path, monkeypatch):
        sheet = tmp_path / f"sheet.{suffix}"
        arguments = ["reconstruct", photos / "grey.png", "--output", tmp_path / "out", "--sheet", sheet]
        Image.new("RGB", (8, 8)).save(sheet)
        before = sheet.read_bytes()
        assert "exists without the mark of tokenflow's pictures" in fail(
            *arguments, "--model", tmp_path / "never loaded"
        )
        assert sheet.read_bytes() == before
        sheet.unlink()
        succeed(*arguments, "--model", folder)
        if suffix != "webp":  # has no place for a mark
            succeed(*arguments, "--model", folder)

    def test_dtype_and_batches(self, folder, photos, tmp_path):
        for name, options in {"one": [], "two": ["--batch-size", 1], "half": ["--dtype", "bfloat16"]}.items():
            succeed("reconstruct", photos / "a", "--model", folder, "--output", tmp_path / name, *options)
        one, two, half = (np.asarray(Image.open(tmp_path / name / "same.png"), int) for name in ("one", "two", "half"))
        assert np.array_equal(one, two) and one.shape == half.shape == (32, 32, 3)

    @pytest.mark.parametrize("command", ["reconstruct", "decode"])
    def test_pictures_of_other_origin_are_not_overwritten(self, folder, photos, tmp_path, command):
        own = tmp_path / "own"
        shutil.copytree(photos / "a", own)
        before, codes = (own / "same.png").read_bytes(), tmp_path / "codes.parquet"
        succeed("encode", own, codes, "--model", folder)
        source = {"reconstruct": [own, "--output"], "decode": [codes]}[command]
        message = fail(command, *source, own, "--model", folder)
        assert (
            "same.png exists without the mark of tokenflow's pictures, and would be overwritten: write elsewhere"
            in message
        )
        assert (own / "same.png").read_bytes() == before
        for _ in range(2):  # what the command itself has written it may write again
            succeed(command, *source, tmp_path / "out", "--model", folder)

    def test_what_commands_have_written_beside_others_is_taken_by_name_alone(self, folder, photos, tmp_path, caplog):
        output, sheet = photos / "out", photos / "sheet.png"
        for _ in range(2):
            result = succeed("reconstruct", photos, "--model", folder, "--output", output, "--sheet", sheet)
            assert "got 6 reconstructions" in result.stdout
        assert f"left out 7 pictures in {photos} that commands have written" in caplog.text
        caplog.clear()
        result = succeed("reconstruct", output / "grey.png", "--model", folder, "--output", tmp_path / "again")
        assert "got 1 reconstruction" in result.stdout and not caplog.text
        result = succeed("encode", output, tmp_path / "codes.parquet", "--model", folder)  # nothing else is there
        assert "got 6 pictures" in result.stdout and not caplog.text

    def test_nothing_to_reconstruct(self, folder, photos, tmp_path):
        message = fail("reconstruct", photos / "broken.png", "--model", folder, "--output", tmp_path / "out")
        assert "no picture could be reconstructed" in message


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    shapes = json.loads(TINY_CHECKPOINT.read_text())["state_dict"]
    generator = torch.Generator().manual_seed(0)
    weights = {key: torch.randn(shape, generator=generator) * 0.02 for key, shape in shapes.items()}
    path = tmp_path_factory.mktemp("official") / "tiny.pt"
    torch.save({"ema": weights}, path)
    return path


class TestConvert:
    HEADS = ("--set", "semantic_config.num_attention_heads=4", "--set", "semantic_decoder_config.num_attention_heads=4")

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_folder_works_with_the_auto_classes(self, checkpoint, dtype, tmp_path):
        result = succeed("convert", checkpoint, tmp_path / "model", "--dtype", dtype, *self.HEADS)
        assert "tokens" in result.stdout and "clip_vision_model" in result.stdout
        model = AutoModel.from_pretrained(tmp_path / "model", dtype="auto")
        assert model.dtype == getattr(torch, dtype)
        assert model.quantizer.codebook.semantic.dtype == torch.float32
        assert model.config.semantic_config.num_attention_heads == 4
        processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
        assert processor.do_halve and processor.size == {"shortest_edge": model.config.image_size}
        assert (tmp_path / "model" / "modeling_tokenflow.py").exists()
        stored = load_file(tmp_path / "model" / "model.safetensors")
        assert {value.dtype for value in stored.values()} == {torch.float32, getattr(torch, dtype)}

    def test_json(self, checkpoint, tmp_path):
        facts = json.loads(succeed("convert", checkpoint, tmp_path / "model", *self.HEADS, "--json").stdout)
        assert list(facts) == documented_keys("convert")
        assert facts["folder"] == str(tmp_path / "model") and facts["semantic_encoder"] == "clip_vision_model"
        model = AutoModel.from_pretrained(tmp_path / "model")
        assert facts["num_parameters"] == model.num_parameters()

    def test_what_can_not_be_converted(self, checkpoint, tmp_path):
        garbage = tmp_path / "garbage.pt"
        garbage.write_bytes(b"garbage")
        assert "can't be converted" in fail("convert", garbage, tmp_path / "model")
        assert "can't be converted" in fail("convert", garbage.rename(tmp_path / "g.safetensors"), tmp_path / "model")
        torch.save({"model": {"weight": torch.zeros(1)}}, garbage)
        assert "no official TokenFlow tokenizer" in fail("convert", garbage, tmp_path / "model")
        assert "num_heads" in fail("convert", checkpoint, tmp_path / "model", "--set", "num_heads=4")
        tiny_model("clip").save_pretrained(tmp_path / "ours")
        assert "needs no conversion: it is a tokenizer" in fail("convert", tmp_path / "ours", tmp_path / "model")
        assert not (tmp_path / "model").exists()
        assert run("convert", checkpoint, garbage).exit_code == 2

    def test_what_no_command_could_use(self, checkpoint, tmp_path):
        output = tmp_path / "model"
        message = fail("convert", checkpoint, output, *self.HEADS, "--set", "scales=[1,2]")
        assert "give a grid of " in message and "but the scales end at 2" in message
        for size in (8, 10**9, 10**30):
            message = fail("convert", checkpoint, output, *self.HEADS, "--set", f"image_size={size}")
            assert f"can't read pictures of {size} pixels" in message
        weights = torch.load(checkpoint)["ema"]
        weights["quant_conv.bias"] = weights["quant_conv.bias"] + 70000
        torch.save(weights, tmp_path / "large.pt")
        message = fail("convert", tmp_path / "large.pt", output, *self.HEADS, "--dtype", "float16")
        assert "pixel_encoder.projection.bias is damaged, or too large for torch.float16" in message
        weights["quant_conv.bias"][0] = torch.nan
        torch.save(weights, tmp_path / "large.pt")
        assert "pixel_encoder.projection.bias is damaged" in fail("convert", tmp_path / "large.pt", output, *self.HEADS)
        assert not output.exists()

    def test_folders_that_are_links_or_in_use(self, checkpoint, tmp_path, monkeypatch):
        (tmp_path / "model").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "model")
        succeed("convert", checkpoint, tmp_path / "link", *self.HEADS)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "model" / "config.json").is_file()
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        assert ". can't be replaced" in fail("convert", checkpoint, ".", *self.HEADS)


class TestTrain:
    @pytest.fixture
    def recipe(self, photos, tmp_path) -> Path:
        for name in ("broken.png", "cut [off].png", ".hidden.png", "palette.gif"):
            (photos / name).unlink()
        fields = {
            **{"image_size": 16, "scales": [1, 2], "codebook_size": 16, "norm_num_groups": 4, "pixel_channels": 8},
            **{"pixel_channel_multipliers": [1, 1], "pixel_patch_size": 4, "semantic_codebook_dim": 0},
            **{"pixel_num_res_blocks": 1, "pixel_latent_channels": 8},
        }
        training = {
            **{"output_dir": str(tmp_path / "run"), "max_steps": 5, "per_device_train_batch_size": 2},
            **{"perceptual_loss": "none", "adversarial_weight": 0.0, "report_to": "none", "use_cpu": True},
        }
        data = {"path": "imagefolder", "data_dir": str(photos), "cache_dir": str(tmp_path / "cache")}
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({"model": {"config": fields}, "data": data, "training": training}))
        return path

    def test_trains_and_saves(self, recipe, tmp_path):
        result = succeed("train", recipe, "--set", "training.max_steps=1", "--set", "training.learning_rate=1e-3")
        assert result.stdout == f"the model is in {tmp_path / 'run'}\n"
        state = json.loads((tmp_path / "run" / "checkpoint-1" / "trainer_state.json").read_text())
        assert state["global_step"] == 1
        assert AutoModel.from_pretrained(tmp_path / "run").config.scales == [1, 2]
        assert (tmp_path / "run" / "modeling_tokenflow.py").exists()
        facts = json.loads(succeed("train", recipe, "--set", "training.max_steps=2", "--json").stdout)
        assert list(facts) == documented_keys("train")
        assert (facts["output_dir"], facts["step"]) == (str(tmp_path / "run"), 2)
        assert facts["metrics"]["train_loss"] > 0

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("training.max_steps", "--set takes key=value"),
            ("max_steps=3", "a key begins with one of"),
            ("traning.max_steps=3", "a key begins with one of"),
            ("training.max_steps=[", "can't be read"),
            ("training.no_such_argument=1", "no_such_argument"),
            ("training.perceptual_loss=nice", "can't be followed"),
            ("model.config.codebook_size=0", "`codebook_size` must be at least 1"),
            ("data.data_dir=/nowhere", "can't be followed"),
        ],
    )
    def test_wrong_settings(self, setting, message, recipe):
        assert message in fail("train", recipe, "--set", setting)

    def test_too_few_pictures_for_kmeans(self, recipe):
        kmeans = {"codebook_initialization": "kmeans", "codebook_initialization_batches": 1}
        settings = (f"--set=training.{name}={value}" for name, value in kmeans.items())
        message = fail("train", recipe, *settings)
        assert "can't be followed: k-means of 16 entries" in message and "the pictures that it sees give 10" in message

    def test_whole_sections_can_be_set(self, recipe, tmp_path):
        data = json.loads(recipe.read_text())["data"]
        recipe.write_text(
            json.dumps({**json.loads(recipe.read_text()), "data": {"path": "nowhere"}, "evaluation": {"a": {}}})
        )
        succeed(
            *("train", recipe, "--set", f"data={json.dumps(data)}", "--set", "evaluation={}"),
            *("--set", "training.eval_strategy=no", "--set", "training.max_steps=1"),
        )
        assert "must hold settings under data" in fail("train", recipe, "--set", "data=3")
        assert "by name under evaluation" in fail("train", recipe, "--set", "evaluation.data_dir=x")
        assert "learning_rate must be a number; got '1e-3x'" in fail(
            "train", recipe, "--set", "training.learning_rate=1e-3x"
        )

    def test_wrong_recipes(self, recipe):
        recipe.write_text("model: {")
        assert "can't be read" in fail("train", recipe)
        recipe.write_text("modell: {}")
        assert "must hold the sections" in fail("train", recipe)

    def test_settings(self):
        assert read_settings(["a.b=1e-3", "c=[1, 2]", "d=x=y", "e=0.5", "f="]) == {
            "a.b": 0.001, "c": [1, 2], "d": "x=y", "e": 0.5, "f": None
        }  # fmt: skip
        assert read_settings(["a={b: 1e-2, c: [-2E3], d: 1e-3x}"]) == {"a": {"b": 0.01, "c": [-2000.0], "d": "1e-3x"}}
        assert nest({"a.b": 1, "a.c.d": 2, "e": 3}) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


def test_folders_are_searched_in_order(photos, tmp_path):
    found = find_pictures([photos / "turned.jpg", photos, photos / "notes.txt"])
    names = [path.relative_to(photos).as_posix() for path in found]
    assert names == [
        "turned.jpg", "broken.png", "cut [off].png", "grey.png", "palette.gif", "transparent.webp",
        "a/same.png", "b/same.jpg", "notes.txt",
    ]  # fmt: skip


def test_file_names():
    names = FileNames(Path("out"))
    assert [names.path_for(path).name for path in ("a/x.png", "b/X.jpg", "c/x.tar.gz", "x.png")] == [
        "x.png", "X-2.png", "x.tar.png", "x-3.png"
    ]  # fmt: skip
    assert safe_stem("пример 🦋.jpeg") == "пример 🦋"
    assert len(safe_stem("🦋" * 200).encode()) <= 200


def test_the_datasets_library_gets_pictures_beside_codes(folder, photos, tmp_path):
    codes = tmp_path / "codes.parquet"
    succeed("encode", photos / "a", codes, "--model", folder)
    dataset = load_dataset("parquet", data_files=str(codes), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset.cast_column("path", ImageFeature())[0]["path"].size == (60, 40)
