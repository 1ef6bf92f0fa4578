"""Which tokens may come next while a policy writes a query: an automaton of words it has read.

A query that an agent writes consists of words that its chain has read, and at most one reference
to a line of memory, which stands for its query (``nipper <r3>``): words of the profile, which
holds queries that enough people had typed by then, categories, brands and titles, and words of the
results of its searches so far. Where it has read next to nothing, as of a new user, the words of
the shop's catalog may be written as well.

The automaton is a trie of the words' tokens. Its state follows from the tokens of the chain so far,
so what is sampled and what is scored renormalise over the same tokens: in serving, in supervised
training and in GRPO. It serves tokenizers made by `codec.train_tokenizer`: a tag is one token
there, and a word has the same tokens wherever it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from ..utils.text import words
from .actions import REFERENCES, SEARCH, SEARCH_END
from .codec import ShopCodec
from .marks import MARK_WORDS

MOST_WORDS = 6  # of a written query
MOST_WORD_TOKENS = 8  # a word of more tokens (a serial number, mostly) cannot be written
LEAST_READ = 8  # with fewer words to choose from, those of the catalog are added
CACHED = 1024  # beginnings of chains whose words are remembered

_TAG = re.compile(r"<[^<>]*>")


class ReadableWords:
    """Tells a shop's words in what an agent reads from marks and numbers of lines.

    Args:
        catalog: Words of the catalog's texts; these count even where they are also marks.
    """

    def __init__(self, catalog: Iterable[str]) -> None:
        self.catalog = frozenset(catalog)

    def read(self, text: str) -> frozenset[str]:
        """The words of a text, tags and marks aside."""
        return frozenset(
            word
            for word in words(_TAG.sub(" ", text))
            if word in self.catalog or not (word in MARK_WORDS or len(word) == 1)
        )

    def available(self, text: str) -> frozenset[str]:
        """The words that a query may consist of, once a text was read.

        These are the words of the text; where they are fewer than `LEAST_READ`, with those of the
        catalog.
        """
        found = self.read(text)
        return found if len(found) >= LEAST_READ else found | self.catalog


class _Trie:
    """The token sequences of some words; node 0 is where a word begins."""

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        self.children: list[dict[int, int]] = [{}]
        self.ends: list[bool] = [False]  # whether a word ends at a node
        for ids in sequences:
            node = 0
            for token in ids:
                children = self.children[node]
                if token not in children:
                    children[token] = len(self.children)
                    self.children.append({})
                    self.ends.append(False)
                node = children[token]
            self.ends[node] = True


Tries = tuple[_Trie, ...]  # one of the words that were read, and that of the catalog if need be
_NOWHERE = -1  # in place of a node: the query goes on in the other trie only


class State(NamedTuple):
    """Where the writing of a query stands."""

    nodes: tuple[int, ...]  # of each trie
    words: int = 0  # begun so far
    tokens: int = 0  # written so far
    pointed: bool = False  # whether there is a reference among them


def _roots(tries: Tries) -> tuple[int, ...]:
    """The nodes at which a word begins."""
    return (0,) * len(tries)


def _follow(tries: Tries, nodes: tuple[int, ...], token: int) -> tuple[int, ...] | None:
    """The nodes behind a token; None where no word goes on so."""
    following = tuple(
        trie.children[node].get(token, _NOWHERE) if node != _NOWHERE else _NOWHERE
        for trie, node in zip(tries, nodes, strict=True)
    )
    return None if set(following) == {_NOWHERE} else following


def _is_end(tries: Tries, nodes: tuple[int, ...]) -> bool:
    """Whether a word ends here."""
    return any(
        node != _NOWHERE and trie.ends[node] for trie, node in zip(tries, nodes, strict=True)
    )


class QueryAutomaton:
    """The queries that a chain can write, as masks of token ids.

    Args:
        codec: Its tokens are what a mask is about.
        readable: The words that count, and those of the catalog.
        turn_tokens: Longest turn; a query always ends within it.
    """

    def __init__(self, codec: ShopCodec, readable: ReadableWords, turn_tokens: int) -> None:
        self.readable = readable
        self.size = codec.vocabulary_size
        self._codec = codec
        self._search, self._end = (codec.encode(tag)[0] for tag in (SEARCH, SEARCH_END))
        self._references = [codec.encode(tag)[0] for tag in REFERENCES]
        self._is_reference = frozenset(self._references)
        # Before a query stands the opening tag, behind its last word the closing one.
        self._last_start = turn_tokens - 2 - MOST_WORD_TOKENS
        self._word_ids: dict[str, tuple[int, ...]] = {}
        self._tries = lru_cache(CACHED)(self._make_tries)

    @cached_property
    def _catalog_trie(self) -> _Trie:
        """Made once: a catalog has many words, and every new user may write them."""
        return _Trie(self._ids(self.readable.catalog))

    def _make_tries(self, read: tuple[int, ...], references: int) -> Tries:
        found = self.readable.read(self._codec.decode(read))
        lines = ((token,) for token in self._references[:references])
        own = _Trie((*self._ids(found), *lines))
        return (own,) if len(found) >= LEAST_READ else (own, self._catalog_trie)

    def _ids(self, chosen: Iterable[str]) -> Iterator[tuple[int, ...]]:
        for word in chosen:
            if word not in self._word_ids:
                self._word_ids[word] = tuple(self._codec.encode(word))
            if 0 < len(self._word_ids[word]) <= MOST_WORD_TOKENS:
                yield self._word_ids[word]

    def _advance(self, tries: Tries, state: State, token: int) -> State | None:
        """The state after one more token; None where the query has ended or cannot go on so."""
        nodes, begins = _follow(tries, state.nodes, token), state.tokens == 0
        if nodes is None:  # another word begins
            nodes, begins = _follow(tries, _roots(tries), token), True
            if nodes is None or not _is_end(tries, state.nodes):
                return None
        pointed = state.pointed or token in self._is_reference
        return State(nodes, state.words + begins, state.tokens + 1, pointed)

    def _mask(self, tries: Tries, state: State) -> np.ndarray:
        """Which ids may come next: (vocabulary,) of bool, with at least one of them."""
        mask = np.zeros(self.size, dtype=bool)
        self._allow(mask, tries, state.nodes)
        if _is_end(tries, state.nodes):
            mask[self._end] = True
            if state.words < MOST_WORDS and state.tokens <= self._last_start:
                self._allow(mask, tries, _roots(tries))
        if state.pointed:
            mask[self._references] = False
        return mask

    @staticmethod
    def _allow(mask: np.ndarray, tries: Tries, nodes: tuple[int, ...]) -> None:
        for trie, node in zip(tries, nodes, strict=True):
            if node != _NOWHERE:
                mask[list(trie.children[node])] = True

    def next_mask(
        self, read: Sequence[int], turn: Sequence[int], references: int
    ) -> np.ndarray | None:
        """The mask of the next id of a turn: (vocabulary,); None where every id may follow.

        Args:
            read: The chain's tokens before the turn.
            turn: The turn's tokens so far.
            references: Number of memory's lines that may be pointed at.
        """
        if not turn or turn[0] != self._search:
            return None
        tries = self._tries(tuple(read), references)
        state = State(_roots(tries))
        for token in turn[1:]:
            following = self._advance(tries, state, token)
            if following is None:
                return None
            state = following
        return self._mask(tries, state)

    def masks(
        self, tokens: Sequence[int], chosen: Sequence[bool], references: int
    ) -> dict[int, np.ndarray]:
        """The masks of a whole chain: position of a constrained token -> its mask.

        Args:
            tokens: Of the chain.
            chosen: Which of them the policy chose, as opposed to what a tool inserted.
            references: Number of memory's lines that may be pointed at.
        """
        masks: dict[int, np.ndarray] = {}
        for start, token in enumerate(tokens):
            begins_turn = chosen[start] and not (start and chosen[start - 1])
            if token != self._search or not begins_turn:
                continue
            tries = self._tries(tuple(tokens[:start]), references)
            state = State(_roots(tries))
            for position in range(start + 1, len(tokens)):
                if not chosen[position]:
                    break
                masks[position] = self._mask(tries, state)
                following = self._advance(tries, state, tokens[position])
                if following is None:
                    break
                state = following
        return masks

    def accepts(self, query: str, available: frozenset[str]) -> bool:
        """Whether a query can be written with some words."""
        asked = words(query)
        lengths = [len(ids) for ids in self._ids(asked)]
        return (
            0 < len(asked) <= MOST_WORDS
            and set(asked) <= available
            and len(lengths) == len(asked)
            and sum(lengths[:-1]) <= self._last_start
        )
