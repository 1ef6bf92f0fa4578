"""WooCommerce: the product export, and orders as its REST interface and plugins write them."""

from __future__ import annotations

from ...errors import QAgentError
from ..parse_fields import timestamp, user_or_null
from .catalog_sql import (
    bare,
    blank,
    first_of,
    line_time,
    load_aliases,
    load_amounts,
    load_attributes,
    load_tables,
    take_out,
)
from .preset import Extract, Preset
from .raw_files import RawFile, RawFiles, documents
from .sql import fields

_TYPES = ("simple", "variable", "grouped", "external", "variation")
# Names in English and German; further languages go by the places of the columns.
_PRODUCTS = {
    "id": ("ID",),
    "kind": ("Type", "Typ"),
    "sku": ("SKU", "Artikelnummer"),
    "gtin": ("GTIN, UPC, EAN, or ISBN", "GTIN, UPC, EAN oder ISBN"),
    "title": ("Name",),
    "published": ("Published", "Veröffentlicht"),
    "visibility": ("Visibility in catalog", "Sichtbarkeit im Katalog"),
    "sale_from": ("Date sale price starts", "Datum, an dem Angebotspreis beginnt"),
    "sale_to": ("Date sale price ends", "Datum, an dem Angebotspreis endet"),
    "in_stock": ("In stock?", "Vorrätig?", "Auf Lager?"),
    "sale_price": ("Sale price", "Angebotspreis"),
    "price": ("Regular price", "Regulärer Preis"),
    "categories": ("Categories", "Kategorien"),
    "tags": ("Tags", "Schlagwörter", "Schlagworte"),
    "parent": ("Parent", "Übergeordnetes Produkt", "Übergeordnet"),
    "brands": ("Brands", "Marken"),
}
_ATTRIBUTES = (
    ("Attribute {} name", "Attribut {} Name"),
    ("Attribute {} value(s)", "Attribut {} Wert(e)"),
)
_ORDERS = {
    "number": ("order_id", "order_number", "Order Number", "Order ID"),
    "status": ("status", "order_status", "Order Status"),
    "date": ("date", "order_date", "Order Date"),
    "customer": ("customer_id", "Customer ID", "Customer User ID"),
    "email": ("billing_email", "customer_email", "Email (Billing)"),
    "sku": ("item_sku", "SKU"),
    "product": ("item_product_id", "Product Id", "Product ID"),
    "items": ("line_items",),
}
_KEPT = "'completed', 'processing', 'on-hold'"


def _recognise(file: RawFile) -> str | None:
    if file.form == "json":
        is_orders = file.has("line_items", "status", "billing", "customer_id")
        return "orders" if is_orders else None
    if file.form != "csv":
        return None
    if file.has("Order #", "Product(s)", "Customer"):
        return "report"
    kinds = str(file.record.get(file.columns[1]) if len(file.columns) > 1 else "").split(",")
    if file.columns[:1] == ("ID",) and kinds[0].strip() in _TYPES:
        return "products"
    if file.has("Type", "SKU", "Name") and (file.has("In stock?") or file.has("Regular price")):
        return "products"
    is_order = file.has("order_id", "status") or file.has("Order Number", "Order Status")
    has_items = file.has("line_items") or file.has("item_sku") or file.has("SKU")
    return "lines" if is_order and has_items else None


def _read(raw: RawFiles) -> Extract:
    """The product export (CSV), and orders: REST's JSON, or CSV of export plugins.

    Products are the rows whose ``Type`` is not variation: ``ID``, ``Name``, ``Brands`` (else an
    attribute of that name), the deepest path of ``Categories``, ``Sale price`` while it lasts,
    else ``Regular price``, ``In stock?`` (backorder is), ``Tags`` and ``Attribute n`` as
    attributes. ``SKU``, ``GTIN`` and those of its variations (``Parent``) are other ids of a
    product; it is in stock when a variation is, at their lowest price. What is hidden or not
    published is out of stock. Of orders that are completed, processing or on hold, each line is
    a purchase of ``customer_id``, else of the billing address's e-mail. Descriptions, images,
    weights and stock counts are ignored.
    """
    if raw.of("report"):
        raise QAgentError(
            f"{raw.of('report')[0].path}: the report of orders names customers and products, and "
            "has no ids of them; export orders from the REST interface (/wp-json/wc/v3/orders) "
            "or with an order export plugin, one line an item"
        )
    aliases, attributes, notes = _load_products(raw)
    products = events = None
    ignored: dict[str, int] = {}
    if raw.of("products"):
        products = f"""SELECT product_id, title, brand, category, price, stock,
            {attributes} AS attributes, {aliases} AS aliases FROM catalog p"""
    if raw.of("orders", "lines"):
        ignored = _load_orders(raw)
        notes.append("times of orders without a zone are taken as UTC")
        events = f"""SELECT person AS user_id, {line_time("number", "date")} AS time,
            'purchase' AS type, NULL AS query, product AS product_id FROM lines ORDER BY line"""
    returned = "FROM returned" if events else None
    return Extract(
        products=products, events=events, returned=returned, ignored=ignored, notes=tuple(notes)
    )


def _split(cell: str) -> str:
    """SQL: the parts of a cell such as ``A > B, C`` as a list; ``\\,`` is a comma in a name."""
    return (
        f"list_transform(string_split(replace({cell}, '\\,', chr(1)), ','), "
        "lambda part: trim(replace(part, chr(1), ',')))"
    )


def _unguarded(column: str) -> str:
    """SQL: a cell without the mark that keeps spreadsheets from computing it."""
    return f"CASE WHEN regexp_matches({column}, '^''[=+@-]') THEN {column}[2:] ELSE {column} END"


def _load_products(raw: RawFiles) -> tuple[str, str, list[str]]:
    """The table ``catalog``; returns SQL for aliases and attributes, and notes."""
    load_tables(raw, "rows", "products", _PRODUCTS)
    notes = load_amounts(raw, "rows", "price", "sale_price")
    files = raw.of("products")
    if any("Type" not in f.columns and "Typ" not in f.columns for f in files):
        raise QAgentError(
            f"{files[0].path}: the columns' names are in a language that is not known; export "
            "with the admin's language set to English"
        )
    _load_families(raw)
    paths = f"list_filter({_split('categories')}, lambda p: lower(p) NOT IN ('uncategorized', ''))"
    raw.load(
        "catalog",
        f"""WITH members AS (SELECT f.product_id, i.*, i.id = f.product_id AS is_itself,
                offer AS number, {paths} AS paths,
                is_in_stock AND (NOT is_itself OR count(*) OVER (PARTITION BY f.product_id) = 1)
                    AS can_be_bought
            FROM families f JOIN items i ON i.line = f.line)
        SELECT product_id, {first_of("title", "is_itself")} AS title,
            {_split(first_of("brands", "is_itself"))}[1] AS brand,
            arg_max(list_reduce(list_prepend('', paths), lambda best, path: CASE WHEN
                len(string_split(path, '>')) > len(string_split(best, '>')) OR best = ''
                THEN path ELSE best END), -line) FILTER (WHERE len(paths) > 0) AS category,
            coalesce(min(number) FILTER (WHERE can_be_bought), min(number))::VARCHAR AS price,
            (bool_or(can_be_bought) AND NOT bool_or(is_itself AND is_hidden))::VARCHAR AS stock,
            bool_or(is_itself AND is_variation) AS is_orphan,
            bool_or(is_itself AND is_hidden) AS is_hidden
        FROM members GROUP BY product_id""",
    )
    aliases = load_aliases(
        raw,
        """SELECT product_id, unnest([i.sku, i.gtin, 'id:' || i.id,
            CASE WHEN i.id <> product_id THEN i.id END]) AS alias
        FROM families f JOIN items i ON i.line = f.line
        UNION ALL SELECT product_id, NULL FROM catalog""",
    )
    attributes = load_attributes(raw, _attributes(raw))
    raw.connection.execute(
        """UPDATE catalog SET brand = value FROM (SELECT product_id, any_value(value) AS value
            FROM brand_of GROUP BY 1) b
        WHERE b.product_id = catalog.product_id AND brand IS NULL"""
    )
    ((orphans, hidden),) = raw.rows(
        """SELECT count(*) FILTER (is_orphan), count(*) FILTER (is_hidden AND NOT is_orphan)
        FROM catalog"""
    )
    if orphans:
        notes.append(f"{orphans:,} variations whose parent is not in the file are products")
    if hidden:
        notes.append(f"{hidden:,} products are hidden or not published: out of stock")
    return aliases, attributes, notes


def _load_families(raw: RawFiles) -> None:
    """The tables ``items``, rows with their offers, and ``families``, the products of rows."""
    sale = """sale_price IS NOT NULL
        AND coalesce(try_cast(sale_from AS TIMESTAMP) <= current_timestamp::TIMESTAMP, true)
        AND coalesce(try_cast(sale_to AS TIMESTAMP) + INTERVAL 1 DAY
            > current_timestamp::TIMESTAMP, true)"""
    raw.load(
        "items",
        f"""SELECT * REPLACE ({_unguarded("title")} AS title),
            contains(lower(kind), 'variation') AS is_variation,
            CASE WHEN {sale} THEN sale_price ELSE price END AS offer,
            coalesce(lower(in_stock), '1') NOT IN ('0', 'no', 'false') AS is_in_stock,
            coalesce(published, '1') <> '1' OR lower(visibility) = 'hidden' AS is_hidden
        FROM rows""",
    )
    raw.load(
        "families",
        """SELECT v.line, v.id, coalesce(CASE WHEN v.is_variation THEN p.id END, v.id) AS product_id
        FROM items v LEFT JOIN items p ON v.is_variation AND NOT p.is_variation
            AND (v.parent = 'id:' || p.id OR v.parent = p.sku)
        QUALIFY row_number() OVER (PARTITION BY v.line ORDER BY p.line) = 1""",
    )


def _attributes(raw: RawFiles) -> str:
    """SQL for (product_id, name, value, line) of tags and attributes; brands to ``brand_of``."""
    nothing = "NULL::VARCHAR AS id, NULL::VARCHAR AS name, NULL::VARCHAR AS value, 0 AS line"
    selects = [f"SELECT {nothing} WHERE false"]
    for number, file in enumerate(raw.of("products")):
        for n in range(1, 100):
            name, value = (
                blank(file, *(form.format(n) for form in forms)) for forms in _ATTRIBUTES
            )
            if "NULL::VARCHAR" in name or "NULL::VARCHAR" in value:
                break
            selects.append(
                f"""SELECT {blank(file, "ID")}, {name}, replace({value}, '\\,', ','),
                {number}::BIGINT << 32 | rowid FROM rows_{number}"""
            )
    raw.load(
        "described",
        f"""SELECT product_id, name, value, line FROM ({" UNION ALL ".join(selects)})
        JOIN (SELECT product_id FROM catalog) ON product_id = id""",
    )
    is_brand = "lower(name) IN ('brand', 'brands', 'marke', 'marken', 'marque', 'marca')"
    raw.load("brand_of", f"SELECT product_id, value FROM described WHERE {is_brand}")
    return f"""SELECT * FROM described WHERE NOT {is_brand}
        UNION ALL SELECT id, 'Tags', replace(tags, '\\,', ','), line FROM items
        WHERE NOT is_variation"""


def _load_orders(raw: RawFiles) -> dict[str, int]:
    """The table ``lines`` of what was ordered; returns what was left out."""
    load_tables(raw, "ordered", "lines", _ORDERS)
    filled = ", ".join(
        f"first_value({c} IGNORE NULLS) OVER (PARTITION BY number ORDER BY line "
        f"ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS {c}"
        for c in ("status", "date", "customer", "email")
    )
    raw.load("ordered", f"SELECT line, number, {filled}, items, sku, product FROM ordered")
    sku, product = (_item_field(name) for name in ("sku", "product_id"))
    selects = [
        "SELECT * EXCLUDE (items) FROM ordered WHERE items IS NULL",
        f"""SELECT * EXCLUDE (items, item, sku, product), {sku} AS sku, {product} AS product
        FROM (SELECT *, unnest(string_split(items, ';')) AS item FROM ordered
            WHERE items IS NOT NULL)""",
    ]
    if raw.of("orders"):
        keys = (
            "id status date_created_gmt customer_id billing:JSON line_items:JSON number "
            "date_created"
        )
        raw.load("rest", fields(documents(raw.of("orders")), keys))
        selects.append(
            """SELECT rowid AS line, id AS number, status,
                coalesce(date_created_gmt, date_created) AS date, customer_id AS customer,
                billing->>'email' AS email, item->>'sku' AS sku,
                coalesce(nullif(item->>'variation_id', '0'), nullif(item->>'product_id', '0'))
                    AS product
            FROM (SELECT rowid, *, unnest(from_json(line_items, '["JSON"]')) AS item FROM rest)"""
        )
    raw.load(
        "lines",
        f"""SELECT o.line, number, date, {timestamp("date")} AS time,
            coalesce({user_or_null("customer")}, {user_or_null("lower(email)")}) AS person,
            coalesce(a.product_id, b.product_id, k.product_id, nullif(o.product, ''),
                nullif(o.sku, '')) AS product,
            replace(lower(trim(status)), 'wc-', '') AS state
        FROM ({" UNION ALL BY NAME ".join(selects)}) o
        LEFT JOIN id_of a ON a.alias = o.product
        LEFT JOIN id_of b ON b.alias = {bare("o.sku")}
        LEFT JOIN known k ON k.product_id = o.sku""",
    )
    left_out = raw.counts(
        f"""SELECT 'line of an order that is ' || state, count(*) FROM lines
        WHERE replace(state, ' ', '-') NOT IN ({_KEPT}) GROUP BY 1 ORDER BY 1"""
    )
    take_out(raw, f"replace(state, ' ', '-') NOT IN ({_KEPT})", "number", "date")
    return left_out


def _item_field(name: str) -> str:
    """SQL: a field of an ``item`` such as ``name:X|sku:Y``."""
    field = f"list_filter(string_split(item, '|'), lambda p: starts_with(p, '{name}:'))[1]"
    return f"nullif({field}[{len(name) + 2}:], '')"


PRESET = Preset("woocommerce", _recognise, _read, has_parts=True)
