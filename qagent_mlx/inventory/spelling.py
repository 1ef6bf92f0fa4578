"""Words that differ in one letter: changed, missing, added, or swapped with its neighbour."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

SHORTEST = 4  # letters; of shorter words too many differ in one
MOST = 8  # candidates that are kept


class Spelling:
    """A list of words that can be searched for near ones, by comparing whole columns at once."""

    def __init__(self, words: Iterable[str]) -> None:
        by_length: dict[int, list[str]] = {}
        for word in words:
            if len(word) >= SHORTEST:
                by_length.setdefault(len(word), []).append(word)
        self._words = {length: sorted(found) for length, found in by_length.items()}
        self._letters: dict[int, np.ndarray] = {}

    def near(self, word: str) -> tuple[str, ...]:
        """The words with a Damerau-Levenshtein distance of one, in order, at most `MOST`."""
        if len(word) < SHORTEST or not word.isalpha():
            return ()
        found: list[str] = []
        for length in (len(word) - 1, len(word), len(word) + 1):
            if length in self._words:
                found += self._near(word, length)
        return tuple(sorted(found)[:MOST])

    def _near(self, word: str, length: int) -> list[str]:
        known = self._words[length]
        if length not in self._letters:
            self._letters[length] = _letters(known, length)
        letters = self._letters[length]
        own = _letters([word], len(word))[0]
        shared = min(length, len(word))
        head = _run(letters[:, :shared] == own[:shared])
        tail = _run(letters[:, ::-1][:, :shared] == own[::-1][:shared])
        if length != len(word):
            hits = head + tail >= shared
        else:
            hits = (head + tail == shared - 1) | self._swapped(letters, own, head, tail)
        return [known[i] for i in np.flatnonzero(hits).tolist()]

    @staticmethod
    def _swapped(
        letters: np.ndarray, own: np.ndarray, head: np.ndarray, tail: np.ndarray
    ) -> np.ndarray:
        hits = head + tail == len(own) - 2
        at = np.flatnonzero(hits)
        first = head[at]
        hits[at] = (letters[at, first] == own[first + 1]) & (letters[at, first + 1] == own[first])
        return hits


def _letters(words: list[str], length: int) -> np.ndarray:
    """Code points, (words, length)."""
    return np.array(words, dtype=f"<U{length}").view(np.uint32).reshape(len(words), length)


def _run(equal: np.ndarray) -> np.ndarray:
    """How many columns from the first on are all true, for each row."""
    return np.logical_and.accumulate(equal, axis=1).sum(axis=1)
