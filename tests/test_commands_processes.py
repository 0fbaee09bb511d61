# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Encoding in several processes: shared out, killed, and gone on with in another number of them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest
import torch
from faults import SEEDS, needs_fork, wait
from launched import launch, run_launched
from tiny_models import tiny_model
from tiny_training import gradient_pictures

from transformers_tokenflow import TokenFlowImageProcessor
from transformers_tokenflow.commands import CommandError, encoding, evaluation
from transformers_tokenflow.commands.code_files import CodeWriter
from transformers_tokenflow.commands.processes import ALONE, Processes, launched_processes
from transformers_tokenflow.commands.tokenizers import Tokenizer

PICTURES = 12


@pytest.mark.parametrize("count", [1, 2, 3, 5, 13])
def test_shares_are_pieces_of_like_length(count: int):
    items = list(range(12))
    shares = [Processes(rank, count).share(items) for rank in range(count)]
    assert sum(shares, []) == items
    assert {len(share) for share in shares} <= {12 // count, -(-12 // count)}


def test_alone_nothing_is_launched(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with launched_processes("auto") as processes:
        assert processes == ALONE and processes.is_main
        processes.wait()
        assert processes.gather("this") == ["this"]


def test_several_need_accelerate(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(CommandError, match="several processes need accelerate"), launched_processes("cpu"):
        pass


@pytest.mark.parametrize("enter", [launched_processes, evaluation.processes])
def test_shares_may_take_days(enter, monkeypatch: pytest.MonkeyPatch):
    state = Mock(process_index=0, num_processes=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState", state)
    with enter("cpu"):
        pass
    state.assert_called_once_with(cpu=True, timeout=timedelta(days=30))


@pytest.mark.parametrize("enter", [launched_processes, evaluation.processes])
def test_processes_that_do_not_find_each_other(enter, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState", Mock(side_effect=RuntimeError("nobody there")))
    with pytest.raises(CommandError, match="don't find each other: nobody there"), enter("cpu"):
        pass


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    processor = TokenFlowImageProcessor(size={"shortest_edge": 32})
    return Tokenizer("tiny", tiny_model(), processor, torch.device("cpu"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Pictures, one of which can't be read."""
    root = tmp_path_factory.mktemp("photos")
    for index, picture in enumerate(gradient_pictures(PICTURES)):
        picture.save(root / f"{index:02}.png")
    (root / "broken.png").write_bytes((root / "00.png").read_bytes()[:60])
    return root


@pytest.fixture
def many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is written at once."""
    monkeypatch.setattr(encoding, "SECONDS_BETWEEN_PARTS", 0.0)


def encode(photos: Path, output: Path, tokenizer: Tokenizer, seconds: float = 0.0) -> encoding.EncodingReport:
    """Encode in as many processes as there are; each of them takes so long for a picture."""
    with launched_processes("cpu") as processes:
        rows = encoding.encode_batch

        def slowly(*args):
            time.sleep(seconds)
            return rows(*args)

        encoding.encode_batch = slowly
        try:
            return encoding.encode_pictures([photos], output, tokenizer, 1, processes=processes)
        finally:
            encoding.encode_batch = rows


@pytest.fixture(scope="module")
def whole(photos: Path, tokenizer: Tokenizer, tmp_path_factory) -> Path:
    """The codes of one process that nothing happened to."""
    path = tmp_path_factory.mktemp("whole") / "codes.parquet"
    encode(photos, path, tokenizer)
    return path


def rows_of(path: Path) -> list[dict]:
    """The rows in order of their pictures."""
    return sorted(pq.read_table(path).to_pylist(), key=lambda row: row["path"])


@needs_fork
@pytest.mark.parametrize("count", [2, 3])
def test_several_give_what_one_gives(count: int, photos: Path, whole: Path, tokenizer: Tokenizer, tmp_path: Path):
    output = tmp_path / "codes" / "codes.parquet"

    def encode_and_tell() -> None:
        report = encode(photos, output, tokenizer)
        (tmp_path / f"{os.environ['RANK']}.json").write_text(json.dumps(vars(report)))

    run_launched(encode_and_tell, count)
    assert pq.read_table(output).equals(pq.read_table(whole))
    assert [path.name for path in output.parent.iterdir()] == ["codes.parquet"]
    for rank in range(count):
        report = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (report["encoded"], report["done_before"]) == (PICTURES, 0)
        assert [Path(path).name for path in report["failures"]] == ["broken.png"]


@needs_fork
@pytest.mark.parametrize("seed", SEEDS)
def test_killed_and_gone_on_with_in_another_number(
    seed: int, photos: Path, whole: Path, tokenizer: Tokenizer, tmp_path: Path, many_parts
):
    """All are killed, or one is, after which a launcher ends the others."""
    output, moments = tmp_path / "codes.parquet", random.Random(seed)
    for count in moments.sample([2, 2, 3], 3):
        children = launch(lambda: encode(photos, output, tokenizer, seconds=0.05), count)
        time.sleep(moments.uniform(0.1, 0.6))
        first = moments.randrange(count)
        os.kill(children[first], signal.SIGKILL)
        if moments.random() < 0.5:
            time.sleep(0.1)
        for child in children[:first] + children[first + 1 :]:
            os.kill(child, signal.SIGKILL)
        for child in children:
            wait(child)
    run_launched(lambda: encode(photos, output, tokenizer), moments.choice([1, 2]))
    assert rows_of(output) == rows_of(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["codes.parquet"]


@needs_fork
def test_what_was_done_is_not_done_again(photos: Path, whole: Path, tokenizer: Tokenizer, tmp_path: Path, many_parts):
    output = tmp_path / "codes.parquet"

    def killed() -> None:
        with launched_processes("cpu") as processes:
            rows, calls = encoding.encode_batch, []

            def encode_three(*args):
                calls.append(args)
                if len(calls) > 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                return rows(*args)

            encoding.encode_batch = encode_three
            encoding.encode_pictures([photos], output, tokenizer, 1, processes=processes)

    assert [wait(child) for child in launch(killed, 2)] == [-signal.SIGKILL] * 2
    assert len(list((tmp_path / "codes.parquet.parts").glob("part-*"))) == 6
    report = encode(photos, output, tokenizer)
    assert (report.done_before, report.encoded) == (6, 6)
    assert rows_of(output) == rows_of(whole)


def test_what_is_left_of_a_killed_run_overwrites_nothing(tmp_path: Path):
    """A process that outlives its run a little has the same number, and the same part to write."""
    row = {"codes": [1], "height": 1, "width": 1}
    stale = CodeWriter(tmp_path / "codes.parquet", {})
    stale.lock.release()
    writer = CodeWriter(tmp_path / "codes.parquet", {})
    for each, name in ((writer, "a"), (stale, "b")):
        each.add([{"path": name, **row}])
        assert each.flush() == 1
    writer.finish()
    assert sorted(row["path"] for row in rows_of(tmp_path / "codes.parquet")) == ["a", "b"]


@needs_fork
def test_another_run_is_refused(photos: Path, tokenizer: Tokenizer, tmp_path: Path):
    output = tmp_path / "codes.parquet"
    writer = CodeWriter(output, {})

    def refused() -> None:
        try:
            encode(photos, output, tokenizer)
        except CommandError as error:
            (tmp_path / "refused").write_text(str(error))
            os._exit(1)

    main, other = launch(refused, 2)
    assert wait(main) == 1
    os.kill(other, signal.SIGKILL)  # as launchers do
    wait(other)
    assert (tmp_path / "refused").read_text() == f"another process is writing {output}"
    writer.close()


@pytest.mark.slow
def test_the_command_line_launched(photos: Path, whole: Path, tokenizer: Tokenizer, tmp_path: Path):
    """Only the main process prints the result."""
    tokenizer.model.save_pretrained(tmp_path / "model")
    tokenizer.processor.save_pretrained(tmp_path / "model")
    output = tmp_path / "codes.parquet"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "transformers_tokenflow.cli", "encode", photos, output, "--model", tmp_path / "model", "--json"]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["encoded"] == PICTURES
    assert rows_of(output) == rows_of(whole)
