"""Public logs of typed queries: MercadoLibre, KuaiSearch, AmazonQAC, Trivago, Best Buy."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

from ...errors import QAgentError
from ...utils.database import append_rows
from ..parse_fields import text_or_null, timestamp
from .catalog_sql import load_tables
from .preset import Extract, Preset
from .public_logs import is_exactly
from .raw_files import RawFile, RawFiles, lines_relation, parquet_relation
from .sql import merge_searches

CLOCK_START = "2024-01-01"  # of KuaiSearch, which has an order and no dates


def _mercadolibre_role(file: RawFile) -> str | None:
    if file.form != "json":
        return None
    if file.has("user_history"):
        return "histories"
    return "items" if file.has("item_id", "title", "domain_id", "category_id") else None


def _mercadolibre(raw: RawFiles) -> Extract:
    """``train_dataset.jl.gz``, ``test_dataset.jl.gz`` and ``item_data.jl.gz``.

    Each line is a user: ``user_history`` holds typed searches and views of items, at
    ``event_timestamp``. ``item_bought`` is a purchase a second after the last of them, since
    its time is not told. An item has ``item_id``, ``title``, ``price``, ``condition``, and the
    words of its ``domain_id`` as the category. Two sites, in Portuguese with BRL and in Spanish
    with MXN, are in one set: ``site`` is an attribute.
    """
    history = "STRUCT(event_info JSON, event_timestamp VARCHAR, event_type VARCHAR)[]"
    lines = [
        f"""SELECT '{file.path.name.split("_")[0]}-' || row_number() OVER () AS user_id,
            user_history, item_bought
        FROM {lines_relation(file, {"user_history": history, "item_bought": "VARCHAR"})}"""
        for file in raw.of("histories")
    ]
    none = f"""SELECT NULL::VARCHAR AS user_id, NULL::{history} AS user_history,
        NULL::VARCHAR AS item_bought WHERE false"""
    raw.load("users", " UNION ALL ".join([none, *lines]))
    raw.load(
        "acts",
        f"""SELECT user_id, event.event_type AS name, event.event_info->>'$' AS info,
            {timestamp("event.event_timestamp")} AS time
        FROM (SELECT user_id, unnest(user_history) AS event FROM users)""",
    )
    raw.load("searches", "SELECT user_id, time, info AS query FROM acts WHERE name = 'search'")
    ignored = merge_searches(raw, "searches")
    columns = dict.fromkeys(
        ("item_id", "title", "domain_id", "price", "category_id", "condition"), "VARCHAR"
    )
    items = " UNION ALL ".join(
        f"SELECT * FROM {lines_relation(file, columns)}" for file in raw.of("items")
    )
    return Extract(
        products=f"""SELECT item_id AS product_id, title, price,
            replace(regexp_replace(domain_id, '^ML[A-Z]-', ''), '_', ' ') AS category,
            json_object('condition', condition, 'site', category_id[:3])::VARCHAR AS attributes
        FROM ({items})"""
        if items
        else None,
        events=f"""SELECT user_id, time, 'search' AS type, query, NULL AS product_id FROM searches
            UNION ALL SELECT user_id, time, 'view', NULL, info FROM acts WHERE name = 'view'
            UNION ALL SELECT user_id, last + INTERVAL 1 SECOND, 'purchase', NULL, item_bought
            FROM users JOIN (SELECT user_id, max(time) AS last FROM acts GROUP BY 1) USING (user_id)
            WHERE {text_or_null("item_bought")} IS NOT NULL""",
        ignored=ignored,
        notes=(
            "times of purchases are derived: a second after the user's last event",
            "two sites are in this set, in two languages and currencies",
        ),
    )


def _kuaisearch_role(file: RawFile) -> str | None:
    if file.form != "json":
        return None
    if file.has("impressed_item_ids", "query"):
        return "recall"
    if file.has("target_item_id", "is_clicked", "query"):
        return "rank"
    return "items" if file.has("item_id", "item_title", "brand_name") else None


def _load_kuaisearch_searches(raw: RawFiles) -> None:
    """The table ``asked``: searches, with lists of what was shown, clicked and bought."""
    is_recall = bool(raw.of("recall"))
    lists = ("impressed_item_ids", "clicked_item_ids", "purchased_item_ids")
    ids = dict.fromkeys(lists, "VARCHAR[]")
    texts = dict.fromkeys(("user_id", "session_id", "time_index", "query"), "VARCHAR")
    if is_recall:
        rows = [f"SELECT * FROM {lines_relation(f, {**texts, **ids})}" for f in raw.of("recall")]
    else:
        flags = dict.fromkeys(("target_item_id", "is_clicked", "is_purchased"), "VARCHAR")
        clicked, bought = (
            f"list(target_item_id) FILTER (WHERE lower({flag}) IN ('1', 'true'))"
            for flag in ("is_clicked", "is_purchased")
        )
        rows = [
            f"""SELECT user_id, session_id, time_index, query, list(target_item_id)
                AS impressed_item_ids, {clicked} AS clicked_item_ids, {bought} AS purchased_item_ids
            FROM {lines_relation(file, {**texts, **flags})} GROUP BY ALL"""
            for file in raw.of("rank")
        ]
    nothing = ", ".join(f"NULL::{kind} AS {name}" for name, kind in {**texts, **ids}.items())
    raw.load(
        "asked",
        f"""SELECT *, TIMESTAMP '{CLOCK_START}' + to_seconds(try_cast(time_index AS BIGINT)) AS time
        FROM ({" UNION ALL BY NAME ".join([f"SELECT {nothing} WHERE false", *rows])})""",
    )


def _kuaisearch(raw: RawFiles) -> Extract:
    """``items.jsonl``, and ``recall.jsonl``, else ``rank.jsonl``, which holds the same searches.

    A row of recall is one search of ``query`` by ``user_id``; ``impressed_item_ids`` are
    impressions in order, ``clicked_item_ids`` and ``purchased_item_ids`` what came of it. A row
    of rank is one item of a search. ``time_index`` is an order and no time: seconds from
    2024 on stand for it. ``category_level1_name`` to 3 are the category. Users' and sellers'
    facts, relevance.jsonl and statistics are ignored.
    """
    _load_kuaisearch_searches(raw)
    levels = [f"category_level{n}_name" for n in (1, 2, 3)]
    columns = dict.fromkeys(("item_id", "item_title", "brand_name", *levels), "VARCHAR")
    items = " UNION ALL ".join(
        f"SELECT * FROM {lines_relation(f, columns)}" for f in raw.of("items")
    )
    path = ", ".join(f"CASE WHEN upper({n}) <> 'UNKNOWN' THEN {n} END" for n in levels)
    acts = " UNION ALL ".join(
        f"""SELECT user_id, time + INTERVAL {seconds} SECOND, '{kind}', query, unnest({column})
        FROM asked"""
        for column, kind, seconds in (
            ("clicked_item_ids", "click", 1),
            ("purchased_item_ids", "purchase", 2),
        )
    )
    return Extract(
        products=f"""SELECT item_id AS product_id, item_title AS title,
            CASE WHEN brand_name NOT IN ('其他/other', '其他', '无品牌', 'UNKNOWN')
                THEN brand_name END AS brand, nullif(concat_ws(' > ', {path}), '') AS category
        FROM ({items})"""
        if items
        else None,
        events=f"""SELECT user_id, time, 'search' AS type, query, NULL AS product_id FROM asked
            UNION ALL {acts}""",
        impressions="""SELECT user_id, time, query, unnest(impressed_item_ids) AS product_id,
            generate_subscripts(impressed_item_ids, 1) AS position, session_id AS query_id
        FROM asked""",
        notes=("time_index is an order, no time: taken as seconds from 2024 on",),
    )


def _amazonqac_role(file: RawFile) -> str | None:
    return "searches" if file.has("final_search_term", "session_id", "search_time") else None


def _amazonqac(raw: RawFiles) -> Extract:
    """Parquet files: ``final_search_term`` of ``session_id`` at ``search_time``.

    A session is a user. ``past_search_terms`` of the test part are searches, too. Prefixes and
    ``popularity`` are ignored. There are no products and no clicks, so no cases can be built;
    searches serve trends and what follows what.
    """
    raw.load(
        "searches",
        " UNION ALL ".join(
            f"""SELECT session_id::VARCHAR AS user_id, {timestamp("search_time::VARCHAR")} AS time,
            final_search_term::VARCHAR AS query
            FROM {parquet_relation(file)}"""
            for file in raw.of("searches")
            if file.form == "parquet"
        ),
    )
    for file in raw.of("searches"):
        if file.has("past_search_terms"):
            raw.connection.execute(
                f"""INSERT INTO searches SELECT session_id, {timestamp("term[2]::VARCHAR")},
                term[1]::VARCHAR FROM (SELECT session_id, unnest(past_search_terms) AS term
                    FROM {parquet_relation(file)})"""
            )
    return Extract(
        events="SELECT user_id, time, 'search' AS type, query, NULL AS product_id FROM searches",
        notes=("there are no products and no clicks in this set: no cases can be built of it",),
    )


def _trivago_role(file: RawFile) -> str | None:
    names = ("user_id", "session_id", "timestamp", "step", "action_type", "reference")
    if file.form == "csv" and file.has(*names):
        return "actions"
    return "hotels" if is_exactly(file, "item_id properties") else None


def _trivago(raw: RawFiles) -> Extract:
    """``train.csv``, ``test.csv`` and ``item_metadata.csv``.

    ``clickout item`` is a click on ``reference``, interactions with it and ``search for item``
    are views, ``search for destination`` and ``search for poi`` are searches of that place.
    ``impressions`` of a click-out are impressions, in order; the last of their ``prices`` is the
    hotel's. Hotels have no names: one is called by its number and a few of its ``properties``.
    Filters, sort orders and click-outs without reference are ignored.
    """
    names = "user_id session_id timestamp step action_type reference impressions prices"
    load_tables(raw, "actions", "actions", {name: (name,) for name in names.split()})
    load_tables(raw, "hotels", "hotels", {"item_id": ("item_id",), "properties": ("properties",)})
    raw.load(
        "actions",
        """SELECT *, make_timestamp(timestamp::BIGINT * 1000000) + to_milliseconds(step::BIGINT)
            AS time,
            CASE WHEN action_type IN ('search for destination', 'search for poi') THEN 'search'
                WHEN action_type = 'clickout item' AND reference IS NOT NULL THEN 'click'
                WHEN (starts_with(action_type, 'interaction item') OR action_type =
                    'search for item') AND regexp_full_match(reference, '\\d+') THEN 'view'
            END AS type FROM actions""",
    )
    ignored = raw.counts(
        "SELECT action_type, count(*) FROM actions WHERE type IS NULL GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    raw.load(
        "shown",
        """SELECT user_id, time, unnest(string_split(impressions, '|')) AS item,
            unnest(string_split(prices, '|')) AS price,
            generate_subscripts(string_split(impressions, '|'), 1) AS position
        FROM actions WHERE action_type = 'clickout item' AND impressions IS NOT NULL""",
    )
    telling = "regexp_matches(p, 'Star$|^(Hotel|Hostel|Resort|Motel)')"
    few = f"list_filter(string_split(properties, '|'), lambda p: {telling})"
    return Extract(
        products=f"""SELECT item AS product_id,
            concat_ws(' ', 'Hotel', item, nullif(array_to_string({few}, ', '), '')) AS title,
            price
        FROM (SELECT DISTINCT item FROM shown UNION SELECT reference FROM actions
            WHERE type IN ('click', 'view') UNION SELECT item_id FROM hotels)
        LEFT JOIN (SELECT item_id AS item, any_value(properties) AS properties FROM hotels
            GROUP BY 1) USING (item)
        LEFT JOIN (SELECT item, arg_max(price, time) AS price FROM shown GROUP BY 1)
            USING (item)""",
        events="""SELECT user_id, time, type, CASE WHEN type = 'search' THEN reference END AS query,
            CASE WHEN type <> 'search' THEN reference END AS product_id
        FROM actions WHERE type IS NOT NULL""",
        impressions="""SELECT user_id, time, NULL AS query, item AS product_id, position,
            NULL AS query_id FROM shown""",
        ignored=ignored,
        notes=("hotels have no names: they are called by their numbers",),
    )


def _bestbuy_role(file: RawFile) -> str | None:
    if is_exactly(file, "user sku category query click_time query_time"):
        return "clicks"
    if file.form == "xml" and "<products" in str(file.record.get("head")):
        return "products"
    is_archive = file.path.name.startswith("product_data") and ".tar" in file.path.name
    return "archive" if is_archive else None


def _bestbuy_big(raw: RawFiles) -> Extract:
    """``train.csv`` (user, sku, category, query, click_time, query_time) and product XML.

    A row is a search of ``query`` at ``query_time`` and a click on ``sku`` at ``click_time``;
    rows of one search are one. Products are those that were clicked: from
    ``product_data/products/*.xml`` (or product_data.tar.gz) ``sku``, ``name``,
    ``manufacturer``, the ``categoryPath`` without its root, ``salePrice`` else
    ``regularPrice``, ``onlineAvailability`` or ``inStoreAvailability``, color, type, class.
    Reviews, texts and all other products are ignored.
    """
    names = "user sku category query click_time query_time"
    load_tables(raw, "clicks", "clicks", {name: (name,) for name in names.split()})
    _load_bestbuy_products(raw)
    times = f"{timestamp('query_time')} AS asked, {timestamp('click_time')} AS clicked"
    ((products,),) = raw.rows("SELECT count(*) FROM catalog")
    return Extract(
        products="SELECT * FROM catalog" if products else None,
        events=f"""WITH c AS (SELECT *, {times} FROM clicks)
            SELECT DISTINCT "user" AS user_id, asked AS time, 'search' AS type, query,
                NULL AS product_id FROM c
            UNION ALL SELECT "user", clicked, 'click', query, sku FROM c""",
        notes=("of the products, those that were clicked are read",) if products else (),
    )


_PRODUCT = ("product_id", "title", "brand", "category", "price", "stock", "attributes")


def _load_bestbuy_products(raw: RawFiles) -> None:
    """The table ``catalog`` of the products that were clicked."""
    declared = ", ".join(f"{name} VARCHAR" for name in _PRODUCT)
    raw.connection.execute(f"CREATE OR REPLACE TABLE catalog ({declared})")
    wanted = {sku for (sku,) in raw.rows("SELECT DISTINCT sku FROM clicks")}
    append_rows(raw.connection, "catalog", _bestbuy_products(raw, wanted))


def _bestbuy_products(raw: RawFiles, wanted: set[str]) -> Iterator[Sequence[str | None]]:
    """The first row of each product that is wanted."""
    for path, stream in _product_files(raw):
        try:
            for _, element in ElementTree.iterparse(stream):
                if element.tag == "product":
                    if (element.findtext("sku") or "") in wanted:
                        wanted.discard(element.findtext("sku") or "")
                        yield _bestbuy_product(element)
                    element.clear()
        except ElementTree.ParseError as error:
            raise QAgentError(f"{path}: damaged XML ({error}); get it again") from error


def _product_files(raw: RawFiles) -> Iterator[tuple[Path | str, IO[bytes]]]:
    for file in raw.of("products"):
        with file.readable.open("rb") as stream:
            yield file.path, stream
    for file in raw.of("archive"):
        with tarfile.open(file.readable) as archive:
            for member in archive:
                if member.isfile() and "/products/" in member.name and member.name.endswith(".xml"):
                    content = archive.extractfile(member)
                    if content is not None:
                        yield member.name, content


def _bestbuy_product(element: ElementTree.Element) -> tuple[str | None, ...]:
    def text(name: str) -> str | None:
        value = element.findtext(name)
        return value.strip() if value and value.strip() else None

    path = [name.text or "" for name in element.findall("categoryPath/category/name")]
    is_there = "true" in (text("onlineAvailability"), text("inStoreAvailability"))
    known = text("onlineAvailability") or text("inStoreAvailability")
    facts = [f"{n}={v.replace(';', ',')}" for n in ("color", "type", "class") if (v := text(n))]
    return (
        text("sku"),
        text("name"),
        text("manufacturer"),
        " > ".join(path[1:] if path[:1] == ["Best Buy"] else path),
        text("salePrice") or text("regularPrice"),
        str(is_there).lower() if known else None,
        "; ".join(facts),
    )


PRESETS = (
    Preset("mercadolibre", _mercadolibre_role, _mercadolibre, needs_new_shop=True),
    Preset("kuaisearch", _kuaisearch_role, _kuaisearch, needs_new_shop=True),
    Preset("amazonqac", _amazonqac_role, _amazonqac, needs_new_shop=True),
    Preset("trivago", _trivago_role, _trivago, needs_new_shop=True),
    Preset("bestbuy-big", _bestbuy_role, _bestbuy_big, needs_new_shop=True),
)
