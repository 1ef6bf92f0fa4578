"""Demonstrations in other words: what a shop's words say is not what decides.

A small model that reads a few hundred cases soon knows their queries by heart, and what
sells next month is new. In a disguised chain each word of the data is another word of the
shop, the same one wherever it comes: lines and titles still match, marks and places stay, and
by these alone the policy can tell which line is right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np

from ..protocol.marks import MARK_WORDS

_WORD = re.compile(r"[^\s<>,$]+")


def _is_data(word: str) -> bool:
    # Single digits number the results.
    return word not in MARK_WORDS and not (len(word) == 1 and word.isdigit())


class Delexicalizer:
    """Other words for a chain's words.

    Args:
        texts: Titles, categories, brands and queries; the words are taken from these.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        found = {word.lower() for text in texts for word in _WORD.findall(text)}
        self._known = {word for word in found if _is_data(word)}
        self._words = sorted(self._known)

    def draw(self, random: np.random.Generator) -> Callable[[str], str]:
        """A disguise for all the texts of one chain; a word of no text above stays as it is."""
        chosen: dict[str, str] = {}

        def other(match: re.Match[str]) -> str:
            word = match[0]
            key = word.lower()
            if key not in self._known:
                return word
            if key not in chosen:
                chosen[key] = self._words[int(random.integers(len(self._words)))]
            return chosen[key].capitalize() if word[0].isupper() else chosen[key]

        return lambda text: _WORD.sub(other, text)
