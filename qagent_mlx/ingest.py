"""Files to typed products and events; rows that do not fit are kept, with reasons.

A file goes in whole or not at all: it is staged as text, checked in SQL, and inserted in
one transaction. Duplicates are skipped, so the same file may be ingested twice.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import duckdb

from .errors import QAgentError
from .fields import MAX_TITLE, attributes_or_mark, category, plain, price
from .memory import sessions as event_memory
from .memory import store as memory_store
from .shop.shop import Shop
from .types import EVENT_TYPES
from .utils.database import literal
from .utils.text import clean, query_key

RETRY = "retry"
MAX_LINE = 16 << 20
MAX_UNPACKED, MAX_RATIO = 256 << 20, 200  # of a gzip file: bytes, and against its own size
MAX_ID = 256
MAX_QUERY = 300

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
        "time": ("time", "timestamp", "ts", "event_time", "query_time", "datetime", "date", "t_dat",
                 "unix_review_time"),
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

REMEDIES = {
    "unknown event type": f"use one of {', '.join(EVENT_TYPES)}",
    "no event type": "map the column with --map type=COLUMN, or give all rows one with --type",
    "unparseable time": "use ISO 8601 or epoch seconds, or give the format with --time-format",
    "time out of range": "times must lie between 1990 and 2100; digits alone are epoch seconds, "
    "others such as 20260301 need --time-format %Y%m%d",
    "no time": "every event needs a time",
    "no user": "every event needs a user",
    "no title": "every product needs a title",
    "no product id": "every product needs an id",
    "no product": "this type of event needs a product",
    "unknown product": "ingest its products first, then: qagent ingest retry",
    "search without a query": "a search needs a query",
    "query without letters or digits": "nothing to search for",
    "query too long": f"queries may have {MAX_QUERY} characters",
    "id too long": f"ids may have {MAX_ID} characters",
    "bad price": "a price is a number from 0 on, such as 1299.50, $1,299.50 or 1.299,50 EUR",
    "bad attributes": "attributes are a JSON object",
    "bad stock": "stock is a number or true/false",
    "malformed row": "the row does not have the file's columns",
    "malformed JSON": "each line must be one JSON object",
}


@dataclass
class IngestReport:
    """What became of the rows of one or more files."""

    accepted: int = 0
    rejected: int = 0
    duplicates: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def add(self, other: IngestReport) -> None:
        """Add another file's numbers to these."""
        self.accepted += other.accepted
        self.rejected += other.rejected
        self.duplicates += other.duplicates
        for reason, count in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        self.examples += other.examples


@dataclass(frozen=True)
class ReadOptions:
    """How to read files whose columns, encoding or times are not the usual ones."""

    mapping: tuple[tuple[str, str], ...] = ()
    encoding: str = "utf-8"
    time_format: str | None = None
    event_type: str | None = None  # the type of all rows, for files without such a column
    html: bool = True  # take entities and markup out of titles, brands and categories


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


def ingest(
    shop: Shop, kind: str, files: Sequence[str | Path], options: ReadOptions | None = None
) -> IngestReport:
    """Load ``products`` or ``events`` from CSV, TSV, JSON lines (all also .gz) or Parquet.

    Each file is one transaction; a file that cannot be read stops the run, with the files
    before it kept.

    Raises:
        QAgentError: a file is missing, empty, cut short, in another encoding, or lacks a
            column. Nothing of that file is stored.
    """
    options = options or ReadOptions()
    if options.event_type is not None and options.event_type not in EVENT_TYPES:
        raise QAgentError(f"--type {options.event_type}: use one of {', '.join(EVENT_TYPES)}")
    total = IngestReport()
    for file in files:
        path = Path(file)
        try:
            with shop.transaction() as connection:
                malformed = _stage(connection, kind, path, options)
                report = _store(shop, kind, path.name, options, malformed)
        except (duckdb.OutOfMemoryException, MemoryError) as error:
            raise QAgentError(
                f"{path}: not enough memory; close other programs, or cut it into smaller files"
            ) from error
        except duckdb.Error as error:
            raise QAgentError(f"{path}: {str(error).splitlines()[0]}") from error
        total.add(report)
    return total


def retry(shop: Shop) -> IngestReport:
    """Try the rejected rows again, after what they lacked has come in."""
    total = IngestReport()
    for kind in ("products", "events"):
        with shop.transaction() as connection:
            texts = ", ".join(f"json_extract_string(raw, '$.{f}') AS {f}" for f in ALIASES[kind])
            # Rows that could not even be split into fields stay where they are.
            connection.execute(
                """CREATE OR REPLACE TEMP TABLE tried AS
                SELECT row_number() OVER (ORDER BY rowid) AS number, * FROM rejects
                WHERE kind = ? AND raw IS NOT NULL AND reason NOT LIKE 'malformed%'""",
                [kind],
            )
            connection.execute(
                f"""CREATE OR REPLACE TEMP TABLE stage AS
                SELECT number AS row, {texts}, NULL::VARCHAR AS broken FROM tried""",
            )
            connection.execute(
                "DELETE FROM rejects WHERE kind = ? AND raw IS NOT NULL "
                "AND reason NOT LIKE 'malformed%'",
                [kind],
            )
            total.add(_store(shop, kind, RETRY, ReadOptions()))
            # What is rejected again is still a row of its own file.
            connection.execute(
                f"""UPDATE rejects SET file = t.file, row = t.row, rejected_at = t.rejected_at
                FROM tried t WHERE rejects.file = '{RETRY}' AND rejects.kind = t.kind
                AND rejects.row = t.number""",
            )
            connection.execute("DROP TABLE tried")
    return total


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


# ---------------------------------------------------------------- reading files


def _stage(
    connection: duckdb.DuckDBPyConnection, kind: str, path: Path, options: ReadOptions
) -> str:
    """Make the temporary table ``stage``: row, one text column a field, and broken.

    Returns the reason for the rows that are broken.
    """
    suffixes = [s.lower() for s in path.suffixes]
    zipped = bool(suffixes) and suffixes[-1] == ".gz"
    form = suffixes[-2] if zipped and len(suffixes) > 1 else (suffixes[-1] if suffixes else "")
    if not path.exists():
        raise QAgentError(f"{path}: there is no such file")
    if path.is_dir():
        raise QAgentError(f"{path} is a folder; name its files")
    if form in {".csv", ".tsv", ".txt"}:
        _stage_csv(connection, kind, path, zipped, options)
    elif form in {".jsonl", ".ndjson", ".json"}:
        _stage_jsonl(connection, kind, path, zipped, options)
    elif form in {".parquet", ".pq"} and not zipped:
        _stage_parquet(connection, kind, path, options)
    else:
        raise QAgentError(
            f"{path}: cannot tell its form from its name; use .csv, .tsv, .jsonl (also .gz) "
            "or .parquet"
        )
    return "malformed JSON" if form in {".jsonl", ".ndjson", ".json"} else "malformed row"


def _open(path: Path, zipped: bool) -> BinaryIO:
    return gzip.open(path, "rb") if zipped else path.open("rb")  # type: ignore[return-value]


def _encoding(name: str) -> str:
    """The encoding as DuckDB spells it."""
    known = {"utf-8": "utf-8", "utf-8-sig": "utf-8", "ascii": "utf-8", "iso8859-1": "latin-1",
             "utf-16": "utf-16"}  # fmt: skip
    try:
        return known[codecs.lookup(name).name]
    except (LookupError, ValueError):
        raise QAgentError(f"--encoding {name}: unknown; use utf-8, latin-1 or utf-16") from None


def _check_text(path: Path, zipped: bool, encoding: str) -> str:
    """Read the file once for what the loader cannot explain; returns the first line.

    Raises:
        QAgentError: unreadable, empty, cut short, in another encoding, or a line too long.
    """
    decoder = codecs.getincrementaldecoder(_encoding(encoding))()
    first, line, since_newline, seen = b"", 1, 0, 0
    try:
        with _open(path, zipped) as file:
            while chunk := file.read(1 << 20):
                if not first:
                    first = chunk
                seen += len(chunk)
                if zipped and seen > MAX_UNPACKED and seen > MAX_RATIO * path.stat().st_size:
                    raise QAgentError(
                        f"{path}: unpacks to over {MAX_RATIO} times its size, as no log does; if "
                        "it is meant so, unpack it yourself (gunzip) and ingest that"
                    )
                try:
                    decoder.decode(chunk)
                except UnicodeDecodeError as error:
                    bad = line + chunk[: error.start].count(b"\n")
                    wide = first[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
                    guess = "UTF-16, add --encoding utf-16" if wide else (
                        "Latin-1, add --encoding latin-1"
                    )
                    raise QAgentError(
                        f"{path} line {bad}: not {encoding} text "
                        f"(byte 0x{error.object[error.start]:02x}); if it is {guess}"
                    ) from None
                line += chunk.count(b"\n")
                last = chunk.rfind(b"\n")
                head = chunk.find(b"\n")
                longest = since_newline + (head if head >= 0 else len(chunk))
                since_newline = len(chunk) - last - 1 if last >= 0 else longest
                if max(longest, since_newline) > MAX_LINE:
                    raise QAgentError(
                        f"{path} line {line}: a line of over {MAX_LINE >> 20} MiB; "
                        "is this the right file?"
                    )
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise QAgentError(f"{path} line {line}: ends inside a character; is it cut short?") from None
    except (EOFError, zlib.error) as error:
        raise QAgentError(f"{path}: the gzip file is cut short or damaged; get it again") from error
    except gzip.BadGzipFile as error:
        raise QAgentError(f"{path}: not a gzip file; rename it without .gz") from error
    except OSError as error:
        raise QAgentError(f"{path}: {error.strerror or error}") from error
    if not seen or not first.strip():
        raise QAgentError(f"{path} is empty; nothing to ingest")
    text = first.decode(encoding, errors="replace").removeprefix("\ufeff")
    return text


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
            f"coalesce({literal(f';{f[11:]}=')} || replace({source.format(_quote(c))}, ';', ','), '')"
            for f, c in extra
        )
        patched = f"json_merge_patch(try_cast({base} AS JSON), json_object({pairs}))::VARCHAR"
        parts[at] = (
            f"CASE WHEN {base} NOT LIKE '{{%' THEN {base} || {more} "
            f"WHEN json_valid({base}) THEN {patched} ELSE {base} END AS attributes"
        )
    return ", ".join(parts)


def _stage_csv(
    connection: duckdb.DuckDBPyConnection,
    kind: str,
    path: Path,
    zipped: bool,
    options: ReadOptions,
) -> None:
    head = _check_text(path, zipped, options.encoding)
    line = head.splitlines()[0]
    if not line.strip():
        raise QAgentError(f"{path} line 1: it is blank; the first line must name the columns")
    delimiter = max(",\t;|", key=line.count)
    try:
        present = [c.strip() for c in next(csv.reader(io.StringIO(head), delimiter=delimiter))]
    except csv.Error as error:
        raise QAgentError(f"{path} line 1: {error}") from error
    present = [c or f"column{i}" for i, c in enumerate(present)]
    twice = sorted({c for c in present if present.count(c) > 1})
    if twice:
        raise QAgentError(f"{path} line 1: the column {_list(twice)} stands there twice")
    chosen = _columns(kind, path, present, options)
    columns = "{" + ", ".join(f"{literal(c)}: 'VARCHAR'" for c in present) + "}"
    for table in ("reject_errors", "reject_scans"):
        connection.execute(f"DROP TABLE IF EXISTS {table}")
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE stage AS
        SELECT row_number() OVER () AS row, {_select(kind, chosen, "{}")}, NULL::VARCHAR AS broken
        FROM read_csv(?, auto_detect=false, header=true, columns={columns}, delim=?, quote='"',
             escape='"', encoding=?, compression=?, ignore_errors=true, store_rejects=true,
             rejects_limit=0, max_line_size={MAX_LINE})""",
        [str(path), delimiter, _encoding(options.encoding), "gzip" if zipped else "none"],
    )
    broken = connection.execute(
        """SELECT line, any_value(csv_line), any_value(error_message) FROM reject_errors
        GROUP BY line ORDER BY line"""
    ).fetchall()
    if broken:
        # Broken rows were not numbered: shift the rows behind each of them.
        offsets = [line - 2 - i for i, (line, *_) in enumerate(broken)]
        connection.execute(
            """UPDATE stage SET row = row + k.n FROM (SELECT s.row AS r, count(*) AS n
            FROM stage s JOIN (SELECT unnest(?::BIGINT[]) AS o) ON o < s.row GROUP BY s.row) k
            WHERE stage.row = k.r""",
            [offsets],
        )
        with connection.appender("stage", columns=["row", "broken"]) as appender:
            for line, text, message in broken:
                appender.append_row(line - 1, f"{message} | {(text or '')[:200]}")


def _stage_jsonl(
    connection: duckdb.DuckDBPyConnection,
    kind: str,
    path: Path,
    zipped: bool,
    options: ReadOptions,
) -> None:
    _check_text(path, zipped, options.encoding)
    # Read as one text column: 0x01 cannot occur inside JSON, so no line is ever split.
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE lines AS
        SELECT row_number() OVER () AS row, line FROM read_csv(?, auto_detect=false,
            header=false, columns={{'line': 'VARCHAR'}}, delim='\x01', quote='', escape='',
            encoding=?, compression=?, max_line_size={MAX_LINE})""",
        [str(path), _encoding(options.encoding), "gzip" if zipped else "none"],
    )
    good = "(json_valid(line) AND json_type(line) = 'OBJECT')"
    present = [
        name
        for (name,) in connection.execute(
            f"""SELECT k FROM (SELECT row, unnest(json_keys(line)) AS k FROM lines
            WHERE row <= 10000 AND CASE WHEN json_valid(line) THEN {good} ELSE false END)
            GROUP BY k ORDER BY min(row), k"""
        ).fetchall()
    ]
    if not present:
        raise QAgentError(f"{path}: no line of it is a JSON object; is it one object a line?")
    chosen = _columns(kind, path, present, options)
    connection.execute("CREATE OR REPLACE TEMP TABLE parsed AS SELECT row, line, "
                       f"CASE WHEN json_valid(line) THEN {good} ELSE false END AS good FROM lines "
                       "WHERE trim(line) <> ''")
    fields = [
        (name, f"json_extract_string(line, {literal(_json_path(column))})")
        for name, column in chosen
    ]
    # The expressions stand in for columns: `_select` quotes names, so go through a view.
    inner = ", ".join(f"CASE WHEN good THEN {e} END AS {_quote(n)}" for n, e in fields)
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE stage AS
        SELECT row, {_select(kind, [(n, n) for n, _ in fields], "{}")},
               CASE WHEN NOT good THEN left(line, 200) END AS broken
        FROM (SELECT row, line, good, {inner} FROM parsed)"""
    )


def _json_path(key: str) -> str:
    # Letters beyond ASCII stay as they are: DuckDB's paths know no \\u escapes.
    return "$." + json.dumps(key, ensure_ascii=False)


def _stage_parquet(
    connection: duckdb.DuckDBPyConnection, kind: str, path: Path, options: ReadOptions
) -> None:
    try:
        described = connection.execute(
            "DESCRIBE SELECT * FROM read_parquet(?)", [str(path)]
        ).fetchall()
    except duckdb.Error as error:
        raise QAgentError(f"{path}: not a readable Parquet file; write it again") from error
    present = [row[0] for row in described]
    nested = {row[0] for row in described if row[1].startswith(("STRUCT", "MAP"))}
    lists = {row[0] for row in described if row[1].endswith("[]")}
    chosen = _columns(kind, path, present, options)

    def text(column: str) -> str:
        if column in nested:
            return f"to_json({_quote(column)})::VARCHAR"
        if column in lists:
            return f"array_to_string({_quote(column)}, ' > ')"
        return f"{_quote(column)}::VARCHAR"

    inner = ", ".join(f"{text(c)} AS {_quote(n)}" for n, c in chosen)
    try:
        connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE stage AS
            SELECT row, {_select(kind, [(n, n) for n, _ in chosen], "{}")}, NULL::VARCHAR AS broken
            FROM (SELECT row_number() OVER () AS row, {inner} FROM read_parquet(?))""",
            [str(path)],
        )
    except duckdb.Error as error:
        raise QAgentError(f"{path}: damaged Parquet file; write it again") from error


# ---------------------------------------------------------------- checking and storing


def register(connection: duckdb.DuckDBPyConnection) -> None:
    """Python functions that run once a distinct value, so that Python and SQL agree."""
    connection.execute("SELECT 1").fetchall()  # a result left half read would be in the way
    for name, function in (
        ("qa_clean", clean),
        ("qa_key", query_key),
        ("qa_plain", plain),
        ("qa_attributes", attributes_or_mark),
        ("qa_category", category),
    ):
        try:
            connection.create_function(name, function, ["VARCHAR"], "VARCHAR")
        except duckdb.NotImplementedException:
            return  # registered by an earlier file
    connection.create_function("qa_price", _price, ["VARCHAR", "BOOLEAN"], "DOUBLE")


def _price(text: str, comma: bool) -> float:
    found = price(text, comma)
    return math.nan if found is None else found


def _store(
    shop: Shop, kind: str, name: str, options: ReadOptions, malformed: str = "malformed row"
) -> IngestReport:
    connection = shop.connection
    register(connection)
    if kind == "products":
        accepted, duplicates = _store_products(shop, options)
    else:
        accepted, duplicates = _store_events(shop, options)
    report = IngestReport(accepted=accepted, duplicates=duplicates)
    connection.execute(
        "UPDATE checked SET reason = ? WHERE reason = 'malformed row'", [malformed]
    )
    raw = ", ".join(f"'{f}', {_kept(f, options)}" for f in ALIASES[kind])
    reasons = connection.execute(
        """SELECT reason, count(*), min(row), arg_min(detail, row) FROM checked
        WHERE reason IS NOT NULL GROUP BY reason ORDER BY count(*) DESC, reason"""
    ).fetchall()
    connection.execute(
        f"""INSERT INTO rejects (file, row, kind, reason, raw)
        SELECT file, row, kind, reason, raw FROM (
            SELECT ? AS file, row, ? AS kind, reason,
                   coalesce(broken, json_object({raw})::VARCHAR) AS raw
            FROM checked WHERE reason IS NOT NULL) c
        ANTI JOIN rejects r USING (file, row, kind, reason, raw)""",
        [name, kind],
    )
    for reason, count, row, detail in reasons:
        report.reasons[reason] = count
        report.rejected += count
        shown = f" {clean(str(detail))[:60]!r}" if detail else ""
        rows = f" ({count} rows)" if count > 1 else ""
        file = name
        if name == RETRY:
            ((file, row),) = connection.execute(
                "SELECT file, row FROM tried WHERE number = ?", [row]
            ).fetchall()
        report.examples.append(
            f"{file} row {row}: {reason}{shown}{rows}; {REMEDIES.get(reason, '')}"
        )
    connection.execute("DROP TABLE IF EXISTS stage; DROP TABLE IF EXISTS checked;")
    return report


def _kept(name: str, options: ReadOptions) -> str:
    """A field of a rejected row as SQL: what `retry` can read without the file's options."""
    if name == "type" and options.event_type:
        return f"coalesce(nullif(trim(type), ''), {literal(options.event_type)})"
    parsed = {"time": "ts", "click_time": "click_ts"}.get(name)
    if parsed and options.time_format:
        return f"coalesce({parsed}::VARCHAR, {name})"
    return name


_BLANK = "nullif(trim({0}), '')"
# An id as the catalog has it. Plain ones, which nearly all are, need no Python for that.
_ID = "CASE WHEN regexp_full_match({0}, '[!-~]+') THEN {0} ELSE nullif(qa_clean({0}), '') END"
# A comma before one or two last digits parts cents, and so does a point.
_CENTS = "count(*) FILTER (regexp_matches(price, '\\d[{0}]\\d{{1,2}}\\D*$'))"
_COMMA = f"SELECT {_CENTS.format(',')} > 0 AND {_CENTS.format('.')} = 0 FROM stage"
_SAME_PRODUCT = """fresh.product_id = p.product_id AND fresh.title = p.title
    AND fresh.brand IS NOT DISTINCT FROM p.brand
    AND fresh.category IS NOT DISTINCT FROM p.category
    AND fresh.price IS NOT DISTINCT FROM p.price AND fresh.in_stock = p.in_stock
    AND fresh.attributes IS NOT DISTINCT FROM p.attributes"""


def _store_products(shop: Shop, options: ReadOptions) -> tuple[int, int]:
    """Checked rows to ``products`` (the newest state) and ``product_history`` (all states).

    A row with a time says what held from then on. A row without one says what holds now;
    what held before stays known for moments before now.
    """
    connection = shop.connection
    version = shop.catalog_version + 1
    ((comma,),) = connection.execute(_COMMA).fetchall()

    def text(column: str) -> str:
        if not options.html:
            return column
        return f"CASE WHEN contains({column}, '&') OR contains({column}, '<') " \
            f"THEN qa_plain({column}) ELSE {column} END"

    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE checked AS
        WITH texts AS (SELECT row, broken, product_id, title, brand, category, price, stock,
                attributes, time, nullif(qa_clean(product_id), '') AS id,
                left(nullif(qa_clean({text("title")}), ''), {MAX_TITLE}) AS title_,
                left(nullif(qa_clean({text("brand")}), ''), 120) AS brand_,
                nullif(qa_category({text("category")}), '') AS category_,
                {_BLANK.format("price")} AS price_text,
                CASE WHEN try_cast(price_text AS DOUBLE) IS NULL OR {comma}
                     THEN qa_price(price_text, {comma}) ELSE price_text::DOUBLE END AS price_,
                lower({_BLANK.format("stock")}) AS stock_text,
                qa_attributes(attributes) AS attributes_,
                {_BLANK.format("time")} AS time_text,
                {_time("trim(time)", options.time_format)} AS ts
            FROM stage),
        typed AS (SELECT *,
                CASE WHEN stock_text IS NULL THEN true
                     WHEN stock_text IN ('true', 't', 'yes', 'y', 'in stock', 'instock',
                                         'available') THEN true
                     WHEN stock_text IN ('false', 'f', 'no', 'n', 'out of stock', 'outofstock',
                                         'unavailable', 'sold out') THEN false
                     WHEN isfinite(try_cast(stock_text AS DOUBLE))
                     THEN try_cast(stock_text AS DOUBLE) > 0 END AS stock_,
                price_text IS NOT NULL AND (price_ IS NULL OR NOT isfinite(price_)
                     OR price_ < 0 OR price_ > 1e9) AS bad_price
            FROM texts)
        SELECT *,
            CASE WHEN broken IS NOT NULL THEN 'malformed row'
                 WHEN id IS NULL THEN 'no product id'
                 WHEN length(id) > {MAX_ID} THEN 'id too long'
                 WHEN title_ IS NULL THEN 'no title'
                 WHEN bad_price THEN 'bad price'
                 WHEN stock_ IS NULL THEN 'bad stock'
                 WHEN attributes_ = chr(0) || 'bad' THEN 'bad attributes'
                 WHEN time_text IS NOT NULL AND ts IS NULL THEN 'unparseable time'
                 WHEN ts < TIMESTAMP '1990-01-01' OR ts >= TIMESTAMP '2100-01-01'
                 THEN 'time out of range' END AS reason,
            CASE reason WHEN 'malformed row' THEN broken WHEN 'bad price' THEN price
                 WHEN 'bad stock' THEN stock WHEN 'unparseable time' THEN time
                 WHEN 'time out of range' THEN time END AS detail
        FROM typed"""
    )
    # Of the rows that say the same moment the last wins: a later row is the newer export.
    connection.execute(
        """CREATE OR REPLACE TEMP TABLE states AS
        SELECT id AS product_id, title_ AS title, brand_ AS brand, category_ AS category,
               price_ AS price, stock_ AS in_stock, nullif(attributes_, '') AS attributes, ts
        FROM checked WHERE reason IS NULL
        QUALIFY row_number() OVER (PARTITION BY id, ts ORDER BY row DESC) = 1"""
    )
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE fresh AS
        WITH newest AS (SELECT product_id, max(ts) AS ts FROM product_history GROUP BY 1)
        SELECT s.* EXCLUDE ts FROM states s LEFT JOIN newest n USING (product_id)
        WHERE s.ts IS NULL OR n.ts IS NULL OR s.ts >= n.ts
        QUALIFY row_number() OVER (
            PARTITION BY s.product_id ORDER BY s.ts DESC NULLS FIRST) = 1;
        DELETE FROM fresh USING products p WHERE {_SAME_PRODUCT}"""
    )
    connection.execute(
        """CREATE OR REPLACE TEMP TABLE fresh_history AS
        SELECT product_id, ts, price, in_stock FROM states WHERE ts IS NOT NULL
        EXCEPT SELECT product_id, ts, price, in_stock FROM product_history"""
    )
    # What a change replaces: known since ever, unless its history says more.
    connection.execute(
        """INSERT INTO product_history
        SELECT p.product_id, TIMESTAMP '1970-01-01', p.price, p.in_stock FROM products p
        WHERE p.product_id NOT IN (SELECT product_id FROM product_history) AND (
            p.product_id IN (SELECT product_id FROM fresh_history)
            OR EXISTS (FROM fresh f WHERE f.product_id = p.product_id
                AND (p.price IS DISTINCT FROM f.price OR p.in_stock <> f.in_stock)));
        INSERT INTO product_history
        SELECT f.product_id, (current_timestamp AT TIME ZONE 'UTC'), f.price, f.in_stock
        FROM fresh f JOIN states s ON s.product_id = f.product_id AND s.ts IS NULL
        WHERE f.product_id IN (SELECT product_id FROM product_history)"""
    )
    connection.execute(
        f"""INSERT OR REPLACE INTO products SELECT *, {version} FROM fresh;
        DELETE FROM product_history USING fresh_history f
        WHERE product_history.product_id = f.product_id AND product_history.ts = f.ts;
        INSERT INTO product_history SELECT * FROM fresh_history"""
    )
    row = connection.execute(
        """SELECT (SELECT count(*) FROM checked WHERE reason IS NULL),
                  count(*) FROM (SELECT DISTINCT product_id, ts FROM fresh_history UNION
            SELECT f.product_id, NULL FROM fresh f
            WHERE f.product_id NOT IN (SELECT product_id FROM fresh_history))"""
    ).fetchone()
    assert row is not None
    good, stored = row
    if stored:
        shop.set_meta("catalog_version", str(version))
        memory_store.catalog_changed(
            connection, shop.config.memory, "SELECT product_id, ts FROM fresh_history"
        )
    connection.execute("DROP TABLE states; DROP TABLE fresh; DROP TABLE fresh_history")
    return stored, good - stored


def _time(column: str, time_format: str | None) -> str:
    """SQL that turns a text column into a UTC timestamp, or NULL."""
    number = f"try_cast({column} AS DOUBLE)"
    if time_format:
        return f"try_strptime({column}, {literal(time_format)})::TIMESTAMP"
    # Some put a space before the zone: "2026-03-01 12:00:00 +0100".
    zoned = f"regexp_replace({column}, '\\s+([+-]\\d\\d:?\\d\\d)$', '\\1')"
    return f"""CASE WHEN NOT isfinite({number}) THEN NULL
        WHEN {number} IS NULL THEN try_cast({zoned} AS TIMESTAMPTZ) AT TIME ZONE 'UTC'
        WHEN abs({number}) < 1e11 THEN make_timestamp(({number} * 1000000)::BIGINT)
        WHEN abs({number}) < 1e14 THEN make_timestamp(({number} * 1000)::BIGINT)
        WHEN abs({number}) < 1e17 THEN make_timestamp({number}::BIGINT) END"""


def _store_events(shop: Shop, options: ReadOptions) -> tuple[int, int]:
    connection = shop.connection
    types = ", ".join(f"({literal(k)}, {literal(v)})" for k, v in TYPE_NAMES.items())
    default = literal(options.event_type) if options.event_type else "NULL"
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE checked AS
        WITH names AS (SELECT query AS text, left(qa_clean(query), {MAX_QUERY + 1}) AS query_
                FROM (SELECT DISTINCT query FROM stage WHERE query IS NOT NULL)),
        texts AS (SELECT s.*, nullif(qa_clean(s.user_id), '') AS user_,
                nullif(n.query_, '') AS query_, {_ID.format("s.product_id")} AS product_,
                {_BLANK.format("s.time")} AS time_text,
                {_time("trim(s.time)", options.time_format)} AS ts,
                {_time("trim(s.click_time)", options.time_format)} AS click_ts,
                coalesce(nullif(replace(replace(lower(trim(s.type)), ' ', '_'), '-', '_'), ''),
                         {default}) AS type_text
            FROM stage s LEFT JOIN names n ON n.text = s.query),
        typed AS (SELECT t.*, qa_key(t.query_) AS key, k.type AS known,
                CASE WHEN k.type IS NOT NULL THEN k.type::VARCHAR
                     WHEN type_text IS NOT NULL THEN NULL
                     WHEN query_ IS NOT NULL AND product_ IS NOT NULL THEN 'search+click'
                     WHEN query_ IS NOT NULL THEN 'search' END AS kind,
                p.product_id IS NOT NULL AS in_catalog
            FROM texts t LEFT JOIN (VALUES {types}) k(name, type) ON k.name = t.type_text
            LEFT JOIN products p ON p.product_id = t.product_)
        SELECT *,
            CASE WHEN broken IS NOT NULL THEN 'malformed row'
                 WHEN user_ IS NULL THEN 'no user'
                 WHEN length(user_) > {MAX_ID} OR length(product_) > {MAX_ID} THEN 'id too long'
                 WHEN time_text IS NULL THEN 'no time'
                 WHEN ts IS NULL OR (click_time IS NOT NULL AND trim(click_time) <> ''
                      AND click_ts IS NULL) THEN 'unparseable time'
                 WHEN ts < TIMESTAMP '1990-01-01' OR ts >= TIMESTAMP '2100-01-01'
                 THEN 'time out of range'
                 WHEN kind IS NULL AND type_text IS NOT NULL THEN 'unknown event type'
                 WHEN kind IS NULL THEN 'no event type'
                 WHEN kind = 'search' AND query_ IS NULL THEN 'search without a query'
                 WHEN length(query_) > {MAX_QUERY} THEN 'query too long'
                 WHEN query_ IS NOT NULL AND key = '' THEN 'query without letters or digits'
                 WHEN kind IN ('view', 'click', 'cart', 'purchase') AND product_ IS NULL
                 THEN 'no product'
                 WHEN product_ IS NOT NULL AND kind <> 'search' AND NOT in_catalog
                 THEN 'unknown product' END AS reason,
            CASE reason WHEN 'unparseable time' THEN time WHEN 'time out of range' THEN time
                 WHEN 'unknown event type' THEN type WHEN 'unknown product' THEN product_
                 WHEN 'malformed row' THEN broken END AS detail
        FROM typed"""
    )
    # A derived query is not in the file that its event came from.
    derived = " OR o.query_key IS NULL" if shop.config.derived_queries else ""
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE fresh AS
        WITH split AS (
            SELECT row, 0 AS part, user_ AS user_id, ts, 'search' AS type, query_ AS query,
                   key AS query_key, NULL AS product_id
            FROM checked WHERE reason IS NULL AND kind IN ('search', 'search+click')
            UNION ALL
            SELECT row, 1, user_, CASE WHEN kind = 'search+click'
                   THEN greatest(coalesce(click_ts, ts), ts) ELSE ts END,
                   CASE WHEN kind = 'search+click' THEN 'click' ELSE kind END, query_, key,
                   product_
            FROM checked WHERE reason IS NULL AND kind <> 'search'),
        once AS (SELECT * FROM split QUALIFY row_number() OVER (
            PARTITION BY user_id, ts, type, query_key, product_id ORDER BY row) = 1)
        SELECT o.* FROM once o ANTI JOIN events e
            ON e.user_id = o.user_id AND e.ts = o.ts AND e.type = o.type::event_type
            AND (e.query_key IS NOT DISTINCT FROM o.query_key{derived})
            AND e.product_id IS NOT DISTINCT FROM o.product_id"""
    )
    last_id = connection.execute("SELECT coalesce(max(event_id), 0) FROM events").fetchall()[0][0]
    connection.execute(
        """INSERT INTO events
        SELECT nextval('event_ids'), user_id, ts, type::event_type, query, query_key,
               product_id, NULL, NULL
        FROM (SELECT * FROM fresh ORDER BY ts, row, part)"""
    )
    row = connection.execute(
        """SELECT (SELECT count(*) FROM checked WHERE reason IS NULL),
                  (SELECT count(DISTINCT row) FROM fresh)"""
    ).fetchone()
    assert row is not None
    good, stored = row
    if stored:
        event_memory.refresh_sessions(
            connection, shop.config.memory, "SELECT DISTINCT user_id FROM fresh"
        )
        users = connection.execute("SELECT DISTINCT user_id FROM fresh").fetchall()
        memory_store.update(
            connection, shop.config.memory, [user for (user,) in users], last_id
        )
    connection.execute("DROP TABLE fresh")
    return stored, good - stored


def append_events(shop: Shop, rows: Iterable[dict[str, Any]]) -> IngestReport:
    """Store events given as dicts with the fields of `ALIASES` (``time`` as a datetime or text).

    All or nothing, as one file is.
    """
    register(shop.connection)  # before the transaction: one that fails would take them away
    with shop.transaction():
        return append(shop, rows)


def append_batches(
    shop: Shop, batches: Sequence[Sequence[dict[str, Any]]]
) -> list[IngestReport]:
    """Store several lists of events as `append_events` does, with a report for each.

    Most of the time goes into what a call costs once, so all go in together; only where some
    event is refused or known already is each list stored by itself.
    """
    register(shop.connection)
    try:
        with shop.transaction():
            report = append(shop, chain.from_iterable(batches))
            if report.rejected or report.duplicates:
                raise _NotAllNew
    except _NotAllNew:
        return [append_events(shop, rows) for rows in batches]
    return [IngestReport(accepted=len(rows)) for rows in batches]


class _NotAllNew(Exception):
    """Some event of several lists was refused or is a duplicate; nothing is stored."""


def append(shop: Shop, rows: Iterable[dict[str, Any]]) -> IngestReport:
    """`append_events` inside a transaction, after `register`."""
    fields = list(ALIASES["events"])
    columns = ", ".join(f"{f} VARCHAR" for f in fields)
    shop.connection.execute(
        f"CREATE OR REPLACE TEMP TABLE stage (row BIGINT, {columns}, broken VARCHAR)"
    )
    with shop.connection.appender("stage") as appender:
        for number, values in enumerate(rows, 1):
            appender.append_row(number, *_texts(values, fields), None)
    return _store(shop, "events", "events", ReadOptions())


def _texts(values: dict[str, Any], fields: Sequence[str]) -> Iterator[str | None]:
    for name in fields:
        value = values.get(name)
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            yield None
        elif hasattr(value, "isoformat"):
            yield value.isoformat()
        else:
            text = str(value)
            # Half characters, as JSON's escapes can make them, are no text to a database.
            yield text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
