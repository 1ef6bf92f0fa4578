"""Since when queries are public: searched by as many people as `MemoryConfig.least_users` asks."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import duckdb

from ..shop.config import MemoryConfig
from .sql import sql


class PublicQueries:
    """Since when queries have been searched by enough people, computed once for each."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, config: MemoryConfig) -> None:
        self._connection, self._config = connection, config
        self._since: dict[str, datetime | None] = {}

    def forget_private(self) -> None:
        """Look again at queries that few had searched, as more may have by now."""
        self._since = {key: since for key, since in self._since.items() if since is not None}

    def learn(self, keys: Iterable[str]) -> None:
        """Compute since when queries are public, where that is not known yet."""
        missing = sorted(set(keys) - self._since.keys())
        if not missing:
            return
        self._since |= dict.fromkeys(missing)
        values = {
            "keys": missing,
            "least_users": self._config.least_users,
            "new_hours": self._config.new_user_hours,
        }
        self._since |= dict(self._connection.execute(sql("public_since"), values).fetchall())

    def is_public(self, key: str, moment: datetime) -> bool:
        """Whether enough people had searched a query before a moment; after `learn`."""
        since = self._since[key]
        return since is not None and since < moment
