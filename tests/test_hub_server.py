# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The Hub of the tests, by huggingface_hub's own calls."""

from pathlib import Path

import pytest
from hub_server import Hub, digest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

REPOSITORY = "owner/model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small file and two large ones."""
    path = tmp_path / "folder"
    (path / "sub").mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "one.safetensors").write_bytes(bytes(range(256)) * 400)
    (path / "sub" / "two.safetensors").write_bytes(b"two" * 100_000)
    return path


@pytest.fixture
def api(hub: Hub) -> HfApi:
    api = HfApi()
    api.create_repo(REPOSITORY)
    return api


def test_uploads_lists_and_downloads(hub, api, folder, tmp_path):
    assert api.whoami()["name"] == "owner"
    commit = api.upload_folder(repo_id=REPOSITORY, folder_path=folder)
    assert hub.repositories[REPOSITORY].find("main") == commit.oid
    names = {".gitattributes", "config.json", "one.safetensors", "sub/two.safetensors"}
    assert set(api.list_repo_files(REPOSITORY)) == names
    sizes = {entry.path: entry.size for entry in api.list_repo_tree(REPOSITORY, recursive=True)}
    assert sizes["sub/two.safetensors"] == 300_000
    copy = Path(snapshot_download(REPOSITORY))
    assert {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()} == names
    assert (copy / "one.safetensors").read_bytes() == (folder / "one.safetensors").read_bytes()


def test_repeating_uploads_nothing(hub, api, folder):
    api.upload_folder(repo_id=REPOSITORY, folder_path=folder)
    before, commits = list(hub.uploads), len(hub.repositories[REPOSITORY].commits)
    assert len(before) == 3
    api.upload_folder(repo_id=REPOSITORY, folder_path=folder)
    assert hub.uploads == before and len(hub.repositories[REPOSITORY].commits) == commits
    (folder / "config.json").write_text("[]")
    api.upload_folder(repo_id=REPOSITORY, folder_path=folder)
    assert hub.uploads == [*before, "config.json"]


def test_a_connection_that_breaks_once_is_taken_up_again(hub, api, folder):
    hub.cut_at, hub.cuts = 1000, 1
    api.upload_folder(repo_id=REPOSITORY, folder_path=folder)
    assert hub.cuts == 0
    assert sorted(hub.uploads) == sorted(
        ["config.json", *(digest(path.read_bytes()) for path in folder.rglob("*.safetensors"))]
    )


def test_branches_and_pull_requests(hub, api, folder):
    api.create_branch(REPOSITORY, branch="draft")
    api.create_branch(REPOSITORY, branch="draft", exist_ok=True)
    api.upload_folder(repo_id=REPOSITORY, folder_path=folder, revision="draft")
    assert api.list_repo_files(REPOSITORY) == [".gitattributes"]
    assert "config.json" in api.list_repo_files(REPOSITORY, revision="draft")
    guest = HfApi(token="hf_test_guest")
    commit = guest.upload_folder(repo_id=REPOSITORY, folder_path=folder, create_pr=True)
    assert commit.pr_url == f"{hub.url}/{REPOSITORY}/discussions/1"
    assert "config.json" in api.list_repo_files(REPOSITORY, revision="refs/pr/1")
    assert api.list_repo_files(REPOSITORY) == [".gitattributes"]


def test_refusals(hub, api, folder):
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(token="hf_wrong").whoami()
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi(token="hf_test_guest").upload_folder(repo_id=REPOSITORY, folder_path=folder)
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi(token="hf_test_guest").create_repo("owner/other")
    with pytest.raises(RepositoryNotFoundError):
        api.list_repo_files("owner/nothing")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPOSITORY, "nothing.json")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPOSITORY, "config.json", revision="nothing")
    api.create_repo("owner/secret", private=True)
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token="hf_test_guest").list_repo_files("owner/secret")
    hub.refuses_cards = True
    (folder / "README.md").write_text("---\nlicense: none-such\n---\n")
    with pytest.raises(ValueError, match="license"):
        api.upload_folder(repo_id=REPOSITORY, folder_path=folder)
