"""Next-scale generation as one writes it down first: the baseline of the benchmark, and a second opinion for tests."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from transformers_tokenflow import TokenFlowForTextToImage, attention_tokenflow


@contextmanager
def torch_attention() -> Iterator[None]:
    """With torch's own attention, which one takes first, also where products are faster."""
    preferred, attention_tokenflow.PREFERS_PRODUCTS = attention_tokenflow.PREFERS_PRODUCTS, False
    try:
        yield
    finally:
        attention_tokenflow.PREFERS_PRODUCTS = preferred


def pad_left(ids: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Prompts (B, P) padded to a length, and their mask."""
    missing = length - ids.shape[1]
    return F.pad(ids, (missing, 0)), F.pad(torch.ones_like(ids), (missing, 0))


@torch.no_grad()
@torch_attention()
def naive_generate(
    model: TokenFlowForTextToImage,
    prompt_ids: Tensor,
    negative_ids: Tensor,
    guidance_scale: float = 7.5,
    top_k: Sequence[int] = (1200, 100, 1),
    top_p: Sequence[float] = (0.8, 0.8, 0.0),
    prompt_length: int = 131,
) -> Tensor:
    """
    Draw pictures without a cache: every forward computes the whole sequence and the scores of the whole vocabulary.

    Args:
        model: a generator with a text head.
        prompt_ids, negative_ids: (B, P) and (B, P') without padding; both are padded to `prompt_length`.
        guidance_scale, top_k, top_p: as of `generate`.
        prompt_length: officially 128 tokens of text and those of "<img>".

    Returns:
        (B, L) codes.
    """
    scales, quantizer = model.tokenizer.config.scales, model.tokenizer.quantizer
    (ids, mask), (other_ids, other_mask) = (pad_left(part, prompt_length) for part in (prompt_ids, negative_ids))
    prompt, mask = model.model.embed_prompt(torch.cat([ids, other_ids])), torch.cat([mask, other_mask])
    head = torch.cat([model.text_head.weight, model.visual_head.weight])
    inputs: list[Tensor] = []  # of the finished scales' first passes, each (B, s², D)
    all_codes, features, codes = [], None, None
    for index, scale in enumerate(scales):
        for number in range(1 if index == 0 else len(top_k)):
            own = features if number == 0 else quantizer.next_scale_features(features, codes)
            present = inputs if own is None else [*inputs, flatten(own)]
            logits = all_logits(model, prompt, mask, present, head)[:, -scale * scale :]
            conditional, unconditional = logits.chunk(2)
            weight = guidance_scale * index / (len(scales) - 1)
            guided = (1 + weight) * conditional - weight * unconditional
            guided[..., : len(model.text_head.weight)] = -torch.inf
            codes = sorting_sample(guided, top_k[number], top_p[number]) - len(model.text_head.weight)
            codes = codes.view(-1, scale, scale)
        if index > 0:
            inputs.append(flatten(features))
        all_codes.append(codes.flatten(1))
        features = quantizer.next_scale_features(features, codes, (*scales[1:], None)[index])
    return torch.cat(all_codes, dim=1)


def flatten(features: Tensor) -> Tensor:
    """(B, D, s, s) -> (B, s², D)"""
    return features.flatten(2).transpose(1, 2)


def all_logits(
    model: TokenFlowForTextToImage, prompt: Tensor, mask: Tensor, inputs: list[Tensor], head: Tensor
) -> Tensor:
    """The scores of the whole vocabulary at every position, in fp32: (2 B, T, V + K)."""
    features = torch.cat(inputs, dim=1) if inputs else prompt.new_zeros(len(prompt) // 2, 0, 1)
    blocks = torch.full_like(mask, -1)
    embeds = prompt
    if inputs:
        embeds = torch.cat([prompt, model.model.embed_image(features, start=1).repeat(2, 1, 1)], dim=1)
        image_scales = model.model.image_scales(prompt.device)[1 : 1 + features.shape[1]]
        blocks = torch.cat([blocks, image_scales.expand(len(prompt), -1)], dim=1)
    hidden = model.model(
        embeds,
        attention_mask=F.pad(mask, (0, features.shape[1]), value=1),
        position_ids=torch.arange(embeds.shape[1])[None],
        block_sequence_ids=blocks,
    ).last_hidden_state
    return F.linear(hidden, head).float()


def sorting_sample(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Filters and draws over the whole vocabulary: (B, T, V) -> (B, T)."""
    if top_k > 0:
        worst = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < worst, -torch.inf)
    if top_p > 0:
        values, order = logits.sort(dim=-1)
        dropped = values.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        dropped[..., -1] = False
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)
    return torch.multinomial(logits.softmax(dim=-1).flatten(0, 1), 1).view(logits.shape[:2])
