# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The upload itself, and what can go wrong with it in words."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from ..commands import one_line
from .files import LEFT_OUT

LOG_IN = "log in with `hf auth login`, or pass --token"


class PublishError(Exception):
    """The Hub does not take the model, or can't be reached."""


@dataclass
class Published:
    """
    Args:
        url: of the repository, its branch, or the pull request.
        commit: id of the last commit.
    """

    url: str
    commit: str


def upload_model(
    folder: Path,
    repository: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> Published:
    """
    Upload a folder, but for what the repository has already.

    Args:
        folder: of a model, which was checked.
        repository: `user/name`, or a name alone; it is made if it is not there.
        private: whether nobody else may see it.
        revision: branch, which is made if it is not there, or a pull request such as `refs/pr/1`, to go on with it.
        create_pr: whether to open a pull request instead of changing the branch.
        token: by default the one that the Hub's own tools use.

    Raises:
        PublishError: the Hub does not take the token, the card or the files, can't be reached, or the repository is
            public and should be private.
    """
    api = HfApi(token=token)
    with readable_errors(repository):
        api.whoami()
        check_card_online(folder)
        url = api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(url.repo_id).private:
            raise PublishError(f"{url.repo_id} is there already, and public: --private can't change that")
        if revision is not None and not revision.startswith("refs/"):  # a pull request is there already
            api.create_branch(url.repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            revision=revision,
            create_pr=create_pr,
            commit_message=f"Publish {folder.resolve().name}",
            ignore_patterns=list(LEFT_OUT),
        )
    branch = f"/tree/{revision}" if revision is not None else ""
    return Published(commit.pr_url or f"{url}{branch}", commit.oid)


def check_card_online(folder: Path) -> None:
    """Let the Hub check the card, before anything is made; a Hub that does not check cards is fine."""
    try:
        ModelCard.load(folder / "README.md").validate()
    except ValueError as error:
        raise PublishError(f"the Hub refuses the card: {one_line(error)}") from error
    except HfHubHTTPError:
        return


@contextmanager
def readable_errors(repository: str) -> Iterator[None]:
    """Give errors of the Hub and of the network a message that says what to do."""
    try:
        yield
    except PublishError:
        raise
    except LocalTokenNotFoundError as error:
        raise PublishError(f"there is no token for the Hub: {LOG_IN}") from error
    except OfflineModeIsEnabled as error:
        raise PublishError("the Hub is switched off: unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE") from error
    except HfHubHTTPError as error:
        raise PublishError(describe_answer(error, repository)) from error
    except Exception as error:  # of the network, each library's own; and what the Hub refuses
        if "xet-write-token" in str(error):
            raise PublishError("this Hub has no Xet storage: set HF_HUB_DISABLE_XET=1") from error
        raise PublishError(broken_off(repository, one_line(error))) from error


def describe_answer(error: HfHubHTTPError, repository: str) -> str:
    """What an answer of the Hub means."""
    status = error.response.status_code if error.response is not None else None
    said = error.server_message or one_line(error)
    if status == 401:
        return f"the Hub does not know the token: {LOG_IN}"
    if status == 403:
        return f"the token may not write to {repository}: {said}"
    if status == 429 or (status is not None and status >= 500):
        return broken_off(repository, said)
    return f"the Hub refuses {repository}: {said}"


def broken_off(repository: str, reason: str) -> str:
    """What to do where nothing is wrong but the moment."""
    return f"the upload to {repository} broke off ({reason}): the same command goes on where it stopped"
