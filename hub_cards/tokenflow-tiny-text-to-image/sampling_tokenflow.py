# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Choosing codes: settings, random generators that make a picture independent of its batch, filters and draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from operator import index
from typing import Any

import torch
from transformers import GenerationConfig

SETTINGS = ("guidance_scale", "guidance_schedule", "top_k", "top_p", "temperature", "do_sample", "attend_to_refined")
# Of transformers' own settings those that every picture satisfies. Pipelines and saved configurations bring them along.
HARMLESS = (
    "bos_token_id",
    "disable_compile",
    "eos_token_id",
    "max_length",
    "max_new_tokens",
    "pad_token_id",
    "return_dict_in_generate",
    "use_cache",
)
# Arguments of `generate`, which a configuration may hold ("preallocated" transformers lets none hold, nor need one).
ARGUMENTS = ("cache_implementation", "output_logits")
# Far more than makes pictures, and far less than fp32 holds.
MOST_GUIDANCE = 10_000
# Entries that tie with the last of the best `top_k` remain, however many they are. In half precision dozens often do:
# taken along at once, they save a second search.
SPARE = 64
# Groups of scores, of which only the best are searched: for many and for few entries to find.
GROUP_SIZES = (4, 16)
FEW = 256


@dataclass
class Sampling:
    """How a picture is drawn; one entry of `top_k` and `top_p` per pass over a scale."""

    guidance_scale: float
    guidance_schedule: str
    top_k: list[int]
    top_p: list[float]
    temperature: float
    attend_to_refined: bool

    @classmethod
    def from_config(cls, config: GenerationConfig) -> "Sampling":
        """
        Raises:
            ValueError: a value can't be, or there are not as many `top_k` as `top_p`.
        """
        values = tuple(v.tolist() if hasattr(v, "tolist") else v for v in (config.top_k, config.top_p))
        passes = max(len(value) if isinstance(value, Sequence) else 1 for value in values)
        top_k, top_p = (list(value) if isinstance(value, Sequence) else [value] * passes for value in values)
        if not config.do_sample:
            top_k = [1] * passes
        return cls(
            guidance_scale=float(config.guidance_scale or 0.0),
            guidance_schedule=getattr(config, "guidance_schedule", None) or "linear",
            top_k=top_k,
            top_p=top_p,
            temperature=1.0 if config.temperature is None else float(config.temperature),
            attend_to_refined=bool(getattr(config, "attend_to_refined", False)),
        )

    def __post_init__(self) -> None:
        if not self.top_k or len(self.top_k) != len(self.top_p):
            raise ValueError(
                f"lists as top_k and top_p need an entry per pass each; got {self.top_k} and {self.top_p}. A number "
                "counts for every pass"
            )
        if not all(isinstance(k, Integral) and k >= 0 for k in self.top_k):
            raise ValueError(f"top_k must hold whole numbers from 0 (all entries); got {self.top_k}")
        if not all(0 <= p <= 1 for p in self.top_p):
            raise ValueError(f"top_p must lie in [0, 1], where 0 leaves the filter out; got {self.top_p}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0; got {self.temperature}. top_k=1 draws greedily")
        if not 0 <= self.guidance_scale <= MOST_GUIDANCE:
            raise ValueError(f"guidance_scale must be from 0 to {MOST_GUIDANCE:,}; got {self.guidance_scale}")
        if self.guidance_schedule not in ("linear", "constant"):
            raise ValueError(f"guidance_schedule is 'linear' or 'constant'; got {self.guidance_schedule!r}")

    def guidance(self, index: int, num_scales: int) -> float:
        """The weight t of scale `index`: scores are (1 + t) conditional - t unconditional."""
        if self.guidance_schedule == "constant" or num_scales == 1:
            return self.guidance_scale
        return self.guidance_scale * index / (num_scales - 1)


def refuse_other_settings(config: GenerationConfig) -> None:
    """
    Raises:
        ValueError: the configuration asks for beams, penalties, or whatever else transformers knows of texts alone.
    """
    known = {*SETTINGS, *HARMLESS, *ARGUMENTS, "transformers_version"}
    defaults = config._get_default_generation_params()
    others = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - known
    values = {name: getattr(config, name, None) for name in others}
    off = {name for name, value in values.items() if value is None or value is False or value == []}
    if asked := sorted(name for name in others - off if values[name] != defaults.get(name)):
        raise ValueError(
            f"generate draws the scales of pictures, where {', '.join(asked)} mean nothing. For several pictures of a "
            "prompt pass num_images_per_prompt, for the best of several best_of"
        )


@dataclass
class Generators:
    """Sources of randomness: torch's own (neither), one for all pictures, or one for each."""

    shared: torch.Generator | None = None
    each: list[torch.Generator] | None = None

    def uniform(self, num_pictures: int, num_tokens: int, device: torch.device) -> torch.Tensor:
        """Numbers in [0, 1): (N, T) float32 on a device, wherever the generators are."""
        if self.each is not None:
            rows = [torch.rand(num_tokens, generator=source, device=source.device) for source in self.each]
            return torch.stack([row.to(device) for row in rows])
        source_device = device if self.shared is None else self.shared.device
        return torch.rand((num_pictures, num_tokens), generator=self.shared, device=source_device).to(device)

    def select(self, rows: torch.Tensor) -> "Generators":
        """Those of some of the pictures: (M,) long."""
        return self if self.each is None else Generators(each=[self.each[row] for row in rows.tolist()])


def make_generators(
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    num_prompts: int,
    num_images: int,
) -> Generators:
    """
    The generators that a caller asks for.

    Args:
        seed: a number, of which picture i gets seed + i, or one per prompt, whose pictures count on from it.
        generator: one for all pictures, or one per picture.
        num_prompts: B.
        num_images: pictures per prompt.

    Raises:
        ValueError: both are given, not as many as there are prompts or pictures, or something else than generators.
    """
    num_pictures = num_prompts * num_images
    if seed is not None and generator is not None:
        raise ValueError("pass seed or generator, not both")
    if seed is not None:
        seed = plain_seeds(seed)
        firsts = seed if isinstance(seed, list) else range(seed, seed + num_pictures, num_images)
        if len(firsts) != num_prompts:
            raise ValueError(f"expected a seed for each of {num_prompts} prompts; got {len(firsts)}")
        seeds = [first + offset for first in firsts for offset in range(num_images)]
        return Generators(each=[torch.Generator().manual_seed(value) for value in seeds])
    if generator is None or isinstance(generator, torch.Generator):
        return Generators(shared=generator)
    if not isinstance(generator, Sequence) or not all(isinstance(each, torch.Generator) for each in generator):
        raise ValueError(f"expected a torch.Generator, or one for each picture; got {generator!r}")
    if len(generator) != num_pictures:
        raise ValueError(f"expected a generator for each of {num_pictures} pictures; got {len(generator)}")
    return Generators(each=list(generator))


def plain_seeds(seed: Any) -> int | list[int] | None:
    """
    A number, or a list of numbers, of what holds them: sequences, arrays and tensors too.

    Raises:
        ValueError: something is no whole number.
    """
    try:
        values = seed.tolist() if hasattr(seed, "tolist") else seed
        return None if values is None else list(map(index, values)) if isinstance(values, Sequence) else index(values)
    except TypeError as error:
        raise ValueError(f"a seed is a whole number, or one for each prompt; got {seed!r}") from error


def more_generators(generators: Generators, count: int) -> Generators:
    """For `count` candidates of each picture: its own generator for the first, others that follow from it."""
    if generators.each is None or count == 1:
        return generators
    each = []
    for source in generators.each:
        copy = torch.Generator(source.device)
        copy.set_state(source.get_state())
        seeds = torch.randint(2**62, (count - 1,), generator=copy, device=copy.device).tolist()
        each += [source, *(torch.Generator(source.device).manual_seed(value) for value in seeds)]
    return Generators(each=each)


def sample(
    logits: torch.Tensor, top_k: int, top_p: float, temperature: float, uniform: torch.Tensor | None
) -> torch.Tensor:
    """
    Draw codes.

    Only as many scores are sorted as the filters leave: with `top_k` the rest is never looked at again.

    Args:
        logits: (N, T, K) fp32.
        top_k: how many of the best entries remain, more where several tie with the last; 0: all; 1: the best is taken.
        top_p: of those, the likeliest that together reach this share of the probability; 0: all.
        temperature: divides the scores.
        uniform: (N, T) numbers in [0, 1), which decide; not needed where `top_k` is 1.

    Returns:
        (N, T) long.

    Raises:
        ValueError: scores are no finite numbers.
    """
    if top_k == 1:
        best = logits.max(dim=-1)
        check_finite(best.values)
        return best.indices
    scores, entries = best_scores(logits, top_k, is_sorted=top_p > 0)
    probabilities = (scores / temperature).softmax(dim=-1)
    if 0 < top_p < 1:
        is_dropped = beyond_top_p(probabilities, top_p)
        num_kept = int((~is_dropped).sum(dim=-1).max())
        probabilities = probabilities.masked_fill(is_dropped, 0.0)[..., :num_kept]
        entries = entries[..., :num_kept]
    if entries is not None:  # in an order of their own: that of entries which tie depends on the rest of the batch
        entries, order = entries.sort(dim=-1)
        probabilities = probabilities.gather(-1, order)
    cumulative = probabilities.cumsum(dim=-1)
    check_finite(cumulative[..., -1])
    threshold = uniform[..., None] * cumulative[..., -1:]
    chosen = torch.searchsorted(cumulative, threshold, right=True).clamp(max=last_possible(probabilities))
    return chosen[..., 0] if entries is None else entries.gather(-1, chosen)[..., 0]


def check_finite(found: torch.Tensor) -> None:
    """Raise a ValueError where what was found among scores, or summed of them, says that they are no numbers."""
    if not found.isfinite().all():
        raise ValueError(
            "the model's scores are no finite numbers: its weights are damaged, or too large for its dtype"
        )


def best_scores(logits: torch.Tensor, top_k: int, is_sorted: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    The scores that `top_k` leaves, -inf at all others that come along, and their entries (None: as they stand).

    Args:
        logits: (N, T, K).
        top_k: 0 leaves all.
        is_sorted: whether they must come best first.
    """
    size = logits.shape[-1]
    if top_k == 0 or top_k >= size:
        return logits.sort(dim=-1, descending=True) if is_sorted else (logits, None)
    scores, entries = largest(logits, min(top_k + SPARE, size))
    worst = scores[..., top_k - 1 : top_k]
    if (scores[..., -1:] == worst).any() and scores.shape[-1] < size:
        scores, entries = largest(logits, int((logits >= worst).sum(dim=-1).max()))
    return scores.masked_fill(scores < worst, -torch.inf), entries


def largest(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What `values.topk(count)` gives, on processors in half the time.

    The `count` largest lie in the `count` groups whose own largest are the largest: no other need be searched.
    """
    size = values.shape[-1]
    group = GROUP_SIZES[int(count <= FEW)]
    num_groups = size // group
    if values.device.type != "cpu" or size % group or num_groups <= count:
        return values.topk(count, dim=-1)
    grouped = values.unflatten(-1, (group, num_groups))
    groups = grouped.amax(dim=-2).topk(count, dim=-1, sorted=False).indices
    found = grouped.gather(-1, groups[..., None, :].expand(*grouped.shape[:-1], count)).flatten(-2)
    best, places = found.topk(count, dim=-1)
    return best, groups.gather(-1, places % count) + places // count * num_groups


def beyond_top_p(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """
    Which entries the filter drops: from the unlikeliest up, as long as they sum to no more than 1 - top_p.

    Args:
        probabilities: (..., k), best first.

    Returns:
        (..., k) bool, never true at the first, nor where one ties with an entry that remains.
    """
    tail = probabilities.flip(-1).cumsum(dim=-1).flip(-1)
    num_kept = (tail > 1 - top_p).sum(dim=-1, keepdim=True).clamp(min=1)
    return probabilities < probabilities.gather(-1, num_kept - 1)


def last_possible(probabilities: torch.Tensor) -> torch.Tensor:
    """Index of the last entry that is not impossible, where a draw may end by rounding: (..., k) -> (..., 1)"""
    size = probabilities.shape[-1]
    return size - 1 - (probabilities.flip(-1) > 0).int().argmax(dim=-1, keepdim=True)
