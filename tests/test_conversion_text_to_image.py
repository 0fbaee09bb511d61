# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Official generators to folders: every key, every file, and little memory."""

import json
import os
import shutil
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_conversion import Malicious, meta_state_dict
from test_parity_text_to_image import official_state_dict
from tiny_models import tiny_text_tokenizer
from transformers import AutoConfig, AutoModel, AutoProcessor
from typer.testing import CliRunner

from transformers_tokenflow import TokenFlowConfig, TokenFlowForTextToImage, TokenFlowTextToImageConfig
from transformers_tokenflow.cli import app
from transformers_tokenflow.commands import CommandError
from transformers_tokenflow.commands.conversion import convert_checkpoint
from transformers_tokenflow.conversion import (
    ConvertedStateDict,
    convert_text_to_image,
    folder_written_whole,
    infer_text_to_image_config,
    join_tokenizer,
    text_to_image_layout,
    writing,
)
from transformers_tokenflow.conversion.text_tokenizer import load_text_tokenizer
from transformers_tokenflow.processing_tokenflow import OFFICIAL_NEGATIVE_PROMPT

FIXTURES = Path(__file__).parent / "fixtures"
TINY = json.loads((FIXTURES / "text-to-image.json").read_text())
OFFICIAL = json.loads((FIXTURES / "official-keys" / "text-to-image-7b.json").read_text())
OFFICIAL_TOKENIZER = json.loads((FIXTURES / "official-keys" / "tokenizer-clip-enhanced.json").read_text())
TOKENIZER_OVERRIDES = {
    "image_size": 256,
    "scales": TINY["config"]["scales"],
    "semantic_config": {"num_attention_heads": 4},
    "semantic_decoder_config": {"num_attention_heads": 4},
}
SETTINGS = [
    "tokenizer_config.image_size=256",
    f"tokenizer_config.scales={TINY['config']['scales']}",
    "tokenizer_config.semantic_config.num_attention_heads=4",
    "tokenizer_config.semantic_decoder_config.num_attention_heads=4",
]
OFFICIAL_CONFIG = {"model_type": "llava_llama", "rms_norm_eps": 1e-6, "rope_theta": 5000.0, "bos_token_id": 1}


@pytest.fixture(scope="module")
def generator() -> dict[str, torch.Tensor]:
    return official_state_dict(TINY)


@pytest.fixture(scope="module")
def tokenizer() -> dict[str, torch.Tensor]:
    return official_state_dict(TINY, "tokenizer_")


def tiny_layout(generator: dict[str, torch.Tensor], tokenizer: dict[str, torch.Tensor], **overrides: Any) -> Any:
    config = infer_text_to_image_config(generator, tokenizer, tokenizer_config=TOKENIZER_OVERRIDES, **overrides)
    return text_to_image_layout(config)


# ---- The released generator at full size ----


def test_every_official_key_finds_its_parameter():
    generator = meta_state_dict(OFFICIAL["state_dict"])
    tokenizer = meta_state_dict(OFFICIAL_TOKENIZER["state_dict"])
    config = infer_text_to_image_config(generator, tokenizer)
    weights = ConvertedStateDict(join_tokenizer(generator, tokenizer), text_to_image_layout(config))
    with torch.device("meta"):
        model = TokenFlowForTextToImage(config)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: spec.shape for name, spec in weights.specs.items()} == shapes
    unread_rows = config.tokenizer_config.codebook_size * config.text_config.hidden_size
    own = sum(spec.numel() for name, spec in weights.specs.items() if not name.startswith("tokenizer."))
    assert own == OFFICIAL["parameters_total"] - unread_rows
    assert config.to_dict() == TokenFlowTextToImageConfig(tokenizer_config=config.tokenizer_config).to_dict()
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"):
        assert getattr(config.text_config, name) == OFFICIAL["config"][name]
    assert config.text_config.vocab_size == OFFICIAL["config"]["text_vocab_size"]
    assert config.text_config.pad_token_id == OFFICIAL["config"]["pad_token_id"]
    assert config.text_config.rms_norm_eps == OFFICIAL["config"]["rms_norm_eps"]
    assert config.text_config.rope_parameters["rope_theta"] == OFFICIAL["config"]["rope_theta"]


# ---- Keys ----


def test_rows_of_text_and_pictures_come_apart(generator: Any, tokenizer: Any):
    model = convert_text_to_image(generator, tokenizer, tokenizer_config=TOKENIZER_OVERRIDES)
    assert not model.training
    head, embedding = generator["lm_head.weight"], generator["model.embed_tokens.weight"]
    assert torch.equal(model.text_head.weight, head[:200]) and torch.equal(model.visual_head.weight, head[200:])
    assert torch.equal(model.model.embed_tokens.weight, embedding[:200])
    assert torch.equal(model.model.position_embedding.weight, generator["model.pos_1LC"])
    norm = generator["model.layers.1.self_attn.qknorm.key_norm.weight"]
    assert torch.equal(model.model.layers[1].self_attn.key_norm.weight, norm)


def test_stored_ids_of_visual_tokens_are_dropped(generator: Any, tokenizer: Any):
    more = {**generator, "image_token_start": torch.tensor(200), "image_token_end": torch.tensor(327)}
    layout = tiny_layout(more, tokenizer)
    assert len(ConvertedStateDict(join_tokenizer(more, tokenizer), layout)) == len(layout.shapes)


@pytest.mark.parametrize(
    "key",
    [
        "model.lvl_embed.weight",
        "model.mm_projector.2.bias",
        "model.norm.weight",
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.qknorm.query_norm.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.self_attn.qknorm.query_norm.weight",
        "lm_head.weight",
    ],
)
def test_missing_keys_are_named(generator: Any, tokenizer: Any, key: str):
    less = {name: value for name, value in generator.items() if name != key}
    with pytest.raises(ValueError, match=key):
        convert_text_to_image(less, tokenizer, tokenizer_config=TOKENIZER_OVERRIDES)


def test_all_problems_are_listed(generator: Any, tokenizer: Any):
    generator, tokenizer = dict(generator), dict(tokenizer)
    del generator["model.norm.weight"], tokenizer["decoder.norm_out.bias"]
    generator["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
    tokenizer["encoder_vqkd.proj"] = torch.zeros(64, 32)
    generator["model.pos_1LC"] = torch.zeros(800, 64)
    with pytest.raises(ValueError) as error:
        convert_text_to_image(generator, tokenizer, tokenizer_config=TOKENIZER_OVERRIDES)
    for part in (
        "5 problems",
        "missing model.norm.weight",
        "missing tokenizer.decoder.norm_out.bias",
        "left over model.layers.0.self_attn.q_proj.bias",
        "left over tokenizer.encoder_vqkd.proj",
        "model.pos_1LC of shape (800, 64) can't become model.position_embedding.weight of shape (817, 64)",
    ):
        assert part in str(error.value)


def test_vocabularies_that_do_not_fit(generator: Any, tokenizer: Any):
    shorter = {**generator, "model.embed_tokens.weight": torch.zeros(300, 64)}
    with pytest.raises(ValueError, match=r"embed_tokens.weight of shape \(300, 64\) can't become"):
        convert_text_to_image(shorter, tokenizer, tokenizer_config=TOKENIZER_OVERRIDES)
    with pytest.raises(ValueError, match=r"lm_head.weight of shape \(328, 64\) can't become text_head"):
        tiny = {"tokenizer_config": TOKENIZER_OVERRIDES, "text_config": {"vocab_size": 190, "pad_token_id": 0}}
        convert_text_to_image(generator, tokenizer, **tiny)


def test_scales_of_another_tokenizer(generator: Any, tokenizer: Any):
    overrides = {**TOKENIZER_OVERRIDES, "image_size": 224, "scales": TINY["config"]["scales"][:-1]}
    with pytest.raises(ValueError, match="lvl_embed.weight of shape"):
        convert_text_to_image(generator, tokenizer, tokenizer_config=overrides)


def test_what_shapes_do_not_show(generator: Any, tokenizer: Any):
    def infer(official: dict | None = None, **overrides: Any) -> Any:
        return infer_text_to_image_config(
            generator, tokenizer, official, tokenizer_config=TOKENIZER_OVERRIDES, **overrides
        )

    text = infer().text_config
    assert (text.rms_norm_eps, text.pad_token_id, text.rope_parameters["rope_theta"]) == (1e-5, 199, 10000.0)
    text = infer({**OFFICIAL_CONFIG, "hidden_size": 1, "pad_token_id": -1, "eos_token_id": 7}).text_config
    assert (text.rms_norm_eps, text.rope_parameters["rope_theta"], text.hidden_size) == (1e-6, 5000.0, 64)
    assert (text.pad_token_id, text.eos_token_id) == (199, 7)
    config = infer(OFFICIAL_CONFIG, text_config={"rms_norm_eps": 1e-4, "rope_theta": 7.0}, qk_norm_eps=1e-3)
    assert (config.text_config.rms_norm_eps, config.qk_norm_eps) == (1e-4, 1e-3)
    assert config.text_config.rope_parameters["rope_theta"] == 7.0
    later = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 777.0}}  # of transformers 5
    assert infer(later).text_config.rope_parameters == later["rope_parameters"]
    assert infer(later, text_config={"rope_theta": 7.0}).text_config.rope_parameters["rope_theta"] == 7.0
    for unknown in ({"text_config": {"rms_eps": 1.0}}, {"num_heads": 4}):
        with pytest.raises(ValueError, match="has no fields"):
            infer(**unknown)
    for wrong in ({"text_config": {"rms_norm_eps": "small"}}, {"qk_norm_eps": "small"}):
        with pytest.raises(ValueError, match="TokenFlowTextToImageConfig can't be made of these fields"):
            infer(**wrong)


# ---- Folders ----


def save_sharded(state_dict: dict[str, torch.Tensor], folder: Path, form: str, num_shards: int = 3) -> None:
    """A checkpoint in shards with an index, as transformers writes it, of safetensors or of torch's own files."""
    stem, save = ("model", save_file) if form == "safetensors" else ("pytorch_model", torch.save)
    names = [f"{stem}-{index + 1:05d}-of-{num_shards:05d}.{form}" for index in range(num_shards)]
    shards: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    for index, (key, tensor) in enumerate(state_dict.items()):
        shards[names[index * num_shards // len(state_dict)]][key] = tensor
    for name, shard in shards.items():
        save(shard, folder / name)
    weight_map = {key: name for name, shard in shards.items() for key in shard}
    index = {"metadata": {"total_size": sum(value.nbytes for value in state_dict.values())}, "weight_map": weight_map}
    (folder / f"{stem}.{form}.index.json").write_text(json.dumps(index))


@pytest.fixture
def official(generator: Any, tokenizer: Any, tmp_path: Path) -> Path:
    """A folder as the official one, in bfloat16 and in shards, and beside it the tokenizer's file."""
    folder = tmp_path / "official"
    folder.mkdir()
    save_sharded({key: value.bfloat16() for key, value in generator.items()}, folder, "bin")
    (folder / "config.json").write_text(json.dumps(OFFICIAL_CONFIG))
    tiny_text_tokenizer().save_pretrained(folder)
    torch.save({"model": tokenizer}, tmp_path / "tokenizer.pt")
    return folder


def convert(official: Path, **options: Any) -> Any:
    options = {"settings": SETTINGS, "tokenizer": official.parent / "tokenizer.pt", **options}
    return convert_checkpoint(official, official.parent / "model", **options)


def test_folder_works_with_the_auto_classes(generator: Any, official: Path, tmp_path: Path):
    options = [argument for setting in SETTINGS for argument in ("--set", setting)]
    arguments = ["convert", official, tmp_path / "model", "--tokenizer", tmp_path / "tokenizer.pt", *options]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "a generator and its tokenizer of 256-pixel pictures" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "official", "tokenizer.pt"]

    model = AutoModel.from_pretrained(tmp_path / "model")
    assert isinstance(model, TokenFlowForTextToImage) and model.dtype == torch.bfloat16
    assert model.tokenizer.quantizer.codebook.pixel.dtype == torch.float32
    assert torch.equal(model.visual_head.weight, generator["lm_head.weight"][200:].bfloat16())
    assert model.config.text_config.rms_norm_eps == 1e-6
    assert model.generation_config.top_k == [1200, 100, 1]
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    assert processor.negative_prompt == OFFICIAL_NEGATIVE_PROMPT
    assert processor.tokenizer.pad_token == "[PAD]"
    assert processor.tokenizer.pad_token_id == model.config.text_config.pad_token_id
    assert processor.image_processor.size == {"shortest_edge": 256} and processor.image_processor.do_halve
    assert (tmp_path / "model" / "modeling_tokenflow_text_to_image.py").exists()
    inputs = processor(text=["a fox", "two boats"], return_tensors="pt")
    output = model.generate(**inputs, guidance_scale=0.0, top_k=[1], top_p=[0.0])
    assert output.codes.shape == (2, 817)


def test_weights_stay_as_they_are(official: Path, tmp_path: Path, tokenizer: Any):
    convert(official)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    of_generator = {value.dtype for name, value in stored.items() if not name.startswith("tokenizer.")}
    assert of_generator == {torch.bfloat16}
    expected = tokenizer["post_quant_conv.bias"]
    assert torch.equal(stored["tokenizer.pixel_decoder.projection.bias"], expected)
    loaded = AutoModel.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert torch.equal(loaded.tokenizer.pixel_decoder.projection.bias, expected)


def test_dtype(official: Path, tmp_path: Path):
    convert(official, dtype="float16")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    for name, value in stored.items():
        is_integer = not value.is_floating_point()
        assert is_integer or value.dtype == (torch.float32 if ".codebook." in name else torch.float16)
    assert AutoConfig.from_pretrained(tmp_path / "model").dtype == torch.float16


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_shards(generator: Any, official: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch):
    """Shards in, shards out, which hold the same as the model that is converted in memory and saved by transformers."""
    for path in official.glob("pytorch_model*"):
        path.unlink()
    save_sharded(generator, official, form)
    monkeypatch.setattr(writing, "SHARD_SIZE", "3MB")
    steps: list[tuple[int, int]] = []
    converted = convert(official, advance=lambda *step: steps.append(step))
    folder = tmp_path / "model"
    model = AutoModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again", max_shard_size="3MB")

    index, again = (
        json.loads((path / "model.safetensors.index.json").read_text()) for path in (folder, tmp_path / "again")
    )
    # The same tensors, sizes and number of parameters; which shard holds a tensor hangs on the order of writing.
    assert index["weight_map"].keys() == again["weight_map"].keys()
    assert index["metadata"] == again["metadata"]
    assert converted.num_parameters == index["metadata"]["total_parameters"]
    files = sorted(set(index["weight_map"].values()))
    assert len(files) == len(steps) > 3 and steps[-1] == (index["metadata"]["total_size"],) * 2
    state_dict = model.state_dict()
    for file in files:
        with safe_open(folder / file, "pt") as shard:
            assert shard.metadata() == {"format": "pt"}
            for name in shard.keys():  # noqa: SIM118 (not a dictionary)
                assert index["weight_map"].pop(name) == file
                assert torch.equal(shard.get_tensor(name), state_dict[name])
    assert not index["weight_map"]


def test_single_files(generator: Any, official: Path, tmp_path: Path):
    save_file(generator, tmp_path / "generator.safetensors")
    options = {"settings": SETTINGS, "tokenizer": tmp_path / "tokenizer.pt"}
    with pytest.raises(CommandError, match="--text-tokenizer"):
        convert_checkpoint(tmp_path / "generator.safetensors", tmp_path / "model", **options)
    convert_checkpoint(tmp_path / "generator.safetensors", tmp_path / "model", text_tokenizer=str(official), **options)
    model = AutoModel.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.float32 and model.config.text_config.rms_norm_eps == 1e-5


# ---- Text tokenizers ----


def text_tokenizer_folder(folder: Path, *tokens: str, pad_token: str | None = None) -> str:
    tokenizer = tiny_text_tokenizer()
    if pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": pad_token})
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_padding_is_added(tmp_path: Path):
    size = len(tiny_text_tokenizer())
    loaded = load_text_tokenizer(text_tokenizer_folder(tmp_path), size + 1)
    assert (loaded.pad_token, loaded.pad_token_id) == ("[PAD]", size)
    loaded = load_text_tokenizer(text_tokenizer_folder(tmp_path, pad_token="<unk>"), size + 1)
    assert (loaded.pad_token_id, len(loaded)) == (0, size)
    with pytest.raises(ValueError, match="vocabulary"):
        load_text_tokenizer(text_tokenizer_folder(tmp_path), size)


def test_visual_tokens_are_taken_out(tmp_path: Path):
    size = len(tiny_text_tokenizer()) + 1
    visual = [f"<vq_token_{index}>" for index in range(40)]
    loaded = load_text_tokenizer(text_tokenizer_folder(tmp_path / "a", *visual, pad_token="[PAD]"), size)
    assert len(loaded) == size and loaded.pad_token_id == size - 1
    loaded.save_pretrained(tmp_path / "b")
    again = load_text_tokenizer(str(tmp_path / "b"), size)
    for text in ("a fox <vq_token_7>", "<s> two </s>"):
        ids = again(text)["input_ids"]
        assert ids == loaded(text)["input_ids"] and max(ids) < size
    with pytest.raises(ValueError, match="<other>"):
        load_text_tokenizer(text_tokenizer_folder(tmp_path / "c", "<other>", pad_token="[PAD]"), size)


def test_no_text_tokenizer(official: Path, tmp_path: Path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (official / name).unlink()
    with pytest.raises(CommandError, match="--text-tokenizer"):
        convert(official)
    with pytest.raises(CommandError, match="can't be loaded"):
        convert(official, text_tokenizer=str(tmp_path / "absent"))
    assert not (tmp_path / "model").exists()


# ---- What is refused ----


def test_tokenizers_of_the_wrong_kind(official: Path, tmp_path: Path):
    with pytest.raises(CommandError, match="pass --tokenizer"):
        convert(official, tokenizer=None)
    with pytest.raises(CommandError, match="--tokenizer takes an image tokenizer, not .* is a generator"):
        convert(official, tokenizer=official)
    with pytest.raises(CommandError, match="is an image tokenizer"):
        convert_checkpoint(tmp_path / "tokenizer.pt", tmp_path / "model", tokenizer=tmp_path / "tokenizer.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CommandError, match="--tokenizer takes .*other.pt: this is no official TokenFlow tokenizer"):
        convert(official, tokenizer=tmp_path / "other.pt")
    TokenFlowConfig().save_pretrained(tmp_path / "ours")
    with pytest.raises(CommandError, match="--tokenizer takes .*ours is a tokenizer of this package, converted"):
        convert(official, tokenizer=tmp_path / "ours")
    with pytest.raises(CommandError, match="can't become"):
        convert(official, settings=[*SETTINGS[:1], *SETTINGS[2:], "tokenizer_config.scales=[1,2,16]"])
    assert not (tmp_path / "model").exists()


def test_damaged_shards(official: Path, tmp_path: Path):
    index_path = official / "pytorch_model.bin.index.json"
    index = json.loads(index_path.read_text())
    second, last = sorted(set(index["weight_map"].values()))[1:]
    (tmp_path / "aside").mkdir()
    shutil.move(official / second, tmp_path / "aside" / second)
    with pytest.raises(CommandError, match=second):
        convert(official)
    for outside in (f"../aside/{second}", str(tmp_path / "aside" / second)):
        changed = {key: outside if name == second else name for key, name in index["weight_map"].items()}
        index_path.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(CommandError, match="beside itself"):
            convert(official)
    fewer = {key: name for key, name in index["weight_map"].items() if name != second}
    index_path.write_text(json.dumps({"weight_map": fewer}))
    with pytest.raises(CommandError, match="missing model.layers"):
        convert(official)
    for content in ("{}", "[]", "nothing", '{"weight_map": {}}', '{"weight_map": {"key": 3}}'):
        index_path.write_text(content)
        with pytest.raises(CommandError, match="index.json"):
            convert(official)
    index_path.write_text(json.dumps(index))
    shutil.copy(official / last, official / second)
    with pytest.raises(CommandError, match="is both in"):
        convert(official)
    for path in official.glob("pytorch_model*"):
        path.unlink()
    with pytest.raises(CommandError, match="holds no checkpoint"):
        convert(official)
    assert not (tmp_path / "model").exists()


def test_code_in_a_shard_is_refused_and_not_run(official: Path, tmp_path: Path):
    shard = sorted(official.glob("*.bin"))[1]
    target = tmp_path / "made-by-the-checkpoint"
    torch.save({**torch.load(shard, weights_only=True), "more": Malicious(target)}, shard)
    with pytest.raises(CommandError, match="can't be read"):
        convert(official)
    assert not target.exists() and not (tmp_path / "model").exists()


def test_damaged_configuration(official: Path):
    for content in ("{", "[]"):
        (official / "config.json").write_text(content)
        with pytest.raises(CommandError, match="config.json"):
            convert(official)


def test_folders_that_hold_something_stay_as_they_are(official: Path, tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(CommandError, match="no empty folder"):
        convert(official)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    convert(official)
    assert (folder / "model.safetensors").exists()


def test_interrupted_conversions_leave_nothing(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(writing, "SHARD_SIZE", "3MB")

    def interrupt(done: int, total: int) -> None:
        assert not (tmp_path / "model").exists()
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(official, advance=interrupt)
    assert sorted(tmp_path.iterdir()) == before


def test_folder_written_whole(tmp_path: Path):
    with folder_written_whole(tmp_path / "a" / "b") as temporary:
        (temporary / "file").write_text("text")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "file").read_text() == "text"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    with pytest.raises(FileExistsError), folder_written_whole(tmp_path / "a" / "b"):
        pass


# ---- Memory ----

# Prints by how many bytes the conversion raised the process's resident memory at most.
MEASURE = """
    import ctypes, sys
    from pathlib import Path
    from transformers_tokenflow.commands.conversion import convert_checkpoint
    from transformers_tokenflow.conversion import writing

    def resident(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    checkpoint, folder, tokenizer, text_tokenizer, shard_size, *settings = sys.argv[1:]
    writing.SHARD_SIZE = shard_size
    before = resident("VmRSS")
    convert_checkpoint(
        Path(checkpoint),
        Path(folder),
        settings=settings,
        tokenizer=Path(tokenizer) if tokenizer else None,
        text_tokenizer=text_tokenizer,
    )
    print(resident("VmHWM") - before, resident("VmHWM"))
"""


def measure_memory(official: Path, tokenizer: Path | None, shard_size: str, settings: list[str]) -> tuple[int, int]:
    """Bytes by which a conversion raises the resident memory of a process of its own, and what that is in all."""
    arguments = [official, official.parent / "model", tokenizer or "", official, shard_size, *settings]
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    more, total = result.stdout.split()
    return int(more), int(total)


def with_layers(generator: dict[str, torch.Tensor], count: int, width: int) -> dict[str, torch.Tensor]:
    """The tiny generator with more layers and wider MLPs, of random weights."""
    state_dict = {key: value for key, value in generator.items() if not key.startswith("model.layers.")}
    for key, value in generator.items():
        if key.startswith("model.layers.0."):
            sizes = [width if size == 128 else size for size in value.shape]
            state_dict |= {key.replace(".0.", f".{index}.", 1): torch.rand(sizes) for index in range(count)}
    return state_dict


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read as Linux gives it")
@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_conversion_takes_little_memory(generator: Any, official: Path, tmp_path: Path, form: str):
    for path in official.glob("pytorch_model*"):
        path.unlink()
    large = with_layers(generator, count=40, width=16384)
    assert sum(value.nbytes for value in large.values()) > 500e6
    save_sharded(large, official, form)
    more, _ = measure_memory(official, tmp_path / "tokenizer.pt", "40MB", SETTINGS)
    assert more < 200e6
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    with safe_open(tmp_path / "model" / index["weight_map"]["model.layers.39.mlp.up_proj.weight"], "pt") as shard:
        stored = shard.get_tensor("model.layers.39.mlp.up_proj.weight")
    assert torch.equal(stored, large["model.layers.39.mlp.up_proj.weight"])


def write_sparse(shapes: dict[str, list[int]], path: Path) -> None:
    """A safetensors file of zeros in bfloat16, which takes no room on a disk that can leave holes."""
    header, end = {}, 0
    for key, shape in shapes.items():
        size = 2 * int(torch.Size(shape).numel())
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_released_size_in_less_than_4_gib(official: Path, tmp_path: Path):
    if shutil.disk_usage(tmp_path).free < 40e9:
        pytest.skip("needs 15 GB of disk, and some more to leave")
    for path in official.glob("pytorch_model*"):
        path.unlink()
    keys = list(OFFICIAL["state_dict"])
    shards = {"model-00001-of-00002.safetensors": keys[:250], "model-00002-of-00002.safetensors": keys[250:]}
    for name, part in shards.items():
        write_sparse({key: OFFICIAL["state_dict"][key] for key in part}, official / name)
    weight_map = {key: name for name, part in shards.items() for key in part}
    (official / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    write_sparse(OFFICIAL_TOKENIZER["state_dict"], tmp_path / "tokenizer.safetensors")
    _, total = measure_memory(official, tmp_path / "tokenizer.safetensors", writing.SHARD_SIZE, [])
    assert total < 4 * 2**30
    shutil.rmtree(tmp_path / "model")
