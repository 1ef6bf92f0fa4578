"""Changes of single products: what clients of a server post, and what its journal keeps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from ..inventory.updates import remove_in_transaction
from ..shop.shop import Shop
from ..utils.database import fetch_dicts
from .ingest import append_in_transaction
from .report import IngestReport

_LAST_MOMENT = timedelta(milliseconds=1)  # before the end of the log, behind its last event


def upsert_products(shop: Shop, products: Iterable[Mapping[str, Any]]) -> IngestReport:
    """Store products, whole or in part, inside a transaction, after `register_functions`.

    Args:
        shop: Open for writing.
        products: Fields as in `columns.FIELDS`. A field that is missing stays as it is, one that is
            None is cleared. A product that is new needs a title. Without a ``time`` it holds from
            the end of the log on, so the next recommendation knows it.
    """
    merged = list(_by_id(products).values())
    stored = _stored(shop, [str(product["product_id"]) for product in merged])
    moment = _now(shop)
    rows = []
    for product in merged:
        old = stored.get(str(product["product_id"]), {})
        row = {**old, **{name: _text(name, value) for name, value in product.items()}}
        is_new = any(row.get(name) != old.get(name) for name in ("price", "stock"))
        if moment is not None and is_new:
            row.setdefault("time", moment)
        rows.append(row)
    return append_in_transaction(shop, rows, "products")


def delete_products(shop: Shop, products: Sequence[str]) -> None:
    """Take products out of the catalog inside a transaction; those that are gone are left out.

    Raises:
        QAgentError: none would be left; nothing is removed.
    """
    if known := list(_stored(shop, products)):
        remove_in_transaction(shop, known)


def _by_id(products: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The fields of each product; of several changes of one the last wins."""
    merged: dict[str, dict[str, Any]] = {}
    for product in products:
        merged.setdefault(str(product["product_id"]), {}).update(product)
    return merged


def _stored(shop: Shop, products: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The fields of products that the catalog has, as texts."""
    rows = fetch_dicts(
        shop.connection.execute(
            """SELECT product_id, title, brand, category, price, in_stock AS stock, attributes
            FROM products WHERE product_id IN (SELECT unnest(?))""",
            [list(products)],
        )
    )
    return {
        row["product_id"]: {name: _text(name, value) for name, value in row.items()} for row in rows
    }


def _text(name: str, value: Any) -> Any:
    if name == "attributes" and isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    if name == "price" and isinstance(value, (int, float)):
        return repr(float(value))
    if name == "stock" and value is not None:
        return str(bool(value)).lower()
    return value


def _now(shop: Shop) -> Any:
    """The last moment that recommendations of now see; None in a shop without events."""
    if not shop.connection.execute("SELECT 1 FROM events LIMIT 1").fetchone():
        return None
    return shop.end_of_log() - _LAST_MOMENT
