"""Which tokens may come next, so that a chain is well formed whatever the model would say.

A ready-made chat model knows the protocol from its instructions only. Where chains are served
(not where they are trained: training scores the full distribution), each token is drawn from
those that keep the turn a beginning of an action that is allowed now: read the memory first,
search a line or words of one's own while searches are left, recommend what was searched. So a
model can write no tool's tag, and every chain ends in a recommendation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .actions import FETCH, RECOMMEND, RECOMMEND_END, SEARCH, SEARCH_END

WORDS_TOKENS = 16  # of a query in the model's own words
MIN_P = 0.1  # an untrained model's less likely words are noise at temperature 1


@dataclass(frozen=True, slots=True)
class Moves:
    """What a chain may do now."""

    fetch: bool
    lines: tuple[int, ...]  # search one of these lines of memory
    words: bool  # search words of one's own
    searched: int  # recommend one of so many searches

    def actions(self) -> Iterator[str]:
        """Every allowed action that is not in words."""
        if self.fetch:
            yield FETCH
        for i in self.lines:
            yield f"{SEARCH}<r{i}>{SEARCH_END}"
        for i in range(1, self.searched + 1):
            yield f"{RECOMMEND}<s{i}>{RECOMMEND_END}"


class Grammar:
    """Masks of allowed tokens for one tokenizer.

    Args:
        texts: The text of each token id; empty for control tokens, which are never allowed.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._ids: dict[str, list[int]] = {}
        for number, text in enumerate(texts):
            if text:
                self._ids.setdefault(text, []).append(number)
        self._plain = np.array(
            [bool(t) and t.isprintable() and not set(t) & set("<>‹›\ufffd") for t in texts]
        )
        self._masks: dict[Any, np.ndarray] = {}

    def mask(self, said: str, tokens: int, moves: Moves) -> np.ndarray:
        """Which ids may follow: (vocabulary,) of bool.

        Args:
            said: The turn's text so far.
            tokens: How many tokens that took.
            moves: What is allowed.
        """
        body = said[len(SEARCH) :] if said.startswith(SEARCH) else ""
        in_words = moves.words and bool(body) and not body.startswith("<")
        if in_words:
            # Only what closes the query matters, not the query.
            closing = body[body.index("<") :] if "<" in body else ""
            some = any(character.isalnum() for character in body)
            key: Any = (closing, some, tokens < WORDS_TOKENS)
        else:
            key = (said, moves)
        if key not in self._masks:
            if len(self._masks) > 4096:
                self._masks.clear()
            self._masks[key] = self._words(*key) if in_words else self._actions(said, moves)
        return self._masks[key]

    def _words(self, closing: str, some: bool, more: bool) -> np.ndarray:
        mask = self._plain.copy() if not closing and more else np.zeros_like(self._plain)
        if some or not more:
            self._allow(mask, SEARCH_END[len(closing) :])
        return mask

    def _actions(self, said: str, moves: Moves) -> np.ndarray:
        mask = np.zeros_like(self._plain)
        for action in moves.actions():
            if action.startswith(said):
                self._allow(mask, action[len(said) :])
        if moves.words and said == SEARCH:
            mask |= self._plain
        elif moves.words and SEARCH.startswith(said):
            self._allow(mask, SEARCH[len(said) :])
        if not mask.any():
            raise AssertionError(f"no token can follow {said!r}")
        return mask

    def _allow(self, mask: np.ndarray, rest: str) -> None:
        for end in range(1, len(rest) + 1):
            mask[self._ids.get(rest[:end], [])] = True
