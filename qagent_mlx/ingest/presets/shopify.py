"""Shopify: products and orders as the admin exports them."""

from __future__ import annotations

from ..parse_fields import timestamp, user_or_null
from .catalog_sql import (
    bare,
    first_of,
    line_time,
    load_aliases,
    load_amounts,
    load_attributes,
    load_tables,
    take_out,
)
from .preset import Extract, Preset
from .raw_files import RawFile, RawFiles

# Names of columns until about 2025, and since then.
_PRODUCTS = {
    "handle": ("Handle", "URL handle"),
    "title": ("Title",),
    "vendor": ("Vendor",),
    "category": ("Product Category",),
    "kind": ("Type",),
    "tags": ("Tags",),
    "published": ("Published", "Published on online store"),
    "status": ("Status",),
    "sku": ("Variant SKU", "SKU"),
    "barcode": ("Variant Barcode", "Barcode"),
    "price": ("Variant Price", "Price"),
    "old_price": ("Variant Compare At Price", "Compare-at price"),
    "quantity": ("Variant Inventory Qty", "Inventory quantity"),
    "policy": ("Variant Inventory Policy", "Continue selling when out of stock"),
    "tracker": ("Variant Inventory Tracker", "Inventory tracker"),
    **{
        f"option{n}_{part}": (f"Option{n} {part}",) for n in (1, 2, 3) for part in ("name", "value")
    },
}
_ORDERS = {
    "name": ("Name",),
    "email": ("Email",),
    "phone": ("Phone",),
    "status": ("Financial Status",),
    "created": ("Created at",),
    "cancelled": ("Cancelled at",),
    "sku": ("Lineitem sku",),
    "item": ("Lineitem name",),
}


def _recognise(file: RawFile) -> str | None:
    if file.form != "csv":
        return None
    if file.has("Title") and (
        (file.has("Handle") and (file.has("Variant SKU") or file.has("Option1 Value")))
        or (file.has("URL handle") and (file.has("SKU") or file.has("Option1 value")))
    ):
        return "products"
    is_orders = file.has("Name", "Financial Status", "Lineitem sku", "Lineitem name", "Created at")
    return "orders" if is_orders else None


def _read(raw: RawFiles) -> Extract:
    """``products_export.csv`` and ``orders_export.csv``, with old and new names of columns.

    All rows of a ``Handle`` are one product: ``Title``, ``Vendor`` as the brand, ``Product
    Category`` (else ``Type``), options, tags and short metafields as attributes. Each variant's
    ``Variant SKU`` and ``Variant Barcode`` are other ids of it. It is in stock when a variant
    is: not tracked, sold on, or a quantity above 0; drafts and archived ones are not. Its price
    is the lowest of the variants in stock. Each line of an order is a purchase of ``Email`` at
    ``Created at`` by ``Lineitem sku``, else by ``Lineitem name``. Cancelled, voided, expired
    and fully refunded orders are left out. Images and ``Body (HTML)`` are ignored.
    """
    aliases, attributes, notes = _load_products(raw)
    ignored = {}
    events = None
    if raw.of("orders"):
        ignored = _load_orders(raw)
        events = f"""SELECT person AS user_id, {line_time("name", "created")} AS time,
            'purchase' AS type, NULL AS query, product AS product_id FROM lines ORDER BY line"""
    products = None
    if raw.of("products"):
        products = f"""SELECT product_id, title, brand, category, price, stock,
            {attributes} AS attributes, {aliases} AS aliases FROM catalog p"""
        ((hidden,),) = raw.rows("SELECT count(*) FROM catalog WHERE is_hidden")
        if hidden:
            notes.append(f"{hidden:,} products are no longer sold (draft, archived, unpublished)")
    returned = "FROM returned" if events else None
    return Extract(
        products=products, events=events, returned=returned, ignored=ignored, notes=tuple(notes)
    )


def _load_products(raw: RawFiles) -> tuple[str, str, list[str]]:
    """The table ``catalog``; returns SQL for aliases and attributes, and notes."""
    load_tables(raw, "rows", "products", _PRODUCTS)
    notes = load_amounts(raw, "rows", "price", "old_price")
    counts_stock = all(
        f.has("Variant Inventory Qty") or f.has("Inventory quantity") for f in raw.of("products")
    )
    raw.load(
        "variants",
        """SELECT line, handle, sku, barcode, price, old_price,
            CASE WHEN tracker IS NULL OR lower(policy) IN ('continue', 'true') THEN true
                ELSE try_cast(quantity AS DOUBLE) > 0 END AS in_stock
        FROM rows WHERE sku IS NOT NULL OR price IS NOT NULL""",
    )
    raw.load(
        "catalog",
        f"""WITH facts AS (SELECT handle AS product_id, {first_of("title")} AS title,
                {first_of("vendor")} AS brand,
                coalesce({first_of("category")}, {first_of("kind")}) AS category,
                coalesce(lower({first_of("status")}), 'active') <> 'active'
                    OR lower({first_of("published")}) = 'false' AS is_hidden
            FROM rows WHERE handle IS NOT NULL GROUP BY 1),
        offers AS (SELECT handle AS product_id, bool_or(in_stock) AS in_stock,
                coalesce(min(price) FILTER (WHERE in_stock), min(price)) AS price
            FROM variants GROUP BY 1)
        SELECT f.*, o.price, CASE WHEN is_hidden THEN false ELSE in_stock END AS stock
        FROM facts f LEFT JOIN offers o USING (product_id)""",
    )
    aliases = load_aliases(
        raw,
        """SELECT handle AS product_id, unnest([sku, barcode, NULL]) AS alias FROM variants
        UNION ALL SELECT product_id, NULL FROM catalog""",
    )
    options = " UNION ALL ".join(
        f"""SELECT r.handle AS product_id, names.name, r.option{n}_value AS value, r.line
        FROM rows r JOIN (SELECT handle, {first_of(f"option{n}_name")} AS name FROM rows
            GROUP BY 1) names ON names.handle = r.handle
        WHERE NOT (names.name = 'Title' AND r.option{n}_value = 'Default Title')"""
        for n in (1, 2, 3)
    )
    attributes = load_attributes(
        raw,
        f"""{options} UNION ALL SELECT handle, 'Type', kind, line FROM rows
            WHERE category IS NOT NULL
        UNION ALL SELECT handle, 'Tags', tags, line FROM rows
        UNION ALL SELECT handle, 'Compare at', printf('%.2f', old_price), line FROM variants
            WHERE old_price > price
        {_metafields(raw)}""",
    )
    unknown = raw.rows("SELECT count(*) FROM catalog WHERE stock IS NULL")[0][0]
    if unknown:
        why = "" if counts_stock else ", the export has no quantities"
        notes.append(f"{unknown:,} products have no stock that is known{why}")
    return aliases, attributes, notes


def _metafields(raw: RawFiles) -> str:
    """SQL: short texts of columns such as ``Color (product.metafields.shopify.color)``."""
    selects = ""
    for number, file in enumerate(raw.of("products")):
        for column in file.columns:
            name, mark, _ = column.partition(" (product.metafields.")
            if mark:
                value = file.column(column)
                selects += f""" UNION ALL SELECT {file.column("Handle", "URL handle")},
                    '{name.replace("'", "''")}', {value}, rowid FROM rows_{number}
                    WHERE length({value}) <= 60 AND {value} NOT LIKE '[%'
                        AND {value} NOT LIKE '{{%'"""
    return selects


def _load_orders(raw: RawFiles) -> dict[str, int]:
    """The table ``lines`` of what was ordered; returns what was left out."""
    load_tables(raw, "ordered", "orders", _ORDERS)
    fields = ", ".join(
        f"{first_of(c)} AS {c}" for c in ("email", "phone", "status", "created", "cancelled")
    )
    raw.load(
        "titles",
        "SELECT product_id, title FROM catalog UNION ALL SELECT product_id, title FROM known",
    )
    title = "lower(regexp_replace(item, ' - [^-]*$', ''))"
    raw.load(
        "lines",
        f"""WITH orders AS (SELECT name, {fields} FROM ordered GROUP BY 1),
        by_title AS (SELECT lower(title) AS title, min(product_id) AS product_id FROM titles
            GROUP BY 1 HAVING count(DISTINCT product_id) = 1)
        SELECT coalesce({user_or_null("lower(o.email)")}, o.phone) AS person, o.created,
            name, l.line, {timestamp("o.created")} AS time,
            coalesce(a.product_id, {bare("l.sku")}, b.product_id, w.product_id) AS product,
            CASE WHEN o.cancelled IS NOT NULL THEN 'line of a cancelled order'
                WHEN lower(o.status) IN ('voided', 'expired', 'refunded')
                THEN 'line of an order that is ' || lower(o.status) END AS left_out
        FROM ordered l JOIN orders o USING (name)
        LEFT JOIN id_of a ON a.alias = {bare("l.sku")}
        LEFT JOIN by_title b ON b.title = {title.replace("item", "l.item")}
        LEFT JOIN by_title w ON w.title = lower(l.item)
        WHERE l.sku IS NOT NULL OR l.item IS NOT NULL ORDER BY l.line""",
    )
    left_out = raw.counts(
        "SELECT left_out, count(*) FROM lines WHERE left_out IS NOT NULL GROUP BY 1 ORDER BY 1"
    )
    take_out(raw, "left_out IS NOT NULL", "name", "created")
    return left_out


PRESET = Preset("shopify", _recognise, _read, has_parts=True)
