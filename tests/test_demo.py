# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
import importlib.util
import math
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image, ImageDraw
from tiny_models import pictures as random_pictures
from tiny_models import tiny_model, tiny_text_to_image, tiny_understanding_with_processor
from typer.testing import CliRunner

from transformers_tokenflow import TokenFlowImageProcessor
from transformers_tokenflow.commands import contact_sheet, describing, generation, tokenizers
from transformers_tokenflow.commands.contact_sheet import draw_contact_sheet, draw_grid, prefix_headings, tile_size
from transformers_tokenflow.commands.reconstruction import Reconstruction, decode_prefixes, psnr

DEMO = Path(__file__).parents[1] / "demo"


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    """The demo's script as an application, without running it."""
    spec = importlib.util.spec_from_file_location("tokenflow_demo", DEMO / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    app = typer.Typer()
    app.command()(demo.main)
    return app


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(path)
    TokenFlowImageProcessor(size={"shortest_edge": 32}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("generators") / "tiny"
    for part in tiny_text_to_image():
        part.save_pretrained(path)
    return path


def save_understanding(path: Path, tokenizer: dict[str, torch.Tensor] | None) -> Path:
    """An understanding model, with the weights of an image tokenizer if there are any."""
    model, processor = tiny_understanding_with_processor()
    if tokenizer is not None:
        model.model.tokenizer.load_state_dict(tokenizer)
    model.generation_config.max_new_tokens = 3
    for part in (model, processor):
        part.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def understanding(tmp_path_factory) -> Path:
    """It has the generator's image tokenizer."""
    weights = tiny_text_to_image()[0].tokenizer.state_dict()
    return save_understanding(tmp_path_factory.mktemp("understanding") / "tiny", weights)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    return save_understanding(tmp_path_factory.mktemp("understanding") / "other", None)


class TestDemo:
    @pytest.fixture(autouse=True)
    def no_default_models(self, tmp_path, monkeypatch):
        for module in (generation, describing):
            monkeypatch.setattr(module, "DEFAULT_MODEL", tmp_path / "nothing")

    def test_draws_its_own_and_given_pictures(self, app, folder, tmp_path):
        mine, broken = tmp_path / "mine.png", tmp_path / "broken.png"
        Image.new("RGB", (50, 90), "red").save(mine)
        broken.write_bytes(b"nothing")
        sheet = tmp_path / "out" / "sheet.png"
        arguments = [str(mine), str(broken), "--model", str(folder), "--output", str(sheet)]
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
        assert result.exit_code == 0, result.output
        assert (
            "5 pictures of 32×32 pixels, 21 tokens of 6 bits each: 16 bytes a picture in place of 3072" in result.output
        )
        assert "broken.png could not be read: no picture" in result.output
        assert f"contact sheet: {sheet}" in result.output
        for name in ("cat-photo", "drum-photo", "butterfly-noto", "mine", "mean"):
            assert name in result.output
        rows, columns = 5, 4
        with Image.open(sheet) as drawn:
            assert drawn.width == columns * (128 + 8) + 8 and drawn.height > rows * 128
        assert "generate" not in result.output and not (tmp_path / "out" / "generated.png").exists()

    @pytest.mark.parametrize("is_default", [True, False])
    def test_draws_prompts(self, app, folder, generator, tmp_path, monkeypatch, is_default):
        monkeypatch.setattr(generation, "DEFAULT_MODEL", generator if is_default else tmp_path / "nothing")
        own = [] if is_default else ["--generator", str(generator)]
        arguments = ["--model", str(folder), "--output", str(tmp_path / "sheet.png"), *own]
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
        assert result.exit_code == 0, result.output
        assert f"generated pictures: {tmp_path / 'generated.png'}" in result.output
        with Image.open(tmp_path / "generated.png") as drawn:
            assert drawn.width == 4 * (128 + 8) + 8 and drawn.height > 3 * 128

    def test_reads_pictures_and_what_it_drew(self, app, folder, generator, understanding, tmp_path, monkeypatch):
        monkeypatch.setattr(describing, "DEFAULT_MODEL", understanding)
        models = ["--model", str(folder), "--generator", str(generator)]
        result = CliRunner().invoke(app, [*models, "--output", str(tmp_path / "sheet.png")], env={"COLUMNS": "120"})
        assert result.exit_code == 0, result.output
        table = result.output.partition("Reading pictures")[2]
        assert "cat-photo" in table and "drawn: a red apple" in table and "drawn: the sun" in table

    def test_tokens_of_another_tokenizer_are_not_read(self, app, folder, generator, other, tmp_path):
        models = ["--model", str(folder), "--generator", str(generator), "--understanding", str(other)]
        result = CliRunner().invoke(app, [*models, "--output", str(tmp_path / "sheet.png")], env={"COLUMNS": "120"})
        assert result.exit_code == 0, result.output
        assert "cat-photo" in result.output.partition("Reading pictures")[2] and "drawn: " not in result.output

    def test_a_generator_that_is_none(self, app, folder, tmp_path):
        arguments = ["--model", str(folder), "--generator", str(folder), "--output", str(tmp_path / "sheet.png")]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0 and "is no TokenFlow generator" in result.output

    def test_without_a_model(self, app, tmp_path, monkeypatch):
        monkeypatch.setattr(tokenizers, "DEFAULT_MODEL", tmp_path / "nothing")
        result = CliRunner().invoke(app, ["--output", str(tmp_path / "sheet.png")])
        assert result.exit_code == 1 and "pass --model" in result.output

    def test_pictures_are_small_and_licensed(self):
        files = [path for path in (DEMO / "pictures").iterdir() if path.name != "LICENCES.md"]
        notes = (DEMO / "pictures" / "LICENCES.md").read_text(encoding="utf-8")
        assert len(files) == 4 and all(f"`{path.name}`" in notes for path in files)
        assert sum(path.stat().st_size for path in files) <= 100_000


class TestReconstruction:
    def test_psnr(self):
        grey = Image.new("RGB", (4, 4), (100, 100, 100))
        assert psnr(grey, grey) == math.inf
        assert psnr(grey, Image.new("RGB", (4, 4), (101, 99, 101))) == pytest.approx(10 * math.log10(255**2))

    def test_prefixes_are_what_prefixes_of_codes_decode_to(self):
        model = tiny_model()
        pixel_values = random_pictures(model.config)
        codes = model.encode(pixel_values).codes
        for pixels, length in zip(decode_prefixes(model, pixel_values), [1, 5, 21], strict=True):
            torch.testing.assert_close(pixels, model.decode(codes[:, :length]).pixel_values)


class TestContactSheet:
    @pytest.mark.parametrize(("size", "tile"), [(32, 128), (64, 128), (96, 192), (128, 128), (224, 224), (384, 256)])
    def test_tile_size(self, size, tile):
        assert tile_size(size) == tile

    def test_headings(self):
        assert prefix_headings([1, 2, 4]) == ["scale 1\n1 token", "scales 1 to 2\n5 tokens", "final\n21 tokens"]
        assert prefix_headings([16]) == ["final\n256 tokens"]

    def test_every_picture_has_its_place(self):
        colors = ["red", "lime", "blue"]
        tiles = [Image.new("RGB", (64, 64), color) for color in colors]
        row = Reconstruction("a/" + "very-long-name" * 9 + ".png", tiles[0], tiles[1:], [3.0, math.inf])
        sheet = draw_contact_sheet([row, row], [1, 2])
        assert sheet.width == 3 * (128 + 8) + 8
        for column, color in enumerate(colors):
            expected = Image.new("RGB", (1, 1), color).getpixel((0, 0))
            for picture_row in range(2):
                top = sheet.height - (2 - picture_row) * (128 + contact_sheet.TEXT_HEIGHT + 8)
                for offset in (0, 127):
                    assert sheet.getpixel((8 + column * 136 + offset, top + offset)) == expected

    def test_grid(self):
        pictures = [Image.new("RGB", (64, 64), color) for color in ("red", "lime", "blue", "black", "yellow")]
        grid = draw_grid(pictures, ["a prompt that is too long for one line of a tile"] * 5)
        height = 128 + 2 * contact_sheet.TEXT_HEIGHT + 8
        assert grid.size == (3 * (128 + 8) + 8, 2 * height + 8)
        assert grid.getpixel((8, 8)) == (255, 0, 0) and grid.getpixel((8 + 136, 8 + height)) == (255, 255, 0)
        assert grid.getpixel((8 + 2 * 136, 8 + height)) == contact_sheet.PAPER
        assert draw_grid(pictures, [""] * 5, columns=5).width == 5 * (128 + 8) + 8

    def test_text_is_wrapped(self):
        font = contact_sheet.ImageFont.load_default(13)
        lines = contact_sheet._wrap("a red apple on a very green tree in a garden far away", font, 80, 2)
        assert len(lines) == 2 and lines[0] == "a red apple" and lines[1].endswith("…")
        assert contact_sheet._wrap("short", font, 80, 3) == ["short", ""]
        assert contact_sheet._wrap("incomprehensibilities", font, 60, 2)[0].endswith("…")
        assert contact_sheet._wrap("two  words", font, 200, 1) == ["two  words"]
        assert contact_sheet._wrap("", font, 60, 2) == [""]

    def test_text_is_shortened_to_its_tile(self):
        font = contact_sheet.ImageFont.load_default(13)
        draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
        shortened = contact_sheet._shorten("a name\nthat is too long", font, 60)
        assert shortened.startswith("a name?") and shortened.endswith("…")
        assert draw.textlength(shortened, font) <= 60
        assert contact_sheet._shorten("short", font, 60) == "short"
