"""Since when queries are public: searched by as many people as `MemoryConfig` asks.

A query of the catalog's words says little about who typed it. One that holds another word can be a
name, an insult or an advertisement, and needs more people (`MemoryConfig.least_users_unknown`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

import duckdb

from ..shop.config import MemoryConfig
from ..utils.text import vocabulary
from .sql import sql

LONG_NUMBER = 5  # digits; shorter numbers are years, sizes and models, whatever the catalog says


class PublicQueries:
    """Since when queries have been searched by enough people, computed once for each.

    It reads ``events`` and ``catalog_words`` (see `shop_tables`).
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, config: MemoryConfig) -> None:
        self._connection, self._config = connection, config
        self._since: dict[str, datetime | None] = {}
        self._last_event: int | None = None  # that was there when the first query was learned

    def forget_private(self) -> None:
        """Look again at queries that few had searched and that somebody has searched since."""
        if self._last_event is None:
            return
        rows = self._connection.execute(
            """SELECT query_key, max(event_id) FROM events
            WHERE event_id > ? AND type = 'search' GROUP BY query_key""",
            [self._last_event],
        ).fetchall()
        for key, event in rows:
            self._last_event = max(self._last_event, event)
            if key in self._since and self._since[key] is None:
                del self._since[key]

    def learn(self, queries: Mapping[str, str]) -> None:
        """Compute since when queries (key to text) are public, where that is not known yet."""
        missing = sorted(queries.keys() - self._since.keys())
        if not missing:
            return
        if self._last_event is None:
            ((last,),) = self._connection.execute("SELECT max(event_id) FROM events").fetchall()
            self._last_event = last or 0
        self._since |= dict.fromkeys(missing)
        values = {
            "keys": missing,
            "needed": self.people_needed([queries[key] for key in missing]),
            "new_hours": self._config.new_user_hours,
        }
        wanted = sql("voices", which="query_key IN (SELECT query_key FROM wanted)")
        query = sql("public_since", voices=f"({wanted})")
        self._since |= dict(self._connection.execute(query, values).fetchall())

    def is_public(self, key: str, moment: datetime) -> bool:
        """Whether enough people had searched a query before a moment; after `learn`."""
        since = self._since[key]
        return since is not None and since < moment

    def people_needed(self, texts: list[str]) -> list[int]:
        """How many people must have searched each text before others see it."""
        least = self._config.least_users
        of_unknown = max(least, self._config.least_users_unknown)
        if of_unknown == least:
            return [least] * len(texts)
        asked = [_words_to_know(text) for text in texts]
        known = self._known({form for words in asked for word in words for form in _forms(word)})
        return [
            least if all(not known.isdisjoint(_forms(word)) for word in words) else of_unknown
            for words in asked
        ]

    def _known(self, words: Iterable[str]) -> set[str]:
        rows = self._connection.execute(
            "SELECT word FROM catalog_words WHERE word IN (SELECT unnest($1))", [sorted(words)]
        ).fetchall()
        return {word for (word,) in rows}


def _words_to_know(text: str) -> list[str]:
    """The words of a text that say something."""
    return [
        word
        for word in vocabulary(text)
        if len(word) > 1 and not (word.isdecimal() and len(word) < LONG_NUMBER)
    ]


def _forms(word: str) -> tuple[str, str]:
    """A word, and its plural or singular in the commonest form."""
    return word, word[:-1] if word.endswith("s") else word + "s"
