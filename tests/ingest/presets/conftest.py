"""A shop, a folder of raw files, and a look at what an import stored."""

import csv
import json

import pytest

from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.shop.shop import Shop


@pytest.fixture
def shop(tmp_path):
    with Shop.create(tmp_path / "shop") as made:
        yield made


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


@pytest.fixture
def write_json(raw):
    """Write objects as JSON lines."""

    def write(name, *objects):
        path = raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(value) + "\n" for value in objects), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_csv(raw):
    """Write rows under a header; rows may be dicts."""

    def write(name, header, *rows, delimiter=","):
        path = raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(header)
            for row in rows:
                writer.writerow([row.get(c, "") for c in header] if isinstance(row, dict) else row)
        return path

    return write


@pytest.fixture
def catalog(shop, tmp_path):
    """Give the shop products of these ids."""

    def add(*ids):
        path = tmp_path / "catalog.csv"
        path.write_text("product_id,title\n" + "".join(f"{i},Title {i}\n" for i in ids))
        ingest_files(shop, "products", [path])

    return add


@pytest.fixture
def stored(shop):
    """The stored events as (user, time, type, query, product), in order."""

    def read():
        return [
            (user, time.isoformat(" "), kind, query, product)
            for user, time, kind, query, product in shop.connection.execute(
                "SELECT user_id, ts, type, query, product_id FROM events ORDER BY ts, event_id"
            ).fetchall()
        ]

    return read


@pytest.fixture
def products(shop):
    """The stored products by id: (title, brand, category, price, in_stock, attributes)."""

    def read():
        rows = shop.connection.execute(
            "SELECT product_id, title, brand, category, price, in_stock, attributes FROM products"
        ).fetchall()
        return {row[0]: (*row[1:6], json.loads(row[6]) if row[6] else {}) for row in rows}

    return read


@pytest.fixture
def impressions(shop):
    """The stored impressions as (user, time, query, product, position, query id), in order."""

    def read():
        return [
            (user, time.isoformat(" "), *rest)
            for user, time, *rest in shop.connection.execute(
                """SELECT user_id, ts, query, product_id, position, query_id FROM impressions
                ORDER BY ts, position"""
            ).fetchall()
        ]

    return read
