"""Keep text that comes from data from forming a tag."""

from __future__ import annotations

from functools import lru_cache

from ..utils.text import clean


@lru_cache(maxsize=1 << 16)
def safe(text: str) -> str:
    """Text from data that can never form a tag of the protocol."""
    return clean(text).replace("<", "‹").replace(">", "›")
