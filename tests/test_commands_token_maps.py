# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from PIL import Image
from tiny_models import tiny_model

from transformers_tokenflow import TokenFlowQuantizer
from transformers_tokenflow.commands.token_maps import draw_token_map, entry_colors, principal_colors


class TestColors:
    def test_each_codebook_has_its_own(self):
        colors = entry_colors(tiny_model().quantizer)
        assert list(colors) == ["semantic", "pixel"]
        assert all(part.shape == (48, 3) and part.dtype == torch.uint8 for part in colors.values())
        assert not torch.equal(colors["semantic"], colors["pixel"])

    @pytest.mark.parametrize("kind", ["semantic", "pixel"])
    def test_of_a_single_codebook(self, kind):
        assert list(entry_colors(tiny_model(kind).quantizer)) == [kind]

    def test_neighbours_are_alike(self):
        torch.manual_seed(0)
        centers = torch.randn(4, 16)
        entries = (centers[:, None] + 0.05 * torch.randn(4, 50, 16)).flatten(0, 1)
        colors = principal_colors(entries).view(4, 50, 3).float()
        within = (colors - colors.mean(dim=1, keepdim=True)).norm(dim=-1).max()
        between = torch.pdist(colors.mean(dim=1)).min()
        assert between > 2 * within

    def test_do_not_depend_on_the_signs_of_axes(self, monkeypatch):
        entries = torch.randn(64, 8)
        expected = principal_colors(entries)
        original = torch.linalg.eigh

        def mirrored(matrix):
            values, vectors = original(matrix)
            return torch.return_types.linalg_eigh((values, -vectors))

        monkeypatch.setattr(torch.linalg, "eigh", mirrored)
        assert torch.equal(principal_colors(entries), expected)

    @pytest.mark.parametrize("width", [1, 2])
    def test_of_narrow_codebooks(self, width):
        quantizer = TokenFlowQuantizer([2], 8, semantic_dim=width, pixel_dim=0)
        torch.nn.init.normal_(quantizer.codebook.semantic)
        assert entry_colors(quantizer)["semantic"].unique().numel() > 1


class TestMap:
    COLORS = torch.tensor([[255, 0, 0], [0, 0, 255], [255, 255, 255]], dtype=torch.uint8)

    def test_every_token_has_its_cell(self):
        picture = draw_token_map(torch.tensor([[0, 1], [1, 2]]), self.COLORS, 20)
        assert picture.size == (20, 20)
        assert [picture.getpixel(place) for place in [(0, 0), (19, 0), (0, 19), (19, 19)]] == [
            (255, 0, 0), (0, 0, 255), (0, 0, 255), (255, 255, 255),
        ]  # fmt: skip
        assert len(picture.getcolors()) == 3

    def test_wide_cells_hold_their_index(self):
        picture = draw_token_map(torch.tensor([[1, 2], [2, 1]]), self.COLORS, 80)
        on_blue, on_white = picture.crop((0, 0, 40, 40)), picture.crop((40, 0, 80, 40))
        assert (255, 255, 255) in colors_of(on_blue) and (0, 0, 0) in colors_of(on_white)


def colors_of(picture: Image.Image) -> set:
    return {color for _, color in picture.getcolors(picture.width * picture.height)}
