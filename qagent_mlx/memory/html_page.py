"""One self-contained page that shows a user's profile and interest graph; needs no network."""

from __future__ import annotations

import json
from pathlib import Path

from ..utils.atomic_files import write_text
from .inspect import MemoryView


def page(view: MemoryView) -> str:
    """The HTML of a user's memory."""
    # "<" is escaped, so that text from data can close no tag.
    data = json.dumps(view.to_dict(), ensure_ascii=True).replace("<", "\\u003c")
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    return template.replace("/*DATA*/", data)


def write_page(view: MemoryView, path: Path) -> None:
    """Replace ``path`` with the page."""
    write_text(path, page(view))
