# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""`tokenflow info`."""

import json
from pathlib import Path

import pytest
from test_cli import fail, succeed
from tiny_models import tiny_model, tiny_text_to_image, tiny_understanding

from transformers_tokenflow import TokenFlowConfig, TokenFlowTextToImageConfig
from transformers_tokenflow.commands.information import count_by_part, find_variant, inspect_model, join_licenses


def read(*arguments: object) -> dict:
    return json.loads(succeed("info", *arguments, "--json").stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved tokenizer in half precision, but for its codebook, with a card."""
    path = tmp_path / "tiny"
    tiny_model().bfloat16().save_pretrained(path)
    (path / "README.md").write_text("---\nlicense: mit\n---\n\n# Tiny\n")
    return path


def test_tokenizer(folder):
    model = tiny_model()
    facts = read(folder)
    assert (facts["model_type"], facts["task"], facts["variant"]) == ("tokenflow", "image-feature-extraction", None)
    assert facts["scales"] == [1, 2, 4] and facts["tokens_per_scale"] == [1, 4, 16] and facts["num_image_tokens"] == 21
    assert (facts["codebook_size"], facts["semantic_codebook_dim"], facts["pixel_codebook_dim"]) == (48, 8, 4)
    assert facts["semantic_encoder"] == "clip_vision_model" and facts["language_model"] is None
    assert facts["num_parameters"] == model.num_parameters()
    assert facts["parameters"]["quantizer"] == 48 * 12
    assert facts["dtypes"] == {"float32": 48 * 12, "bfloat16": model.num_parameters() - 48 * 12}
    assert facts["size"] == sum(path.stat().st_size for path in folder.iterdir())
    assert facts["license"] == "mit"


def test_in_words(folder):
    text = succeed("info", folder).stdout
    for words in ("21, in scales of side 1, 2, 4: 1 + 4 + 16", "32×32 pixels", "semantic_encoder", "bfloat16", "mit"):
        assert words in text, text


def test_nothing_is_cut_off_where_the_terminal_is_narrow(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    assert "…" not in succeed("info", folder).stdout


def test_generator_in_shards(tmp_path):
    model, processor = tiny_text_to_image()
    model.save_pretrained(tmp_path, max_shard_size="50kB")
    facts = read(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert facts["task"] == "text-to-image" and facts["license"] is None
    assert facts["language_model"] == {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "vocab_size": len(processor.tokenizer),
    }
    assert facts["num_parameters"] == model.num_parameters()
    parts = {"model.layers", "model.embed_tokens", "tokenizer", "visual_head"}
    assert parts <= facts["parameters"].keys()
    assert facts["parameters"]["tokenizer"] == model.tokenizer.num_parameters()


def test_model_that_reads_pictures(tmp_path):
    model = tiny_understanding()
    model.save_pretrained(tmp_path)
    facts = read(tmp_path)
    assert facts["task"] == "image-text-to-text" and facts["num_image_features"] == 16
    assert facts["parameters"]["model.tokenizer"] == model.model.tokenizer.num_parameters()
    assert facts["parameters"]["lm_head"] == model.lm_head.weight.numel()


def test_without_weights_parameters_come_from_the_configuration(tmp_path):
    config = TokenFlowConfig.from_preset("tokenflow-xl")
    config.save_pretrained(tmp_path)
    facts = read(tmp_path)
    assert facts["variant"] == "tokenflow-xl" and facts["dtypes"] == {}
    assert facts["num_parameters"] / 1e6 == pytest.approx(554.0, abs=0.1)
    assert "counted from the configuration" in succeed("info", tmp_path).stdout.replace("\n", " ")


def test_variants():
    assert find_variant(TokenFlowConfig.from_preset("tokenflow-b")) == "tokenflow-b"
    assert find_variant(TokenFlowConfig.from_preset("tokenflow-b", codebook_size=7)) is None
    assert find_variant(TokenFlowTextToImageConfig()) == "tokenflow-b-256-enhanced"


def test_parts_of_containers():
    counts = {
        "model.language_model.layers.0.w": 1,
        "model.language_model.layers.1.w": 2,
        "model.tokenizer.x.y": 4,
        "b": 8,
    }
    parts = {"b": 8, "model.language_model.layers": 3, "model.tokenizer": 4}
    assert count_by_part(counts.items()) == parts


def test_repository(hub, folder):
    model = tiny_model()
    model.push_to_hub("owner/tiny")
    before = len(hub.log)
    facts = read("owner/tiny")
    assert facts["num_parameters"] == model.num_parameters() and facts["dtypes"] == {"float32": model.num_parameters()}
    assert facts["size"] == sum(map(len, hub.repositories["owner/tiny"].files().values())) and facts["license"] is None
    asked = [line for line in hub.log[before:] if "safetensors" in line]
    assert asked and all(line.startswith(("GET", "HEAD")) for line in asked)


class TestMistakes:
    def test_no_model(self, tmp_path, folder):
        assert "no config.json" in fail("info", tmp_path)
        assert "is a file" in fail("info", folder / "config.json")
        assert "there is no folder" in fail("info", tmp_path / "no" / "where")
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
        assert "no TokenFlow model" in fail("info", tmp_path)
        (tmp_path / "config.json").write_text("{")
        assert "can't be read" in fail("info", tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "tokenflow", "scales": [4, 1]}')
        assert "no valid one" in fail("info", tmp_path)

    def test_damaged_weights(self, folder):
        path = folder / "model.safetensors"
        whole = path.read_bytes()
        for content in (whole[:-10], whole[:20], b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"):
            path.write_bytes(content)
            assert "weights of" in fail("info", folder) and "damaged" in fail("info", folder)

    def test_missing_shard(self, tmp_path):
        tiny_model().save_pretrained(tmp_path, max_shard_size="50kB")
        next(tmp_path.glob("model-*.safetensors")).unlink()
        assert "weights of" in fail("info", tmp_path)

    def test_damaged_card(self, folder):
        (folder / "README.md").write_text("---\nlicense: [\n---\n")
        assert "README.md" in fail("info", folder)

    def test_repository_that_is_not_there(self, hub):
        assert "the Hub doesn't give it" in fail("info", "owner/nothing")


def test_loads_no_weights(folder, monkeypatch):
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", lambda *args, **kwargs: pytest.fail("loaded"))
    assert inspect_model(str(folder)).parameters


def test_several_licenses():
    assert join_licenses({"license": ["mit", "apache-2.0"]}) == "mit, apache-2.0"
    assert join_licenses({}) is None
