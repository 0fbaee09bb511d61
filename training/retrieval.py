"""The retrieval measure that the tiny teacher and the tokenizers distilled from it share."""

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_style_retrieval_accuracy(features: Tensor, names: list[str], styles: list[str]) -> float:
    """Share of pictures whose nearest neighbour (cosine) among the pictures in other styles has the same name.

    A picture with no namesake in another style is still a candidate for the others, but no query.

    Args:
        features: (N, D) features, one row per picture; they need not be normalised.
        names: N names.
        styles: N styles.

    Returns:
        Accuracy between 0 and 1.
    """
    if not len(features) == len(names) == len(styles):
        raise ValueError(
            f"Got {len(features)} features, {len(names)} names, {len(styles)} styles; expected equal counts."
        )
    name_ids, style_ids = as_ids(names), as_ids(styles)
    same_style = style_ids[:, None] == style_ids[None, :]
    same_name = name_ids[:, None] == name_ids[None, :]
    answerable = (same_name & ~same_style).any(dim=1)
    if not answerable.any():
        raise ValueError("No picture has a namesake in another style, so there is nothing to retrieve.")
    features = F.normalize(features.detach().float().cpu(), dim=-1)
    similarity = (features @ features.T).masked_fill(same_style, -torch.inf)
    hits = same_name[torch.arange(len(features)), similarity.argmax(dim=1)]
    return hits[answerable].float().mean().item()


def as_ids(labels: list[str]) -> Tensor:
    """Numbers labels by first appearance; returns (N,) integers."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(label, len(numbers)) for label in labels])
