"""Matomo: visits as Live.getLastVisitsDetails tells them in JSON."""

from __future__ import annotations

import html

from ..parse_fields import text_or_null, user_or_null
from .preset import Extract, Preset
from .raw_files import RawFile, RawFiles, documents
from .sql import fields, ignored_names, merge_searches, name_persons, text_at


def _recognise(file: RawFile) -> str | None:
    is_visit = file.form == "json" and file.has("idVisit", "visitorId", "actionDetails")
    return "visits" if is_visit else None


def _read(raw: RawFiles) -> Extract:
    """A JSON array of visits, or several pages of it.

    A person is ``userId``, else ``visitorId``. Of ``actionDetails``, at ``timestamp`` (seconds,
    UTC): ``search`` with ``siteSearchKeyword`` is a search, an ``action`` with
    ``productViewSku`` a view, each ``itemDetails[].itemSKU`` of an ``ecommerceOrder`` a
    purchase and of an ``ecommerceAbandonedCart`` a cart. Matomo logs no clicks on lists. Other
    actions (pages, events, downloads, outlinks, goals) are ignored.
    """
    raw.load(
        "actions",
        f"""SELECT {user_or_null("userId")} AS user_id, {
            user_or_null("visitorId")
        } AS device, idVisit,
            unnest(from_json(actionDetails, '["JSON"]')) AS action,
            action->>'timestamp' AS time_text,
            make_timestamp((try_cast(time_text AS DOUBLE) * 1000000)::BIGINT) AS time
        FROM ({
            fields(documents(raw.of("visits")), "userId visitorId idVisit actionDetails:JSON")
        })""",
    )
    name_persons(raw, "actions")
    raw.load(
        "actions",
        f"""SELECT *, action->>'type' AS name, {text_or_null(text_at("action", "productViewSku"))}
            AS sku, CASE name WHEN 'search' THEN 'search' WHEN 'ecommerceOrder' THEN 'purchase'
            WHEN 'ecommerceAbandonedCart' THEN 'cart'
            ELSE CASE WHEN sku IS NOT NULL THEN 'view' END END AS type
        FROM actions""",
    )
    ignored = ignored_names(
        raw,
        """SELECT CASE WHEN name = 'event' THEN 'event ' || coalesce(action->>'eventAction', '')
            ELSE name END AS name FROM actions WHERE type IS NULL""",
    )
    raw.connection.create_function("unescape", html.unescape, ["VARCHAR"], "VARCHAR")
    raw.load(
        "searches",
        f"""SELECT person AS user_id, time, time_text,
            unescape({text_at("action", "siteSearchKeyword")}) AS query
        FROM actions WHERE type = 'search'""",
    )
    ignored |= merge_searches(raw, "searches")
    _load_items(raw)
    return Extract(
        events="""SELECT user_id, coalesce(time::VARCHAR, time_text) AS time, 'search' AS type,
                query, NULL AS product_id FROM searches
            UNION ALL SELECT person, coalesce(time::VARCHAR, time_text), type, NULL, product
            FROM items""",
        mentioned="""SELECT product AS product_id, arg_max(title, time) AS title, NULL AS brand,
                arg_max(category, time) AS category, arg_max(price, time) AS price
            FROM items WHERE product IS NOT NULL GROUP BY 1""",
        logins="FROM logins",
        ignored=ignored,
    )


def _load_items(raw: RawFiles) -> None:
    """The table ``items``: a product that was viewed, put into a cart or bought in each row."""
    raw.load(
        "items",
        f"""SELECT person, time, time_text, type, sku AS product,
            {text_at("action", "productViewName")} AS title,
            json_extract_string(action, '$.productViewCategories[0]') AS category,
            action->>'productViewPrice' AS price FROM actions WHERE type = 'view'
        UNION ALL SELECT person, time, time_text, type,
            {text_or_null(text_at("item", "itemSKU"))},
            {text_at("item", "itemName")}, coalesce({text_at("item", "categories[0]")},
            {text_at("item", "itemCategory")}), item->>'price'
        FROM (SELECT *, unnest(CASE WHEN json_array_length(action->'itemDetails') > 0
            THEN from_json(action->'itemDetails', '["JSON"]') ELSE ['{{}}'::JSON] END) AS item
            FROM actions WHERE type IN ('cart', 'purchase'))""",
    )


PRESET = Preset("matomo", _recognise, _read)
