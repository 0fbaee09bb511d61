# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""TokenFlow's image tokenizer: two encoders, one index, two decoders (arXiv 2412.03069, §3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .autoencoder_tokenflow import TokenFlowPixelDecoder, TokenFlowPixelEncoder
from .configuration_tokenflow import TokenFlowConfig
from .push_tokenflow import TokenFlowPushMixin
from .quantization_tokenflow import TokenFlowCodebook, TokenFlowQuantizer, TokenFlowQuantizerOutput
from .semantic_tokenflow import TokenFlowSemanticDecoder, TokenFlowSemanticEncoder

# In an understanding model's folder. A generator's, `tokenizer.`, transformers knows by `base_model_prefix`.
TOKENIZER_INSIDE = {r"^model\.tokenizer\.": ""}


@dataclass
class TokenFlowEncoderOutput(ModelOutput):
    """
    Args:
        codes (`torch.LongTensor` of shape `(B, L)`):
            The image's tokens, coarse scale first, the rows of each scale flattened.
        quantized (`torch.FloatTensor` of shape `(B, d_sem + d_pix, h, w)`):
            The quantised features: the sum over all scales on the last one's grid.
        codes_per_scale (`tuple(torch.LongTensor)`):
            Views of `codes`, one `(B, h_s, w_s)` per scale.
    """

    codes: torch.Tensor | None = None
    quantized: torch.Tensor | None = None
    codes_per_scale: tuple[torch.Tensor, ...] | None = None


@dataclass
class TokenFlowDecoderOutput(ModelOutput):
    """
    Args:
        pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`):
            Reconstructed pixels, nominally in [-1, 1] but not clamped.
        semantic_features (`torch.FloatTensor` of shape `(B, h·w, d_teacher)`):
            Reconstructed features of the teacher. `None` without a semantic codebook.
    """

    pixel_values: torch.Tensor | None = None
    semantic_features: torch.Tensor | None = None


@dataclass
class TokenFlowOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, with `return_loss=True`):
            Sum of the parts below. Perceptual and adversarial losses are added by [`TokenFlowTrainer`].
        quantized (`torch.FloatTensor` of shape `(B, d_sem + d_pix, h, w)`):
            The quantised features, through which gradients pass straight. They come first since
            `pipeline("image-feature-extraction")` returns what does.
        pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`):
            Reconstructed pixels.
        semantic_features (`torch.FloatTensor` of shape `(B, h·w, d_teacher)`):
            Reconstructed features of the teacher.
        codes (`torch.LongTensor` of shape `(B, L)`):
            The image's tokens.
        pixel_loss (`torch.FloatTensor` of shape `()`, *optional*):
            Mean squared error of the pixels.
        codebook_loss, commitment_loss, entropy_loss (`torch.FloatTensor` of shape `()`, *optional*):
            The quantiser's losses.
        semantic_loss (`torch.FloatTensor` of shape `()`, *optional*, with `teacher_features`):
            Mean of one minus the cosine to them.
    """

    loss: torch.Tensor | None = None
    quantized: torch.Tensor | None = None
    pixel_values: torch.Tensor | None = None
    semantic_features: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    pixel_loss: torch.Tensor | None = None
    codebook_loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    entropy_loss: torch.Tensor | None = None
    semantic_loss: torch.Tensor | None = None


class TokenFlowPreTrainedModel(TokenFlowPushMixin, PreTrainedModel):
    """What transformers needs to know of the image tokenizer: initialisation, attention, precision, placement."""

    config_class = TokenFlowConfig
    base_model_prefix = "tokenizer"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # Losses are means over what the model is given, which gradient accumulation divides.
    accepts_loss_kwargs = False
    # Codes are decided by small differences of distances, which half precision would blur.
    _keep_in_fp32_modules_strict = ["codebook"]
    # A language model's, whose folder holds its tokenizer, which can be loaded alone.
    _keys_to_ignore_on_load_unexpected = [r"^model\.", r"^\w+_head\."]
    _no_split_modules = [
        "TokenFlowCLIPVisionEmbeddings",
        "TokenFlowSiglipVisionEmbeddings",
        "TokenFlowSemanticDecoder",
        "TokenFlowResidualBlock",
        "TokenFlowPixelAttention",
        "TokenFlowCodebook",
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TokenFlowCodebook):
            for entries in (module.semantic, module.pixel):
                # Normalised right away, uniform within ±1/K and within ±1 are the same.
                init.uniform_(entries, -1.0, 1.0)
                init.copy_(entries, F.normalize(entries, dim=-1))
        elif isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=5**0.5)

    @classmethod
    def is_custom_code(cls) -> bool:
        """Not in the sense meant: `_init_weights` spares what is loaded, and must reach every module of the towers."""
        return False

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(enable, *args, **kwargs)
        for module in self.modules():
            if hasattr(module, "timm_model"):  # timm has its own switch
                module._set_gradient_checkpointing(enable)


class TokenFlowModel(TokenFlowPreTrainedModel):
    """The image tokenizer: pictures to codes, and codes to pictures and to the teacher's features."""

    def __init__(self, config: TokenFlowConfig):
        super().__init__(config)
        has_semantic, has_pixel = config.semantic_codebook_dim > 0, config.pixel_codebook_dim > 0
        self.semantic_encoder = TokenFlowSemanticEncoder(config) if has_semantic else None
        self.pixel_encoder = TokenFlowPixelEncoder(config) if has_pixel else None
        # After the encoders: the first parameter's dtype passes for the model's, and the codebook stays in fp32.
        self.quantizer = TokenFlowQuantizer(
            scales=config.scales,
            codebook_size=config.codebook_size,
            semantic_dim=config.semantic_codebook_dim,
            pixel_dim=config.pixel_codebook_dim,
            distance_weight=config.distance_weight,
            codebook_weight=config.codebook_weight,
            commitment_weight=config.commitment_weight,
            entropy_weight=config.entropy_weight,
        )
        self.semantic_decoder = TokenFlowSemanticDecoder(config) if has_semantic else None
        self.pixel_decoder = TokenFlowPixelDecoder(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, key_mapping: dict[str, str] | None = None, **kwargs: Any) -> Any:
        """As transformers'. Of a generator's or an understanding model's folder it takes the image tokenizer inside."""
        loaded = super().from_pretrained(*args, key_mapping=key_mapping or TOKENIZER_INSIDE, **kwargs)
        if key_mapping is None:
            # transformers would undo the mapping when the model is saved, which is a tokenizer by itself now.
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            used = getattr(model, "_weight_conversions", None) or []
            model._weight_conversions = [step for step in used if step.source_patterns != list(TOKENIZER_INSIDE)]
        return loaded

    def get_input_embeddings(self) -> nn.Module:
        if self.pixel_encoder is not None:
            return self.pixel_encoder.conv_in
        return self.semantic_encoder.model.get_input_embeddings()

    def extract_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Run both encoders: what the quantiser is given.

        Args:
            pixel_values: (B, 3, H, H) in [-1, 1]. A resolution other than `config.image_size` interpolates the
                position embeddings and changes the grid.

        Returns:
            (B, d_sem + d_pix, grid, grid), semantic channels first.

        Raises:
            ValueError: the pixels are no batch of square RGB pictures, no floats, or (but for training) not finite.
        """
        self._check_pixels(pixel_values)
        pixel_values = pixel_values.to(self.pixel_decoder.conv_in.weight.dtype)
        features = []
        size = pixel_values.shape[-1]
        if self.semantic_encoder is not None:
            features.append(self.semantic_encoder(pixel_values))
            size = features[0].shape[-1] * self.config.pixel_downsampling
        if self.pixel_encoder is not None:
            pixels = resize_pixels(pixel_values, size)
            features.append(self.pixel_encoder(pixels).to(features[0].device if features else pixels.device))
        return torch.cat(features, dim=1)

    def _check_pixels(self, pixel_values: torch.Tensor) -> None:
        if not isinstance(pixel_values, torch.Tensor):
            raise ValueError(
                "expected pixel_values as a tensor (batch, 3, size, size), which the image processor gives with "
                f"return_tensors='pt'; got {type(pixel_values).__name__}"
            )
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or 0 in shape:
            raise ValueError(f"expected pixel_values of shape (batch, 3, size, size); got {shape}")
        smallest = self.config.image_size // self.config.grid_size
        if shape[2] < smallest:
            raise ValueError(f"expected pixel_values of at least {smallest} pixels a side, a token's; got {shape[2]}")
        patch = self.config.pixel_patch_size
        if self.semantic_encoder is None and shape[2] % patch:
            raise ValueError(f"expected pixel_values of a multiple of {patch} pixels a side; got {shape[2]}")
        if not pixel_values.is_floating_point():
            raise ValueError(f"expected pixel_values to be floats in [-1, 1]; got {pixel_values.dtype}")
        if self.training or torch.compiler.is_compiling() or pixel_values.is_meta:
            return
        if not pixel_values.isfinite().all():
            raise ValueError("expected pixel_values to be finite; got NaN or infinity among them")

    def quantize(
        self, pixel_values: torch.Tensor, scales: Sequence[int] | None = None, return_loss: bool = False
    ) -> TokenFlowQuantizerOutput:
        """
        Both encoders and the quantiser.

        Args:
            pixel_values: (B, 3, H, H) in [-1, 1].
            scales: in place of the configuration's. In training a list may end before the grid.
            return_loss: whether to compute the quantiser's losses.

        Returns:
            [`TokenFlowQuantizerOutput`]

        Raises:
            ValueError: the pixels are no batch of square RGB pictures, no floats, or (but for training) not finite; the
                scales are no ascending sides; or their last one is not the pictures' grid.
        """
        features = self.extract_features(pixel_values)
        grid, size = features.shape[-1], pixel_values.shape[-1]
        last = (self.config.scales if scales is None else scales)[-1:]  # that there is one, the quantiser checks
        if any(scale != grid for scale in last) and (scales is None or not self.training):
            fitting = self.config.image_size
            instead = (
                f"resize them to {fitting} pixels; the tokenizer by itself also takes" if size != fitting else "pass"
            )
            raise ValueError(
                f"pictures of {size} pixels give a grid of {grid}, but the scales end at {last[0]}: {instead} "
                f"scales=[..., {grid}]"
            )
        return self.quantizer(features, scales, return_loss)

    def encode(self, pixel_values: torch.Tensor, scales: Sequence[int] | None = None) -> TokenFlowEncoderOutput:
        """
        Pictures to tokens.

        Args:
            pixel_values: (B, 3, H, W) in [-1, 1], as `TokenFlowImageProcessor` makes them.
            scales: in place of the configuration's, for another resolution or for fewer tokens.

        Returns:
            [`TokenFlowEncoderOutput`]

        Raises:
            ValueError: the pixels are no batch of square, finite RGB pictures, or their grid is not the last scale.
        """
        output = self.quantize(pixel_values, scales)
        return TokenFlowEncoderOutput(
            codes=output.codes,
            quantized=output.quantized,
            codes_per_scale=tuple(self.quantizer.split_codes(output.codes, scales)),
        )

    def decode(self, codes: torch.Tensor, scales: Sequence[int] | None = None) -> TokenFlowDecoderOutput:
        """
        Tokens to pictures and to the teacher's features.

        Args:
            codes: (B, L) long: all scales, or whole coarse scales alone.
            scales: in place of the configuration's.

        Returns:
            [`TokenFlowDecoderOutput`]

        Raises:
            ValueError: the codes end inside a scale, lie outside the codebook, or are no integers.
        """
        codes = torch.as_tensor(codes)
        self._check_codes(codes)
        return self.decode_features(self.quantizer.codes_to_features(codes, scales)[:, -1])

    def _check_codes(self, codes: torch.Tensor) -> None:
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ValueError(f"codes must be integers; got {codes.dtype}")
        if codes.dim() == 2 and codes.shape[0] == 0:
            raise ValueError(f"expected codes of at least one picture; got none, of shape {tuple(codes.shape)}")
        if codes.numel() == 0 or torch.compiler.is_compiling() or codes.is_meta:
            return
        codes = codes.long()  # of unsigned integers torch finds no smallest
        if not 0 <= codes.min() <= codes.max() < self.config.codebook_size:
            raise ValueError(
                f"codes must lie in [0, {self.config.codebook_size}); got {codes.min().item()} to {codes.max().item()}"
            )

    def decode_features(self, quantized: torch.Tensor, size: int | None = None) -> TokenFlowDecoderOutput:
        """
        Quantised features to pictures and to the teacher's features.

        Args:
            quantized: (B, d_sem + d_pix, grid, grid).
            size: side of the pictures; by default the configuration's, in proportion to the grid.

        Returns:
            [`TokenFlowDecoderOutput`]
        """
        # One layout whatever they came from, since convolutions of another one round differently: the official one.
        dtype = self.pixel_decoder.conv_in.weight.dtype
        quantized = quantized.to(dtype).contiguous(memory_format=torch.channels_last)
        semantic, pixel = quantized.split(self.quantizer.dims, dim=1)
        pixel_values = self.pixel_decoder(pixel if self.pixel_encoder is not None else semantic)
        if size is None:
            size = round(quantized.shape[-1] * self.config.image_size / self.config.grid_size)
        return TokenFlowDecoderOutput(
            pixel_values=resize_pixels(pixel_values, size).contiguous(),
            semantic_features=self.semantic_decoder(semantic) if self.semantic_decoder is not None else None,
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        teacher_features: torch.Tensor | None = None,
        scales: Sequence[int] | None = None,
        return_loss: bool = False,
        **kwargs: Any,
    ) -> TokenFlowOutput:
        """
        Encode, quantise and decode.

        Args:
            pixel_values: (B, 3, H, W) in [-1, 1].
            teacher_features: (B, h·w, d_teacher), the target of the semantic decoder; without it there is no
                `semantic_loss`.
            scales: in place of the configuration's. In training a list that ends early leaves the grid as it is.
            return_loss: whether to compute the losses.

        Returns:
            [`TokenFlowOutput`]

        Raises:
            ValueError: as `encode`; or `teacher_features` do not have the shape of the decoded features.
        """
        quantizer_output = self.quantize(pixel_values, scales, return_loss)
        decoded = self.decode_features(quantizer_output.quantized, pixel_values.shape[-1])
        losses: dict[str, torch.Tensor] = {}
        if return_loss:
            target = pixel_values.to(decoded.pixel_values.device, torch.float32)
            losses = {
                "pixel_loss": F.mse_loss(decoded.pixel_values.float(), target),
                "codebook_loss": quantizer_output.codebook_loss,
                "commitment_loss": quantizer_output.commitment_loss,
                "entropy_loss": quantizer_output.entropy_loss,
            }
            if teacher_features is not None:
                losses["semantic_loss"] = semantic_loss(decoded.semantic_features, teacher_features)
        return TokenFlowOutput(
            loss=sum_losses(losses) if return_loss else None,
            quantized=quantizer_output.quantized,
            pixel_values=decoded.pixel_values,
            semantic_features=decoded.semantic_features,
            codes=quantizer_output.codes,
            **losses,
        )


def sum_losses(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of scalars, which a model that is spread over devices has in several places."""
    values = list(losses.values())
    return torch.stack([value.to(values[0].device) for value in values]).sum()


def semantic_loss(semantic_features: torch.Tensor, teacher_features: torch.Tensor) -> torch.Tensor:
    """
    Mean over tokens of one minus the cosine, half the squared distance of the normalised features (paper Eq. 4).

    Args:
        semantic_features, teacher_features: (B, N, d_teacher).

    Raises:
        ValueError: the shapes differ.
    """
    if semantic_features is None or semantic_features.shape != teacher_features.shape:
        got = None if semantic_features is None else tuple(semantic_features.shape)
        raise ValueError(f"teacher_features of shape {tuple(teacher_features.shape)} do not fit decoded ones of {got}")
    teacher_features = teacher_features.to(semantic_features.device, torch.float32)
    return (1 - F.cosine_similarity(semantic_features.float(), teacher_features, dim=-1)).mean()


def resize_pixels(pixel_values: torch.Tensor, size: int) -> torch.Tensor:
    """Bicubic resize without antialiasing: (B, 3, H, H) -> (B, 3, size, size)."""
    if pixel_values.shape[-1] == size:
        return pixel_values
    return F.interpolate(pixel_values, size=(size, size), mode="bicubic")


# Here, since parts of a model whose code came with its folder are saved with theirs, too.
TokenFlowModel.register_for_auto_class("AutoModel")

__all__ = ["TokenFlowModel", "TokenFlowPreTrainedModel", "TokenFlowOutput"]
