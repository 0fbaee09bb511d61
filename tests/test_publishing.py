# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""`tokenflow publish`: what it refuses, and uploads to a Hub on loopback."""

import json
import pickle
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_server import Hub, digest
from huggingface_hub import EvalResultEntry, HfApi, snapshot_download
from huggingface_hub import eval_result_entries_to_yaml as to_yaml
from test_cli import run, succeed
from tiny_models import tiny_model, tiny_processor, tiny_text_to_image, tiny_understanding
from transformers import AutoModel
from typer.testing import Result

from transformers_tokenflow import TokenFlowImageProcessor, TokenFlowPipeline
from transformers_tokenflow.commands import publishing
from transformers_tokenflow.commands.publishing import is_branch
from transformers_tokenflow.publishing import check_card, check_code, check_files, files_to_publish
from transformers_tokenflow.trainers.pictures import log_picture, log_text

REPOSITORY = "owner/model"
CARD = """---
license: mit
library_name: transformers
pipeline_tag: image-feature-extraction
tags:
- tokenflow
---

# Tiny
"""


def save_card(folder: Path, **changes: str | None) -> None:
    """A valid card with fields of its metadata changed, or left out."""
    lines = CARD.splitlines()
    for name, value in changes.items():
        index = next((i for i, line in enumerate(lines) if line.startswith(f"{name}:")), 1)
        if lines[index].startswith(f"{name}:"):
            del lines[index]
        if value is not None:
            lines.insert(1, f"{name}: {value}")
    (folder / "README.md").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny_model().save_pretrained(folder, max_shard_size="100kB")
    TokenFlowImageProcessor(size={"shortest_edge": 32}).save_pretrained(folder)
    save_card(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A tokenizer in two files of weights, ready to be published."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def quick(monkeypatch) -> None:
    """Without the process that loads the model, which takes long."""
    monkeypatch.setattr(publishing, "check_loading", lambda folder: [])


def fail(*arguments: object) -> list[str]:
    """The lines with which a command ends that uploads nothing."""
    result = run("publish", *arguments)
    assert result.exit_code == 1, result.output
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("error: "), lines
    assert result.stdout == ""
    return lines


def files_of(hub: Hub, revision: str = "main") -> dict[str, bytes]:
    return hub.repositories[REPOSITORY].files(revision)


@pytest.mark.usefixtures("quick")
class TestUpload:
    def test_all_of_a_folder(self, hub, folder):
        (folder / "training_args.bin").write_bytes(b"left behind by a training")
        (folder / "checkpoint-10").mkdir()
        (folder / "checkpoint-10" / "optimizer.pt").write_bytes(b"as well")
        result = succeed("publish", folder, REPOSITORY)
        assert result.stdout == f"{hub.url}/{REPOSITORY}\n"
        names = {path.name for path in folder.iterdir()} - {"training_args.bin", "checkpoint-10"}
        assert files_of(hub).keys() - {".gitattributes"} == names
        assert not hub.repositories[REPOSITORY].private
        copy = Path(snapshot_download(REPOSITORY))
        assert all((copy / name).read_bytes() == (folder / name).read_bytes() for name in names)
        model = AutoModel.from_pretrained(REPOSITORY)
        assert torch.equal(model.pixel_decoder.conv_in.weight, tiny_model().pixel_decoder.conv_in.weight)

    def test_repeating_uploads_nothing(self, hub, folder):
        succeed("publish", folder, REPOSITORY)
        before = list(hub.uploads)
        succeed("publish", folder, REPOSITORY)
        assert hub.uploads == before
        save_card(folder, license="apache-2.0")
        succeed("publish", folder, REPOSITORY)
        assert hub.uploads == [*before, "README.md"]

    def test_goes_on_after_a_lost_connection(self, hub, folder):
        weights = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
        assert len(weights) > 1
        hub.cut_at, hub.cuts = weights[0].stat().st_size + 1, 10**6  # the smallest one gets through, the others don't
        whole = {digest(path.read_bytes()) for path in weights if path.stat().st_size < hub.cut_at}
        message = fail(folder, REPOSITORY)[-1]
        assert "broke off" in message and "the same command goes on" in message
        assert files_of(hub).keys() == {".gitattributes"}
        assert whole and set(hub.uploads) <= whole
        before, hub.cuts = list(hub.uploads), 0
        succeed("publish", folder, REPOSITORY)
        assert hub.uploads[: len(before)] == before
        assert sorted(hub.uploads) == sorted(set(hub.uploads))  # nothing twice
        assert files_of(hub)[weights[-1].name] == weights[-1].read_bytes()

    def test_private(self, hub, folder):
        succeed("publish", folder, REPOSITORY, "--private")
        assert hub.repositories[REPOSITORY].private
        HfApi().create_repo("owner/public")
        assert "there already, and public" in fail(folder, "owner/public", "--private")[-1]
        assert len(hub.repositories["owner/public"].commits) == 1

    def test_branch(self, hub, folder):
        assert succeed("publish", folder, REPOSITORY, "--revision", "v1").stdout.endswith("/model/tree/v1\n")
        assert files_of(hub).keys() == {".gitattributes"} and "config.json" in files_of(hub, "v1")
        succeed("publish", folder, REPOSITORY, "--revision", "v1")

    def test_pull_request(self, hub, folder):
        HfApi().create_repo(REPOSITORY)
        arguments = (folder, REPOSITORY, "--create-pr", "--token", "hf_test_guest")
        assert succeed("publish", *arguments).stdout == f"{hub.url}/{REPOSITORY}/discussions/1\n"
        assert files_of(hub).keys() == {".gitattributes"} and "config.json" in files_of(hub, "refs/pr/1")
        before = list(hub.uploads)
        succeed("publish", folder, REPOSITORY, "--revision", "refs/pr/1", "--token", "hf_test_guest")
        assert hub.uploads == before

    def test_json(self, hub, folder):
        report = json.loads(succeed("publish", folder, REPOSITORY, "--json").stdout)
        assert report["url"] == f"{hub.url}/{REPOSITORY}" and report["problems"] == []
        assert report["commit"] == hub.repositories[REPOSITORY].find("main") and report["dry_run"] is False
        assert report["files"] == len(files_of(hub)) - 1
        assert report["size"] == sum(path.stat().st_size for path in folder.iterdir())

    def test_dry_run_asks_nobody(self, hub, folder):
        result = succeed("publish", folder, REPOSITORY, "--dry-run")
        assert result.stdout == f"{hub.url}/{REPOSITORY}\n" and "nothing is wrong" in result.stderr
        assert hub.log == []


@pytest.mark.usefixtures("quick")
class TestRefusalsOfTheHub:
    def test_tokens(self, hub, folder, monkeypatch, tmp_path):
        assert "does not know the token" in fail(folder, REPOSITORY, "--token", "hf_wrong")[-1]
        assert "may not write to owner/model" in fail(folder, REPOSITORY, "--token", "hf_test_guest")[-1]
        assert hub.repositories == {}
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
        assert "no token for the Hub: log in" in fail(folder, REPOSITORY)[-1]

    def test_card(self, hub, folder):
        hub.refuses_cards = True
        assert 'the Hub refuses the card: "license" must be one of' in fail(folder, REPOSITORY)[-1]
        assert hub.repositories == {}

    def test_hub_that_is_down(self, hub, folder):
        hub.status = 503
        assert "broke off" in fail(folder, REPOSITORY)[-1]
        hub.status = 418
        assert "the Hub refuses owner/model: not today" in fail(folder, REPOSITORY)[-1]

    def test_no_hub(self, hub, folder, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert "switched off: unset HF_HUB_OFFLINE" in fail(folder, REPOSITORY)[-1]
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        assert "broke off" in fail(folder, REPOSITORY)[-1]

    def test_hub_without_xet(self, hub, folder, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
        assert "no Xet storage: set HF_HUB_DISABLE_XET=1" in fail(folder, REPOSITORY)[-1]


def usage(*arguments: object) -> Result:
    result = run("publish", *arguments)
    assert result.exit_code == 2, result.output
    return result


def test_usage(folder):
    assert "user/name" in usage(folder, "not a name").output
    usage(folder, REPOSITORY, "--create-pr", "--revision", "v1")
    assert "'x y'" in usage(folder, REPOSITORY, "--dry-run", "--revision", "x y").output
    usage(folder / "nothing", REPOSITORY)
    usage(folder / "config.json", REPOSITORY)


@pytest.mark.parametrize(
    "name",
    ["main", "v1.0", "a/b", "é", "refs/pr/1", "x y", "", ".x", "-x", "x.", "x/", "/x", "a..b", "a//b", "a/.b", "x.lock"]
    + ["a.lock/b", "a@{b", "@", "a@b", "x~1", "a^", "a:b", "a?", "a*", "a[", "a\\b", "a\nb", "a\x7f"],
)
def test_branches_are_those_of_git(name):
    command = ["git", "check-ref-format", "--branch", name]
    assert is_branch(name) == (subprocess.run(command, capture_output=True, check=False).returncode == 0)


@pytest.mark.usefixtures("quick")
def test_commands_of_the_readme(monkeypatch):
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)
    section = (root / "README.md").read_text(encoding="utf-8").split("## Publish\n")[1].split("## ")[0]
    commands = re.findall(r"^tokenflow (.*?)(?: +#.*)?$", section, flags=re.M)
    harmless = [command for command in commands if command.startswith("info") or "--dry-run" in command]
    assert len(commands) == 3 and len(harmless) == 2
    for command in harmless:
        succeed(*command.split())


@pytest.mark.usefixtures("quick")
class TestRefusals:
    def test_all_problems_are_told_at_once(self, hub, folder):
        save_card(folder, license=None, pipeline_tag="painting")
        (folder / "old.pt").write_bytes(b"")
        lines = fail(folder, REPOSITORY)
        assert lines[-1] == f"error: nothing was uploaded: 3 problems with {folder}"
        assert hub.log == []
        result = run("publish", folder, REPOSITORY, "--json")
        assert result.exit_code == 1 and len(json.loads(result.stdout)["problems"]) == 3

    def test_no_model(self, folder):
        (folder / "config.json").write_text('{"model_type": "llama"}')
        assert "is no TokenFlow model" in fail(folder, REPOSITORY)[-1]
        (folder / "config.json").write_text("{")
        assert "can't be read" in fail(folder, REPOSITORY)[-1]
        (folder / "config.json").unlink()
        assert "no config.json" in fail(folder, REPOSITORY)[-1]
        (folder / "adapter_config.json").write_text("{}")
        assert "holds adapters" in fail(folder, REPOSITORY)[-1]


class TestFiles:
    def test_nothing_is_wrong_with_a_saved_model(self, folder):
        assert check_files(folder) == []

    @pytest.mark.parametrize(
        ("name", "write"),
        [
            ("pytorch_model.bin", lambda path: path.write_bytes(b"any")),
            ("named.like.nothing", lambda path: path.write_bytes(pickle.dumps({"a": 1}))),
            ("archive.dat", lambda path: torch.save({"a": torch.zeros(1)}, path)),
            ("sub/state.pkl", lambda path: path.write_bytes(b"any")),
        ],
    )
    def test_pickles(self, name: str, write: Callable, folder):
        (folder / "sub").mkdir()
        write(folder / name)
        (problem,) = check_files(folder)
        assert problem.startswith(f"{name} is a pickle")

    @pytest.mark.parametrize(
        ("secret", "what"),
        [
            ("hf_" + "aB3" * 11 + "x", "token of the Hugging Face Hub"),
            ("-----BEGIN " + "OPENSSH PRIVATE KEY-----", "private key"),
            ("-----BEGIN " + "PRIVATE KEY-----", "private key"),
            ("ghp_" + "a1" * 18, "GitHub token"),
            ("AKIA" + "ABCDEFGH12345678", "AWS key"),
            ("sk-" + "a1b2" * 10, "OpenAI key"),
        ],
    )
    def test_secrets(self, secret, what, folder):
        (folder / "notes.txt").write_text(f"first line\nkey: {secret}\n")
        (problem,) = check_files(folder)
        assert problem.startswith("notes.txt, line 2") and what in problem and secret not in problem

    @pytest.mark.parametrize("name", [".env", ".env.local", "id_rsa", "server.pem", "sub/.netrc"])
    def test_files_for_secrets(self, name, folder):
        (folder / "sub").mkdir()
        (folder / name).write_text("A=1")
        assert check_files(folder) == [f"{name} is a file for secrets: remove it"]

    def test_what_only_resembles_secrets(self, folder):
        (folder / "notes.txt").write_text("hf_hub_download_and_then_some_more sk-learn task-" + "a" * 10 + " AKIA")
        assert check_files(folder) == []

    def test_links(self, folder, tmp_path):
        (tmp_path / "elsewhere.txt").write_text("out of the folder")
        (folder / "inside.json").symlink_to("config.json")
        assert check_files(folder) == []
        (folder / "outside.txt").symlink_to(tmp_path / "elsewhere.txt")
        (folder / "broken.txt").symlink_to("nothing.txt")
        (folder / "elsewhere").symlink_to(tmp_path)
        problems = "\n".join(check_files(folder))
        assert problems.count("link out of the folder") == 2 and "broken.txt is a link to nothing.txt" in problems

    def test_size(self, folder, monkeypatch):
        monkeypatch.setattr("transformers_tokenflow.publishing.files.MAX_FILE_SIZE", 50_000)
        problems = check_files(folder)
        assert problems and all("in more shards" in problem for problem in problems)

    def test_what_stays_here(self, folder):
        before = files_to_publish(folder)
        for name in (
            "checkpoint-5/model.safetensors",
            "runs/events",
            "training_args.bin",
            "__pycache__/a.pyc",
            ".git/HEAD",
        ):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("")
        assert files_to_publish(folder) == before and "model.safetensors.index.json" in before

    def test_what_trainers_leave_stays_here(self, folder):
        cards = ["pictures.png", "results.json", "pictures/owl.png", ".eval_results/data.yaml"]
        left = [".lock", "all_results.json", "eval_results.json", "train_results.json", "trainer_state.json"]
        before = files_to_publish(folder)
        for name in (*cards, *left):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("")
        log_picture("eval_photos_reconstruction", torch.zeros(3, 8, 8), 20, folder / "pictures")
        log_text("eval", "an owl", 20, folder / "answers")
        assert sorted(files_to_publish(folder)) == sorted([*before, *cards])


class TestCard:
    def test_valid_ones(self, folder):
        assert check_card(folder) == []
        save_card(folder, license="other", license_name="my-license")
        assert check_card(folder) == []
        save_card(folder, license="[apache-2.0, mit]", base_model="user/name", datasets="[user/data]", language="en")
        assert check_card(folder) == []

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"license": None}, "states no license"),
            ({"license": "my-own"}, "states the license 'my-own'"),
            ({"license": "other"}, "and not which"),
            ({"library_name": None}, "no library_name"),
            ({"library_name": "keras"}, "library_name 'keras'"),
            ({"pipeline_tag": "painting"}, "pipeline_tag 'painting'"),
            ({"language": "no"}, "False among its language"),
            ({"base_model": "a/b/c"}, "'a/b/c' as base_model"),
            ({"license": "[mit"}, "can't be read"),
            ({"model-index": "7"}, "can't be read"),
        ],
    )
    def test_invalid_ones(self, changes, message, folder):
        save_card(folder, **changes)
        (problem,) = check_card(folder)
        assert message in problem and problem.count("README.md") == 1

    def test_missing(self, folder):
        (folder / "README.md").unlink()
        (problem,) = check_card(folder)
        assert "there is no README.md" in problem
        (folder / "README.md").write_text("# A card without metadata\n")
        assert len(check_card(folder)) == 3

    def test_results(self, folder):
        results = folder / ".eval_results"
        results.mkdir()
        entries = to_yaml([EvalResultEntry(dataset_id="user/data", task_id="default", value=1.0)])
        (results / "good.yaml").write_text(json.dumps(entries))
        assert check_card(folder) == []
        (results / "bad.yaml").write_text("value: 1\n")
        (problem,) = check_card(folder)
        assert problem.startswith(".eval_results/bad.yaml is no list of results")


class TestCode:
    def test_of_every_model(self, folder, tmp_path):
        assert check_code(folder) == []
        TokenFlowPipeline(*tiny_text_to_image()).save_pretrained(tmp_path / "generator")
        tiny_understanding().save_pretrained(tmp_path / "reader")
        tiny_processor(image_token="<image>", num_image_tokens=16).save_pretrained(tmp_path / "reader")
        assert check_code(tmp_path / "generator") == check_code(tmp_path / "reader") == []

    def test_other_than_the_packages(self, folder):
        path = folder / "modeling_tokenflow.py"
        path.write_text(path.read_text() + "# changed\n")
        (folder / "quantization_tokenflow.py").unlink()
        (folder / "backdoor_tokenflow.py").write_text("")
        (folder / "own_script.py").write_text("")  # is not loaded by anybody
        problems = check_code(folder)
        assert [problem.split()[0] for problem in problems] == [
            "backdoor_tokenflow.py",
            "modeling_tokenflow.py",
            "quantization_tokenflow.py,",
        ]

    def test_references(self, folder):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for reference, message in (
            ("other.Model", "no module of this package"),
            ("a/b--x.Model", "another repository"),
        ):
            path.write_text(json.dumps({**config, "auto_map": {**config["auto_map"], "AutoModel": reference}}))
            assert any(message in problem for problem in check_code(folder))
        path.write_text(json.dumps({name: value for name, value in config.items() if name != "auto_map"}))
        assert any("names no code" in problem for problem in check_code(folder))
