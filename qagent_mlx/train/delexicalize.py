"""Delexicalised demonstrations, in which each word of the data is replaced by another one.

A small model that reads a few hundred cases soon knows their queries by heart, and what sells
next month is new. In a delexicalised chain each word is another word of the shop, the same one
wherever it occurs: lines and titles still match, marks and places stay, and by these alone the
policy can tell which line is relevant.
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
    """Replaces the words of a chain's texts by other words of the shop.

    Args:
        texts: Titles, categories, brands and queries; the words are taken from these.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        words = {word.lower() for text in texts for word in _WORD.findall(text)}
        self._vocabulary = {word for word in words if _is_data(word)}
        self._choices = sorted(self._vocabulary)

    def draw(self, random: np.random.Generator) -> Callable[[str], str]:
        """A replacement for all texts of one chain; words outside the vocabulary stay."""
        replacements: dict[str, str] = {}

        def replace(match: re.Match[str]) -> str:
            word = match[0]
            key = word.lower()
            if key not in self._vocabulary:
                return word
            if key not in replacements:
                replacements[key] = self._choices[int(random.integers(len(self._choices)))]
            new = replacements[key]
            return new.capitalize() if word[0].isupper() else new

        return lambda text: _WORD.sub(replace, text)
