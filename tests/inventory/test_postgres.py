"""A shop's own engine in a real PostgreSQL, where there is one."""

from itertools import pairwise

import pytest
from engines import handed, ids, named
from postgres_server import running_postgres

from qagent_mlx.errors import QAgentError
from qagent_mlx.inventory.product_search import open_shop_search, search_products
from qagent_mlx.inventory.types import Filters


@pytest.fixture(scope="module")
def database():
    """A PostgreSQL of our own."""
    with running_postgres() as folder:
        yield f"host={folder} user=postgres dbname=postgres"


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


def test_a_shop_connects_to_no_database_that_its_user_has_not_named(postgres, monkeypatch):
    monkeypatch.setenv("OTHER", "host=elsewhere")
    for settings, named_as in (
        ({"dsn": "host=elsewhere password=secret"}, "trust host=elsewhere"),
        ({"dsn": "postgresql://ann:secret@elsewhere/db"}, "trust 'user=ann dbname=db host=elsewhe"),
        ({"dsn_variable": "OTHER"}, "trust OTHER"),
        ({}, "trust postgres"),
    ):
        with pytest.raises(QAgentError, match=named_as) as error:
            open_shop_search(handed(postgres, kind="postgres", **settings))
        assert "secret" not in str(error.value)
    with pytest.raises(QAgentError, match="cannot be read"):
        open_shop_search(handed(postgres, kind="postgres", dsn="nonsense"))
