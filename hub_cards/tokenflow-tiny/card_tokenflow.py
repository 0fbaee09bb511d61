# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What is known of a model from its configuration, and the card that says so on the Hub."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedConfig

PAPER = "https://arxiv.org/abs/2412.03069"
PACKAGE = "https://github.com/transformers-tokenflow/transformers-tokenflow"
CITATION = """\
```bibtex
@article{qu2024tokenflow,
  title   = {TokenFlow: Unified Image Tokenizer for Multimodal Understanding and Generation},
  author  = {Qu, Liao and Zhang, Huichao and Liu, Yiheng and Wang, Xu and Jiang, Yi and Gao, Yiming and Ye, Hu and Du, \
Daniel K. and Yuan, Zehuan and Wu, Xinglong},
  journal = {arXiv preprint arXiv:2412.03069},
  year    = {2024}
}
```
"""

# Tells a card that is written anew at every upload from one that somebody has made theirs.
REMARK = (
    "<!-- Written by transformers-tokenflow from what it knows of the model. Complete it, then remove this line. -->"
)
# Of cards by other libraries of which nobody has filled in anything.
UNWRITTEN = "[More Information Needed]"
UNWRITTEN_IN_TEMPLATE = 30
WRITTEN_BY_TRAINER = "This model card has been generated automatically"

TASKS = {
    "tokenflow": "image-feature-extraction",
    "tokenflow_text_to_image": "text-to-image",
    "tokenflow_understanding": "image-text-to-text",
}
KINDS = {
    "image-feature-extraction": "an image tokenizer: it turns pictures into tokens and tokens into pictures",
    "text-to-image": "a language model that draws: it writes the tokens of a picture from a text, scale by scale",
    "image-text-to-text": "a language model that reads pictures, as TokenFlow features, and talks about them",
}
USES = {
    "image-feature-extraction": """\
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("{repository}", trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained("{repository}", trust_remote_code=True)
codes = model.encode(**processor(images=Image.open("photo.png"), return_tensors="pt")).codes
""",
    "text-to-image": """\
from transformers import pipeline

painter = pipeline("text-to-image", model="{repository}", trust_remote_code=True)
painter("a red apple", seed=0).save("apple.png")
""",
    "image-text-to-text": """\
from transformers import pipeline

reader = pipeline("image-text-to-text", model="{repository}", trust_remote_code=True)
content = [{{"type": "image", "url": "photo.png"}}, {{"type": "text", "text": "What is this?"}}]
print(reader(text=[{{"role": "user", "content": content}}], return_full_text=False)[0]["generated_text"])
""",
}
USE_WITH_DIFFUSERS = """\
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{repository}", trust_remote_code=True)
picture = pipe("a red apple").images[0]
"""


def task_of(config: PreTrainedConfig) -> str:
    """What a model of this package is for, in the Hub's words: one of `KINDS`."""
    types = (getattr(kind, "model_type", None) for kind in type(config).__mro__)  # also of a derived configuration
    return next(TASKS[name] for name in types if name in TASKS)


def describe_config(config: PreTrainedConfig) -> dict[str, Any]:
    """
    What a configuration says about sizes.

    Args:
        config: of any model of this package.

    Returns:
        `model_type`, `task`, `image_size`, `scales`, `tokens_per_scale`, `num_image_tokens`, `codebook_size`,
        `semantic_codebook_dim`, `pixel_codebook_dim`, `semantic_encoder` (its model type or architecture, or None),
        and of models with a language model `language_model`: its `model_type`, `num_hidden_layers`, `hidden_size` and
        `vocab_size`, and where they read pictures `num_image_features`, the places of one in a sequence.
    """
    image = getattr(config, "tokenizer_config", config)
    encoder = image.semantic_config if image.semantic_codebook_dim > 0 else None
    facts: dict[str, Any] = {
        "model_type": config.model_type,
        "task": task_of(config),
        "image_size": image.image_size,
        "scales": list(image.scales),
        "tokens_per_scale": [scale * scale for scale in image.scales],
        "num_image_tokens": image.num_image_tokens,
        "codebook_size": image.codebook_size,
        "semantic_codebook_dim": image.semantic_codebook_dim,
        "pixel_codebook_dim": image.pixel_codebook_dim,
        "semantic_encoder": getattr(encoder, "architecture", None) or getattr(encoder, "model_type", None),
        "language_model": None,
    }
    if (text := getattr(config, "text_config", None)) is not None:
        names = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")
        facts["language_model"] = {name: getattr(text, name) for name in names}
        facts["num_image_features"] = getattr(config, "num_image_features", None)
    return facts


def fact_rows(facts: Mapping[str, Any], parameters: int | None = None) -> dict[str, str]:
    """What `describe_config` gives, and the number of parameters, in words: label to value."""
    size = facts["image_size"]
    parts = {"semantic": facts["semantic_codebook_dim"], "pixel": facts["pixel_codebook_dim"]}
    widths = " and ".join(f"{width} {name}" for name, width in parts.items() if width)
    scales = ", ".join(map(str, facts["scales"]))
    rows = {
        "model type": facts["model_type"],
        "pictures": f"{size}×{size} pixels",
        "tokens of a picture": f"{facts['num_image_tokens']:,}, in scales of side {scales}",
        "codebook": f"{facts['codebook_size']:,} entries of {widths} channels",
        "semantic encoder": facts["semantic_encoder"] or "none",
    }
    if text := facts["language_model"]:
        layers, width = text["num_hidden_layers"], text["hidden_size"]
        rows["language model"] = f"{text['model_type']}, {layers} layers of width {width:,}"
    if facts.get("num_image_features"):
        rows["places of a picture in a text"] = f"{facts['num_image_features']:,}"
    if parameters is not None:
        rows["parameters"] = count_in_words(parameters)
    return rows


def count_in_words(number: float) -> str:
    """A number of parameters with three digits and G, M or k."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number / size:,.0f} {unit}"
    return str(number)


def make_model_card(
    config: PreTrainedConfig,
    repository: str,
    parameters: int | None = None,
    for_diffusers: bool = False,
    training: Mapping[str, str] | None = None,
    **metadata: Any,
) -> ModelCard:
    """
    The card of a model, of what its configuration says and of what else is known.

    Args:
        config: of any model of this package.
        repository: of the Hub.
        parameters: their number.
        for_diffusers: whether diffusers can load it as well.
        training: what is known of its training, label to value.
        metadata: of the card, such as `license`, `base_model`, `datasets`; None is what is not known.
    """
    task = task_of(config)
    tags = ["tokenflow", *(["diffusers"] if for_diffusers else [])]
    known = {name: value for name, value in metadata.items() if value}
    data = ModelCardData(library_name="transformers", pipeline_tag=task, tags=tags, **known)
    uses = [USES[task], *([USE_WITH_DIFFUSERS] if for_diffusers else [])]
    code = "\n\n".join(f"```python\n{use.format(repository=repository)}```" for use in uses)
    bases = ", ".join(f"`{name}`" for name in as_list(known.get("base_model")))
    base = f" It starts from {bases}." if bases else ""
    sections = [
        f"# {repository.rpartition('/')[2]}",
        f"[TokenFlow]({PAPER}): {KINDS[task]}.{base}",
        "## Use",
        code,
        f"With `import transformers_tokenflow` ([the package]({PACKAGE})) the installed code is used, and "
        "`trust_remote_code` is not needed.",
        "## Configuration",
        table(fact_rows(describe_config(config), parameters)),
        *(["## Training", table(training)] if training else []),
        "## Citation",
        CITATION.rstrip(),
    ]
    return assemble(data, sections)


def make_processor_card(repository: str, auto_class: str) -> ModelCard:
    """The card of a repository that holds a processor, which `auto_class` loads, and maybe no model."""
    data = ModelCardData(library_name="transformers", tags=["tokenflow"])
    sections = [
        f"# {repository.rpartition('/')[2]}",
        f"The processor of a [TokenFlow]({PAPER}) model, which prepares what the model reads.",
        f"```python\nfrom transformers import {auto_class}\n\n"
        f'processor = {auto_class}.from_pretrained("{repository}", trust_remote_code=True)\n```',
    ]
    return assemble(data, sections)


def assemble(data: ModelCardData, sections: Iterable[str]) -> ModelCard:
    """A card of its metadata and its sections, which is marked as written by nobody."""
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{REMARK}\n\n" + "\n\n".join(sections) + "\n")


def table(rows: Mapping[str, str]) -> str:
    """Labels and values as a table of Markdown."""
    return "\n".join(["| | |", "|---|---|", *(f"| {label} | {value} |" for label, value in rows.items())])


def as_list(value: Any) -> list[Any]:
    """A list of what may be none or one."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def is_automatic(text: str) -> bool:
    """Whether nobody has written anything of a card."""
    return REMARK in text or WRITTEN_BY_TRAINER in text or text.count(UNWRITTEN) >= UNWRITTEN_IN_TEMPLATE


def combine_cards(card: ModelCard, written: str | None, tags: Iterable[str] = ()) -> str:
    """
    The text of the card to put in place of what is there.

    Args:
        card: what is known of the model now.
        written: what is there. If somebody has written it, it stays, and if not, its metadata.
        tags: to add in any case.
    """
    tags = list(tags)
    if written is not None and not is_automatic(written):
        return add_tags(written, tags)
    before = ModelCard(written, ignore_metadata_errors=True).data.to_dict() if written is not None else {}
    known = {name: value for name, value in before.items() if value}
    if isinstance(base := known.get("base_model"), str) and Path(base).is_dir():
        known.pop("base_model")  # peft's card names folders like repositories
    wanted = [*as_list(before.get("tags")), *as_list(card.data.get("tags")), *tags]
    fields = {**card.data.to_dict(), **known, "tags": list(dict.fromkeys(wanted))}
    return f"---\n{ModelCardData(**fields).to_yaml()}\n---\n{card.text}"


def add_tags(text: str, tags: list[str]) -> str:
    """A card with tags that it may have already; without any it is not even read: what is wrong with it stays."""
    if not tags:
        return text
    card = ModelCard(text, ignore_metadata_errors=True)
    present = as_list(card.data.get("tags"))
    if set(tags) <= set(present):
        return text
    card.data["tags"] = list(dict.fromkeys([*present, *tags]))
    return str(card)


__all__ = ["combine_cards", "count_in_words", "describe_config", "fact_rows", "make_model_card", "make_processor_card"]
