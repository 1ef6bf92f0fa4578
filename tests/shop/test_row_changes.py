"""What a transaction has changed is found without being told."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qagent_mlx.shop.row_changes import Before, apply_rows, fingerprint, read_table
from qagent_mlx.utils.database import open_duckdb

TABLE = """CREATE TABLE t (name VARCHAR, n BIGINT, kind mood, l VARCHAR[],
    s STRUCT(ts TIMESTAMP, x DOUBLE)[]);
    CREATE TABLE k (id VARCHAR PRIMARY KEY, x DOUBLE, l VARCHAR[])"""
STATEMENTS = (
    "INSERT INTO t SELECT 'new' || i, i, 'good', ['a'], NULL FROM range({b}) r(i)",
    "INSERT INTO t SELECT * FROM t WHERE n % 500 = {a} % 500",  # the same rows once more
    "UPDATE t SET n = n + 1 WHERE n = {a}",
    "UPDATE t SET name = NULL, kind = 'bad' WHERE n BETWEEN {a} AND {a} + {b}",
    "UPDATE t SET l = ['x', 'y'] WHERE n = {a}",
    "UPDATE t SET s = [{{ts: TIMESTAMP '2026-01-01', x: {a}}}] WHERE n = {b}",
    "UPDATE t SET name = name WHERE n = {a}",  # to what it was
    "DELETE FROM t WHERE n BETWEEN {a} AND {a} + {b} // 4",
    "DELETE FROM t WHERE n = {a}",
    "INSERT OR REPLACE INTO k VALUES ('k{a}', {b}, ['z'])",
    "UPDATE k SET x = -1 WHERE id = 'k{b}'",
    "DELETE FROM k WHERE id = 'k{a}'",
    "DELETE FROM t",
)


def opened(path, rows):
    connection = open_duckdb(path)
    connection.execute("CREATE TYPE mood AS ENUM ('good', 'bad');" + TABLE)
    connection.execute(
        f"""INSERT INTO t SELECT 'n' || i % 9, i % 3000, CASE WHEN i % 2 = 0 THEN 'good' END,
        CASE WHEN i % 3 = 0 THEN ['a', NULL] END, NULL FROM range({rows}) r(i);
        INSERT INTO k SELECT 'k' || i, i, NULL FROM range({rows // 10}) r(i); CHECKPOINT"""
    )
    return connection


@pytest.fixture(scope="module")
def shop_and_copy(tmp_path_factory):
    """A database, and another one with the same rows."""
    folder = tmp_path_factory.mktemp("rows")
    with opened(folder / "a.duckdb", 9_000) as one, opened(folder / "b.duckdb", 9_000) as two:
        yield one, two, folder


def sums(connection):
    tables = [read_table(connection, name) for name in ("t", "k")]
    return [fingerprint(connection, table.name, table) for table in tables]


@settings(max_examples=12)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, len(STATEMENTS) - 2), st.integers(0, 3000), st.integers(0, 60)),
        min_size=1,
        max_size=4,
    ),
    is_emptied=st.booleans(),
    is_committed=st.booleans(),
)
def test_a_copy_that_is_told_the_changes_stays_a_copy(
    shop_and_copy, steps, is_emptied, is_committed
):
    one, two, folder = shop_and_copy
    before = Before(one, [read_table(one, name) for name in ("t", "k")])
    one.execute("BEGIN")
    two.execute("BEGIN")
    for step, a, b in steps:
        one.execute(STATEMENTS[step].format(a=a, b=b))
    if is_emptied and not is_committed:
        one.execute(STATEMENTS[-1])
    for rows in before.changes(one, folder):
        assert apply_rows(two, rows.table.name, rows)
    assert sums(one) == sums(two)
    before.close()
    for connection in (one, two):
        connection.execute("COMMIT" if is_committed else "ROLLBACK")


def test_only_what_differs_counts_as_changed(shop_and_copy):
    one, _, folder = shop_and_copy
    before = Before(one, [read_table(one, name) for name in ("t", "k")])
    one.execute("BEGIN; UPDATE t SET name = name; UPDATE k SET x = x")
    assert before.changes(one, folder) == []
    one.execute("UPDATE t SET n = -7 WHERE rowid IN (5, 8000)")
    (rows,) = before.changes(one, folder)
    assert (rows.table.name, rows.removed_rows, rows.added_rows) == ("t", 2, 2)
    before.close()
    one.execute("ROLLBACK")


def test_rows_that_the_copy_lacks_are_told(shop_and_copy):
    one, two, folder = shop_and_copy
    before = Before(one, [read_table(one, "k")])
    one.execute("BEGIN; DELETE FROM k WHERE id IN ('k3', 'k4')")
    two.execute("BEGIN; DELETE FROM k WHERE id = 'k3'")
    (rows,) = before.changes(one, Path(folder))
    assert not apply_rows(two, "k", rows)
    before.close()
    for connection in (one, two):
        connection.execute("ROLLBACK")


def test_an_update_is_found_in_whatever_part_of_a_large_table(tmp_path):
    with open_duckdb(tmp_path / "large.duckdb") as connection:
        connection.execute(
            "CREATE TABLE t AS SELECT i AS n, i AS x FROM range(300_000) r(i); CHECKPOINT"
        )
        before = Before(connection, [read_table(connection, "t")])
        connection.execute("BEGIN; UPDATE t SET x = -1 WHERE n IN (7, 122_880, 299_999)")
        (rows,) = before.changes(connection, tmp_path)
        assert (rows.removed_rows, rows.added_rows) == (3, 3)
        before.close()


def test_a_columns_name_is_no_sql(tmp_path):
    stolen = tmp_path / "stolen.csv"
    name = f"a\" FROM odd) TO '{stolen}' (FORMAT csv); COPY (SELECT \"a"
    quoted = name.replace('"', '""')
    with open_duckdb(tmp_path / "odd.duckdb") as connection:
        connection.execute(f'CREATE TABLE odd (a VARCHAR, "{quoted}" VARCHAR)')
        before = Before(connection, [read_table(connection, "odd")])
        connection.execute("BEGIN; INSERT INTO odd VALUES ('x', 'y')")
        (rows,) = before.changes(connection, tmp_path)
        connection.execute("ROLLBACK")
        before.close()
        assert rows.added_rows == 1
        assert apply_rows(connection, "odd", rows)
        assert connection.execute("FROM odd").fetchall() == [("x", "y")]
    assert not stolen.exists()
