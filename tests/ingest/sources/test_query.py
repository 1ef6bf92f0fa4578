"""The user's own SQL: it reads, and does nothing else."""

import pytest
from source_files import as_csv, log, put, titles

from qagent_mlx.errors import QAgentError
from qagent_mlx.ingest.ingest import ingest_files
from qagent_mlx.ingest.sources.locations import query_location

EVENTS = [
    {"uid": "u1", "moment": "2026-01-05 10:00", "q": "lamp", "sku": None},
    {"uid": "u1", "moment": "2026-01-05 10:01", "q": None, "sku": "p1"},
]


def run(shop, kind, query):
    return ingest_files(shop, kind, [query_location(query)])


def test_a_query_gives_the_fields(stocked, tmp_path):
    path = put(tmp_path / "e.csv", as_csv(EVENTS))
    query = f"""
        SELECT uid AS user_id, moment AS time, if(sku IS NULL, 'search', 'view') AS type, q AS query,
               sku AS product_id
        FROM '{path}' -- the log"""
    assert run(stocked, "events", query).accepted == 2
    assert [row[2] for row in log(stocked)] == ["search", "view"]
    assert run(stocked, "events", f"{query}\n;").duplicates == 2


def test_typed_and_nested_results_are_read_as_a_file_is(shop):
    query = """FROM (VALUES (1, 'Tent', ['Out', 'Tents'], 2.5::DECIMAL(9, 2), true))
        v(id, title, category, price, stock)"""
    assert run(shop, "products", query).accepted == 1
    assert titles(shop) == [("1", "Tent", None, 2.5)]
    with pytest.raises(QAgentError, match="title=COLUMN.*query has no column for title"):
        run(shop, "products", "SELECT 1 AS id, NULL AS name_of_it")


@pytest.mark.parametrize(
    "query",
    [
        "COPY (SELECT 1) TO '{0}/out.csv'",
        "SELECT 1 AS id, 'A' AS title; COPY (SELECT 1) TO '{0}/out.csv'",
        "ATTACH '{0}/out.db' AS x",
        "CREATE TABLE x AS SELECT 1",
        "INSTALL httpfs",
        "LOAD '{0}/x.duckdb_extension'",
        "SET memory_limit = '1GB'",
        "PRAGMA database_list",
        "EXPORT DATABASE '{0}/out'",
        "CALL pragma_version()",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{0}/out.csv'",
        "",
        "-- nothing",
        "SELECT * FROM query('COPY (SELECT 1) TO ''{0}/out.csv''')",
        "SELECT 1) TO '{0}/out.csv' (FORMAT csv); --",
    ],
)
def test_what_is_not_one_select_is_refused_and_writes_nothing(shop, tmp_path, query):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(QAgentError) as error:
        run(shop, "products", query.format(folder))
    assert str(error.value).startswith("query: ") and "\n" not in str(error.value)
    assert list(folder.iterdir()) == []


def test_an_error_of_the_query_is_one_line_that_points_at_it(shop):
    with pytest.raises(QAgentError, match=r"query: Parser Error: syntax error .*LINE 1: SELEC"):
        run(shop, "products", "SELEC 1")
    with pytest.raises(QAgentError, match="No files found that match"):
        run(shop, "products", "FROM 'none.parquet'")
