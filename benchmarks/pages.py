"""Tables and texts that scripts write into pages, between two comments that mark their place."""

from pathlib import Path


def replace_between(page: Path, start: str, end: str, text: str) -> None:
    """
    Put a text in the place of the last one.

    Args:
        page: its file.
        start, end: comments on lines of their own, with what is replaced between them.
        text: what comes there, without a line break at its end.

    Raises:
        ValueError: the page has no such place.
    """
    content = page.read_text(encoding="utf-8")
    opening = content.find(start)
    closing = content.find(end, opening + len(start)) if opening >= 0 else -1
    if closing < 0:
        raise ValueError(f"expected {start!r} and after it {end!r} in {page}, with what is replaced between them")
    page.write_text(f"{content[: opening + len(start)]}\n{text}\n{content[closing:]}", encoding="utf-8")
