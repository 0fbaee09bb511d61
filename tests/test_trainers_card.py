# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Cards of trained models, and uploads by trainers to a Hub on loopback."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import Hub
from huggingface_hub import HfApi, ModelCard
from tiny_models import tiny_text_to_image
from tiny_text_to_image_training import code_rows
from tiny_text_to_image_training import tiny_arguments as text_to_image_arguments
from tiny_training import picture_dataset, tiny_trainer
from transformers import AutoImageProcessor, AutoModel

from transformers_tokenflow import TextToImageTrainer, TokenFlowModel
from transformers_tokenflow.publishing import check_code
from transformers_tokenflow.trainers.card import describe_data, describe_figures, describe_training

REPOSITORY = "owner/model"
OWN_CARD = "---\nlicense: mit\n---\n\n# Mine\n"


def card_of(hub: Hub) -> ModelCard:
    return ModelCard(hub.repositories[REPOSITORY].files()["README.md"].decode())


def test_card_says_what_was_trained_and_how(tmp_path):
    trainer = tiny_trainer(tmp_path / "run", max_steps=2, ema_decay=0.5, seed=3)
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card(license="mit", tags="emoji", dataset_tags="user/emoji", finetuned_from="user/base")
    card = ModelCard.load(tmp_path / "run" / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["base_model"], data["datasets"]) == ("mit", "user/base", "user/emoji")
    assert data["pipeline_tag"] == "image-feature-extraction" and set(data["tags"]) == {"emoji", "tokenflow"}
    cells = [line.strip("| ").split(" | ") for line in card.text.splitlines() if line.startswith("| ")]
    rows = dict(row for row in cells if len(row) == 2)
    assert rows["trainer"] == "TokenFlowTrainer" and rows["steps"] == "2 of 4 examples"
    assert rows["data"] == "16 examples" and rows["averaged weights"] == "decay 0.5" and rows["seed"] == "3"
    assert rows["learning rate"] == "0.001, constant_with_warmup" and rows["precision"] == "fp32"
    assert "loss " in rows["last figures"] and "eval_psnr" in rows["last figures"]
    assert "adapters" not in rows and "runtime" not in rows["last figures"]


def test_card_names_the_optimizer(tmp_path):
    assert describe_training(tiny_trainer(tmp_path), [])["optimizer"].startswith("adamw_torch")
    assert describe_training(tiny_trainer(tmp_path, muon=True), [])["optimizer"].startswith("Muon and AdamW")
    trainer = tiny_trainer(tmp_path)
    trainer.optimizer_cls_and_kwargs = (torch.optim.SGD, {"lr": 0.5})
    assert describe_training(trainer, [])["optimizer"].startswith("SGD")


def test_written_cards_stay(tmp_path):
    (tmp_path / "README.md").write_text(OWN_CARD)
    trainer = tiny_trainer(tmp_path)
    trainer.create_model_card(tags=[])
    assert (tmp_path / "README.md").read_text() == OWN_CARD
    trainer.create_model_card(tags=["emoji"])
    assert ModelCard.load(tmp_path / "README.md").data.to_dict() == {"license": "mit", "tags": ["emoji"]}


def test_push_to_hub(hub, tmp_path):
    trainer = tiny_trainer(tmp_path / "run", hub_model_id=REPOSITORY, ema_decay=0.5)
    trainer.train()
    trainer.push_to_hub(license="mit")
    files = hub.repositories[REPOSITORY].files()
    config = json.loads(files["config.json"])
    assert all(f"{name.partition('.')[0]}.py" in files for name in config["auto_map"].values())
    assert check_code(tmp_path / "run") == []
    card = card_of(hub)
    assert f'AutoModel.from_pretrained("{REPOSITORY}"' in card.text and card.data.license == "mit"
    assert isinstance(AutoModel.from_pretrained(REPOSITORY), TokenFlowModel)
    assert AutoImageProcessor.from_pretrained(REPOSITORY).size["height"] == 32


def test_push_to_hub_keeps_the_repositorys_card(hub, tmp_path):
    api = HfApi()
    api.create_repo(REPOSITORY)
    api.upload_file(path_or_fileobj=OWN_CARD.encode(), path_in_repo="README.md", repo_id=REPOSITORY)
    trainer = tiny_trainer(tmp_path / "run", hub_model_id=REPOSITORY, max_steps=1)
    trainer.train()
    trainer.push_to_hub()
    assert hub.repositories[REPOSITORY].files()["README.md"].decode() == OWN_CARD


def test_what_is_pushed_in_between_has_its_code(hub, tmp_path):
    settings = {"push_to_hub": True, "hub_model_id": REPOSITORY, "hub_strategy": "every_save", "hub_always_push": True}
    trainer = tiny_trainer(tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=1, **settings)
    trainer.train()
    trainer._finish_current_push()
    commits = hub.repositories[REPOSITORY].commits.values()
    assert any("model.safetensors" in files for files in commits)
    assert all("modeling_tokenflow.py" in files for files in commits if "model.safetensors" in files)


def test_adapters(hub, tmp_path):
    pytest.importorskip("peft")
    model, processor = tiny_text_to_image()
    model.save_pretrained(tmp_path / "base")
    trainer = TextToImageTrainer(
        model=AutoModel.from_pretrained(tmp_path / "base"),
        args=text_to_image_arguments(tmp_path / "run", lora_rank=2, max_steps=1, hub_model_id=REPOSITORY),
        train_dataset=code_rows(),
        processing_class=processor,
    )
    trainer.train()
    trainer.push_to_hub()
    card = card_of(hub)
    assert "LoRA of rank 2" in card.text and "More Information Needed" not in card.text
    assert card.data.library_name == "peft" and card.data.pipeline_tag == "text-to-image"
    assert "adapter_model.safetensors" in hub.repositories[REPOSITORY].files()


def test_what_is_known_of_data_and_figures():
    assert describe_data(None) == describe_data(iter([])) == ""
    dataset = picture_dataset(5)
    dataset.dataset.info.dataset_name = "emoji"
    assert describe_data(dataset) == "emoji, 5 examples"
    dataset.dataset.info.dataset_name = "parquet"
    assert describe_data(dataset) == "5 examples"
    logs = [{"loss": 2.0, "learning_rate": 1.0}, {"loss": 1.0}, {"eval_psnr": 20.5, "eval_runtime": 3.0}]
    assert describe_figures(logs) == "loss 1, eval_psnr 20.5"


def test_recipes_leave_a_card(tmp_path):
    from transformers_tokenflow.trainers.recipe import run

    run(tiny_trainer(tmp_path / "run", max_steps=1))
    text = (Path(tmp_path) / "run" / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "transformers"
