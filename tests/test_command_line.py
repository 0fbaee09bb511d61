# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What holds for all commands: their help, exit codes, mistakes, what goes to stdout and stderr, completion, --json."""

import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image
from test_cli import SOURCES, documented_keys, fail, run, succeed
from tiny_models import tiny_model, tiny_text_to_image, tiny_understanding_with_processor

from tokenflow_cli.app import app
from tokenflow_cli.output import to_json
from transformers_tokenflow import TokenFlowImageProcessor
from transformers_tokenflow.commands import information

ROOT = Path(__file__).parents[1]
# What is only done if it is asked for has no default to show.
WITHOUT_DEFAULT = {"sheet", "grid", "update_card", "tokenizer"}


def commands(group: Any = None, name: str = "tokenflow") -> Iterator[tuple[str, Any]]:
    """Full name and command of all that do something."""
    for part, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {part}")
        else:
            yield f"{name} {part}", command


ALL = dict(commands())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A folder with a picture, and one that can't be read."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "good.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A saved tokenizer."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(path)
    TokenFlowImageProcessor(size={"shortest_edge": 32}).save_pretrained(path)
    return path


class TestHelp:
    def test_there_are_commands(self):
        assert len(ALL) == 13 and "tokenflow evaluate generation" in ALL

    @pytest.mark.parametrize("name", ALL)
    def test_examples_are_of_the_command_and_have_no_unknown_options(self, name):
        lines = [line for line in ALL[name].epilog.split("\n\n") if line.startswith("tokenflow ")]
        assert 1 <= len(lines) <= 2
        for line in lines:
            words = shlex.split(line)
            length = len(name.split())
            assert " ".join(words[:length]) == name
            ALL[name].make_context(name, words[length:], resilient_parsing=True)

    @pytest.mark.parametrize("name", ALL)
    def test_defaults_are_shown(self, name):
        for option in ALL[name].params:
            shows = option.required or option.default is not None or isinstance(option.show_default, str)
            assert shows or option.name in WITHOUT_DEFAULT, option.name

    @pytest.mark.parametrize("name", ALL)
    def test_every_command_has_json(self, name):
        assert any("--json" in option.opts for option in ALL[name].params)

    def test_as_it_is_printed(self):
        text = " ".join(re.sub("[│╭╮╰╯─]", " ", succeed("generate", "--help").stdout).split())
        assert 'tokenflow generate "a red apple" --seed 0' in text
        assert "[default: (a random one)]" in text and "[default: 8]" in text
        text = " ".join(succeed("--help").stdout.split())
        assert "Exit codes: 0, all is well; 1, it did not work" in text and "--install-completion" in text

    def test_documentation_has_every_command(self):
        page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
        names = set(re.findall(r"^\| `(tokenflow \w+)` \|", page, flags=re.M))
        assert names == {" ".join(name.split()[:2]) for name in ALL}


class TestExitCodes:
    def test_success(self, model):
        assert run("info", model).exit_code == 0

    def test_failure(self, tmp_path):
        result = run("info", tmp_path)
        assert result.exit_code == 1 and result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ") and "has no config.json" in line

    @pytest.mark.parametrize("arguments", [["nonsense"], ["info"], ["info", "x", "--nonsense"], ["decode", "no", "x"]])
    def test_usage(self, arguments):
        result = run(*arguments)
        assert result.exit_code == 2 and result.stdout == "" and "Usage: " in result.stderr


class TestMistakes:
    def test_verbose_shows_where(self, tmp_path):
        assert "Traceback" not in run("info", tmp_path).stderr
        result = run("--verbose", "info", tmp_path)
        assert result.exit_code == 1 and result.stdout == ""
        lines = result.stderr.splitlines()
        assert lines[0].startswith("Traceback") and any("information.py" in line for line in lines)
        assert lines[-1].startswith("error: ")
        assert "Traceback" not in run("info", tmp_path).stderr

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (ZeroDivisionError("division\nby zero"), "unexpected ZeroDivisionError: division by zero; `tokenflow --v"),
            (OSError(28, "No space left on device"), "No space left on device"),
            (ModuleNotFoundError("No module named 'x'"), "something is not installed, or not as it should be: No mod"),
            (torch.OutOfMemoryError("much too much"), "the device has too little memory"),
            (MemoryError(), "there is too little memory"),
        ],
    )
    def test_what_nobody_foresaw_is_one_line_too(self, error, message, model, monkeypatch):
        def broken(name):
            raise error

        monkeypatch.setattr(information, "inspect_model", broken)
        assert message in fail("info", model)

    def test_interrupted(self, model, monkeypatch):
        def interrupted(name):
            raise KeyboardInterrupt

        monkeypatch.setattr(information, "inspect_model", interrupted)
        result = run("info", model)
        assert result.exit_code == 130 and result.stderr == "error: interrupted\n"


class TestStreams:
    def test_what_libraries_print_is_no_result(self, model, monkeypatch):
        inspect = information.inspect_model

        def noisy(name):
            sys.stdout.write("by the way\n")
            return inspect(name)

        monkeypatch.setattr(information, "inspect_model", noisy)
        result = succeed("info", model, "--json")
        assert json.loads(result.stdout)["num_image_tokens"] == 21
        assert result.stderr == "by the way\n"

    def test_names_that_look_like_emoji_codes(self, model, photo, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (photo / "good.png").rename(":apple:.png")
        arguments = ["reconstruct", ":apple:.png", "--model", model]
        (picture,) = json.loads(succeed(*arguments, "--json").stdout)["pictures"]
        assert picture["path"] == ":apple:.png" and Path(picture["output"]).is_file()
        assert ":apple:.png" in succeed(*arguments).stdout
        assert ":apple:.parquet" in fail("encode", photo, ":apple:.parquet", "--model", "/nowhere/:apple:.parquet")

    def test_numbers_that_json_has_not(self):
        facts = {"psnr": math.inf, "metrics": {"loss": math.nan, "good": 1.5}, "path": Path("x")}
        assert json.loads(to_json(facts)) == {
            "psnr": None,
            "metrics": {"loss": None, "good": 1.5},
            "path": "x",
        }


@pytest.fixture
def executable(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell that finds `tokenflow`."""
    script = tmp_path / "tokenflow"
    lines = [f"#!{sys.executable}", "import sys", f"sys.path.insert(0, {str(SOURCES)!r})", "import tokenflow_cli"]
    script.write_text("\n".join([*lines, "tokenflow_cli.main()"]))
    script.chmod(0o755)
    return {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_letters_that_the_locale_has_not(encoding, executable):
    executable |= {"PYTHONIOENCODING": encoding}
    result = subprocess.run(
        [sys.executable, "-c", "import tokenflow_cli\nfrom tokenflow_cli import app, output\n"
         "app.app = lambda prog_name: output.say('日\\udcff.png', output.console)\ntokenflow_cli.main()"],
        capture_output=True, env={**executable, "PYTHONPATH": str(SOURCES)}, check=True,
    )  # fmt: skip
    assert result.stdout.decode(encoding) == ("日" if encoding == "utf-8" else "\\u65e5") + "\\udcff.png\n"


def test_interrupted_before_it_began(executable):
    script = (
        "import sys, tokenflow_cli\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *others):\n"
        "        if name == 'tokenflow_cli.app': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "tokenflow_cli.main()"
    )
    environment = {**executable, "PYTHONPATH": str(SOURCES)}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=False)
    assert result.returncode == 130 and result.stderr == b"error: interrupted\n"


class TestCompletion:
    def shell(self, environment: dict[str, str], script: str) -> str:
        # The second command keeps bash from becoming the first one: `tokenflow` looks which shell started it.
        command = ["bash", "-c", f"{script}\ntrue"]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        assert result.stderr == ""
        return result.stdout

    def test_bash_completes(self, executable):
        words = "COMP_WORDS=(tokenflow de); COMP_CWORD=1; _tokenflow_completion tokenflow; echo ${COMPREPLY[@]}"
        script = f'eval "$(tokenflow --show-completion bash)"\n{words}'
        assert self.shell(executable, script).split() == ["decode", "describe"]

    def test_installs(self, executable):
        assert "bash completion installed" in self.shell(executable, "tokenflow --install-completion bash")
        home = Path(executable["HOME"])
        assert "tokenflow" in (home / ".bashrc").read_text()


def keys(*arguments: object) -> dict[str, Any]:
    """What a command prints with --json, which has the keys that are documented."""
    facts = json.loads(succeed(*arguments, "--json").stdout)
    assert list(facts) == documented_keys(str(arguments[0]))
    return facts


class TestJson:
    def test_pictures_and_tokens(self, model, photo, tmp_path):
        broken = [f"{photo.as_posix()}/broken.png"]
        facts = keys("reconstruct", photo, "--model", model, "--output", tmp_path / "out")
        (picture,) = facts["pictures"]
        assert picture["path"].endswith("good.png") and picture["psnr"] == facts["psnr"] > 0
        assert Path(picture["output"]).is_file() and facts["sheet"] is None
        assert list(facts["failures"]) == broken

        codes = tmp_path / "codes.parquet"
        facts = keys("encode", photo, codes, "--model", model)
        assert (facts["codes"], facts["encoded"], facts["done_before"]) == (str(codes), 1, 0)
        assert facts["tokens_per_picture"] == 21 and list(facts["failures"]) == broken

        facts = keys("decode", codes, tmp_path / "decoded", "--model", model)
        assert facts == {"folder": str(tmp_path / "decoded"), "pictures": 1}

        pytest.importorskip("jinja2")
        facts = keys("cluster", photo, "--model", model, "--output", tmp_path / "clusters.html")
        assert Path(facts["output"]).is_file() and facts["pictures"] == 1 and list(facts["failures"]) == broken

    def test_generate(self, tmp_path):
        for part in tiny_text_to_image():
            part.save_pretrained(tmp_path / "model")
        grid = tmp_path / "grid.png"
        options = ["--model", tmp_path / "model", "--output", tmp_path / "out", "--seed", 3, "--grid", grid]
        facts = keys("generate", "sun", "moon", *options)
        assert facts["seed"] == 3 and facts["grid"] == str(grid) and facts["sheet"] is None
        assert [(item["prompt"], item["seed"]) for item in facts["pictures"]] == [("sun", 3), ("moon", 4)]
        assert all(Path(item["path"]).is_file() for item in facts["pictures"])

    def test_describe(self, photo, tmp_path, monkeypatch):
        for part in tiny_understanding_with_processor():
            part.save_pretrained(tmp_path / "model")
        options = ["--question", "what?", "--model", tmp_path / "model", "--max-new-tokens", 2]
        facts = keys("describe", photo, *options)
        assert list(facts["answers"]) == [f"{photo.as_posix()}/good.png"]
        assert list(facts["failures"]) == [f"{photo.as_posix()}/broken.png"]

        monkeypatch.setenv("FORCE_COLOR", "1")  # which rich takes for a terminal
        assert "describing" not in succeed("describe", photo, *options).stderr
        result = succeed("describe", photo, *options, "--json")
        assert "describing" in result.stderr and json.loads(result.stdout) == facts

    def test_nothing_on_stdout_where_it_did_not_work(self, model, photo, tmp_path):
        result = run("encode", photo / "broken.png", tmp_path / "codes.parquet", "--model", model, "--json")
        assert result.exit_code == 1 and result.stdout == ""
