"""Google Merchant Center's product feeds, as text or XML; Meta's catalogs have the same columns."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from ...errors import QAgentError
from ...utils.database import append_rows, identifier
from ..parse_fields import timestamp
from .catalog_sql import load_aliases, load_attributes
from .preset import Extract, Preset
from .raw_files import RawFile, RawFiles

_NAMESPACE = "http://base.google.com/ns/1.0"
_SHOWN = (  # attributes of Google's that tell a product from others
    "color size material pattern gender age_group condition size_system item_group_id "
    "custom_label_0 custom_label_1 custom_label_2 custom_label_3 custom_label_4"
)
_FIELDS = (
    "id title brand product_type google_product_category price sale_price "
    f"sale_price_effective_date availability gtin mpn {_SHOWN}"
)


def _name(column: str) -> str:
    """An attribute's name as Google has it: ``g:image link`` is image_link."""
    return column.strip().lower().removeprefix("g:").replace(" ", "_")


def _recognise(file: RawFile) -> str | None:
    if file.form == "xml":
        return "xml" if _NAMESPACE in str(file.record.get("head")) else None
    names = {_name(column) for column in file.columns}
    needed = {"id", "title", "link", "availability", "price"}
    is_feed = needed <= names and not names.isdisjoint(("image_link", "description"))
    return "table" if file.form == "csv" and is_feed else None


def _read(raw: RawFiles) -> Extract:
    """A feed as tab- or comma-separated text, RSS 2.0 or Atom.

    ``id``, ``title``, ``brand`` and ``product_type`` (the first path; where it is empty
    ``google_product_category``, if that is a path). ``sale_price`` is the price while
    ``sale_price_effective_date`` lasts, else ``price``. All ``availability`` but out_of_stock
    is in stock: preorder and backorder can be ordered. ``gtin`` and ``mpn`` are other ids;
    ``color``, ``size``, custom labels and the like are attributes. Texts, links, shipping and
    tax are ignored.
    """
    columns = _load_feed(raw)
    wanted = _FIELDS.split()
    texts = ", ".join(
        f"nullif(trim({identifier(columns[n])}), '') AS {n}"
        if n in columns
        else f"NULL::VARCHAR AS {n}"
        for n in wanted
    )
    raw.load("feed", f"SELECT rowid AS line, {texts} FROM feed")
    start, end = (timestamp(f"split_part(sale_price_effective_date, '/', {n})") for n in (1, 2))
    now = "(current_timestamp AT TIME ZONE 'UTC')"
    raw.load(
        "feed",
        f"""SELECT *, id AS product_id, CASE WHEN sale_price IS NOT NULL
                AND coalesce({start} <= {now}, true) AND coalesce({end} > {now}, true)
                THEN sale_price ELSE price END AS valid_price FROM feed""",
    )
    aliases = load_aliases(
        raw,
        """SELECT product_id, unnest([gtin::VARCHAR, mpn::VARCHAR]) AS alias FROM feed
        UNION ALL SELECT product_id, NULL FROM feed""",
    )
    attributes = load_attributes(
        raw,
        " UNION ALL ".join(
            f"SELECT product_id, '{name}' AS name, {name} AS value, line FROM feed"
            for name in _SHOWN.split()
        ),
    )
    category = """coalesce(CASE WHEN regexp_matches(product_type, ',.*>')
            THEN trim(split_part(product_type, ',', 1)) ELSE product_type END,
        CASE WHEN regexp_matches(google_product_category, '[A-Za-z]')
            THEN google_product_category END)"""
    stock = """CASE replace(lower(availability), ' ', '_')
        WHEN 'out_of_stock' THEN 'false' WHEN 'discontinued' THEN 'false'
        WHEN 'in_stock' THEN 'true' WHEN 'preorder' THEN 'true' WHEN 'backorder' THEN 'true'
        WHEN 'available_for_order' THEN 'true' WHEN 'limited_availability' THEN 'true'
        ELSE availability END"""
    fields = {
        "brand": ("brand", {"brand"}),
        "category": (category, {"product_type", "google_product_category"}),
        "price": ("valid_price", {"price"}),
        "stock": (stock, {"availability"}),
        "attributes": (attributes, set(_SHOWN.split())),
        "aliases": (aliases, {"gtin", "mpn"}),
    }
    # What a feed has no column for stays as the shop has it.
    chosen = [f"{sql} AS {n}" for n, (sql, sources) in fields.items() if sources & set(columns)]
    return Extract(products=f"SELECT {', '.join(['product_id', 'title', *chosen])} FROM feed p")


def _load_feed(raw: RawFiles) -> dict[str, str]:
    """The table ``feed`` of text; returns its columns by their names at Google."""
    selects: list[str] = []
    columns: dict[str, str] = {}
    for number, file in enumerate(raw.of("table")):
        quotes = "" if file.delimiter == "\t" else '"'
        raw.load_csv(f"feed_{number}", file, quote_character=quotes)
        title = identifier(next(c for c in file.columns if _name(c) == "title"))
        if not quotes and raw.rows(
            f"""SELECT count(*) FILTER (starts_with({title}, '"') AND ends_with({title}, '"'))
            > count(*) / 2 FROM feed_{number}"""
        ) == [(True,)]:
            raw.load_csv(f"feed_{number}", file)
        names = {_name(c): c for c in reversed(file.columns)}
        columns |= {name: name for name in names}
        texts = ", ".join(f"{identifier(c)} AS {identifier(n)}" for n, c in names.items())
        selects.append(f"SELECT {texts} FROM feed_{number}")
    if raw.of("xml"):
        wanted = _FIELDS.split()
        declared = ", ".join(f"{name} VARCHAR" for name in wanted)
        raw.connection.execute(f"CREATE OR REPLACE TABLE feed_xml ({declared})")
        seen: set[str] = set()

        def rows() -> Iterator[list[str | None]]:
            for file in raw.of("xml"):
                for item in _items(file):
                    seen.update(item)
                    yield [item.get(name) for name in wanted]

        append_rows(raw.connection, "feed_xml", rows())
        columns |= {name: name for name in wanted if name in seen}
        selects.append(f"SELECT {', '.join(wanted)} FROM feed_xml")
    raw.load("feed", " UNION ALL BY NAME ".join(selects))
    return columns


def _items(file: RawFile) -> Iterator[dict[str, str]]:
    """The products of an XML feed: the first text of each of their attributes."""
    try:
        with _opened(file.readable, file.compression) as opened:
            start = opened.read(4096)
            if b"<!DOCTYPE" in start or b"<!ENTITY" in start:
                raise QAgentError(f"{file.path}: a feed has no DOCTYPE or entities; take them out")
            opened.seek(0)
            for _, element in ElementTree.iterparse(opened):
                if element.tag.rpartition("}")[2] in ("item", "entry"):
                    item: dict[str, str] = {}
                    for child in element:
                        name = child.tag.rpartition("}")[2]
                        if child.text and child.text.strip():
                            item.setdefault(name, child.text.strip())
                    yield item
                    element.clear()
    except ElementTree.ParseError as error:
        raise QAgentError(f"{file.path}: damaged XML ({error}); export it again") from error


def _opened(path: Path, compression: str) -> gzip.GzipFile:
    return gzip.open(path) if compression == "gzip" else path.open("rb")  # type: ignore[return-value]


PRESET = Preset("google-merchant", _recognise, _read)
