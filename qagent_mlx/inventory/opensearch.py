"""OpenSearch, Elasticsearch, or any engine with their ``_search`` API."""

from __future__ import annotations

import base64
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from ..errors import QAgentError
from ..types import Hit
from .catalog import Catalog
from .external_engines import (
    REMEDY,
    EngineFailed,
    ExternalEngine,
    OpenSearchSettings,
    require_trust,
    secret_from_environment,
)
from .types import Filters

MAX_RESPONSE_BYTES = 32 << 20


def _check_url(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        is_plain = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
        is_plain = is_plain and parts.port != 0 and not (set(url) & set("?#\\") or " " in url)
    except ValueError:
        is_plain = False
    if not is_plain or not url.isascii() or not url.isprintable():
        raise QAgentError(
            f"search.engine: the url {url!r} is no http(s) address such as "
            f"https://localhost:9200; {REMEDY}"
        )


class _RefuseRedirects(urllib.request.HTTPRedirectHandler):
    """An engine has one address: the key is sent to no other, whatever it answers."""

    def redirect_request(self, *_arguments: Any) -> None:
        """Follow none; the answer is an error."""


@cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_RefuseRedirects)


class OpenSearch(ExternalEngine):
    """One ``_search`` request per query, several at once."""

    def __init__(self, catalog: Catalog, settings: OpenSearchSettings) -> None:
        super().__init__(catalog)
        url = settings.url.rstrip("/")
        _check_url(url)
        require_trust(url, settings.password_variable, settings.api_key_variable)
        self._settings = settings
        # What an index is called chooses no other route of the engine.
        self._url = f"{url}/{urllib.parse.quote(settings.index, safe=',*')}/_search"
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = secret_from_environment(settings.api_key_variable)
        password = secret_from_environment(settings.password_variable)
        if key is not None:
            self._headers["Authorization"] = f"ApiKey {key}"
        elif settings.user is not None:
            credentials = f"{settings.user}:{password or ''}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(credentials).decode()}"

    def _search(self, queries: Sequence[str], k: int, filters: Filters) -> list[list[Hit]]:
        with ThreadPoolExecutor(min(self._settings.parallel, len(queries))) as pool:
            return list(pool.map(lambda query: self._request(query, k, filters), queries))

    def body(self, query: str, k: int, filters: Filters) -> dict[str, Any]:
        """The JSON body of a ``_search`` request."""
        settings = self._settings
        conditions: list[dict[str, Any]] = []
        if filters.in_stock:
            conditions.append({"term": {settings.in_stock: True}})
        limits = {"gte": filters.min_price, "lte": filters.max_price}
        limits = {name: value for name, value in limits.items() if value is not None}
        if limits:
            conditions.append({"range": {settings.price: limits}})
        if filters.category:
            prefix = {"value": filters.category, "case_insensitive": True}
            conditions.append({"prefix": {settings.category: prefix}})
        match = {"query": query, "fields": list(settings.fields), "fuzziness": "AUTO"}
        return {
            "size": k,
            "_source": [settings.id] if settings.id is not None else False,
            "query": {"bool": {"must": [{"multi_match": match}], "filter": conditions}},
        }

    def _request(self, query: str, k: int, filters: Filters) -> list[Hit]:
        url, body = self._url, json.dumps(self.body(query, k, filters)).encode()
        request = urllib.request.Request(url, body, self._headers, method="POST")
        try:
            with _opener().open(request, timeout=self._settings.timeout) as response:
                content = response.read(MAX_RESPONSE_BYTES + 1)
        except urllib.error.HTTPError as error:
            text = error.read(500).decode("utf-8", "replace").split("\n")[0][:200]
            message = f"the search engine at {url} answered {error.code} ({text}); {REMEDY}"
            raise EngineFailed(message) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            message = (
                f"the search engine at {url} does not answer ({reason}); start it, or {REMEDY}"
            )
            raise EngineFailed(message) from error
        try:
            return self._parse_hits(content)[:k]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineFailed(
                f"the search engine at {url} gave an answer that is none of the _search API "
                f"({error}); {REMEDY}"
            ) from error

    def _parse_hits(self, content: bytes) -> list[Hit]:
        if len(content) > MAX_RESPONSE_BYTES:
            raise ValueError("more than 32 MB")
        response = json.loads(content)
        if response.get("timed_out") or response.get("_shards", {}).get("failed"):
            raise ValueError("only a part of its shards answered")
        field, known = self._settings.id, self.catalog.row_of
        hits = []
        for document in response["hits"]["hits"]:
            product = str(document["_id"] if field is None else document["_source"][field])
            if product in known:
                hits.append(Hit(product, float(document["_score"] or 0.0)))
        return sorted(hits, key=lambda hit: (-hit.score, hit.product_id))
