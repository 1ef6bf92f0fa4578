"""Map a file's columns to the fields of products and events."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from ..types import EVENT_TYPES
from ..utils.database import identifier, literal
from ..utils.settings import SettingError
from ..utils.text import clean
from .options import Kind, ReadOptions
from .parse_fields import text_or_null

# Fields, and the names that their columns usually have, the best first.
_IDS = """product_id sku item_id article_id product_sku item_sku product_code item_code
    article_number product_number item_number variant_sku artikelnummer artikelnr artikel_nr
    artikel_id produkt_id produktnummer reference_produit id_produit code_article id_producto
    parent_asin asin"""
_USERS = """user_id user customer_id visitor_id reviewer_id client_id customer uid visitor
    user_token anonymous_id user_pseudo_id device_id cookie_id member_id account_id shopper_id
    customer_email email kunde kunden_id kundennummer kunden_nr benutzer nutzer besucher id_client
    utilisateur client id_cliente cliente usuario"""
_TIMES = """time timestamp ts event_time query_time datetime date_time event_timestamp created_at
    occurred_at order_date purchase_date event_date server_time created date t_dat
    unix_review_time zeit zeitpunkt zeitstempel datum date_heure heure fecha_hora fecha"""
_QUERIES = """query search_query search_term keywords search_terms user_query keyword
    search_keyword search_phrase search_text query_text search_string search suchbegriff
    suchanfrage suche recherche requete busqueda consulta"""
FIELDS: dict[str, dict[str, str]] = {
    "products": {
        "product_id": f"{_IDS} id handle reference referencia codigo ean gtin",
        "title": """title name product_name product_title prod_name item_name bezeichnung
            artikelbezeichnung produktname artikelname produktbezeichnung titel
            libelle nom_produit nom nombre_producto nombre titulo titre artikel""",
        "brand": """brand product_brand manufacturer brands brand_name vendor maker marke
            hersteller marque fabricant marca fabricante""",
        "category": """category category_path categories main_category product_category
            category_name product_type department kategorie kategorien produktkategorie
            warengruppe produktgruppe categorie rubrique categoria""",
        "price": """price current_price final_price regular_price unit_price list_price price_eur
            price_usd preis verkaufspreis vk_preis bruttopreis prix_ttc prix precio sale_price""",
        "stock": """stock in_stock availability is_in_stock stock_status stock_quantity
            inventory_quantity inventory stock_qty quantity qty available lager lagerbestand
            bestand auf_lager verfugbar verfuegbar verfugbarkeit verfuegbarkeit en_stock
            disponibilite quantite disponible disponibilidad existencias cantidad""",
        "attributes": "attributes",
        "time": "time valid_from",
        "aliases": "aliases",
    },
    "events": {
        "user_id": _USERS,
        "time": _TIMES,
        "time_of_day": "time_of_day hour time uhrzeit stunde heure hora",
        "type": """type event_type event action event_name action_name action_type ereignis
            aktion evenement evento""",
        "query": _QUERIES,
        "product_id": f"{_IDS} product item article object_id content_id artikel produkt produit",
        "click_time": "click_time",
        "recommendation_id": "recommendation_id",
        "position": "recommendation_position position",
    },
    "impressions": {
        "user_id": _USERS,
        "time": _TIMES,
        "time_of_day": "time_of_day hour time uhrzeit stunde heure hora",
        "query": _QUERIES,
        "product_id": f"{_IDS} product item article object_id content_id artikel produkt produit",
        "position": "position rank ordinal",
        "query_id": "query_id search_id",
    },
    "recommendations": {
        "recommendation_id": "recommendation_id query_id",
        "user_id": _USERS,
        "time": _TIMES,
        "time_of_day": "time_of_day hour time uhrzeit stunde heure hora",
        "query": _QUERIES,
        "position": "position rank ordinal",
        "propensity": "propensity probability",
        "source": "source",
        "policy": "policy",
        "version": "version policy_version",
        "experiment": "experiment",
        "arm": "arm",
    },
}
REQUIRED = {
    "products": ("product_id",),
    "events": ("user_id", "time"),
    "impressions": ("user_id", "time", "product_id"),
    "recommendations": ("recommendation_id", "user_id", "time", "query", "position"),
}
_PROFILED_ROWS = 20_000
_DAY = r"(\d{1,4}[-./]\d{1,2}[-./]\d{1,4}|(19|20)\d{6})([ T]00:00(:00(\.0+)?)?Z?)?"
_TIME_OF_DAY = r"(?i)\d{1,2}(:\d{2}){1,2}([.,]\d+)?( ?[ap]m)?(Z|[+-]\d{2}:?\d{2})?"
_CURRENCY = re.compile(
    r"[\s_]*[(\[]?\s*(in\s+)?([€$£¥]|EUR|USD|GBP|CHF|JPY|SEK|NOK|DKK|PLN|CZK|CAD|AUD)\s*[)\]]?\s*$",
    re.IGNORECASE,
)
ATTRIBUTE = "attributes."  # begins the fields that a mapping adds to a product's attributes
_OTHER_TYPE_NAMES = {
    "search": "query searched searches site_search search_results view_search_results suche "
    "recherche busqueda",
    "view": "pageview page_view detail views viewed product_view product_viewed view_item "
    "item_view product_detail detail_view view_product ansicht vue vista",
    "click": "clicks clicked product_click product_clicked click_through select_item item_click "
    "on_click klick clic",
    "cart": "addtocart add_to_cart atc added_to_cart product_added cart_add add_to_basket "
    "addtobasket basket add_cart warenkorb panier carrito",
    "purchase": "buy order transaction purchases purchased bought ordered order_completed "
    "checkout_completed sale sold kauf bestellung achat commande compra pedido",
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


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """How many of a column's first values there are, and how many are only a part of a moment."""

    filled: int = 0
    days: int = 0  # dates without a time of day, or at midnight
    hours: int = 0  # times of day without a date
    numbers: int = 0  # of one or two digits, such as an hour

    @property
    def moments(self) -> int:
        """Values that are neither only a day nor only a time of day."""
        return self.filled - self.days - self.hours - self.numbers


Profile = Callable[[Sequence[str]], Mapping[str, ColumnFacts]]


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column feeds which field, and what was decided where several could."""

    chosen: dict[str, str]  # by field
    notes: tuple[str, ...] = ()


def choose_columns(
    kind: Kind,
    path: Path,
    columns: Sequence[str],
    options: ReadOptions,
    profile: Profile | None = None,
) -> Columns:
    """Which column of a file feeds which field: the mapped one, or one of the usual names.

    Where several could, the first of the usual names does that holds any value; of times the one
    with a time of day, or a date and a time of day together.

    Args:
        profile: Gives facts of some columns; called only where there is a choice.

    Raises:
        SettingError: a mapped or required column is missing.
    """
    mapping = dict(options.mapping)
    candidates = _candidates(kind, columns, mapping)
    chosen: dict[str, str] = {}
    notes: list[str] = []
    facts: Mapping[str, ColumnFacts] = {}
    compared = {c for names in candidates.values() if len(names) > 1 for c in names}
    hours = candidates.pop("time_of_day", [])
    if hours and candidates.get("time"):
        compared |= {*hours, *candidates["time"]}
    if profile is not None and compared:
        facts = profile([column for column in columns if column in compared])
    for field, names in candidates.items():
        if field == "time" and facts:
            chosen |= _choose_times(names, hours, facts, notes)
        elif names:
            chosen[field] = _choose(field, names, facts, notes)
    chosen |= mapping
    _check_columns(kind, path, columns, mapping, chosen)
    return Columns(chosen, tuple(notes))


def _candidates(
    kind: Kind, columns: Sequence[str], mapping: Mapping[str, str]
) -> dict[str, list[str]]:
    """The columns that may serve each field that is not mapped, the best first."""
    by_name: dict[str, str] = {}
    by_letters: dict[str, str] = {}  # "visitorId" and "Visitor ID" are as good as visitor_id
    for column in columns:
        by_name.setdefault(column.strip().lower(), column)
        by_letters.setdefault(_letters(column), column)
    for name, column in _without_currency(columns).items():
        by_letters.setdefault(name, column)
    candidates = {}
    for field, text in FIELDS[kind].items():
        names = text.split()
        exact = [by_name[name] for name in names if name in by_name]
        near = [by_letters[name] for name in map(_letters, names) if name in by_letters]
        # A column that was mapped by hand to one field does not serve another one too.
        free = [c for c in dict.fromkeys(exact + near) if c not in mapping.values()]
        if field not in mapping:
            candidates[field] = free
    return candidates


def _choose(
    field: str, names: Sequence[str], facts: Mapping[str, ColumnFacts], notes: list[str]
) -> str:
    """The first column that holds any value."""
    filled = [name for name in names if name not in facts or facts[name].filled] or list(names)
    best, *others = filled
    empty = [name for name in names[: names.index(best)] if name not in filled]
    if empty:
        notes.append(f"{field} is read from {best!r}, as {_listed(empty)} is empty")
    elif others:
        notes.append(f"{field} is read from {best!r}, not from {_listed(others)}")
    return best


def _choose_times(
    names: Sequence[str], hours: Sequence[str], facts: Mapping[str, ColumnFacts], notes: list[str]
) -> dict[str, str]:
    """The column of the moment; or one of the day and, in another, one of the time of day."""

    def is_time_of_day(name: str) -> bool:
        known = facts.get(name, ColumnFacts())
        return known.filled > 0 and known.hours == known.filled

    def is_hour(name: str) -> bool:
        known = facts.get(name, ColumnFacts())
        return known.filled > 0 and known.numbers == known.filled and name not in names

    dated = [name for name in names if not is_time_of_day(name)]
    if not dated:
        return {"time": names[0]} if names else {}
    exact = [name for name in dated if name not in facts or facts[name].moments > 0]
    if exact:
        best = _choose("time", exact, facts, notes)
        passed_over = [name for name in dated[: dated.index(best)] if facts[name].filled]
        if passed_over:
            lacking = f"as {_listed(passed_over)} has no time of day"
            notes.append(f"time is read from {best!r}, {lacking}")
        return {"time": best}
    best = _choose("time", dated, facts, notes)
    parts = [name for name in (*hours, *names) if is_time_of_day(name) or is_hour(name)]
    if not parts:
        return {"time": best}
    notes.append(f"time is read from {best!r} and {parts[0]!r} together")
    return {"time": best, "time_of_day": parts[0]}


def _check_columns(
    kind: Kind,
    path: Path,
    columns: Sequence[str],
    mapping: Mapping[str, str],
    chosen: Mapping[str, str],
) -> None:
    names = shown_columns(columns)
    for field, column in mapping.items():
        if column not in columns:
            raise SettingError(
                "mapping",
                f"{field}={column}: {path} has no column {column!r}; its columns are {names}",
            )
    missing = [field for field in REQUIRED[kind] if field not in chosen]
    # Without titles a file may change products that are known, but it must say something of them.
    if kind == "products" and set(chosen) <= {"product_id", "time"}:
        missing.append("title")
    if missing:
        needed = " and ".join(f"{field}=COLUMN" for field in missing)
        raise SettingError(
            "mapping",
            f"{needed} {'is' if len(missing) == 1 else 'are'} missing: {path} has no column for "
            f"{' and '.join(missing)}; its columns are {names}",
        )


def shown_columns(columns: Iterable[str]) -> str:
    """Names of columns for a message, long ones cut."""
    names = [clean(column) for column in columns]
    shown = [name if len(name) <= 60 else f"{name[:60]}…" for name in names[:50]]
    return ", ".join(shown) + (f" and {len(names) - 50} more" if len(names) > 50 else "")


def _listed(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names))


def profile_columns(
    connection: duckdb.DuckDBPyConnection,
    relation: str,
    parameters: Sequence[Any],
    texts: Mapping[str, str],
) -> dict[str, ColumnFacts]:
    """Facts of columns from the first rows of a relation.

    Args:
        relation: Behind FROM, with its parameters.
        texts: For each column SQL that gives it as text.
    """
    values = ", ".join(
        f"{text_or_null(f'({text})')} AS {identifier(name)}" for name, text in texts.items()
    )
    counts = ", ".join(
        f"count({identifier(name)}), "
        + ", ".join(
            f"count(*) FILTER (regexp_full_match({identifier(name)}, '{pattern}'))"
            for pattern in (_DAY, _TIME_OF_DAY, r"\d{1,2}(\.0)?")
        )
        for name in texts
    )
    (row,) = connection.execute(
        f"SELECT {counts} FROM (SELECT {values} FROM {relation} LIMIT {_PROFILED_ROWS})",
        list(parameters),
    ).fetchall()
    return {name: ColumnFacts(*row[4 * i : 4 * i + 4]) for i, name in enumerate(texts)}


def usual_fields(kind: Kind, columns: Iterable[str]) -> set[str]:
    """The fields that columns with these names serve without a mapping."""
    letters = {_letters(column) for column in columns}
    return {
        field
        for field, names in FIELDS[kind].items()
        if not letters.isdisjoint(map(_letters, names.split()))
    }


def _without_currency(columns: Sequence[str]) -> dict[str, str]:
    """Columns by the letters that are left of "Price (EUR)"; prices in two currencies are none."""
    bare: dict[str, list[str]] = {}
    for column in columns:
        if (name := _CURRENCY.sub("", column)) != column:
            bare.setdefault(_letters(name), []).append(column)
    return {name: same[0] for name, same in bare.items() if len(same) == 1}


def _letters(name: str) -> str:
    bare = unicodedata.normalize("NFKD", name.lower())
    return "".join(c for c in bare if c.isalnum())


def select_fields(kind: Kind, fields: Collection[str]) -> str:
    """SQL for each field of a kind, from columns that are called as those ``fields`` that exist."""
    sql = {f: identifier(f) if f in fields else "NULL::VARCHAR" for f in FIELDS[kind]}
    mapped = [field for field in fields if field.startswith(ATTRIBUTE)]
    if mapped:
        sql["attributes"] = _merged_attributes(sql["attributes"], mapped)
    return ", ".join(f"{expression} AS {field}" for field, expression in sql.items())


def _merged_attributes(attributes: str, mapped: Sequence[str]) -> str:
    """SQL for the file's attributes with the mapped columns added, in the form that they have."""
    names = {field: field.removeprefix(ATTRIBUTE) for field in mapped}
    base = f"coalesce(nullif(trim({attributes}), ''), '{{}}')"
    pairs = ", ".join(f"{literal(name)}, {identifier(field)}" for field, name in names.items())
    patched = f"json_merge_patch(try_cast({base} AS JSON), json_object({pairs}))::VARCHAR"
    # Text that is no JSON is k=v; k=v, or nothing that `parse_fields.attributes` will take.
    appended = " || ".join(
        f"coalesce({literal(f';{name}=')} || replace({identifier(field)}, ';', ','), '')"
        for field, name in names.items()
    )
    return (
        f"CASE WHEN {base} NOT LIKE '{{%' THEN {base} || {appended} "
        f"WHEN json_valid({base}) THEN {patched} ELSE {base} END"
    )
