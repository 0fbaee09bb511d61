# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, tiny_text_to_image, tiny_understanding

from training.take_decoder import take_decoder
from transformers_tokenflow import TokenFlowForConditionalGeneration, TokenFlowForTextToImage, TokenFlowModel


@pytest.mark.parametrize("kind", ["generator", "understanding"])
def test_another_decoder_and_the_same_codes(kind: str, tmp_path: Path):
    if kind == "generator":
        model, loaded_class = tiny_text_to_image()[0], TokenFlowForTextToImage
        tokenizer = model.tokenizer
    else:
        model, loaded_class = tiny_understanding(), TokenFlowForConditionalGeneration
        tokenizer = model.model.tokenizer
    model.save_pretrained(tmp_path / "model")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.nn.init.ones_(tokenizer.pixel_decoder.conv_in.weight)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    take_decoder([tmp_path / "tokenizer"], tmp_path / "model")
    after = loaded_class.from_pretrained(tmp_path / "model").state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert [name.rpartition("tokenizer.")[2] for name in changed] == ["pixel_decoder.conv_in.weight"]


def test_a_tokenizer_takes_the_mean_of_several(tmp_path: Path):
    model = tiny_model("clip")
    for value in (1.0, 2.0, 6.0):
        torch.nn.init.constant_(model.pixel_decoder.conv_in.weight, value)
        model.save_pretrained(tmp_path / str(value))
    take_decoder([tmp_path / "2.0", tmp_path / "6.0"], tmp_path / "1.0")
    weight = TokenFlowModel.from_pretrained(tmp_path / "1.0").pixel_decoder.conv_in.weight
    assert torch.equal(weight, torch.full_like(weight, 4.0))


def test_another_tokenizer_is_refused(tmp_path: Path):
    model = tiny_text_to_image()[0]
    model.save_pretrained(tmp_path / "model")
    torch.nn.init.ones_(model.tokenizer.quantizer.codebook.pixel)
    model.tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="another tokenizer than .*: quantizer.codebook.pixel differ"):
        take_decoder([tmp_path / "tokenizer"], tmp_path / "model")
