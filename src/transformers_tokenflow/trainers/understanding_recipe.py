# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The part of a recipe that makes an understanding model: its model, its processor, its data."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..chat_templates import load_chat_template
from ..configuration_tokenflow import ROTARY, TokenFlowConfig, TokenFlowUnderstandingConfig, check_fields
from ..modeling_tokenflow import TokenFlowModel
from ..modeling_tokenflow_understanding import TokenFlowForConditionalGeneration
from ..processing_tokenflow import TokenFlowProcessor
from .arguments import UnderstandingTrainingArguments
from .conversation_data import conversations
from .data import load_rows
from .streams import SHUFFLE_BUFFER
from .text_to_image_recipe import check_adapters, check_origin
from .understanding import UnderstandingTrainer

PRETRAINED_KEYS = {"from_pretrained", "chat_template", "image_processor"}
NEW_KEYS = {"tokenizer", "text_model", "text_config", "text_tokenizer", "chat_template", "image_processor", "config"}
DATA_KEYS = {"image_folder", "shuffle_buffer"}
IMAGE_TOKEN = "<image>"
# What of a new model's configuration comes from elsewhere.
GIVEN_FIELDS = {"text_config", "tokenizer_config", "image_token_id"}


def make_understanding_trainer(recipe: dict[str, Any], args: UnderstandingTrainingArguments) -> UnderstandingTrainer:
    """
    The trainer of an understanding model.

    Raises:
        ValueError: a setting is unknown or contradicts another.
    """
    if "teacher" in recipe:
        raise ValueError("an understanding model has no teacher: leave the section out of the recipe")
    check_adapters(recipe["model"], args)
    model, processor = make_understanding(recipe["model"])
    evaluation = recipe["evaluation"]
    for section in (recipe["data"], *evaluation.values()):
        check_origin(section, model.model.tokenizer)
    options = {"processor": processor, "config": model.config, "args": args}
    with args.main_process_first(desc="tokenising conversations"):
        train_dataset = make_data(recipe["data"], train=True, **options)
        eval_datasets = {name: make_data(section, train=False, **options) for name, section in evaluation.items()}
    return UnderstandingTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_datasets or None,
        processing_class=processor,
    )


def make_data(
    section: dict[str, Any],
    processor: TokenFlowProcessor,
    config: TokenFlowUnderstandingConfig,
    args: UnderstandingTrainingArguments,
    train: bool,
) -> Any:
    """
    Examples of what a recipe's section names: the arguments of `load_rows`, by name, and `image_folder`, where paths of
    pictures begin. A stream is shuffled for training, among `shuffle_buffer` rows, and without end.
    """
    options = dict(section)
    own = {name: options.pop(name) for name in DATA_KEYS & options.keys()}
    rows = load_rows(needed=[], **options)
    seed = options.get("seed", args.seed)
    buffer = own.get("shuffle_buffer", SHUFFLE_BUFFER) if train else 0
    folder = own.get("image_folder", ".")
    return conversations(rows, processor, config, args.max_length, args.turns_per_conversation, seed, folder, buffer)


def make_understanding(section: dict[str, Any]) -> tuple[TokenFlowForConditionalGeneration, TokenFlowProcessor]:
    """
    The understanding model of a recipe and its processor.

    Either `from_pretrained`, a folder or repository that holds both. Or `tokenizer`, the image tokenizer's, and a
    language model: `text_model`, that of a causal one, or `text_config`, the fields of a new one's configuration, with
    `text_tokenizer`, the text tokenizer's (of `text_model` unless named); fields of `TokenFlowUnderstandingConfig`
    under `config`.

    In both cases `chat_template` is the name of one of the package's or a file with one, and `image_processor` has
    options of the image processor. Weights are in float32.

    Raises:
        ValueError: a key is unknown, missing, or contradicts another.
    """
    known = PRETRAINED_KEYS if "from_pretrained" in section else NEW_KEYS
    if unknown := section.keys() - known:
        raise ValueError(
            f"an understanding model has no {', '.join(sorted(unknown))}; expected {', '.join(sorted(known))}"
        )
    if "from_pretrained" in section:
        return load_understanding(section)
    if "tokenizer" not in section or ("text_model" in section) == ("text_config" in section):
        raise ValueError("an understanding model needs a tokenizer, and either a text_model or a text_config")
    if "text_tokenizer" not in section and "text_model" not in section:
        raise ValueError("beside text_config, an understanding model needs a text_tokenizer")
    if "chat_template" not in section:
        raise ValueError("an understanding model needs a chat_template: vicuna, qwen2.5, plain, tiny, or a file")
    tokenizer = TokenFlowModel.from_pretrained(section["tokenizer"], dtype=torch.float32)
    fields = section.get("config") or {}
    processor = TokenFlowProcessor(
        change_options(AutoImageProcessor.from_pretrained(section["tokenizer"]), section.get("image_processor", {})),
        AutoTokenizer.from_pretrained(section.get("text_tokenizer", section.get("text_model")), padding_side="left"),
        chat_template=read_chat_template(section["chat_template"]),
        image_token=IMAGE_TOKEN,
        num_image_tokens=make_config(fields, tokenizer.config).num_image_features,
    )
    text_model = make_text_model(section, processor.tokenizer)
    given = {"text_config": text_model.config, "image_token_id": processor.image_token_id}
    model = build_understanding(make_config(fields, tokenizer.config, **given), tokenizer, text_model)
    model.generation_config.eos_token_id = find_ends(processor)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model, processor


def load_understanding(section: dict[str, Any]) -> tuple[TokenFlowForConditionalGeneration, TokenFlowProcessor]:
    """An understanding model that is pretrained, and its processor with another chat template or other options."""
    name = section["from_pretrained"]
    model = TokenFlowForConditionalGeneration.from_pretrained(name, dtype=torch.float32)
    processor = TokenFlowProcessor.from_pretrained(name)
    processor.image_processor = change_options(processor.image_processor, section.get("image_processor", {}))
    if "chat_template" in section:
        processor.chat_template = read_chat_template(section["chat_template"])
        model.generation_config.eos_token_id = find_ends(processor)
    return model, processor


def change_options(image_processor: Any, options: dict[str, Any]) -> Any:
    """
    An image processor with other options.

    Raises:
        ValueError: it has no such option.
    """
    if unknown := options.keys() - type(image_processor).valid_kwargs.__annotations__.keys():
        raise ValueError(f"an image processor has no {', '.join(sorted(unknown))}")
    return type(image_processor).from_dict({**image_processor.to_dict(), **options})


def make_config(
    fields: dict[str, Any], tokenizer_config: TokenFlowConfig, **given: Any
) -> TokenFlowUnderstandingConfig:
    """
    The configuration of a new model, of a recipe's fields and those that are given.

    Raises:
        ValueError: a field is unknown.
    """
    known = TokenFlowUnderstandingConfig.__dataclass_fields__.keys() - GIVEN_FIELDS
    if unknown := fields.keys() - known:
        raise ValueError(f"a recipe's config of an understanding model has no fields {', '.join(sorted(unknown))}")
    return TokenFlowUnderstandingConfig(tokenizer_config=tokenizer_config, **given, **fields)


def read_chat_template(name: str) -> str:
    """The chat template of a name, or in a file."""
    return Path(name).read_text(encoding="utf-8") if Path(name).suffix == ".jinja" else load_chat_template(name)


def make_text_model(section: dict[str, Any], text_tokenizer: Any) -> PreTrainedModel:
    """
    The language model of a recipe's model, with an embedding of every token of its text tokenizer.

    Raises:
        ValueError: a field of `text_config` is unknown, or it has no `model_type`.
    """
    if "text_model" in section:
        text_model = AutoModelForCausalLM.from_pretrained(section["text_model"], dtype=torch.float32)
        if len(text_tokenizer) > text_model.get_input_embeddings().num_embeddings:
            text_model.resize_token_embeddings(len(text_tokenizer))
        return text_model
    fields = {name: getattr(text_tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    fields |= {"vocab_size": len(text_tokenizer), **section["text_config"]}
    if "model_type" not in fields:
        raise ValueError("text_config needs a model_type, such as llama")
    text_config = AutoConfig.for_model(**fields)
    check_fields(fields, type(text_config), *ROTARY)
    return AutoModelForCausalLM.from_config(text_config, dtype=torch.float32)


def build_understanding(
    config: TokenFlowUnderstandingConfig, tokenizer: TokenFlowModel, text_model: PreTrainedModel
) -> TokenFlowForConditionalGeneration:
    """A new understanding model of these two, which become part of it, and a projector that has yet to learn."""
    with torch.device("meta"):
        model = TokenFlowForConditionalGeneration(config)
    model.model.tokenizer = tokenizer
    model.model.language_model = text_model.base_model
    model.model.projector.to_empty(device="cpu").apply(model._init_weights)
    model.lm_head = text_model.get_output_embeddings()
    model.tie_weights()
    return model.train()


def find_ends(processor: TokenFlowProcessor) -> list[int]:
    """The tokens that end an answer: the one that ends a sequence, and the chat template's."""
    tokenizer = processor.tokenizer
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    ids = tokenizer(processor.apply_chat_template(messages), add_special_tokens=False)["input_ids"]
    special = [token for token in ids if token in tokenizer.all_special_ids and token != tokenizer.unk_token_id]
    return sorted({tokenizer.eos_token_id, *special[-1:]})
