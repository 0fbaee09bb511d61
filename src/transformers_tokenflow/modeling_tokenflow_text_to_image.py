# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The generator: a Llama that reads a prompt and writes an image's tokens, scale by scale (paper §3.3)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaConfig,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .attention_tokenflow import prefers_products, product_attention_forward
from .configuration_tokenflow import TokenFlowTextToImageConfig
from .drawing_tokenflow import PaddingRuns
from .generation_tokenflow import NextScaleGenerationMixin, default_generation_config, left_aligned, positions
from .loss_tokenflow import cross_entropy
from .low_bits_tokenflow import TokenFlowLowBitsMixin
from .modeling_tokenflow import TokenFlowModel
from .projector_tokenflow import TokenFlowProjector
from .push_tokenflow import TokenFlowPushMixin

if TYPE_CHECKING:
    # Never run, but transformers copies the modules named in relative imports: the saved configuration names this one.
    from .pipeline_tokenflow import TextToImagePipeline  # noqa: F401

# What the layers are given of prompts and codes.
SET_BY_FORWARD = {
    "block_limits",
    "block_sequence_ids",
    "inputs_embeds",
    "is_causal",
    "padding_runs",
    "past_key_values",
    "position_ids",
}


@dataclass
class TokenFlowTextToImageOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, with `labels`):
            Mean cross-entropy over the codes and, where given, the tokens that end the image.
        logits (`torch.FloatTensor` of shape `(B, T, K)`):
            Scores of the codebook's entries, of every position that predicts a code: the scales of `codes` and, where
            these are not all, the one that follows.
        refined_logits (`torch.FloatTensor` of shape `(B, L - 1, K)`, *optional*, with `drawn_codes`):
            Scores of refinement passes over the second and every further scale.
        end_logits (`torch.FloatTensor` of shape `(B, E, V + K)`, *optional*, with `end_ids`):
            Scores of text tokens, then of the codebook's entries, for the tokens that end the image.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*):
            Of every layer, each `(B, P + T - 1 (+ L - 1) (+ E), hidden_size)`.
        attentions (`tuple(torch.FloatTensor)`, *optional*):
            Of every layer.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    refined_logits: torch.Tensor | None = None
    end_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class TokenFlowTextToImageAttention(LlamaAttention):
    """Llama's attention with queries and keys normalised per head before the rotary embedding."""

    def __init__(self, config: LlamaConfig, layer_idx: int, qk_norm_eps: float):
        super().__init__(config, layer_idx)
        self.query_norm = LlamaRMSNorm(self.head_dim, eps=qk_norm_eps)
        self.key_norm = LlamaRMSNorm(self.head_dim, eps=qk_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        padding_runs: PaddingRuns | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D) -> (B, T, D), and, without runs, the attention weights where the implementation gives them."""
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.query_norm(self.q_proj(hidden_states).view(heads)).transpose(1, 2)
        key = self.key_norm(self.k_proj(hidden_states).view(heads)).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if padding_runs is None or not any(padding for _, _, padding in padding_runs):
            output, weights = self._attend(query, key, value, attention_mask, **kwargs)
        else:
            output, weights = self._attend_in_runs(padding_runs, query, key, value, attention_mask, **kwargs), None
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, heads, T, head_dim) and (B, key heads, S, head_dim) -> (B, T, heads, head_dim), and perhaps weights."""
        implementation = self.config._attn_implementation
        dropout = self.attention_dropout if self.training else 0.0
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        is_plain = dropout == 0 and not kwargs.get("output_attentions")
        is_plain = is_plain and (attention_mask is not None or not kwargs.get("is_causal"))
        if implementation == "sdpa" and is_plain and prefers_products(query, key):
            attend = product_attention_forward
        return attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)

    def _attend_in_runs(
        self,
        runs: PaddingRuns,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The same run by run, without padding, so that a row is added up as it is alone."""
        is_prompt = query.shape[2] == key.shape[2]
        outputs = []
        for start, end, padding in runs:
            unseen = padding if is_prompt else 0
            states = (query[start:end, :, unseen:], key[start:end, :, padding:], value[start:end, :, padding:])
            mask = attention_mask
            if mask is not None:
                mask = mask.expand(len(query), -1, -1, -1)[start:end, :, unseen:, padding:]
            outputs.append(F.pad(self._attend(*states, mask, **kwargs)[0], (0, 0, 0, 0, unseen, 0)))
        return torch.cat(outputs)


class TokenFlowTextToImageDecoderLayer(GradientCheckpointingLayer):
    """A layer of Llama whose norms come after attention and MLP, before the residual sum (paper §3.3)."""

    def __init__(self, config: LlamaConfig, layer_idx: int, qk_norm_eps: float):
        super().__init__()
        self.self_attn = TokenFlowTextToImageAttention(config, layer_idx, qk_norm_eps)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """(B, T, D) -> (B, T, D)"""
        attended, _ = self.self_attn(hidden_states, **kwargs)
        hidden_states = hidden_states + self.input_layernorm(attended)
        return hidden_states + self.post_attention_layernorm(self.mlp(hidden_states))


class TokenFlowTextToImagePreTrainedModel(TokenFlowPushMixin, TokenFlowLowBitsMixin, PreTrainedModel):
    """What transformers needs to know of the generator: initialisation, attention, precision, placement."""

    config_class = TokenFlowTextToImageConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # All samples of a batch have as many codes, so that the mean of means that Trainer makes is the mean.
    accepts_loss_kwargs = False
    _keep_in_fp32_modules_strict = TokenFlowModel._keep_in_fp32_modules_strict
    _no_split_modules = ["TokenFlowTextToImageDecoderLayer", *TokenFlowModel._no_split_modules]
    _skip_keys_device_placement = ["past_key_values"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TokenFlowTextToImageModel):
            for table in (module.scale_embedding, module.position_embedding):
                init.trunc_normal_(table.weight, std=(3 * table.embedding_dim) ** -0.5)

    @classmethod
    def is_custom_code(cls) -> bool:
        """Not in the sense meant, see `TokenFlowPreTrainedModel`."""
        return False


class TokenFlowTextToImageModel(TokenFlowTextToImagePreTrainedModel):
    """The generator without its heads: embeds prompts and scales, and runs the layers."""

    _can_record_outputs = {
        "hidden_states": TokenFlowTextToImageDecoderLayer,
        "attentions": TokenFlowTextToImageAttention,
    }

    def __init__(self, config: TokenFlowTextToImageConfig):
        text, tokenizer = config.text_config, config.tokenizer_config
        super().__init__(text)
        self.whole_config = config
        self.scales, self.num_image_tokens = tokenizer.scales, tokenizer.num_image_tokens
        self.embed_tokens = nn.Embedding(text.vocab_size, text.hidden_size, text.pad_token_id)
        self.projector = TokenFlowProjector(tokenizer.quantized_dim, text.hidden_size)
        # Row 0 is text's, row i + 1 scale i's. Row 1 is officially never read: the first scale is predicted at text.
        self.scale_embedding = nn.Embedding(len(tokenizer.scales) + 1, text.hidden_size)
        self.position_embedding = nn.Embedding(tokenizer.num_image_tokens, text.hidden_size)
        self.layers = nn.ModuleList(
            TokenFlowTextToImageDecoderLayer(text, index, config.qk_norm_eps) for index in range(text.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(text.hidden_size, eps=text.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(text)
        self.post_init()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """With the whole configuration, where the layers' own would not do to load them again."""
        text: Any = self.config
        self.config: Any = self.whole_config
        try:
            return super().save_pretrained(*args, **kwargs)
        finally:
            self.config = text

    def embed_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Text without image positions: (B, T) -> (B, T, D)"""
        return add(self.embed_tokens(input_ids), self.scale_embedding(torch.zeros_like(input_ids)))

    def embed_prompt(self, input_ids: torch.Tensor) -> torch.Tensor:
        """A prompt, whose last token is the image's first position, where the first code is predicted: -> (B, P, D)"""
        embeds = self.embed_text(input_ids)
        first = self.position_embedding(torch.zeros_like(input_ids[:, -1:]))
        return torch.cat([embeds[:, :-1], add(embeds[:, -1:], first)], dim=1)

    def embed_image(self, features: torch.Tensor, start: int) -> torch.Tensor:
        """
        What predicts codes from the second scale on.

        Args:
            features: (B, T, d_sem + d_pix), the running features, flattened row by row.
            start: image position of the first of them.

        Returns:
            (B, T, D)
        """
        positions = torch.arange(start, start + features.shape[1], device=features.device)
        scales = self.image_scales(features.device)[start : start + features.shape[1]]
        embeds = self.projector(features)
        return add(embeds, self.scale_embedding(scales + 1), self.position_embedding(positions))

    def image_scales(self, device: torch.device) -> torch.Tensor:
        """Which scale each image position belongs to: (L,) long."""
        sides = torch.tensor(self.scales, device=device)
        scales = torch.arange(len(sides), device=device)
        return scales.repeat_interleave(sides * sides, output_size=self.num_image_tokens)

    def embed_end(self, end_ids: torch.Tensor) -> torch.Tensor:
        """An empty input, which predicts the first of the tokens that end the image, and those tokens but the last."""
        text = self.embed_text(end_ids)
        empty = self.scale_embedding(torch.zeros_like(end_ids[:, :1]))
        return torch.cat([empty.to(text.device), text[:, :-1]], dim=1)

    @capture_outputs
    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        block_sequence_ids: torch.Tensor | None = None,
        block_limits: torch.Tensor | None = None,
        is_causal: bool = True,
        padding_runs: PaddingRuns | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """
        Run the layers.

        Args:
            inputs_embeds: (B, T, D).
            attention_mask: (B, cached + T), 0 at padding, or a ready mask of four dimensions.
            position_ids: (B, T) of the rotary embedding; by default those that follow the cache.
            past_key_values: to read, and to add to.
            block_sequence_ids: (B, cached + T), -1 at text, else the scale, whose tokens see each other.
            block_limits: (B, cached + T), which blocks a token sees beside its own: those before it and below this.
            is_causal: False lets all inputs see each other, and all that is cached: they are one scale.
            padding_runs: (first row, last row + 1, tokens of padding) of rows beside each other, which begin with
                padding, in place of `attention_mask`: attention leaves it out, and rounds as it does without.

        Returns:
            `BaseModelOutputWithPast`

        Raises:
            ValueError: flash attention, which knows no masks of blocks, is asked for one.
        """
        if block_sequence_ids is not None and "flash" in self.config._attn_implementation:
            raise ValueError("flash attention can't mask blocks of scales: use 'sdpa' or 'flex_attention' to train")
        if position_ids is None:
            start = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + start
        if is_causal:
            mask = create_causal_mask(
                self.config,
                inputs_embeds,
                attention_mask,
                past_key_values,
                and_mask_function=below(block_sequence_ids, block_limits) if block_limits is not None else None,
                block_sequence_ids=block_sequence_ids,
            )
        else:
            mask = create_bidirectional_mask(self.config, inputs_embeds, attention_mask, None, past_key_values)
        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=mask,
                past_key_values=past_key_values,
                is_causal=is_causal and block_sequence_ids is None,
                padding_runs=padding_runs,
                **kwargs,
            )
        # By place, as above: transformers 5.24 has another name for it.
        return BaseModelOutputWithPast(self.norm(hidden_states), past_key_values)


class TokenFlowForTextToImage(TokenFlowTextToImagePreTrainedModel, NextScaleGenerationMixin):
    """A Llama that writes images scale by scale, and the frozen tokenizer whose codes it writes."""

    def __init__(self, config: TokenFlowTextToImageConfig):
        super().__init__(config)
        text: Any = config.text_config
        tokenizer: Any = config.tokenizer_config
        self.model = TokenFlowTextToImageModel(config)
        self.visual_head = nn.Linear(text.hidden_size, tokenizer.codebook_size, bias=False)
        self.text_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False) if config.use_text_head else None
        self.tokenizer = TokenFlowModel(tokenizer)
        self.tokenizer.requires_grad_(False)
        self.generation_config = default_generation_config()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module | None:
        return self.text_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.text_head = value

    def train(self, mode: bool = True) -> "TokenFlowForTextToImage":
        """As of any module, but the tokenizer stays as it is: frozen, and in evaluation."""
        super().train(mode)
        # `from_pretrained` makes new parameters, which all take a gradient, and then calls this.
        self.tokenizer.requires_grad_(False).eval()
        return self

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        end_ids: torch.Tensor | None = None,
        drawn_codes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> TokenFlowTextToImageOutput:
        """
        Predict the codes of every scale from the prompt and the scales before it (teacher forcing).

        Args:
            input_ids: (B, P), prompts that end where the image begins, as `TokenFlowProcessor` makes them.
            attention_mask: (B, P), 0 at padding, on either side.
            codes: (B, L), all scales or the first few. By default those of `pixel_values`, or of `labels`; with none
                of them only the first scale is predicted.
            pixel_values: (B, 3, H, H) in [-1, 1], which are encoded; they are the labels too if there are no others
                (`Trainer` evaluates the loss with `label_names=["pixel_values"]`).
            labels: (B, L) codes, -100 where none is to be learned; where there are no `codes` beside them, later scales
                are predicted from code 0 in its place.
            end_ids: (B, E) text tokens that follow the image and are learned with it, officially those of "</img>" and
                the end of the sequence.
            drawn_codes: (B, L), what refinement passes are fed (paper §3.3): every scale but the first is predicted
                once more, from these codes of its own, and learned like the first time. Needs codes of all scales.

        Returns:
            [`TokenFlowTextToImageOutput`]

        Raises:
            ValueError: an empty prompt, an argument that only the layers take, pixels and codes together, codes that
                end inside a scale, lie outside the codebook or are not as many as prompts, refinement of a picture that
                is not whole or of labels that are not, or end tokens without a text head.
        """
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        if unknown := kwargs.keys() & SET_BY_FORWARD:
            raise ValueError(f"forward makes {', '.join(sorted(unknown))} of prompts and codes, and takes none")
        codes, labels = self._codes_and_labels(codes, pixel_values, labels)
        input_ids, attention_mask = left_aligned(input_ids, attention_mask)
        parts, blocks = self._sequence(input_ids, codes, drawn_codes, end_ids)
        length, num_image, num_refined, _ = (part.shape[1] for part in parts)
        embeds = torch.cat([part.to(parts[0].device) for part in parts], dim=1)
        num_scales = len(self.config.tokenizer_config.scales)
        # A refinement pass stands where its scale does, and sees what comes before that.
        block_limits = torch.where(blocks < num_scales, num_scales, blocks - num_scales)
        attention_mask = F.pad(attention_mask, (0, embeds.shape[1] - length), value=1)
        text, image, end = positions(attention_mask[:, : embeds.shape[1] - num_refined]).tensor_split(
            [length, length + num_image], dim=1
        )
        position_ids = torch.cat([text, image, image[:, :num_refined], end], dim=1)
        output = self.model(
            embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            block_sequence_ids=blocks if codes is not None else None,
            block_limits=block_limits if num_refined else None,
            return_dict=True,
            **kwargs,
        )
        hidden_states, num_codes = output.last_hidden_state[:, length - 1 :], 1 + num_image
        image_states, end_states = hidden_states.tensor_split([num_codes + num_refined], dim=1)
        logits = self.visual_head(image_states)
        end_logits = self._with_text(end_states, self.visual_head(end_states)) if end_ids is not None else None
        loss = None
        if labels is not None:
            if num_refined and labels.shape[1] != num_codes:
                raise ValueError(
                    f"refinement passes are learned with labels of all {num_codes} codes; got {labels.shape[1]}"
                )
            targets = torch.cat([labels, labels[:, labels.shape[1] - num_refined :]], dim=1)
            loss = self._loss(image_states, logits, targets, end_logits, end_ids)
        return TokenFlowTextToImageOutput(
            loss=loss,
            logits=logits[:, :num_codes],
            refined_logits=logits[:, num_codes:] if num_refined else None,
            end_logits=end_logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def _sequence(
        self,
        input_ids: torch.Tensor,
        codes: torch.Tensor | None,
        drawn_codes: torch.Tensor | None,
        end_ids: torch.Tensor | None,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """
        What the layers are given: embeddings of the prompt, the image, its refinement passes and its end, (B, T', D)
        each, and the block of every token, (B, T). Blocks of refinement passes count on from the last scale's.
        """
        batch, prompt = len(input_ids), self.model.embed_prompt(input_ids)
        image, refined, end = [prompt[:, :0]] * 3
        if codes is not None:
            self._check_codes(codes, batch)
            image = self.model.embed_image(self.tokenizer.quantizer.next_scale_inputs(codes), start=1)
        if drawn_codes is not None:
            self._check_drawn(drawn_codes, codes)
            features = self.tokenizer.quantizer.next_scale_inputs(codes, drawn_codes=drawn_codes)
            refined = self.model.embed_image(features, start=1)
        if end_ids is not None:
            self._check_end(end_ids, batch, 1 + image.shape[1])
            end = self.model.embed_end(end_ids)
        scales = self.model.image_scales(input_ids.device)[1:]
        blocks = [
            torch.full_like(input_ids[0], -1),
            scales[: image.shape[1]],
            scales[: refined.shape[1]] + len(self.config.tokenizer_config.scales),
            scales.new_full((end.shape[1],), -1),
        ]
        return [prompt, image, refined, end], torch.cat(blocks).expand(batch, -1)

    def _codes_and_labels(
        self, codes: torch.Tensor | None, pixel_values: torch.Tensor | None, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if pixel_values is not None and codes is not None:
            raise ValueError("a picture comes as pixel_values or as codes, not both")
        if pixel_values is not None:
            with torch.no_grad():
                codes = self.tokenizer.encode(pixel_values).codes
            labels = codes if labels is None else labels
        if labels is not None:
            if labels.dim() != 2 or labels.is_floating_point() or labels.is_complex():
                raise ValueError(
                    f"expected labels of integers and of shape (batch, length); got {labels.dtype} of "
                    f"{tuple(labels.shape)}"
                )
            labels = labels.long()
        if codes is None and labels is not None:
            codes = labels.clamp(min=0)
        elif labels is not None and labels is not codes:
            self.tokenizer._check_codes(labels.clamp(min=0))
        return codes, labels

    def _check_codes(self, codes: torch.Tensor, num_prompts: int) -> None:
        self.tokenizer._check_codes(codes)
        if codes.dim() != 2 or len(codes) != num_prompts:
            raise ValueError(
                f"expected codes (batch, length) of {num_prompts} pictures, one for each prompt; got "
                f"{tuple(codes.shape)}"
            )

    def _check_drawn(self, drawn_codes: torch.Tensor, codes: torch.Tensor | None) -> None:
        self.tokenizer._check_codes(drawn_codes)
        length = self.config.tokenizer_config.num_image_tokens
        if codes is None or codes.shape[1] != length or drawn_codes.shape != codes.shape:
            raise ValueError(
                f"drawn_codes refine whole pictures, of {length} codes; got {tuple(drawn_codes.shape)} for codes of "
                f"{tuple(codes.shape) if codes is not None else None}"
            )

    def _check_end(self, end_ids: torch.Tensor, num_prompts: int, num_codes: int) -> None:
        if self.text_head is None:
            raise ValueError("end_ids are predicted by a text head: set `use_text_head` in the configuration")
        if end_ids.dim() != 2 or len(end_ids) != num_prompts:
            raise ValueError(f"expected end_ids (batch, length) of {num_prompts} prompts; got {tuple(end_ids.shape)}")
        if num_codes < self.config.tokenizer_config.num_image_tokens:
            raise ValueError(f"end_ids follow a whole image of {self.config.tokenizer_config.num_image_tokens} codes")

    def _with_text(self, states: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Scores of text tokens, if there is a head for them, before those of codes: -> (B, T, V + K)"""
        if self.text_head is None:
            return logits
        return torch.cat([self.text_head(states).to(logits.device), logits], dim=-1)

    def _loss(
        self,
        states: torch.Tensor,
        logits: torch.Tensor,
        labels: torch.Tensor,
        end_logits: torch.Tensor | None,
        end_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        """Mean cross-entropy over codes and end tokens, against the whole vocabulary."""
        length = labels.shape[1]
        if length > logits.shape[1]:
            raise ValueError(f"{length} labels, but {logits.shape[1]} predictions: pass `codes` as well")
        scores = self._with_text(states[:, :length], logits[:, :length])
        targets = torch.where(labels >= 0, labels + scores.shape[-1] - logits.shape[-1], -100)
        if end_logits is not None:
            scores = torch.cat([scores, end_logits], dim=1)
            targets = torch.cat([targets, end_ids.to(targets.device)], dim=1)
        return cross_entropy(scores.flatten(0, 1), targets.flatten().to(scores.device))


def below(blocks: torch.Tensor, limits: torch.Tensor) -> Callable[..., torch.Tensor]:
    """The part of a mask that shows a token only blocks below its limit: (B, T) each."""

    def is_below(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return blocks[batch, key] < limits[batch, query]

    return is_below


def add(first: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """A sum of what may lie on several devices, when the model does: on the first one's."""
    for other in others:
        first = first + other.to(first.device)
    return first


# Here, since parts of a model whose code came with its folder are saved with theirs, too.
TokenFlowTextToImageModel.register_for_auto_class("AutoModel")

__all__ = [
    "TokenFlowForTextToImage",
    "TokenFlowTextToImageModel",
    "TokenFlowTextToImageOutput",
    "TokenFlowTextToImagePreTrainedModel",
]
