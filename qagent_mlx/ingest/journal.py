"""Apply what servers have acknowledged (`shop.journal`) to a shop's database, exactly once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby, islice
from typing import Any

from ..errors import QAgentError
from ..live.rules import ENTRY as RULES
from ..live.rules import store_rules
from ..live.shown import ENTRY as SHOWN
from ..live.shown import store_shown
from ..live.wishes import ENTRY as WISHES
from ..live.wishes import store_wishes
from ..shop.journal import Entry, Position, Record, pending, remove_stored
from ..shop.shop import Shop
from .catalog_changes import delete_products, upsert_products
from .ingest import append_in_transaction, register_functions
from .report import IngestReport

log = logging.getLogger("qagent.shop")

AT_ONCE = 500  # entries that one transaction stores, at most
_KEY = "journal "  # before a server's name, in the table ``meta``


def events_entry(events: Iterable[dict[str, Any]]) -> Entry:
    """An entry of events, with the fields of `append_events`."""
    return {
        "events": [
            {
                name: value.isoformat() if hasattr(value, "isoformat") else value
                for name, value in event.items()
                if value is not None
            }
            for event in events
        ]
    }


def products_entry(products: Iterable[Mapping[str, Any]]) -> Entry:
    """An entry of products, with the fields of `catalog_changes.upsert_products`."""
    return {"products": [dict(product) for product in products]}


def removal_entry(product: str) -> Entry:
    """An entry that takes a product out of the catalog."""
    return {"removed": [product]}


def stored_positions(shop: Shop) -> dict[str, Position]:
    """How far the journal of each server is stored."""
    rows = shop.connection.execute(
        "SELECT key, value FROM meta WHERE starts_with(key, ?)", [_KEY]
    ).fetchall()
    return {key.removeprefix(_KEY): Position.parse(value) for key, value in rows}


def apply_journal(shop: Shop) -> dict[str, Position]:
    """Store all entries of the journal that the database does not hold yet.

    Args:
        shop: Open for writing; a snapshot leaves the journal's files as they are.

    Returns:
        How far the journal of each server is stored now.
    """
    stored = stored_positions(shop)
    records = pending(shop.path, stored)
    while batch := list(islice(records, AT_ONCE)):
        register_functions(shop.connection)
        with shop.transaction(is_counted=False):
            apply_entries(shop, [record.entry for record in batch])
            _store_positions(shop, batch)
        stored |= {record.server: record.end for record in batch}
    ended = [] if shop.is_snapshot else remove_stored(shop.path, stored)
    if shop.store.is_shared:
        ended = []  # a server without files here may have some on its own machine
    if ended:
        with shop.transaction(is_counted=False) as connection:
            for server in ended:
                connection.execute("DELETE FROM meta WHERE key = ?", [_KEY + server])
                del stored[server]
    return stored


def apply_entries(shop: Shop, entries: Sequence[Entry]) -> list[IngestReport]:
    """Store entries in the order that they came; one report for each run of the same kind.

    Inside a transaction, after `register_functions`. What the database refuses, such as the
    removal of a product that is gone already, is left out: it was answered long ago.
    """
    reports = []
    for kind, run in groupby(filter(_is_valid, entries), lambda entry: next(iter(entry))):
        values = [value for entry in run for value in entry[kind]]
        try:
            reports.append(_KINDS[kind](shop, values))
        except QAgentError as error:
            log.warning("an entry of the journal could not be stored: %s", error)
    return reports


def _is_valid(entry: Entry) -> bool:
    """Whether an entry is one that this module has written: a stranger's shop may hold others."""
    if not entry:
        return False  # damaged; it was named when it was read
    kind, values = next(iter(entry.items()))
    valid = (
        len(entry) == 1
        and kind in _KINDS
        and isinstance(values, list)
        and all(isinstance(value, str if kind == "removed" else dict) for value in values)
        and (kind != "products" or all(isinstance(v.get("product_id"), str) for v in values))
    )
    if not valid:
        log.warning("an entry of the journal is of no known kind (%.20s); it is left out", kind)
    return valid


def _delete(shop: Shop, products: Sequence[str]) -> IngestReport:
    delete_products(shop, products)
    return IngestReport(accepted=len(products))


def _counted(
    store: Callable[[Shop, Sequence[Mapping[str, Any]]], int],
) -> Callable[[Shop, Any], IngestReport]:
    """A function that stores values and counts them, with a report."""
    return lambda shop, values: IngestReport(accepted=store(shop, values))


_KINDS: dict[str, Callable[[Shop, Any], IngestReport]] = {
    "events": append_in_transaction,
    "products": upsert_products,
    "removed": _delete,
    SHOWN: _counted(store_shown),
    RULES: _counted(store_rules),
    WISHES: _counted(store_wishes),
}


def _store_positions(shop: Shop, records: Sequence[Record]) -> None:
    for record in {record.server: record for record in records}.values():
        shop.set_meta(_KEY + record.server, str(record.end))
