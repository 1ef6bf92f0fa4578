"""A small catalog and log, and writers of the forms that shops export."""

import bz2
import csv
import gzip
import io
import json
import sqlite3
import sys
import zipfile

import duckdb

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PRODUCTS = [
    {"product_id": "p1", "title": 'Monitor 24", black', "brand": "Acme", "price": 1299.5},
    {"product_id": "p2", "title": "Käse; grün", "brand": None, "price": 3},
]
EVENTS = [
    {"user_id": "u1", "time": "2026-01-05T10:00:00", "type": "search", "query": "red, Monitor"},
    {"user_id": "u1", "time": "2026-01-05T10:00:20", "type": "click", "product_id": "p1"},
    {"user_id": "u2", "time": "2026-01-05T11:00:00", "type": "view", "product_id": "p2"},
]
EVENT_FIELDS = ["user_id", "time", "type", "query", "product_id"]


def filled(rows, fields):
    """The rows with all fields, None where they lack one."""
    return [{field: row.get(field) for field in fields} for row in rows]


def as_csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_workbook(path, sheets):
    """Rows of cells by sheet as a minimal .xlsx file."""
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    relations = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    office = "application/vnd.openxmlformats-officedocument.spreadsheetml"

    def cell(value):
        if value is None:
            return "<c/>"
        if isinstance(value, bool):
            return f'<c t="b"><v>{int(value)}</v></c>'
        if isinstance(value, (int, float)):
            return f"<c><v>{value}</v></c>"
        text = value.replace("&", "&amp;").replace("<", "&lt;")
        return f'<c t="inlineStr"><is><t>{text}</t></is></c>'

    numbers = range(1, len(sheets) + 1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{package}/content-types">'
            '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.'
            'relationships+xml"/><Override PartName="/xl/workbook.xml" '
            f'ContentType="{office}.sheet.main+xml"/>'
            + "".join(
                f'<Override PartName="/xl/worksheets/sheet{n}.xml" '
                f'ContentType="{office}.worksheet+xml"/>'
                for n in numbers
            )
            + "</Types>",
        )
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{package}/relationships"><Relationship Id="rId1" '
            f'Type="{relations}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        )
        archive.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{main}" xmlns:r="{relations}"><sheets>'
            + "".join(
                f'<sheet name="{title}" sheetId="{n}" r:id="rId{n}"/>'
                for n, title in zip(numbers, sheets, strict=True)
            )
            + "</sheets></workbook>",
        )
        archive.writestr(
            "xl/_rels/workbook.xml.rels",
            f'<Relationships xmlns="{package}/relationships">'
            + "".join(
                f'<Relationship Id="rId{n}" Type="{relations}/worksheet" '
                f'Target="worksheets/sheet{n}.xml"/>'
                for n in numbers
            )
            + "</Relationships>",
        )
        for n, rows in zip(numbers, sheets.values(), strict=True):
            body = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
            archive.writestr(
                f"xl/worksheets/sheet{n}.xml",
                f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>',
            )
    return path


def write_sqlite(path, tables):
    """Rows of dicts by table."""
    with sqlite3.connect(path) as database:
        for table, rows in tables.items():
            columns = list(rows[0])
            database.execute(f'CREATE TABLE "{table}" ({", ".join(columns)})')
            marks = ", ".join("?" * len(columns))
            database.executemany(
                f'INSERT INTO "{table}" VALUES ({marks})', [list(row.values()) for row in rows]
            )
    database.close()
    return path


def write_duckdb(path, tables):
    with duckdb.connect(str(path)) as database:
        for table, rows in tables.items():
            columns = ", ".join(f"{column} VARCHAR" for column in rows[0])
            database.execute(f'CREATE TABLE "{table}" ({columns})')
            for row in rows:
                marks = ", ".join("?" * len(row))
                database.execute(f'INSERT INTO "{table}" VALUES ({marks})', list(row.values()))
    return path


def write(path, rows):
    """Rows in the form that the file's name says."""
    form = path.name.partition(".")[2]
    if form == "xlsx":
        cells = [list(rows[0]), *(list(row.values()) for row in rows)]
        return write_workbook(path, {"Sheet1": cells})
    if form == "sqlite":
        return write_sqlite(path, {"export": rows})
    if form == "duckdb":
        return write_duckdb(path, {"export": rows})
    plain, _, packed = form.partition(".")
    if plain == "parquet":
        write_duckdb(path.with_suffix(".tmp"), {"export": rows})
        with duckdb.connect(str(path.with_suffix(".tmp")), read_only=True) as database:
            database.execute(f"COPY export TO '{path}' (FORMAT parquet)")
        path.with_suffix(".tmp").unlink()
        return path
    if plain == "csv":
        data = as_csv(rows).encode()
    elif plain == "jsonl":
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    else:
        data = json.dumps(rows, indent=2, ensure_ascii=False).encode()
    if packed == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"export.{plain}", data)
        return path
    pack = {"": bytes, "gz": gzip.compress, "bz2": bz2.compress, "zst": zstd.compress}[packed]
    path.write_bytes(pack(data))
    return path


def put(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def titles(shop):
    return shop.connection.execute(
        "SELECT product_id, title, brand, price FROM products ORDER BY ALL"
    ).fetchall()


def log(shop):
    return shop.connection.execute(
        "SELECT user_id, ts::VARCHAR, type::VARCHAR, query, product_id FROM events ORDER BY ALL"
    ).fetchall()
