# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Next-scale generation: a pass over a whole scale at a time, drawn again with narrower choices (paper §3.3)."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import GenerationConfig, GenerationMixin
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from .cache_tokenflow import make_cache, read_last, rewind, select_rows, write_last
from .drawing_tokenflow import Drawing, Given, best_rows, given_codes, padding_runs, whole_number
from .quantization_tokenflow import to_tokens
from .sampling_tokenflow import (
    SETTINGS,
    Generators,
    Sampling,
    make_generators,
    more_generators,
    refuse_other_settings,
    sample,
)

Scorer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Scores that a pass computes at a time (fp32: 16 MB).
SCORES_CHUNK = 2**22


@dataclass
class NextScaleGenerationOutput(ModelOutput):
    """
    Args:
        codes (`torch.LongTensor` of shape `(N, L)`):
            Of N pictures: those of the first prompt, then those of the second, ...
        codes_per_scale (`tuple(torch.LongTensor)`):
            Views of `codes`, one `(N, h_s, w_s)` per scale.
        logits (`tuple(torch.FloatTensor)`, *optional*, with `output_logits=True`):
            Guided scores `(N, tokens, K)` of every pass, in fp32, before temperature and filters.
        scores (`torch.FloatTensor` of shape `(N,)`, *optional*, with `best_of` above 1):
            What the scorer gave to each.
    """

    codes: torch.Tensor | None = None
    codes_per_scale: tuple[torch.Tensor, ...] | None = None
    logits: tuple[torch.Tensor, ...] | None = None
    scores: torch.Tensor | None = None


def default_generation_config() -> GenerationConfig:
    """The paper's best sampling: three passes a scale (Table 6), guidance that grows to 7.5."""
    return GenerationConfig(
        do_sample=True,
        guidance_scale=7.5,
        guidance_schedule="linear",
        top_k=[1200, 100, 1],
        top_p=[0.8, 0.8, 0.0],
        temperature=1.0,
        attend_to_refined=False,
    )


def left_aligned(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Prompts with their padding, wherever it was, on the left and no more of it than needed.

    Args:
        input_ids: (B, P).
        attention_mask: (B, P), 0 at padding; without one nothing is padding.

    Returns:
        ids and mask, both (B, length of the longest prompt).

    Raises:
        ValueError: the ids are no tensor, the shapes differ, or a prompt has no tokens.
    """
    if not isinstance(input_ids, torch.Tensor):
        raise ValueError(
            "expected input_ids as a tensor (batch, length), which `processor.prepare_generation(text)` makes, and "
            f"`processor(text=text)` with return_tensors='pt'; got {type(input_ids).__name__}"
        )
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if input_ids.dim() != 2 or attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"expected input_ids and attention_mask of one shape (batch, length); got {tuple(input_ids.shape)} and "
            f"{tuple(attention_mask.shape)}"
        )
    attention_mask = (attention_mask != 0).to(input_ids.device, torch.long)
    order = attention_mask.argsort(dim=1, stable=True)
    if not (torch.compiler.is_compiling() or input_ids.is_meta):  # where shapes can't depend on values
        lengths = attention_mask.sum(dim=1)
        if input_ids.numel() == 0 or lengths.min() == 0:
            raise ValueError("a prompt has no tokens: even an empty text needs those that begin the image")
        order = order[:, -int(lengths.max()) :]
    return input_ids.gather(1, order), attention_mask.gather(1, order)


class NextScaleGenerationMixin(GenerationMixin):
    """`generate` for models that write an image's tokens scale by scale."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        negative_prompt_ids: torch.Tensor | None = None,
        negative_attention_mask: torch.Tensor | None = None,
        guidance_scale: float | None = None,
        guidance_schedule: str | None = None,
        top_k: int | Sequence[int] | None = None,
        top_p: float | Sequence[float] | None = None,
        temperature: float | None = None,
        do_sample: bool | None = None,
        attend_to_refined: bool | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        codes: torch.Tensor | None = None,
        keep_scales: int | None = None,
        mask: torch.Tensor | None = None,
        best_of: int | None = None,
        scorer: Scorer | None = None,
        prune_at: Sequence[int] | None = None,
        cache_implementation: str | None = None,
        output_logits: bool | None = None,
        streamer: BaseStreamer | None = None,
        callback_on_scale_end: Callable[[int, torch.Tensor], Any] | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> NextScaleGenerationOutput:
        """
        Draw pictures, as codes.

        Each entry of `top_k` and `top_p` is one pass over a scale: the first predicts it, every further one feeds the
        scale's own codes back in and draws it again. The first scale takes one pass. What is not given comes from
        `generation_config`, then from the model's own.

        Args:
            input_ids: (B, P), prompts that end where the image begins, as `TokenFlowProcessor` makes them.
            attention_mask: (B, P), 0 at padding, on either side.
            negative_prompt_ids: (1, P') or (B, P'), what guidance leads away from. Needed with guidance.
            negative_attention_mask: of the same shape.
            guidance_scale: 0 takes the conditional scores alone.
            guidance_schedule: `"linear"` grows from 0 at the first scale to `guidance_scale` at the last, as the
                official code does; `"constant"` is the paper's.
            top_k: entries that a pass chooses from, 0 for all; a number counts for every pass.
            top_p: of those, the likeliest that make up this share; 0 for all.
            temperature: divides the scores.
            do_sample: False takes the likeliest entry in every pass.
            attend_to_refined: whether later scales attend to a scale's last pass; the official code attends to its
                first.
            num_images_per_prompt: n; the pictures of a prompt follow each other.
            seed: a number, of which picture i gets seed + i, or one per prompt, whose pictures count on from it.
            generator: one for all, or one per picture. Without seeds and generators torch's own is used. A picture
                with a seed or a generator of its own is, in fp32, the same alone and in any batch; in half precision
                products round otherwise in another batch, which may turn a choice.
            codes: (1 or B or N, L) of pictures of which something is kept: `keep_scales` or `mask` says what. Without a
                mask the scales that are kept are enough.
            keep_scales: how many coarse scales of `codes` are kept; the rest is drawn anew.
            mask: (grid, grid) or (1 or B or N, grid, grid) on the last scale's grid, true where the picture is drawn
                anew: elsewhere the codes of `codes` are held, at every scale. A token that lies half inside is drawn.
            best_of: how many pictures are drawn for each that is returned, which is the one `scorer` likes best; 1 if
                it is not given.
            scorer: called with the semantic features (M, h·w, d_teacher) that the tokenizer decodes from pictures so
                far, and the index (M,) of each one's prompt; gives (M,) scores.
            prune_at: scales (by index) after which the worse half of a picture's candidates is dropped.
            cache_implementation: `"preallocated"`, the default, `"dynamic"` or, for a compiled `model`, `"static"`.
            output_logits: whether to return the scores of every pass.
            streamer: its `put` gets the codes (N, tokens) of every pass.
            callback_on_scale_end: called after every scale with its index and all codes so far, (N, length), which
                `tokenizer.decode` takes. Where it returns False, drawing ends with that scale, and these codes are what
                is returned.
            generation_config: settings that are not given as arguments.
            kwargs: what transformers' pipelines add for texts, such as `max_new_tokens`, which changes nothing.

        Returns:
            [`NextScaleGenerationOutput`]

        Raises:
            ValueError: an argument is unknown or out of range, does not fit another, or is one of transformers' that
                means nothing here, such as `num_beams`; or scores are no finite numbers.
        """
        own = {name: value for name, value in locals().items() if name in SETTINGS and value is not None}
        config, unused = self._prepare_generation_config(generation_config, **own, **kwargs)
        if unused:
            raise ValueError(f"generate does not take {', '.join(sorted(unused))}")
        refuse_other_settings(config)
        output_logits = bool(config.output_logits if output_logits is None else output_logits)
        cache_implementation = cache_implementation or config.cache_implementation or "preallocated"
        sampling = Sampling.from_config(config)
        if best_of is None and scorer is not None:
            raise ValueError("the scorer has nothing to choose from: say by best_of how many to draw for each picture")
        if self.training and any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules()):
            raise ValueError("gradient checkpointing keeps no cache in training: call model.eval() before generate")
        best_of, prune_at = 1 if best_of is None else best_of, prune_at or ()
        scales = self.tokenizer.config.scales
        check_counts(num_images_per_prompt, best_of, scorer, prune_at, len(scales))

        prompts = left_aligned(input_ids, attention_mask)
        input_ids, attention_mask = (part.to(self._execution_device) for part in prompts)
        num_prompts, per_prompt = len(input_ids), num_images_per_prompt * best_of
        generators = make_generators(seed, generator, num_prompts, num_images_per_prompt)
        generators = more_generators(generators, best_of)
        is_guided = sampling.guidance_scale > 0
        input_ids, attention_mask, rows = self._prompt_rows(
            input_ids, attention_mask, negative_prompt_ids, negative_attention_mask, is_guided, per_prompt
        )
        given = given_codes(self.tokenizer, codes, keep_scales, mask, self._execution_device)
        if given is not None:
            given.spread(num_prompts, num_images_per_prompt, best_of)
        drawing, first = self._start(
            input_ids, attention_mask, rows, is_guided, generators, given, cache_implementation
        )

        all_logits: list[torch.Tensor] = []
        for index, next_scale in enumerate([*scales[1:], None]):
            for scale_codes, logits in self._passes(drawing, sampling, index, first, output_logits):
                if logits is not None:
                    all_logits.append(logits)
                if streamer is not None:
                    streamer.put(scale_codes.flatten(1).cpu())
            drawing.codes.append(scale_codes)
            drawing.features = self.tokenizer.quantizer.next_scale_features(drawing.features, scale_codes, next_scale)
            if index in prune_at and next_scale is not None:
                keep = self._best(drawing, scorer, num_prompts * num_images_per_prompt, halve=True)[0]
                drawing.select(keep)
                all_logits = [part[keep] for part in all_logits]
            if callback_on_scale_end is not None and callback_on_scale_end(index, drawing.prefix) is False:
                break
        if streamer is not None:
            streamer.end()
        return self._finish(drawing, scorer if best_of > 1 else None, num_prompts * num_images_per_prompt, all_logits)

    def sample_codes(
        self, logits: torch.Tensor, top_k: int, top_p: float, temperature: float, uniform: torch.Tensor | None
    ) -> torch.Tensor:
        """The choice among guided scores (N, T, K) in fp32, by numbers (N, T) in [0, 1): -> (N, T) long."""
        return sample(logits, top_k, top_p, temperature, uniform)

    # ---- Setting up ----

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: Any
    ) -> tuple[GenerationConfig, dict]:
        """As of any model, but what neither the caller nor the model's file sets is as in the paper."""
        defaults = default_generation_config().to_dict()
        self.generation_config.update(**defaults, defaults_only=True, allow_custom_entries=True)
        if generation_config is not None:
            # Arguments go before it, as `generate` says; transformers is going to refuse the two together.
            generation_config = copy.deepcopy(generation_config)
            own = self.generation_config.to_dict()
            generation_config.update(**own, defaults_only=True, allow_custom_entries=True)
            kwargs = generation_config.update(**kwargs)
        return super()._prepare_generation_config(generation_config, **kwargs)

    @property
    def _execution_device(self) -> torch.device:
        """Where the model computes, also while accelerate keeps its weights elsewhere."""
        hooks = [getattr(module, "_hf_hook", None) for module in self.modules()]
        devices = [getattr(hook, "execution_device", None) for hook in hooks]
        return next((torch.device(device) for device in devices if device is not None), self.device)

    def _prompt_rows(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        negative_prompt_ids: torch.Tensor | None,
        negative_attention_mask: torch.Tensor | None,
        is_guided: bool,
        per_prompt: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Distinct prompts, padded to one length (R, P), their mask, and which of them each row of the cache has."""
        rows = torch.arange(len(input_ids), device=input_ids.device).repeat_interleave(per_prompt)
        if not is_guided:
            return input_ids, attention_mask, rows
        if negative_prompt_ids is None:
            raise ValueError(
                "guidance needs negative_prompt_ids: `generate(**processor.prepare_generation(text))` has them, of the "
                "processor's negative prompt; or pass guidance_scale=0"
            )
        negative_prompts = left_aligned(negative_prompt_ids, negative_attention_mask)
        negative_ids, negative_mask = (part.to(input_ids.device) for part in negative_prompts)
        if len(negative_ids) not in (1, len(input_ids)):
            raise ValueError(f"{len(negative_ids)} negative prompts for {len(input_ids)} prompts: pass one, or as many")
        negative = rows if len(negative_ids) > 1 else torch.zeros_like(rows)
        length = max(input_ids.shape[1], negative_ids.shape[1])
        ids, masks = (
            torch.cat([F.pad(part, (length - part.shape[1], 0)) for part in pair])
            for pair in ((input_ids, negative_ids), (attention_mask, negative_mask))
        )
        return ids, masks, torch.cat([rows, len(input_ids) + negative])

    def _start(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        rows: torch.Tensor,
        is_guided: bool,
        generators: Generators,
        given: Given | None,
        cache_implementation: str,
    ) -> tuple[Drawing, torch.Tensor]:
        """Read each prompt once, and give its state to all of its rows: the drawing, and hidden states (rows, 1, D)."""
        num_inputs = self.tokenizer.config.num_image_tokens - 1
        length = input_ids.shape[1] + num_inputs
        if length > self.config.text_config.max_position_embeddings:
            raise ValueError(
                f"a prompt of {input_ids.shape[1]} tokens and {num_inputs} of the image are more than the model's "
                f"{self.config.text_config.max_position_embeddings} positions: shorten the prompt"
            )
        cache = make_cache(cache_implementation, self.config.text_config, length)
        # Flex attention knows masks alone, and so does a static cache, which shows all its places.
        is_masked = cache.is_compileable or "flex" in self.model.config._attn_implementation
        hidden = self.model(
            self.model.embed_prompt(input_ids),
            attention_mask=attention_mask if is_masked else None,
            padding_runs=None if is_masked else padding_runs(attention_mask),
            position_ids=positions(attention_mask),
            past_key_values=cache,
            return_dict=True,
        ).last_hidden_state[:, -1:]
        if len(rows) != len(input_ids):
            select_rows(cache, rows)
        mask = F.pad(attention_mask, (0, num_inputs), value=1)[rows]
        runs = None if is_masked else padding_runs(mask)
        prompt_index = rows[: len(rows) // 2] if is_guided else rows
        drawing = Drawing(cache, mask, runs, is_guided, generators, prompt_index, given, codes=[])
        return drawing, hidden.to(input_ids.device)[rows]

    # ---- A scale ----

    def _passes(
        self, drawing: Drawing, sampling: Sampling, index: int, first: torch.Tensor, output_logits: bool
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """
        Draw a scale, in one or several passes; gives codes (N, s, s) and, if asked for, guided scores after each.

        A refinement pass takes the place of the first one in the cache, which is put back at the end.
        """
        scale = self.tokenizer.config.scales[index]
        is_last = index + 1 == len(self.tokenizer.config.scales)
        num_passes = 1 if index == 0 else len(sampling.top_k)
        given, quantizer = drawing.given, self.tokenizer.quantizer
        if given is not None and index < given.keep_scales:
            if index > 0 and not is_last:  # for the scales to come, which see it as they see one that is drawn
                features = drawing.features
                if sampling.attend_to_refined and num_passes > 1:
                    features = quantizer.next_scale_features(features, given.codes[index])
                self._run(drawing, features, index)
            yield given.codes[index], None
            return
        hidden, codes, first_pass = first, None, None
        for number in range(num_passes):
            if index > 0:
                features = drawing.features
                if number > 0:
                    features = quantizer.next_scale_features(features, codes)
                    if number == 1 and not sampling.attend_to_refined and not is_last:
                        first_pass = read_last(drawing.cache, scale * scale)
                    rewind(drawing.cache, scale * scale)
                hidden = self._run(drawing, features, index)
            codes, logits = self._choose(drawing, sampling, hidden, index, number, output_logits)
            codes = codes.view(-1, scale, scale)
            if given is not None and given.redrawn is not None:
                codes = torch.where(given.redrawn[index], codes, given.codes[index])
            yield codes, logits
        if first_pass is not None:
            write_last(drawing.cache, first_pass)

    def _choose(
        self,
        drawing: Drawing,
        sampling: Sampling,
        hidden: torch.Tensor,
        index: int,
        number: int,
        output_logits: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Guidance, head and draw of a pass: hidden states (rows, T, D) -> codes (N, T) and, if asked for, scores.

        A few tokens at a time, so that scores stay in the processor's cache and no pass holds all of them.
        """
        num_pictures, num_tokens = len(drawing.prompt_index), hidden.shape[1]
        hidden = guide(hidden, sampling.guidance(index, len(self.tokenizer.config.scales)), num_pictures)
        top_k, top_p = sampling.top_k[number], sampling.top_p[number]
        uniform = None if top_k == 1 else drawing.generators.uniform(num_pictures, num_tokens, hidden.device)
        chunk = num_tokens
        if not output_logits:
            chunk = max(1, SCORES_CHUNK // (num_pictures * self.visual_head.out_features))
        codes = []
        for start in range(0, num_tokens, chunk):
            part = slice(start, start + chunk)
            logits = self.visual_head(hidden[:, part]).float()
            part_uniform = None if uniform is None else uniform[:, part].to(logits.device)
            codes.append(self.sample_codes(logits, top_k, top_p, sampling.temperature, part_uniform).to(hidden.device))
        return torch.cat(codes, dim=1), logits if output_logits else None

    def _run(self, drawing: Drawing, features: torch.Tensor, index: int) -> torch.Tensor:
        """The layers' output for a scale: (N, D, s, s) features -> (rows, s², hidden_size)"""
        start = sum(side * side for side in self.tokenizer.config.scales[:index])
        embeds = self.model.embed_image(to_tokens(features), start).to(drawing.attention_mask.device)
        if drawing.is_guided:
            embeds = torch.cat([embeds, embeds])
        begin = drawing.attention_mask.shape[1] - self.tokenizer.config.num_image_tokens + start
        end = begin + embeds.shape[1]
        position_ids = positions(drawing.attention_mask)[:, begin:end]
        mask = None
        if drawing.cache.is_compileable:  # a static cache shows all its places, filled or not
            mask = drawing.attention_mask.clone()
            mask[:, end:] = 0
        elif drawing.padding_runs is None:
            mask = drawing.attention_mask[:, :end]
        output = self.model(
            embeds,
            attention_mask=mask,
            padding_runs=drawing.padding_runs,
            position_ids=position_ids,
            past_key_values=drawing.cache,
            is_causal=False,
            return_dict=True,
        )
        return output.last_hidden_state.to(position_ids.device)

    # ---- Candidates ----

    def _best(
        self, drawing: Drawing, scorer: Scorer, num_images: int, halve: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `best_rows` of the scores that the pictures so far are given."""
        given = scorer(self._semantic_features(drawing), drawing.prompt_index)
        scores = torch.as_tensor(given, device=drawing.prompt_index.device)
        if scores.isnan().any():
            raise ValueError(f"the scorer gave NaN, by which nothing can be chosen: {scores.tolist()}")
        if scores.shape != drawing.prompt_index.shape:
            raise ValueError(
                f"the scorer must give a score for each of {len(drawing.prompt_index)} pictures; got "
                f"{tuple(scores.shape)}"
            )
        return best_rows(scores, num_images, halve)

    def _semantic_features(self, drawing: Drawing) -> torch.Tensor:
        """What the tokenizer's semantic decoder makes of the codes so far: (M, h·w, d_teacher)."""
        if self.tokenizer.semantic_decoder is None:
            raise ValueError("best_of needs a tokenizer with a semantic codebook")
        quantizer = self.tokenizer.quantizer
        features = quantizer.codes_to_features(drawing.prefix)[:, -1]
        return self.tokenizer.semantic_decoder(features.split(quantizer.dims, dim=1)[0].to(self.tokenizer.dtype))

    def _finish(
        self, drawing: Drawing, scorer: Scorer | None, num_images: int, logits: list[torch.Tensor]
    ) -> NextScaleGenerationOutput:
        codes, scores = drawing.prefix, None
        if scorer is not None:
            rows, scores = self._best(drawing, scorer, num_images, halve=False)
            codes, logits = codes[rows], [part[rows] for part in logits]
        return NextScaleGenerationOutput(
            codes=codes,
            codes_per_scale=tuple(self.tokenizer.quantizer.split_codes(codes)),
            logits=tuple(logits) or None,
            scores=scores,
        )


def guide(hidden: torch.Tensor, weight: float, num_pictures: int) -> torch.Tensor:
    """
    Hidden states whose scores are (1 + weight) conditional - weight unconditional ones.

    The head is linear: guided before it, there are half as many scores to compute.

    Args:
        hidden: (2 N, T, D), or (N, T, D) of the conditional kind alone.

    Returns:
        (N, T, D)
    """
    if weight == 0 or len(hidden) == num_pictures:
        return hidden[:num_pictures]
    conditional, unconditional = hidden.float().chunk(2)
    return torch.lerp(unconditional, conditional, 1 + weight).to(hidden.dtype)


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions of the rotary embedding, which padding does not count in: (B, T) -> (B, T)"""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def check_counts(
    num_images: int, best_of: int, scorer: Scorer | None, prune_at: Sequence[int], num_scales: int
) -> None:
    """Raise a ValueError for numbers of pictures that can't be, or candidates that nothing chooses among."""
    if whole_number("num_images_per_prompt", num_images) < 1 or whole_number("best_of", best_of) < 1:
        raise ValueError(f"num_images_per_prompt and best_of must be at least 1; got {num_images} and {best_of}")
    if best_of > 1 and scorer is None:
        raise ValueError("best_of chooses by a score: pass a `scorer`")
    if not isinstance(prune_at, Sequence):
        raise ValueError(f"prune_at is a list of scales; got {prune_at!r}")
    if prune_at and (best_of == 1 or not all(0 <= index < num_scales for index in prune_at)):
        raise ValueError(f"prune_at names scales 0 to {num_scales - 1} of best_of candidates; got {list(prune_at)}")


__all__ = ["NextScaleGenerationMixin", "NextScaleGenerationOutput"]
