"""One self-contained page that shows a user's profile and interest graph; needs no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..utils.atomic_files import replacing

_MARK = "/*DATA*/"


def page(view: dict[str, Any]) -> str:
    """The HTML of what `policy.shop_memory.inspect_memory` returns."""
    # "<" is escaped, so that text from data can close no tag.
    text = json.dumps(view, ensure_ascii=True).replace("<", "\\u003c")
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    return template.replace(_MARK, text)


def write_page(view: dict[str, Any], path: Path) -> None:
    """Replace ``path`` with the page."""
    with replacing(path) as temporary:
        temporary.write_text(page(view), encoding="utf-8")
