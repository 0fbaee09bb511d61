# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What is kept of an evaluation while it runs, its file of results, and the card that gets them."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from tiny_models import tiny_model

pytest.importorskip("accelerate")
pytest.importorskip("torchmetrics")
from accelerate import PartialState  # noqa: E402

from transformers_tokenflow.evaluation import EvaluationError, parts, report  # noqa: E402
from transformers_tokenflow.evaluation.card import update_card  # noqa: E402
from transformers_tokenflow.evaluation.parts import Parts, differences  # noqa: E402
from transformers_tokenflow.evaluation.report import describe_model, evaluate, refuse_others  # noqa: E402

DESCRIPTION = {"evaluation": "reconstruction", "data": {"dataset": "photos"}, "settings": {"scale": 2}}
NAMES = ["a", "b", "c", "d", "e"]


class Work:
    """An evaluation of letters that may be killed after some of them."""

    def __init__(self, killed_after: int = 100):
        self.killed_after, self.seen, self.sum = killed_after, [], torch.zeros(())

    def __call__(self, kept: Parts) -> None:
        for name in kept.share(NAMES):
            if len(self.seen) == self.killed_after:
                raise KeyboardInterrupt
            self.seen.append(name)
            self.sum += ord(name)
            kept.add({name: {"value": ord(name)}}, lambda: {"sum": self.sum})


def summarize(records, sums):
    return {"metrics": {"sum": sums["sum"].item()}, "values": {name: row["value"] for name, row in records.items()}}


@pytest.fixture
def state() -> PartialState:
    return PartialState(cpu=True)


@pytest.fixture
def _flushed_at_once(monkeypatch):
    monkeypatch.setattr(parts, "SECONDS_BETWEEN_FLUSHES", 0.0)


@pytest.mark.usefixtures("_flushed_at_once")
class TestResuming:
    def test_what_was_kept_is_not_done_again(self, tmp_path, state):
        output, first = tmp_path / "results.json", Work(killed_after=2)
        with pytest.raises(KeyboardInterrupt):
            evaluate(output, DESCRIPTION, state, first, summarize)
        assert not output.exists() and first.seen == ["a", "b"]
        second = Work(killed_after=1)
        with pytest.raises(KeyboardInterrupt):
            evaluate(output, DESCRIPTION, state, second, summarize)
        last = Work()
        result = evaluate(output, DESCRIPTION, state, last, summarize)
        assert second.seen == ["c"] and last.seen == ["d", "e"]
        assert result["metrics"] == {"sum": sum(map(ord, NAMES))}
        assert result["values"] == {name: ord(name) for name in NAMES}
        assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.records.jsonl"]

    def test_a_finished_evaluation_is_returned(self, tmp_path, state):
        output = tmp_path / "results.json"
        first = evaluate(output, DESCRIPTION, state, Work(), summarize)
        again = Work()
        assert evaluate(output, DESCRIPTION, state, again, summarize) == first and not again.seen
        evaluate(output, {**DESCRIPTION, "settings": {"scale": 3}}, state, again, summarize)
        assert again.seen == NAMES

    def test_another_evaluations_parts_are_refused(self, tmp_path, state):
        with pytest.raises(KeyboardInterrupt):
            evaluate(tmp_path / "results.json", DESCRIPTION, state, Work(killed_after=1), summarize)
        other = {**DESCRIPTION, "settings": {"scale": 3}}
        with pytest.raises(EvaluationError, match=r"settings\.scale: 2 there, 3 now"):
            evaluate(tmp_path / "results.json", other, state, Work(), summarize)

    def test_only_results_are_overwritten(self, tmp_path, state):
        output = tmp_path / "results.json"
        refuse_others(output)
        with pytest.raises(KeyboardInterrupt):
            evaluate(output, DESCRIPTION, state, Work(killed_after=1), summarize)
        refuse_others(output)
        output.write_text('[{"question": "what?"}]')
        with pytest.raises(EvaluationError, match=r"results\.json holds no results of an evaluation"):
            refuse_others(output)
        output.unlink()
        evaluate(output, DESCRIPTION, state, Work(), summarize)
        refuse_others(output)

    def test_one_run_at_a_time(self, tmp_path, state):
        kept = Parts(tmp_path / "parts", DESCRIPTION, state)
        with pytest.raises(EvaluationError, match="another evaluation is writing"):
            Parts(tmp_path / "parts", DESCRIPTION, state)
        kept.close()
        Parts(tmp_path / "parts", DESCRIPTION, state).close()

    def test_several_processes_share(self, tmp_path, state, monkeypatch):
        shares = []
        for index in range(3):
            monkeypatch.setitem(PartialState._shared_state, "num_processes", 3)
            monkeypatch.setitem(PartialState._shared_state, "process_index", index)
            monkeypatch.setattr(PartialState, "wait_for_everyone", lambda self: None)
            kept = Parts(tmp_path / "parts", DESCRIPTION, state)
            shares.append(kept.share(NAMES))
            kept.close()
        assert sorted(sum(shares, [])) == NAMES and [len(share) for share in shares] == [2, 2, 1]


def test_only_the_main_process_reads_all_parts(tmp_path, state, monkeypatch):
    """It may remove them while others are still there."""
    monkeypatch.setattr(PartialState, "wait_for_everyone", lambda self: None)
    main = Parts(tmp_path / "parts", DESCRIPTION, state)
    monkeypatch.setitem(PartialState._shared_state, "process_index", 1)
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    other = Parts(tmp_path / "parts", DESCRIPTION, state)
    other.add({"b": {"value": 2}})
    assert other.collect() == ({}, {})
    monkeypatch.undo()
    main.add({"a": {"value": 1}})
    assert main.collect() == ({"a": {"value": 1}, "b": {"value": 2}}, {})


def test_parts_are_not_written_at_every_record(tmp_path, state):
    kept = Parts(tmp_path / "parts", DESCRIPTION, state)
    kept.add({"a": {"value": 1}})
    assert not list((tmp_path / "parts").glob("part-*"))
    assert kept.collect() == ({"a": {"value": 1}}, {})


def test_differences():
    assert differences({"a": {"b": 1, "c": 2}, "d": 1}, {"a": {"b": 1, "c": 3}, "e": None, "d": 1}) == [
        "a.c: 2 there, 3 now"
    ]


def test_all_that_it_takes_to_repeat(tmp_path, state, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/x/cli.py", "evaluate", "--data", "my photos"])
    result = evaluate(tmp_path / "results.json", DESCRIPTION, state, Work(), summarize)
    assert result["description"] == DESCRIPTION and result["processes"] == 1 and result["device"] == "cpu"
    assert result["command"] == "tokenflow evaluate --data 'my photos'"
    assert {"torch", "transformers", "python"} <= set(result["versions"])
    rows = [json.loads(line) for line in (tmp_path / "results.records.jsonl").read_text().splitlines()]
    assert rows[0] == {"name": "a", "value": 97} and len(rows) == 5


def test_models_are_told_apart_by_their_weights(tmp_path):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        tiny_model(seed=seed).save_pretrained(tmp_path / name)
    model = tiny_model()
    digests = [describe_model(str(tmp_path / name), model)["weights"] for name in ("one", "same", "other")]
    assert digests[0] == digests[1] != digests[2]
    assert describe_model("someone/model", model) == {
        "name": "someone/model",
        "type": "tokenflow",
        "revision": None,
        "weights": None,
        "dtype": "float32",
    }


@pytest.mark.parametrize("content", ["", "{", "[]", '{"psnr": 3}'])
def test_files_of_another_kind_are_no_reports(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    assert report.read_report(tmp_path / "results.json") is None


def make_report(value: float, **changes: object) -> dict:
    data = {"dataset": "photos", **changes}
    settings = {"networks": {"rfid": "Inception v3"}}
    return {
        "description": {"evaluation": "reconstruction", "data": data, "settings": settings},
        "metrics": {"rfid": value, "psnr": 20.123456},
        "date": "2026-01-02T03:04:05+00:00",
    }


class TestCard:
    def read(self, folder: Path) -> dict[tuple, float]:
        card = ModelCard.load(folder / "README.md")
        return {(r.dataset_type, r.metric_type, r.metric_name): r.metric_value for r in card.data.eval_results}

    def test_metadata(self, tmp_path):
        (tmp_path / "README.md").write_text("---\nlicense: mit\ntags:\n- a\n---\n\n# Model\n\nText.\n")
        update_card(tmp_path, make_report(1.0))
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.license == "mit" and card.data.tags == ["a"] and card.text.strip() == "# Model\n\nText."
        (index,) = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])["model-index"]
        assert index["name"] == tmp_path.name
        assert index["results"][0]["task"]["type"] == "image-feature-extraction"
        assert self.read(tmp_path) == {
            ("photos", "rfid", "rFID (Inception v3)"): 1.0,
            ("photos", "psnr", "PSNR (dB)"): 20.1235,
        }

    def test_the_same_is_replaced_and_others_are_kept(self, tmp_path):
        update_card(tmp_path, make_report(1.0))
        update_card(tmp_path, make_report(2.0, dataset="paintings"))
        update_card(tmp_path, make_report(3.0))
        assert (tmp_path / "README.md").read_text().count(f"# {tmp_path.name}") == 1
        results = self.read(tmp_path)
        assert len(results) == 4
        assert results["photos", "rfid", "rFID (Inception v3)"] == 3.0
        assert results["paintings", "rfid", "rFID (Inception v3)"] == 2.0

    def test_data_of_the_hub(self, tmp_path):
        assert update_card(tmp_path, make_report(1.0)) == [tmp_path / "README.md"]
        revision = "0" * 40
        known = make_report(1.5, dataset="some/photos", on_hub=True, split="test", revision=revision)
        *_, path = update_card(tmp_path, known)
        assert path == tmp_path / ".eval_results" / "reconstruction-some-photos-test.yaml"
        assert yaml.safe_load(path.read_text())[0] == {
            "dataset": {"id": "some/photos", "task_id": "rfid", "revision": revision},
            "value": 1.5,
            "date": "2026-01-02",
            "notes": "rFID (Inception v3); split test",
        }

    def test_mistakes(self, tmp_path):
        with pytest.raises(EvaluationError, match="there is no folder"):
            update_card(tmp_path / "nothing", make_report(1.0))
        (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
        with pytest.raises(EvaluationError, match="can't be read"):
            update_card(tmp_path, make_report(1.0))
