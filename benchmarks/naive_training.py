"""A step of the generator's training as one writes it down first: the benchmark's baseline, and a second opinion."""

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.naive_text_to_image import flatten, pad_left, torch_attention
from transformers_tokenflow import TokenFlowForTextToImage

PROMPT_LENGTH = 131  # officially 128 tokens of text and those of "<img>"


def one_hot_inputs(model: TokenFlowForTextToImage, codes: Tensor) -> Tensor:
    """What predicts the scales after the first, from entries that one-hot matrices choose: (B, L) -> (B, L - 1, D)"""
    scales, quantizer = model.tokenizer.config.scales, model.tokenizer.quantizer
    parts = [F.normalize(table.float(), dim=1) for table in (quantizer.codebook.semantic, quantizer.codebook.pixel)]
    entries = torch.cat(parts, dim=1)
    features, inputs, start = None, [], 0
    for scale, following in zip(scales, scales[1:], strict=False):
        part = codes[:, start : start + scale * scale]
        chosen = (F.one_hot(part, len(entries)).float() @ entries).transpose(1, 2).unflatten(2, (scale, scale))
        features = chosen if features is None else features + chosen
        features = F.interpolate(features, size=(following, following), mode="bicubic")
        inputs.append(flatten(features))
        start += scale * scale
    return torch.cat(inputs, dim=1)


def dense_mask(model: TokenFlowForTextToImage, padding: Tensor) -> Tensor:
    """What is added to the scores of attention, 0 or -inf: (B, P) of prompts, 0 at padding -> (B, 1, T, T)"""
    rows, length = padding.shape
    blocks = torch.cat([torch.full((length,), -1), model.model.image_scales(padding.device)[1:]])
    places = torch.arange(len(blocks))
    seen = (places[:, None] >= places) | ((blocks[:, None] == blocks) & (blocks >= 0))
    seen = seen & F.pad(padding, (0, len(blocks) - length), value=1).bool()[:, None]
    seen = seen | torch.eye(len(blocks), dtype=torch.bool)  # padding sees itself, or its softmax would be no number
    return torch.zeros(rows, len(blocks), len(blocks)).masked_fill(~seen, -torch.inf)[:, None]


@torch_attention()
def naive_loss(
    model: TokenFlowForTextToImage, prompt_ids: Tensor, codes: Tensor, prompt_length: int = PROMPT_LENGTH
) -> Tensor:
    """
    Mean cross-entropy of the codes, with the scores of the whole vocabulary at every position, in fp32.

    Args:
        model: a generator with a text head.
        prompt_ids: (B, P) without padding; they are padded to `prompt_length`.
        codes: (B, L).
    """
    ids, padding = pad_left(prompt_ids, prompt_length)
    embeds = [model.model.embed_prompt(ids), model.model.embed_image(one_hot_inputs(model, codes), start=1)]
    hidden = model.model(
        torch.cat(embeds, dim=1),
        attention_mask=dense_mask(model, padding),
        position_ids=(F.pad(padding, (0, codes.shape[1] - 1), value=1).cumsum(dim=1) - 1).clamp(min=0),
    ).last_hidden_state
    logits = F.linear(hidden, torch.cat([model.text_head.weight, model.visual_head.weight])).float()
    labels = F.pad(codes + len(model.text_head.weight), (prompt_length - 1, 0), value=-100)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())
