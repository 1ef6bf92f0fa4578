"""One self-contained page that shows a user's profile and interest graph; needs no network."""

from __future__ import annotations

import json
from pathlib import Path

from ..utils.atomic_files import replacing
from .inspect import MemoryView

_PLACEHOLDER = "/*DATA*/"


def page(view: MemoryView) -> str:
    """The HTML of a user's memory."""
    # "<" is escaped, so that text from data can close no tag.
    data = json.dumps(view.to_dict(), ensure_ascii=True).replace("<", "\\u003c")
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    return template.replace(_PLACEHOLDER, data)


def write_page(view: MemoryView, path: Path) -> None:
    """Replace ``path`` with the page."""
    with replacing(path) as temporary:
        temporary.write_text(page(view), encoding="utf-8")
