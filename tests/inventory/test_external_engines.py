"""A shop's own engine: one that speaks the _search API, and a real PostgreSQL where there is one."""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest

from qagent_mlx.errors import QAgentError
from qagent_mlx.inventory.opensearch import OpenSearch
from qagent_mlx.inventory.product_search import open_shop_search, search_products
from qagent_mlx.inventory.types import Filters

# ---------------------------------------------------------------- the _search API


class Engine(BaseHTTPRequestHandler):
    """Understands the part of the query language that is sent, and scores by matching words."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.asked.append((self.path, dict(self.headers), body))
        if server.answer is not None:
            return self.reply(*server.answer)
        wanted = body["query"]["bool"]["must"][0]["multi_match"]
        words = wanted["query"].lower().split()
        weights = {f.partition("^")[0]: float(f.partition("^")[2] or 1) for f in wanted["fields"]}
        hits = []
        for product in server.products:
            if all(self.meets(product, c) for c in body["query"]["bool"]["filter"]):
                score = sum(
                    weight * sum(w in (product.get(field) or "").lower() for w in words)
                    for field, weight in weights.items()
                )
                if score:
                    source = {f: product[f] for f in body["_source"]} if body["_source"] else None
                    hits.append({"_id": product["product_id"], "_score": score, "_source": source})
        hits.sort(key=lambda h: -h["_score"])
        answer = {
            "took": 1,
            "timed_out": False,
            "_shards": {"total": 1, "failed": 0},
            "hits": {"total": {"value": len(hits)}, "hits": hits[: body["size"]]},
        }
        return self.reply(200, json.dumps(answer))

    @staticmethod
    def meets(product, condition):
        ((kind, value),) = condition.items()
        ((field, test),) = value.items()
        held = product[field.removesuffix(".keyword")]
        if kind == "term":
            return held == test
        if kind == "prefix":
            return (held or "").lower().startswith(test["value"].lower())
        assert kind == "range"
        return held is not None and test.get("gte", held) <= held <= test.get("lte", held)

    def reply(self, status, text):
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def products(tiny_shop):
    rows = tiny_shop.connection.execute(
        "SELECT product_id, title, brand, category, price, in_stock FROM products"
    )
    names = [d[0] for d in rows.description]
    return [dict(zip(names, row, strict=True)) for row in rows.fetchall()]


@pytest.fixture
def engine(products, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    server.products, server.asked, server.answer = products, [], None
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def named(shop, **engine):
    """The shop with an engine in its settings; saved, and read again."""
    search = replace(shop.config.search, engine=engine)
    shop.config = replace(shop.config, search=search)
    shop.save_config()
    return shop


def ids(hits):
    return [hit.product_id for hit in hits]


def test_the_engine_that_a_shop_names_is_asked(own_shop, engine):
    shop = named(own_shop, kind="opensearch", url=engine.url + "/", index="goods")
    search = open_shop_search(shop)
    assert isinstance(search, OpenSearch)
    found = search.search(["acme usb cable", "!!", "lamp", "lamp"], 5)
    assert len(found[0]) == 5 and found[1] == [] and found[2] == found[3] != []
    assert ids(found[0])[0].startswith("p00")
    assert {path for path, _, _ in engine.asked} == {"/goods/_search"} and len(engine.asked) == 2
    shown = search_products(shop, "acme usb cable", 5)
    assert ids(shown) == ids(found[0]) and shown[0].title
    with pytest.raises(QAgentError, match="cannot explain"):
        search_products(shop, "lamp", explain=True)


def test_filters_are_the_engines(own_shop, engine):
    search = open_shop_search(named(own_shop, kind="opensearch", url=engine.url))
    kept = Filters(in_stock=True, min_price=10, max_price=30, category="phones")
    (hits,) = search.search(["phone case"], 40, None, kept)
    rows = search.catalog.row_of
    assert hits
    for hit in hits:
        row = rows[hit.product_id]
        assert search.catalog.in_stock[row] and 10 <= search.catalog.prices[row] <= 30
        assert search.catalog.categories[row].startswith("Phones")


def test_hundreds_of_queries_are_asked_side_by_side(own_shop, engine):
    search = open_shop_search(named(own_shop, kind="opensearch", url=engine.url))
    queries = [f"{brand} lamp {i}" for i in range(50) for brand in ("acme", "dune")]
    found = search.search(queries, 3)
    assert found == [search.search([query], 3)[0] for query in queries]


def test_products_that_the_catalog_lacks_are_left_out_and_ties_go_by_id(own_shop, engine):
    found = ("p411", "gone", "p400")
    engine.products = [{"product_id": p, "sku": p, "title": "lamp"} for p in found]
    search = open_shop_search(
        named(own_shop, kind="opensearch", url=engine.url, id="sku", fields=["title"])
    )
    assert ids(search.search(["lamp"], 10)[0]) == ["p400", "p411"]
    assert engine.asked[-1][2]["_source"] == ["sku"]


def test_secrets_come_from_the_environment(own_shop, engine, monkeypatch):
    shop = named(
        own_shop, kind="opensearch", url=engine.url, user="ann", password_variable="SHOP_PASSWORD"
    )
    with pytest.raises(QAgentError, match="SHOP_PASSWORD, which is not set"):
        open_shop_search(shop)
    monkeypatch.setenv("SHOP_PASSWORD", "secret")
    open_shop_search(shop).search(["lamp"])
    assert engine.asked[-1][1]["Authorization"] == "Basic YW5uOnNlY3JldA=="
    assert "secret" not in (shop.path / "shop.json").read_text()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((503, "busy"), r"answered 503 \(busy\)"),
        ((200, "no json"), "none of the _search API"),
        ((200, "{}"), "none of the _search API"),
        ((200, "[]"), "none of the _search API"),
        ((200, '{"timed_out": true, "hits": {"hits": []}}'), "only a part"),
        ((200, '{"_shards": {"failed": 1}, "hits": {"hits": []}}'), "only a part"),
    ],
)
def test_a_bad_answer_is_one_line_with_its_remedy(own_shop, engine, answer, says):
    engine.answer = answer
    search = open_shop_search(named(own_shop, kind="opensearch", url=engine.url))
    with pytest.raises(QAgentError, match=says) as error:
        search.search(["lamp"])
    assert "\n" not in str(error.value) and "shop.json" in str(error.value)


def test_an_engine_that_is_not_there_and_wrong_settings(own_shop, engine):
    engine.server_close()
    search = open_shop_search(named(own_shop, kind="opensearch", url="http://127.0.0.1:9"))
    with pytest.raises(QAgentError, match="does not answer.*start it"):
        search.search(["lamp"])
    for settings, says in (
        ({"kind": "nosuch"}, "known are opensearch, postgres"),
        ({"kind": "opensearch"}, "url"),
        ({"kind": "opensearch", "url": "file:///etc"}, "no http"),
        (
            {"kind": "postgres", "tabel": "x"},
            "search.engine: unknown setting 'tabel'; did you mean table",
        ),
    ):
        with pytest.raises(QAgentError, match=says):
            open_shop_search(named(own_shop, **settings))


# ---------------------------------------------------------------- PostgreSQL


def binaries():
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    path = shutil.which("initdb")
    return found[-1].parent if found else Path(path).parent if path else None


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A PostgreSQL of our own, on a socket in a temporary folder."""
    pytest.importorskip("psycopg")
    programs = binaries()
    if programs is None or sys.platform == "win32":
        pytest.skip("PostgreSQL is not installed")
    # Socket paths have to be short, and PostgreSQL does not run as root.
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="qa-pg-"))
    lead = []
    if os.getuid() == 0:
        if not shutil.which("runuser"):
            pytest.skip("PostgreSQL does not run as root")
        try:
            shutil.chown(folder, "postgres", "postgres")
        except LookupError:
            pytest.skip("there is no user postgres to run it")
        lead = ["runuser", "-u", "postgres", "--"]

    def run(program, *arguments):
        command = [*lead, str(programs / program), *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)

    data = folder / "data"
    run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8")
    options = f"-k {folder} -c listen_addresses='' -c fsync=off"
    run("pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
    yield f"host={folder} user=postgres dbname=postgres"
    run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres(database, own_shop, products):
    import psycopg

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS products")
        connection.execute(
            """CREATE TABLE products (product_id text, title text, brand text, category text,
            price float8, in_stock boolean, words tsvector GENERATED ALWAYS AS
            (to_tsvector('english', title || ' ' || brand)) STORED)"""
        )
        connection.cursor().executemany(
            """INSERT INTO products VALUES (%(product_id)s, %(title)s, %(brand)s, %(category)s,
            %(price)s, %(in_stock)s)""",
            products,
        )
    return named(own_shop, kind="postgres", dsn=database)


def test_postgres_finds_and_filters(postgres):
    from qagent_mlx.inventory.postgres import Postgres

    search = open_shop_search(postgres)
    assert isinstance(search, Postgres)
    found = search.search(["acme usb cables", "???", "running shoe", "it's \\ 'quoted' \0 %"], 5)
    assert [p[:3] for p in ids(found[0])[:2]] == ["p00", "p00"] and found[1] == []
    assert all(p.startswith("p3") for p in ids(found[2])) and len(found[2]) == 5
    assert all(a.score >= b.score for a, b in pairwise(found[0]))
    kept = Filters(in_stock=True, min_price=10, max_price=30, category="PHONES")
    (hits,) = search.search(["phone case"], 40, None, kept)
    rows = search.catalog.row_of
    assert hits and all(search.catalog.in_stock[rows[p]] for p in ids(hits))
    assert all(10 <= search.catalog.prices[rows[p]] <= 30 for p in ids(hits))
    assert search.search(["phone"], 5, None, Filters(category="Ph%nes")) == [[]]
    queries = [f"acme lamp {i}" for i in range(300)]
    batch = search.search(queries, 3)
    assert len(batch) == 300 and batch[7] == search.search([queries[7]], 3)[0]
    assert ids(search_products(postgres, "desk lamp", 3))
    search.close()
    assert search.search(["lamp"], 1)[0]


def test_postgres_takes_an_indexed_column_and_names_what_is_wrong(postgres, database, monkeypatch):
    monkeypatch.setenv("SHOP_DSN", database)
    search = open_shop_search(
        named(postgres, kind="postgres", dsn_variable="SHOP_DSN", vector="words")
    )
    assert ids(search.search(["dune desk lamps"], 1)[0])[0].startswith("p43")
    for settings, says in (
        ({"dsn": database, "table": "nosuch"}, "nosuch.*does not exist"),
        ({"dsn": database, "text": ["a; DROP TABLE products"]}, "does not exist"),
        ({"dsn": "host=/nowhere"}, "PostgreSQL cannot search"),
    ):
        broken = open_shop_search(named(postgres, kind="postgres", **settings))
        with pytest.raises(QAgentError, match=says) as error:
            broken.search(["lamp"])
        assert "\n" not in str(error.value)
    assert search.search(["lamp"], 1)[0]
