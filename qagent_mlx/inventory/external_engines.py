"""The shop's own search engine in place of the built-in one, named in ``shop.shop.json``:

    "search": {"engine": {"kind": "opensearch", "url": "http://localhost:9200",
                          "index": "products", "fields": ["title^2", "brand"]}}
    "search": {"engine": {"kind": "postgres", "dsn": "dbname=shop", "table": "products",
                          "text": ["title", "brand"]}}

An engine returns product ids and scores; titles, prices and stock come from the shop's catalog,
and what the catalog does not know is left out. An engine searches the shop as it is now: it
can't go back to a case's moment, so it serves `search` and `recommend`, and training and
evaluation stay with the built-in search.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import QAgentError
from ..shop.shop import Shop
from ..types import Hit
from ..utils.text import query_key
from .catalog import Catalog, read_catalog
from .search import open_search
from .types import Filters, Search

if TYPE_CHECKING:
    import psycopg

MOST_BYTES = 32 << 20  # of an answer
_FIX = "correct search.engine in shop.json"
T = TypeVar("T")


def shop_search(shop: Shop) -> Search:
    """The search that a shop's users get: its own engine where it names one.

    Raises:
        QAgentError: the engine's settings are wrong.
    """
    settings = shop.config.search.engine
    if settings is None:
        return open_search(shop)
    kinds: dict[str, tuple[type[Any], type[Any]]] = {
        "opensearch": (OpenSearchSettings, OpenSearch),
        "postgres": (PostgresSettings, Postgres),
    }
    kind = settings.get("kind")
    if kind not in kinds:
        raise QAgentError(
            f"search.engine has the kind {kind!r}; known are {', '.join(kinds)}; {_FIX}"
        )
    own, engine = kinds[kind]
    values = {name: value for name, value in settings.items() if name != "kind"}
    made: Search = engine(read_catalog(shop), _settings(own, values))
    return made


def _settings(cls: type[T], values: dict[str, Any]) -> T:
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise QAgentError(
            f"search.engine: unknown setting {', '.join(unknown)}; known are {', '.join(known)}"
        )
    try:
        return cls(**values)
    except TypeError as error:
        raise QAgentError(f"search.engine: {error}; {_FIX}") from error


def _from_environment(name: str | None) -> str | None:
    if name is None:
        return None
    if name not in os.environ:
        raise QAgentError(f"search.engine names the variable {name}, which is not set; set it")
    return os.environ[name]


# ---------------------------------------------------------------- OpenSearch, Elasticsearch


@dataclass(frozen=True, slots=True)
class OpenSearchSettings:
    """Where the engine is and how its documents are laid out. Secrets stay in the environment."""

    url: str
    index: str = "products"
    fields: Sequence[str] = ("title^2", "brand", "category")
    id: str | None = None  # the field of the product id; by default the document's own id
    in_stock: str = "in_stock"
    price: str = "price"
    category: str = "category.keyword"
    timeout: float = 10.0  # seconds
    parallel: int = 8  # questions under way at once
    user: str | None = None
    password_variable: str | None = None  # the environment variable that holds it
    api_key_variable: str | None = None


class OpenSearch:
    """Any engine that speaks the ``_search`` API of OpenSearch and Elasticsearch."""

    def __init__(self, catalog: Catalog, settings: OpenSearchSettings) -> None:
        if not settings.url.startswith(("http://", "https://")):
            raise QAgentError(f"search.engine: {settings.url!r} is no http(s) address; {_FIX}")
        self.catalog = catalog
        self._known = frozenset(catalog.ids)
        self._settings = settings
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = _from_environment(settings.api_key_variable)
        password = _from_environment(settings.password_variable)
        if key is not None:
            self._headers["Authorization"] = f"ApiKey {key}"
        elif settings.user is not None:
            pair = f"{settings.user}:{password or ''}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"

    def search(
        self,
        queries: Sequence[str],
        k: int = 10,
        as_of: Sequence[datetime | None] | None = None,
        filters: Filters | None = None,
    ) -> list[list[Hit]]:
        """For each query at most ``k`` hits, the best first; the shop as it is now.

        Raises:
            QAgentError: the engine does not answer, or not as it should.
        """
        asked = [query for query in dict.fromkeys(queries) if query_key(query)]
        if not asked or k < 1:
            return [[] for _ in queries]
        workers = max(1, min(self._settings.parallel, len(asked)))
        with ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(lambda query: self._ask(query, k, filters), asked))
        answers = dict(zip(asked, found, strict=True))
        return [list(answers.get(query, [])) for query in queries]

    def body(self, query: str, k: int, filters: Filters | None) -> dict[str, Any]:
        """What is sent to ``_search``."""
        s, kept = self._settings, filters or Filters()
        conditions: list[dict[str, Any]] = []
        if kept.in_stock:
            conditions.append({"term": {s.in_stock: True}})
        limits = {"gte": kept.min_price, "lte": kept.max_price}
        limits = {name: value for name, value in limits.items() if value is not None}
        if limits:
            conditions.append({"range": {s.price: limits}})
        if kept.category:
            prefix = {"value": kept.category, "case_insensitive": True}
            conditions.append({"prefix": {s.category: prefix}})
        match = {"query": query, "fields": list(s.fields), "fuzziness": "AUTO"}
        return {
            "size": k,
            "_source": [s.id] if s.id is not None else False,
            "query": {"bool": {"must": [{"multi_match": match}], "filter": conditions}},
        }

    def _ask(self, query: str, k: int, filters: Filters | None) -> list[Hit]:
        s = self._settings
        url = f"{s.url.rstrip('/')}/{s.index}/_search"
        request = urllib.request.Request(
            url, json.dumps(self.body(query, k, filters)).encode(), self._headers, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=s.timeout) as response:
                content = response.read(MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            text = error.read(500).decode("utf-8", "replace").split("\n")[0]
            raise QAgentError(
                f"the search engine at {url} answered {error.code} ({text[:200]}); {_FIX}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise QAgentError(
                f"the search engine at {url} does not answer ({reason}); start it, or {_FIX}"
            ) from error
        return self._hits(content, url)[:k]

    def _hits(self, content: bytes, url: str) -> list[Hit]:
        s = self._settings
        try:
            if len(content) > MOST_BYTES:
                raise ValueError("more than 32 MB")
            answer = json.loads(content)
            if answer.get("timed_out") or answer.get("_shards", {}).get("failed"):
                raise ValueError("only a part of its shards answered")
            found = []
            for hit in answer["hits"]["hits"]:
                product = hit["_id"] if s.id is None else hit["_source"][s.id]
                if str(product) in self._known:
                    found.append(Hit(str(product), float(hit["_score"] or 0.0)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise QAgentError(
                f"the search engine at {url} gave an answer that is none of the _search API "
                f"({error}); {_FIX}"
            ) from error
        return sorted(found, key=lambda hit: (-hit.score, hit.product_id))


# ---------------------------------------------------------------- PostgreSQL


@dataclass(frozen=True, slots=True)
class PostgresSettings:
    """Where the products are. The password belongs in PGPASSWORD, ~/.pgpass or the variable."""

    dsn: str = ""  # as libpq takes it; empty for the PG* variables
    dsn_variable: str | None = None  # an environment variable that holds it
    table: str = "products"
    id: str = "product_id"
    text: Sequence[str] = ("title", "brand", "category")
    vector: str | None = None  # a tsvector column with an index, instead of ``text``
    language: str = "english"
    in_stock: str = "in_stock"
    price: str = "price"
    category: str = "category"
    timeout: float = 10.0  # seconds


class Postgres:
    """PostgreSQL's full text search: any of the words, ranked by ``ts_rank``."""

    def __init__(self, catalog: Catalog, settings: PostgresSettings) -> None:
        self.catalog = catalog
        self._known = frozenset(catalog.ids)
        self._settings = settings
        self._dsn = _from_environment(settings.dsn_variable) or settings.dsn
        self._connection: psycopg.Connection[Any] | None = None

    def search(
        self,
        queries: Sequence[str],
        k: int = 10,
        as_of: Sequence[datetime | None] | None = None,
        filters: Filters | None = None,
    ) -> list[list[Hit]]:
        """For each query at most ``k`` hits, the best first; the shop as it is now.

        All queries are asked in one statement.

        Raises:
            QAgentError: the database does not answer, or has no such table or column.
        """
        psycopg = _psycopg()
        asked = [query for query in dict.fromkeys(queries) if query_key(query)]
        if not asked or k < 1:
            return [[] for _ in queries]
        kept = filters or Filters()
        values = {
            # PostgreSQL's text holds no NUL.
            "queries": [query.replace("\0", " ") for query in asked],
            "k": k,
            "language": self._settings.language,
            "in_stock": kept.in_stock,
            "least": kept.min_price,
            "most": kept.max_price,
            "prefix": _like(kept.category) if kept.category else None,
        }
        try:
            rows = self._connected().execute(self._statement(), values).fetchall()
        except psycopg.Error as error:
            self.close()
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise QAgentError(f"PostgreSQL cannot search: {line}; start it, or {_FIX}") from error
        answers: dict[str, list[Hit]] = {query: [] for query in asked}
        for number, product, score in rows:
            if product in self._known:
                answers[asked[number - 1]].append(Hit(product, float(score)))
        return [list(answers.get(query, [])) for query in queries]

    def close(self) -> None:
        """Let go of the connection; the next search makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            seconds = max(2, round(self._settings.timeout))
            self._connection = _psycopg().connect(
                self._dsn,
                autocommit=True,
                connect_timeout=seconds,
                options=f"-c statement_timeout={round(self._settings.timeout * 1000)}"
                " -c default_transaction_read_only=on",
            )
        return self._connection

    def _statement(self) -> Any:
        from psycopg import sql

        s = self._settings

        def name(column: str) -> sql.Composable:
            return sql.SQL("t.") + sql.Identifier(column)

        if s.vector is not None:
            document = name(s.vector)
        else:
            parts = sql.SQL(", ").join(name(column) for column in s.text)
            document = sql.SQL("to_tsvector(%(language)s::regconfig, concat_ws(' ', {}))").format(
                parts
            )
        # plainto_tsquery joins the words by AND; a shop shows what has some of them, too.
        return sql.SQL(
            """SELECT q.number, found.id, found.score
            FROM (SELECT number, replace(plainto_tsquery(%(language)s::regconfig, query)::text,
                        '&', '|')::tsquery AS terms
                FROM unnest(%(queries)s::text[]) WITH ORDINALITY AS asked (query, number)) q
            CROSS JOIN LATERAL (
                SELECT {id}::text AS id, ts_rank({document}, q.terms, 1) AS score FROM {table} t
                WHERE {document} @@ q.terms
                  AND (NOT %(in_stock)s OR {in_stock})
                  AND (%(least)s::float8 IS NULL OR {price} >= %(least)s::float8)
                  AND (%(most)s::float8 IS NULL OR {price} <= %(most)s::float8)
                  AND (%(prefix)s::text IS NULL OR {category} ILIKE %(prefix)s::text)
                ORDER BY score DESC, {id}::text COLLATE "C" LIMIT %(k)s) found
            ORDER BY q.number, found.score DESC, found.id COLLATE "C" """
        ).format(
            id=name(s.id),
            document=document,
            table=sql.Identifier(*s.table.split(".")),
            in_stock=name(s.in_stock),
            price=name(s.price),
            category=name(s.category),
        )


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise QAgentError(
            "PostgreSQL needs psycopg; run: pip install 'qagent-mlx[postgres]'"
        ) from error
    return psycopg


def _like(prefix: str) -> str:
    """A LIKE pattern for texts that begin so."""
    for sign in ("\\", "%", "_"):
        prefix = prefix.replace(sign, "\\" + sign)
    return prefix + "%"
