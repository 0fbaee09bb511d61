"""What `make docs` adds to MkDocs: pages from elsewhere in the repository, and links that lead out of docs/."""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
FENCE_WITH_REMARK = re.compile(r"^(```\w+) [\w-]+$", re.M)


def find_taken() -> dict[str, str]:
    """Files of the site by where they come from; all others lie in docs/."""
    taken = {
        "README.md": "index.md",
        "training/README.md": "training.md",
        "CHANGELOG.md": "changelog.md",
        "CONTRIBUTING.md": "contributing.md",
    }
    for card in ROOT.glob("hub_cards/tokenflow-*/README.md"):
        name = card.parent.name
        taken[f"hub_cards/{name}/README.md"] = f"models/{name}.md"
        if (card.parent / "pictures.png").exists():
            taken[f"hub_cards/{name}/pictures.png"] = f"models/{name}.png"
    return taken


TAKEN = find_taken()
SOURCES = {page: source for source, page in TAKEN.items()}


def on_files(files: Files, config: Any) -> Files:
    """Add the files that are taken from elsewhere."""
    for source, page in TAKEN.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as they are on the site, and blocks of code without remarks for the tests, such as `no-run`."""
    uri = page.file.src_uri

    def relink(match: re.Match) -> str:
        return match[1] + site_link(SOURCES.get(uri, f"docs/{uri}"), uri, match[2], config.repo_url) + (match[3] or "")

    return FENCE_WITH_REMARK.sub(r"\1", LINK.sub(relink, markdown))


def site_link(source: str, uri: str, link: str, repository: str) -> str:
    """
    Where a link of the repository leads on the site.

    Args:
        source: the file that has it, from the root of the repository.
        uri: the page that is made of it, from the root of the site.
        link: relative to `source`.
        repository: address of the repository, where what is no part of the site is shown.
    """
    target = os.path.normpath(PurePosixPath(source).parent / link)
    page = TAKEN.get(target) or TAKEN.get(f"{target}/README.md")
    if page is None and target.startswith("docs/") and not target.endswith(".py"):
        page = target.removeprefix("docs/")
    if page is not None:
        return os.path.relpath(page, PurePosixPath(uri).parent)
    kind = "tree" if (ROOT / target).is_dir() else "blob"
    return f"{repository}/{kind}/main/{target}"
