# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Streams of shards: every row once in a pass, by whatever readers; resumed in its middle; broken rows counted."""

import io
import itertools
import json
import random
import tarfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from faults import needs_fork
from launched import run_launched
from safetensors.torch import load_file
from test_trainers_tokenizer import assert_same
from tiny_models import tiny_model
from tiny_text_to_image_training import code_rows
from tiny_text_to_image_training import tiny_trainer as generator_trainer
from tiny_training import gradient_pictures, tiny_arguments, tiny_teacher
from tiny_understanding_training import message_rows, question_rows
from tiny_understanding_training import tiny_trainer as understanding_trainer
from torch.utils.data import DataLoader

from transformers_tokenflow.trainers import TokenFlowTrainer
from transformers_tokenflow.trainers.checkpoints import EXTRA_STATE_NAME
from transformers_tokenflow.trainers.data import PictureTransform, load_pictures
from transformers_tokenflow.trainers.stream_trainer import PositionedCollator, StreamProgress
from transformers_tokenflow.trainers.streams import ExampleStream, Unusable

ROWS = 24


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_shards(folder: Path, kind: str, count: int, rows: int = ROWS) -> dict[str, Any]:
    """Rows with the numbers up to `rows` in so many shards; gives the arguments of `load_dataset`."""
    for shard in range(count):
        numbers = list(range(shard, rows, count))
        if kind == "parquet":
            datasets.Dataset.from_dict({"txt": list(map(str, numbers))}).to_parquet(
                folder / f"{shard:02}.parquet", batch_size=2
            )
            continue
        with tarfile.open(folder / f"{shard:02}.tar", "w") as tar:
            for number in numbers:
                add_file(tar, f"{number:04}.txt", str(number).encode())
    suffix = "parquet" if kind == "parquet" else "tar"
    return {"path": kind, "data_files": {"train": str(folder / f"*.{suffix}")}}


def add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def read_number(row: dict[str, Any], generator: random.Random) -> dict[str, Any]:
    """The row's number with something drawn."""
    return {"number": int(row["txt"]), "drawn": generator.random()}


def number_stream(options: dict[str, Any], make_example: Any = read_number, **settings: Any) -> ExampleStream:
    rows = datasets.load_dataset(**options, split="train", streaming=True).select_columns(["txt"])
    return ExampleStream(rows, make_example, **{"seed": 3, "buffer_size": 5, **settings})


@pytest.fixture(params=["parquet", "webdataset"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def examples_by_pass(stream: ExampleStream, passes: int) -> dict[int, list[int]]:
    """The numbers that the first passes of a stream's reader give."""
    found: dict[int, list[int]] = {number: [] for number in range(passes)}
    for example in stream:
        number = json.loads(stream.position())["tasks"][0]["pass"]
        if number >= passes:
            break
        found[number].append(example["number"])
    return found


@pytest.mark.parametrize(("shards", "readers"), [(4, 1), (4, 2), (4, 4), (5, 2), (3, 4), (1, 3), (2, 4), (7, 3)])
def test_every_row_once_in_a_pass(kind: str, shards: int, readers: int, tmp_path: Path):
    stream = number_stream(write_shards(tmp_path, kind, shards))
    passes: dict[int, list[int]] = {number: [] for number in range(3)}
    sizes = []
    for reader in range(readers):
        stream.share_out(readers, reader, workers=0)
        found = examples_by_pass(stream, 3)
        sizes.append(len(found[0]))
        for number, numbers in found.items():
            passes[number] += numbers
    assert all(sorted(numbers) == list(range(ROWS)) for numbers in passes.values())
    assert passes[0] != passes[1] != passes[2]
    if shards % readers == 0 or shards < readers:
        assert max(sizes) - min(sizes) <= shards


def test_order_and_draws_depend_on_the_seed_alone(kind: str, tmp_path: Path):
    options = write_shards(tmp_path, kind, 3)
    first, again, other = (
        [tuple(example.values()) for example in itertools.islice(number_stream(options, seed=seed), 2 * ROWS)]
        for seed in (0, 0, 1)
    )
    assert first == again and first[:ROWS] != other[:ROWS]
    assert len({drawn for _, drawn in first}) == 2 * ROWS  # another one in every pass


def test_for_evaluation_once_in_order(kind: str, tmp_path: Path):
    stream = number_stream(write_shards(tmp_path, kind, 3), train=False)
    in_order = [number for shard in range(3) for number in range(shard, ROWS, 3)]
    assert [example["number"] for example in stream] == in_order == [example["number"] for example in stream]
    loader = DataLoader(stream, batch_size=4, num_workers=2, collate_fn=lambda rows: [row["number"] for row in rows])
    assert sorted(number for batch in loader for number in batch) == list(range(ROWS))


def test_many_files_are_read_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("transformers_tokenflow.trainers.streams.MAX_SHARDS", 3)
    stream = number_stream(write_shards(tmp_path, "parquet", 8))
    assert stream.num_shards == 3
    assert sorted(examples_by_pass(stream, 1)[0]) == list(range(ROWS))


@pytest.mark.parametrize("part", ["take", "skip"])
@pytest.mark.parametrize("wrap", [datasets.IterableDataset.map, lambda rows: datasets.concatenate_datasets([rows])])
def test_what_is_taken_or_left_is_trained_on_whatever_the_readers(kind: str, part: str, wrap: Any, tmp_path: Path):
    rows = datasets.load_dataset(**write_shards(tmp_path, kind, 4), split="train", streaming=True)
    rows = wrap(getattr(rows.select_columns(["txt"]), part)(7))
    in_order = [example["number"] for example in ExampleStream(rows, read_number, train=False)]
    assert in_order == [int(row["txt"]) for row in rows]
    stream, found = ExampleStream(rows, read_number, buffer_size=5), []
    for reader in range(2):
        stream.share_out(2, reader, 0)
        found += examples_by_pass(stream, 1)[0]
    assert sorted(found) == sorted(in_order)

    undisturbed = [example["number"] for example in itertools.islice(stream, 20)]
    for count, _ in enumerate(itertools.islice(stream, 10), start=1):
        progress = StreamProgress(stream)
        progress.use(stream.position())
        resumed = ExampleStream(rows, read_number, buffer_size=5)
        resumed.share_out(2, 1, 0)
        resumed.load_state_dict(json.loads(json.dumps(progress.state_dict())))
        assert [example["number"] for example in itertools.islice(resumed, 20 - count)] == undisturbed[count:]


def test_what_is_bound_to_a_selection_is_not_copied(kind: str, tmp_path: Path):
    lock = threading.Lock()
    rows = datasets.load_dataset(**write_shards(tmp_path, kind, 2), split="train", streaming=True)
    rows = rows.map(lambda row, held: row, fn_kwargs={"held": lock}).take(7)
    assert len(examples_by_pass(ExampleStream(rows, read_number), 1)[0]) == 7


@pytest.mark.parametrize("stop", [1, 4, 5, 6, 13, ROWS - 1, ROWS, ROWS + 7])
def test_goes_on_where_it_was(kind: str, stop: int, tmp_path: Path):
    options = write_shards(tmp_path, kind, 3)
    undisturbed = list(itertools.islice(number_stream(options), stop + ROWS))
    stream = number_stream(options)
    assert list(itertools.islice(stream, stop)) == undisturbed[:stop]
    progress = StreamProgress(stream)
    progress.use(stream.position())
    made = []

    def counted(row: dict[str, Any], generator: random.Random) -> dict[str, Any]:
        made.append(row)
        return read_number(row, generator)

    resumed = number_stream(options, counted)
    StreamProgress(resumed).load_state_dict(json.loads(json.dumps(progress.state_dict())))
    assert list(itertools.islice(resumed, ROWS)) == undisturbed[stop:]
    assert len(made) == ROWS  # nothing is made of what came before


@pytest.mark.parametrize("readers", [1, 3, 8])
def test_goes_on_in_another_number_of_readers(kind: str, readers: int, tmp_path: Path):
    """However far each of the former readers was, all passes that had been begun are finished, every row once."""
    options = write_shards(tmp_path, kind, 4)
    counts, states = Counter(), {}
    for reader, count in enumerate((0, 3, 9, 14)):
        stream = number_stream(options)
        stream.share_out(4, reader, workers=0)
        for example in itertools.islice(stream, count):
            counts[example["number"]] += 1
        if count:
            position = json.loads(stream.position())
            states[position.pop("reader")] = position
    last = max(task["pass"] for state in states.values() for task in state["tasks"])
    assert last == 2
    stream = number_stream(options)
    stream.share_out(4, 0, workers=0)
    state = stream.state_dict(states)
    for reader in range(readers):
        stream = number_stream(options)
        stream.share_out(readers, reader, workers=0)
        stream.load_state_dict(state)
        for example in stream:
            if json.loads(stream.position())["tasks"][0]["pass"] > last:
                break
            counts[example["number"]] += 1
    assert counts == dict.fromkeys(range(ROWS), last + 1)


def test_what_is_not_usable_is_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def even(row: dict[str, Any], generator: random.Random) -> dict[str, Any]:
        if int(row["txt"]) % 2:
            raise Unusable(f"{row['txt']} is odd")
        return read_number(row, generator)

    stream = number_stream(write_shards(tmp_path, "parquet", 2), even, buffer_size=4)
    progress = StreamProgress(stream)
    assert sorted(examples_by_pass(stream, 1)[0]) == list(range(0, ROWS, 2))
    progress.use(stream.position())
    assert ROWS // 2 <= progress.skipped() <= ROWS
    assert "skipped row 0 of shard 1: 1 is odd" in caplog.text
    stream.load_state_dict(progress.state_dict())
    assert StreamProgress(stream).skipped() == progress.skipped()


def test_nothing_usable_is_an_error(tmp_path: Path):
    def none(row: dict[str, Any], generator: random.Random) -> dict[str, Any]:
        raise Unusable("no picture")

    options = write_shards(tmp_path, "parquet", 2)
    with pytest.raises(ValueError, match=r"no row that could be used, such as row \d+ of shard \d: no picture"):
        next(iter(number_stream(options, none)))
    assert list(number_stream(options, none, train=False)) == []


def test_what_is_wrong_is_said_with_its_row(tmp_path: Path):
    def wrong(row: dict[str, Any], generator: random.Random) -> dict[str, Any]:
        raise ValueError("no codes of the codebook")

    options = write_shards(tmp_path, "parquet", 2)
    with pytest.raises(ValueError, match="row 0 of shard 0: no codes of the codebook"):
        list(number_stream(options, wrong, train=False))
    with pytest.raises(ValueError, match="at least 1 row; got 0"):
        number_stream(options, buffer_size=0)
    state = number_stream(options).state_dict({})
    with pytest.raises(ValueError, match="the data come in 2 shards, and came in 9 when"):
        number_stream(options).load_state_dict({**state, "num_shards": 9})


# ---- Trainers ----


def codes_in_shards(folder: Path, count: int) -> datasets.IterableDataset:
    """Captions of their own and codes, in so many shards."""
    texts = [[f"thing {number}"] for number in range(16)]
    rows = code_rows(16).remove_columns("text").add_column("text", texts)
    for shard in range(count):
        rows.shard(count, shard).to_parquet(folder / f"codes-{shard}.parquet")
    files = {"train": str(folder / "codes-*.parquet")}
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)


@needs_fork
@pytest.mark.parametrize("shards", [4, 3])
def test_two_processes_with_two_workers_see_each_example_once(shards: int, tmp_path: Path):
    rows = codes_in_shards(tmp_path, shards)

    def read() -> None:
        settings = {"dataloader_num_workers": 2, "text_dropout": 0.0, "per_device_train_batch_size": 1}
        trainer = generator_trainer(tmp_path, rows=rows, **settings)
        trainer.data_collator = lambda examples: {"text": examples[0]["prompt"].partition(".")[0]}
        found = []
        for batch in itertools.islice(trainer.get_train_dataloader(), 26):
            position = json.loads(batch["stream_position"])
            found.append((position["reader"], position["tasks"][0]["pass"], batch["text"]))
        Path(tmp_path, f"{trainer.args.process_index}.json").write_text(json.dumps(found))

    run_launched(read, 2)
    found = [entry for rank in range(2) for entry in json.loads((tmp_path / f"{rank}.json").read_text())]
    assert {reader for reader, _, _ in found} == {0, 1, 2, 3}
    for number in range(2):
        texts = [text for _, pass_number, text in found if pass_number == number]
        assert sorted(texts) == sorted(f"thing {index}" for index in range(16))


def questions_in_shards(folder: Path) -> datasets.IterableDataset:
    """Three shards, which are made once."""
    for shard in range(3):
        path = folder / f"questions-{shard}.parquet"
        if not path.exists():
            question_rows(16).shard(3, shard).to_parquet(path)
    files = {"train": str(folder / "questions-*.parquet")}
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)


def pictures_in_tars(folder: Path, broken: bool = False) -> ExampleStream:
    """Three tar files of jpegs for training, one of which may be cut off."""
    pictures = gradient_pictures(9)
    for shard in range(3):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(shard, 9, 3):
                encoded = io.BytesIO()
                pictures[number].save(encoded, "jpeg")
                content = encoded.getvalue()
                add_file(tar, f"{number}.jpg", content[:-200] if broken and number == 4 else content)
    files = {"train": str(folder / "*.tar")}
    transform = PictureTransform(32)
    return load_pictures("webdataset", transform, streaming=True, column="jpg", shuffle_buffer=4, data_files=files)


def make_trainer(kind: str, folder: Path, output: Path, **changes: Any) -> Any:
    """A trainer of a stream, whose steps draw from torch's generator too where the model's do."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2, **changes}
    if kind == "tokenizer":
        args = tiny_arguments(output, **{"scale_dropout": 0.5, "per_device_train_batch_size": 2, **settings})
        return TokenFlowTrainer(tiny_model("clip"), args, tiny_teacher(), train_dataset=pictures_in_tars(folder))
    if kind == "text-to-image":
        return generator_trainer(output, rows=codes_in_shards(folder, 3), coarse_step_probability=0.5, **settings)
    return understanding_trainer(output, rows=questions_in_shards(folder), **settings)


@pytest.mark.parametrize(("kind", "workers"), [("tokenizer", 2), ("text-to-image", 2), ("understanding", 0)])
def test_training_goes_on_bit_for_bit(kind: str, workers: int, tmp_path: Path):
    undisturbed = make_trainer(kind, tmp_path, tmp_path / "whole", dataloader_num_workers=workers)
    undisturbed.train()
    resumed = make_trainer(kind, tmp_path, tmp_path / "resumed", dataloader_num_workers=workers)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same(resumed.model.state_dict(), undisturbed.model.state_dict())
    assert_same(resumed.progress.state_dict(), undisturbed.progress.state_dict())
    timings = ("runtime", "per_second", "flos", "train_loss")
    logs = [
        [
            {name: value for name, value in entry.items() if not name.endswith(timings)}
            for entry in trainer.state.log_history
        ]
        for trainer in (resumed, undisturbed)
    ]
    assert_same(*logs)


def test_training_begins_anew_where_that_is_asked_for(tmp_path: Path):
    make_trainer("text-to-image", tmp_path, tmp_path / "run", max_steps=2).train()
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    for skip, given in ((False, 24), (True, 8)):
        settings = {"max_steps": 3, "save_strategy": "no", "ignore_data_skip": skip}
        trainer = make_trainer("text-to-image", tmp_path, tmp_path / "again", **settings)
        trainer.train(resume_from_checkpoint=checkpoint)
        (reader,) = trainer.progress.state_dict()["readers"]
        (task,) = reader["tasks"]
        assert 16 * task["pass"] + task["given"] == given


def test_a_truncated_picture_is_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    stream = pictures_in_tars(tmp_path, broken=True)
    args = tiny_arguments(tmp_path / "run", per_device_train_batch_size=4)
    trainer = TokenFlowTrainer(tiny_model("clip"), args, tiny_teacher(), train_dataset=stream)
    trainer.train()
    logs = [entry["skipped_rows"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 4 and logs == sorted(logs) and logs[-1] == 2  # 16 pictures are two passes of the eight
    assert "the picture 4.jpg can't be read" in caplog.text


@needs_fork
def test_two_processes_go_on_and_count_together(tmp_path: Path):
    """Batches of the processes differ in length here, which accelerate would not dispatch."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    questions_in_shards(tmp_path)  # or one process would read what the other is about to write

    def train(folder: Path, checkpoint: str | None = None) -> None:
        trainer = make_trainer("understanding", tmp_path, folder)
        trainer.train(resume_from_checkpoint=checkpoint)

    run_launched(lambda: train(whole), 2)
    run_launched(lambda: train(resumed, str(whole / "checkpoint-2")), 2)
    weights = [load_file(folder / "checkpoint-4" / "model.safetensors") for folder in (whole, resumed)]
    assert_same(*weights)
    states = [torch.load(folder / "checkpoint-4" / EXTRA_STATE_NAME)["stream"] for folder in (whole, resumed)]
    assert_same(*states)
    assert len(states[0]["readers"]) == 2
    train(tmp_path / "alone", str(whole / "checkpoint-2"))  # in another number of processes
    alone = torch.load(tmp_path / "alone" / "checkpoint-4" / EXTRA_STATE_NAME)["stream"]
    assert len(alone["readers"]) == 1


@needs_fork
def test_two_processes_evaluate_a_stream(tmp_path: Path):
    """Its batches differ in length too."""
    rows = message_rows(16)

    def evaluate() -> None:
        trainer = understanding_trainer(tmp_path, per_device_eval_batch_size=2)
        metrics = trainer.evaluate(rows.to_iterable_dataset())
        Path(tmp_path, f"{trainer.args.process_index}.json").write_text(json.dumps(metrics))

    run_launched(evaluate, 2)
    metrics = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    expected = understanding_trainer(tmp_path).evaluate(rows)
    for name in ("eval_loss", "eval_token_accuracy", "eval_answer_accuracy"):
        assert metrics[0][name] == metrics[1][name] == pytest.approx(expected[name], abs=1e-5)


def test_positions_come_from_the_worker(tmp_path: Path):
    stream = number_stream(write_shards(tmp_path, "parquet", 4))
    stream.share_out(1, 0, workers=2)
    collate = PositionedCollator(lambda rows: {"numbers": [row["number"] for row in rows]}, stream)
    progress = StreamProgress(stream)
    for batch in itertools.islice(DataLoader(stream, 2, num_workers=2, collate_fn=collate), 3):
        progress.use(batch["stream_position"])
    given = [reader["tasks"][0]["given"] for reader in progress.state_dict()["readers"]]
    assert given == [4, 2]
