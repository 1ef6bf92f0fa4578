"""PostgreSQL's full text search: any of the query's words, ranked by ``ts_rank``.

Needs psycopg, an extra of the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ..errors import QAgentError
from ..types import Hit
from .catalog import Catalog
from .external_engines import (
    REMEDY,
    EngineFailed,
    ExternalEngine,
    PostgresSettings,
    require_trust,
    secret_from_environment,
)
from .types import Filters

# plainto_tsquery joins the words by AND; a shop shows products with some of them, too.
_SEARCH = """SELECT asked.number, hit.id, hit.score
    FROM (SELECT number, replace(plainto_tsquery(%(language)s::regconfig, query)::text,
                '&', '|')::tsquery AS terms
        FROM unnest(%(queries)s::text[]) WITH ORDINALITY AS q (query, number)) asked
    CROSS JOIN LATERAL (
        SELECT {id}::text AS id, ts_rank({document}, asked.terms, 1) AS score FROM {table} t
        WHERE {document} @@ asked.terms
          AND (NOT %(in_stock)s OR {in_stock})
          AND (%(min_price)s::float8 IS NULL OR {price} >= %(min_price)s::float8)
          AND (%(max_price)s::float8 IS NULL OR {price} <= %(max_price)s::float8)
          AND (%(category)s::text IS NULL OR {category} ILIKE %(category)s::text)
        ORDER BY score DESC, {id}::text COLLATE "C" LIMIT %(k)s) hit
    ORDER BY asked.number, hit.score DESC, hit.id COLLATE "C" """


class Postgres(ExternalEngine):
    """All queries in one statement, over a connection that stays open."""

    def __init__(self, catalog: Catalog, settings: PostgresSettings) -> None:
        super().__init__(catalog)
        self._settings = settings
        require_trust(_address(settings))
        variable = settings.dsn_variable
        self._dsn = settings.dsn if variable is None else secret_from_environment(variable) or ""
        self._connection: psycopg.Connection[Any] | None = None

    def _search(self, queries: Sequence[str], k: int, filters: Filters) -> list[list[Hit]]:
        parameters = {
            # PostgreSQL's text holds no NUL.
            "queries": [query.replace("\0", " ") for query in queries],
            "k": k,
            "language": self._settings.language,
            "in_stock": filters.in_stock,
            "min_price": filters.min_price,
            "max_price": filters.max_price,
            "category": _prefix_pattern(filters.category) if filters.category else None,
        }
        try:
            rows = self._connect().execute(self._statement(), parameters).fetchall()
        except psycopg.Error as error:
            self.close()
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise EngineFailed(
                f"PostgreSQL cannot search: {line}; start it, or {REMEDY}"
            ) from error
        hits: list[list[Hit]] = [[] for _ in queries]
        for number, product, score in rows:
            if product in self.catalog.row_of:
                hits[number - 1].append(Hit(product, float(score)))
        return hits

    def close(self) -> None:
        """Close the connection; the next search opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            timeout = self._settings.timeout
            self._connection = psycopg.connect(
                self._dsn,
                autocommit=True,
                connect_timeout=max(2, round(timeout)),
                options=f"-c statement_timeout={round(timeout * 1000)}"
                " -c default_transaction_read_only=on",
            )
        return self._connection

    def _statement(self) -> sql.Composed:
        settings = self._settings

        def column(name: str) -> sql.Composable:
            return sql.SQL("t.") + sql.Identifier(name)

        if settings.vector is not None:
            document = column(settings.vector)
        else:
            texts = sql.SQL(", ").join(column(name) for name in settings.text)
            document = sql.SQL("to_tsvector(%(language)s::regconfig, concat_ws(' ', {}))").format(
                texts
            )
        return sql.SQL(_SEARCH).format(
            id=column(settings.id),
            document=document,
            table=sql.Identifier(*settings.table.split(".")),
            in_stock=column(settings.in_stock),
            price=column(settings.price),
            category=column(settings.category),
        )


def _address(settings: PostgresSettings) -> str:
    """What a user names to trust the database: without its password, if it has one."""
    if settings.dsn_variable is not None:
        return settings.dsn_variable
    try:
        named: dict[str, Any] = dict(conninfo_to_dict(settings.dsn))
    except psycopg.Error as error:
        line = str(error).splitlines()[0]
        raise QAgentError(f"search.engine: the dsn cannot be read: {line}; {REMEDY}") from error
    named.pop("password", None)
    return make_conninfo(**named) or "postgres"  # the variables PGHOST and so on say where


def _prefix_pattern(prefix: str) -> str:
    """A LIKE pattern for texts that begin with ``prefix``."""
    for sign in ("\\", "%", "_"):
        prefix = prefix.replace(sign, "\\" + sign)
    return prefix + "%"
