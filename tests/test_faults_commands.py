# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Commands that are killed, run out of disk or memory, or find damaged models: nothing is lost, and they say why."""

import json
import math
import random
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from faults import SEEDS, fork, kill_after, kill_at_write, needs_fork, small_disk, wait
from model_checks import assert_same_tensors
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from test_cli import fail, succeed
from tiny_models import tiny_model
from tiny_training import gradient_pictures
from transformers import AutoModel

from transformers_tokenflow import TokenFlowImageProcessor
from transformers_tokenflow.commands import CommandError, encoding
from transformers_tokenflow.commands.code_files import CodeWriter, open_codes, open_table, read_in_batches
from transformers_tokenflow.commands.conversion import convert_checkpoint
from transformers_tokenflow.commands.tokenizers import Tokenizer, load_tokenizer
from transformers_tokenflow.conversion import folder_written_whole, writing

SHAPES = Path(__file__).parent / "fixtures" / "tokenizer-clip-224.json"
HEADS = ["semantic_config.num_attention_heads=4", "semantic_decoder_config.num_attention_heads=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved tokenizer."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(path)
    TokenFlowImageProcessor(size={"shortest_edge": 32}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(str(folder))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Eight small pictures."""
    root = tmp_path_factory.mktemp("photos")
    for index, picture in enumerate(gradient_pictures(8)):
        picture.save(root / f"{index}.png")
    return root


@pytest.fixture
def many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is written at once."""
    monkeypatch.setattr(encoding, "SECONDS_BETWEEN_PARTS", 0.0)


def encode(photos: Path, output: Path, tokenizer: Tokenizer) -> encoding.EncodingReport:
    return encoding.encode_pictures([photos], output, tokenizer, 1)


@pytest.fixture(scope="module")
def whole(photos: Path, tokenizer: Tokenizer, tmp_path_factory) -> Path:
    """The codes of an undisturbed run."""
    path = tmp_path_factory.mktemp("whole") / "codes.parquet"
    encode(photos, path, tokenizer)
    return path


class TestEncode:
    @needs_fork
    @pytest.mark.parametrize("seed", SEEDS)
    def test_killed_at_any_moment(self, seed, photos, whole, tokenizer, tmp_path, many_parts):
        output = tmp_path / "codes.parquet"
        started = time.monotonic()
        assert wait(fork(lambda: encode(photos, tmp_path / "timed.parquet", tokenizer))) == 0
        seconds = time.monotonic() - started
        moments = random.Random(seed)
        for _ in range(3):
            kill_after(lambda: encode(photos, output, tokenizer), moments.uniform(0, seconds))
        report = encode(photos, output, tokenizer)
        assert report.encoded + report.done_before == 8
        assert pq.read_table(output).equals(pq.read_table(whole))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.parquet", "timed.parquet"]

    @needs_fork
    @pytest.mark.parametrize("number", [2, 7, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 40))])
    def test_killed_before_any_write(self, number, photos, whole, tokenizer, tmp_path, many_parts):
        output = tmp_path / "codes.parquet"
        status = kill_at_write(lambda: encode(photos, output, tokenizer), tmp_path, number)
        assert status in (-9, 0)  # the last numbers are more than there are writes
        assert not output.exists() or pq.read_table(output).equals(pq.read_table(whole))
        encode(photos, output, tokenizer)
        assert pq.read_table(output).equals(pq.read_table(whole))
        assert [path.name for path in tmp_path.iterdir()] == ["codes.parquet"]

    @needs_fork
    def test_two_at_once(self, photos, whole, tokenizer, tmp_path, many_parts):
        output, refused = tmp_path / "codes.parquet", tmp_path / "refused"

        def compete():
            try:
                encode(photos, output, tokenizer)
            except CommandError as error:
                refused.write_text(str(error))

        children = [fork(compete) for _ in range(2)]
        assert [wait(child) for child in children] == [0, 0]
        assert pq.read_table(output).equals(pq.read_table(whole))
        assert not refused.exists() or refused.read_text() == f"another process is writing {output}"

    def test_the_lock_is_kept_until_the_end(self, tmp_path, monkeypatch):
        writer = CodeWriter(tmp_path / "codes.parquet", {})
        writer.add([{"path": "a", "codes": [1], "height": 1, "width": 1}])
        join = CodeWriter._join

        def joined(self):
            join(self)
            with pytest.raises(CommandError, match="another process"):
                CodeWriter(tmp_path / "codes.parquet", {})

        monkeypatch.setattr(CodeWriter, "_join", joined)
        writer.finish()
        assert CodeWriter(tmp_path / "codes.parquet", {}).done == {"a"}

    def test_full_disk(self, folder, photos, whole, tmp_path, many_parts):
        """What is there stays, and with more room the rest is added."""
        with small_disk(tmp_path / "disk", 100_000) as enlarge:
            output = tmp_path / "disk" / "codes.parquet"
            succeed("encode", photos / "0.png", output, "--model", folder)
            content = output.read_bytes()
            (tmp_path / "disk" / "filler").write_bytes(bytes(70_000))
            message = fail("encode", photos, output, "--model", folder, "--batch-size", 1)
            assert "No space left on device" in message
            assert output.read_bytes() == content
            enlarge(1_000_000)
            succeed("encode", photos, output, "--model", folder)
            assert pq.read_table(output)["path"].to_pylist() == pq.read_table(whole)["path"].to_pylist()
            assert pq.read_table(output)["codes"].equals(pq.read_table(whole)["codes"])

    def test_too_little_memory_for_a_batch(self, folder, photos, whole, tmp_path, monkeypatch):
        tokenizer, sizes = load_tokenizer(str(folder)), []
        original = tokenizer.model.encode

        def scarce(pixel_values):
            sizes.append(len(pixel_values))
            if len(pixel_values) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return original(pixel_values)

        monkeypatch.setattr(tokenizer.model, "encode", scarce)
        encoding.encode_pictures([photos], tmp_path / "codes.parquet", tokenizer, 6)
        assert sizes == [6, 3, 1, 1, 1, 1, 1, 1, 1, 1]
        assert pq.read_table(tmp_path / "codes.parquet")["codes"].equals(pq.read_table(whole)["codes"])


class TestConvert:
    @pytest.fixture(scope="class")
    def checkpoint(self, tmp_path_factory) -> Path:
        """An official tokenizer of random weights."""
        shapes = json.loads(SHAPES.read_text())["state_dict"]
        path = tmp_path_factory.mktemp("official") / "tiny.pt"
        torch.save({"ema": {key: torch.rand(shape) for key, shape in shapes.items()}}, path)
        return path

    @pytest.fixture(autouse=True)
    def several_files(self, monkeypatch):
        monkeypatch.setattr(writing, "SHARD_SIZE", "400KB")

    @needs_fork
    @pytest.mark.parametrize("number", [3, 9, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 50))])
    def test_killed_before_any_write(self, number, checkpoint, tmp_path):
        """The folder gets its name last, so what has it is whole."""
        target = tmp_path / "models" / "model"
        status = kill_at_write(lambda: convert_checkpoint(checkpoint, target, settings=HEADS), tmp_path, number)
        assert status in (-9, 0)
        if not target.exists():
            convert_checkpoint(checkpoint, target, settings=HEADS)
            assert [path.name for path in target.parent.iterdir()] == ["model"]
        assert isinstance(load_tokenizer(str(target)), Tokenizer)
        assert len(list(target.glob("*.safetensors"))) > 2

    @needs_fork
    @pytest.mark.parametrize("seed", SEEDS)
    def test_killed_at_any_moment(self, seed, checkpoint, tmp_path):
        target = tmp_path / "model"
        started = time.monotonic()
        assert wait(fork(lambda: convert_checkpoint(checkpoint, tmp_path / "timed", settings=HEADS))) == 0
        seconds = random.Random(seed).uniform(0, time.monotonic() - started)
        kill_after(lambda: convert_checkpoint(checkpoint, target, settings=HEADS), seconds)
        if not target.exists():
            convert_checkpoint(checkpoint, target, settings=HEADS)
        assert isinstance(load_tokenizer(str(target)), Tokenizer)

    def test_two_at_once(self, checkpoint, tmp_path):
        with (
            folder_written_whole(tmp_path / "model"),
            pytest.raises(CommandError, match=f"another process is writing {tmp_path / 'model'}"),
        ):
            convert_checkpoint(checkpoint, tmp_path / "model", settings=HEADS)

    def test_a_folder_made_meanwhile_stays(self, tmp_path):
        target = tmp_path / "model"
        with pytest.raises(FileExistsError), folder_written_whole(target):
            target.mkdir()
            (target / "notes.txt").write_text("mine")
        assert [path.name for path in tmp_path.rglob("*")] == ["model", "notes.txt"]

    def test_full_disk(self, checkpoint, tmp_path):
        with small_disk(tmp_path / "disk", 500_000) as enlarge:
            target = tmp_path / "disk" / "model"
            message = fail("convert", checkpoint, target, "--set", HEADS[0], "--set", HEADS[1])
            assert "No space left on device" in message
            assert not list((tmp_path / "disk").iterdir())
            enlarge(50_000_000)
            succeed("convert", checkpoint, target, "--set", HEADS[0], "--set", HEADS[1])
            assert isinstance(load_tokenizer(str(target)), Tokenizer)


class TestSave:
    @needs_fork
    @pytest.mark.parametrize("number", [2, 5, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 30))])
    def test_killed_before_any_write(self, number, tmp_path):
        """A model's folder gives the model, or an error."""
        model, target = tiny_model(), tmp_path / "model"
        assert kill_at_write(lambda: model.save_pretrained(target), tmp_path, number) in (-9, 0)
        try:
            loaded = load_tokenizer(str(target))
        except CommandError:
            return
        assert_same_tensors(loaded.model, model)

    def test_full_disk(self, tmp_path):
        with small_disk(tmp_path / "disk", 100_000) as enlarge:
            model, target = tiny_model(), tmp_path / "disk" / "model"
            with pytest.raises((OSError, SafetensorError), match="No space left on device"):
                model.save_pretrained(target)
            with pytest.raises(CommandError):
                load_tokenizer(str(target))
            enlarge(10_000_000)
            model.save_pretrained(target)
            assert_same_tensors(load_tokenizer(str(target)).model, model)


class TestDamagedModels:
    @pytest.fixture
    def damaged(self, folder, tmp_path) -> Path:
        return shutil.copytree(folder, tmp_path / "damaged")

    def test_truncated_weights(self, damaged, photos, tmp_path):
        weights = damaged / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        assert f"{weights} is damaged" in fail("encode", photos, tmp_path / "c.parquet", "--model", damaged)

    def test_the_damaged_one_of_several_files(self, damaged, photos, tmp_path):
        AutoModel.from_pretrained(damaged).save_pretrained(damaged, max_shard_size="50KB")
        (damaged / "model.safetensors").unlink(missing_ok=True)
        weights = sorted(damaged.glob("model-*.safetensors"))[1]
        weights.write_bytes(b"\xff" + weights.read_bytes()[1:])
        message = fail("encode", photos, tmp_path / "c.parquet", "--model", damaged)
        assert f"{weights} is damaged" in message and message.count("model-") == 1

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("name", ["quantizer.codebook.semantic", "pixel_decoder.conv_out.bias"])
    def test_weights_that_are_no_numbers(self, name, value, damaged, photos, tmp_path):
        weights = load_file(damaged / "model.safetensors")
        weights[name].view(-1)[0] = value
        save_file(weights, damaged / "model.safetensors", {"format": "pt"})
        message = fail("encode", photos, tmp_path / "c.parquet", "--model", damaged)
        assert f"{damaged} are damaged" in message and f"{name} is not finite" in message

    def test_any_bit(self, folder, damaged):
        """A file with a bit flipped is refused with its name, or loads where only a value is another."""
        content = (folder / "model.safetensors").read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        bits = random.Random(0)
        refused = 0
        for index in range(30):
            flipped = bytearray(content)
            end = header if index % 3 else len(content)
            flipped[bits.randrange(end)] ^= 1 << bits.randrange(8)
            (damaged / "model.safetensors").write_bytes(flipped)
            try:
                load_tokenizer(str(damaged))
            except CommandError as error:
                assert str(damaged) in str(error)
                refused += 1
        assert refused >= 10


def test_a_table_that_has_fewer_rows_than_it_says():
    """As after a flipped bit in its description, of which a fuzzer found one."""
    table = pa.table({"codes": [[1], [2]]})
    file = SimpleNamespace(metadata=SimpleNamespace(num_rows=3), iter_batches=lambda size, columns: table.to_batches(1))
    rows = read_in_batches(Path("codes.parquet"), file, 1, ["codes"])
    assert len(next(rows)) + len(next(rows)) == 2
    with pytest.raises(CommandError, match=r"codes.parquet is damaged: it says that it has 3 rows, but has 2"):
        next(rows)


def test_a_table_whose_names_are_no_letters(tmp_path):
    path = tmp_path / "codes.parquet"
    pq.write_table(pa.table({"codes": [[1], [2]]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"codes", b"\x80odes"))
    for use in (open_table, open_codes, lambda path: CodeWriter(path, {})):
        with pytest.raises(CommandError, match="codes.parquet can't be read as parquet: 'utf-8' codec can't decode"):
            use(path)
    assert list(tmp_path.iterdir()) == [path]
