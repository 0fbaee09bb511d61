# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Pictures grouped by entries: of one codebook alone, of the other, and of both."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import pictures, tiny_model
from typer.testing import CliRunner

pytest.importorskip("jinja2")
from transformers_tokenflow import TokenFlowImageProcessor, cli  # noqa: E402
from transformers_tokenflow.evaluation.cluster_page import FRAME, THUMBNAIL, thumbnail  # noqa: E402
from transformers_tokenflow.evaluation.clusters import Cluster, Grouping, Groups, Member, choices  # noqa: E402
from transformers_tokenflow.quantization_tokenflow import nearest_entries  # noqa: E402


class TestChoices:
    def test_joint_ones_are_the_codes(self):
        model = tiny_model()
        pixels = pictures(model.config, batch=3)
        expected = model.encode(pixels).codes_per_scale
        for chosen, codes in zip(choices(model, pixels), expected, strict=True):
            assert torch.equal(chosen["joint"], codes)
            assert chosen["semantic"].shape == chosen["pixel"].shape == codes.shape

    @pytest.mark.parametrize("kind", ["semantic", "pixel"])
    def test_one_codebook_decides_alone(self, kind):
        """Where the other codebook has but one entry, the shared index is decided by this one."""
        model = tiny_model()
        pixels = pictures(model.config, batch=3)
        with torch.no_grad():
            other = model.quantizer.codebook.pixel if kind == "semantic" else model.quantizer.codebook.semantic
            other.copy_(other[:1].expand_as(other))
        differing = 0
        for chosen in choices(model, pixels):
            assert torch.equal(chosen[kind], chosen["joint"])
            differing += (chosen["semantic"] != chosen["pixel"]).sum().item()
        assert differing

    def test_they_see_the_residuals_of_the_codes(self):
        model = tiny_model()
        pixels = pictures(model.config)
        features = model.extract_features(pixels)
        quantized = model.quantizer.codes_to_features(model.encode(pixels).codes)
        residual = model.quantizer.normalize(features - quantized[:, -2])[:, :8]
        expected = nearest_entries(residual.permute(0, 2, 3, 1).flatten(0, 2), model.quantizer.codebook()[:, :8])
        assert torch.equal(choices(model, pixels)[-1]["semantic"].flatten(), expected)

    @pytest.mark.parametrize("kind", ["pixel", "semantic"])
    def test_a_single_codebook(self, kind):
        model = tiny_model(kind)
        assert all(list(chosen) == ["joint"] for chosen in choices(model, pictures(model.config)))
        groups = Groups(model, [1], 2)
        groups.add(["a", "b"], pictures(model.config))
        assert list(groups.groupings) == [(1, "joint")]


class TestGrouping:
    def test_members(self):
        grouping = Grouping(members=2)
        grouping.add("a", torch.tensor([[7, 7], [3, 7]]))
        grouping.add("b", torch.tensor([[3, 3], [3, 3]]))
        grouping.add("c", torch.tensor([[9, 3], [3, 3]]))
        assert grouping.clusters[7] == Cluster(7, 3, 1, [Member("a", 0, 0)])
        assert grouping.clusters[3] == Cluster(3, 8, 3, [Member("a", 1, 0), Member("b", 0, 0)])
        assert grouping.tokens_per_entry == 4
        assert [cluster.entry for cluster in grouping.choose(5)] == [3, 7, 9]

    def test_of_full_clusters_every_nth_is_shown(self):
        grouping = Grouping(members=1)
        for entry in range(9):
            for picture in range(9 - entry):
                grouping.add(f"{entry}-{picture}", torch.tensor([[entry]]))
        assert [cluster.entry for cluster in grouping.choose(3)] == [0, 3, 6]


class TestThumbnails:
    def test_a_patch_is_framed_amid_its_surroundings(self):
        # 8 cells of 8 pixels, each of a grey of its own.
        cells = np.arange(64, dtype=np.uint8).reshape(8, 8).repeat(8, 0).repeat(8, 1)
        picture = Image.fromarray(cells).convert("RGB")
        third = THUMBNAIL // 3
        for member, corner in ((Member("x", 4, 2), (third, third)), (Member("x", 0, 7), (2 * third, 0))):
            shown = np.asarray(thumbnail(picture, member, 8))
            assert shown.shape == (THUMBNAIL, THUMBNAIL, 3)
            left, top = corner
            assert shown[top, left].tolist() == list(FRAME)
            assert shown[top + third // 2, left + third // 2, 0] == 8 * member.row + member.column
            frame = (shown == FRAME).all(axis=2)
            assert frame[top : top + third, left : left + third].sum() == frame.sum()

    def test_a_single_token_is_the_picture(self):
        picture = Image.new("RGB", (64, 64), "red")
        assert not (np.asarray(thumbnail(picture, Member("x", 0, 0), 1)) == FRAME).all(axis=2).any()
        # Of two cells a side all are shown.
        assert thumbnail(picture, Member("x", 1, 1), 2).size == (THUMBNAIL, THUMBNAIL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(path)
    TokenFlowImageProcessor(size={"shortest_edge": 32}).save_pretrained(path)
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    generator = np.random.default_rng(0)
    for number in range(4):
        pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number} <b>&.png")
    (root / "broken.png").write_bytes(b"no picture")
    return root


class TestCommand:
    def run(self, *arguments: object):
        return CliRunner().invoke(cli.app, ["cluster", *(str(argument) for argument in arguments)])

    def test_page_needs_nothing_else(self, folder, photos, tmp_path):
        page = tmp_path / "out" / "page.html"
        options = ["--model", folder, "--output", page, "--count", 3, "--members", 2, "--scale", 1, "--scale", 4]
        result = self.run(photos, *options)
        assert result.exit_code == 0, result.output
        assert "broken.png" in result.stderr
        text = page.read_text()
        assert "4 pictures through" in text and text.count("<section>") == 6
        assert re.findall(r"<h2>(.*?)</h2>", text) == [
            "Whole pictures: the scale of one token",
            "Patches: the scale 4×4",
        ]
        sources = re.findall(r'<img src="(.*?)"', text)
        assert sources and all(source.startswith("data:image/webp;base64,") for source in sources)
        shown = Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2])))
        assert shown.size == (THUMBNAIL, THUMBNAIL)
        assert "http" not in text and "<b>&.png" not in text and "&lt;b&gt;&amp;.png" in text

    def test_scales(self, folder, photos, tmp_path):
        options = ["--model", folder, "--output", tmp_path / "page.html"]
        assert self.run(photos, *options).exit_code == 0
        assert "the scale 2×2" in (tmp_path / "page.html").read_text()
        result = self.run(photos, *options, "--scale", 3)
        assert result.exit_code == 1 and "has no scale 3; its scales are 1, 2, 4" in result.stderr

    def test_no_pictures(self, folder, photos, tmp_path):
        result = self.run(photos / "broken.png", "--model", folder, "--output", tmp_path / "page.html")
        assert result.exit_code == 1 and "there are no pictures that can be read" in result.stderr.replace("\n", " ")
        assert not (tmp_path / "page.html").exists()
