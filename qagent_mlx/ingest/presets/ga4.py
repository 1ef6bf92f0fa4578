"""Google Analytics 4, as BigQuery exports it."""

from __future__ import annotations

import re

from ..parse_fields import text_or_null, user_or_null
from .preset import Extract, Preset
from .raw_files import RawFile, RawFiles, json_options, json_relation, parquet_relation
from .sql import event_types, ignored_names, merge_searches, name_persons

_TYPES = {
    "search": "search view_search_results",
    "impression": "view_item_list",
    "click": "select_item select_content",
    "view": "view_item",
    "cart": "add_to_cart",
    "purchase": "purchase ecommerce_purchase",
    "refund": "refund",
}
_PARAMETERS = (
    "STRUCT(key VARCHAR, value STRUCT(string_value VARCHAR, int_value VARCHAR, "
    "double_value VARCHAR))[]"
)
_LEVELS = ("item_category", *(f"item_category{level}" for level in range(2, 6)))
_ITEMS = ("item_id", "item_name", "item_brand", *_LEVELS, "price", "price_in_usd")
_ITEMS += ("item_list_index",)
_COLUMNS = {
    "event_timestamp": "VARCHAR",
    "event_name": "VARCHAR",
    "event_params": _PARAMETERS,
    "user_id": "VARCHAR",
    "user_pseudo_id": "VARCHAR",
    "items": f"STRUCT({', '.join(f'{name} VARCHAR' for name in _ITEMS)})[]",
    "ecommerce": "STRUCT(transaction_id VARCHAR)",
}


def _recognise(file: RawFile) -> str | None:
    if file.form not in ("json", "parquet"):
        return None
    names = ("event_name", "event_timestamp", "event_params", "user_pseudo_id")
    return "events" if file.has(*names) else None


def _read(raw: RawFiles) -> Extract:
    """Events of ``events_YYYYMMDD`` tables, as JSON lines or Parquet.

    ``event_timestamp`` (microseconds, UTC) is the time and ``event_name`` the type: search and
    view_search_results (with the parameter ``search_term``), select_item, view_item,
    add_to_cart, purchase; view_item_list is impressions. Each of ``items`` is an event of its
    ``item_id``. A person is ``user_id``; ``user_pseudo_id`` joins what one browser did before
    and after login. A purchase counts once per ``transaction_id`` and item; a refund without
    items takes its purchase back. All other events, such as page_view, are ignored.
    """
    notes = _load_events(raw)
    name_persons(raw, "e")
    ignored = ignored_names(raw, "SELECT coalesce(ignored, name) AS name FROM e WHERE type IS NULL")
    raw.load(
        "searches", "SELECT person AS user_id, time, term AS query FROM e WHERE type = 'search'"
    )
    ignored |= merge_searches(raw, "searches")
    raw.load(
        "items",
        """SELECT number, person, time, type, transaction_id, unnest(CASE WHEN len(items) > 0
            THEN list_transform(items, lambda item, place: {'item': item, 'place': place})
            ELSE [{'item': NULL, 'place': NULL}] END, max_depth := 2)
        FROM e WHERE type IN ('click', 'view', 'cart', 'purchase', 'impression')""",
    )
    ignored |= _take_back(raw)
    return Extract(
        events="""SELECT user_id, time, 'search' AS type, query, NULL AS product_id FROM searches
            UNION ALL SELECT person, time, type, NULL, item.item_id FROM items
            WHERE type <> 'impression'""",
        impressions="""SELECT person AS user_id, time, NULL AS query, item.item_id AS product_id,
                coalesce(try_cast(item.item_list_index AS INT), place) AS position,
                NULL AS query_id FROM items WHERE type = 'impression' AND item IS NOT NULL""",
        mentioned=f"""SELECT item.item_id AS product_id, arg_max(item.item_name, time) AS title,
                arg_max({text_or_null("item.item_brand")}, time) AS brand,
                arg_max({_category_path()}, time) AS category,
                arg_max(coalesce(item.price, item.price_in_usd), time) AS price
            FROM items WHERE item.item_id IS NOT NULL GROUP BY 1""",
        logins="FROM logins",
        returned="FROM returned",
        ignored=ignored,
        notes=notes,
    )


def _category_path() -> str:
    levels = ", ".join(text_or_null(f"item.{level}") for level in _LEVELS)
    return f"nullif(concat_ws(' > ', {levels}), '')"


def _load_events(raw: RawFiles) -> tuple[str, ...]:
    """The slim table ``e`` of all events; returns notes."""
    files, notes = _newest_exports(raw.of("events"))

    def parameter(key: str) -> str:
        value = f"list_filter(event_params, lambda p: p.key = '{key}')[1].value"
        texts = ", ".join(f"{value}.{name}" for name in ("string_value", "int_value"))
        return f"coalesce({texts}, {value}.double_value)"

    item = ", ".join(
        f"{name} := {text_or_null(f'i.{name}') if name == 'item_id' else f'i.{name}'}"
        for name in _ITEMS
    )
    chosen = f"""SELECT make_timestamp(try_cast(event_timestamp AS BIGINT)) AS time,
            event_name AS name, {user_or_null("user_id")} AS user_id,
            {user_or_null("user_pseudo_id")} AS device,
            coalesce({raw.mapped_type("event_name")}, names.type) AS kind,
            CASE WHEN kind = 'search' THEN {text_or_null(parameter("search_term"))} END AS term,
            CASE WHEN event_name = 'select_content' THEN CASE
                    WHEN {parameter("content_type")} = 'product'
                    THEN {text_or_null(parameter("item_id"))} END END AS content,
            CASE WHEN kind IN ('purchase', 'refund') THEN {
        text_or_null(f"coalesce(ecommerce.transaction_id, {parameter('transaction_id')})")
    } END AS transaction_id,
            CASE WHEN kind IS NOT NULL AND kind <> 'search'
                THEN list_transform(items, lambda i: struct_pack({item})) END AS items
        FROM ({{}}) LEFT JOIN {event_types(_TYPES)} ON names.name = event_name"""
    selects = " UNION ALL ".join(f"({chosen.format(select)})" for select in _relations(files))
    empty_item = ", ".join(f"{n} := {'content' if n == 'item_id' else 'NULL'}" for n in _ITEMS)
    raw.load(
        "e",
        f"""SELECT row_number() OVER () AS number, time, name, user_id, device, term,
            transaction_id,
            CASE WHEN content IS NOT NULL AND len(coalesce(items, [])) = 0
                THEN [struct_pack({empty_item})] ELSE items END AS items,
            CASE WHEN kind = 'search' AND term IS NULL THEN name || ' without search_term'
                WHEN name = 'select_content' AND content IS NULL
                THEN 'select_content of no product' END AS ignored,
            CASE WHEN ignored IS NULL THEN kind END AS type
        FROM ({selects})""",
    )
    return notes


def _newest_exports(files: list[RawFile]) -> tuple[list[RawFile], tuple[str, ...]]:
    """The files without intraday ones of days whose final table is there, and notes."""
    days = {match[1] for f in files if (match := re.search(r"events_(\d{8})(?!\d)", f.path.name))}
    early = [
        f
        for f in files
        if (match := re.search(r"events_(?:intraday|fresh)_(\d{8})", f.path.name))
        and match[1] in days
    ]
    names = ", ".join(f.path.name for f in early)
    notes = (f"{names}: not read, the day's final table is there",) if early else ()
    return [f for f in files if f not in early], notes


def _relations(files: list[RawFile]) -> list[str]:
    """SQL: the columns of `_COLUMNS` of each form of file, in their types."""
    relations: list[str] = []
    alike: dict[str, list[RawFile]] = {}
    for file in files:
        if file.form == "json":
            alike.setdefault(json_options(file), []).append(file)
    relations += [f"SELECT * FROM {json_relation(group, _COLUMNS)}" for group in alike.values()]
    for file in files:
        if file.form == "parquet":
            columns = ", ".join(_parquet_column(file, name) for name in _COLUMNS)
            relations.append(f"SELECT {columns} FROM {parquet_relation(file)}")
    return relations


def _parquet_column(file: RawFile, name: str) -> str:
    """SQL: a column in the type of `_COLUMNS`; un-annotated lists are ``list.element`` there."""
    if not file.has(name):
        return f"NULL::{_COLUMNS[name]} AS {name}"
    column, kind = file.column(name), str(file.record.get(name, ""))
    if kind.startswith("STRUCT(list"):
        column = f"list_transform({column}.list, lambda x: x.element)"
    if not _COLUMNS[name].startswith("STRUCT"):
        return f"{column}::VARCHAR AS {name}"
    # Casts go by the names of fields; those that a file lacks become NULL.
    return f"({column})::{_COLUMNS[name]} AS {name}"


def _take_back(raw: RawFiles) -> dict[str, int]:
    """Delete repeated and refunded purchases; returns their numbers."""
    raw.load(
        "bought",
        """SELECT rowid AS place_in_items, item.item_id AS product, transaction_id,
            row_number() OVER (PARTITION BY transaction_id, item.item_id ORDER BY time) AS nth
        FROM items WHERE type = 'purchase' AND transaction_id IS NOT NULL""",
    )
    raw.load("refunds", "SELECT transaction_id, items FROM e WHERE type = 'refund'")
    full = "SELECT transaction_id FROM refunds WHERE len(coalesce(items, [])) = 0"
    raw.load(
        "returned",
        f"""SELECT person AS user_id, time, item.item_id AS product_id FROM items
        WHERE type = 'purchase' AND transaction_id IN ({full})""",
    )
    ((repeated, refunded, partial, unknown),) = raw.rows(
        f"""SELECT (SELECT count(*) FROM bought WHERE nth > 1),
            (SELECT count(*) FROM bought WHERE nth = 1 AND transaction_id IN ({full})),
            (SELECT count(*) FROM refunds WHERE len(coalesce(items, [])) > 0),
            (SELECT count(*) FROM ({full}) WHERE transaction_id IS NULL
                OR transaction_id NOT IN (SELECT transaction_id FROM bought))"""
    )
    if repeated or refunded:
        raw.connection.execute(
            f"""DELETE FROM items WHERE rowid IN (SELECT place_in_items FROM bought
            WHERE nth > 1 OR transaction_id IN ({full}))"""
        )
    counts = {
        "repeated line of a transaction": repeated,
        "purchase that was refunded": refunded,
        "refund of single items": partial,
        "refund of an order that is not in these files": unknown,
    }
    return {name: count for name, count in counts.items() if count}


PRESET = Preset("ga4", _recognise, _read)
