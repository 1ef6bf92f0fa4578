"""Map a file's columns to the fields of products and events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import QAgentError
from ..types import EVENT_TYPES
from ..utils.database import literal
from .report import ReadOptions

ALIASES: dict[str, dict[str, tuple[str, ...]]] = {
    "products": {
        "product_id": ("product_id", "sku", "item_id", "article_id", "parent_asin", "asin", "id"),
        "title": ("title", "name", "product_name", "product_title", "prod_name", "item_name"),
        "brand": ("brand", "product_brand", "manufacturer", "store"),
        "category": ("category", "category_path", "categories", "main_category"),
        "price": ("price",),
        "stock": ("stock", "in_stock", "availability"),
        "attributes": ("attributes",),
        "time": ("time", "valid_from"),
    },
    "events": {
        "user_id": ("user_id", "user", "customer_id", "visitor_id", "reviewer_id", "client_id"),
        "time": (
            "time",
            "timestamp",
            "ts",
            "event_time",
            "query_time",
            "datetime",
            "date",
            "t_dat",
            "unix_review_time",
        ),
        "type": ("type", "event_type", "event", "action"),
        "query": ("query", "search_query", "search_term", "keywords"),
        "product_id": ("product_id", "sku", "item_id", "article_id", "parent_asin", "asin"),
        "click_time": ("click_time",),
    },
}
REQUIRED = {"products": ("product_id", "title"), "events": ("user_id", "time")}
TYPE_NAMES = {
    **{t: t for t in EVENT_TYPES},
    "query": "search",
    "pageview": "view",
    "page_view": "view",
    "detail": "view",
    "addtocart": "cart",
    "add_to_cart": "cart",
    "atc": "cart",
    "buy": "purchase",
    "order": "purchase",
    "transaction": "purchase",
}


def parse_mapping(pairs: Iterable[str], kind: str) -> tuple[tuple[str, str], ...]:
    """``["title=name"]`` to pairs of field and column.

    Raises:
        QAgentError: a pair has no ``=``, or names a field that does not exist.
    """
    known = ALIASES[kind]
    made = []
    for pair in pairs:
        name, sign, column = pair.partition("=")
        if not sign or not column:
            raise QAgentError(f"--map {pair}: write it as field=column")
        attribute = kind == "products" and name.startswith("attributes.") and len(name) > 11
        if name not in known and not attribute:
            raise QAgentError(f"--map {pair}: {kind} have no field {name!r}, only {_list(known)}")
        made.append((name, column))
    return tuple(made)


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _columns(
    kind: str, path: Path, present: Sequence[str], options: ReadOptions
) -> list[tuple[str, str]]:
    """Which column feeds which field.

    Raises:
        QAgentError: a mapped or required column is missing.
    """
    mapping = dict(options.mapping)
    lower: dict[str, str] = {}
    bare: dict[str, str] = {}
    for name in present:
        lower.setdefault(name.strip().lower(), name)
        bare.setdefault(_bare(name), name)
    chosen, missing = [], []
    for name in [*ALIASES[kind], *(m for m in mapping if m.startswith("attributes."))]:
        if name in mapping:
            column = mapping[name]
            if column not in present:
                raise QAgentError(
                    f"{path} has no column {column!r} (for --map {name}={column}); "
                    f"its columns are {_list(present)}"
                )
            chosen.append((name, column))
            continue
        aliases = ALIASES[kind][name]
        found = [lower[a] for a in aliases if a in lower]
        # "visitorId" and "Visitor ID" are as good as visitor_id, where that is not there.
        found = found or [bare[b] for b in map(_bare, aliases) if b in bare]
        # A column that was mapped by hand to one field does not serve another one too.
        found = [c for c in found if c not in mapping.values()]
        if found:
            chosen.append((name, found[0]))
        elif name in REQUIRED[kind]:
            missing.append(name)
    if missing:
        maps = " ".join(f"--map {name}=COLUMN" for name in missing)
        which = "one" if len(missing) == 1 else "ones"
        raise QAgentError(
            f"{path} has no column for {' and '.join(missing)}; its columns are {_list(present)}; "
            f"name the right {which} with {maps}"
        )
    return chosen


def _bare(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _select(kind: str, chosen: Sequence[tuple[str, str]], source: str) -> str:
    """One SQL column a field, from ``source`` (an expression with a {} for the column)."""
    by_field = dict(chosen)
    parts = [
        f"{source.format(_quote(by_field[f]))} AS {f}" if f in by_field else f"NULL::VARCHAR AS {f}"
        for f in ALIASES[kind]
    ]
    extra = [(f, c) for f, c in chosen if f.startswith("attributes.")]
    if extra:
        pairs = ", ".join(f"{literal(f[11:])}, {source.format(_quote(c))}" for f, c in extra)
        at = list(ALIASES[kind]).index("attributes")
        base = f"coalesce(nullif(trim({parts[at].rsplit(' AS ', 1)[0]}), ''), '{{}}')"
        # What is no JSON is k=v; k=v, or nothing that `_attributes` will take.
        more = " || ".join(
            f"coalesce({literal(f';{name[11:]}=')} || replace({source.format(_quote(column))}, "
            "';', ','), '')"
            for name, column in extra
        )
        patched = f"json_merge_patch(try_cast({base} AS JSON), json_object({pairs}))::VARCHAR"
        parts[at] = (
            f"CASE WHEN {base} NOT LIKE '{{%' THEN {base} || {more} "
            f"WHEN json_valid({base}) THEN {patched} ELSE {base} END AS attributes"
        )
    return ", ".join(parts)
