"""Completions of what a user types: their own queries first, then what many search, then the shop.

A `Completer` holds what a shop can complete at a moment; it needs neither the policy nor the
database, so that an answer comes between two keystrokes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np

from ..inventory.types import ProductSearch
from ..live.limits import NO_LIMITS, Limits
from ..memory.profile import Memory
from ..types import Profile
from ..utils.personal import looks_personal
from ..utils.text import query_key

Source = Literal["own", "memory", "policy", "shop", "catalog"]

LEAST_USERS = 2  # who must have searched a query before others may see it, at least
MAX_QUERIES = 200_000  # of the shop that are held, the most searched ones
PERSONAL = 3.0  # weight of what memory expects of a user, against what the shop searches
POLICY = 0.3  # what the policy recommended last counts as so probable
INSIDE = 0.15  # weight of a query of which a later word begins so
TYPO = 0.05  # the same, if it begins so but for a typo
CATALOG = 1e-6  # weight of names that only the catalog has
LOOKED_AT = 4  # times as many as are shown, of which some find nothing
_SHORTEST_WITH_TYPO, _LONG = 4, 8  # letters; a long one may have two typos
_END = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A completion, and where it comes from."""

    query: str
    source: Source


class Completer:
    """What a shop can complete.

    Args:
        queries: Texts that many have searched, with their weights.
        names: Texts that only the catalog has.
        search: What finds no product there is not suggested.
        found: Texts of which it is known that they find one.
    """

    def __init__(
        self,
        queries: Mapping[str, float],
        names: Iterable[str],
        search: ProductSearch,
        found: Iterable[str] = (),
    ) -> None:
        self._search = search
        self._found = dict.fromkeys(found, True)
        total = sum(queries.values()) or 1.0
        weights = {_typed(text): weight / total for text, weight in queries.items()}
        self._spelling = {_typed(text): text for text in queries}
        self._from_log = frozenset(weights)
        for name in names:
            text = _typed(name)
            if text and text not in weights:
                weights[text], self._spelling[text] = CATALOG, name
        entries = sorted(
            (text[start:], text, 1.0 if not start else INSIDE)
            for text in weights
            for start in _word_starts(text)
        )
        self._starts = [start for start, _, _ in entries]
        self._texts = [text for _, text, _ in entries]
        self._weights = np.array([weights[text] * share for _, text, share in entries])

    @classmethod
    def of_shop(cls, memory: Memory, search: ProductSearch, as_of: datetime) -> Completer:
        """What a shop can complete at a moment; nothing at or after it is used.

        ``memory`` says what others may see (`Memory.drop_private`); everybody counts once a day.
        """
        config = memory.config
        rows = memory.connection.execute(
            f"""WITH searches AS (
                SELECT query_key, query, user_id, exp(-ln(2) * date_diff('hour', ts, $as_of)
                    / (24 * $half_life)) AS weight
                FROM events WHERE type = 'search' AND ts < $as_of AND NOT $own_only
                QUALIFY row_number() OVER (
                    PARTITION BY user_id, query_key, date_trunc('day', ts) ORDER BY event_id) = 1)
            SELECT query_key, mode(query), sum(weight) + ln(1 + count(DISTINCT user_id)) AS worth,
                query_key IN (SELECT s.query_key FROM events e JOIN products USING (product_id)
                    JOIN events s ON s.event_id = e.search_id WHERE e.ts < $as_of) AS is_found
            FROM searches GROUP BY query_key HAVING count(DISTINCT user_id) >= $least
            ORDER BY worth DESC, query_key LIMIT {MAX_QUERIES}""",
            {
                "as_of": as_of,
                "half_life": config.half_life_days,
                "least": max(LEAST_USERS, config.least_users),
                "own_only": config.own_only,
            },
        ).fetchall()
        public = memory.drop_private({key: text for key, text, *_ in rows}, as_of)
        rows = [(text, *rest) for key, text, *rest in rows if key in public]
        queries = {text: worth for text, worth, _ in rows if not looks_personal(text)}
        found = [text for text, _, is_found in rows if is_found]
        return cls(queries, _catalog_names(search), search, found)

    def complete(
        self,
        prefix: str,
        profile: Profile | None = None,
        k: int = 8,
        limits: Limits = NO_LIMITS,
        recommended: Sequence[str] = (),
    ) -> list[Suggestion]:
        """The completions of a prefix, the likeliest first; each finds a product.

        Args:
            prefix: What was typed so far, with a typo perhaps.
            profile: What memory expects of the user; None for somebody unknown.
            k: How many, at most.
            limits: What may be shown to the user.
            recommended: What a policy recommended to the user last.
        """
        typed = _typed(prefix, keep_end=True)
        if not typed:
            return []
        ranked = self._ranked(typed, k)
        spelling: dict[str, str] = {}
        sources: dict[str, Source] = {}
        for text, weight, source in _personal(profile, recommended, typed):
            key = _typed(text)
            ranked[key] = ranked.get(key, 0.0) + weight
            spelling[key] = text
            sources.setdefault(key, source)
        best = sorted(ranked, key=lambda text: (-ranked[text], text))
        shown: list[Suggestion] = []
        seen: set[str] = set()
        for start in range(0, min(len(best), LOOKED_AT * k), k):
            texts = [spelling.get(t) or self._spelling[t] for t in best[start : start + k]]
            self._look(texts)
            for key, text in zip(best[start : start + k], texts, strict=True):
                same = query_key(text)
                if same in seen or not self._found[text] or not limits.allows(text):
                    continue
                seen.add(same)
                fallback: Source = "shop" if key in self._from_log else "catalog"
                shown.append(Suggestion(text, sources.get(key, fallback)))
                if len(shown) == k:
                    return shown
        return shown

    def _ranked(self, typed: str, k: int) -> dict[str, float]:
        """The shop's texts that begin with a prefix, or nearly so, with their weights."""
        low, high = bisect_left(self._starts, typed), bisect_left(self._starts, typed + _END)
        ranked = self._best(np.arange(low, high), LOOKED_AT * k, 1.0)
        if len(ranked) < k and len(typed) >= _SHORTEST_WITH_TYPO:
            for text, weight in self._best(self._near(typed), LOOKED_AT * k, TYPO).items():
                ranked.setdefault(text, weight)
        return ranked

    def _best(self, rows: np.ndarray, most: int, share: float) -> dict[str, float]:
        if len(rows) > most:
            weights = self._weights[rows]
            rows = rows[np.argpartition(-weights, most)[:most]]
        best: dict[str, float] = {}
        for row in rows.tolist():
            weight = float(self._weights[row]) * share
            if weight > best.get(self._texts[row], 0.0):
                best[self._texts[row]] = weight
        return best

    def _near(self, typed: str) -> np.ndarray:
        """The entries that begin with a prefix but for a typo, behind its first letter."""
        from rapidfuzz import process
        from rapidfuzz.distance import OSA

        low, high = bisect_left(self._starts, typed[0]), bisect_left(self._starts, typed[0] + _END)
        heads: dict[str, list[int]] = {}
        for row in range(low, high):
            heads.setdefault(self._starts[row][: len(typed)], []).append(row)
        allowed = 1 if len(typed) < _LONG else 2
        near = process.extract(
            typed, list(heads), scorer=OSA.distance, score_cutoff=allowed, limit=None
        )
        return np.array([row for head, _, _ in near for row in heads[head]], dtype=int)

    def _look(self, texts: Sequence[str]) -> None:
        """Search for texts of which it is not known yet whether they find anything."""
        fresh = [text for text in texts if text not in self._found]
        if fresh:
            hits = self._search.search(fresh, 1)
            self._found |= {t: bool(found) for t, found in zip(fresh, hits, strict=True)}


def _personal(
    profile: Profile | None, recommended: Sequence[str], typed: str
) -> Iterable[tuple[str, float, Source]]:
    """What is expected of one user and begins so: (text, weight, source)."""
    for query in recommended:
        if _begins(query, typed):
            yield query, PERSONAL * POLICY, "policy"
    for line in profile.lines if profile else ():
        if line.query is not None and _begins(line.query, typed):
            source: Source = "own" if line.section == "latest" else "memory"
            yield line.query, PERSONAL * line.score, source


def _begins(query: str, typed: str) -> bool:
    text = _typed(query)
    return any(text.startswith(typed, start) for start in _word_starts(text))


def _typed(text: str, *, keep_end: bool = False) -> str:
    """A text as completions are compared: lower case, one space between words."""
    joined = " ".join(text.lower().split())
    return joined + " " if keep_end and joined and text[-1:].isspace() else joined


def _word_starts(text: str) -> list[int]:
    return [0, *(place + 1 for place, character in enumerate(text) if character == " ")]


def _catalog_names(search: ProductSearch) -> list[str]:
    """Names of categories and brands, and the brands within categories."""
    catalog = search.catalog
    names: dict[str, None] = {}
    for path, brand in zip(catalog.categories, catalog.brands, strict=True):
        leaf = (path or "").rpartition(" > ")[2]
        for name in (leaf, brand, f"{brand} {leaf}" if brand and leaf else None):
            if name and query_key(name):
                names.setdefault(name.lower())
    return list(names)
