"""Writes the folders of the official models, without weights: card, configuration, results in the Hub's form.

python -m training.render_cards hub_cards
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import jinja2
import torch
import typer
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData
from huggingface_hub import eval_result_entries_to_yaml as entries_to_yaml
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from training.export_tiny import TEMPLATES
from transformers_tokenflow import TokenFlowConfig
from transformers_tokenflow.card_tokenflow import (
    CITATION,
    KINDS,
    PAPER,
    USES,
    count_in_words,
    describe_config,
    fact_rows,
    task_of,
)

DATA = Path(__file__).with_name("cards.yaml")
ORGANIZATION = "transformers-tokenflow"
SOURCE = {"source_name": "TokenFlow paper", "source_url": PAPER}
# A converted folder has no index for diffusers, which this package's own class does not need.
USE_WITH_PACKAGE = """\
import torch
from transformers_tokenflow import TokenFlowPipeline

pipe = TokenFlowPipeline.from_pretrained("{repository}", dtype=torch.bfloat16)
pictures = pipe("a red apple", num_images_per_prompt=4, generator=torch.Generator().manual_seed(0)).images
"""
BYTES = {"float32": 4, "bfloat16": 2}


def read_cards() -> dict[str, dict[str, Any]]:
    """What `cards.yaml` says, by the name of the repository."""
    return yaml.safe_load(DATA.read_text(encoding="utf-8"))


def make_config(card: dict[str, Any]) -> PreTrainedConfig:
    """A preset of the image tokenizer, or the configuration that a model type has by default: the official one."""
    if "preset" in card:
        return TokenFlowConfig.from_preset(card["preset"])
    return CONFIG_MAPPING[card["model_type"]]()


def make_empty_model(card: dict[str, Any]) -> PreTrainedModel:
    """The model without numbers, which takes no memory."""
    with torch.device("meta"):
        return AutoModel.from_config(make_config(card), dtype=getattr(torch, card["dtype"]))


def render_config(model: PreTrainedModel) -> str:
    """`config.json` as saving the model writes it."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict={})
        return Path(folder, "config.json").read_text(encoding="utf-8")


def make_metadata(name: str, card: dict[str, Any], task: str) -> ModelCardData:
    """The card's metadata. Results on data that are not on the Hub stand here, in the older form."""
    results = [
        EvalResult(
            task_type=task,
            dataset_type=result["dataset"],
            dataset_name=result["name"],
            metric_type=result["metric"],
            metric_name=f"{result['metric_name']} (the paper's)",
            metric_value=result["value"],
            **SOURCE,
        )
        for figure in card["figures"]
        for result in figure.get("card_results", [])
    ]
    known = {"model_name": name, "eval_results": results} if results else {}
    if "language" in card:
        known["language"] = card["language"]
    tags = ["tokenflow", "arxiv:2412.03069"]
    return ModelCardData(
        license="unknown",
        library_name="transformers",
        pipeline_tag=task,
        base_model=card["base_model"],
        tags=tags,
        **known,
    )


def render_results(card: dict[str, Any]) -> dict[str, str]:
    """Files of `.eval_results`, by name, for data of the Hub: the paper's figures, marked as such."""
    files = {}
    for figure in card["figures"]:
        if (results := figure.get("results")) is None:
            continue
        entries = [
            EvalResultEntry(
                dataset_id=results["dataset"],
                task_id=name,
                value=value,
                notes=f"{column}, {results['notes']}; the paper's figure, not measured on these files",
                **SOURCE,
            )
            for name, column, value in zip(results["names"], figure["columns"], figure["rows"][0], strict=True)
        ]
        text = yaml.safe_dump(entries_to_yaml(entries), sort_keys=False)
        files[f".eval_results/{results['dataset'].rpartition('/')[2]}.yaml"] = text
    return files


def render_card(name: str, card: dict[str, Any], model: PreTrainedModel) -> str:
    """The card's text."""
    task, parameters = task_of(model.config), model.num_parameters()
    uses = [USES[task], *([USE_WITH_PACKAGE] if task == "text-to-image" else [])]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined)
    return environment.get_template("official.md.jinja").render(
        {"license_remark": "", **card},
        metadata=make_metadata(name, card, task).to_yaml(),
        kind=KINDS[task],
        facts={**fact_rows(describe_config(model.config), parameters), "semantic encoder": card["encoder"]},
        uses=[use.format(repository=f"{ORGANIZATION}/{name}") for use in uses],
        parameters=count_in_words(parameters),
        memory={dtype: f"{parameters * size / 1e9:,.1f}" for dtype, size in BYTES.items()},
        citation=CITATION,
    )


def render(name: str) -> dict[str, str]:
    """The files of a card's folder, by name."""
    card = read_cards()[name]
    model = make_empty_model(card)
    return {"README.md": render_card(name, card, model), "config.json": render_config(model), **render_results(card)}


def main(
    root: Annotated[Path, typer.Argument()] = Path("hub_cards"),
    names: Annotated[list[str] | None, typer.Option("--name", help="Of these alone; repeatable.")] = None,
) -> None:
    """Writes a folder for every card of `cards.yaml` under ROOT."""
    logging.disable_progress_bar()
    for name in names or read_cards():
        for file, text in render(name).items():
            path = root / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

        typer.echo(str(root / name))


if __name__ == "__main__":
    typer.run(main)
