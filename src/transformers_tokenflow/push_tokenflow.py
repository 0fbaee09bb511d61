# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Uploads to the Hub with a card that says what a model is, in place of transformers' empty one."""

import functools
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RevisionNotFoundError
from transformers.utils import CONFIG_NAME, PushToHubMixin

from .card_tokenflow import add_tags, combine_cards, make_model_card, make_processor_card

CARD = "README.md"
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# Arguments of `save_pretrained` that are about the upload.
PUSH_ARGUMENTS = (
    "commit_description",
    "commit_message",
    "create_pr",
    "private",
    "repo_id",
    "revision",
    "tags",
    "token",
)


class TokenFlowPushMixin(PushToHubMixin):
    """
    Gives models and processors `push_to_hub`, and `save_pretrained(..., push_to_hub=True)`, with a card.

    A card that somebody has written, in the folder or in the repository, stays as it is. One that nobody has is written
    anew, keeping its metadata: what it says is what the configuration says.
    """

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, *, max_shard_size: int | str | None = None, **kwargs: Any
    ) -> CommitInfo:
        """
        Upload to the Hub.

        Args:
            repo_id: is made, if it is not there.
            max_shard_size: of a model's files.
            kwargs: `commit_message`, `commit_description`, `private`, `token`, `revision`, `create_pr`, `tags`.
        """
        options: dict[str, Any] = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        return self.push_saved(functools.partial(self.save_pretrained, **options), repo_id, **kwargs)

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> Any:
        """
        Save to a folder.

        Args:
            save_directory: the folder.
            push_to_hub: whether to upload what was saved as well, to `repo_id`, or a repository of the folder's name.
            args, kwargs: of the class's own `save_pretrained` and of `push_to_hub`.
        """
        save = super().save_pretrained
        if not push_to_hub or not kwargs.get("is_main_process", True):
            return save(save_directory, *args, **kwargs)
        options = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if name in kwargs}
        repo_id = options.pop("repo_id", None) or Path(save_directory).resolve().name
        return self.push_saved(lambda folder: save(folder, *args, **kwargs), repo_id, save_directory, **options)

    def push_saved(
        self,
        save: Callable[[str | os.PathLike], Any],
        repo_id: str,
        folder: str | os.PathLike | None = None,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: Iterable[str] | str | None = None,
    ) -> CommitInfo:
        """
        Upload what `save` writes to a folder, and a card.

        Args:
            save: called with the folder. Pipelines pass what saves them, of which this is a part.
            repo_id: is made, if it is not there.
            folder: by default one that is removed afterwards. Of what is in it, files that `save` leaves alone stay.
            commit_message, commit_description, private, token, revision, create_pr, tags: as in transformers.
        """
        repo_id = HfApi().create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(folder or temporary)
            folder.mkdir(parents=True, exist_ok=True)
            before = self._get_files_timestamps(folder)
            save(folder)
            written = read_card(folder) or read_uploaded_card(repo_id, revision, token)
            added = [*([tags] if isinstance(tags, str) else tags or ()), *(getattr(self, "model_tags", None) or ())]
            (folder / CARD).write_bytes(self.write_card(repo_id, folder, written, added).encode())
            before.pop(CARD, None)
            return self._upload_modified_files(
                folder, repo_id, before, commit_message, token, create_pr, revision, commit_description
            )

    def write_card(self, repo_id: str, folder: Path, written: str | None, tags: Iterable[str] = ()) -> str:
        """The text of the card of what is in a folder, where `written` is there already."""
        if hasattr(self, "config_class"):
            return combine_cards(self._make_card(repo_id, folder), written, tags)
        if written is not None:
            return add_tags(written, list(tags))  # a processor knows less than whoever wrote this
        auto_class = getattr(self, "_auto_class", None) or "AutoProcessor"
        return combine_cards(make_processor_card(repo_id, auto_class), None, tags)

    def _make_card(self, repo_id: str, folder: Path) -> ModelCard:
        model: Any = self
        # What a part of a model is saved with is the whole one's. Adapters are saved without.
        is_saved = (folder / CONFIG_NAME).is_file()
        return make_model_card(
            model.config_class.from_pretrained(folder) if is_saved else model.config,
            repo_id,
            parameters=model.num_parameters(),
            for_diffusers=(folder / "model_index.json").is_file(),
            base_model=find_base_model(model.name_or_path, repo_id),
        )


def find_base_model(name: str, repo_id: str | None = None) -> str | None:
    """The repository that a model was loaded from, unless that is the one that it goes to; None if it is from none."""
    is_from_hub = REPOSITORY.fullmatch(name) is not None and not Path(name).exists()
    return name if is_from_hub and name != repo_id else None


def read_card(folder: Path) -> str | None:
    """The text of a folder's card, if there is one."""
    path = folder / CARD
    return path.read_bytes().decode() if path.is_file() else None


def read_uploaded_card(repo_id: str, revision: str | None = None, token: bool | str | None = None) -> str | None:
    """The text of a repository's card, if there is one, on a branch that may be made by the upload alone."""
    try:
        return Path(hf_hub_download(repo_id, CARD, revision=revision, token=token)).read_bytes().decode()
    except LocalEntryNotFoundError:  # the Hub could not be reached: whether there is a card is not known
        raise
    except EntryNotFoundError:
        return None
    except RevisionNotFoundError:
        return read_uploaded_card(repo_id, None, token) if revision is not None else None


__all__ = ["TokenFlowPushMixin"]
