"""Public logs of behaviour without typed queries: RetailRocket, OTTO, H&M, Diginetica."""

from __future__ import annotations

from .catalog_sql import load_tables
from .preset import Extract, Preset
from .raw_files import RawFile, RawFiles, lines_relation
from .sql import event_types

_RETAILROCKET = {"view": "view", "cart": "addtocart", "purchase": "transaction"}
_OTTO = {"view": "clicks", "cart": "carts", "purchase": "orders"}


def is_exactly(file: RawFile, columns: str) -> bool:
    """Whether a table has these columns, divided by blanks, and no others."""
    return file.form == "csv" and [c.lower() for c in file.columns] == columns.lower().split()


def _retailrocket_role(file: RawFile) -> str | None:
    for role, columns in (
        ("events", "timestamp visitorid event itemid transactionid"),
        ("properties", "timestamp itemid property value"),
        ("categories", "categoryid parentid"),
    ):
        if is_exactly(file, columns):
            return role
    return None


def _retailrocket(raw: RawFiles) -> Extract:
    """``events.csv``, ``item_properties_part*.csv`` and ``category_tree.csv``.

    ``visitorid`` did ``event`` (view, addtocart, transaction) with ``itemid`` at ``timestamp``
    (milliseconds, UTC). Of the properties, of which only these are not hashed, the newest
    ``categoryid`` and ``available`` count; price is property 790, by convention. There is no
    text: items are called by numbers, and derived queries are numbers of categories. Items of
    events that have no properties are products, too. All other properties are ignored.
    """
    _load_plain(raw, "log", "events", "timestamp visitorid event itemid")
    wanted = "property IN ('categoryid', 'available', '790')"
    _load_plain(raw, "facts", "properties", "timestamp itemid property value", wanted)
    _load_plain(raw, "tree", "categories", "categoryid parentid")
    raw.load(
        "paths",
        """WITH RECURSIVE up AS (
            SELECT categoryid AS id, categoryid::VARCHAR AS path,
                split_part(parentid, '.', 1) AS parent, 1 AS depth FROM tree
            UNION ALL SELECT up.id, t.categoryid || ' > ' || up.path,
                split_part(t.parentid, '.', 1), depth + 1
            FROM up JOIN tree t ON t.categoryid = up.parent WHERE depth < 20)
        SELECT id, arg_max(path, depth) AS path FROM up GROUP BY id""",
    )

    def newest(name: str) -> str:
        return f"arg_max(value, timestamp::BIGINT) FILTER (WHERE property = '{name}')"

    raw.load(
        "items",
        f"""SELECT itemid, {newest("categoryid")} AS category, {newest("available")} AS available,
            {newest("790")} AS price FROM facts GROUP BY 1""",
    )
    return Extract(
        products="""SELECT itemid AS product_id, 'item ' || itemid
                || coalesce(' of category ' || category, '') AS title,
            coalesce(path, category) AS category, available AS stock,
            CASE WHEN starts_with(price, 'n') THEN try_cast(price[2:] AS DOUBLE) END AS price
        FROM (SELECT DISTINCT itemid FROM log UNION SELECT itemid FROM items)
        LEFT JOIN items USING (itemid) LEFT JOIN paths ON paths.id = category""",
        events=f"""SELECT visitorid AS user_id, make_timestamp(timestamp::BIGINT * 1000) AS time,
            names.type, itemid AS product_id
        FROM log JOIN {event_types(_RETAILROCKET)}
            ON names.name = event""",
        notes=("there is no text in this set: titles and derived queries are made of numbers",),
        derive="categories",
    )


def _load_plain(raw: RawFiles, table: str, role: str, columns: str, where: str = "true") -> None:
    """A table of text of all files with a role, without their order; for large logs."""
    names = columns.split()
    nothing = f"SELECT {', '.join(f'NULL::VARCHAR AS {name}' for name in names)} WHERE false"
    selects = [nothing]
    for number, file in enumerate(raw.of(role)):
        raw.load_csv(f"{table}_{number}", file, where=where, is_plain=True)
        selects.append(f"SELECT {', '.join(names)} FROM {table}_{number}")
    raw.load(table, " UNION ALL ".join(selects))
    for number in range(len(selects) - 1):
        raw.connection.execute(f"DROP TABLE {table}_{number}")


def _otto_role(file: RawFile) -> str | None:
    if file.form == "json" and file.has("session", "events"):
        events = file.record.get("events")
        first = events[0] if isinstance(events, list) and events else None
        if isinstance(first, dict) and {"aid", "ts", "type"} <= set(first):
            return "sessions"
    return None


def _otto(raw: RawFiles) -> Extract:
    """``*.jsonl`` of sessions (``session``, ``events`` of ``aid``, ``ts``, ``type``).

    A session is a user; ``ts`` is milliseconds. A click opens a product's page, so ``clicks``
    are views; ``carts`` and ``orders`` are carts and purchases. There are no texts at all:
    products are called by their numbers, and no queries can be derived.
    """
    columns = {"session": "BIGINT", "events": "STRUCT(aid BIGINT, ts BIGINT, type VARCHAR)[]"}
    relations = " UNION ALL ".join(
        f"SELECT session, unnest(events, recursive := true) FROM {lines_relation(file, columns)}"
        for file in raw.of("sessions")
    )
    raw.load("log", f"SELECT session, aid, ts, type AS name FROM ({relations})")
    return Extract(
        products="SELECT DISTINCT aid AS product_id, 'item ' || aid AS title FROM log",
        events=f"""SELECT session AS user_id, make_timestamp(ts * 1000) AS time, names.type,
            aid AS product_id
        FROM log JOIN {event_types(_OTTO)}
            ON names.name = log.name""",
        notes=(
            "there is no text in this set: products are called by numbers, and no queries can be "
            "derived",
        ),
        has_text=False,
    )


_HM_ARTICLES = (
    "article_id",
    "prod_name",
    "product_type_name",
    "product_group_name",
    "index_group_name",
    "colour_group_name",
    "graphical_appearance_name",
    "section_name",
)


def _hm_role(file: RawFile) -> str | None:
    if is_exactly(file, "t_dat customer_id article_id price sales_channel_id"):
        return "transactions"
    is_articles = file.form == "csv" and file.has("article_id", "prod_name", "product_type_name")
    return "articles" if is_articles else None


def _hm(raw: RawFiles) -> Extract:
    """``articles.csv`` and ``transactions_train.csv``.

    ``customer_id`` bought ``article_id`` (ten digits) on ``t_dat``, a day: what is bought on
    one day has no order. A title is ``prod_name`` and ``colour_group_name``, the category
    ``index_group_name > product_group_name > product_type_name``, of which queries are derived.
    Prices are scaled and have no currency, so there are none. customers.csv is ignored.
    """
    load_tables(raw, "articles", "articles", {name: (name,) for name in _HM_ARTICLES})
    _load_plain(raw, "bought", "transactions", "t_dat customer_id article_id")
    return Extract(
        products="""SELECT lpad(article_id, 10, '0') AS product_id,
            concat_ws(', ', prod_name, colour_group_name) AS title,
            concat_ws(' > ', index_group_name, product_group_name, product_type_name) AS category,
            json_object('colour', colour_group_name, 'appearance', graphical_appearance_name,
                'section', section_name)::VARCHAR AS attributes FROM articles""",
        events="""SELECT customer_id AS user_id, t_dat AS time, 'purchase' AS type,
            lpad(article_id, 10, '0') AS product_id FROM bought""",
        notes=("purchases have a day and no time of day: those of one day have no order",),
        derive="categories",
    )


def _diginetica_role(file: RawFile) -> str | None:
    if file.form != "csv" or file.delimiter != ";":
        return None
    for role, columns in (
        ("queries", ("queryId", "sessionId", "searchstring.tokens", "items")),
        ("purchases", ("sessionId", "timeframe", "eventdate", "ordernumber", "itemId")),
        ("views", ("sessionId", "itemId", "timeframe", "eventdate")),
        ("clicks", ("queryId", "timeframe", "itemId")),
        ("products", ("itemId", "pricelog2", "product.name.tokens")),
        ("categories", ("itemId", "categoryId")),
    ):
        if file.has(*columns):
            return role
    return None


_ACT = {
    "session": "sessionId",
    "person": "userId",
    "frame": "timeframe",
    "day": "eventdate",
    "item": "itemId",
}
_QUERY = {"id": "queryId", "tokens": "searchstring.tokens", "shown": "items", "test": "is.test"}
_DIGINETICA = {
    "queries": {**_ACT, **_QUERY},
    "views": _ACT,
    "purchases": _ACT,
    "clicks": {"id": "queryId", "frame": "timeframe", "item": "itemId"},
    "products": {"item": "itemId", "price": "pricelog2", "tokens": "product.name.tokens"},
    "categories": {"item": "itemId", "category": "categoryId"},
}


def _diginetica(raw: RawFiles) -> Extract:
    """``train-queries.csv``, ``-clicks``, ``-item-views``, ``-purchases``, ``products`` and more.

    A user is ``userId``, else ``sessionId``. The time is ``eventdate`` and ``timeframe``
    milliseconds into the session: only the order inside a session is true. Words are numbers:
    of ``searchstring.tokens`` and ``product.name.tokens``, 12,7 becomes "t12 t7", which
    lexical search can match and a language model cannot. ``items`` are impressions in order.
    A price is 2^pricelog2 - 1. Queries with ``is.test`` and those without tokens, which list a
    category, are ignored as searches.
    """
    for role, columns in _DIGINETICA.items():
        load_tables(raw, role, role, {name: (column,) for name, column in columns.items()})
    user = "coalesce(nullif(q.person, 'NA'), 's' || q.session)"

    def time(day: str, frame: str) -> str:
        inside = f"coalesce(try_cast({frame} AS BIGINT), 0)"
        return f"try_cast({day} AS TIMESTAMP) + to_milliseconds({inside})"

    raw.load(
        "asked",
        f"""SELECT id, {user} AS user_id, {time("day", "frame")} AS time, day, {_words("tokens")}
            AS query, shown FROM queries q WHERE coalesce(upper(test), '') <> 'TRUE'""",
    )
    ((tests, lists),) = raw.rows(
        """SELECT (SELECT count(*) FROM queries) - count(*), count(*) FILTER (query IS NULL)
        FROM asked"""
    )
    ignored = {"query of the test part": tests, "list of a category": lists}
    acted = " UNION ALL ".join(
        f"""SELECT {user}, {time("q.day", "q.frame")}, '{kind}', NULL, q.item FROM {table} q"""
        for table, kind in (("views", "view"), ("purchases", "purchase"))
    )
    return Extract(
        products=f"""SELECT p.item AS product_id, coalesce({_words("p.tokens")}, 'item ' || p.item)
                AS title, c.category,
            CASE WHEN try_cast(p.price AS DOUBLE) > 0
                THEN round(pow(2, p.price::DOUBLE) - 1, 2) END AS price
        FROM products p LEFT JOIN categories c ON c.item = p.item""",
        events=f"""SELECT user_id, time, 'search' AS type, query, NULL AS product_id FROM asked
            WHERE query IS NOT NULL
            UNION ALL SELECT a.user_id, {time("a.day", "q.frame")}, 'click', a.query, q.item
            FROM clicks q JOIN asked a USING (id)
            UNION ALL {acted}""",
        impressions="""SELECT user_id, time, query, item AS product_id, position, id AS query_id
            FROM (SELECT *, unnest(string_split(shown, ',')) AS item,
                generate_subscripts(string_split(shown, ','), 1) AS position FROM asked
                WHERE shown IS NOT NULL)""",
        ignored={name: count for name, count in ignored.items() if count},
        notes=("words are numbers in this set: t12 stands for the twelfth",),
    )


def _words(column: str) -> str:
    """SQL: ``12,7`` as ``t12 t7``, NULL where there is none."""
    return (
        f"nullif(array_to_string(list_transform(list_filter(string_split(coalesce({column}, ''), "
        "','), lambda t: trim(t) NOT IN ('', 'NA')), lambda t: 't' || trim(t)), ' '), '')"
    )


PRESETS = (
    Preset("retailrocket", _retailrocket_role, _retailrocket, needs_new_shop=True),
    Preset("otto", _otto_role, _otto, needs_new_shop=True),
    Preset("hm", _hm_role, _hm, needs_new_shop=True),
    Preset("diginetica", _diginetica_role, _diginetica, needs_new_shop=True),
)
