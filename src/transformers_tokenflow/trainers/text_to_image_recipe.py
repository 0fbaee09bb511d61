# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The part of a recipe that makes a generator: its model, its processor, its data."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import datasets
import torch
from pyarrow.parquet import ParquetFile
from transformers import AutoImageProcessor, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ..commands.code_files import read_description
from ..commands.tokenizers import codebook_hash
from ..configuration_tokenflow import ROTARY, TokenFlowConfig, TokenFlowTextToImageConfig, check_fields
from ..modeling_tokenflow import TokenFlowModel
from ..modeling_tokenflow_text_to_image import TokenFlowForTextToImage
from ..processing_tokenflow import TokenFlowProcessor
from .arguments import AdapterTrainingArguments, TextToImageTrainingArguments
from .code_data import CaptionTransform, captioned
from .data import PictureTransform, load_rows
from .text_to_image import TextToImageTrainer

MODEL_KEYS = {"from_pretrained", "from_text_model", "tokenizer", "text_tokenizer", "config"}
# What a text model's configuration says about its files.
NOT_ARCHITECTURE = {"architectures", "dtype", "transformers_version", "model_type"}
# Arguments of `load_dataset` that say which files are read.
WHAT_DATA = {"path", "name", "data_dir", "data_files", "revision", "token", "cache_dir"}
DATA_KEYS = {"text_column", "image_column", "shuffle_buffer"}


def make_text_to_image_trainer(recipe: dict[str, Any], args: TextToImageTrainingArguments) -> TextToImageTrainer:
    """
    The trainer of a generator.

    Raises:
        ValueError: a setting is unknown or contradicts another.
    """
    if "teacher" in recipe:
        raise ValueError("a generator has no teacher: leave the section out of the recipe")
    check_adapters(recipe["model"], args)
    model, processor = make_generator(recipe["model"])
    config = model.config.tokenizer_config
    for section in (recipe["data"], *recipe["evaluation"].values()):
        check_origin(section, model.tokenizer)
    varied = CaptionTransform(args.text_dropout, args.first_sentence_probability)
    evaluation = {
        name: make_data(options, config, CaptionTransform(train=False))
        for name, options in recipe["evaluation"].items()
    }
    return TextToImageTrainer(
        model=model,
        args=args,
        train_dataset=make_data(recipe["data"], config, varied),
        eval_dataset=evaluation or None,
        processing_class=processor,
    )


def check_adapters(model: dict[str, Any], args: AdapterTrainingArguments) -> None:
    """
    Raises:
        ValueError: adapters of a recipe's model that is new, which would be saved without it.
    """
    if args.lora_rank > 0 and "from_pretrained" not in model:
        raise ValueError("adapters belong to a model that can be loaded: with lora_rank, it is from_pretrained")


def make_data(section: dict[str, Any], config: TokenFlowConfig, captions: CaptionTransform) -> Any:
    """
    Examples of what a recipe's section names: the arguments of `load_rows` and of `captioned`, by name, with a
    `transform` that, as officially, is the centre unless it says otherwise.
    """
    options = dict(section)
    transform = options.pop("transform", None)
    own = {name: options.pop(name) for name in DATA_KEYS & options.keys()}
    if transform is not None:
        own["transform"] = PictureTransform(config.image_size, train=captions.train, **transform)
    rows = load_rows(needed=[own.get("text_column", "text")], **options)
    return captioned(rows, config, captions, seed=options.get("seed", 0), **own)


def check_origin(section: dict[str, Any], tokenizer: TokenFlowModel) -> None:
    """
    Look into local files that `tokenflow encode` wrote: codes of another tokenizer look as good as any.

    Args:
        section: of a recipe, with arguments of `load_dataset`.
        tokenizer: that the codes should come from.

    Raises:
        ValueError: they come from another.
    """
    options = {name: section[name] for name in WHAT_DATA & section.keys()}
    files = datasets.load_dataset_builder(**options).config.data_files or {}
    for path in (str(path).removeprefix("file://") for part in files.values() for path in part):
        is_table = path.endswith(".parquet") and Path(path).is_file()
        description = (read_description(ParquetFile(path)) if is_table else None) or {}
        if description.get("codebook", own := codebook_hash(tokenizer)) != own:
            raise ValueError(
                f"the codes in {path} come from {description.get('model')} (codebook {description['codebook']}), not "
                f"from the model's image tokenizer (codebook {own}): encode the pictures anew"
            )


def make_generator(section: dict[str, Any]) -> tuple[TokenFlowForTextToImage, TokenFlowProcessor]:
    """
    The generator of a recipe and its processor.

    Either `from_pretrained`, a folder or repository that holds both; or `tokenizer`, the image tokenizer's, with
    `text_tokenizer`, the text tokenizer's, and fields of `TokenFlowTextToImageConfig` under `config`. `from_text_model`
    starts from a text Llama, from which the text tokenizer comes too unless another is named.

    Raises:
        ValueError: a key is unknown, missing, or contradicts another.
    """
    if unknown := section.keys() - MODEL_KEYS:
        raise ValueError(
            f"a generator's model has no {', '.join(sorted(unknown))}; expected {', '.join(sorted(MODEL_KEYS))}"
        )
    if "from_pretrained" in section:
        if len(section) > 1:
            raise ValueError("a generator that is from_pretrained has its tokenizers and configuration already")
        name = section["from_pretrained"]
        model = TokenFlowForTextToImage.from_pretrained(name, dtype=torch.float32)
        return model, TokenFlowProcessor.from_pretrained(name)
    text_tokenizer_name = section.get("text_tokenizer", section.get("from_text_model"))
    if "tokenizer" not in section or text_tokenizer_name is None:
        raise ValueError("a generator needs a tokenizer, and a text_tokenizer or from_text_model to take one from")
    text_tokenizer = load_text_tokenizer(text_tokenizer_name)
    processor = TokenFlowProcessor(AutoImageProcessor.from_pretrained(section["tokenizer"]), text_tokenizer)
    tokenizer = TokenFlowModel.from_pretrained(section["tokenizer"], dtype=torch.float32)
    text_model = None
    if "from_text_model" in section:
        text_model = LlamaForCausalLM.from_pretrained(section["from_text_model"], dtype=torch.float32)
    fields = section.get("config") or {}
    return build_generator(fields, tokenizer, text_tokenizer, text_model), processor


def load_text_tokenizer(name: str) -> Any:
    """A text tokenizer that pads on the left, with a token of its own where it has none to pad with."""
    text_tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    if text_tokenizer.pad_token is None:
        text_tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return text_tokenizer


def build_generator(
    fields: dict[str, Any], tokenizer: TokenFlowModel, text_tokenizer: Any, text_model: LlamaForCausalLM | None = None
) -> TokenFlowForTextToImage:
    """
    A new generator.

    Args:
        fields: of `TokenFlowTextToImageConfig`; `text_config` changes the text model's where there is one.
        tokenizer: the image tokenizer, which becomes part of it.
        text_tokenizer: whose vocabulary it reads.
        text_model: whose weights it starts from.

    Raises:
        ValueError: a field is unknown, or the text model has another architecture than the fields say.
    """
    text_config = text_model.config if text_model is not None else None
    model = TokenFlowForTextToImage(build_config(fields, tokenizer.config, text_tokenizer, text_config))
    model.tokenizer.load_state_dict(tokenizer.state_dict())
    if text_model is not None:
        start_from_text_model(model, text_model)
    return model


def build_config(
    fields: dict[str, Any], tokenizer_config: TokenFlowConfig, text_tokenizer: Any, text_config: Any = None
) -> TokenFlowTextToImageConfig:
    """The configuration of a new generator, see `build_generator`; the text vocabulary is the text tokenizer's."""
    check_fields(fields, TokenFlowTextToImageConfig)
    check_fields(fields.get("text_config", ()), LlamaConfig, *ROTARY)
    text = text_config.to_diff_dict() if text_config is not None else {}
    text = {name: value for name, value in text.items() if name not in NOT_ARCHITECTURE}
    text |= {**deepcopy(fields.get("text_config", {})), "model_type": "llama", "vocab_size": len(text_tokenizer)}
    text |= {name: getattr(text_tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    others = {name: value for name, value in fields.items() if name != "text_config"}
    return TokenFlowTextToImageConfig(text_config=text, tokenizer_config=tokenizer_config.to_dict(), **others)


@torch.no_grad()
def start_from_text_model(model: TokenFlowForTextToImage, text_model: LlamaForCausalLM) -> None:
    """
    Take over a text Llama's weights: layers, norms, text vocabulary and, where the generator has one, its text head.

    Norms of queries and keys, projector, positions, scales and visual head keep their initialisation, and so do
    text tokens that the text model does not have.

    Raises:
        ValueError: the architectures differ.
    """
    source = {name.replace("lm_head.", "text_head."): tensor for name, tensor in text_model.state_dict().items()}
    if model.text_head is None:
        source.pop("text_head.weight", None)
    target = model.state_dict()
    unfit = []
    for name, tensor in source.items():
        own = target.get(name)
        if own is not None and name in ("model.embed_tokens.weight", "text_head.weight"):
            rows = min(len(own), len(tensor))
            own, tensor = own[:rows], tensor[:rows]
        if own is None or own.shape != tensor.shape:
            unfit.append(name)
        else:
            own.copy_(tensor)
    if unfit:
        raise ValueError(f"the text model does not fit the generator's configuration: {', '.join(sorted(unfit)[:8])}")
