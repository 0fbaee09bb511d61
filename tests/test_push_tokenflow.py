# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Uploads of models, processors and pipelines to a Hub on loopback, and their cards."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hub_server import Hub
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from tiny_models import tiny_model, tiny_processor, tiny_text_to_image, tiny_understanding
from transformers import AutoModel, pipeline

from transformers_tokenflow import TokenFlowImageProcessor, TokenFlowPipeline, push_tokenflow
from transformers_tokenflow.card_tokenflow import REMARK

REPOSITORY = "owner/model"
OWN_CARD = "---\nlicense: mit\ntags:\n- mine\n---\n\n# Mine\n\nWritten by hand.\n"
# What transformers writes: its template, of which nothing is filled in.
EMPTY_CARD = (
    "---\nlibrary_name: transformers\ntags: []\n---\n\n# Model Card\n" + "- **x:** [More Information Needed]\n" * 35
)
# Fails wherever the package is imported, in place of what a Hub's user would have.
WITHOUT_PACKAGE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers_tokenflow":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
"""


def files_of(hub: Hub, revision: str = "main") -> dict[str, bytes]:
    return hub.repositories[REPOSITORY].files(revision)


def card_of(hub: Hub, revision: str = "main") -> ModelCard:
    return ModelCard(files_of(hub, revision)["README.md"].decode())


def put_card(text: str) -> None:
    api = HfApi()
    api.create_repo(REPOSITORY, exist_ok=True)
    api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=REPOSITORY)


def run_without_package(script: str, hub: Hub, tmp_path: Path) -> None:
    """Run a script in a process that has the Hub and not the package."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", WITHOUT_PACKAGE + textwrap.dedent(script)]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


class TestModels:
    def test_card_says_what_the_model_is(self, hub):
        model = tiny_model("siglip")
        model.push_to_hub(REPOSITORY, tags=["emoji"])
        card = card_of(hub)
        assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-feature-extraction"
        assert card.data.license is None and card.data.base_model is None
        assert {"tokenflow", "emoji"} <= set(card.data.tags)
        for fact in (
            "32×32",
            "21, in scales of side 1, 2, 4",
            "48 entries of 8 semantic and 4 pixel",
            "siglip_vision_model",
        ):
            assert fact in card.text
        assert f'from_pretrained("{REPOSITORY}", trust_remote_code=True)' in card.text
        assert "language model" not in card.text and "arXiv preprint" in card.text

    def test_written_cards_stay(self, hub):
        put_card(OWN_CARD)
        tiny_model().push_to_hub(REPOSITORY)
        assert files_of(hub)["README.md"].decode() == OWN_CARD
        tiny_model().push_to_hub(REPOSITORY, tags="new")
        assert card_of(hub).data.tags == ["mine", "new"] and "Written by hand" in card_of(hub).text

    def test_unwritten_cards_are_replaced_but_for_their_metadata(self, hub):
        put_card(EMPTY_CARD.replace("tags: []", "license: mit"))
        tiny_model().push_to_hub(REPOSITORY)
        assert "More Information" not in card_of(hub).text and "32×32" in card_of(hub).text
        assert card_of(hub).data.license == "mit" and card_of(hub).data.pipeline_tag == "image-feature-extraction"
        tiny_model(image_size=64, scales=[1, 8]).push_to_hub(REPOSITORY)
        assert "64×64" in card_of(hub).text and card_of(hub).text.count(REMARK) == 1
        assert card_of(hub).data.license == "mit" and card_of(hub).data.tags == ["tokenflow"]

    def test_saving_with_an_upload_keeps_the_folders_card(self, hub, tmp_path):
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "README.md").write_text(OWN_CARD)
        (folder / "notes.txt").write_text("not part of the model")
        tiny_model().save_pretrained(folder, push_to_hub=True, private=True, commit_message="All")
        assert hub.repositories[REPOSITORY].private
        assert (folder / "README.md").read_text() == files_of(hub)["README.md"].decode() == OWN_CARD
        assert {"model.safetensors", "modeling_tokenflow.py"} <= files_of(hub).keys()
        assert "notes.txt" not in files_of(hub)

    def test_saving_without_an_upload_writes_no_card(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        assert not (tmp_path / "README.md").exists()

    def test_branches_shards_and_pull_requests(self, hub):
        tiny_model().push_to_hub(REPOSITORY, revision="draft", max_shard_size="100kB")
        assert set(files_of(hub)) == {".gitattributes"}
        assert "model.safetensors.index.json" in files_of(hub, "draft") and "README.md" in files_of(hub, "draft")
        commit = tiny_model().push_to_hub(REPOSITORY, create_pr=True, token="hf_test_guest")
        assert commit.pr_url.endswith("/discussions/1") and "README.md" in files_of(hub, "refs/pr/1")

    def test_a_repeated_upload_sends_nothing(self, hub):
        model = tiny_model()
        model.push_to_hub(REPOSITORY)
        before = list(hub.uploads)
        model.push_to_hub(REPOSITORY)
        assert hub.uploads == before


class TestProcessors:
    def test_card_comes_first_and_gives_way_to_the_models(self, hub):
        processor = tiny_processor()
        processor.push_to_hub(REPOSITORY)
        assert (
            "The processor of a" in card_of(hub).text
            and f'AutoProcessor.from_pretrained("{REPOSITORY}"' in card_of(hub).text
        )
        assert {"processing_tokenflow.py", "tokenizer.json"} <= files_of(hub).keys()
        tiny_text_to_image()[0].push_to_hub(REPOSITORY)
        written = files_of(hub)["README.md"]
        assert card_of(hub).data.pipeline_tag == "text-to-image"
        processor.push_to_hub(REPOSITORY)
        assert files_of(hub)["README.md"] == written

    def test_saving_with_an_upload(self, hub, tmp_path):
        TokenFlowImageProcessor().save_pretrained(
            tmp_path / "image", push_to_hub=True, repo_id="owner/image", tags="new"
        )
        card = ModelCard(hub.repositories["owner/image"].files()["README.md"].decode())
        assert "AutoImageProcessor.from_pretrained" in card.text and card.data.tags == ["tokenflow", "new"]
        tiny_processor().save_pretrained(tmp_path / "model", push_to_hub=True, repo_id=REPOSITORY)
        assert {"processor_config.json", "README.md"} <= files_of(hub).keys()


class TestPipelines:
    @pytest.mark.parametrize("by_saving", [False, True])
    def test_of_transformers(self, by_saving, hub, tmp_path):
        model, processor = tiny_text_to_image()
        painter = pipeline("text-to-image", model=model, processor=processor, device="cpu")
        if by_saving:
            painter.save_pretrained(tmp_path / "model", push_to_hub=True)
        else:
            painter.push_to_hub(REPOSITORY)
        assert len(hub.repositories[REPOSITORY].commits) == 2  # the first one made the repository
        assert "llama, 2 layers of width 32" in card_of(hub).text
        assert 'pipeline("text-to-image"' in card_of(hub).text and "diffusers" not in card_of(hub).text

    @pytest.mark.parametrize("by_saving", [False, True])
    def test_of_diffusers(self, by_saving, hub, tmp_path):
        pipe = TokenFlowPipeline(*tiny_text_to_image())
        if by_saving:
            pipe.save_pretrained(tmp_path / "model", push_to_hub=True)
        else:
            assert pipe.push_to_hub(REPOSITORY, private=True).startswith(f"{hub.url}/{REPOSITORY}/commit/")
        assert len(hub.repositories[REPOSITORY].commits) == 2
        assert {"model_index.json", "pipeline_tokenflow_diffusers.py", "pipeline_tokenflow.py"} <= files_of(hub).keys()
        assert "DiffusionPipeline" in card_of(hub).text and "diffusers" in card_of(hub).data.tags
        again = TokenFlowPipeline.from_pretrained(REPOSITORY)
        assert type(again.model) is type(pipe.model)


@pytest.mark.timeout(900)
def test_what_was_uploaded_loads_without_the_package(hub, tmp_path):
    tokenizer, (model, processor) = tiny_model(), tiny_text_to_image()
    reader, conversations = tiny_understanding(), tiny_processor(image_token="<image>", num_image_tokens=16)
    tokenizer.push_to_hub(REPOSITORY)
    TokenFlowImageProcessor(size={"shortest_edge": 32}).push_to_hub(REPOSITORY)
    pipe = TokenFlowPipeline(model, processor)
    pipe.push_to_hub("owner/painter", private=True)
    reader.push_to_hub("owner/reader")
    conversations.push_to_hub("owner/reader")
    codes = tokenizer.encode(torch.zeros(1, 3, 32, 32)).codes.tolist()
    drawn = pipe("sun", generator=torch.Generator().manual_seed(0), output_type="latent").images[0].tolist()
    script = f"""
        import torch
        from diffusers import DiffusionPipeline
        from transformers import AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline
        trusted = dict(trust_remote_code=True)
        model = AutoModel.from_pretrained({REPOSITORY!r}, **trusted).eval()
        processor = AutoImageProcessor.from_pretrained({REPOSITORY!r}, **trusted)
        painter = pipeline("text-to-image", model="owner/painter", device="cpu", **trusted)
        pipe = DiffusionPipeline.from_pretrained("owner/painter", **trusted)
        reader = AutoModelForImageTextToText.from_pretrained("owner/reader", **trusted)
        conversations = AutoProcessor.from_pretrained("owner/reader", **trusted)
        for loaded in (model, processor, painter, pipe.model, pipe.processor, reader, conversations):
            assert type(loaded).__module__.startswith("transformers_modules."), type(loaded)
        assert model.encode(torch.zeros(1, 3, 32, 32)).codes.tolist() == {codes}
        assert processor.size["shortest_edge"] == 32
        assert painter("sun", seed=0, output_type="latent").tolist() == {drawn}
        generator = torch.Generator().manual_seed(0)
        assert pipe("sun", generator=generator, output_type="latent").images[0].tolist() == {drawn}
        model.push_to_hub("owner/again")
    """
    run_without_package(script, hub, tmp_path)
    again = hub.repositories["owner/again"].files()
    card = ModelCard(again["README.md"].decode())
    assert card.data.base_model == REPOSITORY and f"starts from `{REPOSITORY}`" in card.text
    assert "modeling_tokenflow.py" in again


def test_card_of_a_model_that_reads_pictures(hub):
    tiny_understanding().push_to_hub(REPOSITORY)
    card = card_of(hub)
    assert card.data.pipeline_tag == "image-text-to-text"
    assert "places of a picture in a text | 16 |" in card.text and 'pipeline("image-text-to-text"' in card.text


def test_part_of_a_model(hub):
    tiny_text_to_image()[0].model.push_to_hub(REPOSITORY)
    assert "language model | llama, 2 layers" in card_of(hub).text and card_of(hub).data.pipeline_tag == "text-to-image"


def test_config_names_its_code(hub):
    tiny_text_to_image()[0].push_to_hub(REPOSITORY)
    config = json.loads(files_of(hub)["config.json"])
    for reference in config["auto_map"].values():
        assert f"{reference.split('.')[0]}.py" in files_of(hub)
    assert type(AutoModel.from_pretrained(REPOSITORY)).__name__ == "TokenFlowForTextToImage"


def test_a_hub_that_is_out_of_reach_does_not_pass_for_one_without_a_card(monkeypatch):
    def fail(*args, **kwargs):
        raise LocalEntryNotFoundError("no connection, and nothing in the cache")

    monkeypatch.setattr(push_tokenflow, "hf_hub_download", fail)
    with pytest.raises(LocalEntryNotFoundError):
        push_tokenflow.read_uploaded_card("owner/model")
