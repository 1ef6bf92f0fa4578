"""Map a file's columns to the fields of products and events."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from ..types import EVENT_TYPES
from ..utils.database import literal
from ..utils.settings import SettingError
from .report import Kind, ReadOptions

# Fields, and the names that their columns usually have, the best first.
FIELDS: dict[str, dict[str, str]] = {
    "products": {
        "product_id": "product_id sku item_id article_id parent_asin asin id",
        "title": "title name product_name product_title prod_name item_name",
        "brand": "brand product_brand manufacturer store",
        "category": "category category_path categories main_category",
        "price": "price",
        "stock": "stock in_stock availability",
        "attributes": "attributes",
        "time": "time valid_from",
    },
    "events": {
        "user_id": "user_id user customer_id visitor_id reviewer_id client_id",
        "time": "time timestamp ts event_time query_time datetime date t_dat unix_review_time",
        "type": "type event_type event action",
        "query": "query search_query search_term keywords",
        "product_id": "product_id sku item_id article_id parent_asin asin",
        "click_time": "click_time",
    },
}
REQUIRED = {"products": ("product_id", "title"), "events": ("user_id", "time")}
ATTRIBUTE = "attributes."  # begins the fields that a mapping adds to a product's attributes
_OTHER_TYPE_NAMES = {
    "search": "query",
    "view": "pageview page_view detail",
    "cart": "addtocart add_to_cart atc",
    "purchase": "buy order transaction",
}
TYPE_NAMES = {name: name for name in EVENT_TYPES} | {
    name: event_type for event_type, names in _OTHER_TYPE_NAMES.items() for name in names.split()
}


def parse_mapping(pairs: Iterable[str], kind: Kind) -> tuple[tuple[str, str], ...]:
    """``["title=name"]`` to pairs of field and column.

    Raises:
        SettingError: a pair has no ``=``, or names a field that does not exist.
    """
    fields = FIELDS[kind]
    mapping = []
    for pair in pairs:
        name, _, column = pair.partition("=")
        if not column:
            raise SettingError("mapping", f"{pair!r} cannot be read: write it as field=column")
        is_attribute = kind == "products" and name.startswith(ATTRIBUTE) and name != ATTRIBUTE
        if name not in fields and not is_attribute:
            raise SettingError(
                "mapping", f"{pair!r}: {kind} have no field {name!r}, only {', '.join(fields)}"
            )
        mapping.append((name, column))
    return tuple(mapping)


def choose_columns(
    kind: Kind, path: Path, columns: Sequence[str], options: ReadOptions
) -> dict[str, str]:
    """Which column of a file feeds which field: the mapped one, or one of the usual names.

    Raises:
        SettingError: a mapped or required column is missing.
    """
    mapping = dict(options.mapping)
    by_name: dict[str, str] = {}
    by_letters: dict[str, str] = {}  # "visitorId" and "Visitor ID" are as good as visitor_id
    for column in columns:
        by_name.setdefault(column.strip().lower(), column)
        by_letters.setdefault(_letters(column), column)
    chosen: dict[str, str] = {}
    for field, names in FIELDS[kind].items():
        usual = [by_name[n] for n in names.split() if n in by_name]
        usual = usual or [by_letters[n] for n in map(_letters, names.split()) if n in by_letters]
        # A column that was mapped by hand to one field does not serve another one too.
        free = [column for column in usual if column not in mapping.values()]
        if field in mapping:
            chosen[field] = mapping[field]
        elif free:
            chosen[field] = free[0]
    chosen |= {field: column for field, column in mapping.items() if field.startswith(ATTRIBUTE)}
    names = ", ".join(columns)
    for field, column in mapping.items():
        if column not in columns:
            raise SettingError(
                "mapping",
                f"{field}={column}: {path} has no column {column!r}; its columns are {names}",
            )
    missing = [field for field in REQUIRED[kind] if field not in chosen]
    if missing:
        needed = " and ".join(f"{field}=COLUMN" for field in missing)
        raise SettingError(
            "mapping",
            f"{needed} {'is' if len(missing) == 1 else 'are'} missing: {path} has no column for "
            f"{' and '.join(missing)}; its columns are {names}",
        )
    return chosen


def usual_fields(kind: Kind, columns: Iterable[str]) -> set[str]:
    """The fields that columns with these names serve without a mapping."""
    letters = {_letters(column) for column in columns}
    return {
        field
        for field, names in FIELDS[kind].items()
        if not letters.isdisjoint(map(_letters, names.split()))
    }


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def quote(name: str) -> str:
    """A column's name as SQL."""
    return '"' + name.replace('"', '""') + '"'


def select_fields(kind: Kind, fields: Collection[str]) -> str:
    """SQL for each field of a kind, from columns that are called as those ``fields`` that exist."""
    sql = {f: quote(f) if f in fields else "NULL::VARCHAR" for f in FIELDS[kind]}
    mapped = [field for field in fields if field.startswith(ATTRIBUTE)]
    if mapped:
        sql["attributes"] = _merged_attributes(sql["attributes"], mapped)
    return ", ".join(f"{expression} AS {field}" for field, expression in sql.items())


def _merged_attributes(attributes: str, mapped: Sequence[str]) -> str:
    """SQL for the file's attributes with the mapped columns added, in the form that they have."""
    names = {field: field.removeprefix(ATTRIBUTE) for field in mapped}
    base = f"coalesce(nullif(trim({attributes}), ''), '{{}}')"
    pairs = ", ".join(f"{literal(name)}, {quote(field)}" for field, name in names.items())
    patched = f"json_merge_patch(try_cast({base} AS JSON), json_object({pairs}))::VARCHAR"
    # Text that is no JSON is k=v; k=v, or nothing that `parse_fields.attributes` will take.
    appended = " || ".join(
        f"coalesce({literal(f';{name}=')} || replace({quote(field)}, ';', ','), '')"
        for field, name in names.items()
    )
    return (
        f"CASE WHEN {base} NOT LIKE '{{%' THEN {base} || {appended} "
        f"WHEN json_valid({base}) THEN {patched} ELSE {base} END"
    )
