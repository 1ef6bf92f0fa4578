"""Words that differ in one letter: changed, missing, added, or swapped with its neighbour."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

MIN_LETTERS = 4  # of shorter words too many differ in one letter
MAX_CORRECTIONS = 8


class SpellingIndex:
    """A vocabulary that is searched for words at a Damerau-Levenshtein distance of one."""

    def __init__(self, words: Iterable[str]) -> None:
        self._by_length: dict[int, list[str]] = defaultdict(list)
        for word in words:
            if len(word) >= MIN_LETTERS:
                self._by_length[len(word)].append(word)

    def corrections(self, word: str) -> tuple[str, ...]:
        """Known words that are one edit away, in alphabetical order, at most `MAX_CORRECTIONS`."""
        if len(word) < MIN_LETTERS or not word.isalpha():
            return ()
        from rapidfuzz.distance import OSA  # takes a while, and few queries have slips
        from rapidfuzz.process import extract

        near: list[str] = []
        for length in (len(word) - 1, len(word), len(word) + 1):
            candidates = self._by_length.get(length, ())
            matches = extract(word, candidates, scorer=OSA.distance, score_cutoff=1, limit=None)
            near += [known for known, distance, _ in matches if distance == 1]
        return tuple(sorted(near)[:MAX_CORRECTIONS])
