# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Understanding: a language model that reads pictures as TokenFlow features, LLaVA's twin (paper §3.2)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer
from transformers.utils import can_return_tuple, torch_compilable_check
from transformers.utils.output_capturing import capture_outputs

from .configuration_tokenflow import TokenFlowUnderstandingConfig
from .low_bits_tokenflow import TokenFlowLowBitsMixin
from .modeling_tokenflow import TokenFlowModel
from .projector_tokenflow import TokenFlowProjector
from .push_tokenflow import TokenFlowPushMixin
from .quantization_tokenflow import as_codes, pool, to_tokens

try:
    from transformers.modeling_utils import slice_logits_to_keep
except ImportError:  # before transformers 5.21

    def slice_logits_to_keep(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        """Of hidden states (B, T, C), the last so many (0: all), or those at positions (P)."""
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return hidden_states[:, kept]


# transformers 5.24 has another name for it, also in what it passes to `forward` and in outputs.
CACHE_NAME = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


@dataclass
class TokenFlowUnderstandingModelOutput(BaseModelOutputWithPast):
    """
    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(B, T, hidden_size)`):
            Of the language model.
        past_key_values (`Cache`, *optional*):
            Keys and values of the sequence so far; `cache` from transformers 5.24 on.
        hidden_states, attentions (`tuple(torch.FloatTensor)`, *optional*):
            Of the language model's layers.
        image_hidden_states (`torch.FloatTensor` of shape `(num_images * num_image_features, hidden_size)`, *optional*):
            What stands in the places of pictures.
    """

    image_hidden_states: torch.Tensor | None = None


@dataclass
class TokenFlowUnderstandingOutput(CausalLMOutputWithPast):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, with `labels`):
            Mean cross-entropy of the next token.
        logits (`torch.FloatTensor` of shape `(B, T, vocab_size)`):
            Scores of the next token.
        past_key_values (`Cache`, *optional*):
            Keys and values of the sequence so far; `cache` from transformers 5.24 on.
        hidden_states, attentions (`tuple(torch.FloatTensor)`, *optional*):
            Of the language model's layers.
        image_hidden_states (`torch.FloatTensor` of shape `(num_images * num_image_features, hidden_size)`, *optional*):
            What stands in the places of pictures.
    """

    image_hidden_states: torch.Tensor | None = None


class TokenFlowUnderstandingPreTrainedModel(TokenFlowPushMixin, TokenFlowLowBitsMixin, PreTrainedModel):
    """What transformers needs to know of the model: initialisation, attention, precision, placement."""

    config_class = TokenFlowUnderstandingConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _keep_in_fp32_modules_strict = TokenFlowModel._keep_in_fp32_modules_strict
    _no_split_modules = TokenFlowModel._no_split_modules
    _skip_keys_device_placement = [CACHE_NAME]

    @classmethod
    def is_custom_code(cls) -> bool:
        """Not in the sense meant, see `TokenFlowPreTrainedModel`."""
        return False


class TokenFlowUnderstandingModel(TokenFlowUnderstandingPreTrainedModel):
    """The image tokenizer, a projector, and a language model without its head."""

    # Of `get_image_features`, whose vision tower records them; these here are found in no other place.
    _can_record_outputs = {"hidden_states": CLIPEncoderLayer, "attentions": CLIPAttention}

    def __init__(self, config: TokenFlowUnderstandingConfig):
        super().__init__(config)
        text: Any = config.text_config
        tokenizer: Any = config.tokenizer_config
        # First what is trained, where gradient checkpointing is looked for.
        self.language_model = AutoModel.from_config(text, dtype=torch.get_default_dtype())
        if not hasattr(self.language_model, "embed_tokens"):
            raise ValueError(
                f"`text_config` of type {text.model_type!r} can't be used: its model has no `embed_tokens`, which "
                "those that are built as Llama is have"
            )
        self.projector = TokenFlowProjector(config.feature_dim, text.hidden_size)
        self.tokenizer = TokenFlowModel(tokenizer)
        self.tokenizer.requires_grad_(False)
        self.post_init()

    def train(self, mode: bool = True) -> "TokenFlowUnderstandingModel":
        """As of any module, but the tokenizer stays as it is: frozen, and in evaluation."""
        super().train(mode)
        # `from_pretrained` makes new parameters, which all take a gradient, and then calls this.
        self.tokenizer.requires_grad_(False).eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """As of any model; that of images is the tokenizer, which transformers knows by other names."""
        return self.tokenizer if modality == "image" else super().get_encoder(modality)

    def set_encoder(self, encoder: Any, modality: str | None = None) -> None:
        if modality == "image":
            self.tokenizer = encoder
        else:
            super().set_encoder(encoder, modality)

    @capture_outputs(tie_last_hidden_states=False)
    def get_image_features(
        self, pixel_values: torch.Tensor | None = None, image_codes: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """
        What the language model reads of pictures.

        Args:
            pixel_values: (num_images, 3, H, H) in [-1, 1].
            image_codes: (num_images, L), their codes of all scales, in place of pixels; also as lists.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` (num_images, N, d_sem + d_pix), the quantised features, N
            being `config.num_image_features`, and `pooler_output`, for every picture (N, hidden_size). On request
            `hidden_states` and `attentions` of a semantic encoder that is CLIP or SigLIP, reading pixels; of others
            they are empty.

        Raises:
            ValueError: both are given, or neither, or they are no pictures or codes that the tokenizer takes.
        """
        if (pixel_values is None) == (image_codes is None):
            raise ValueError("get_image_features takes either pixel_values or image_codes")
        features = self._read_pixels(pixel_values) if image_codes is None else self._read_codes(image_codes)
        # The semantic channels come first.
        projected = self.projector(features[..., : self.config.feature_dim])
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=list(projected))

    @torch.no_grad()
    def _read_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(num_images, 3, H, H) -> (num_images, N, d_sem + d_pix)"""
        if self.config.feature_strategy.startswith("all_scales"):
            return self._read_codes(self.tokenizer.encode(pixel_values).codes)
        return to_tokens(self.tokenizer.quantize(pixel_values).quantized)

    @torch.no_grad()
    def _read_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """(num_images, L) -> (num_images, N, d_sem + d_pix)"""
        codes = codes if isinstance(codes, torch.Tensor) else as_codes(codes)
        self.tokenizer._check_codes(codes)
        if codes.dim() != 2 or codes.shape[1] != self.config.tokenizer_config.num_image_tokens:
            raise ValueError(
                f"expected image_codes of shape (num_images, {self.config.tokenizer_config.num_image_tokens}), all "
                f"scales of each; got {tuple(codes.shape)}"
            )
        quantizer = self.tokenizer.quantizer
        if self.config.feature_strategy == "all_scales_residual":
            entries = quantizer.codebook()
            return F.embedding(codes.to(entries.device, torch.long), entries)
        sums = quantizer.codes_to_features(codes)
        if self.config.feature_strategy == "all_scales":
            scales = self.config.tokenizer_config.scales
            return torch.cat([to_tokens(pool(sums[:, index], scale)) for index, scale in enumerate(scales)], dim=1)
        return to_tokens(sums[:, -1])

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, image_features: torch.Tensor
    ) -> torch.Tensor:
        """
        Where pictures stand in sequences: (B, T, 1) bool.

        Args:
            input_ids: (B, T), or None: then they are told by their embedding.
            inputs_embeds: (B, T, hidden_size).
            image_features: (number of features of all pictures, hidden_size).

        Raises:
            ValueError: there are other than as many places as features, or nothing tells where they are.
        """
        if input_ids is None:
            if self.config.image_token_id >= self.config.text_config.vocab_size:
                raise ValueError(
                    f"image_token_id {self.config.image_token_id} lies outside of the vocabulary, so that no embedding "
                    "tells where pictures stand: pass input_ids"
                )
            token = torch.full((), self.config.image_token_id, dtype=torch.long, device=inputs_embeds.device)
            mask = (inputs_embeds == self.get_input_embeddings()(token)).all(-1)
        else:
            mask = input_ids == self.config.image_token_id
        number = mask.sum()
        torch_compilable_check(
            number == image_features.shape[0],
            lambda: (
                f"the text has {number} image tokens, but the pictures given have {image_features.shape[0]} features, "
                f"{self.config.num_image_features} each: every picture needs its place in the text, and every place a "
                "picture"
            ),
        )
        return mask.unsqueeze(-1).to(inputs_embeds.device)

    def _embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Text: (B, T) -> (B, T, hidden_size). The places of pictures may have a token without an embedding."""
        if self.config.image_token_id >= self.config.text_config.vocab_size:
            input_ids = input_ids.masked_fill(input_ids == self.config.image_token_id, 0)
        return self.get_input_embeddings()(input_ids)

    def _nothing_of_a_picture(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """
        (B, T, hidden_size) -> (B, 0, hidden_size), by the modules that read a picture.

        Distributed training wants the same modules used in the same order by every process, those with text alone too.
        """
        number = self.config.tokenizer_config.num_image_tokens
        codes = torch.zeros(1, number, dtype=torch.long, device=inputs_embeds.device)
        features = self._read_codes(codes)[:, :0, : self.config.feature_dim].expand(len(inputs_embeds), -1, -1)
        return self.projector(features).to(inputs_embeds.device, inputs_embeds.dtype)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_codes: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> TokenFlowUnderstandingModelOutput:
        """
        Run the language model on text with pictures in it; see [`TokenFlowForConditionalGeneration`].

        Returns:
            [`TokenFlowUnderstandingModelOutput`]
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        images = (mm_encoder_outputs or {}).get("image")
        if sum(given is not None for given in (images, pixel_values, image_codes)) > 1:
            raise ValueError("pictures come as one of pixel_values, image_codes and mm_encoder_outputs")
        if inputs_embeds is None:
            inputs_embeds = self._embed(input_ids)
        if pixel_values is not None or image_codes is not None:
            images = self.get_image_features(pixel_values, image_codes, return_dict=True)
        image_features = None
        if images is not None:
            image_features = torch.cat(images.pooler_output).to(inputs_embeds.device, inputs_embeds.dtype)
            mask = self.get_placeholder_mask(input_ids, inputs_embeds, image_features)
            inputs_embeds = inputs_embeds.masked_scatter(mask, image_features)
        elif self.training:
            inputs_embeds = torch.cat([inputs_embeds, self._nothing_of_a_picture(inputs_embeds)], dim=1)
        kwargs.setdefault(CACHE_NAME, past_key_values)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            return_dict=True,
            **kwargs,
        )
        return TokenFlowUnderstandingModelOutput(**outputs, image_hidden_states=image_features)


class TokenFlowForConditionalGeneration(TokenFlowUnderstandingPreTrainedModel, GenerationMixin):
    """A language model that reads pictures as TokenFlow features, and answers in text."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: TokenFlowUnderstandingConfig):
        super().__init__(config)
        text: Any = config.text_config
        self.model = TokenFlowUnderstandingModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(
        self, pixel_values: torch.Tensor | None = None, image_codes: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """See [`TokenFlowUnderstandingModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, image_codes, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        image_codes: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> TokenFlowUnderstandingOutput:
        """
        Predict the next token everywhere in a text with pictures.

        Args:
            input_ids: (B, T), in which `config.image_token_id` stands `config.num_image_features` times for each
                picture, as `TokenFlowProcessor` makes them.
            pixel_values: (num_images, 3, H, H) in [-1, 1], in the order of their places over the whole batch.
            attention_mask: (B, T), 0 at padding, or a ready mask of four dimensions.
            position_ids: (B, T), by default those that follow the cache.
            past_key_values: to read, and to add to; `cache` is the same from transformers 5.24 on.
            inputs_embeds: (B, T, hidden_size) in place of `input_ids`.
            labels: (B, T), -100 where none is to be learned.
            logits_to_keep: of how many last positions, or of which ones, there are to be logits; 0 for all.
            image_codes: (num_images, L), the pictures' codes in place of `pixel_values`.
            mm_encoder_outputs: `{"image": ...}` with what `get_image_features` gave, in place of either.
            kwargs: of the language model, and of its loss.

        Returns:
            [`TokenFlowUnderstandingOutput`]

        Raises:
            ValueError: pictures and their places in the text don't match, or not exactly one of the two kinds of text
                and at most one of the three kinds of pictures is given.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            image_codes=image_codes,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return TokenFlowUnderstandingOutput(
            loss=loss,
            logits=logits,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any], model_input_name: str, *args: Any
    ) -> dict[str, Any]:
        """Before generation, pictures are read once: pixels by transformers, codes here."""
        codes = model_kwargs.pop("image_codes", None)
        if codes is not None:
            if model_kwargs.get("pixel_values") is not None:
                raise ValueError("pictures come as one of pixel_values and image_codes")
            outputs = self.model.get_image_features(image_codes=codes, return_dict=True)
            model_kwargs.setdefault("mm_encoder_outputs", {})["image"] = outputs
        model_kwargs = super()._maybe_prepare_encoder_kwargs_for_generation(
            inputs_tensor, model_kwargs, model_input_name, *args
        )
        is_start = model_input_name == "input_ids" and model_kwargs.get(CACHE_NAME) is None
        if is_start and not model_kwargs["mm_encoder_outputs"]:
            number = (inputs_tensor == self.config.image_token_id).sum()
            torch_compilable_check(number == 0, lambda: f"the text has {number} image tokens, but no picture is given")
        return model_kwargs


# Here, since parts of a model whose code came with its folder are saved with theirs, too.
TokenFlowUnderstandingModel.register_for_auto_class("AutoModel")

__all__ = [
    "TokenFlowForConditionalGeneration",
    "TokenFlowUnderstandingModel",
    "TokenFlowUnderstandingOutput",
    "TokenFlowUnderstandingPreTrainedModel",
]
