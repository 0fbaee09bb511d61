# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Configurations of TokenFlow (arXiv 2412.03069): the image tokenizer, and the models that work with its tokens."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from difflib import get_close_matches
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, SiglipVisionConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import logging

logger = logging.get_logger(__name__)

POSITIVE = (
    "image_size",
    "codebook_size",
    "pixel_channels",
    "pixel_num_res_blocks",
    "pixel_latent_channels",
    "pixel_patch_size",
    "norm_num_groups",
    "decoder_channels",
    "decoder_num_res_blocks",
    "teacher_hidden_size",
)
NOT_NEGATIVE = (
    "semantic_codebook_dim",
    "pixel_codebook_dim",
    "distance_weight",
    "codebook_weight",
    "commitment_weight",
    "entropy_weight",
    "initializer_range",
)

# Layers of any part. A larger number, by a slip or by malice, would have modules built until the memory is full.
DEEPEST = 1000

# What any configuration takes beside its fields.
EVERYWHERE = ("model_type", "attn_implementation", "_attn_implementation", "torch_dtype", "transformers_version")
# What language models' take as older versions of transformers had it.
ROTARY = ("rope_theta", "rope_scaling")

SIGLIP_SO400M_384 = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


@strict
class TokenFlowSemanticDecoderConfig(SiglipVisionConfig):
    r"""
    The semantic decoder's transformer blocks, which are SigLIP's: its "pixels" are the tokens of the final grid.

    Args:
        image_size (`int`, defaults to 27):
            Side of the grid of its position embeddings.
    """

    model_type = "tokenflow_semantic_decoder"
    base_config_key = "semantic_decoder_config"

    hidden_size: int = 1152
    intermediate_size: int = 4608
    num_hidden_layers: int = 3
    num_attention_heads: int = 12
    image_size: int = 27
    patch_size: int = 1
    hidden_act: str = "gelu"


class TokenFlowConfigMixin:
    """What the configurations of all models have in common."""

    model_type: str

    def __post_init__(self, **kwargs: Any) -> None:
        """Unknown keys are kept, as by all configurations of transformers, but one that resembles a field is a slip."""
        super().__post_init__(**kwargs)  # type: ignore[misc]
        config_class: Any = type(self)
        for key in kwargs:
            close = get_close_matches(key, config_class.__dataclass_fields__, n=1, cutoff=0.7)
            if close and not hasattr(config_class, key) and key not in config_class.attribute_map:
                logger.warning(
                    f"`{key}` is no field of {config_class.__name__} and does nothing; did you mean `{close[0]}`?"
                )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers', which of another model's fields would only warn, and make the default model: up to 14B."""
        if (model_type := config_dict.get("model_type", cls.model_type)) != cls.model_type:
            raise ValueError(
                f"{cls.__name__} is of a {cls.model_type!r} model; got that of a {model_type!r} model, which "
                "AutoConfig and AutoModel load with its own classes"
            )
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]


@strict
class TokenFlowConfig(TokenFlowConfigMixin, PreTrainedConfig):
    r"""
    Everything that distinguishes one TokenFlow tokenizer from another. The default is TokenFlow-XL
    (SigLIP-so400m, 384 pixels); `TokenFlowConfig.from_preset` gives the paper's other variants.

    Args:
        image_size (`int`, defaults to 384):
            Side of the square pictures, in pixels.
        scales (`list[int]`):
            Sides of the token maps of the residual pyramid, coarse first. The last one is the grid of the features.
        codebook_size (`int`, defaults to 32768):
            Number of entries K of both codebooks, which share one index.
        semantic_codebook_dim (`int`, defaults to 32), pixel_codebook_dim (`int`, defaults to 8):
            Width of an entry in each codebook. 0 leaves that half out of the search (a single codebook).
        distance_weight (`float`, defaults to 1.0):
            w_dis of paper §3.1: an index minimises `d_sem + w_dis * d_pix`.
        codebook_weight (`float`, defaults to 1.0), commitment_weight (`float`, defaults to 0.25):
            Weights of the two quantiser losses of Eq. 3 (commitment: β).
        entropy_weight (`float`, defaults to 0.0):
            Weight of the quantiser's entropy term in training.
        semantic_config (`PreTrainedConfig` or `dict`):
            The semantic encoder: `clip_vision_model`, `siglip_vision_model`, `timm_wrapper` (ViTamin), or any vision
            model of transformers whose `last_hidden_state` holds one square grid of patch tokens.
        semantic_feature_layer (`int`, defaults to -2):
            Which of its hidden states is read, counted as transformers counts `hidden_states`.
        semantic_feature_norm (`bool`, defaults to `False`):
            Whether its `post_layernorm` is applied to what is read.
        semantic_image_mean, semantic_image_std (`list[float]`, *optional*):
            Pictures are brought to [0, 1] and standardised with these for the semantic encoder. `None`: it sees the
            same [-1, 1] pixels as the pixel encoder.
        pixel_channels (`int`, defaults to 128):
            Base width of the convolutional pixel encoder.
        pixel_channel_multipliers (`list[int]`, defaults to `[1, 1, 2, 2, 4]`):
            Width of each level as a multiple of `pixel_channels`, highest resolution first. Every level but the last
            halves the resolution.
        pixel_num_res_blocks (`int`, defaults to 2):
            Residual blocks of each level.
        pixel_latent_channels (`int`, defaults to 256):
            Channels of the pixel encoder's output, before the projection to the codebook.
        pixel_patch_size (`int`, defaults to 1):
            Side of the pixel blocks that are folded into channels before the first level and unfolded after the last.
        pixel_attention_levels (`list[int]`, defaults to `[-1]`):
            Levels whose residual blocks are each followed by self-attention (-1: the lowest).
        norm_num_groups (`int`, defaults to 32):
            Groups of the group norms.
        decoder_channels, decoder_num_res_blocks (`int`, *optional*):
            Of the pixel decoder where they differ from the encoder's; the enhanced decoder doubles both.
        semantic_decoder_config (`TokenFlowSemanticDecoderConfig` or `dict`):
            Transformer blocks of the semantic decoder.
        teacher_hidden_size (`int`, defaults to 1152):
            Width of the teacher's features, which the semantic decoder reconstructs.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of freshly initialised projections and embeddings.

    Raises:
        ValueError: an empty or unsorted scale list, sizes or weights that can't be, or no codebook at all.
    """

    model_type = "tokenflow"
    sub_configs_defaults = {
        "semantic_config": SubConfigSpec(AutoConfig, model_type="siglip_vision_model", init_kwargs=SIGLIP_SO400M_384),
        "semantic_decoder_config": SubConfigSpec(TokenFlowSemanticDecoderConfig),
    }

    image_size: int = 384
    scales: list[int] | tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27)
    codebook_size: int = 32768
    semantic_codebook_dim: int = 32
    pixel_codebook_dim: int = 8
    distance_weight: float | int = 1.0
    codebook_weight: float | int = 1.0
    commitment_weight: float | int = 0.25
    entropy_weight: float | int = 0.0
    semantic_config: dict | PreTrainedConfig | None = None
    semantic_feature_layer: int = -2
    semantic_feature_norm: bool = False
    semantic_image_mean: list[float | int] | tuple[float | int, ...] | None = (0.5, 0.5, 0.5)
    semantic_image_std: list[float | int] | tuple[float | int, ...] | None = (0.5, 0.5, 0.5)
    pixel_channels: int = 128
    pixel_channel_multipliers: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4)
    pixel_num_res_blocks: int = 2
    pixel_latent_channels: int = 256
    pixel_patch_size: int = 1
    pixel_attention_levels: list[int] | tuple[int, ...] = (-1,)
    norm_num_groups: int = 32
    decoder_channels: int | None = None
    decoder_num_res_blocks: int | None = None
    semantic_decoder_config: dict | PreTrainedConfig | None = None
    teacher_hidden_size: int = 1152
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        check_depth(self.semantic_config, "num_hidden_layers")
        check_depth(self.semantic_decoder_config, "num_hidden_layers")
        super().__post_init__(**kwargs)
        self.scales = list(self.scales)
        if self.decoder_channels is None:
            self.decoder_channels = self.pixel_channels
        if self.decoder_num_res_blocks is None:
            self.decoder_num_res_blocks = self.pixel_num_res_blocks
        self._check_sizes()
        self._check_pixel_levels()
        check_depth(self, "pixel_num_res_blocks", "decoder_num_res_blocks")

    def _check_sizes(self) -> None:
        if not self.scales or self.scales[0] < 1 or self.scales != sorted(self.scales):
            raise ValueError(f"`scales` must be positive sides in ascending order, coarse first; got {self.scales}")
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}")
        for name in NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must not be negative; got {getattr(self, name)}")
        if self.quantized_dim == 0:
            raise ValueError("at least one of `semantic_codebook_dim` and `pixel_codebook_dim` must be above 0")
        mean, std = self.semantic_image_mean, self.semantic_image_std
        if (mean is None) != (std is None) or (mean is not None and not (len(mean) == len(std) == 3 and all(std))):
            raise ValueError(
                "`semantic_image_mean` and `semantic_image_std` must both be None, or hold three numbers each, with no "
                f"standard deviation of 0; got {mean} and {std}"
            )

    def _check_pixel_levels(self) -> None:
        multipliers, num_levels = self.pixel_channel_multipliers, len(self.pixel_channel_multipliers)
        if not multipliers or min(multipliers) < 1:
            raise ValueError(f"`pixel_channel_multipliers` must be positive, one per level; got {multipliers}")
        if any(not -num_levels <= index < num_levels for index in self.pixel_attention_levels):
            raise ValueError(
                f"`pixel_attention_levels` must lie in [-{num_levels}, {num_levels}), as many as there are "
                f"`pixel_channel_multipliers`; got {self.pixel_attention_levels}"
            )
        widths = [channels * m for channels in (self.pixel_channels, self.decoder_channels) for m in multipliers]
        if any(width % self.norm_num_groups for width in widths):
            raise ValueError(f"`norm_num_groups` ({self.norm_num_groups}) must divide the levels' widths {widths}")

    @property
    def grid_size(self) -> int:
        """Side of the feature map, which is the last scale's."""
        return self.scales[-1]

    @property
    def num_image_tokens(self) -> int:
        """Number of tokens of one picture, over all scales."""
        return sum(scale * scale for scale in self.scales)

    @property
    def quantized_dim(self) -> int:
        """Channels of the quantised features: the semantic ones first, then the pixel ones."""
        return self.semantic_codebook_dim + self.pixel_codebook_dim

    @property
    def hidden_size(self) -> int:
        """The same, by the name that transformers knows of vision models."""
        return self.quantized_dim

    @property
    def pixel_downsampling(self) -> int:
        """Pixels of the pixel encoder's input along one side of a token of the final grid."""
        return self.pixel_patch_size * 2 ** (len(self.pixel_channel_multipliers) - 1)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "TokenFlowConfig":
        """
        The configuration of a published variant.

        Args:
            name: `"tokenflow-b"` (CLIP ViT-B/16, 224 pixels), `"tokenflow-b-256-enhanced"` (the same at 256 pixels
                with the enhanced decoder: the generator's tokenizer), `"tokenflow-l"` (ViTamin-XL, 256 pixels),
                `"tokenflow-l-paper"` (with the scale 3 that the paper's Table 11 lists and the code does not have),
                `"tokenflow-xl"` (SigLIP-so400m, 384 pixels). The paper calls B's encoder ViT-B/14; its scale list,
                which ends at 14, and the released code agree on patches of 16.
            overrides: fields to change; dictionaries are merged into the variant's, see `merge_fields`.

        Raises:
            ValueError: the name, or a field to change, is unknown.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; choose from {', '.join(sorted(PRESETS))}")
        return cls.from_fields(merge_fields(PRESETS[name], overrides))

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "TokenFlowConfig":
        """
        A configuration from fields that must all exist, where the constructor keeps unknown ones as well.

        Raises:
            ValueError: a field is unknown, also of a nested configuration, or has a value that can't be.
        """
        check_fields(fields, cls)
        for name in ("semantic_config", "semantic_decoder_config"):
            nested = fields.get(name)
            if isinstance(nested, dict) and (nested_class := class_of(name, nested)) is not None:
                check_fields(nested, nested_class)
        return make_config(cls, fields)


def merge_fields(fields: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with others in their place. Dictionaries are merged in turn, but with one that names another model."""
    merged = dict(fields)
    for name, value in overrides.items():
        known = fields.get(name)
        are_merged = isinstance(known, dict) and isinstance(value, dict)
        if are_merged and value.get("model_type", known.get("model_type")) == known.get("model_type"):
            value = merge_fields(known, value)
        merged[name] = value
    return merged


def make_config(config_class: type[PreTrainedConfig], fields: dict[str, Any]) -> Any:
    """A configuration from fields. Values of another type are a ValueError, as those that can't be are."""
    try:
        return config_class(**deepcopy(fields))
    except StrictDataclassError as error:
        raise ValueError(f"a {config_class.__name__} can't be made of these fields: {error}") from error


def class_of(name: str, fields: dict[str, Any]) -> type[PreTrainedConfig] | None:
    """The class of a nested configuration, None where it takes whatever another library's model does."""
    if name == "semantic_decoder_config":
        return TokenFlowSemanticDecoderConfig
    model_type = fields.get("model_type")
    return CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING and model_type != "timm_wrapper" else None


def check_fields(fields: Iterable[str], config_class: type[PreTrainedConfig], *others: str) -> None:
    """Raise a ValueError for fields that a configuration does not have, nor takes: it would keep them in silence."""
    known = {*config_class.__dataclass_fields__, *config_class.attribute_map, *EVERYWHERE, *others}
    if unknown := set(fields) - known:
        raise ValueError(f"{config_class.__name__} has no fields {', '.join(sorted(unknown))}")


def check_depth(config: PreTrainedConfig | dict[str, Any] | None, *names: str) -> None:
    """
    Look at numbers of layers, of a configuration or of the fields that it will be made of.

    Raises:
        ValueError: they are larger than those of any model.
    """
    for name in names:
        depth = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
        if isinstance(depth, int) and depth > DEEPEST:
            raise ValueError(f"`{name}` must be at most {DEEPEST}; got {depth}")


def check_head(text_config: PreTrainedConfig) -> None:
    """Raise a ValueError for a language model whose scores a linear map alone does not give."""
    found = [
        f"{name}={getattr(text_config, name)}"
        for name in HEAD_SETTINGS
        if getattr(text_config, name, 1) not in (None, 1)
    ]
    bias_setting = BIAS_SETTINGS.get(text_config.model_type, "lm_head_bias")
    if text_config.model_type in BIASED_HEADS or getattr(text_config, bias_setting, False):
        found.append("a bias")
    if found:
        raise ValueError(
            f"`text_config` of type {text_config.model_type!r} can't be used: its head has {', '.join(found)}, and "
            "this model's is a linear map without a bias"
        )


OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073]
OPENAI_STD = [0.26862954, 0.26130258, 0.27577711]

TOKENFLOW_B: dict[str, Any] = {
    "image_size": 224,
    "scales": [1, 2, 4, 6, 8, 10, 12, 14],
    "semantic_config": {"model_type": "clip_vision_model", "hidden_size": 768, "image_size": 224, "patch_size": 16},
    "semantic_feature_layer": -1,
    "semantic_feature_norm": True,
    "semantic_image_mean": None,
    "semantic_image_std": None,
    "semantic_decoder_config": {"hidden_size": 768, "intermediate_size": 3072, "image_size": 14},
    "teacher_hidden_size": 512,
}

TOKENFLOW_L: dict[str, Any] = {
    "image_size": 256,
    "scales": [1, 2, 4, 6, 8, 10, 12, 14, 16],
    "semantic_config": {
        "model_type": "timm_wrapper",
        "architecture": "vitamin_xlarge_256",
        "do_pooling": False,
        "model_args": {"final_norm": False, "pos_embed": "none"},
    },
    "semantic_feature_layer": -1,
    "semantic_image_mean": OPENAI_MEAN,
    "semantic_image_std": OPENAI_STD,
    "semantic_decoder_config": {"image_size": 16},
}

PRESETS: dict[str, dict[str, Any]] = {
    "tokenflow-b": TOKENFLOW_B,
    "tokenflow-b-256-enhanced": {
        **TOKENFLOW_B,
        "image_size": 256,
        "scales": [*TOKENFLOW_B["scales"], 16],
        "decoder_channels": 256,
        "decoder_num_res_blocks": 4,
    },
    "tokenflow-l": TOKENFLOW_L,
    "tokenflow-l-paper": {**TOKENFLOW_L, "scales": [1, 2, 3, 4, 6, 8, 10, 12, 14, 16]},
    "tokenflow-xl": {"semantic_config": {"model_type": "siglip_vision_model", **SIGLIP_SO400M_384}},
}

# The generator's pipeline in saved folders: the model's `save_pretrained` writes its module beside the model's.
CUSTOM_PIPELINES = {"text-to-image": {"impl": "pipeline_tokenflow.TextToImagePipeline", "pt": ["AutoModel"]}}

LLAMA_2_7B = {
    "vocab_size": 32001,  # Llama's own and [PAD]
    "pad_token_id": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}


@strict
class TokenFlowTextToImageConfig(TokenFlowConfigMixin, PreTrainedConfig):
    r"""
    The generator: a Llama that writes an image's tokens scale by scale. The default is the official 7B one.

    Args:
        text_config (`LlamaConfig` or `dict`):
            The Llama. Its vocabulary is the text tokenizer's: visual tokens are no part of it.
        tokenizer_config (`TokenFlowConfig` or `dict`):
            The image tokenizer, whose scales and codebook the generator works with.
        qk_norm_eps (`float`, defaults to 1e-6):
            Epsilon of the norms of queries and keys.
        use_text_head (`bool`, defaults to `True`):
            Whether text tokens compete with visual ones in training, as officially, where the end of the image is
            learned too. Drawing never computes them.

    Raises:
        ValueError: the language model is no Llama, or has too few positions for a prompt and the image's tokens; or the
            tokenizer's scales do not begin with 1.
    """

    model_type = "tokenflow_text_to_image"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(AutoConfig, model_type="llama", init_kwargs=LLAMA_2_7B),
        "tokenizer_config": SubConfigSpec(TokenFlowConfig, init_kwargs=PRESETS["tokenflow-b-256-enhanced"]),
    }

    text_config: dict | PreTrainedConfig | None = None
    tokenizer_config: dict | PreTrainedConfig | None = None
    qk_norm_eps: float | int = 1e-6
    use_text_head: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        # transformers asks to trust remote code whenever this key is there, so only remote code keeps it.
        custom_pipelines = kwargs.pop("custom_pipelines", None)
        check_depth(self.text_config, "num_hidden_layers")
        super().__post_init__(**kwargs)
        if custom_pipelines is not None and __name__.startswith("transformers_modules"):
            self.custom_pipelines = custom_pipelines
        if self.text_config.model_type != "llama":
            raise ValueError(f"`text_config` must be a Llama's; got one of type {self.text_config.model_type!r}")
        if self.tokenizer_config.scales[0] != 1:
            raise ValueError(
                "`tokenizer_config.scales` must begin with 1, which is predicted at the prompt's last token; got "
                f"{self.tokenizer_config.scales}"
            )
        needed = self.tokenizer_config.num_image_tokens + 2
        if self.text_config.max_position_embeddings < needed:
            raise ValueError(
                f"`text_config.max_position_embeddings` must hold a prompt and the image's "
                f"{self.tokenizer_config.num_image_tokens} tokens; got {self.text_config.max_position_embeddings}"
            )

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the pipeline that a saved model brings along for those who don't have this package."""
        return {**super().to_dict(), "custom_pipelines": deepcopy(CUSTOM_PIPELINES)}


# A class names but one of them by itself.
UNDERSTANDING_AUTO_CLASSES = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
# What language models do to the scores of their heads, beside a linear map; 1 or None leaves them as they are.
HEAD_SETTINGS = ("final_logit_softcapping", "lm_head_multiplier", "logit_scale", "logits_scaling", "logits_soft_cap")
# Language models whose heads always have a bias, and those that call it otherwise than `lm_head_bias`.
BIASED_HEADS = ("phi",)
BIAS_SETTINGS = {"ernie4_5_moe": "use_bias"}
FEATURE_STRATEGIES = ("last_scale", "last_scale_semantic", "all_scales", "all_scales_residual")

QWEN_2_5_14B = {
    "vocab_size": 152064,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "pad_token_id": 151643,
}


@strict
class TokenFlowUnderstandingConfig(TokenFlowConfigMixin, PreTrainedConfig):
    r"""
    A language model that reads pictures as TokenFlow features. The default is the official one, of Qwen2.5-14B.

    Args:
        text_config (`PreTrainedConfig` or `dict`):
            The language model: one of transformers that is built as Llama is, with its embeddings as `embed_tokens` and
            a linear head without a bias, which nothing scales (Llama, Qwen2 and 3, Mistral, Gemma 1 and 3, OLMo 2,
            Phi-3, SmolLM3, ...).
        tokenizer_config (`TokenFlowConfig` or `dict`):
            The image tokenizer.
        image_token_id (`int`, defaults to 151655):
            Token that stands for one feature of a picture; the default is Qwen2.5's `<|image_pad|>`. It may lie outside
            of the vocabulary, since its embedding is never read.
        feature_strategy (`str`, defaults to `"last_scale"`):
            Which features are read (paper Table 8). `"last_scale"`: those of the last scale, the sum of what all scales
            contribute. `"last_scale_semantic"`: their semantic part alone. `"all_scales"`: the sum up to every scale,
            at that scale's own size. `"all_scales_residual"`: what every scale contributes by itself.

    Raises:
        ValueError: the strategy does not exist, or reads semantic features that the tokenizer does not have; or the
            language model's head is no plain linear map.
    """

    model_type = "tokenflow_understanding"
    attribute_map = {"vision_config": "tokenizer_config"}
    sub_configs_defaults = {
        "text_config": SubConfigSpec(AutoConfig, model_type="qwen2", init_kwargs=QWEN_2_5_14B),
        "tokenizer_config": SubConfigSpec(TokenFlowConfig),
    }

    text_config: dict | PreTrainedConfig | None = None
    tokenizer_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 151655
    feature_strategy: str = "last_scale"
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        check_depth(self.text_config, "num_hidden_layers")
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = self.tie_word_embeddings or self.text_config.tie_word_embeddings
        check_head(self.text_config)
        if self.feature_strategy not in FEATURE_STRATEGIES:
            raise ValueError(
                f"`feature_strategy` must be one of {', '.join(FEATURE_STRATEGIES)}; got {self.feature_strategy!r}"
            )
        if self.feature_dim == 0:
            raise ValueError("`feature_strategy` reads semantic features, but `semantic_codebook_dim` is 0")

    @property
    def feature_dim(self) -> int:
        """Channels of a feature, which the projector reads."""
        if self.feature_strategy == "last_scale_semantic":
            return self.tokenizer_config.semantic_codebook_dim
        return self.tokenizer_config.quantized_dim

    @property
    def num_image_features(self) -> int:
        """How many features a picture has, and so places in a sequence."""
        if self.feature_strategy.startswith("all_scales"):
            return self.tokenizer_config.num_image_tokens
        return self.tokenizer_config.grid_size**2

    def to_dict(self) -> dict[str, Any]:
        """All fields; those who don't have this package find the whole model's code by any of its Auto classes."""
        fields = super().to_dict()
        auto_map = fields.get("auto_map") or {}
        if "AutoModel" in auto_map:
            model = auto_map["AutoModel"].replace("TokenFlowUnderstandingModel", "TokenFlowForConditionalGeneration")
            auto_map.update(dict.fromkeys(UNDERSTANDING_AUTO_CLASSES, model))
        return fields


# Here, since parts of a model whose code came with its folder are saved with theirs, too.
for config_class in (TokenFlowConfig, TokenFlowTextToImageConfig, TokenFlowUnderstandingConfig):
    config_class.register_for_auto_class()

__all__ = ["TokenFlowConfig", "TokenFlowTextToImageConfig", "TokenFlowUnderstandingConfig"]
